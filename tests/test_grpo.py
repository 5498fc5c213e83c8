"""GRPO in the environments: groups, advantages, and that it learns."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vmr_env.agents.evaluation import refine
from vmr_env.agents.grpo import GRPO, Experience, GRPOConfig
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.profiles import get_profile
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.simulation.simulator import simulate

Seen = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> DecoderStateCache:
    path = tmp_path_factory.mktemp("caches") / "train"
    simulate(path, get_profile("charades"), "train", samples=60)
    return DecoderStateCache.open(path)


def env_of(cache: DecoderStateCache, n: int = 24, **options: object) -> VMRVectorEnv:
    return VMRVectorEnv(n, source=cache, autoreset_mode="SameStep", **options)  # type: ignore[arg-type]


def collected(agent: GRPO, monkeypatch: pytest.MonkeyPatch) -> tuple[Experience, Seen]:
    """What one collection gave, with samples, rewards and ends of each step as the environment told them."""
    env, steps = agent.env, []
    step = env.step

    def watched(actions: np.ndarray) -> tuple:  # type: ignore[type-arg]
        samples, sources = env.episodes.samples.copy(), env.episodes.sources.copy()
        result = step(actions)
        steps.append((samples if not steps else sources, result[1].copy(), result[2].copy()))
        return result

    monkeypatch.setattr(env, "step", watched)
    network = agent._members()[0].network
    return agent.collect(network)[0], steps


def test_episodes_of_a_group_start_alike_and_are_compared_with_each_other(
    cache: DecoderStateCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = GRPO(env_of(cache, horizon=2, stage=2), seed=1, config=GRPOConfig(group=6))
    experience, steps = collected(agent, monkeypatch)
    samples = steps[0][0].reshape(-1, 6)
    assert (samples == samples[:, :1]).all()
    assert len(set(samples[:, 0].tolist())) > 1
    # An obvious account of the returns: what each episode earned until its first end.
    returns, over, ran = np.zeros(24), np.zeros(24, bool), []
    for _, rewards, ends in steps:
        ran.append(~over)
        returns += np.where(over, 0, rewards)
        over |= ends
    advantages = np.concatenate(
        [(group - group.mean()) / max(group.std(ddof=1), 1e-4) for group in returns.reshape(-1, 6)]
    )
    expected = np.concatenate([advantages[running] for running in ran])
    np.testing.assert_allclose(experience.advantages.numpy(), expected, atol=2e-4)
    assert len(experience.actions) == sum(map(np.sum, ran))
    assert agent.collector.steps >= len(experience.actions)
    chosen = experience.masks.gather(1, experience.actions[:, None])
    assert chosen.all()  # impossible actions are never taken


def test_what_a_time_limit_cuts_off_counts_until_there(
    cache: DecoderStateCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = env_of(cache, horizon=3)
    agent = GRPO(env, seed=1, config=GRPOConfig(group=6))
    step, told = env.step, []

    def limited(actions: np.ndarray) -> tuple[Any, ...]:
        """A limit of one step in the even slots, after which others' episodes go on."""
        observations, rewards, terminated, truncated, infos = step(actions)
        if not told:
            truncated = truncated.copy()
            truncated[::2] = ~terminated[::2]
        told.append((rewards.copy(), terminated | truncated))
        return observations, rewards, terminated, truncated, infos

    monkeypatch.setattr(env, "step", limited)
    experience, returns = agent.collect(agent._members()[0].network)
    expected, over, transitions = np.zeros(24), np.zeros(24, bool), 0
    for rewards, ends in told:
        transitions += int((~over).sum())
        expected += np.where(over, 0, rewards)
        over |= ends
    np.testing.assert_allclose(returns.numpy(), expected, atol=1e-6)
    assert len(experience.actions) == transitions
    assert len(told) > 1


def test_log_probabilities_are_those_of_the_policy(
    cache: DecoderStateCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = GRPO(env_of(cache, horizon=1), seed=0)
    experience, _ = collected(agent, monkeypatch)
    logits: Tensor = agent._members()[0].network(experience.observations, experience.masks).logits
    found = torch.distributions.Categorical(logits=logits).log_prob(experience.actions)
    torch.testing.assert_close(experience.log_probs, found.detach(), atol=1e-5, rtol=1e-4)


def test_it_learns(cache: DecoderStateCache) -> None:
    agent = GRPO(env_of(cache, 64, horizon=1, proposals=1), seed=0)
    agent.rounds = 24
    rows = np.arange(len(cache))

    def gain() -> float:
        refined = refine(agent.act, cache, rows, {"horizon": 1, "proposals": 1})
        return float((refined.after - refined.before).mean())

    before = gain()
    metrics = [agent.update() for _ in range(agent.rounds)]
    assert gain() > before + 0.02
    assert metrics[-1]["charts/episode_return"] > metrics[0]["charts/episode_return"]


def test_a_resumed_agent_goes_on_as_an_uninterrupted_one(cache: DecoderStateCache) -> None:
    def make() -> GRPO:
        return GRPO(env_of(cache, horizon=1), seed=3, config=GRPOConfig(batches=1, epochs=1))

    whole, first = make(), make()
    for _ in range(2):
        expected = whole.update()
    first.update()
    second = make()
    second.load_state_dict(first.state_dict())
    assert second.update() == expected


@pytest.mark.parametrize("group", [1, 7])
def test_groups_that_do_not_fit_are_refused(cache: DecoderStateCache, group: int) -> None:
    with pytest.raises(ValueError, match=f"group is {group}, expected at least 2, and a divisor of the 24"):
        GRPO(env_of(cache), seed=0, config=GRPOConfig(group=group))
