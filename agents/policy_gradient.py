"""The parts of policy gradients that all our learners share."""

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    ends: Tensor,
    gamma: float,
    lam: float,
    cut_values: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimates (Schulman et al., 2016, eq. 16).

    A_t = sum_k (gamma lam)^k (r_{t+k} + gamma V_{t+k+1} - V_{t+k}), cut at the episode's end, after which V
    is 0, or what the state is worth in which a time limit cut the episode off.

    Args:
        rewards: (T, N).
        values: (T + 1, N).
        ends: (T, N), 1.0 where the episode ended.
        gamma: discount.
        lam: 0 trusts the values, 1 the returns.
        cut_values: (T, N), values of the states in which episodes were cut off, 0 elsewhere; None where none
            was.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[0])
    beyond = torch.zeros_like(rewards) if cut_values is None else cut_values
    for t in reversed(range(len(rewards))):
        goes_on = 1 - ends[t]
        error = rewards[t] + gamma * (goes_on * values[t + 1] + beyond[t]) - values[t]
        following = error + gamma * lam * goes_on * following
        advantages[t] = following
    return advantages


def standardised(advantages: Tensor) -> Tensor:
    """Advantages less their mean, in units of their deviation; a single one, which has none, as it is."""
    if advantages.numel() < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def clipped_gain(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """What a policy gains by changed probabilities (Schulman et al., 2017, eq. 7): scalar.

    Args:
        ratio: of the actions' probabilities, under the policy to those under the one that took them.
        advantages: of the actions, as many.
        clip: how far from 1 a ratio may move to advantage.
    """
    limited = ratio.clamp(1 - clip, 1 + clip)
    return torch.minimum(ratio * advantages, limited * advantages).mean()


def entropy(log_policy: Tensor) -> Tensor:
    """Mean entropy of (B, A) log-probabilities, -inf where an action is impossible: scalar, in nats."""
    # 0 * -inf has no gradient; and numbers whose exponential is not normal take 30 times as long.
    finite = log_policy.clamp_min(-80)
    return -(finite.exp() * finite).sum(-1).mean()
