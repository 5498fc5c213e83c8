"""No size of a batch breaks a network, and what is not finite stops training with one error."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from refinement import environment, short_cache, user_cache_in

from vmr_env.agents.expected_gain import ExpectedGain, ExpectedGainConfig
from vmr_env.agents.grpo import GRPO, GRPOConfig
from vmr_env.agents.policy_agent import PolicyAgent
from vmr_env.agents.policy_gradient import standardised
from vmr_env.agents.ppo import PPO, PPOConfig
from vmr_env.agents.reinforce import Reinforce, ReinforceConfig
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.vector_env import VMRVectorEnv

Make = Callable[[VMRVectorEnv, int], PolicyAgent[Any]]

OURS: dict[str, Callable[[int], Make]] = {
    "PPO": lambda k: lambda env, seed: PPO(env, seed, PPOConfig(hidden=8, steps=1, minibatch=k)),
    "Reinforce": lambda k: (
        lambda env, seed: Reinforce(env, seed, ReinforceConfig(hidden=8, steps=1, minibatch=k))
    ),
    "GRPO": lambda k: (
        lambda env, seed: GRPO(
            env, seed, GRPOConfig(hidden=8, group=min(env.num_envs, 4), batches=1, minibatch=k)
        )
    ),
    "ExpectedGain": lambda k: (
        lambda env, seed: ExpectedGain(env, seed, ExpectedGainConfig(hidden=8, steps=1, minibatch=k))
    ),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    with user_cache_in(tmp_path_factory.mktemp("finite")) as folder:
        yield short_cache(folder / "short")


def finite(agent: PolicyAgent[Any]) -> bool:
    return all(bool(weight.isfinite().all()) for weight in agent.members.parameters())


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(("n", "minibatch"), [(4, 1), (4, 3), (1, 256)])
def test_no_size_of_a_batch_breaks_a_network(
    cache: DecoderStateCache, name: str, n: int, minibatch: int
) -> None:
    if name == "GRPO" and n == 1:
        n = 2  # the smallest group
    agent = OURS[name](minibatch)(environment(cache, n=n, horizon=1), 0)
    for _ in range(2):
        assert np.isfinite(list(agent.update().values())).all()
    assert finite(agent)


def test_standardised_advantages_have_mean_0_and_deviation_1() -> None:
    found = standardised(torch.tensor([1.0, 2.0, 6.0]))
    torch.testing.assert_close(found, torch.tensor([-2.0, -1.0, 3.0]) / 7**0.5)
    assert standardised(torch.tensor([3.0])).tolist() == [3.0]


@pytest.mark.parametrize("name", OURS)
def test_what_is_not_finite_stops_training_with_one_error(
    cache: DecoderStateCache, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(cache, n=4, horizon=1)
    agent = OURS[name](256)(env, 0)
    agent.update()
    step, gains = env.step, env.episodes.gains

    def broken(actions: np.ndarray) -> Any:
        observations, rewards, *rest = step(actions)
        return observations, rewards * np.nan, *rest

    monkeypatch.setattr(env, "step", broken)
    monkeypatch.setattr(env.episodes, "gains", lambda: gains() * np.float32(np.nan))
    with pytest.raises(FloatingPointError, match=rf"^{name}, round 2: \w+ is nan, expected a finite number$"):
        agent.update()
    assert finite(agent)


@pytest.mark.parametrize("name", OURS)
def test_weights_that_are_not_finite_are_told(cache: DecoderStateCache, name: str) -> None:
    agent = OURS[name](256)(environment(cache, n=4, horizon=1), 0)
    with torch.no_grad():
        for weight in agent.members.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=f"^{name}, round 1: the policy has probabilities"):
        agent.update()
