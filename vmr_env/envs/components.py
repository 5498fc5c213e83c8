"""Components of observations that few caches have or that must be named.

Each group of them is compiled when it is first shown, and written after the step of `vmr_env.envs.kernel`.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Array, Bools, Floats
from vmr_env.caches.boundary_features import CELLS
from vmr_env.caches.clip_sums import EDGE_CLIPS, POINT_PARTS, ClipSums, clip_sums_of
from vmr_env.caches.evidence import RELEVANCE, SPAN_EVIDENCE
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.compilation import entry, fixed, scalar
from vmr_env.envs.evidence import EvidenceRows, evidence_of, of_steps, span_row
from vmr_env.envs.kernel import (
    COMPONENTS,
    SKIP,
    Number,
    Record,
    Rules,
    Tables,
    bonus,
    candidate,
    chosen_span,
    copy,
    overlap,
)
from vmr_env.envs.memory import Memory
from vmr_env.envs.timelines import cell_of, exponential


class Group(NamedTuple):
    """Components that are written together."""

    write: Callable[..., None]
    """The compiled function."""
    tables: Any
    """Its first argument."""
    memory: Memory | None = None
    """Where the tables are computed as episodes begin, if they are."""


VOTES = ("tIoU with the first", "tIoU", "hits at 0.5", "hits at 0.7", "start density", "end density")
"""What a model thinks of a span: its tIoU with the model's first proposal; and over all of its proposals,
each weighted by its share of the model's scores, the tIoU, whether it is at least 0.5 and 0.7, and how near
their starts lie to the span's start, and their ends to its end: a Gaussian kernel, 1 at no distance, with a
standard deviation of one clip."""

_DECODER_STATE, _PROPOSAL_STATES, _TEXT, _POINT_CLIPS, _PROPOSAL_CLIPS, _RELEVANCE, _SPAN_EVIDENCE, _VOTES = (
    range(COMPONENTS.index("decoder_state"), len(COMPONENTS))
)
_RELEVANCE_WIDTH, _EVIDENCE_WIDTH, _VOTES_WIDTH = len(RELEVANCE), len(SPAN_EVIDENCE), len(VOTES)
_ZERO, _HALF, _CELLS, _HALF_FLOAT = np.float32(0), np.float32(0.5), np.float32(CELLS), np.float32(2.0**112)


class Vectors(NamedTuple):
    """Decoder states and sentence vectors; of each one array is empty."""

    states: Floats
    """(S, Q, D) float32."""
    half_states: NDArray[np.uint16]
    """(S, Q, D), bits of float16."""
    text: Floats
    """(S, X) float32."""
    half_text: NDArray[np.uint16]
    """(S, X), bits of float16."""


def groups_of(cache: DecoderStateCache, components: Collection[str], n: int) -> list[Group]:
    """What writes the components of n episodes that are among these, in their order.

    Raises:
        DataError: the cache is damaged, or the tables of clips cannot be kept.
    """
    found: list[Group] = []
    if not {"decoder_state", "proposal_states", "text"}.isdisjoint(components):
        vectors = Vectors(*_by_precision(cache.states, 3), *_by_precision(cache.text, 2))
        found.append(Group(write_vectors, vectors))
    if not {"point_clips", "proposal_clips"}.isdisjoint(components):
        clips = clip_sums_of(cache)
        assert clips is not None
        sums = fixed(clips.sums, np.float32, 2)
        found.append(Group(write_clips, ClipSums(sums, *(fixed(of, np.int64, 1) for of in clips[1:]))))
    if not {"relevance", "span_evidence"}.isdisjoint(components):
        memory = Memory(cache, evidence_of(cache), n)
        found.append(Group(write_evidence, memory.rows, memory))
    if "votes" in components:
        found.append(Group(write_votes, fixed(_shares(cache), np.float32, 2)))
    return found


def _by_precision(array: Array | None, axes: int) -> tuple[Array, Array]:
    """An array as float32, and as the bits of float16: one of them is empty."""
    half = array.view(np.uint16) if array is not None and array.dtype == np.float16 else None
    return fixed(array if half is None else None, np.float32, axes), fixed(half, np.uint16, axes)


def _shares(cache: DecoderStateCache) -> Floats:
    """Share of each proposal in the sum of its model's scores; equal shares where all are 0: (S, Q)."""
    shares = np.zeros(cache.scores.shape, np.float32)
    present = np.arange(cache.scores.shape[1]) < np.asarray(cache.counts)[:, None]
    for model in range(len(cache.manifest["models"])):
        its = present & (cache.models == model)
        scores = np.where(its, cache.scores, 0)
        total = scores.sum(axis=1, keepdims=True)
        equal = its / np.maximum(its.sum(axis=1, keepdims=True), 1)
        shares += np.where(total > 0, scores / np.where(total > 0, total, 1), equal)
    return shares


@scalar
def copy_half(bits: NDArray[np.uint16], out: Floats) -> None:
    """Write a row (K,) of finite float16 numbers, given as bits: sign, exponent (5), fraction (10).

    As a float32 the same exponent means 2**112 times less.
    """
    for k in range(len(bits)):
        size = np.uint32(np.uint32(bits[k] & 0x7FFF) << 13).view(np.float32) * _HALF_FLOAT
        out[k] = -size if bits[k] >> 15 else size


@scalar
def copy_state(vectors: Vectors, sample: int, proposal: int, out: Floats) -> None:
    """Write the decoder state (D,) of a proposal."""
    if vectors.half_states.size > 0:
        copy_half(vectors.half_states[sample, proposal], out)
    else:
        copy(vectors.states[sample, proposal], out)


@scalar
def clip_at(sums: Floats, cell: int) -> int:
    """The boundary of clips nearest to a point, from 0 to the number of clips."""
    return int(np.rint(cell * ((len(sums) - 1) / CELLS)))


@scalar
def clip_mean(sums: Floats, low: int, high: int, out: Floats) -> None:
    """Mean of the clips (C,) from one boundary to another, cut to the video; 0 where there are none."""
    count = len(sums) - 1
    low, high = max(low, 0), min(high, count)
    scale = np.float32(count / max(high - low, 1))
    for k in range(sums.shape[1]):
        out[k] = (sums[high, k] - sums[low, k]) * scale


@scalar
def edge_means(sums: Floats, clip: int, out: Floats) -> None:
    """Means of the clips before and after a boundary of clips: (2 * C,)."""
    clip_mean(sums, clip - EDGE_CLIPS, clip, out)
    clip_mean(sums, clip, clip + EDGE_CLIPS, out[sums.shape[1] :])


@scalar
def observe_point(sums: Floats, position: Number, out: Floats) -> None:
    """Clip features at a candidate: `POINT_PARTS`."""
    clip = clip_at(sums, cell_of(position))
    edge_means(sums, clip, out)
    copy(sums[clip], out[2 * sums.shape[1] :])


@scalar
def observe_proposal_clips(sums: Floats, spans: Floats, count: int, out: Floats) -> None:
    """Clip features of the proposals (P, 2): `SPAN_PARTS`; zeros beyond `count`."""
    width = sums.shape[1]
    for p in range(len(spans)):
        if p < count:
            low, high = cell_of(spans[p, 0]), cell_of(spans[p, 1])
            start, end = clip_at(sums, low), clip_at(sums, high)
            edge_means(sums, start, out)
            edge_means(sums, end, out[2 * width :])
            scale = _CELLS / np.float32(max(high - low, 1))
            for k in range(width):
                out[4 * width + k] = (sums[end, k] - sums[start, k]) * scale
        else:
            for k in range(5 * width):
                out[k] = _ZERO
        out = out[5 * width :]


@scalar
def evidence_cells(cells: int, start: Number, end: Number) -> tuple[int, int]:
    """The boundaries of cells nearest to those of a span, at least one cell apart."""
    first, last = int(np.rint(start * cells)), int(np.rint(end * cells))
    first = min(first, cells - 1)
    return first, max(last, first + 1)


@scalar
def observe_relevance(points: Floats, first: int, last: int, out: Floats) -> None:
    """Mean relevance inside a span and on either side of its boundaries: `RELEVANCE`."""
    cells = len(points) - 1
    out[0] = (points[last, 2] - points[first, 2]) * np.float32(cells / (last - first))
    out[1], out[2] = points[first, 0], points[first, 1]
    out[3], out[4] = points[last, 0], points[last, 1]


@scalar
def observe_evidence(
    spans: NDArray[np.uint16], points: Floats, entropy: Number, first: int, last: int, out: Floats
) -> None:
    """What is known of a span under the distribution of all: `SPAN_EVIDENCE`."""
    steps = spans[span_row(len(points) - 1, first, last)]
    out[0] = -of_steps(steps[0])
    for k in range(1, len(steps)):
        out[k] = of_steps(steps[k])
    out[4], out[5], out[6] = points[first, 3], points[last, 4], entropy


@scalar
def observe_choices(
    evidence: EvidenceRows,
    row: int,
    tables: Tables,
    rules: Rules,
    episode: Record,
    mask: Bools,
    out: Floats,
) -> None:
    """`relevance` and `span_evidence` of the span that each choice leads to; zeros for impossible ones."""
    at, cells = rules.columns, evidence.cells[episode.sample]
    spans = evidence.spans[evidence.span_firsts[row] :]
    points = evidence.points[evidence.point_firsts[row] :][: cells + 1]
    for a in range(len(mask)):
        start, end = chosen_span(tables, rules, episode, a)
        first, last = evidence_cells(cells, start, end)
        if at[_RELEVANCE] >= 0:
            part = out[at[_RELEVANCE] + a * _RELEVANCE_WIDTH :]
            if mask[a]:
                observe_relevance(points, first, last, part)
            else:
                for k in range(_RELEVANCE_WIDTH):
                    part[k] = _ZERO
        if at[_SPAN_EVIDENCE] >= 0:
            part = out[at[_SPAN_EVIDENCE] + a * _EVIDENCE_WIDTH :]
            if mask[a]:
                observe_evidence(spans, points, evidence.entropies[row], first, last, part)
            else:
                for k in range(_EVIDENCE_WIDTH):
                    part[k] = _ZERO


@scalar
def nearness(one: Number, other: Number, clip: Number) -> Number:
    """Gaussian kernel of two positions: 1 where they are the same, with a standard deviation of one clip."""
    distance = (one - other) / clip
    return exponential(-_HALF * distance * distance)


@scalar
def observe_votes(
    shares: Floats, tables: Tables, rules: Rules, episode: Record, mask: Bools, out: Floats
) -> None:
    """What each model thinks of the span that each choice leads to: `VOTES`; zeros for impossible ones."""
    sample, width = episode.sample, _VOTES_WIDTH
    spans, models = tables.spans[sample], tables.models[sample]
    for a in range(len(mask)):
        part = out[a * rules.models * width : (a + 1) * rules.models * width]
        for k in range(len(part)):
            part[k] = _ZERO
        if mask[a]:
            start, end = chosen_span(tables, rules, episode, a)
            for p in range(tables.samples[sample].count - 1, -1, -1):  # backwards: the first of a model stays
                tiou, share = overlap(start, end, spans[p, 0], spans[p, 1]), shares[sample, p]
                votes = part[models[p] * width :]
                votes[0] = tiou
                votes[1] += share * tiou
                votes[2] += bonus(tiou, 0.5, share)
                votes[3] += bonus(tiou, 0.7, share)
                votes[4] += share * nearness(start, spans[p, 0], episode.clip_length)
                votes[5] += share * nearness(end, spans[p, 1], episode.clip_length)


# What Python calls, with arguments as `vmr_env.envs.kernel.advance` has them


@entry
def write_vectors(
    vectors: Vectors,
    tables: Tables,
    rules: Rules,
    episodes: Array,
    masks: Bools,
    orders: NDArray[np.uint8],
    observations: Floats,
    first: int,
    last: int,
) -> None:
    """Write `decoder_state`, `proposal_states` and `text`."""
    at = rules.columns
    for i in range(first, last):
        if orders[i] == SKIP:
            continue
        sample, out = episodes[i].sample, observations[i]
        if at[_DECODER_STATE] >= 0:
            copy_state(vectors, sample, episodes[i].source, out[at[_DECODER_STATE] :])
        if at[_PROPOSAL_STATES] >= 0:
            part = out[at[_PROPOSAL_STATES] :]
            for p in range(rules.proposals):  # a state that there is none of is 0 in the cache
                copy_state(vectors, sample, p, part)
                part = part[max(vectors.states.shape[2], vectors.half_states.shape[2]) :]
        if at[_TEXT] >= 0:
            if vectors.half_text.size > 0:
                copy_half(vectors.half_text[sample], out[at[_TEXT] :])
            else:
                copy(vectors.text[sample], out[at[_TEXT] :])


@entry
def write_clips(
    clips: ClipSums,
    tables: Tables,
    rules: Rules,
    episodes: Array,
    masks: Bools,
    orders: NDArray[np.uint8],
    observations: Floats,
    first: int,
    last: int,
) -> None:
    """Write `point_clips` and `proposal_clips`."""
    at = rules.columns
    for i in range(first, last):
        if orders[i] == SKIP:
            continue
        episode, out = episodes[i], observations[i]
        sample, sums_at = episode.sample, clips.firsts[episode.sample]
        sums = clips.sums[sums_at : sums_at + clips.counts[sample] + 1]
        if at[_POINT_CLIPS] >= 0:
            part = out[at[_POINT_CLIPS] :]
            for side in range(2):
                for k in range(rules.candidates):
                    position, _ = candidate(tables, rules, episode, side, k)
                    observe_point(sums, position, part)
                    part = part[len(POINT_PARTS) * sums.shape[1] :]
        if at[_PROPOSAL_CLIPS] >= 0:
            spans, count = tables.spans[sample, : rules.proposals], tables.samples[sample].count
            observe_proposal_clips(sums, spans, count, out[at[_PROPOSAL_CLIPS] :])


@entry
def write_evidence(
    evidence: EvidenceRows,
    tables: Tables,
    rules: Rules,
    episodes: Array,
    masks: Bools,
    orders: NDArray[np.uint8],
    observations: Floats,
    first: int,
    last: int,
) -> None:
    """Write `relevance` and `span_evidence`."""
    for i in range(first, last):
        if orders[i] != SKIP:
            row = episodes[i].sample if evidence.shared else i
            observe_choices(evidence, row, tables, rules, episodes[i], masks[i], observations[i])


@entry
def write_votes(
    shares: Floats,
    tables: Tables,
    rules: Rules,
    episodes: Array,
    masks: Bools,
    orders: NDArray[np.uint8],
    observations: Floats,
    first: int,
    last: int,
) -> None:
    """Write `votes`."""
    at = rules.columns[_VOTES]
    for i in range(first, last):
        if orders[i] != SKIP:
            observe_votes(shares, tables, rules, episodes[i], masks[i], observations[i, at:])
