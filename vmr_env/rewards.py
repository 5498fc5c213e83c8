"""Potentials of a span, from which the environments' rewards are differences.

A step from span s to span s' earns potential(s') - potential(s). Over an episode these sum to the gain from the
start to the end, whatever lies between: shaping by a potential does not move the optimum (Ng, Harada and Russell,
1999). Episodes are short and of known length, so nothing is discounted.
"""

import difflib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Potential = Callable[[Floats, Floats], Floats]


def best_tiou(spans: Floats, moments: Floats) -> Floats:
    """Highest tIoU with any moment: (N, 2), (N, M, 2) -> (N,).

    Rows of fewer than M moments repeat one of their own, which leaves the maximum as it is.
    """
    start, end = spans[:, :1], spans[:, 1:]
    low, high = moments[..., 0], moments[..., 1]
    common = np.minimum(end, high)
    common -= np.maximum(start, low)
    np.maximum(common, 0, out=common)
    # Moments are never empty, so the union is positive.
    union = (high - low) + (end - start)
    union -= common
    common /= union
    result: Floats = common.max(axis=1)
    return result


def best_giou(spans: Floats, moments: Floats) -> Floats:
    """Highest generalised IoU with any moment, in (-1, 1]: tIoU - (hull - union) / hull (Rezatofighi et al., 2019)."""
    start, end = spans[:, :1], spans[:, 1:]
    low, high = moments[..., 0], moments[..., 1]
    common = np.maximum(np.minimum(end, high) - np.maximum(start, low), 0)
    union = (high - low) + (end - start) - common
    hull = np.maximum(end, high) - np.minimum(start, low)
    result: Floats = (common / union - (hull - union) / hull).max(axis=1)
    return result


def threshold_steps(spans: Floats, moments: Floats) -> Floats:
    """0.5 for a tIoU of at least 0.5 and another 0.5 from 0.7: the mean of the two recalls that papers report.

    GIRL-DETR's `scst_reward_mode step`.
    """
    tiou = best_tiou(spans, moments)
    result: Floats = ((tiou >= 0.5) * np.float32(0.5) + (tiou >= 0.7) * np.float32(0.5)).astype(np.float32)
    return result


def tiou_and_steps(spans: Floats, moments: Floats) -> Floats:
    """TIoU plus 0.1, 0.2 and 0.3 from 0.3, 0.5 and 0.7: GIRL-DETR's `scst_reward_mode iou_step`."""
    tiou = best_tiou(spans, moments)
    bonus = (
        (tiou >= 0.3) * np.float32(0.1) + (tiou >= 0.5) * np.float32(0.2) + (tiou >= 0.7) * np.float32(0.3)
    )
    result: Floats = tiou + bonus
    return result


POTENTIALS: dict[str, Potential] = {
    "tiou": best_tiou,
    "giou": best_giou,
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
