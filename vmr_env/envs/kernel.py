"""A refinement episode: all that happens in one, described once, a number at a time.

An episode begins at a proposal. Its candidates are the positions where the boundaries of the current span can
go; they make some actions possible, and an observation shows what is known of each. An action is applied, the
new span is judged against the moments, and the change of its potential is the reward.

Numba compiles this module (`vmr_env.envs.compilation`); `advance` leads N episodes through all of it. Numbers
are float32 throughout: constants are, because a plain 0.5 would turn a result into float64.

Spans and positions are shares of the video, so 0 and 1 are its ends; offsets are in clips, and shifts are
offsets times the length of a clip. A span never leaves the video, and no move makes it shorter than one clip.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Array, Bools, Floats
from vmr_env.caches.boundary_features import CELLS, INTEGRALS, POINT_FEATURES, SPAN_FEATURES
from vmr_env.caches.clip_sums import EDGE_CLIPS
from vmr_env.caches.evidence import RELEVANCE, SPAN_EVIDENCE
from vmr_env.envs.compilation import entry, scalar
from vmr_env.envs.timelines import (
    Timelines,
    Workspace,
    build_timeline,
    cell_of,
    exponential,
    inside_features,
    length_of,
    log_length,
    span_features,
)
from vmr_env.metrics import spans

Integers = NDArray[np.int64]
Number = Any
"""A float32; NumPy's types cannot say that operators keep it."""
Record = Any
"""One `EPISODE`."""

EPISODE = np.dtype(
    (
        np.record,
        np.dtype(
            [
                ("sample", np.int64),  # row of the cache
                ("source", np.int64),  # number of the proposal that the span came from
                ("step", np.int64),  # steps taken
                ("start", np.float32),  # of the current span
                ("end", np.float32),
                ("clip_length", np.float32),  # as a share of the video
                ("tiou", np.float32),  # highest of the span with any moment
                ("potential", np.float32),
            ]
        ),
    )
)
"""The state of an episode."""

SKIP, LOOK, BEGIN, STEP = range(4)
"""Orders to an episode: nothing, look again (rules may be new), begin where the record says, take a step."""

LISTED, PAIRED, CONTINUOUS = range(3)
"""Forms of actions: the number of a choice; numbers of two offsets; two shares of the longest offset."""

MOVE, SWITCH, STOP = range(3)
"""Kinds of choices."""

TIOU, GIOU, STEPS, TIOU_AND_STEPS = range(4)
"""Potentials, see `vmr_env.envs.rewards`."""

COMPONENTS = (
    *("remaining", "video", "span", "source", "overlaps", "positions", "points", "whole", "inside"),
    *("proposals", "models", "decoder_state", "text", "point_clips", "proposal_clips", "action_mask"),
    *("proposal_states", "relevance", "span_evidence", "votes"),
)
"""Components of an observation, see `vmr_env.envs.observations`."""

_REMAINING, _VIDEO, _SPAN, _SOURCE, _OVERLAPS, _POSITIONS, _POINTS, _WHOLE, _INSIDE = range(9)
_PROPOSALS, _MODELS, _DECODER_STATE, _TEXT, _POINT_CLIPS, _PROPOSAL_CLIPS, _ACTION_MASK = range(9, 16)
_PROPOSAL_STATES, _RELEVANCE, _SPAN_EVIDENCE, _VOTES = range(16, 20)

VOTES = ("tIoU with the first", "tIoU", "hits at 0.5", "hits at 0.7", "start density", "end density")
"""What a model thinks of a span: its tIoU with the model's first proposal; and over all of its proposals,
each weighted by its share of the model's scores, the tIoU, whether it is at least 0.5 and 0.7, and how near
their starts lie to the span's start, and their ends to its end: a Gaussian kernel, 1 at no distance, with a
standard deviation of one clip."""


TINY = np.float32(1e-6)
"""Below any difference that data sets annotate, above float32 rounding."""

_ZERO, _ONE = np.float32(0), np.float32(1)
_ALMOST_ONE = _ONE - TINY
_EMPTY = np.float32(1e-9)
_HALF = np.float32(0.5)
_BONUSES = tuple(np.float32(bonus) for bonus in (0.1, 0.2, 0.3))
_CELLS = np.float32(CELLS)
_INTEGRALS, _POINT_WIDTH, _SPAN_WIDTH = INTEGRALS.start, len(POINT_FEATURES), len(SPAN_FEATURES)
_RELEVANCE_WIDTH, _EVIDENCE_WIDTH, _VOTES_WIDTH = len(RELEVANCE), len(SPAN_EVIDENCE), len(VOTES)
_HALF_FLOAT = np.float32(2.0**112)

_reaches = scalar(spans.reaches)


class Tables(NamedTuple):
    """What is frozen of all S samples: a cache's arrays and derived tables; empty where it has none.

    Arrays are read-only and C-contiguous, always of these types, so that they are compiled for once.
    """

    spans: Floats
    """(S, Q, 2) float32."""
    scores: Floats
    """(S, Q) float32."""
    counts: NDArray[np.int32]
    """(S,), proposals that there are."""
    models: NDArray[np.uint8]
    """(S, Q)."""
    durations: Floats
    """(S,) float32, seconds."""
    moments: Floats
    """(T, 2) float32; those of a sample from its offset to the next."""
    moment_offsets: Integers
    """(S + 1,)."""
    saliency: Floats
    """(V,) float32; values of a sample from its offset to the next."""
    saliency_offsets: Integers
    """(S + 1,)."""
    states: Floats
    """(S, Q, D) float32, decoder states."""
    half_states: NDArray[np.uint16]
    """(S, Q, D), decoder states that the cache has in float16: their bits."""
    text: Floats
    """(S, X) float32."""
    half_text: NDArray[np.uint16]
    """(S, X), bits of float16."""
    clip_sums: Floats
    """(K, C) float32, see `vmr_env.caches.clip_sums`."""
    clip_firsts: Integers
    """(S,)."""
    clip_counts: Integers
    """(S,)."""
    score_shares: Floats
    """(S, Q) float32, share of each proposal in the scores of its model; empty where no votes are shown."""
    evidence: NDArray[np.uint16]
    """(K, 4), bits of float16; this and the following as in `vmr_env.caches.evidence.EvidenceTables`."""
    evidence_points: Floats
    """(M, 5) float32."""
    entropies: Floats
    """(S,) float32."""
    evidence_cells: Integers
    """(S,)."""
    evidence_firsts: Integers
    """(S,), row where each sample's spans begin."""
    evidence_point_firsts: Integers
    """(S,), row where each sample's boundaries begin."""


class Rules(NamedTuple):
    """What all episodes of an environment have in common."""

    form: int
    """Of the actions: LISTED, PAIRED or CONTINUOUS."""
    horizon: int
    """Steps of an episode."""
    proposals: int
    """P, proposals that take part."""
    models: int
    """Models that the proposals come from."""
    potential: int
    """TIOU, GIOU, STEPS or TIOU_AND_STEPS."""
    moves: int
    """1 where moves are free, else 0."""
    switches: int
    """1 where switches are free, else 0."""
    start_k: int
    """An episode starts at one of so many best proposals."""
    clip_seconds: Number
    """Length of a clip."""
    longest: Number
    """The longest offset."""
    offsets: Floats
    """(H, K or fewer) float32, where the candidates of a boundary are at each step, the last row at all later
    ones; further candidates are the boundaries of the first proposals."""
    choices: NDArray[np.uint32]
    """(A, 3), of each entry of the mask: a MOVE and its offsets' numbers for start and end, a SWITCH and the
    proposal's number, or STOP. Unsigned: Numba tests signed indices for negative ones."""
    samples: Integers
    """Rows of the cache to draw from; empty for all."""
    columns: Integers
    """(`COMPONENTS`,), where each component begins in a flat observation; -1 where it is left out."""


class Candidates(NamedTuple):
    """Where the boundaries of one span can go; memory that is used for one episode after the other."""

    positions: Floats
    """(2, K) float32, of start and end; where a boundary is if it cannot go there while the other stays."""
    reached: Bools
    """(2, K), whether it can."""


# Judging


@scalar
def overlap(start: Number, end: Number, low: Number, high: Number) -> Number:
    """tIoU of two spans; 0 where both are empty, or where one ends before it starts."""
    common = max(min(high, end) - max(low, start), _ZERO)
    union = (high - low) + (end - start) - common
    return common / max(union, _EMPTY)  # where the union is not positive, nothing is common


@scalar
def generalised_overlap(start: Number, end: Number, low: Number, high: Number) -> Number:
    """TIoU - (hull - union) / hull, the hull is the shortest span around both (Rezatofighi et al., 2019)."""
    common = max(min(high, end) - max(low, start), _ZERO)
    union = (high - low) + (end - start) - common
    hull = max(end, high) - min(start, low)
    return common / union - (hull - union) / hull


@scalar
def best_overlap(start: Number, end: Number, moments: Floats) -> Number:
    """Highest tIoU with any of the moments (M, 2)."""
    best = _ZERO
    for m in range(len(moments)):
        best = max(best, overlap(start, end, moments[m, 0], moments[m, 1]))
    return best


@scalar
def bonus(tiou: Number, threshold: float, earned: Number) -> Number:
    """What is earned from a threshold on."""
    return earned if _reaches(tiou, threshold) else _ZERO


@scalar
def potential_of(kind: int, tiou: Number, start: Number, end: Number, moments: Floats) -> Number:
    """A potential of a span whose highest tIoU with the moments (M, 2) is known."""
    value = tiou
    if kind == GIOU:
        value = -_ONE
        for m in range(len(moments)):
            value = max(value, generalised_overlap(start, end, moments[m, 0], moments[m, 1]))
    elif kind == STEPS:
        value = bonus(tiou, 0.5, _HALF) + bonus(tiou, 0.7, _HALF)
    elif kind == TIOU_AND_STEPS:
        value += bonus(tiou, 0.3, _BONUSES[0]) + bonus(tiou, 0.5, _BONUSES[1]) + bonus(tiou, 0.7, _BONUSES[2])
    return value


@scalar
def judge(tables: Tables, rules: Rules, episode: Record) -> None:
    """Compare the current span with the moments."""
    first, last = tables.moment_offsets[episode.sample], tables.moment_offsets[episode.sample + 1]
    moments = tables.moments[first:last]
    episode.tiou = best_overlap(episode.start, episode.end, moments)
    episode.potential = potential_of(rules.potential, episode.tiou, episode.start, episode.end, moments)


# Beginning, and acting


@scalar
def begin(tables: Tables, rules: Rules, episode: Record) -> None:
    """Start at the proposal `source` of `sample`."""
    episode.start = tables.spans[episode.sample, episode.source, 0]
    episode.end = tables.spans[episode.sample, episode.source, 1]
    episode.clip_length = rules.clip_seconds / tables.durations[episode.sample]
    episode.step = 0


@scalar
def least_width(episode: Record) -> Number:
    """What a move must leave: one clip; a span that is already shorter may only grow."""
    return min(episode.end - episode.start, episode.clip_length) - TINY


@scalar
def start_candidate(episode: Record, shift: Number) -> tuple[Number, bool]:
    """Where the start goes by a shift while the end stays, and whether it can; else where it is."""
    moved = episode.start + shift
    if shift < _ZERO:
        return max(moved, _ZERO), episode.start > TINY
    if shift > _ZERO and moved > episode.end - least_width(episode):
        return episode.start, False
    return moved, True


@scalar
def end_candidate(episode: Record, shift: Number) -> tuple[Number, bool]:
    """The same for the end while the start stays."""
    moved = episode.end + shift
    if shift > _ZERO:
        return min(moved, _ONE), episode.end < _ALMOST_ONE
    if shift < _ZERO and moved < episode.start + least_width(episode):
        return episode.end, False
    return moved, True


@scalar
def shift_of(rules: Rules, episode: Record, number: int) -> Number:
    """The shift that the offset of that number is at the episode's step."""
    return rules.offsets[min(episode.step, len(rules.offsets) - 1), number] * episode.clip_length


@scalar
def borrowed(tables: Tables, episode: Record, proposal: int, side: int, here: Number) -> tuple[Number, bool]:
    """The start (side 0) or end (1) of a proposal, and whether there is one elsewhere; else where it is."""
    if proposal >= tables.counts[episode.sample]:
        return here, False
    there = tables.spans[episode.sample, proposal, side]
    return there, abs(there - here) > TINY


@scalar
def start_at(tables: Tables, rules: Rules, episode: Record, number: int) -> tuple[Number, bool]:
    """The candidate of that number for the start, and whether it can go there."""
    offsets = rules.offsets.shape[1]
    if number < offsets:
        return start_candidate(episode, shift_of(rules, episode, number))
    return borrowed(tables, episode, number - offsets, 0, episode.start)


@scalar
def end_at(tables: Tables, rules: Rules, episode: Record, number: int) -> tuple[Number, bool]:
    """The same for the end."""
    offsets = rules.offsets.shape[1]
    if number < offsets:
        return end_candidate(episode, shift_of(rules, episode, number))
    return borrowed(tables, episode, number - offsets, 1, episode.end)


@scalar
def find_candidates(tables: Tables, rules: Rules, episode: Record, candidates: Candidates) -> None:
    """Where each boundary can go, by an offset while the other stays."""
    positions, reached = candidates
    for k in range(positions.shape[1]):
        positions[0, k], reached[0, k] = start_at(tables, rules, episode, k)
        positions[1, k], reached[1, k] = end_at(tables, rules, episode, k)


@scalar
def find_possible(tables: Tables, rules: Rules, episode: Record, candidates: Candidates, mask: Bools) -> None:
    """Which choices (A,) are possible: boundaries can go there alone and together, or there is another span.

    Conditions are joined by `&`: branches that no processor foresees cost more than they save.
    """
    positions, reached = candidates
    start, end, least = episode.start, episode.end, least_width(episode)
    moves, switches = rules.moves == 1, rules.switches == 1
    proposals = min(tables.counts[episode.sample], rules.proposals)
    for a in range(len(mask)):
        kind, first, second = rules.choices[a, 0], rules.choices[a, 1], rules.choices[a, 2]
        if kind == MOVE:
            width = positions[1, second] - positions[0, first]
            mask[a] = moves & reached[0, first] & reached[1, second] & (width >= least)
        elif kind == SWITCH:
            low, high = tables.spans[episode.sample, first, 0], tables.spans[episode.sample, first, 1]
            mask[a] = switches & (first < proposals) & ((low != start) | (high != end))
        else:
            mask[a] = True


@scalar
def chosen_span(tables: Tables, rules: Rules, episode: Record, choice: int) -> tuple[Number, Number]:
    """The span to which a choice leads."""
    kind, first, second = rules.choices[choice, 0], rules.choices[choice, 1], rules.choices[choice, 2]
    start, end = episode.start, episode.end
    if kind == SWITCH:
        start, end = tables.spans[episode.sample, first, 0], tables.spans[episode.sample, first, 1]
    elif kind == MOVE:
        start, _ = start_at(tables, rules, episode, first)
        end, _ = end_at(tables, rules, episode, second)
    return start, end


@scalar
def apply(
    tables: Tables, rules: Rules, episode: Record, mask: Bools, numbers: Integers, shares: Floats
) -> bool:
    """Take an action and its step; an impossible one changes nothing else.

    Args:
        tables: see there.
        rules: see there.
        episode: the current state, changed.
        mask: (A,), which choices are possible.
        numbers: (2,), a choice (LISTED, the first number alone) or two offsets (PAIRED).
        shares: (2,), in [-1, 1], shifts of start and end as shares of the longest (CONTINUOUS).

    Returns:
        Whether the episode ended.
    """
    start, end, stopped = episode.start, episode.end, False
    if rules.form == LISTED:
        choice = numbers[0]
        if mask[choice]:
            start, end = chosen_span(tables, rules, episode, choice)
            stopped = rules.choices[choice, 0] == STOP
            if rules.choices[choice, 0] == SWITCH:
                episode.source = rules.choices[choice, 1]
    else:
        if rules.form == PAIRED:
            start, _ = start_at(tables, rules, episode, numbers[0])
            end, _ = end_at(tables, rules, episode, numbers[1])
        else:
            unit = rules.longest * episode.clip_length
            start = min(max(start + shares[0] * unit, _ZERO), _ONE)
            end = min(max(end + shares[1] * unit, _ZERO), _ONE)
        if end - start < least_width(episode):
            start, end = episode.start, episode.end
    episode.start, episode.end = start, end
    episode.step += 1
    return stopped or episode.step >= rules.horizon


# Observing


@scalar
def copy(row: Floats, out: Floats) -> None:
    """Write a row of a table (K,) into an observation."""
    for k in range(len(row)):
        out[k] = row[k]


@scalar
def copy_half(bits: NDArray[np.uint16], out: Floats) -> None:
    """Write a row (K,) of finite float16 numbers, given as bits: sign, exponent (5), fraction (10).

    As a float32 the same exponent means 2**112 times less.
    """
    for k in range(len(bits)):
        size = np.uint32(np.uint32(bits[k] & 0x7FFF) << 13).view(np.float32) * _HALF_FLOAT
        out[k] = -size if bits[k] >> 15 else size


@scalar
def copy_state(tables: Tables, sample: int, proposal: int, out: Floats) -> None:
    """Write the decoder state (D,) of a proposal."""
    if tables.half_states.size > 0:
        copy_half(tables.half_states[sample, proposal], out)
    else:
        copy(tables.states[sample, proposal], out)


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
def observe_point_clips(sums: Floats, positions: Floats, out: Floats) -> None:
    """Clip features at every candidate: `POINT_PARTS`."""
    width = sums.shape[1]
    for side in range(2):
        for k in range(positions.shape[1]):
            clip = clip_at(sums, cell_of(positions[side, k]))
            edge_means(sums, clip, out)
            copy(sums[clip], out[2 * width :])
            out = out[3 * width :]


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
def observe_models(models: NDArray[np.uint8], count: int, among: int, out: Floats) -> None:
    """Which of the models each proposal (P,) came from, one-hot; zeros beyond `count`."""
    for p in range(len(models)):
        for m in range(among):
            out[p * among + m] = _ONE if p < count and models[p] == m else _ZERO


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
def observe_evidence(tables: Tables, sample: int, points: Floats, first: int, last: int, out: Floats) -> None:
    """What is known of a span under the distribution of all: `SPAN_EVIDENCE`."""
    before = first * (2 * (len(points) - 1) - first + 1) // 2  # spans that start earlier
    copy_half(tables.evidence[tables.evidence_firsts[sample] + before + last - first - 1], out)
    out[4], out[5], out[6] = points[first, 3], points[last, 4], tables.entropies[sample]


@scalar
def observe_choices(tables: Tables, rules: Rules, episode: Record, mask: Bools, out: Floats) -> None:
    """`relevance` and `span_evidence` of the span that each choice leads to; zeros for impossible ones."""
    at, sample = rules.columns, episode.sample
    cells, begin_at = tables.evidence_cells[sample], tables.evidence_point_firsts[sample]
    points = tables.evidence_points[begin_at : begin_at + cells + 1]
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
                observe_evidence(tables, sample, points, first, last, part)
            else:
                for k in range(_EVIDENCE_WIDTH):
                    part[k] = _ZERO


@scalar
def nearness(one: Number, other: Number, clip: Number) -> Number:
    """Gaussian kernel of two positions: 1 where they are the same, with a standard deviation of one clip."""
    distance = (one - other) / clip
    return exponential(-_HALF * distance * distance)


@scalar
def observe_votes(tables: Tables, rules: Rules, episode: Record, mask: Bools, out: Floats) -> None:
    """What each model thinks of the span that each choice leads to: `VOTES`; zeros for impossible ones."""
    sample, width = episode.sample, _VOTES_WIDTH
    spans, models = tables.spans[sample], tables.models[sample]
    for a in range(len(mask)):
        part = out[a * rules.models * width : (a + 1) * rules.models * width]
        for k in range(len(part)):
            part[k] = _ZERO
        if mask[a]:
            start, end = chosen_span(tables, rules, episode, a)
            for p in range(tables.counts[sample] - 1, -1, -1):  # backwards: the first of a model stays
                tiou, share = overlap(start, end, spans[p, 0], spans[p, 1]), tables.score_shares[sample, p]
                votes = part[models[p] * width :]
                votes[0] = tiou
                votes[1] += share * tiou
                votes[2] += bonus(tiou, 0.5, share)
                votes[3] += bonus(tiou, 0.7, share)
                votes[4] += share * nearness(start, spans[p, 0], episode.clip_length)
                votes[5] += share * nearness(end, spans[p, 1], episode.clip_length)


@scalar
def observe(
    tables: Tables,
    rules: Rules,
    timelines: Timelines,
    row: int,
    episode: Record,
    candidates: Candidates,
    mask: Bools,
    out: Floats,
) -> None:
    """Write the flat observation: every component that has a column; `row` is that of the timeline."""
    at, sample, start, end = rules.columns, episode.sample, episode.start, episode.end
    positions = candidates.positions
    points, proposals, count = (
        timelines.points[row],
        tables.spans[sample, : rules.proposals],
        tables.counts[sample],
    )
    if at[_REMAINING] >= 0:
        out[at[_REMAINING]] = max(rules.horizon - episode.step, 0) / rules.horizon
    if at[_VIDEO] >= 0:
        out[at[_VIDEO]] = log_length(_ONE / episode.clip_length)
    if at[_SPAN] >= 0:
        part = out[at[_SPAN] :]
        part[0], part[1], part[2] = start, end, end - start
        part[3] = log_length((end - start) / episode.clip_length)
    if at[_SOURCE] >= 0:
        part = out[at[_SOURCE] :]
        for p in range(len(proposals)):
            part[p] = _ONE if p == episode.source else _ZERO
    if at[_OVERLAPS] >= 0:
        part = out[at[_OVERLAPS] :]
        for p in range(len(proposals)):
            part[p] = overlap(start, end, proposals[p, 0], proposals[p, 1])
    if at[_POSITIONS] >= 0:
        part = out[at[_POSITIONS] :]
        for k in range(positions.shape[1]):
            part[k], part[positions.shape[1] + k] = positions[0, k], positions[1, k]
    if at[_POINTS] >= 0:
        part = out[at[_POINTS] :]
        for side in range(2):
            for k in range(positions.shape[1]):
                copy(points[cell_of(positions[side, k])], part)
                part = part[_POINT_WIDTH:]
    if at[_WHOLE] >= 0:
        copy(points[CELLS, _INTEGRALS:], out[at[_WHOLE] :])
    if at[_INSIDE] >= 0:
        first, last, whole = points[cell_of(start)], points[cell_of(end)], points[CELLS, _INTEGRALS:]
        inside_features(first, last, whole, end - start, out[at[_INSIDE] :])
    if at[_PROPOSALS] >= 0:
        copy(timelines.proposals[row, : rules.proposals * _SPAN_WIDTH], out[at[_PROPOSALS] :])
    if at[_MODELS] >= 0:
        observe_models(tables.models[sample, : rules.proposals], count, rules.models, out[at[_MODELS] :])
    if at[_DECODER_STATE] >= 0:
        copy_state(tables, sample, episode.source, out[at[_DECODER_STATE] :])
    if at[_PROPOSAL_STATES] >= 0:
        part = out[at[_PROPOSAL_STATES] :]
        for p in range(len(proposals)):  # a state that there is none of is 0 in the cache
            copy_state(tables, sample, p, part)
            part = part[max(tables.states.shape[2], tables.half_states.shape[2]) :]
    if at[_TEXT] >= 0:
        if tables.half_text.size > 0:
            copy_half(tables.half_text[sample], out[at[_TEXT] :])
        else:
            copy(tables.text[sample], out[at[_TEXT] :])
    if at[_POINT_CLIPS] >= 0 or at[_PROPOSAL_CLIPS] >= 0:
        sums_at = tables.clip_firsts[sample]
        sums = tables.clip_sums[sums_at : sums_at + tables.clip_counts[sample] + 1]
        if at[_POINT_CLIPS] >= 0:
            observe_point_clips(sums, positions, out[at[_POINT_CLIPS] :])
        if at[_PROPOSAL_CLIPS] >= 0:
            observe_proposal_clips(sums, proposals, count, out[at[_PROPOSAL_CLIPS] :])
    if at[_RELEVANCE] >= 0 or at[_SPAN_EVIDENCE] >= 0:
        observe_choices(tables, rules, episode, mask, out)
    if at[_VOTES] >= 0:
        observe_votes(tables, rules, episode, mask, out[at[_VOTES] :])
    if at[_ACTION_MASK] >= 0:
        part = out[at[_ACTION_MASK] :]
        for a in range(len(mask)):
            part[a] = _ONE if mask[a] else _ZERO


# What Python calls


@entry
def find_timelines(
    tables: Tables,
    clip_seconds: Number,
    samples: Integers,
    rows: Integers,
    timelines: Timelines,
    work: Workspace,
) -> None:
    """Write the timelines of samples (K,) to rows (K,)."""
    for i in range(len(samples)):
        sample = samples[i]
        first, last = tables.saliency_offsets[sample], tables.saliency_offsets[sample + 1]
        build_timeline(
            tables.spans[sample],
            tables.scores[sample],
            tables.counts[sample],
            tables.models[sample],
            clip_seconds / tables.durations[sample],
            tables.saliency[first:last],
            work,
            timelines.points[rows[i]],
            timelines.proposals[rows[i]],
        )


@entry
def advance(
    tables: Tables,
    rules: Rules,
    timelines: Timelines,
    episodes: Array,
    candidates: Candidates,
    masks: Bools,
    orders: NDArray[np.uint8],
    numbers: Integers,
    shares: Floats,
    observations: Floats,
    rewards: NDArray[np.float64],
    ended: Bools,
    first: int,
    last: int,
) -> None:
    """Carry out the orders to the episodes from `first` to before `last`.

    Args:
        tables: see there.
        rules: see there.
        timelines: of the samples or the episodes.
        episodes: (N,) EPISODE, changed.
        candidates: memory for them; of its own for every thread.
        masks: (N, A), which choices are possible, changed.
        orders: (N,), SKIP, LOOK, BEGIN or STEP.
        numbers: (N, 2), see `apply`.
        shares: (N, 2) float32, see `apply`.
        observations: (N, width) float32, written; or (0, width), to write none.
        rewards: (N,), written; 0 but for steps.
        ended: (N,), written; False but for steps.
        first: the first of them.
        last: after the last.
    """
    for i in range(first, last):
        if orders[i] == SKIP:
            continue
        episode, mask = episodes[i], masks[i]
        before, steps = episode.potential, orders[i] == STEP
        ended[i] = steps and apply(tables, rules, episode, mask, numbers[i], shares[i])
        row = episode.sample if timelines.shared else i
        if orders[i] == BEGIN:
            begin(tables, rules, episode)
        judge(tables, rules, episode)
        rewards[i] = episode.potential - before if steps else _ZERO
        find_candidates(tables, rules, episode, candidates)
        find_possible(tables, rules, episode, candidates, mask)
        if len(observations) > 0:
            observe(tables, rules, timelines, row, episode, candidates, mask, observations[i])


@entry
def draw(
    counts: NDArray[np.int32],
    rules: Rules,
    episodes: Array,
    orders: NDArray[np.uint8],
    streams: NDArray[np.uint64],
) -> None:
    """Choose sample and proposal of the episodes that begin, each by the next number of its own stream.

    SplitMix64 (Steele, Lea and Flood, 2014): a slot draws the same numbers whether it stands alone or among
    thousands.

    Args:
        counts: (S,), as `Tables` has them.
        rules: see there.
        episodes: (N,) EPISODE, changed.
        orders: (N,).
        streams: (N,), changed.
    """
    n = np.uint64(len(rules.samples) if len(rules.samples) > 0 else len(counts))
    for i in range(len(episodes)):
        if orders[i] == BEGIN:
            streams[i] += np.uint64(0x9E3779B97F4A7C15)
            z = streams[i]
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
            sample = np.int64(z % n)
            if len(rules.samples) > 0:
                sample = rules.samples[sample]
            starts = min(counts[sample], rules.proposals, rules.start_k)
            episodes[i].sample = sample
            episodes[i].source = np.int64(z // n % np.uint64(starts))


@entry
def tell(
    durations: Floats,
    episodes: Array,
    samples: Integers,
    sources: Integers,
    tiou: NDArray[np.float64],
    seconds: NDArray[np.float64],
) -> None:
    """Write what infos tell of every episode: all (N,), but spans in seconds (N, 2)."""
    for i in range(len(episodes)):
        episode = episodes[i]
        samples[i], sources[i], tiou[i] = episode.sample, episode.source, episode.tiou
        duration = np.float64(durations[episode.sample])
        seconds[i, 0], seconds[i, 1] = episode.start * duration, episode.end * duration


@entry
def gains(tables: Tables, rules: Rules, episodes: Array, masks: Bools, out: Floats) -> None:
    """Change of tIoU by each choice (N, A) float32, written; 0 where it is not possible."""
    for i in range(len(episodes)):
        episode = episodes[i]
        first, last = tables.moment_offsets[episode.sample], tables.moment_offsets[episode.sample + 1]
        for a in range(masks.shape[1]):
            out[i, a] = _ZERO
            if masks[i, a]:
                start, end = chosen_span(tables, rules, episode, a)
                out[i, a] = best_overlap(start, end, tables.moments[first:last]) - episode.tiou


@entry
def potentials(kind: int, spans: Floats, moments: Floats, out: Floats) -> None:
    """A potential of each of the spans (K, 2) with its own moments (K, M, 2): (K,) float32, written."""
    for k in range(len(spans)):
        start, end = spans[k, 0], spans[k, 1]
        out[k] = potential_of(kind, best_overlap(start, end, moments[k]), start, end, moments[k])


@entry
def describe_moves(
    points: Floats, positions: Floats, whole: Floats, video: Floats, moves: Integers, out: Floats
) -> None:
    """Features of the spans that moves lead to, from components of B observations.

    Args:
        points: (B, 2 K, `POINT_FEATURES`), those of the candidates of start and end.
        positions: (B, 2 K), where they are.
        whole: (B, `CURVES`).
        video: (B, 1).
        moves: (M, 2), numbers of the candidates of each move's start and end, from 0 to 2 K.
        out: (B, M, those of `SPAN_FEATURES` before the score) float32, written.
    """
    for i in range(len(points)):
        clip = _ONE / length_of(video[i, 0])
        for m in range(len(moves)):
            start, end = moves[m, 0], moves[m, 1]
            span_features(
                points[i, start],
                points[i, end],
                whole[i],
                positions[i, start],
                positions[i, end],
                clip,
                out[i, m],
            )
