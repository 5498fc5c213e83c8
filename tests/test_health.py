"""Figures of training health, against enumeration, theory, and what agents log."""

import numpy as np
import pytest
import torch

from tests.caches import ARGUMENTS, random_batch
from vmr_env.agents.expected_gain import ExpectedGain
from vmr_env.agents.grpo import GRPO, without_spread
from vmr_env.agents.health import (
    UpdateHealth,
    approximate_kl,
    clip_fraction,
    explained_variance,
    mean_health,
)
from vmr_env.agents.policy_agent import descend
from vmr_env.agents.ppo import PPO
from vmr_env.agents.reinforce import Reinforce
from vmr_env.caches.reader import write_cache
from vmr_env.envs.vector_env import VMRVectorEnv


def test_the_kl_is_that_of_the_distributions_when_all_actions_are_weighted_by_the_old_one() -> None:
    old = torch.tensor([0.5, 0.3, 0.2])
    new = torch.tensor([0.3, 0.3, 0.4])
    exact = float((old * (old / new).log()).sum())
    counts = [500, 300, 200]  # as often as the old policy takes them
    log_ratio = torch.cat(
        [torch.full((n,), float((b / a).log())) for n, a, b in zip(counts, old, new, strict=True)]
    )
    assert float(approximate_kl(log_ratio)) == pytest.approx(exact, abs=1e-6)
    assert float(approximate_kl(torch.zeros(4))) == 0.0


def test_the_clip_fraction_counts_ratios_beyond_the_clip() -> None:
    log_ratio = torch.tensor([1.0, 1.3, 0.7, 0.85, 1.19]).log()
    assert float(clip_fraction(log_ratio, 0.2)) == pytest.approx(2 / 5)


def test_explained_variance_is_one_for_perfect_values_and_zero_for_a_constant() -> None:
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 9.0), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(3)) == 0.0  # there is nothing to explain


def test_groups_whose_episodes_are_alike_have_no_spread() -> None:
    assert without_spread(torch.tensor([1.0, 1.0, 0.0, 1.0, 0.5, 0.5]), 2) == pytest.approx(2 / 3)


def test_figures_of_a_round_are_means_over_its_updates() -> None:
    health = UpdateHealth()
    health.add(norm=torch.tensor(1.0))
    health.add(norm=torch.tensor(4.0))
    assert health.metrics() == {"health/norm": 2.5}


def test_a_step_tells_the_norm_of_its_gradient_before_it_is_scaled_down() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    norm = descend(0.5 * weight.square().sum(), torch.optim.SGD([weight], 0.0), 1.0)
    assert float(norm) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (PPO, {"gradient_norm", "approximate_kl", "clip_fraction", "explained_variance"}),
        (GRPO, {"gradient_norm", "approximate_kl", "clip_fraction", "groups_without_spread"}),
        (Reinforce, {"gradient_norm", "explained_variance"}),
        (ExpectedGain, {"gradient_norm"}),
    ],
)
def test_agents_log_their_health(kind: type[PPO], names: set[str], tmp_path: object) -> None:
    source = write_cache(f"{tmp_path}/cache", random_batch(9), **ARGUMENTS)
    env = VMRVectorEnv(16, "charades", source=source, autoreset_mode="SameStep", **kind.env_options)
    metrics = kind(env, 0).update()
    health = {
        name.removeprefix("health/"): value for name, value in metrics.items() if name.startswith("health/")
    }
    assert health.keys() == names
    assert health["gradient_norm"] > 0
    assert 0 <= health.get("clip_fraction", 0) <= 1
    assert 0 <= health.get("groups_without_spread", 0) <= 1
    assert health.get("approximate_kl", 0) >= 0
    assert all(np.isfinite(value) for value in health.values())
    assert 1 <= metrics["charts/distinct_samples"] <= 9


def test_health_of_trainings_is_the_mean_of_those_that_tell_it() -> None:
    rounds = [
        {"health/approximate_kl": 1.0, "charts/steps": 8.0},
        {"health/approximate_kl": 2.0, "losses/entropy": 3.0},
    ]
    assert mean_health(rounds) == {"health/approximate_kl": 1.5, "losses/entropy": 3.0}
