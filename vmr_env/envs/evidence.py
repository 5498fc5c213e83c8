"""Evidence (`vmr_env.caches.evidence`), computed by compiled code from a cache's curves and scores of spans.

Of a grid of n cells, numbers of all spans stand in a square: [length, first cell]. What spans of one length
have to do with those of another length that begin a given shift later is then one loop over neighbours, and
the tIoU of all spans with all others costs n^3 additions, not n^4.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Array, Doubles, Floats, Ints
from vmr_env.caches.evidence import EDGE_CELLS, LOG_SCALE
from vmr_env.caches.format import MOST_CELLS, Ragged, cells_of, spans_of
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.compilation import entry, fixed, scalar
from vmr_env.envs.memory import Computed
from vmr_env.envs.timelines import exponential

Number = Any
"""A float32; NumPy's types cannot say that operators keep it."""

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_STEPS = np.float32(65535)
_STEP = np.float32(1 / 65535)
_LOWEST = -float(LOG_SCALE)
_PER_LENGTH = np.array([0, *(1 / length for length in range(1, MOST_CELLS + 1))], np.float32)


def _bounds(above: int, below: int) -> tuple[Ints, Ints]:
    """Of every length: the least that a span inside, and the most that one around it may have for a tIoU of
    at least above / below."""
    lengths = np.arange(MOST_CELLS + 1)
    return -(-above * lengths // below), below * lengths // above


_LEAST_5, _MOST_5 = _bounds(1, 2)
_LEAST_7, _MOST_7 = _bounds(7, 10)


class EvidenceRows(NamedTuple):
    """Look-up tables of samples, one after the other."""

    shared: int
    """1 where row r is that of the cache's sample r, 0 where it is that of episode r's sample."""
    spans: NDArray[np.uint16]
    """(K, 4), the first four of `SPAN_EVIDENCE` of every span, the first with its sign turned, in steps of
    1 / 65535: the shortest spans first, those of one length by their first cell."""
    points: Floats
    """(M, 5) float32, of every boundary of cells: mean relevance before and after it, integral of the
    relevance up to it, probability that a span starts there and that one ends there, over the highest."""
    entropies: Floats
    """(R,) float32."""
    span_firsts: Ints
    """(R,), where each row's spans begin."""
    point_firsts: Ints
    """(R,), where each row's boundaries begin."""
    cells: Ints
    """(S,), cells of each sample of the cache."""


class Workspace(NamedTuple):
    """Memory that is used for one sample after the other."""

    curve: Doubles
    """(`MOST_CELLS`,), relevance of each cell."""
    sums: Doubles
    """(`MOST_CELLS` + 1,), running sums."""
    scores: Doubles
    """(spans,), logits, in the order of the cache: those from the first cell, shortest first, and so on."""
    shares: Floats
    """A square: the distribution."""
    mass: Floats
    """A square with a row for length 0: shares of the spans up to a length that begin at a cell, together."""
    moment: Floats
    """The same, each share times the span's length."""
    around: Floats
    """A square, for sums over the spans inside or around others."""
    expected: Floats
    """(3, a square): the tIoU, and shares of the spans that reach 0.5 and 0.7."""


def workspace() -> Workspace:
    """Memory for samples of any length."""
    side = MOST_CELLS + 1
    square = (side, side)
    doubles = (np.empty(MOST_CELLS), np.empty(side), np.empty(int(spans_of(np.array(MOST_CELLS)))))
    squares = (np.zeros(size, np.float32) for size in (square, square, square, square, (3, *square)))
    return Workspace(*doubles, *squares)


def evidence_bytes(cells: Ints) -> int:
    """Memory of the rows of samples: 24,340 bytes for one of `MOST_CELLS` cells, the most.

    Args:
        cells: (S,), of each.
    """
    return int((8 * spans_of(cells) + 20 * (cells + 1) + 20).sum())


def empty_rows(cells: Ints, rows: int, shared: bool) -> EvidenceRows:
    """Memory for rows of samples, of which the cache has some of so many cells (S,)."""
    each = cells if shared else np.full(rows, cells.max())
    span_ends, point_ends = np.cumsum(spans_of(each)), np.cumsum(each + 1)
    spans = np.zeros((span_ends[-1], 4), np.uint16)
    points = np.zeros((point_ends[-1], 5), np.float32)
    firsts = span_ends - spans_of(each), point_ends - each - 1
    return EvidenceRows(int(shared), spans, points, np.zeros(rows, np.float32), *firsts, cells)


def evidence_of(cache: DecoderStateCache) -> Computed:
    """The evidence of a cache that has some."""
    assert cache.relevance is not None
    cells = cells_of(cache.n_clips)
    inputs = (*_arrays(cache.relevance), *_arrays(cache.span_scores))
    return Computed(find_evidence, inputs, evidence_bytes(cells), partial(empty_rows, cells), workspace)


def _arrays(ragged: Ragged | None) -> tuple[Array, Array]:
    values, offsets = (None, None) if ragged is None else (ragged.values, ragged.offsets)
    return fixed(values, np.float32, 1), fixed(offsets, np.int64, 1)


@scalar
def span_row(cells: int, first: int, last: int) -> int:
    """Row of the span between two boundaries among those of a grid."""
    shorter = last - first - 1
    return shorter * (2 * cells - shorter + 1) // 2 + first


@scalar
def in_steps(share: Number) -> Any:
    """A share of 0 to 1 as a number of steps, the nearest."""
    return np.uint16(min(max(share, _ZERO), _ONE) * _STEPS + _HALF)


@scalar
def of_steps(steps: Any) -> Number:
    """The share that a number of steps is."""
    return np.float32(steps) * _STEP


@entry
def find_evidence(
    relevance: Floats,
    clips: Ints,
    scores: Floats,
    scored: Ints,
    samples: Ints,
    rows: Ints,
    evidence: EvidenceRows,
    work: Workspace,
) -> None:
    """Write the evidence of some samples.

    Args:
        relevance: (V,) float32, the curves.
        clips: (S + 1,), where each sample's begins.
        scores: (W,) float32, logits of spans; empty where the curves give them.
        scored: (S + 1,), where each sample's begin.
        samples: (K,), the samples.
        rows: (K,), where they are written.
        evidence: written.
        work: memory, of its own for every thread.
    """
    for i in range(len(rows)):
        sample, row = samples[i], rows[i]
        n = evidence.cells[sample]
        mean_of_cells(relevance[clips[sample] : clips[sample + 1]], work.curve[:n])
        if len(scores) > 0:
            for k in range(scored[sample + 1] - scored[sample]):
                work.scores[k] = scores[scored[sample] + k]
        else:
            two_levels(work.curve[:n], work.sums, work.scores)
        first = evidence.span_firsts[row]
        spans = evidence.spans[first : first + n * (n + 1) // 2]
        points = evidence.points[evidence.point_firsts[row] : evidence.point_firsts[row] + n + 1]
        evidence.entropies[row] = distribute(n, work.scores, work.shares, spans)
        describe_points(work.curve[:n], work.shares, work.sums, points)
        compare_all(n, work)
        at = 0
        for length in range(1, n + 1):
            for begin in range(n - length + 1):
                for k in range(3):
                    spans[at, 1 + k] = in_steps(work.expected[k, length, begin])
                at += 1


@scalar
def mean_of_cells(relevance: Floats, curve: Doubles) -> None:
    """Mean of a curve (clips,) in each cell (cells,), of which all but the last have as many clips."""
    width = -(-len(relevance) // MOST_CELLS)
    for cell in range(len(curve)):
        low, high = cell * width, min((cell + 1) * width, len(relevance))
        total = 0.0
        for clip in range(low, high):
            total += relevance[clip]
        curve[cell] = total / (high - low)


@scalar
def two_levels(curve: Doubles, sums: Doubles, scores: Doubles) -> None:
    """Log-likelihood ratio of a level inside each span and another outside, against one for all: (spans,).

    Negative where the level inside is the lower one; 0 for the span of all cells.

    Args:
        curve: (cells,).
        sums: (cells + 1 or more,), written: running sums of the curve.
        scores: (spans or more,), written.
    """
    n, squares = len(curve), 0.0
    sums[0] = 0.0
    for cell in range(n):
        sums[cell + 1] = sums[cell] + curve[cell]
    for cell in range(n):
        squares += (curve[cell] - sums[n] / n) ** 2
    variance = max(squares / n, 1e-12)
    at = 0
    for first in range(n):
        for last in range(first + 1, n + 1):
            mass, inside = sums[last] - sums[first], last - first
            outside = n - inside
            rise = mass / inside - (sums[n] - mass) / max(outside, 1)
            ratio = rise * rise * inside * outside / (2 * n * variance)
            scores[at] = ratio if rise >= 0 else -ratio
            at += 1


@scalar
def distribute(n: int, scores: Doubles, shares: Floats, spans: NDArray[np.uint16]) -> Any:
    """The softmax of scores of the spans of n cells.

    Args:
        n: see there.
        scores: (spans or more,).
        shares: a square, written.
        spans: as `EvidenceRows` has them; the log-probabilities are written.

    Returns:
        The entropy over its highest possible value.
    """
    count = n * (n + 1) // 2
    best = scores[0]
    for k in range(count):
        best = max(best, scores[k])
    at, total, mean = 0, 0.0, 0.0
    for first in range(n):
        for last in range(first + 1, n + 1):
            less = max(scores[at] - best, 4 * _LOWEST)  # below it, 1e-17 of the highest
            share = exponential(np.float32(less))
            spans[span_row(n, first, last), 0] = in_steps(np.float32(less / _LOWEST))
            shares[last - first, first] = share
            total += share
            mean += share * less
            at += 1
    scale = np.float32(1 / total)
    for length in range(1, n + 1):
        for first in range(n - length + 1):
            shares[length, first] *= scale
        for first in range(n - length + 1, n + 1):
            shares[length, first] = _ZERO
    return (np.log(total) - mean / total) / max(np.log(count), 1.0)


@scalar
def describe_points(curve: Doubles, shares: Floats, sums: Doubles, points: Floats) -> None:
    """Write what `EvidenceRows` has of the boundaries of cells (cells + 1, 5).

    Args:
        curve: (cells,), relevance; its values are changed.
        shares: a square.
        sums: (cells + 1 or more,), memory.
        points: written.
    """
    n, total, squares = len(curve), 0.0, 0.0
    for cell in range(n):
        total += curve[cell]
    for cell in range(n):
        squares += (curve[cell] - total / n) ** 2
    deviation = max(np.sqrt(squares / n), 1e-6)
    sums[0] = 0.0
    for cell in range(n):
        sums[cell + 1] = sums[cell] + np.tanh((curve[cell] - total / n) / deviation / 2)
    for at in range(n + 1):
        low, high = max(at - EDGE_CELLS, 0), min(at + EDGE_CELLS, n)
        points[at, 0] = (sums[at] - sums[low]) / max(at - low, 1)
        points[at, 1] = (sums[high] - sums[at]) / max(high - at, 1)
        points[at, 2] = sums[at] / n
        starts, ends = 0.0, 0.0
        for length in range(1, n - at + 1):
            starts += shares[length, at]
        for length in range(1, at + 1):
            ends += shares[length, at - length]
        points[at, 3], points[at, 4] = starts, ends
    for side in (3, 4):
        highest = _ZERO
        for at in range(n + 1):
            highest = max(highest, points[at, side])
        for at in range(n + 1):
            points[at, side] /= highest


@scalar
def compare_all(n: int, work: Workspace) -> None:
    """Write `expected`: the tIoU of every span with all, and the shares that reach 0.5 and 0.7."""
    tious, of_5, of_7 = work.expected[0], work.expected[1], work.expected[2]
    for k in range(3):
        for length in range(1, n + 1):
            for first in range(n):
                work.expected[k, length, first] = _ZERO
    add_nested(n, work.shares, work.around, tious)
    for _ in range(2):  # in a mirror, spans that come later come earlier
        cumulate(n, work.shares, work.mass, work.moment)
        add_earlier(n, work.mass, work.moment, tious)
        mirror(n, work.shares)
        mirror(n, tious)
    cumulate(n, work.shares, work.mass, work.moment)
    add_hits(n, work.mass, _LEAST_5, _MOST_5, of_5)
    add_hits(n, work.mass, _LEAST_7, _MOST_7, of_7)


@scalar
def add_nested(n: int, shares: Floats, sums: Floats, tious: Floats) -> None:
    """Add the part of the spans inside of each, and of those around it: the tIoU is a ratio of lengths.

    Both are sums over corners of the square: three corners of a neighbour's size give the next.
    """
    for length in range(1, n + 1):
        for first in range(n - length + 1):
            inside = shares[length, first] * np.float32(length)
            if length > 1:
                inside += sums[length - 1, first] + sums[length - 1, first + 1]
            if length > 2:
                inside -= sums[length - 2, first + 1]
            sums[length, first] = inside
            tious[length, first] += inside * _PER_LENGTH[length] - shares[length, first]  # is among both
    for length in range(n, 0, -1):
        for first in range(n - length + 1):
            around = shares[length, first] * _PER_LENGTH[length]
            if first > 0:
                around += sums[length + 1, first - 1]
            if first + length < n:
                around += sums[length + 1, first]
            if first > 0 and first + length < n:
                around -= sums[length + 2, first - 1]
            sums[length, first] = around
            tious[length, first] += around * np.float32(length)


@scalar
def cumulate(n: int, shares: Floats, mass: Floats, moment: Floats) -> None:
    """Write the running sums over lengths, see `Workspace`."""
    for first in range(n):
        mass[0, first] = moment[0, first] = _ZERO
    for length in range(1, n + 1):
        scale, here = np.float32(length), shares[length, :n]
        add_row(mass[length - 1, :n], here, _ONE, mass[length, :n])
        add_row(moment[length - 1, :n], here, scale, moment[length, :n])


@scalar
def add_row(row: Floats, added: Floats, scale: Number, out: Floats) -> None:
    """Write row + scale * added, (K,) each."""
    for k in range(len(out)):
        out[k] = row[k] + scale * added[k]


@scalar
def add_earlier(n: int, mass: Floats, moment: Floats, tious: Floats) -> None:
    """Add the part of the spans that start before each span and end inside it.

    Of one that starts a shift earlier, what is common is its length less the shift, and the union is the
    length of the span and the shift.
    """
    for length in range(2, n + 1):
        for shift in range(1, n - length + 1):
            count, longest = n - length + 1 - shift, length + shift - 1
            add_common(
                moment[longest, :count],
                moment[shift, :count],
                mass[longest, :count],
                mass[shift, :count],
                np.float32(shift),
                _PER_LENGTH[length + shift],
                tious[length, shift : shift + count],
            )


@scalar
def add_common(
    moment: Floats,
    less_moment: Floats,
    mass: Floats,
    less_mass: Floats,
    shift: Number,
    scale: Number,
    out: Floats,
) -> None:
    """Add scale * (difference of moments - shift * difference of masses), (K,) each."""
    for k in range(len(out)):
        out[k] += scale * (moment[k] - less_moment[k] - shift * (mass[k] - less_mass[k]))


@scalar
def mirror(n: int, square: Floats) -> None:
    """Turn time around in a square."""
    for length in range(1, n + 1):
        last = n - length
        for first in range((last + 1) // 2):
            square[length, first], square[length, last - first] = (
                square[length, last - first],
                square[length, first],
            )


@scalar
def add_hits(n: int, mass: Floats, least: Ints, most: Ints, hits: Floats) -> None:
    """Add the shares of the spans whose tIoU with each span reaches a threshold.

    Those that start at one cell and reach it are of neighbouring lengths.

    Args:
        n: cells.
        mass: a square, see `Workspace`; beyond the video nothing is added.
        least: (`MOST_CELLS` + 1,), the least common length of spans whose union has a length.
        most: (`MOST_CELLS` + 1,), the greatest length of the union of spans that have a length in common.
        hits: a square, written.
    """
    for length in range(1, n + 1):
        longest = min(most[length], n)
        for shift in range(length - longest, length - least[length] + 1):
            if shift <= 0:  # starts no later: is long enough inside, and not too long beyond the end
                low, high = least[length - shift] - shift - 1, longest
            else:
                low, high = least[length] - 1, min(most[length - shift] - shift, n)
            first, last = max(-shift, 0), n - length + 1
            if first < last:
                begin, end = first + shift, last + shift
                add_difference(mass[high, begin:end], mass[low, begin:end], hits[length, first:last])


@scalar
def add_difference(high: Floats, low: Floats, out: Floats) -> None:
    """Add high - low, (K,) each."""
    for k in range(len(out)):
        out[k] += high[k] - low[k]
