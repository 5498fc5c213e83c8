"""A wrapper that leads an environment through the curriculum's stages while an agent learns in it.

    env = CurriculumWrapper(gymnasium.make("VMR-Charades-v0"), StepSchedule((10_000, 30_000)))

Spaces are the same in all stages, so one policy lives through them. A new stage rules from the next episode
on. `vmr_env.envs.vector_wrappers` has the same for vector environments.
"""

from typing import Any

import gymnasium

from vmr_env.envs.curriculum import Plateau, Progression, StepSchedule


class CurriculumWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A single environment that begins in stage 1 and advances by rule; `info["stage"]` tells.

    Args:
        env: `VMREnv`, perhaps wrapped.
        rule: When the next stage begins.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], rule: StepSchedule | Plateau) -> None:
        super().__init__(env)
        inner: Any = env.unwrapped
        self.progression = Progression(rule, len(inner.curriculum))
        self._return = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in the current stage."""
        inner: Any = self.env.unwrapped
        if inner.stage != self.progression.stage:
            inner.set_stage(self.progression.stage)
        self._return = 0.0
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "stage": self.progression.stage}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step; the next episode may be of the next stage."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._return += float(reward)
        inner: Any = self.env.unwrapped
        info = {**info, "stage": inner.stage}
        self.progression.observe(1, (self._return,) if terminated or truncated else ())
        return observation, reward, terminated, truncated, info
