"""What a policy over all spans gains: exactly, or judged by spans that it draws (REINFORCE, PPO).

All three have the gradient of the expected gain, the sampled ones in expectation. An objective is a scalar to
ascend; it is asked `passes` times for each batch, after `begin`.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from vmr_env.agents.dense.spans import gain
from vmr_env.agents.policy_gradient import clipped_gain

Gradient = Literal["exact", "reinforce", "ppo", "none"]

CLIP = 0.2


class Drawn(NamedTuple):
    """K spans drawn for each of B queries."""

    spans: Tensor
    """int64 (B, K)."""
    log_policy: Tensor
    """(B, K), log-probabilities under the policy that drew them."""
    advantages: Tensor
    """(B, K), gain of a span less the mean gain of the query's other ones."""


class Objective(Protocol):
    """A policy's gain on a batch."""

    passes: ClassVar[int]
    """Steps that are taken on a batch."""
    weight: ClassVar[float]
    """What it counts in the end, beside imitation: 1, or 0 for imitation alone."""

    def begin(self) -> None:
        """A new batch follows."""
        ...

    def __call__(self, logits: Tensor, overlaps: Tensor) -> Tensor:
        """Scalar, from logits (B, S), -inf beyond the video, and the tIoU (B, S) of each span."""
        ...


def expected_gain(logits: Tensor, overlaps: Tensor) -> Tensor:
    """Exact expected gain of a policy: sum over all spans of probability times gain; (B, S) twice -> (B,)."""
    return (logits.softmax(dim=1) * gain(overlaps)).sum(dim=1)


def draw(logits: Tensor, overlaps: Tensor, count: int, generator: torch.Generator) -> Drawn:
    """Spans drawn from a policy, with replacement.

    Args:
        logits: (B, S), -inf beyond the video.
        overlaps: (B, S), tIoU of each span.
        count: K, two or more: the gain of the others is what a span is compared with (Kool et al., 2019,
            "Buy 4 REINFORCE samples, get a baseline for free!").
        generator: of random numbers.
    """
    log_policy = logits.detach().log_softmax(dim=1)
    policy = log_policy.exp().cpu()
    spans = torch.multinomial(policy, count, replacement=True, generator=generator).to(logits.device)
    gains = gain(overlaps.gather(1, spans))
    others = (gains.sum(dim=1, keepdim=True) - gains) / (count - 1)
    return Drawn(spans, log_policy.gather(1, spans), gains - others)


def reinforce_gain(logits: Tensor, drawn: Drawn) -> Tensor:
    """Scalar whose gradient is REINFORCE's (Williams, 1992) with the mean of the others as baseline."""
    taken = logits.log_softmax(dim=1).gather(1, drawn.spans)
    return (taken * drawn.advantages).mean()


def ppo_gain(logits: Tensor, drawn: Drawn) -> Tensor:
    """Clipped gain of PPO (Schulman et al., 2017, eq. 7): scalar."""
    taken = logits.log_softmax(dim=1).gather(1, drawn.spans)
    return clipped_gain((taken - drawn.log_policy).exp(), drawn.advantages, CLIP)


class Exact:
    """All spans of every query."""

    passes: ClassVar[int] = 1
    weight: ClassVar[float] = 1.0

    def __init__(self, samples: int, generator: torch.Generator) -> None:
        """Nothing is drawn."""

    def begin(self) -> None:
        """Nothing is kept."""

    def __call__(self, logits: Tensor, overlaps: Tensor) -> Tensor:
        """Mean expected gain of the queries."""
        return expected_gain(logits, overlaps).mean()


class Reinforce:
    """Spans drawn anew for each step."""

    passes: ClassVar[int] = 1
    weight: ClassVar[float] = 1.0

    def __init__(self, samples: int, generator: torch.Generator) -> None:
        """So many spans of each query, from this generator."""
        self._samples, self._generator = samples, generator

    def begin(self) -> None:
        """Nothing is kept."""

    def __call__(self, logits: Tensor, overlaps: Tensor) -> Tensor:
        """See `reinforce_gain`."""
        return reinforce_gain(logits, draw(logits, overlaps, self._samples, self._generator))


class ClippedSteps:
    """PPO: spans that the policy drew before a batch serve two steps on it."""

    passes: ClassVar[int] = 2
    weight: ClassVar[float] = 1.0

    def __init__(self, samples: int, generator: torch.Generator) -> None:
        """So many spans of each query, from this generator."""
        self._samples, self._generator = samples, generator
        self._drawn: Drawn | None = None

    def begin(self) -> None:
        """Draw anew at the next call."""
        self._drawn = None

    def __call__(self, logits: Tensor, overlaps: Tensor) -> Tensor:
        """See `ppo_gain`."""
        if self._drawn is None:
            self._drawn = draw(logits, overlaps, self._samples, self._generator)
        return ppo_gain(logits, self._drawn)


class Nothing(Exact):
    """No gain: imitation alone."""

    weight: ClassVar[float] = 0.0


OBJECTIVES: Mapping[Gradient, Callable[[int, torch.Generator], Objective]] = {
    "exact": Exact,
    "reinforce": Reinforce,
    "ppo": ClippedSteps,
    "none": Nothing,
}
