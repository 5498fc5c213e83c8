"""Pure functions on spans: arrays (..., 2) of [start, end], in any one unit, broadcasting over leading axes.

The metrics module keeps the evaluators' own two IoU formulas, whose last bits differ from each other.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import AnyFloats


def lengths(spans: AnyFloats) -> AnyFloats:
    """Length of each span: (..., 2) -> (...)."""
    result: AnyFloats = spans[..., 1] - spans[..., 0]
    return result


def intersection(a: AnyFloats, b: AnyFloats) -> AnyFloats:
    """Length of the common part of two spans, 0 where they do not meet: (..., 2), (..., 2) -> (...)."""
    overlap = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    result: AnyFloats = np.maximum(overlap, 0)
    return result


def tiou(a: AnyFloats, b: AnyFloats) -> AnyFloats:
    """Temporal intersection over union: (..., 2), (..., 2) -> (...), in [0, 1].

    Two empty spans have a union of 0 and a tIoU of 0, also at the same place.

        >>> float(tiou(np.array([0.0, 10.0]), np.array([5.0, 10.0])))
        0.5
    """
    common = intersection(a, b)
    union = lengths(a) + lengths(b) - common
    positive = union > 0
    result: AnyFloats = np.where(positive, common / np.where(positive, union, 1), 0)
    return result


ROUNDING = np.float32(1e-4)
"""Error of the tIoU of float32 spans in [0, 1]: at most this for spans of 1 s in videos of 10 minutes."""


def reaches(tiou: AnyFloats | np.floating[Any], threshold: float) -> Any:
    """Whether tIoUs (...) of float32 spans are hits at a threshold, as the metrics judge them: bool (...).

    The metrics compare seconds in double precision, so that 6 s of 12 s are a hit at 0.5; float32 shares of
    the video may give 0.49999. Windows on a grid of a second have no other tIoU as near to 0.3, 0.5 or 0.7.

        >>> bool(reaches(np.float32(0.49999), 0.5)), bool(reaches(np.float32(0.4998), 0.5))
        (True, False)
    """
    return tiou >= np.float32(threshold) - ROUNDING


def best_tiou(
    spans: AnyFloats, moments: AnyFloats, counts: NDArray[np.integer[Any]] | None = None
) -> AnyFloats:
    """Highest tIoU with any of a query's moments: (..., 2), (..., M, 2) -> (...).

    `counts` (...) says how many of the M moments are real where the rest is padding; None means all M.
    """
    overlaps = tiou(spans[..., None, :], moments)
    if counts is not None:
        overlaps = np.where(np.arange(moments.shape[-2]) < counts[..., None], overlaps, 0)
    result: AnyFloats = overlaps.max(axis=-1)
    return result


def pairwise_tiou(a: AnyFloats, b: AnyFloats) -> AnyFloats:
    """tIoU of every span of `a` with every span of `b`: (..., A, 2), (..., B, 2) -> (..., A, B)."""
    return tiou(a[..., :, None, :], b[..., None, :, :])


def clip(spans: AnyFloats, low: float | AnyFloats, high: float | AnyFloats) -> AnyFloats:
    """Both boundaries moved into [low, high]; a span outside becomes empty at the border."""
    result: AnyFloats = np.clip(spans, low, high)
    return result


def to_cxw(spans: AnyFloats) -> AnyFloats:
    """[start, end] -> [centre, width].

    >>> to_cxw(np.array([2.0, 6.0])).tolist()
    [4.0, 4.0]
    """
    return np.stack([(spans[..., 0] + spans[..., 1]) / 2, spans[..., 1] - spans[..., 0]], axis=-1)


def from_cxw(cxw: AnyFloats) -> AnyFloats:
    """[centre, width] -> [start, end]."""
    half = cxw[..., 1] / 2
    return np.stack([cxw[..., 0] - half, cxw[..., 0] + half], axis=-1)
