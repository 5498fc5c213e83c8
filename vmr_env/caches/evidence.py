"""What the video itself says about a query: how relevant each clip is, and how likely each span.

A cache may hold, beside a detector's proposals, a relevance curve (`relevance`, one number per clip, any
scale) and a score of every span (`span_scores`, as logits). Here they become tables whose look-ups cost the
same for all spans. Spans run from cell to cell of a grid: cells are clips, in videos of more than
`MOST_CELLS` clips runs of as many clips as make it fit.

Without scores of spans a curve gives them: the log-likelihood ratio of two levels, inside and outside a span,
against one level, for normal noise. It needs no training (change-point detection; Page, 1955).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np

from vmr_env.arrays import Array, Doubles, Floats, Ints
from vmr_env.caches.derived import derived_tables
from vmr_env.caches.format import MOST_CELLS, Ragged, cells_of, merged, spans_of
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import Annotation
from vmr_env.data.timelines import z_scores
from vmr_env.metrics.spans import reaches

EDGE_CELLS = 2
"""Cells before and after a boundary whose relevance is averaged."""

RELEVANCE = ("inside", "before the start", "after the start", "before the end", "after the end")
"""Mean relevance inside a span and on either side of its boundaries: tanh(z / 2), z being the z-score of the
curve, as saliency enters timelines."""

SPAN_EVIDENCE = ("log score", "expected tIoU", "hits at 0.5", "hits at 0.7", "start", "end", "entropy")
"""What is known of a span under the distribution of all, the softmax of their scores: its log-probability
less the highest, over `LOG_SCALE`, at least -1; tIoU and share of spans with a tIoU of at least 0.5 and 0.7,
in expectation; probabilities of its start and its end, over the highest; entropy of the distribution over its
highest possible value, the same for all spans."""

LOG_SCALE = 10.0

_VERSION = 2  # a new number for every change of what the tables hold


class Evidence(NamedTuple):
    """Evidence of n samples for a cache; arrays are those of `vmr_env.caches.batch.CacheBatch`."""

    source: str
    """What gives it, in a word."""
    sha256: str | None
    """Hash of the weights that give it, if any do."""
    features: tuple[str, ...]
    """Names of the clip features that it comes from."""
    relevance: Ragged
    """(clips,)."""
    span_scores: Ragged | None = None
    clips: Ragged | None = None
    text: Array | None = None


FindEvidence: TypeAlias = Callable[[Sequence[Annotation]], Evidence]
"""Gives evidence for samples, one row each, in their order."""


class EvidenceTables(NamedTuple):
    """Look-up tables of S samples, one after the other."""

    spans: Array
    """(K, 4) float16, the first four of `SPAN_EVIDENCE` of every span: those from the first cell, shortest
    first, then those from the second, and so on."""
    points: Floats
    """(M, 5) float32, of every boundary of cells: mean relevance before and after it, integral of the
    relevance up to it, probability that a span starts there and that one ends there, over the highest."""
    entropies: Floats
    """(S,) float32."""
    cells: Ints
    """(S,), cells of each sample."""
    span_firsts: Ints
    """(S,), row where each sample's spans begin."""
    point_firsts: Ints
    """(S,), row where each sample's boundaries begin."""


def evidence_of(cache: DecoderStateCache) -> EvidenceTables | None:
    """Tables of a cache's evidence, memory-mapped; built on first use. None where it has no relevance.

    Raises:
        DataError: the cache is damaged, or the user's cache folder cannot be written.
    """
    relevance, scores = cache.relevance, cache.span_scores
    if relevance is None:
        return None
    names = ["relevance"] if scores is None else ["relevance", "span_scores"]

    def block(part: slice) -> dict[str, Array]:
        rows = range(part.start, part.stop)
        curves = [on_cells(relevance[i]) for i in rows]
        logits = [two_levels(curve) for curve in curves] if scores is None else [scores[i] for i in rows]
        shares = list(map(_softmax, logits))
        each = map(_tables, curves, shares, _expectations(curves, shares))
        return {
            name: np.concatenate(tables) for name, tables in zip(_NAMES, zip(*each, strict=True), strict=True)
        }

    sources = [f"{name}.{part}" for name in names for part in ("values", "offsets")]
    cells = cells_of(cache.n_clips)
    tables = derived_tables("evidence", cache, sources, [_VERSION, MOST_CELLS], bytes_kept(cells), block)
    span_ends, point_ends = np.cumsum(spans_of(cells)), np.cumsum(cells + 1)
    return EvidenceTables(
        tables["spans"],
        tables["points"],
        tables["entropies"],
        cells,
        span_ends - spans_of(cells),
        point_ends - cells - 1,
    )


_NAMES = EvidenceTables._fields[:3]


def bytes_kept(cells: Ints) -> int:
    """Bytes that the tables of samples take on disk: 24,324 a sample of `MOST_CELLS` cells, the most.

    Args:
        cells: (S,), of each sample.
    """
    return int((8 * spans_of(cells) + 20 * (cells + 1) + 4).sum())


def _softmax(logits: Array) -> Doubles:
    """Shares of all spans, and thereby their distribution: (spans,)."""
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    shares: Doubles = powers / powers.sum()
    return shares


def _expectations(curves: Sequence[Doubles], shares: Sequence[Doubles]) -> list[Floats]:
    """Of every span of each sample: expected tIoU and shares of the spans that reach 0.5 and 0.7, (spans, 3).

    Samples of as many cells are multiplied at once, since reading the grid takes longer than the product.
    """
    cells = np.array([len(curve) for curve in curves])
    found: list[Floats] = [np.empty(0, np.float32)] * len(curves)
    for count in np.unique(cells).tolist():
        same = np.flatnonzero(cells == count).tolist()
        columns = np.stack([shares[i] for i in same], axis=1, dtype=np.float32)
        grid = span_grid(count)
        products = np.stack([table @ columns for table in (grid.tious, grid.hits_5, grid.hits_7)], axis=-1)
        for number, i in enumerate(same):
            found[i] = products[:, number]
    return found


def _tables(curve: Doubles, shares: Doubles, expected: Floats) -> tuple[Array, Floats, Floats]:
    """Spans, points and entropy (1,) of one sample."""
    starts, stops = spans_in_order(len(curve))
    with np.errstate(divide="ignore"):  # a share may be too small for a float64
        log_scores = np.maximum(np.log(shares / shares.max()) / LOG_SCALE, -1)
    spans = np.column_stack([log_scores, expected]).astype(np.float16)

    ends = [np.bincount(of, shares, len(curve) + 1) for of in (starts, stops)]
    z = np.tanh(z_scores(curve) / 2)
    sums = np.append(0, np.cumsum(z))
    at = np.arange(len(curve) + 1)
    low, high = np.maximum(at - EDGE_CELLS, 0), np.minimum(at + EDGE_CELLS, len(curve))
    before, after = ((sums[b] - sums[a]) / np.maximum(b - a, 1) for a, b in ((low, at), (at, high)))
    points = np.column_stack([before, after, sums / len(curve), *(of / of.max() for of in ends)])
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum() / max(np.log(len(shares)), 1)
    return spans, points.astype(np.float32), np.array([entropy], np.float32)


def on_cells(curve: Array) -> Doubles:
    """Mean of a curve (clips,) in each cell: (cells,)."""
    cell = np.arange(len(curve)) // merged(np.array(len(curve)))
    means: Doubles = np.bincount(cell, np.asarray(curve, np.float64)) / np.bincount(cell)
    return means


def two_levels(curve: Doubles) -> Doubles:
    """Log-likelihood ratio of a level inside each span and another outside, against one for all: (spans,).

    Negative where the level inside is the lower one; 0 for the span of all cells.

    Args:
        curve: (cells,).
    """
    cells = len(curve)
    starts, ends = spans_in_order(cells)
    sums = np.append(0, np.cumsum(curve))
    inside = ends - starts
    outside = cells - inside
    mass = sums[ends] - sums[starts]
    rise = mass / inside - (sums[-1] - mass) / np.maximum(outside, 1)
    variance = max(float(curve.var()), 1e-12)
    ratios: Doubles = np.sign(rise) * rise**2 * inside * outside / (2 * cells * variance)
    return ratios


@lru_cache(maxsize=MOST_CELLS)
def spans_in_order(cells: int) -> tuple[Ints, Ints]:
    """First and last boundaries of all K spans of a grid, as `EvidenceTables.spans` has them: (K,), (K,)."""
    starts, last = np.triu_indices(cells)
    return starts, last + 1


class SpanGrid(NamedTuple):
    """How all K spans between the boundaries of some cells overlap."""

    tious: Floats
    """(K, K)."""
    hits_5: Floats
    """(K, K), 1 where the tIoU is at least 0.5."""
    hits_7: Floats
    """(K, K), 1 where the tIoU is at least 0.7."""


@lru_cache(maxsize=1)  # the largest takes 100 MB
def span_grid(cells: int) -> SpanGrid:
    """The spans of a grid, in the order of `EvidenceTables.spans`."""
    starts, ends = spans_in_order(cells)
    common = np.minimum(ends[:, None], ends) - np.maximum(starts[:, None], starts)
    lengths = ends - starts
    common = np.maximum(common, 0).astype(np.float32)
    tious = common / (lengths[:, None] + lengths - common)
    hits = (reaches(tious, threshold).astype(np.float32) for threshold in (0.5, 0.7))
    return SpanGrid(tious.astype(np.float32), *hits)
