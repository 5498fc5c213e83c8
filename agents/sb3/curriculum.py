"""The curriculum for Stable-Baselines3: a callback that leads the training environments through the stages.

model.learn(100_000, callback=CurriculumCallback(StepSchedule((20_000, 60_000))))
"""

from stable_baselines3.common.callbacks import BaseCallback

from vmr_env.envs.curriculum import Plateau, Progression, StepSchedule


class CurriculumCallback(BaseCallback):
    """Begins in stage 1 and advances by rule; logs `curriculum/stage`.

    Works with any SB3 vector environment whose environments have `set_stage`, `NativeVecEnv` among them.
    `Plateau` reads the returns that `Monitor` (or `NativeVecEnv`) puts into infos. Where the curriculum
    stands is kept as the model's attribute `curriculum`, so that it is in what `model.save` writes: a loaded
    model goes on in its stage with `learn(…, reset_num_timesteps=False)`.

    Args:
        rule: When the next stage begins; steps are counted over all environments.
        verbose: 1 prints when a stage begins.

    Attributes:
        progression: Where the training stands, once it has begun.
    """

    def __init__(self, rule: StepSchedule | Plateau, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.rule = rule

    def _on_training_start(self) -> None:
        self.progression = Progression(self.rule, len(self.training_env.get_attr("curriculum")[0]))
        kept = getattr(self.model, "curriculum", None)
        if kept is not None and self.model.num_timesteps:
            self.progression.load_state_dict(kept)
        self._set_stage()

    def _on_step(self) -> bool:
        returns = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        if self.progression.observe(self.training_env.num_envs, returns):
            self._set_stage()
        self.model.curriculum = self.progression.state_dict()  # type: ignore[attr-defined]  # SB3 saves all
        return True

    def _set_stage(self) -> None:
        stage = self.progression.stage
        self.training_env.env_method("set_stage", stage)
        self.logger.record("curriculum/stage", stage)
        if self.verbose:
            print(f"stage {stage} begins after {self.num_timesteps:,} steps")
