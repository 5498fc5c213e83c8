"""A wrapper that leads a vector environment through the curriculum's stages (Gymnasium 1.1 and later).

    env = VectorCurriculumWrapper(gymnasium.make_vec("VMR-Charades-v0", num_envs=256), Plateau(window=5000))

Episodes that run when a stage begins end under the rules that they began under.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from vmr_env.envs.curriculum import Plateau, Progression, StepSchedule
from vmr_env.envs.gymnasium_vector import AutoresetMode, VectorWrapper

if TYPE_CHECKING:
    _Wrapper = VectorWrapper[Any, Any, Any]
else:
    _Wrapper = VectorWrapper  # not generic in the version that Ray pins


class VectorCurriculumWrapper(_Wrapper):
    """A vector environment that begins in stage 1 and advances by rule; `infos["stage"]` tells, once for all.

    Args:
        env: `VMRVectorEnv`, or a Gymnasium vector environment over `VMREnv`s (sync or async).
        rule: When the next stage begins; steps are counted over all environments.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], rule: StepSchedule | Plateau) -> None:
        super().__init__(env)
        environments: Any = env.unwrapped
        self.progression = Progression(rule, len(environments.get_attr("curriculum")[0]))
        self._next_step = env.metadata.get("autoreset_mode") is AutoresetMode.NEXT_STEP
        self._returns = np.zeros(self.num_envs)
        self._begins = np.zeros(self.num_envs, bool)
        self._set_stage()

    def __getattr__(self, name: str) -> Any:
        """What the environment inside has, so that our agents learn in this as in the environment itself."""
        if name == "env" or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.env, name)

    def _set_stage(self) -> None:
        environments: Any = self.env.unwrapped
        environments.call("set_stage", self.progression.stage)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin episodes in the current stage."""
        self._set_stage()  # the progression may have been loaded
        inner: Any = self.env
        observations, infos = inner.reset(seed=seed, options=options)
        began = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        self._returns[began], self._begins[began] = 0, False
        return observations, {**infos, "stage": self.progression.stage}

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Take a step in every environment; the next stage may begin after it."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        infos = {**infos, "stage": self.progression.stage}
        stepped = ~self._begins
        self._returns += rewards * stepped
        ended = (terminated | truncated) & stepped
        returns = self._returns[ended].tolist()
        self._returns[ended] = 0
        self._begins = ended & self._next_step
        if self.progression.observe(int(stepped.sum()), returns):
            self._set_stage()
        return observations, rewards, terminated, truncated, infos
