"""Random streams are independent: none is met twice, and episodes are as varied as independent draws."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from refinement import short_cache, user_cache_in

from vmr_env.agents.base import Agent
from vmr_env.agents.ensemble.cross_fitting import CrossFit
from vmr_env.agents.expected_gain import ExpectedGain, ExpectedGainConfig
from vmr_env.agents.grpo import GRPO, GRPOConfig
from vmr_env.agents.ppo import PPO, PPOConfig
from vmr_env.agents.references import StopAtOnce
from vmr_env.agents.reinforce import Reinforce, ReinforceConfig
from vmr_env.agents.sb3.vec_env import SB3A2C, SB3PPO
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.seeding import derived, slot_seeds

SAMPLES, SLOTS, ROUNDS = 1500, 16, 6

OURS: dict[str, Callable[[VMRVectorEnv, int], Agent]] = {
    "ppo": lambda env, seed: PPO(env, seed, PPOConfig(hidden=8, members=2, epochs=1)),
    "reinforce": lambda env, seed: Reinforce(env, seed, ReinforceConfig(hidden=8, members=2)),
    "grpo": lambda env, seed: GRPO(env, seed, GRPOConfig(hidden=8, members=2, group=2, epochs=1)),
    "expected gain": lambda env, seed: ExpectedGain(env, seed, ExpectedGainConfig(hidden=8, members=2)),
}
SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}}
ALL = {
    **OURS,
    "sb3 ppo": lambda env, seed: SB3PPO(env, seed, {**SMALL, "n_epochs": 1, "batch_size": 64}),
    "sb3 a2c": lambda env, seed: SB3A2C(env, seed, SMALL),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    with user_cache_in(tmp_path_factory.mktemp("seeding")) as folder:
        yield short_cache(folder / "short", SAMPLES)


class Watched(VMRVectorEnv):
    """Keeps the samples of all slots after each random start, by seeded reset."""

    streams: list[list[np.ndarray]]

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        result = super().reset(seed=seed, options=options)
        if seed is not None:
            self.streams.append([])
        if not options:
            self.streams[-1].append(self.episodes.samples.copy())
        return result

    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        self.streams[-1].append(self.episodes.samples.copy())
        return result


def watched(make: Callable[[VMRVectorEnv, int], Agent], cache: DecoderStateCache, seed: int) -> np.ndarray:
    """Samples that an agent's environment drew in each round of each member: (streams, draws, slots)."""
    env = Watched(SLOTS, source=cache, autoreset_mode="SameStep", horizon=1)
    env.streams = []
    agent = make(env, seed)
    agent.rounds = ROUNDS
    env.streams.clear()
    for _ in range(ROUNDS):
        agent.update()
    return np.array(env.streams)


@pytest.mark.parametrize("name", ALL)
def test_episodes_are_as_varied_as_independent_draws(cache: DecoderStateCache, name: str) -> None:
    """No stream of a (seed, round, member, slot) is met twice, nor shifted within another."""
    streams = np.concatenate([watched(ALL[name], cache, seed) for seed in (0, 1)])
    assert len(streams) == 2 * ROUNDS * (2 if name in OURS else 1)
    of_slots = streams.swapaxes(1, 2).reshape(-1, streams.shape[1])
    assert len({tuple(slot) for slot in of_slots.tolist()}) == len(of_slots)
    # Occupancy (Feller, 1968, II.5): n draws of S leave each unseen with probability (1 - 1 / S)^n.
    unseen = (1 - 1 / SAMPLES) ** streams.size
    expected = SAMPLES * (1 - unseen)
    deviation = np.sqrt(SAMPLES * unseen * (1 - unseen * (1 + streams.size / SAMPLES)))
    assert abs(len(np.unique(streams)) - expected) < 5 * deviation + 1


def test_members_of_ensembles_of_neighbouring_seeds_differ(cache: DecoderStateCache) -> None:
    seeds: list[int] = []

    def make(env: VMRVectorEnv, seed: int) -> Agent:
        seeds.append(seed)
        return StopAtOnce(env, seed)

    for seed, members in product(range(3), (2, 3)):
        CrossFit(make, cache, np.arange(24), members=members, evaluations=1, seed=seed, options={}).fit()
    # The first members of two ensembles of one seed may be alike; those of other seeds are not.
    assert len(set(seeds)) == 3 * 3


def test_keys_that_look_alike_have_seeds_of_their_own() -> None:
    keys: list[Any] = [
        *product(range(4), ["a", "b"], range(4), range(4)),
        (0, "a"), (0, "a", 0), (0, "a", 0, 0, 0), (0, "ab", 0), (0, "b", 2**32), (2**32, "a"), (0, "", 97),
    ]  # fmt: skip
    seeds = [derived(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    slots = [seed for first in range(50) for seed in slot_seeds(first, 50)]
    assert len(set(slots)) == len(slots)
    assert slot_seeds(7, 3) == slot_seeds(7, 50)[:3]
    assert slot_seeds(7, 1) == [7]


def test_derived_is_what_seed_sequence_says() -> None:
    sequence = np.random.SeedSequence(5, spawn_key=(2, *b"ab", 0, 3, 1, 0))
    assert derived(5, "ab", 3, 2**32) == int(sequence.generate_state(1, np.uint64)[0]) >> 1


@pytest.mark.parametrize(("key", "name"), [((-1, "a"), "seed"), ((0, "a", -1), "a"), ((0, "a", 2**64), "a")])
def test_numbers_out_of_range_are_refused(key: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is -?[0-9]+, expected a whole number from 0"):
        derived(*key)
