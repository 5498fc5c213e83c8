"""Stable-Baselines3 through the Agent interface: its PPO and A2C as agents, and its vector environment.

`NativeVecEnv` is an SB3 `VecEnv` over `VMRVectorEnv`: N environments are one NumPy program, not N objects.
`native` puts it in the place of N objects.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from vmr_env.agents.base import Agent, Metrics, curriculum_state, resume_curriculum
from vmr_env.arrays import Array, Bools, Floats
from vmr_env.envs.gymnasium_vector import AutoresetMode
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.seeding import derived, slot_seeds


class NativeVecEnv(VecEnv):
    """`VMRVectorEnv` as SB3 wants it.

    Every info holds `sample`, `qid`, `vid`, `tiou`, `span`, `proposal` and `action_mask` as the single
    environment tells them, at the end of an episode those of its last step, and there also what SB3 reads:
    `terminal_observation`, `TimeLimit.truncated`, and `episode` as its `Monitor` has it, without a clock.
    `reset_infos` hold those of the episodes that began last.

    Args:
        env: finished episodes restart in the same step.

    Raises:
        ValueError: the environment restarts otherwise.
    """

    def __init__(self, env: VMRVectorEnv) -> None:
        if env.autoreset_mode is not AutoresetMode.SAME_STEP:
            mode = env.autoreset_mode.value
            raise ValueError(f"autoreset_mode is {mode!r}, expected 'SameStep', as SB3 resets")
        self.env = env
        self._actions: Array
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Begin episodes everywhere, under the seeds and options that were set; both serve once."""
        options = {key: [one[key] for one in self._options] for key in self._options[0]}
        seeded = any(seed is not None for seed in self._seeds)
        observations, told = self.env.reset(seed=self._seeds if seeded else None, options=options)
        self.reset_infos = _rows(told, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0, 0
        result: VecEnvObs = observations
        return result

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds of the next reset, those that `VMRVectorEnv` makes of one; None draws that one."""
        first = super().seed(seed)[0]
        assert first is not None
        self._seeds = list(slot_seeds(first, self.num_envs))
        return self._seeds

    def step_async(self, actions: Array) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the actions: observations, rewards (N,) float32, ends (N,), N infos."""
        observations, rewards, terminated, truncated, told = self.env.step(self._actions)
        self._returns += rewards
        self._lengths += 1
        ends = terminated | truncated
        infos = _rows(told, self.num_envs)
        last = _rows(told["final_info"], self.num_envs) if ends.any() else infos
        for i in np.flatnonzero(ends).tolist():
            self.reset_infos[i] = infos[i]
            infos[i] = last[i] | {
                "terminal_observation": _row(told["final_obs"], i),
                "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                "episode": {"r": float(self._returns[i]), "l": int(self._lengths[i])},
            }
        self._returns[ends], self._lengths[ends] = 0, 0
        return observations, rewards.astype(np.float32), ends, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    @property
    def action_masks(self) -> Callable[[], NDArray[np.bool_]]:
        """Call it for the actions that are possible now: (N, A).

        Raises:
            AttributeError: actions are continuous, so that there is nothing to mask.
        """
        if isinstance(self.action_space, gymnasium.spaces.Box):
            raise AttributeError("action_masks: continuous actions have no masks")
        return self._masks

    def _masks(self) -> NDArray[np.bool_]:
        return self.env.episodes.mask.copy()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute as a single environment has it, once for each index."""
        rows = list(self._get_indices(indices))
        if attr_name == "action_masks" and not isinstance(self.action_space, gymnasium.spaces.Box):
            return [partial(self._mask, i) for i in rows]
        of_one = {"observation_space": "single_observation_space", "action_space": "single_action_space"}
        return [getattr(self.env, of_one.get(attr_name, attr_name))] * len(rows)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of all environments.

        Raises:
            AttributeError: it cannot be set (the stage can).
            ValueError: `indices` names some of them only.
        """
        self._refuse_some(attr_name, indices)
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """The method's result for each index. What acts on all environments at once is called once.

        Raises:
            ValueError: `indices` names some of them only, and the method is not `action_masks`.
        """
        if method_name == "action_masks":
            return [mask() for mask in self.get_attr(method_name, indices)]
        self._refuse_some(method_name, indices)
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """False, but for `Monitor`: infos have what it adds."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def _mask(self, i: int) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = self.env.episodes.mask[i].copy()
        return mask

    def _refuse_some(self, name: str, indices: VecEnvIndices) -> None:
        if len(set(self._get_indices(indices))) != self.num_envs:
            message = f"indices is {indices!r} for {name!r}, expected None"
            raise ValueError(f"{message}: the {self.num_envs} environments are one")


def native(envs: VecEnv) -> NativeVecEnv:
    """The native environment in place of a list of `VMREnv`s that are made alike.

    What makes its vectors of single environments, as RL Baselines3 Zoo does, takes this as a wrapper of them
    (`vec_env_wrapper: vmr_env.agents.sb3.vec_env.native`).
    """
    made = {**envs.get_attr("spec")[0].kwargs, "render_mode": None}  # SB3 asks for one, without rendering
    return NativeVecEnv(VMRVectorEnv(envs.num_envs, autoreset_mode="SameStep", **made))


def _row(observations: Any, i: int) -> Any:
    """Observation i of a batch, flat or by component."""
    if isinstance(observations, dict):
        return {name: part[i] for name, part in observations.items()}
    return observations[i]


_TOLD = ("sample", "qid", "vid", "tiou", "span", "proposal", "action_mask")


def _rows(told: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """The infos of a vector environment, one by one: Python scalars where there is one value of each."""
    columns = {key: told[key].tolist() if told[key].ndim == 1 else told[key] for key in _TOLD}
    return [{key: column[i] for key, column in columns.items()} for i in range(n)]


_HEALTH = {
    "train/approx_kl": "approximate_kl",
    "train/clip_fraction": "clip_fraction",
    "train/explained_variance": "explained_variance",
}
"""Figures of Stable-Baselines3's log by our names."""


class SB3Agent(Agent):
    """An on-policy algorithm of SB3 as an agent. It does not know which actions are possible.

    Args:
        env: see `Agent`.
        seed: see `Agent`.
        settings: arguments of the algorithm that differ from `settings` of the class.
    """

    algorithm: ClassVar[type[OnPolicyAlgorithm]]
    settings: ClassVar[Mapping[str, Any]]
    """Arguments of the algorithm."""
    rollouts: ClassVar[int]
    """Rollouts of a round."""
    env_options: ClassVar[Mapping[str, Any]] = {"horizon": 1}
    policy_loss: ClassVar[str]
    """Name of the policy's loss in SB3's log."""

    def __init__(self, env: VMRVectorEnv, seed: int, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(env, seed)
        chosen = {**self.settings, **(settings or {})}
        self.round = 0
        self._steps = self.rollouts * chosen["n_steps"] * env.num_envs
        flat = isinstance(env.single_observation_space, gymnasium.spaces.Box)
        with own_random_numbers(derived(seed, "weights")):
            self.model = self.algorithm(
                "MlpPolicy" if flat else "MultiInputPolicy",
                NativeVecEnv(env),
                device="cpu",
                stats_window_size=self._steps,  # more than a round's episodes: their mean is the round's
                **chosen,
            )
        optimizer = self.model.policy.optimizer
        optimizer.register_step_pre_hook(check_finite)
        optimizer.register_step_post_hook(check_finite)

    def to(self, device: str) -> None:
        """Stay on the processor, where SB3 keeps small networks.

        Raises:
            ValueError: another device.
        """
        if device != "cpu":
            raise ValueError(f"device is {device!r}, expected 'cpu' for {type(self).__name__}")

    def update(self) -> Metrics:
        """One round, of new episodes and random numbers of its own, so that a resumed run sees the same.

        Raises:
            FloatingPointError: a gradient or a weight is not finite.
        """
        model, environments = self.model, self.model.env
        assert environments is not None
        model.ep_info_buffer = None  # the next `learn` begins a new one
        model._last_obs = None  # and resets the environments
        with own_random_numbers(derived(self.seed, "actions", self.round)):
            environments.seed(derived(self.seed, "episodes", self.round))
            try:
                model.learn(self._steps, log_interval=self.rollouts + 1, reset_num_timesteps=False)
            except FloatingPointError as error:
                where = f"{type(self).__name__}, round {self.round + 1}"
                raise FloatingPointError(f"{where}: {error}") from None
        self.round += 1
        said = model.logger.name_to_value
        return {
            "charts/episode_return": self._mean_return(),
            "charts/steps": float(self._steps),
            "losses/policy": float(said[self.policy_loss]),
            "losses/value": float(said["train/value_loss"]),
            "losses/entropy": -float(said["train/entropy_loss"]),
            **{f"health/{ours}": float(said[theirs]) for theirs, ours in _HEALTH.items() if theirs in said},
        }

    def _mean_return(self) -> float:
        """Of the round's episodes; 0 where none has ended."""
        episodes = self.model.ep_info_buffer
        return float(np.mean([episode["r"] for episode in episodes])) if episodes else 0.0

    def act(self, observations: Floats, masks: Bools) -> Array:
        """The most probable actions (N, …), possible or not: an impossible one changes nothing."""
        actions, _ = self.model.predict(observations, deterministic=True)
        return actions

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser. Random numbers depend on the seed and the round alone."""
        return {
            "round": self.round,
            "steps": self.model.num_timesteps,
            "model": self.model.get_parameters(),
            "curriculum": curriculum_state(self.env),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.round, self.model.num_timesteps = state["round"], state["steps"]
        self.model.set_parameters(dict(state["model"]), device="cpu")
        resume_curriculum(self.env, state["curriculum"])


class SB3PPO(SB3Agent):
    """PPO of SB3 with the rollouts of `vmr_env.agents.ppo`, on the flat observation."""

    algorithm = PPO
    settings: ClassVar[Mapping[str, Any]] = {
        "n_steps": 4,
        "batch_size": 256,
        "n_epochs": 4,
        "learning_rate": 1e-3,
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "ent_coef": 3e-3,
    }
    rollouts = 1
    policy_loss = "train/policy_gradient_loss"
    rounds = 150


class SB3A2C(SB3Agent):
    """A2C of SB3, on the flat observation."""

    algorithm = A2C
    settings: ClassVar[Mapping[str, Any]] = {
        "n_steps": 4,
        "learning_rate": 7e-4,
        "gamma": 1.0,
        "ent_coef": 3e-3,
    }
    rollouts = 4
    policy_loss = "train/policy_loss"
    rounds = 150


def check_finite(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """A hook of an optimiser: called before and after each step of an optimiser.

    Raises:
        FloatingPointError: a gradient or a weight is not finite.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    for name, tensors in (("gradient", gradients), ("weight", weights)):
        norm = torch.nn.utils.get_total_norm(tensors)
        if not norm.isfinite():
            raise FloatingPointError(f"{name} norm is {norm.item()}, expected a finite number")


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """SB3 draws from the global generators; inside, they are seeded, and afterwards as they were before."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  # SB3's choice
    try:
        with torch.random.fork_rng(devices=[]):
            set_random_seed(seed % 2**32)  # all that NumPy's legacy generator takes
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
