"""The timeline of a sample: what its proposals and its saliency curve say about every point of the video.

What an agent observes about a span is looked up here at the span's two boundaries, so that the cost of an
observation does not grow with the number of proposals or models. Tables are derived from a cache's arrays by
`build_timelines` and kept beside it (`vmr_env.caches.boundary_tables`).

A timeline has one row for each boundary of the `CELLS` equal cells that the video is cut into. All values lie
in [-1, 1]. Saliency is on no common scale among detectors, so it enters as tanh(z / 2), z being its
z-score.
"""

from typing import NamedTuple

import numpy as np

from vmr_env.arrays import Array, Bools, Floats, Ints, Numbers

CELLS = 128

KERNELS = (1.0, 2.5)
"""Widths of the density kernels, in clips."""

EDGE_CLIPS = 3
"""Clips before and after a boundary whose saliency is compared."""

CURVES = ("coverage by score", "coverage by root", "coverage by models", "saliency")
"""Curves over the video: share of the proposals that cover a point, weighted by score or by its square root;
share of the models whose first proposal covers it; saliency."""

POINT_FEATURES = (
    *(
        f"{side} density within {clips:g} clips by {weight}"
        for side in ("start", "end")
        for clips in KERNELS
        for weight in ("score", "root")
    ),
    *("saliency before", "saliency after"),
    *(f"integral of {curve}" for curve in CURVES),
)
"""What the timeline says about a point: near how many of the proposals' starts and ends it lies, weighted by
score or by its square root, each normalised to sum 1 over the proposals; the mean saliency of the
`EDGE_CLIPS` clips on either side; and the integral of each curve from the video's start."""

INTEGRALS = slice(len(POINT_FEATURES) - len(CURVES), len(POINT_FEATURES))
"""The last columns of a point."""

INSIDE_FEATURES = (
    *(f"mean {curve} inside" for curve in CURVES),
    *(f"share of {curve} inside" for curve in CURVES[:3]),
)
"""Features of the inside of a span: mean of each curve, and its integral as a share of the whole video's."""

SPAN_FEATURES = (
    *(f"at the start: {name}" for name in POINT_FEATURES[: INTEGRALS.start]),
    *(f"at the end: {name}" for name in POINT_FEATURES[: INTEGRALS.start]),
    *INSIDE_FEATURES,
    *("start", "end", "width", "log length"),
    *("score", "logit of score", "rank"),
)
"""All that is known of a proposal."""

_LOG_CLIPS = np.float32(np.log1p(1500.0))  # longest videos: 1,402 clips (TACoS)
_CELLS = np.array(CELLS, np.float32)
_ONE, _MINUS_ONE = np.array(1, np.float32), np.array(-1, np.float32)

_NEGLIGIBLE = 1e-9  # tails of kernels go down to denormal numbers, which slow down whoever computes with them

FLOOR = np.float32(1e-3)
"""Least integral over a video that shares are taken of, and least probability of logits."""

SHORTEST = np.float32(1 / CELLS)
"""Least width that means are taken over."""


class Timelines(NamedTuple):
    """Tables of n samples, float32."""

    points: Floats
    """(n, CELLS + 1, `POINT_FEATURES`), every point of the timeline."""
    proposals: Floats
    """(n, Q, `SPAN_FEATURES`), the proposals; zeros where there is none."""


def cell_of(positions: Floats) -> Ints:
    """Row of the timeline nearest to each position in [0, 1]: any shape."""
    cells: Floats = positions * _CELLS
    np.rint(cells, out=cells)
    return cells.astype(np.intp)


def log_length(clips: Numbers) -> Numbers:
    """Length in clips on a logarithmic scale, in [0, 1] up to 1,500 clips: any shape."""
    logarithm: Numbers = np.log(clips + np.float32(1)) / _LOG_CLIPS
    return logarithm


def inside_features(out: Floats, mass: Floats, width: Numbers, whole: Floats) -> None:
    """Inside features of spans from the integrals.

    Args:
        out: (I, ...), filled.
        mass: (C, ...), integral of each curve over the span.
        width: (...), of the span, at least `SHORTEST`.
        whole: broadcasts with (3, ...), integrals of the first three curves over the video, at least `FLOOR`.
    """
    c = len(CURVES)
    np.divide(mass, width, out=out[:c])
    np.divide(mass[:3], whole, out=out[c:])
    # Cells are a little longer or shorter than the span.
    np.minimum(out, _ONE, out=out)
    np.maximum(out, _MINUS_ONE, out=out)


def build_timelines(
    spans: Floats,
    scores: Floats,
    counts: Array,
    models: Array,
    durations: Array,
    clip_seconds: float,
    saliency: list[Array] | None,
) -> Timelines:
    """Timelines of n samples.

    Args:
        spans: (n, Q, 2), proposals normalised to [0, 1].
        scores: (n, Q), in [0, 1].
        counts: (n,), proposals of each sample.
        models: (n, Q), number of the model that made the proposal.
        durations: (n,), seconds.
        clip_seconds: length of a clip.
        saliency: n curves with one value per clip, or None.
    """
    clip = (np.float32(clip_seconds) / np.asarray(durations, np.float32))[:, None]
    present = np.arange(spans.shape[1]) < np.asarray(counts)[:, None]
    weights = np.stack([_normalised(scores * present), _normalised(np.sqrt(scores) * present)], axis=-1)
    integrals = _integrals(spans, weights, models, present, saliency)
    edges = _edge_means(integrals[..., -1], clip)
    densities = (_densities(spans[..., side], weights, clip) for side in (0, 1))
    points = np.concatenate([*densities, *edges, integrals], axis=-1)

    rows = np.arange(len(spans))[:, None]
    first, last = points[rows, cell_of(spans[..., 0])], points[rows, cell_of(spans[..., 1])]
    width = spans[..., 1] - spans[..., 0]
    proposals = np.empty((*scores.shape, len(SPAN_FEATURES)), np.float32)
    b, i = INTEGRALS.start, len(INSIDE_FEATURES)
    proposals[..., :b] = first[..., :b]
    proposals[..., b : 2 * b] = last[..., :b]
    mass = last[..., INTEGRALS] - first[..., INTEGRALS]
    inside = np.moveaxis(proposals[..., 2 * b : 2 * b + i], -1, 0)
    whole = np.maximum(np.moveaxis(integrals[:, -1:, :3], -1, 0), FLOOR)
    inside_features(inside, np.moveaxis(mass, -1, 0), np.maximum(width, SHORTEST), whole)
    geometry = proposals[..., 2 * b + i :]
    geometry[..., :2] = spans
    geometry[..., 2] = width
    geometry[..., 3] = log_length(width / clip)
    geometry[..., 4] = scores
    geometry[..., 5] = np.log((scores + FLOOR) / (1 - scores + FLOOR)) / 7
    geometry[..., 6] = np.minimum(np.arange(scores.shape[1]) / 10, 1)
    proposals *= present[..., None]
    result = Timelines(points, proposals)
    for table in result:
        np.clip(table, -1, 1, out=table)  # rounding of the sums only
        table[np.abs(table) < _NEGLIGIBLE] = 0
    return result


def saliency_on_cells(curves: list[Array]) -> Floats:
    """Saliency curves of any scale and length, tanh(z / 2) interpolated at the cells' centres: (n, CELLS)."""
    centres = (np.arange(CELLS) + 0.5) / CELLS
    rows = np.empty((len(curves), CELLS), np.float32)
    for row, curve in zip(rows, curves, strict=True):
        values = np.asarray(curve, np.float64)
        spread = values.std()
        z = (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
        row[:] = np.interp(centres * len(values), np.arange(len(values)) + 0.5, np.tanh(z / 2))
    return rows


def _densities(positions: Floats, weights: Floats, clip: Floats) -> Floats:
    """Weighted kernel densities of (n, Q) positions at every point: (n, CELLS + 1, kernels * weights)."""
    points = np.linspace(0, 1, CELLS + 1, dtype=np.float32)
    distance = points - positions[:, :, None]
    parts = []
    for clips in KERNELS:
        sigma = np.maximum(np.float32(clips) * clip, np.float32(0.5 / CELLS))[:, :, None]
        kernel = np.exp(-0.5 * (distance / sigma) ** 2)
        parts.append(np.einsum("nqg,nqk->ngk", kernel, weights))
    return np.concatenate(parts, axis=-1)


def _integrals(
    spans: Floats, weights: Floats, models: Array, present: Array, saliency: list[Array] | None
) -> Floats:
    """Integrals of the curves from 0 to every point: (n, CELLS + 1, C)."""
    centres = (np.arange(CELLS, dtype=np.float32) + np.float32(0.5)) / np.float32(CELLS)
    covered = (spans[:, :, :1] <= centres) & (centres < spans[:, :, 1:])  # (n, Q, CELLS)
    firsts = _normalised(_first_of_model(models, present).astype(np.float32))
    shares = np.concatenate([weights, firsts[:, :, None]], axis=-1)  # (n, Q, 3)
    curves = np.zeros((len(spans), CELLS, len(CURVES)), np.float32)
    curves[..., :3] = np.einsum("nqg,nqk->ngk", covered.astype(np.float32), shares)
    if saliency is not None:
        curves[..., 3] = saliency_on_cells(saliency)
    integrals = np.zeros((len(spans), CELLS + 1, len(CURVES)), np.float32)
    np.cumsum(curves / np.float32(CELLS), axis=1, out=integrals[:, 1:])
    return integrals


def _normalised(weights: Floats) -> Floats:
    """Weights (n, Q) divided by their sum; all zero where the sum is (scores may all be 0)."""
    total = weights.sum(axis=1, keepdims=True)
    return (weights / np.where(total > 0, total, 1)).astype(np.float32)


def _first_of_model(models: Array, present: Array) -> Bools:
    """Which proposals are the first of their model in the sample: (n, Q)."""
    same = (models[:, :, None] == models[:, None, :]) & present[:, None, :]
    earlier = np.tri(models.shape[1], k=-1, dtype=bool)
    result: Bools = present & ~(same & earlier).any(axis=2)
    return result


def _edge_means(integral: Floats, clip: Floats) -> tuple[Floats, Floats]:
    """Mean of a curve over the `EDGE_CLIPS` clips before and after every point: 2 x (n, CELLS + 1, 1)."""
    reach = np.maximum(1, np.rint(EDGE_CLIPS * clip * CELLS)).astype(np.intp)
    at = np.broadcast_to(np.arange(CELLS + 1), integral.shape)
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach, CELLS)

    def mean(a: Array, b: Array) -> Floats:
        total = np.take_along_axis(integral, b, 1) - np.take_along_axis(integral, a, 1)
        means: Floats = (total * CELLS / np.maximum(b - a, 1)).astype(np.float32)[..., None]
        return means

    return mean(low, at), mean(at, high)
