"""Episodes for offline reinforcement learning, as a Minari dataset (extra `offline`).

    dataset = export_episodes("vmr/charades-random-v0", uniform, episodes=1000,
    source="caches/charades/train") env = dataset.recover_environment()

Episodes come from the native vector environment. Beside observations, actions and rewards, each has in its
`infos`, for every observation (T + 1): `action_mask`, the legal actions; `behaviour_probability`, that of the
action taken there, NaN after the last; `tiou`; and `sample`, the row of the cache.
"""

import copy
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import gymnasium
import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Bools, Floats
from vmr_env.data.profiles import get_profile
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.errors import MissingExtra, check_count
from vmr_env.files.text import PathLike
from vmr_env.seeding import derived

if TYPE_CHECKING:
    from minari import MinariDataset
    from minari.data_collector import EpisodeBuffer

Probabilities: TypeAlias = NDArray[np.floating[Any]]
Policy: TypeAlias = Callable[[Floats, Bools], Probabilities]
"""Observations (N, width) and legal actions (N, A) -> probabilities (N, A) of actions."""

INFOS = ("action_mask", "tiou", "sample")
"""What is kept of the environment's infos."""


class _Stochastic(Protocol):
    def probabilities(self, observations: Floats, masks: Bools) -> Probabilities: ...


def uniform(observations: Floats, masks: Bools) -> Probabilities:
    """Every legal action alike."""
    allowed = masks.astype(np.float64)
    result: Probabilities = allowed / allowed.sum(axis=1, keepdims=True)
    return result


def policy_of(agent: _Stochastic) -> Policy:
    """The stochastic policy of an agent that tells probabilities."""
    return agent.probabilities


def export_episodes(
    dataset_id: str,
    policy: Policy,
    *,
    episodes: int,
    source: PathLike | None = None,
    dataset: str = "charades",
    split: str | None = None,
    seed: int = 0,
    num_envs: int = 64,
    options: Mapping[str, Any] | None = None,
    **metadata: Any,
) -> "MinariDataset":
    """Run episodes of a policy over actions that are numbers, and keep them.

    Every slot of the vector environment gives as many episodes as any other, or one more, so that short
    episodes are no more frequent than they are.

    Args:
        dataset_id: Minari's name of the new dataset, such as `vmr/charades-random-v0`.
        policy: what acts.
        episodes: how many.
        source: folder of a cache; None as in `gymnasium.make`.
        dataset: name of a data set's profile.
        split: name of a split; None is that of the source.
        seed: fixes episodes and actions.
        num_envs: episodes that run side by side.
        options: more arguments of the environment.
        metadata: what Minari keeps besides: `algorithm_name`, `author`, `code_permalink`, …

    Returns:
        The dataset, which `minari.load_dataset(dataset_id)` finds again.

    Raises:
        MissingExtra: Minari is not installed.
        ValueError: a number is none, or the actions are no numbers.
    """
    try:
        import minari
    except ImportError as error:
        raise MissingExtra("exporting episodes needs Minari: pip install 'vmr-env[offline]'") from error
    check_count("episodes", episodes)
    arguments = {
        "split": split,
        "source": None if source is None else os.path.abspath(source),
        **(options or {}),
    }
    slots = min(num_envs, episodes)
    env = VMRVectorEnv(slots, dataset, autoreset_mode="SameStep", **arguments)
    if not isinstance(env.single_action_space, gymnasium.spaces.Discrete):
        raise ValueError(f"actions are {env.single_action_space}, expected Discrete ones")
    quotas = [episodes // slots + (slot < episodes % slots) for slot in range(slots)]
    spec = copy.deepcopy(gymnasium.spec(f"VMR-{get_profile(dataset).env_name}-v0"))
    spec.kwargs = {**spec.kwargs, **{name: value for name, value in arguments.items() if value is not None}}
    return minari.create_dataset_from_buffers(
        dataset_id,
        buffer=_run(env, policy, quotas, seed),
        env=spec,
        observation_space=env.single_observation_space,
        action_space=env.single_action_space,
        **metadata,
    )


class _Episode:
    """One episode that is running."""

    def __init__(self) -> None:
        self.observations: list[Any] = []
        self.actions: list[int] = []
        self.rewards: list[float] = []
        self.probabilities: list[float] = []
        self.infos: dict[str, list[Any]] = {name: [] for name in INFOS}

    def see(self, observation: Any, infos: Mapping[str, Any], slot: int) -> None:
        """Take down an observation with its infos."""
        self.observations.append(np.array(observation))
        for name, values in self.infos.items():
            values.append(np.array(infos[name][slot]))

    def buffer(self, terminated: bool, truncated: bool) -> "EpisodeBuffer":
        """The episode, ended, as Minari wants it."""
        from minari.data_collector import EpisodeBuffer

        before_the_last = [False] * (len(self.actions) - 1)
        return EpisodeBuffer(
            observations=np.stack(self.observations),
            actions=np.array(self.actions),
            rewards=self.rewards,
            terminations=[*before_the_last, terminated],
            truncations=[*before_the_last, truncated],
            infos={
                "behaviour_probability": np.array([*self.probabilities, np.nan]),
                **{name: np.stack(values) for name, values in self.infos.items()},
            },
        )


def _run(env: VMRVectorEnv, policy: Policy, quotas: list[int], seed: int) -> "list[EpisodeBuffer]":
    """Ended episodes, so many of each slot, slot after slot."""
    rng = np.random.default_rng(derived(seed, "actions"))
    done: list[list[EpisodeBuffer]] = [[] for _ in quotas]
    observations, infos = env.reset(seed=seed)
    running = [_Episode() for _ in quotas]
    for slot, episode in enumerate(running):
        episode.see(observations[slot], infos, slot)
    while any(len(buffers) < quota for buffers, quota in zip(done, quotas, strict=True)):
        probabilities = policy(observations, infos["action_mask"].astype(bool))
        actions = _drawn(probabilities, rng)
        observations, rewards, terminated, truncated, infos = env.step(actions)
        for slot, episode in enumerate(running):
            episode.actions.append(int(actions[slot]))
            episode.rewards.append(float(rewards[slot]))
            episode.probabilities.append(float(probabilities[slot, actions[slot]]))
            if terminated[slot] or truncated[slot]:
                episode.see(infos["final_obs"][slot], infos["final_info"], slot)
                if len(done[slot]) < quotas[slot]:
                    done[slot].append(episode.buffer(bool(terminated[slot]), bool(truncated[slot])))
                running[slot] = _Episode()
            running[slot].see(observations[slot], infos, slot)
    return [buffer for buffers in done for buffer in buffers]


def _drawn(probabilities: Probabilities, rng: np.random.Generator) -> NDArray[np.int64]:
    """One action (N,) of each distribution (N, A); none of probability 0."""
    sums = np.cumsum(probabilities, axis=1, dtype=np.float64)
    points = rng.random((len(sums), 1)) * sums[:, -1:]
    drawn: NDArray[np.int64] = (sums <= points).sum(axis=1)
    return drawn
