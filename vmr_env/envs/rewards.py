"""Potentials of a span, from which the environments' rewards are differences.

A step from span s to span s' earns potential(s') - potential(s). Undiscounted, these sum over an episode to
the gain from its start to its end, whatever lies between: the return depends on the last span alone, and the
best policy is the one whose last span has the highest expected potential. The differences are the whole
reward, there is no other that they shape; so each potential is an objective of its own, and the best policies
of two of them may differ. A discount below 1 adds a preference for early gains.

Arrays have the episodes on the last axis, as in `vmr_env.envs.actions`; those of one episode lack it.
"""

import difflib
from collections.abc import Callable

import numpy as np

from vmr_env.arrays import Floats, Numbers, Pair
from vmr_env.metrics.spans import reaches

Potential = Callable[[Numbers, Pair, Pair], Numbers]
"""From the spans' highest tIoU with any moment (N,), their bounds (2, N), and the moments (2, M, N): (N,)."""

_ZERO = np.zeros((), np.float32)
_HALF = np.float32(0.5)
_EMPTY = np.array(1e-9, np.float32)


def overlaps(start: Numbers, end: Numbers, low: Floats, high: Floats) -> Floats:
    """tIoU of spans with others, 0 where both are empty, or where a span ends before it starts.

    Args:
        start: (N,), of the spans.
        end: (N,).
        low: (K, N), starts of the others.
        high: (K, N), their ends.

    Returns:
        (K, N).
    """
    common: Floats = np.minimum(high, end)
    common -= np.maximum(low, start)
    np.maximum(common, _ZERO, out=common)
    union: Floats = (high - low) + (end - start)
    union -= common
    np.maximum(union, _EMPTY, out=union)  # where it is not positive, nothing is common
    common /= union
    return common


def tiou(tiou: Numbers, bounds: Pair, moments: Pair) -> Numbers:
    """The tIoU itself."""
    return tiou


def giou(tiou: Numbers, bounds: Pair, moments: Pair) -> Numbers:
    """Highest generalised IoU with any moment, in (-1, 1].

    tIoU - (hull - union) / hull, where the hull is the shortest span around both (Rezatofighi et al., 2019).
    """
    (start, end), (low, high) = bounds, moments
    common = np.maximum(np.minimum(end, high) - np.maximum(start, low), _ZERO)
    union = (high - low) + (end - start) - common
    hull = np.maximum(end, high) - np.minimum(start, low)
    result: Floats = np.maximum.reduce(common / union - (hull - union) / hull)
    return result


def threshold_steps(tiou: Numbers, bounds: Pair, moments: Pair) -> Numbers:
    """0.5 from a tIoU of 0.5 and another 0.5 from 0.7: the mean of the two recalls that papers report.

    GIRL-DETR's `scst_reward_mode step`, there from above the thresholds.
    """
    return reaches(tiou, 0.5) * _HALF + reaches(tiou, 0.7) * _HALF


def tiou_and_steps(tiou: Numbers, bounds: Pair, moments: Pair) -> Numbers:
    """TIoU plus 0.1, 0.2 and 0.3 from 0.3, 0.5 and 0.7.

    GIRL-DETR's `scst_reward_mode iou_step`, there from above the thresholds.
    """
    result = tiou
    for threshold, bonus in ((0.3, 0.1), (0.5, 0.2), (0.7, 0.3)):
        result = result + reaches(tiou, threshold) * np.float32(bonus)
    return result


POTENTIALS: dict[str, Potential] = {
    "tiou": tiou,
    "giou": giou,
    "step": threshold_steps,
    "tiou_step": tiou_and_steps,
}
"""Names that the environments' argument `reward` and the stages of the curriculum use."""


def get_potential(name: str) -> Potential:
    """The potential of that name.

    Raises:
        ValueError: there is none; the message suggests the nearest.
    """
    if name in POTENTIALS:
        return POTENTIALS[name]
    near = difflib.get_close_matches(str(name), POTENTIALS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"No reward {name!r}.{hint} Known rewards: {', '.join(POTENTIALS)}.")
