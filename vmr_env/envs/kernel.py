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
from vmr_env.envs.compilation import entry, prefetch, scalar
from vmr_env.envs.timelines import (
    LINE,
    Timelines,
    cell_of,
    inside_features,
    length_of,
    log_length,
    span_features,
)
from vmr_env.metrics import spans

Integers = NDArray[np.int64]
Number = Any
"""A float32; NumPy's types cannot say that operators keep it."""
Whole = int | np.int64
Record = Any
"""One `EPISODE`."""


def _record(fields: list[tuple[str, Any]]) -> np.dtype[Any]:
    """A type of records whose fields are attributes, compiled or not."""
    return np.dtype((np.record, np.dtype(fields)))


SAMPLE = _record(
    [
        ("count", np.int64),  # proposals that there are
        ("duration", np.float32),  # seconds
        ("clip_length", np.float32),  # as a share of the video
        ("log_length", np.float32),  # of the video in clips
        ("first_moment", np.int64),
        ("last_moment", np.int64),  # the one after the last
        ("first_saliency", np.int64),
        ("last_saliency", np.int64),
    ]
)
"""What is frozen of a sample, a number each."""

EPISODE = _record(
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
)
"""The state of an episode."""

SKIP, LOOK, BEGIN, STEP = range(4)
"""Orders to an episode: nothing, look again (rules may be new), begin where the record says, take a step."""

START, END = np.int64(0), np.int64(1)
"""Sides of a span; NumPy's numbers, as Numba compiles functions anew for each plain number that they get."""

LISTED, PAIRED, CONTINUOUS = range(3)
"""Forms of actions: the number of a choice (first moves, then switches, then to stop); numbers of two
offsets; two shares of the longest offset."""

TIOU, GIOU, STEPS, TIOU_AND_STEPS = range(4)
"""Potentials, see `vmr_env.envs.rewards`."""

COMPONENTS = (
    *("remaining", "video", "span", "source", "overlaps", "positions", "points", "whole", "inside"),
    *("proposals", "models", "action_mask"),
    *("decoder_state", "proposal_states", "text", "point_clips", "proposal_clips", "relevance"),
    *("span_evidence", "votes"),
)
"""Components of an observation, see `vmr_env.envs.observations`."""

_REMAINING, _VIDEO, _SPAN, _SOURCE, _OVERLAPS, _POSITIONS, _POINTS, _WHOLE, _INSIDE = range(9)
_PROPOSALS, _MODELS, _ACTION_MASK = range(9, 12)

TINY = np.float32(1e-6)
"""Below any difference that data sets annotate, above float32 rounding."""

_ZERO, _ONE, _NAN = np.float32(0), np.float32(1), np.float32(np.nan)
_ALMOST_ONE = _ONE - TINY
_EMPTY = np.float32(1e-9)
_HALF = np.float32(0.5)
_BONUSES = tuple(np.float32(bonus) for bonus in (0.1, 0.2, 0.3))
_INTEGRALS, _POINT_WIDTH, _SPAN_WIDTH = INTEGRALS.start, len(POINT_FEATURES), len(SPAN_FEATURES)

_reaches = scalar(spans.reaches)


class Tables(NamedTuple):
    """What is frozen of all S samples. Arrays are C-contiguous, so that they are compiled for once."""

    samples: Array
    """(S,) `SAMPLE`."""
    spans: Floats
    """(S, Q, 2) float32."""
    models: NDArray[np.uint8]
    """(S, Q)."""
    moments: Floats
    """(T, 2) float32, those of a sample one after the other."""


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
    candidates: int
    """K, of one boundary."""
    potential: int
    """TIOU, GIOU, STEPS or TIOU_AND_STEPS."""
    moves_free: int
    """1 where they are, else 0."""
    switches_free: int
    """1 where they are, else 0."""
    switches: int
    """Switches among the choices, to the first proposals."""
    start_k: int
    """An episode starts at one of so many best proposals."""
    longest: Number
    """The longest offset."""
    offsets: Floats
    """(H, K or fewer) float32, where the candidates of a boundary are at each step, the last row at all later
    ones; further candidates are the boundaries of the first proposals."""
    moves: NDArray[np.uint32]
    """(2, moves), numbers of the candidates of start and end that each move goes to. Unsigned: Numba tests
    signed indices for negative ones."""
    columns: Integers
    """(`COMPONENTS`,), where each component begins in a flat observation; -1 where it is left out."""


class Candidates(NamedTuple):
    """Where the boundaries of one span can go; memory for a block of episodes has BLOCK of each."""

    positions: Floats
    """(2, K) float32, of start and end; where a boundary is if it cannot go there while the other stays."""
    free: Floats
    """(2, K) float32, the same, but NaN where it cannot."""


BLOCK = 8
"""Episodes that are led on before they are observed; meanwhile what observations show is fetched."""


def candidates_of_a_block(k: int) -> Candidates:
    """Memory for the K candidates of each side."""
    return Candidates(np.zeros((BLOCK, 2, k), np.float32), np.zeros((BLOCK, 2, k), np.float32))


@scalar
def one_of(block: Candidates, number: int) -> Candidates:
    """The candidates of one episode of a block."""
    return Candidates(block.positions[number], block.free[number])


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
    sample = tables.samples[episode.sample]
    moments = tables.moments[sample.first_moment : sample.last_moment]
    episode.tiou = best_overlap(episode.start, episode.end, moments)
    episode.potential = potential_of(rules.potential, episode.tiou, episode.start, episode.end, moments)


# Beginning, and acting


@scalar
def begin(tables: Tables, episode: Record) -> None:
    """Start at the proposal `source` of `sample`."""
    episode.start = tables.spans[episode.sample, episode.source, 0]
    episode.end = tables.spans[episode.sample, episode.source, 1]
    episode.clip_length = tables.samples[episode.sample].clip_length
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
def shift_of(rules: Rules, episode: Record, number: Whole) -> Number:
    """The shift that the offset of that number is at the episode's step."""
    return rules.offsets[min(episode.step, len(rules.offsets) - 1), number] * episode.clip_length


@scalar
def borrowed(tables: Tables, episode: Record, proposal: Whole, side: Whole) -> tuple[Number, bool]:
    """The start or end of a proposal, and whether there is one elsewhere; else where it is."""
    here = episode.start if side == START else episode.end
    if proposal >= tables.samples[episode.sample].count:
        return here, False
    there = tables.spans[episode.sample, proposal, side]
    return there, abs(there - here) > TINY


@scalar
def candidate(
    tables: Tables, rules: Rules, episode: Record, side: Whole, number: Whole
) -> tuple[Number, bool]:
    """The candidate of that number for one side, and whether it can go there."""
    offsets = rules.offsets.shape[1]
    if number >= offsets:
        return borrowed(tables, episode, number - offsets, side)
    if side == START:
        return start_candidate(episode, shift_of(rules, episode, number))
    return end_candidate(episode, shift_of(rules, episode, number))


@scalar
def find_candidates(tables: Tables, rules: Rules, episode: Record, candidates: Candidates) -> None:
    """Where each boundary can go, by an offset while the other stays."""
    for side in (START, END):
        for k in range(rules.candidates):
            position, reached = candidate(tables, rules, episode, side, k)
            candidates.positions[side, k] = position
            candidates.free[side, k] = position if reached else _NAN


@scalar
def find_possible(tables: Tables, rules: Rules, episode: Record, candidates: Candidates, mask: Bools) -> None:
    """Which choices (A,) are possible: boundaries can go there alone and together, or there is another span.

    Conditions are joined by `&`: branches that no processor foresees cost more than they save.
    """
    moves, free = rules.moves, candidates.free
    least = least_width(episode) if rules.moves_free else _NAN  # nothing is as wide as NaN
    for a in range(moves.shape[1]):
        mask[a] = free[END, moves[END, a]] - free[START, moves[START, a]] >= least
    spans, mask = tables.spans[episode.sample], mask[moves.shape[1] :]
    count = min(tables.samples[episode.sample].count, rules.proposals) if rules.switches_free else 0
    for p in range(rules.switches):
        mask[p] = (p < count) & ((spans[p, 0] != episode.start) | (spans[p, 1] != episode.end))
    for a in range(rules.switches, len(mask)):
        mask[a] = True


@scalar
def chosen_span(tables: Tables, rules: Rules, episode: Record, choice: int) -> tuple[Number, Number]:
    """The span to which a choice leads."""
    moves = rules.moves.shape[1]
    start, end = episode.start, episode.end
    if choice < moves:
        start, _ = candidate(tables, rules, episode, START, np.int64(rules.moves[START, choice]))
        end, _ = candidate(tables, rules, episode, END, np.int64(rules.moves[END, choice]))
    elif choice < moves + rules.switches:
        start, end = (
            tables.spans[episode.sample, choice - moves, 0],
            tables.spans[episode.sample, choice - moves, 1],
        )
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
        numbers: (1,), a choice (LISTED), or (2,), two offsets (PAIRED).
        shares: (2,), in [-1, 1], shifts of start and end as shares of the longest (CONTINUOUS).

    Returns:
        Whether the episode ended.
    """
    start, end, stopped = episode.start, episode.end, False
    if rules.form == LISTED:
        choice = numbers[0]
        if mask[choice]:
            start, end = chosen_span(tables, rules, episode, choice)
            switch = choice - rules.moves.shape[1]
            stopped = switch >= rules.switches
            if 0 <= switch < rules.switches:
                episode.source = switch
    else:
        if rules.form == PAIRED:
            start, _ = candidate(tables, rules, episode, START, numbers[0])
            end, _ = candidate(tables, rules, episode, END, numbers[1])
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
def observe_models(models: NDArray[np.uint8], count: int, among: int, out: Floats) -> None:
    """Which of the models each proposal (P,) came from, one-hot; zeros beyond `count`."""
    for p in range(len(models)):
        for m in range(among):
            out[p * among + m] = _ONE if p < count and models[p] == m else _ZERO


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
        tables.samples[sample].count,
    )
    if at[_REMAINING] >= 0:
        out[at[_REMAINING]] = max(rules.horizon - episode.step, 0) / rules.horizon
    if at[_VIDEO] >= 0:
        out[at[_VIDEO]] = tables.samples[sample].log_length
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
                point = points[cell_of(positions[side, k])]
                for feature in range(_POINT_WIDTH):
                    part[feature] = point[feature]
                part = part[_POINT_WIDTH:]
    if at[_WHOLE] >= 0:
        copy(points[CELLS, _INTEGRALS:_POINT_WIDTH], out[at[_WHOLE] :])
    if at[_INSIDE] >= 0:
        first, last, whole = points[cell_of(start)], points[cell_of(end)], points[CELLS, _INTEGRALS:]
        inside_features(first, last, whole, end - start, out[at[_INSIDE] :])
    if at[_PROPOSALS] >= 0:
        copy(timelines.proposals[row, : rules.proposals * _SPAN_WIDTH], out[at[_PROPOSALS] :])
    if at[_MODELS] >= 0:
        observe_models(tables.models[sample, : rules.proposals], count, rules.models, out[at[_MODELS] :])
    if at[_ACTION_MASK] >= 0:
        part = out[at[_ACTION_MASK] :]
        for a in range(len(mask)):
            part[a] = _ONE if mask[a] else _ZERO


@scalar
def row_of(timelines: Timelines, episode: Record, number: int) -> int:
    """The row of the timeline of an episode's sample."""
    return episode.sample if timelines.shared else number


@scalar
def prefetch_observed(rules: Rules, timelines: Timelines, row: int, candidates: Candidates) -> None:
    """Have the parts of a timeline fetched that an observation will show."""
    for side in range(2):
        for k in range(candidates.positions.shape[1]):
            prefetch(timelines.points[row, cell_of(candidates.positions[side, k])], 0)
    for at in range(0, rules.proposals * _SPAN_WIDTH, LINE):
        prefetch(timelines.proposals[row], at)


# What Python calls


@scalar
def lead_on(
    tables: Tables,
    rules: Rules,
    episode: Record,
    candidates: Candidates,
    mask: Bools,
    order: Whole,
    numbers: Integers,
    shares: Floats,
) -> tuple[Number, bool]:
    """Carry out an order and find what is possible then: the reward, and whether a step ended the episode."""
    before, steps = episode.potential, order == STEP
    ended = steps and apply(tables, rules, episode, mask, numbers, shares)
    judge(tables, rules, episode)
    find_candidates(tables, rules, episode, candidates)
    find_possible(tables, rules, episode, candidates, mask)
    return (episode.potential - before if steps else _ZERO), ended


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
        numbers: (N, 1 or 2), see `apply`.
        shares: (N, 2) float32, see `apply`.
        observations: (N, width) float32, written; or (0, width), to write none.
        rewards: (N,), written; 0 but for steps.
        ended: (N,), written; False but for steps.
        first: the first of them.
        last: after the last.
    """
    for i in range(first, last):  # all of them first: what they read is in no processor's cache
        if orders[i] == BEGIN:
            begin(tables, episodes[i])
    for block in range(first, last, BLOCK):
        after = min(block + BLOCK, last)
        for i in range(block, after):
            if orders[i] != SKIP:
                rewards[i], ended[i] = lead_on(
                    tables,
                    rules,
                    episodes[i],
                    one_of(candidates, i - block),
                    masks[i],
                    orders[i],
                    numbers[i],
                    shares[i],
                )
                if len(observations) > 0:
                    prefetch_observed(
                        rules, timelines, row_of(timelines, episodes[i], i), one_of(candidates, i - block)
                    )
        for i in range(block, after):
            if orders[i] != SKIP and len(observations) > 0:
                observe(
                    tables,
                    rules,
                    timelines,
                    row_of(timelines, episodes[i], i),
                    episodes[i],
                    one_of(candidates, i - block),
                    masks[i],
                    observations[i],
                )


@entry
def draw(
    samples: Array,
    rows: Integers,
    rules: Rules,
    episodes: Array,
    orders: NDArray[np.uint8],
    streams: NDArray[np.uint64],
) -> None:
    """Choose sample and proposal of the episodes that begin, each by the next number of its own stream.

    SplitMix64 (Steele, Lea and Flood, 2014): a slot draws the same numbers whether it stands alone or among
    thousands.

    Args:
        samples: (S,) SAMPLE.
        rows: those of them to draw from; empty for all.
        rules: see there.
        episodes: (N,) EPISODE, changed.
        orders: (N,).
        streams: (N,), changed.
    """
    n = np.uint64(len(rows) if len(rows) > 0 else len(samples))
    for i in range(len(episodes)):
        if orders[i] == BEGIN:
            streams[i] += np.uint64(0x9E3779B97F4A7C15)
            z = streams[i]
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
            sample = np.int64(z % n)
            if len(rows) > 0:
                sample = rows[sample]
            starts = min(samples[sample].count, rules.proposals, rules.start_k)
            episodes[i].sample = sample
            episodes[i].source = np.int64(z // n % np.uint64(starts))


@entry
def all_below(limit: int, numbers: Integers) -> bool:
    """Whether all numbers (N, any) are at least 0 and below the limit."""
    below = True
    for i in range(len(numbers)):
        for k in range(numbers.shape[1]):
            below &= 0 <= numbers[i, k] < limit
    return below


@entry
def tell(
    tables: Tables,
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
        duration = np.float64(tables.samples[episode.sample].duration)
        seconds[i, 0], seconds[i, 1] = episode.start * duration, episode.end * duration


@entry
def gains(tables: Tables, rules: Rules, episodes: Array, masks: Bools, out: Floats) -> None:
    """Change of tIoU by each choice (N, A) float32, written; 0 where it is not possible."""
    for i in range(len(episodes)):
        episode = episodes[i]
        sample = tables.samples[episode.sample]
        moments = tables.moments[sample.first_moment : sample.last_moment]
        for a in range(masks.shape[1]):
            out[i, a] = _ZERO
            if masks[i, a]:
                start, end = chosen_span(tables, rules, episode, a)
                out[i, a] = best_overlap(start, end, moments) - episode.tiou


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
