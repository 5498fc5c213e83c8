"""Advantages against hand computation and their definition; rollouts against the environment."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refinement import environment, short_cache, user_cache_in
from torch import Tensor

from vmr_env.agents.expected_gain import ExpectedGain
from vmr_env.agents.grpo import GRPO, GRPOConfig
from vmr_env.agents.networks import RefinementNetwork
from vmr_env.agents.policy_gradient import gae
from vmr_env.agents.ppo import PPO
from vmr_env.agents.reinforce import Reinforce
from vmr_env.agents.rollout import Collector, Rollout, mean_episode_return
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.vector_env import VMRVectorEnv


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    with user_cache_in(tmp_path_factory.mktemp("rollout")) as folder:
        yield short_cache(folder / "short")


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_gae_equals_hand_computation() -> None:
    # Errors: 2 + 0.5 * 1 - 3 = -0.5; then 2 - 1 = 1 at the end; then 4 + 0.5 * 6 - 2 = 5, not at its end.
    advantages = gae(column(2, 2, 4), column(3, 1, 2, 6), column(0, 1, 0), gamma=0.5, lam=0.5)
    torch.testing.assert_close(advantages, column(-0.5 + 0.5 * 0.5 * 1, 1, 5))


def test_gae_of_an_episode_cut_in_the_middle_equals_hand_computation() -> None:
    # Errors: 1 + 0.5 * 1 - 3 = -1.5; cut off in a state worth 10: 2 + 0.5 * 10 - 1 = 6; 4 + 0.5 * 6 - 2 = 5.
    rest = {"gamma": 0.5, "lam": 0.5, "cut_values": column(0, 10, 0)}
    advantages = gae(column(1, 2, 4), column(3, 1, 2, 6), column(0, 1, 0), **rest)
    torch.testing.assert_close(advantages, column(-1.5 + 0.5 * 0.5 * 6, 6, 5))


def test_gae_passes_errors_back_within_an_episode() -> None:
    advantages = gae(column(0, 0, 1), column(0, 0, 0, 7), column(0, 0, 1), gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages, column(0.45**2, 0.45, 1))


def by_definition(rewards: Tensor, values: Tensor, ends: Tensor, gamma: float, lam: float) -> Tensor:
    """Every advantage as its own sum."""
    steps, n = rewards.shape
    advantages = torch.zeros(steps, n, dtype=rewards.dtype)
    for i in range(n):
        for t in range(steps):
            for k in range(steps - t):
                over = bool(ends[t + k, i])
                following = 0.0 if over else values[t + k + 1, i]
                error = rewards[t + k, i] + gamma * following - values[t + k, i]
                advantages[t, i] += (gamma * lam) ** k * error
                if over:
                    break
    return advantages


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_its_definition(seed: int, gamma: float, lam: float, often: float) -> None:
    rng = np.random.default_rng(seed)
    rewards, values = (torch.from_numpy(rng.normal(size=(steps, 3))) for steps in (6, 7))
    ends = torch.from_numpy((rng.random((6, 3)) < often).astype(np.float64))
    expected = by_definition(rewards, values, ends, gamma, lam)
    torch.testing.assert_close(gae(rewards, values, ends, gamma, lam), expected)


def test_rollout_is_what_happened(cache: DecoderStateCache) -> None:
    env = environment(cache, n=5)
    collector = Collector(env, torch.Generator().manual_seed(1))
    collector.reset(3)
    torch.manual_seed(0)
    network = RefinementNetwork(env.observer, 8)
    rollout = collector.collect(network, 7)

    again = environment(cache, n=5)
    observations, infos = again.reset(seed=3)
    before = infos["tiou"]
    gained, gone = np.zeros(5), 0.0
    for t in range(7):
        np.testing.assert_array_equal(rollout.observations[t], observations)
        np.testing.assert_array_equal(rollout.masks[t], infos["action_mask"])
        said = network(rollout.observations[t], rollout.masks[t])
        policy = said.logits.softmax(-1)
        torch.testing.assert_close(
            rollout.log_probs[t].exp(), policy[torch.arange(5), rollout.actions[t]].detach()
        )
        torch.testing.assert_close(rollout.values[t], said.values.detach())
        observations, rewards, ends, _, infos = again.step(rollout.actions[t].numpy())
        np.testing.assert_allclose(rollout.rewards[t], rewards)
        np.testing.assert_array_equal(rollout.ends[t], ends)
        if ends.any():
            final = infos["final_info"]["tiou"]
            np.testing.assert_allclose((gained + rewards)[ends], (final - before)[ends], atol=1e-6)
        gone += float((gained + rewards)[ends].sum())
        before = np.where(ends, infos["tiou"], before)
        gained = np.where(ends, 0, gained + rewards)
    last = network(torch.from_numpy(observations), torch.from_numpy(infos["action_mask"])).values
    torch.testing.assert_close(rollout.values[-1], last.detach())
    assert rollout.ends.sum() >= 10  # of 35 steps in episodes of at most 3
    mean = mean_episode_return(rollout)
    assert mean == pytest.approx((gone + gained.sum()) / float(rollout.ends.sum()), abs=1e-6)


class Cut(VMRVectorEnv):
    """A time limit of one step, below the horizon, on the even slots."""

    def step(self, actions: np.ndarray) -> Any:
        observations, rewards, terminated, truncated, infos = super().step(actions)
        cut = ~terminated & (np.arange(self.num_envs) % 2 == 0)
        if not cut.any():
            return observations, rewards, terminated, truncated, infos
        finals = infos.get("final_obs", np.full(self.num_envs, None, object))
        for i in np.flatnonzero(cut):
            finals[i] = observations[i].copy()
        masks = infos["action_mask"].copy()
        if "final_info" in infos:
            masks[terminated] = infos["final_info"]["action_mask"][terminated]
        observations, infos = self.reset(options={"reset_mask": cut})
        final = {"final_obs": finals, "final_info": {"action_mask": masks}}
        return observations, rewards, terminated, truncated | cut, {**infos, **final}


def test_what_a_time_limit_cuts_off_goes_on_with_its_value(
    cache: DecoderStateCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = Cut(8, source=cache, autoreset_mode="SameStep", horizon=3)
    collector = Collector(env, torch.Generator().manual_seed(1))
    collector.reset(0)
    network = RefinementNetwork(env.observer, 8)
    step, told = env.step, []

    def watched(actions: np.ndarray) -> Any:
        told.append(step(actions))
        return told[-1]

    monkeypatch.setattr(env, "step", watched)
    rollout = collector.collect(network, 5)
    cuts = 0
    for t, (_, _, terminated, truncated, infos) in enumerate(told):
        np.testing.assert_array_equal(rollout.ends[t], terminated | truncated)
        for i in range(8):
            expected = 0.0
            if truncated[i]:
                cuts += 1
                final = torch.from_numpy(infos["final_obs"][i][None])
                possible = torch.from_numpy(infos["final_info"]["action_mask"][i][None])
                expected = network(final, possible).values.item()
                assert expected != pytest.approx(rollout.values[t + 1, i].item(), abs=1e-6)
            assert rollout.cut_values[t, i].item() == pytest.approx(expected, abs=1e-5)
    assert cuts > 5


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_modes_in_which_steps_are_no_transitions_are_refused(cache: DecoderStateCache, mode: str) -> None:
    env = VMRVectorEnv(4, source=cache, autoreset_mode=mode)
    for agent in (PPO, GRPO, Reinforce, ExpectedGain):
        config = {"config": GRPOConfig(group=2)} if agent is GRPO else {}
        with pytest.raises(ValueError, match=f"autoreset_mode is '{mode}', expected 'SameStep'"):
            agent(env, 0, **config)


def test_mean_return_is_per_episode_that_ended() -> None:
    empty = torch.zeros(2, 2, 0)
    rewards, ends = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    rollout = Rollout(empty, empty, ends, ends, rewards, ends, torch.zeros(3, 2), torch.zeros(2, 2))
    assert mean_episode_return(rollout) == pytest.approx(10 / 3)


def test_random_visits_take_possible_actions_only(
    cache: DecoderStateCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(cache, n=16)
    collector = Collector(env, torch.Generator().manual_seed(0))
    collector.reset(0)
    step, seen = env.step, []

    def watched(actions: np.ndarray) -> object:
        seen.append(env.episodes.mask[np.arange(16), actions].copy())
        return step(actions)

    monkeypatch.setattr(env, "step", watched)
    assert collector.visit(6).shape == (6 * 16, env.observer.width)
    assert len(seen) == 6
    assert np.all(seen)
