"""What all learning agents must do, on a cache where one move is the best everywhere."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refinement import environment, short_cache, user_cache_in

from vmr_env.agents.base import Agent
from vmr_env.agents.checkpoint import load_run, save_run
from vmr_env.agents.evaluation import refine
from vmr_env.agents.expected_gain import ExpectedGain, ExpectedGainConfig
from vmr_env.agents.policy_agent import PolicyAgent
from vmr_env.agents.policy_gradient import entropy
from vmr_env.agents.ppo import PPO, PPOConfig
from vmr_env.agents.reinforce import Reinforce, ReinforceConfig
from vmr_env.agents.sb3.vec_env import SB3A2C, SB3PPO
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.vector_env import VMRVectorEnv

Make = Callable[[VMRVectorEnv, int], Agent]

SMALL = {"policy_kwargs": {"net_arch": [16]}, "ent_coef": 0.0, "learning_rate": 1e-2}
OURS: dict[str, Make] = {
    "ppo": lambda env, seed: PPO(env, seed, PPOConfig(minibatch=64, lr=1e-2, hidden=16, members=2)),
    "reinforce": lambda env, seed: Reinforce(
        env, seed, ReinforceConfig(minibatch=64, lr=1e-2, hidden=16, members=2)
    ),
    "expected gain": lambda env, seed: ExpectedGain(
        env, seed, ExpectedGainConfig(minibatch=32, lr=1e-2, hidden=16, members=2)
    ),
}
ALL: dict[str, Make] = {
    **OURS,
    "sb3 ppo": lambda env, seed: SB3PPO(env, seed, {"batch_size": 64, "n_epochs": 8, **SMALL}),
    "sb3 a2c": lambda env, seed: SB3A2C(env, seed, SMALL),
}
ROUNDS = {"ppo": 8, "reinforce": 24, "expected gain": 6, "sb3 ppo": 20, "sb3 a2c": 60}
# SB3 sees the span alone: enough to learn an answer that is everywhere the same, and quick.
OPTIONS: dict[str, dict[str, Any]] = {
    name: {"horizon": 1, "components": None if name in OURS else ["remaining", "span"]} for name in ALL
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    with user_cache_in(tmp_path_factory.mktemp("agents")) as folder:
        yield short_cache(folder / "short")


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts and lists by path."""
    if isinstance(state, dict | list | tuple):
        parts = state.items() if isinstance(state, dict) else enumerate(state)
        return {name: leaf for key, part in parts for name, leaf in flat(part, f"{prefix}/{key}").items()}
    return {prefix: state}


def differing(one: Agent, other: Agent) -> list[str]:
    """Leaves of two agents' states that are not equal bit for bit."""
    a, b = flat(one.state_dict()), flat(other.state_dict())
    assert a.keys() == b.keys()
    return [
        name
        for name in a
        if not (torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name])
    ]


def trained(make: Make, cache: DecoderStateCache, rounds: int, seed: int = 0) -> Agent:
    agent = make(environment(cache), seed)
    for _ in range(rounds):
        agent.update()
    return agent


@pytest.mark.parametrize("name", ALL)
def test_learns_the_best_move(cache: DecoderStateCache, name: str) -> None:
    agent = ALL[name](environment(cache, n=64, **OPTIONS[name]), 0)
    agent.rounds = ROUNDS[name]
    figures = [agent.update() for _ in range(agent.rounds)]
    refined = refine(agent.act, cache, np.arange(len(cache)), OPTIONS[name])
    np.testing.assert_allclose(refined.before, 0.7, atol=1e-5)
    # 0.3 is all that there is to gain.
    assert (refined.after - refined.before).mean() > 0.2
    of_policy = [
        figure.get("charts/episode_return", figure.get("charts/expected_gain")) for figure in figures
    ]
    assert of_policy[0] < 0 < 0.1 < of_policy[-1]


@pytest.mark.parametrize("name", ALL)
def test_seed_fixes_everything(cache: DecoderStateCache, name: str) -> None:
    one, two, other = (trained(ALL[name], cache, 1, seed) for seed in (5, 5, 6))
    assert differing(one, two) == []
    assert any("weight" in leaf for leaf in differing(one, other))


@pytest.mark.parametrize("name", ALL)
def test_resumed_equals_uninterrupted(cache: DecoderStateCache, name: str, tmp_path: Path) -> None:
    whole = trained(ALL[name], cache, 1)
    at_the_end = whole.update()
    file = tmp_path / "agent.pt"
    save_run(file, "agent", {}, trained(ALL[name], cache, 1).state_dict())
    resumed = ALL[name](environment(cache), 0)
    resumed.load_state_dict(load_run(file, "agent", {}))
    assert resumed.update() == at_the_end
    assert differing(whole, resumed) == []
    observations, infos = environment(cache).reset(seed=9)
    masks = infos["action_mask"]
    np.testing.assert_array_equal(whole.act(observations, masks), resumed.act(observations, masks))


@pytest.mark.parametrize("name", ALL)
def test_global_random_numbers_are_left_alone(cache: DecoderStateCache, name: str) -> None:
    def states() -> list[Any]:
        _, keys, *rest = np.random.get_state()  # noqa: NPY002  # what must not change
        return [random.getstate(), keys.tolist(), rest, torch.get_rng_state().tolist()]

    before = states()
    agent = trained(ALL[name], cache, 1)
    observations, infos = agent.env.reset(seed=0)
    agent.act(observations, infos["action_mask"])
    assert states() == before


@pytest.mark.parametrize("name", ALL)
def test_figures_are_named_and_finite(cache: DecoderStateCache, name: str) -> None:
    metrics = ALL[name](environment(cache), 0).update()
    assert all(key.startswith(("charts/", "losses/", "health/")) for key in metrics)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["charts/steps"] % 32 == 0
    assert 0 < metrics["losses/entropy"] < np.log(53)


@pytest.mark.parametrize("name", OURS)
def test_takes_possible_actions_only(
    cache: DecoderStateCache, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(cache)
    agent = OURS[name](env, 0)
    step, possible = env.step, []

    def watched(actions: np.ndarray) -> Any:
        possible.append(env.episodes.mask[np.arange(len(actions)), actions].copy())
        return step(actions)

    monkeypatch.setattr(env, "step", watched)
    agent.update()
    assert len(possible) >= 8
    assert np.all(possible)

    observations, infos = env.reset(seed=1)
    for allowed in range(0, env.episodes.mask.shape[1], 7):
        only = np.zeros_like(infos["action_mask"])
        only[:, allowed] = True
        np.testing.assert_array_equal(agent.act(observations, only), allowed)


@pytest.mark.parametrize("name", OURS)
def test_members_differ_and_act_by_their_mean_policy(cache: DecoderStateCache, name: str) -> None:
    agent = trained(OURS[name], cache, 1)
    assert isinstance(agent, PolicyAgent)
    observations, infos = agent.env.reset(seed=0)
    masks = infos["action_mask"]
    inputs = torch.from_numpy(observations), torch.from_numpy(masks)
    policies = [member.network(*inputs).logits.softmax(-1).detach().numpy() for member in agent.members]
    assert np.abs(policies[0] - policies[1]).max() > 1e-4
    mean = agent.probabilities(observations, masks)
    np.testing.assert_allclose(mean, sum(policies) / 2, atol=1e-6)
    np.testing.assert_allclose(mean.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(agent.act(observations, masks), mean.argmax(axis=1))


def test_learning_rate_falls_to_zero_over_the_rounds(cache: DecoderStateCache) -> None:
    agent = PPO(environment(cache), 0, PPOConfig(lr=0.5e-3, hidden=8))
    agent.rounds = 4
    rates = []
    for _ in range(4):
        agent.update()
        rates.append(agent.members[0].optimiser.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, 0.25e-3 * (1 + np.cos(np.pi * np.arange(4) / 4)))


def test_entropy_is_that_of_the_policy_and_has_a_gradient_where_actions_are_impossible() -> None:
    logits = torch.tensor([[0.3, -1.2, 2.0], [0.0, 0.0, -torch.inf]], requires_grad=True)
    value = entropy(logits.log_softmax(-1))
    p = torch.tensor([0.3, -1.2, 2.0]).softmax(-1)
    expected = (-(p * p.log()).sum() + np.log(2)) / 2
    torch.testing.assert_close(value.detach(), expected)
    value.backward()
    assert torch.isfinite(logits.grad).all()


def test_ppo_keeps_what_the_clip_forbids(cache: DecoderStateCache) -> None:
    """A sample whose probability has already risen beyond the clip pushes no further."""
    agent = PPO(environment(cache), 0, PPOConfig(hidden=8, clip=0.2))
    observations, infos = agent.env.reset(seed=0)
    inputs = torch.from_numpy(observations[:2]), torch.from_numpy(infos["action_mask"][:2])
    network = agent.members[0].network
    said = network(*inputs)
    log_policy = said.logits.log_softmax(-1)
    actions = log_policy.argmax(-1)
    taken = log_policy.gather(1, actions[:, None])[:, 0].detach()
    # Advantages +1 and -1 after normalisation up to a factor; ratios e^0.5 > 1.2 and e^-0.5 < 0.8.
    old = taken - torch.tensor([0.5, -0.5])
    policy, value, *_ = agent._losses(network, *inputs, actions, old, torch.tensor([1.0, -1.0]), said.values)
    (policy + 0 * value).backward()
    # Both are clipped on the side where the clip holds, so nothing moves.
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())
    scale = 1 / np.sqrt(2)  # of normalised advantages +1, -1
    assert policy.item() == pytest.approx(-(1.2 - 0.8) * scale / 2, abs=1e-5)
