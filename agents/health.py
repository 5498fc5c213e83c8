"""Whether a training goes well: figures of its updates, for logs."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vmr_env.agents.base import Metrics

HEALTH_FIGURES = {
    "health/approximate_kl": "divergence of the policy from the one that acted, in nats",
    "health/clip_fraction": "share of probability ratios that were clipped",
    "health/explained_variance": "share of the returns' variance that the values explain",
    "health/groups_without_spread": "share of groups whose episodes all end alike, which teach nothing",
    "losses/entropy": "entropy of the policy, in nats",
    "health/gradient_norm": "norm of the gradient before it is scaled down",
    "charts/distinct_samples": "training samples that a round has seen",
}
"""Figures that tell whether a training goes well, among those of a round, and what they mean."""


def mean_health(rounds: Sequence[Metrics]) -> Metrics:
    """Means of the `HEALTH_FIGURES` of several rounds; of each, over those that tell it."""
    told = {name: [metrics[name] for metrics in rounds if name in metrics] for name in HEALTH_FIGURES}
    return {name: float(np.mean(values)) for name, values in told.items() if values}


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Divergence of the policy from the one that acted, of the log-ratios of their probabilities: scalar, in
    nats.

    The mean of (r - 1) - log r, which is unbiased and never negative (Schulman, 2020, "Approximating KL
    divergence").
    """
    return (log_ratio.exp() - 1 - log_ratio).mean()


def clip_fraction(log_ratio: Tensor, clip: float) -> Tensor:
    """Share of ratios that lie further from 1 than `clip`: scalar."""
    return ((log_ratio.exp() - 1).abs() > clip).float().mean()


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for perfect values, 0 for a constant and where
    there is no variance to explain."""
    spread = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / spread) if spread > 0 else 0.0


class UpdateHealth:
    """Means over the updates of a round, by name."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, **figures: Tensor) -> None:
        """Take down scalars of one update."""
        for name, figure in figures.items():
            self._values.setdefault(name, []).append(figure.detach())

    def metrics(self) -> Metrics:
        """`health/<name>` for each."""
        return {f"health/{name}": float(torch.stack(values).mean()) for name, values in self._values.items()}
