"""Timelines (`vmr_env.caches.boundary_features`), computed by compiled code from a cache's arrays in memory.

`vmr_env.envs.memory` tells where they are kept.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Array, Floats
from vmr_env.caches import boundary_features
from vmr_env.caches.boundary_features import (
    CELLS,
    CURVES,
    EDGE_CLIPS,
    FLOOR,
    INSIDE_FEATURES,
    INTEGRALS,
    KERNELS,
    POINT_FEATURES,
    SHORTEST,
    SPAN_FEATURES,
)
from vmr_env.envs.compilation import entry, scalar

Number = Any
"""A float32; NumPy's types cannot say that operators keep it."""

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_CELLS = np.float32(CELLS)
_POINTS = np.arange(CELLS + 1, dtype=np.float32)
_N_POINT, _N_SPAN, _N_INSIDE = len(POINT_FEATURES), len(SPAN_FEATURES), len(INSIDE_FEATURES)
_SCORE = SPAN_FEATURES.index("score")  # what spans without a score have stands before it
_N_CURVES, _CURVES, _EDGES = len(CURVES), INTEGRALS.start, INTEGRALS.start - 2
_SALIENCY = _N_CURVES - 1
_KERNELS = tuple(np.float32(clips) for clips in KERNELS)
_NARROWEST = _HALF  # standard deviation of a kernel, in cells
_REACH = np.float32(6.5)  # standard deviations after which a kernel is below 1e-9
_NEGLIGIBLE = np.float32(1e-9)  # less is 0: denormal numbers slow down whoever computes with them
_EDGE_CLIPS = np.float32(EDGE_CLIPS)
_LOGIT_SCALE, _RANK_SCALE = np.float32(7), np.float32(10)

# The exponential function as 2**n * e**rest, n whole and |rest| <= ln(2) / 2 (Cody and Waite, 1980)
_LOWEST = np.float32(-87)  # the result is a normal number from here on
_PER_LN_2 = np.float32(1 / np.log(2))
_LN_2 = np.float32(0.693359375)  # of few digits, so that its products with n are exact
_LN_2_REST = np.float32(np.log(2) - 0.693359375)
_TERMS = tuple(np.float32(1 / divisor) for divisor in (2, 6, 24, 120, 720))
_ROUND = np.float32(1.5 * 2**23)  # what is added to it is rounded to whole numbers, its last bits
_ONE_BITS = np.int32(127 << 23)  # of a float32: sign, exponent (8), fraction (23)

LINE = 16
"""Numbers of a line of the processor's cache, which is what it fetches: rows begin at one."""

log_length, length_of = scalar(boundary_features.log_length), scalar(boundary_features.length_of)


class Timelines(NamedTuple):
    """Memory for timelines, a row each."""

    shared: int
    """1 where row r is that of the cache's sample r, 0 where it is that of episode r's sample."""
    points: Floats
    """(R, CELLS + 1, `POINT_FEATURES` and zeros) float32, every point of the timeline."""
    proposals: Floats
    """(R, Q * `SPAN_FEATURES` and zeros) float32, the proposals; zeros where there is none."""


class Workspace(NamedTuple):
    """Memory that is used for one timeline after the other."""

    weights: Floats
    """(Q, 3) float32: share of each proposal by score, by its root, and among the first of the models."""
    columns: Floats
    """(`POINT_FEATURES`, CELLS + 1) float32: the points, a feature after the other."""
    saliency: Floats
    """(L,) float32: the curve of a video of at most L clips."""


def workspace(proposals: int, longest: int) -> Workspace:
    """Memory for timelines of samples with so many proposals and values of saliency at most."""
    sizes = ((proposals, 3), (_N_POINT, CELLS + 1), (longest,))
    return Workspace(*(np.zeros(size, np.float32) for size in sizes))


def timeline_bytes(proposals: int) -> int:
    """Memory of one timeline with at most so many proposals."""
    return 4 * ((CELLS + 1) * _padded(_N_POINT) + _padded(proposals * _N_SPAN))


def _padded(width: int) -> int:
    """So many numbers, and those up to the end of their last line."""
    return -(-width // LINE) * LINE


def _lines(*shape: int) -> Floats:
    """Zeros float32 of this shape with a padded last axis, whose rows begin at lines."""
    *rows, width = shape
    padded = (*rows, _padded(width))
    memory = np.zeros(math.prod(padded) + LINE, np.float32)
    first = -memory.ctypes.data // memory.itemsize % LINE
    return memory[first : first + math.prod(padded)].reshape(padded)


def empty_timelines(rows: int, proposals: int, shared: bool) -> Timelines:
    """Memory for so many timelines of samples with at most so many proposals."""
    return Timelines(int(shared), _lines(rows, CELLS + 1, _N_POINT), _lines(rows, proposals * _N_SPAN))


@scalar
def cell_of(position: Number) -> int:
    """The point of the timeline nearest to a position."""
    return int(np.rint(position * _CELLS))


@scalar
def inside_features(first: Floats, last: Floats, whole: Floats, width: Number, out: Floats) -> None:
    """Mean of each curve inside a span, and shares of the first three that lie there (`INSIDE_FEATURES`).

    Args:
        first: (`POINT_FEATURES`,), the point of the timeline nearest to the start.
        last: (`POINT_FEATURES`,), the one nearest to the end.
        whole: (`CURVES`,), integrals over the whole video.
        width: of the span.
        out: (`INSIDE_FEATURES`,), written.
    """
    for c in range(_N_CURVES):
        mass = last[_CURVES + c] - first[_CURVES + c]
        # Cells are a little longer or shorter than the span.
        out[c] = min(max(mass / max(width, SHORTEST), -_ONE), _ONE)
        if c < _SALIENCY:
            out[_N_CURVES + c] = min(max(mass / max(whole[c], FLOOR), -_ONE), _ONE)


@scalar
def span_features(
    first: Floats, last: Floats, whole: Floats, start: Number, end: Number, clip: Number, out: Floats
) -> None:
    """`SPAN_FEATURES` of any span but those of a score: arguments as for `inside_features`.

    A span whose end is before its start, as impossible moves have it, has width 0.
    """
    width = max(end - start, _ZERO)
    for k in range(_CURVES):
        out[k], out[_CURVES + k] = first[k], last[k]
    inside_features(first, last, whole, width, out[2 * _CURVES :])
    geometry = out[2 * _CURVES + _N_INSIDE :]
    geometry[0], geometry[1], geometry[2] = start, end, width
    geometry[3] = log_length(width / clip)


@scalar
def exponential(x: Number) -> Number:
    """e**x of x up to 0, within 3e-7 of it; loops over it become vector instructions."""
    x = max(x, _LOWEST)
    rounded = np.float32(x * _PER_LN_2 + _ROUND)
    n = rounded - _ROUND
    rest = x - n * _LN_2 - n * _LN_2_REST
    series = _TERMS[1] + rest * (_TERMS[2] + rest * (_TERMS[3] + rest * _TERMS[4]))
    series = _ONE + rest * (_ONE + rest * (_TERMS[0] + rest * series))
    return series * np.int32((rounded.view(np.int32) << np.int32(23)) + _ONE_BITS).view(np.float32)


@entry
def find_timelines(
    samples: Array,
    spans: Floats,
    scores: Floats,
    models: NDArray[np.uint8],
    saliency: Floats,
    chosen: NDArray[np.int64],
    rows: NDArray[np.int64],
    timelines: Timelines,
    work: Workspace,
) -> None:
    """Write the timelines of some samples.

    Args:
        samples: (S,) `vmr_env.envs.kernel.SAMPLE`.
        spans: (S, Q, 2) float32, proposals normalised to [0, 1].
        scores: (S, Q) float32, in [0, 1].
        models: (S, Q), number of the model that made each proposal.
        saliency: (V,) float32, curves of the samples that have one, any scale.
        chosen: (K,), the samples.
        rows: (K,), where they are written.
        timelines: written.
        work: memory, of its own for every thread.
    """
    columns, weights = work.columns, work.weights
    for i in range(len(rows)):
        sample, points, row = samples[chosen[i]], timelines.points[rows[i]], chosen[i]
        clip = sample.clip_length
        for column in range(_N_POINT):
            for point in range(CELLS + 1):
                columns[column, point] = _ZERO
        weigh(scores[row], sample.count, models[row], weights)
        for q in range(sample.count):
            for side in range(2):
                add_densities(spans[row, q, side], clip, weights[q], columns[4 * side : 4 * side + 4])
            add_coverage(spans[row, q, 0], spans[row, q, 1], weights[q], columns[_CURVES:])
        curve = saliency[sample.first_saliency : sample.last_saliency]
        if len(curve) > 0:
            draw_saliency(curve, work.saliency, columns[_CURVES + _SALIENCY])
        for column in range(_CURVES, _N_POINT):
            integrate(columns[column])
        edge_means(columns[_CURVES + _SALIENCY], clip, columns[_EDGES], columns[_EDGES + 1])
        for column in range(_N_POINT):
            bound(columns[column])
        for point in range(CELLS + 1):
            for column in range(_N_POINT):
                points[point, column] = columns[column, point]
        for q in range(spans.shape[1]):
            out = timelines.proposals[rows[i], q * _N_SPAN : (q + 1) * _N_SPAN]
            if q < sample.count:
                describe(spans[row, q, 0], spans[row, q, 1], scores[row, q], q, clip, points, out)
            else:
                for k in range(_N_SPAN):
                    out[k] = _ZERO


@scalar
def bound(values: Floats) -> None:
    """Bring values (K,) into [-1, 1], which rounding of sums may leave; what is next to nothing becomes 0."""
    for k in range(len(values)):
        value = min(max(values[k], -_ONE), _ONE)
        values[k] = value if abs(value) >= _NEGLIGIBLE else _ZERO


@scalar
def weigh(scores: Floats, count: int, models: NDArray[np.uint8], weights: Floats) -> None:
    """Shares of the proposals (Q, 3): by score, by its root, and among the first of the models.

    Each of the three sums to 1, or to 0 where all scores are 0.
    """
    for q in range(count):
        weights[q, 0], weights[q, 1], weights[q, 2] = scores[q], np.sqrt(scores[q]), _ONE
        for earlier in range(q):
            if models[earlier] == models[q]:
                weights[q, 2] = _ZERO
    for kind in range(3):
        total = _ZERO
        for q in range(count):
            total += weights[q, kind]
        if total > _ZERO:
            for q in range(count):
                weights[q, kind] /= total


@scalar
def add_densities(position: Number, clip: Number, weights: Floats, columns: Floats) -> None:
    """Add a boundary's kernels: of each width, weighted by score and by its root (4, CELLS + 1)."""
    centre, score, root = position * _CELLS, weights[0], weights[1]
    for k in range(len(_KERNELS)):
        deviation = max(_KERNELS[k] * clip * _CELLS, _NARROWEST)
        scale = -_HALF / (deviation * deviation)
        low = max(int(np.ceil(centre - _REACH * deviation)), 0)
        high = min(int(np.floor(centre + _REACH * deviation)), CELLS)
        by_score, by_root = columns[2 * k, low : high + 1], columns[2 * k + 1, low : high + 1]
        near = _POINTS[low : high + 1]
        for point in range(len(near)):
            distance = near[point] - centre
            height = exponential(scale * distance * distance)
            by_score[point] += score * height
            by_root[point] += root * height


@scalar
def add_coverage(start: Number, end: Number, weights: Floats, curves: Floats) -> None:
    """Add a proposal's weights (3,) to curves (3, CELLS + 1) at the cells whose centres it covers.

    Cell c stands at c + 1.
    """
    low, high = int(np.ceil(start * _CELLS - _HALF)), int(np.ceil(end * _CELLS - _HALF))
    for c in range(_SALIENCY):
        weight, covered = weights[c], curves[c, low + 1 : high + 1]
        for cell in range(len(covered)):
            covered[cell] += weight


@scalar
def draw_saliency(values: Floats, squashed: Floats, curve: Floats) -> None:
    """Write tanh(z / 2) of a saliency curve's z-scores, interpolated at the cells' centres (CELLS + 1,).

    Cell c stands at c + 1.
    """
    n = len(values)
    total, squares = 0.0, 0.0
    for i in range(n):
        total += values[i]  # in float64: sums of equal float32 numbers are exact, so they have no deviation
    mean = total / n
    for i in range(n):
        squares += (values[i] - mean) * (values[i] - mean)
    per_deviation = 1 / np.sqrt(squares / n) if squares > 0 else 0.0
    for i in range(n):
        z = np.float32((values[i] - mean) * per_deviation)
        small = exponential(-abs(z))
        size = (_ONE - small) / (_ONE + small)  # tanh(|z| / 2)
        squashed[i] = size if z > _ZERO else -size
    for cell in range(CELLS):
        at = (cell + 0.5) * n / CELLS - 0.5
        left = min(max(int(np.floor(at)), 0), n - 1)
        right = min(left + 1, n - 1)
        share = min(max(np.float32(at - left), _ZERO), _ONE)
        curve[cell + 1] = squashed[left] + share * (squashed[right] - squashed[left])


@scalar
def integrate(curve: Floats) -> None:
    """Turn a curve (CELLS + 1,), whose first value is 0, into its integral up to every point."""
    for point in range(CELLS):
        curve[point + 1] = curve[point] + curve[point + 1] / _CELLS


@scalar
def edge_means(integral: Floats, clip: Number, before: Floats, after: Floats) -> None:
    """Means of the saliency of `EDGE_CLIPS` clips before and after every point (CELLS + 1,)."""
    reach = max(1, int(np.rint(_EDGE_CLIPS * clip * _CELLS)))
    for point in range(CELLS + 1):
        low, high = max(point - reach, 0), min(point + reach, CELLS)
        here = integral[point]
        before[point] = (here - integral[low]) * _CELLS / max(point - low, 1)
        after[point] = (integral[high] - here) * _CELLS / max(high - point, 1)


@scalar
def describe(
    start: Number, end: Number, score: Number, number: int, clip: Number, points: Floats, out: Floats
) -> None:
    """`SPAN_FEATURES` of the proposal of that number."""
    first, last, whole = points[cell_of(start)], points[cell_of(end)], points[CELLS, _CURVES:]
    span_features(first, last, whole, start, end, clip, out)
    scored = out[_SCORE:]
    scored[0] = score
    scored[1] = np.log((score + FLOOR) / (_ONE - score + FLOOR)) / _LOGIT_SCALE
    scored[2] = min(np.float32(number) / _RANK_SCALE, _ONE)
    bound(out)
