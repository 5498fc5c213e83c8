"""Stable-Baselines3's PPO over `VMR-<data set>-Head-v0`, as a trainer of a detection head among ours."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from vmr_env.agents.sb3.head_config import SB3HeadConfig
from vmr_env.agents.sb3.head_policy import HeadActorCriticPolicy
from vmr_env.agents.sb3.vec_env import check_finite, own_random_numbers
from vmr_env.agents.tprl.data import StateBatches
from vmr_env.agents.tprl.head import Head
from vmr_env.agents.tprl.head_policy import HeadPolicy, stage_at
from vmr_env.agents.tprl.head_training import HeadTrainer
from vmr_env.envs.curriculum import CURRICULA, Stage
from vmr_env.envs.head_env import VMRHeadEnv
from vmr_env.seeding import derived


class SB3HeadTrainer(HeadTrainer[SB3HeadConfig, Stage]):
    """SB3's PPO in the environment of the head, through the stages; arguments as for `HeadTrainer`."""

    kind = "sb3-head"
    figures = ("reward", "policy", "value", "std")

    def __init__(self, head: Head, config: SB3HeadConfig, seed: int = 0) -> None:
        super().__init__(head, config, seed)
        self._stages = CURRICULA.get(config.curriculum).stages
        self.policy = HeadPolicy(self.head, config.std)
        self._optimizer.add_param_group({"params": [self.policy.log_std, *self.policy.value.parameters()]})
        self._optimizer.register_step_pre_hook(check_finite)
        self._optimizer.register_step_post_hook(lambda *_: self._after_step())
        self._model: PPO | None = None

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(self.config.epochs)

    def start_epoch(self, epoch: int) -> Stage:
        """The stage of an epoch (from 0)."""
        return stage_at(self._stages, self.config.epochs, epoch)

    def stage_of(self, now: Stage) -> int:
        """Number of the stage."""
        return self._stages.index(now) + 1

    def _extra(self) -> nn.Module:
        return self.policy

    def learn(self, batches: StateBatches, epoch: int, now: Stage) -> Iterator[Sequence[Tensor]]:
        """An epoch of PPO, of episodes and random numbers of its own; yields figures of each rollout."""
        if self._model is None:
            self._model = self._made(batches)
        model = self._model
        assert model.env is not None
        model.env.env_method("set_stage", self.stage_of(now))
        model._last_obs = None  # `learn` resets the environments
        watcher = _Watcher()
        with own_random_numbers(derived(self.seed, "actions", epoch)):
            model.env.seed(derived(self.seed, "episodes", epoch) % 2**32)
            model.learn(len(batches), callback=watcher, reset_num_timesteps=False)
        for rewards in watcher.rewards:
            said = model.logger.name_to_value
            yield [
                rewards,
                torch.tensor(float(said["train/policy_gradient_loss"])),
                torch.tensor(float(said["train/value_loss"])),
                self.policy.log_std.detach().exp().mean(),
            ]

    def _made(self, batches: StateBatches) -> PPO:
        config = self.config

        def make() -> VMRHeadEnv:
            dataset, curriculum = batches.cache.manifest["dataset"], config.curriculum
            return VMRHeadEnv(dataset, source=batches.cache, samples=batches.rows, curriculum=curriculum)

        model = PPO(
            HeadActorCriticPolicy,
            DummyVecEnv([make] * config.batch_size),
            learning_rate=config.lr,
            n_steps=1,
            batch_size=config.batch_size,
            n_epochs=config.passes,
            gamma=1.0,
            clip_range=config.ratio_clip,
            vf_coef=1.0,
            max_grad_norm=config.clip,
            policy_kwargs={"network": self.policy},
            device="cpu",
        )
        model.policy.optimizer = self._optimizer
        return model


class _Watcher(BaseCallback):
    """Keeps the mean reward of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[Tensor] = []

    def _on_step(self) -> bool:
        self.rewards.append(torch.tensor(float(np.mean(self.locals["rewards"]))))
        return True
