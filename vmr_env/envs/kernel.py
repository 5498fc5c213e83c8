"""A refinement episode: all that happens in one, described once, a number at a time.

An episode begins at a proposal. Its candidates are the positions where the boundaries of the current span can
go; they make some actions possible, and an observation shows what is known of each. An action is applied, the
new span is judged against the moments, and the change of its potential is the reward.

Numba compiles this module (`vmr_env.envs.compilation`); `advance` leads N episodes through all of it. Numbers
are float32 throughout: constants are, because a plain 0.5 would turn a result into float64.

Spans and positions are shares of the video, so 0 and 1 are its ends; offsets are in clips, and shifts are
offsets times the length of a clip. A span never leaves the video, and no move makes it shorter than one clip.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Array, Bools, Floats
from vmr_env.caches import boundary_features
from vmr_env.caches.boundary_features import CELLS, CURVES, FLOOR, INTEGRALS, SHORTEST
from vmr_env.caches.clip_sums import EDGE_CLIPS
from vmr_env.envs.compilation import entry, scalar
from vmr_env.metrics import spans

Integers = NDArray[np.int64]

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
                ("clip", np.float32),  # length of a clip as a share of the video
                ("tiou", np.float32),  # highest of the span with any moment
                ("potential", np.float32),
            ]
        ),
    )
)
"""The state of an episode."""

SKIP, LOOK, BEGIN, STEP = range(4)
"""Orders to an episode: nothing, look again (the rules may be new), begin where the record says, take a step."""

LISTED, PAIRED, CONTINUOUS = range(3)
"""Forms of actions: the number of a choice; numbers of two offsets; two shifts in units of the longest offset."""

MOVE, SWITCH, STOP = range(3)
"""Kinds of choices."""

TIOU, GIOU, STEPS, TIOU_AND_STEPS = range(4)
"""Potentials, see `vmr_env.envs.rewards`."""

COMPONENTS = (
    *("remaining", "video", "span", "source", "overlaps", "positions", "points", "whole", "inside"),
    *("proposals", "models", "decoder_state", "text", "point_clips", "proposal_clips", "action_mask"),
)
"""Components of an observation, see `vmr_env.envs.observations`."""

_REMAINING, _VIDEO, _SPAN, _SOURCE, _OVERLAPS, _POSITIONS, _POINTS, _WHOLE, _INSIDE = range(9)
_PROPOSALS, _MODELS, _DECODER_STATE, _TEXT, _POINT_CLIPS, _PROPOSAL_CLIPS, _ACTION_MASK = range(9, 16)

TINY = np.float32(1e-6)
"""Below any difference that data sets annotate, above float32 rounding."""

_ZERO, _ONE = np.float32(0), np.float32(1)
_ALMOST_ONE = _ONE - TINY
_EMPTY = np.float32(1e-9)
_HALF = np.float32(0.5)
_BONUSES = tuple(np.float32(bonus) for bonus in (0.1, 0.2, 0.3))
_CELLS = np.float32(CELLS)
_N_CURVES, _INTEGRALS = len(CURVES), INTEGRALS.start
_HALF_FLOAT = np.float32(2.0**112)

_log_length = scalar(boundary_features.log_length)
_reaches = scalar(spans.reaches)


class Tables(NamedTuple):
    """What is frozen of all S samples: a cache's arrays and the tables derived from it; empty where it has none.

    Arrays are read-only and C-contiguous, always of these types, so that they are compiled for once.
    """

    spans: Floats
    """(S, Q, 2) float32."""
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
    points: Floats
    """(S, CELLS + 1, `POINT_FEATURES`) float32, boundary features of every point."""
    proposals: Floats
    """(S, Q, `SPAN_FEATURES`) float32."""
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
    clip_seconds: np.float32
    """Length of a clip."""
    longest: np.float32
    """The longest offset."""
    offsets: Floats
    """(H, K) float32, where the candidates of a boundary are at each step, the last row at all later ones."""
    choices: Integers
    """(A, 3), of each entry of the mask: a MOVE and its offsets' numbers for start and end, a SWITCH and the
    proposal's number, or STOP."""
    samples: Integers
    """Rows of the cache to draw from; empty for all."""
    columns: Integers
    """(`COMPONENTS`,), where each component begins in a flat observation; -1 where it is left out."""


# Judging


@scalar
def overlap(start: np.float32, end: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """tIoU of two spans; 0 where both are empty, or where one ends before it starts."""
    common = max(min(high, end) - max(low, start), _ZERO)
    union = (high - low) + (end - start) - common
    return common / max(union, _EMPTY)  # where the union is not positive, nothing is common


@scalar
def generalised_overlap(start: np.float32, end: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """tIoU - (hull - union) / hull, the hull being the shortest span around both (Rezatofighi et al., 2019)."""
    common = max(min(high, end) - max(low, start), _ZERO)
    union = (high - low) + (end - start) - common
    hull = max(end, high) - min(start, low)
    return common / union - (hull - union) / hull


@scalar
def best_overlap(start: np.float32, end: np.float32, moments: Floats) -> np.float32:
    """Highest tIoU with any of the moments (M, 2)."""
    best = _ZERO
    for m in range(len(moments)):
        best = max(best, overlap(start, end, moments[m, 0], moments[m, 1]))
    return best


@scalar
def bonus(tiou: np.float32, threshold: float, earned: np.float32) -> np.float32:
    """What is earned from a threshold on."""
    return earned if _reaches(tiou, threshold) else _ZERO


@scalar
def potential_of(
    kind: int, tiou: np.float32, start: np.float32, end: np.float32, moments: Floats
) -> np.float32:
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
def judge(tables: Tables, rules: Rules, episode: np.record) -> None:
    """Compare the current span with the moments."""
    first, last = tables.moment_offsets[episode.sample], tables.moment_offsets[episode.sample + 1]
    moments = tables.moments[first:last]
    episode.tiou = best_overlap(episode.start, episode.end, moments)
    episode.potential = potential_of(rules.potential, episode.tiou, episode.start, episode.end, moments)


# Beginning, and acting


@scalar
def begin(tables: Tables, rules: Rules, episode: np.record) -> None:
    """Start at the proposal `source` of `sample`."""
    episode.start = tables.spans[episode.sample, episode.source, 0]
    episode.end = tables.spans[episode.sample, episode.source, 1]
    episode.clip = rules.clip_seconds / tables.durations[episode.sample]
    episode.step = 0


@scalar
def least_width(episode: np.record) -> np.float32:
    """What a move must leave: one clip; a span that is already shorter may only grow."""
    return min(episode.end - episode.start, episode.clip) - TINY


@scalar
def start_candidate(episode: np.record, shift: np.float32) -> tuple[np.float32, bool]:
    """Where the start goes by a shift while the end stays, and whether it can; where it is if it cannot."""
    moved = episode.start + shift
    if shift < _ZERO:
        return max(moved, _ZERO), episode.start > TINY
    if shift > _ZERO and moved > episode.end - least_width(episode):
        return episode.start, False
    return moved, True


@scalar
def end_candidate(episode: np.record, shift: np.float32) -> tuple[np.float32, bool]:
    """The same for the end while the start stays."""
    moved = episode.end + shift
    if shift > _ZERO:
        return min(moved, _ONE), episode.end < _ALMOST_ONE
    if shift < _ZERO and moved < episode.start + least_width(episode):
        return episode.end, False
    return moved, True


@scalar
def offsets_now(rules: Rules, episode: np.record) -> Floats:
    """The offsets (K,) at the episode's step."""
    return rules.offsets[min(episode.step, len(rules.offsets) - 1)]


@scalar
def find_candidates(rules: Rules, episode: np.record, positions: Floats, reached: Bools) -> None:
    """Candidates of start and end (2, K), and whether the boundary can go there while the other stays."""
    offsets = offsets_now(rules, episode)
    for k in range(len(offsets)):
        shift = offsets[k] * episode.clip
        positions[0, k], reached[0, k] = start_candidate(episode, shift)
        positions[1, k], reached[1, k] = end_candidate(episode, shift)


@scalar
def find_possible(tables: Tables, rules: Rules, episode: np.record, reached: Bools, mask: Bools) -> None:
    """Which choices (A,) are possible: both boundaries can go there, or there is another span to switch to."""
    offsets, least = offsets_now(rules, episode), least_width(episode)
    proposals = min(tables.counts[episode.sample], rules.proposals)
    for a in range(len(mask)):
        kind, first, second = rules.choices[a, 0], rules.choices[a, 1], rules.choices[a, 2]
        if kind == MOVE:
            if offsets[first] > _ZERO and offsets[second] < _ZERO:  # from both sides
                start = episode.start + offsets[first] * episode.clip
                end = episode.end + offsets[second] * episode.clip
                possible = end - start >= least
            else:
                possible = reached[0, first] and reached[1, second]
            mask[a] = possible and rules.moves == 1
        elif kind == SWITCH:
            span = tables.spans[episode.sample, first]
            differs = span[0] != episode.start or span[1] != episode.end
            mask[a] = differs and first < proposals and rules.switches == 1
        else:
            mask[a] = True


@scalar
def chosen_span(
    tables: Tables, rules: Rules, episode: np.record, choice: int
) -> tuple[np.float32, np.float32]:
    """The span to which a choice leads."""
    kind, first, second = rules.choices[choice, 0], rules.choices[choice, 1], rules.choices[choice, 2]
    start, end = episode.start, episode.end
    if kind == SWITCH:
        start, end = tables.spans[episode.sample, first, 0], tables.spans[episode.sample, first, 1]
    elif kind == MOVE:
        offsets = offsets_now(rules, episode)
        start, _ = start_candidate(episode, offsets[first] * episode.clip)
        end, _ = end_candidate(episode, offsets[second] * episode.clip)
    return start, end


@scalar
def apply(
    tables: Tables, rules: Rules, episode: np.record, mask: Bools, numbers: Integers, shares: Floats
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
            offsets = offsets_now(rules, episode)
            start, _ = start_candidate(episode, offsets[numbers[0]] * episode.clip)
            end, _ = end_candidate(episode, offsets[numbers[1]] * episode.clip)
        else:
            unit = rules.longest * episode.clip
            start = min(max(start + shares[0] * unit, _ZERO), _ONE)
            end = min(max(end + shares[1] * unit, _ZERO), _ONE)
        if end - start < least_width(episode):
            start, end = episode.start, episode.end
    episode.start, episode.end = start, end
    episode.step += 1
    return stopped or episode.step >= rules.horizon


# Observing


@scalar
def cell_of(position: np.float32) -> int:
    """The point of the table nearest to a position."""
    return int(np.rint(position * _CELLS))


@scalar
def copy(out: Floats, column: int, row: Floats) -> None:
    """Write a row into an observation from that column on."""
    part = out[column : column + len(row)]
    for k in range(len(row)):
        part[k] = row[k]


@scalar
def copy_half(out: Floats, column: int, bits: NDArray[np.uint16]) -> None:
    """Write a row of finite float16 numbers, of which there are the bits: sign, 5 of exponent, 10 of fraction.

    As a float32 the same exponent means 2**112 times less.
    """
    part = out[column : column + len(bits)]
    for k in range(len(bits)):
        size = np.uint32(np.uint32(bits[k] & 0x7FFF) << 13).view(np.float32) * _HALF_FLOAT
        part[k] = -size if bits[k] >> 15 else size


@scalar
def inside_features(out: Floats, column: int, points: Floats, start: np.float32, end: np.float32) -> None:
    """Mean of each curve inside a span, and shares of the first three that lie there (`INSIDE_FEATURES`)."""
    first, last = points[cell_of(start)], points[cell_of(end)]
    width = max(end - start, SHORTEST)
    part = out[column : column + 2 * _N_CURVES - 1]
    for c in range(_N_CURVES):
        mass = last[_INTEGRALS + c] - first[_INTEGRALS + c]
        # Cells are a little longer or shorter than the span.
        part[c] = min(max(mass / width, -_ONE), _ONE)
        if c < _N_CURVES - 1:
            whole = max(points[CELLS, _INTEGRALS + c], FLOOR)
            part[_N_CURVES + c] = min(max(mass / whole, -_ONE), _ONE)


@scalar
def clip_at(tables: Tables, sample: int, cell: int) -> int:
    """The boundary of clips nearest to a point, from the video's start."""
    return int(np.rint(cell * (tables.clip_counts[sample] / CELLS)))


@scalar
def clip_mean(tables: Tables, out: Floats, column: int, sample: int, low: int, high: int) -> None:
    """Mean of the clips from one boundary to another, cut to the video; 0 where there are none."""
    count, first = tables.clip_counts[sample], tables.clip_firsts[sample]
    low, high = max(low, 0), min(high, count)
    scale = np.float32(count / max(high - low, 1))
    before, after = tables.clip_sums[first + low], tables.clip_sums[first + high]
    part = out[column : column + len(before)]
    for k in range(len(before)):
        part[k] = (after[k] - before[k]) * scale


@scalar
def edge_means(tables: Tables, out: Floats, column: int, sample: int, clip: int) -> None:
    """Means of the clips before and after a boundary of clips."""
    clip_mean(tables, out, column, sample, clip - EDGE_CLIPS, clip)
    clip_mean(tables, out, column + tables.clip_sums.shape[1], sample, clip, clip + EDGE_CLIPS)


@scalar
def observe_point_clips(tables: Tables, sample: int, positions: Floats, out: Floats, column: int) -> None:
    """Clip features at every candidate: `POINT_PARTS`."""
    width = tables.clip_sums.shape[1]
    for side in range(2):
        for k in range(positions.shape[1]):
            clip = clip_at(tables, sample, cell_of(positions[side, k]))
            edge_means(tables, out, column, sample, clip)
            copy(out, column + 2 * width, tables.clip_sums[tables.clip_firsts[sample] + clip])
            column += 3 * width


@scalar
def observe_proposal_clips(tables: Tables, sample: int, proposals: int, out: Floats, column: int) -> None:
    """Clip features of every proposal: `SPAN_PARTS`; zeros where there is none."""
    width = tables.clip_sums.shape[1]
    for p in range(proposals):
        part = out[column : column + 5 * width]
        if p < tables.counts[sample]:
            low, high = cell_of(tables.spans[sample, p, 0]), cell_of(tables.spans[sample, p, 1])
            start, end = clip_at(tables, sample, low), clip_at(tables, sample, high)
            edge_means(tables, part, 0, sample, start)
            edge_means(tables, part, 2 * width, sample, end)
            first = tables.clip_firsts[sample]
            before, after = tables.clip_sums[first + start], tables.clip_sums[first + end]
            scale = _CELLS / np.float32(max(high - low, 1))
            inside = part[4 * width :]
            for k in range(width):
                inside[k] = (after[k] - before[k]) * scale
        else:
            part[:] = _ZERO
        column += 5 * width


@scalar
def observe_models(tables: Tables, sample: int, rules: Rules, out: Floats, column: int) -> None:
    """Which model each proposal came from, one-hot."""
    for p in range(rules.proposals):
        for m in range(rules.models):
            came = p < tables.counts[sample] and tables.models[sample, p] == m
            out[column + p * rules.models + m] = _ONE if came else _ZERO


@scalar
def observe(
    tables: Tables, rules: Rules, episode: np.record, positions: Floats, mask: Bools, out: Floats
) -> None:
    """Write the flat observation: every component that has a column."""
    columns, sample = rules.columns, episode.sample
    points = tables.points[sample]
    start, end = episode.start, episode.end
    column = columns[_REMAINING]
    if column >= 0:
        out[column] = max(rules.horizon - episode.step, 0) / rules.horizon
    column = columns[_VIDEO]
    if column >= 0:
        out[column] = _log_length(_ONE / episode.clip)
    column = columns[_SPAN]
    if column >= 0:
        out[column], out[column + 1], out[column + 2] = start, end, end - start
        out[column + 3] = _log_length((end - start) / episode.clip)
    column = columns[_SOURCE]
    if column >= 0:
        for p in range(rules.proposals):
            out[column + p] = _ONE if p == episode.source else _ZERO
    column = columns[_OVERLAPS]
    if column >= 0:
        for p in range(rules.proposals):
            out[column + p] = overlap(start, end, tables.spans[sample, p, 0], tables.spans[sample, p, 1])
    column = columns[_POSITIONS]
    if column >= 0:
        copy(out, column, positions.reshape(-1))
    column = columns[_POINTS]
    if column >= 0:
        for side in range(2):
            for k in range(positions.shape[1]):
                copy(out, column, points[cell_of(positions[side, k])])
                column += points.shape[1]
    column = columns[_WHOLE]
    if column >= 0:
        copy(out, column, points[CELLS, _INTEGRALS:])
    column = columns[_INSIDE]
    if column >= 0:
        inside_features(out, column, points, start, end)
    column = columns[_PROPOSALS]
    if column >= 0:
        copy(out, column, tables.proposals[sample, : rules.proposals].reshape(-1))
    column = columns[_MODELS]
    if column >= 0:
        observe_models(tables, sample, rules, out, column)
    column = columns[_DECODER_STATE]
    if column >= 0:
        if tables.half_states.size > 0:
            copy_half(out, column, tables.half_states[sample, episode.source])
        else:
            copy(out, column, tables.states[sample, episode.source])
    column = columns[_TEXT]
    if column >= 0:
        if tables.half_text.size > 0:
            copy_half(out, column, tables.half_text[sample])
        else:
            copy(out, column, tables.text[sample])
    column = columns[_POINT_CLIPS]
    if column >= 0:
        observe_point_clips(tables, sample, positions, out, column)
    column = columns[_PROPOSAL_CLIPS]
    if column >= 0:
        observe_proposal_clips(tables, sample, rules.proposals, out, column)
    column = columns[_ACTION_MASK]
    if column >= 0:
        for a in range(len(mask)):
            out[column + a] = _ONE if mask[a] else _ZERO


# What Python calls


@entry
def advance(
    tables: Tables,
    rules: Rules,
    episodes: Array,
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
        episodes: (N,) EPISODE, changed.
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
    positions = np.empty((2, rules.offsets.shape[1]), np.float32)
    reached = np.empty((2, rules.offsets.shape[1]), np.bool_)
    for i in range(first, last):
        if orders[i] == SKIP:
            continue
        episode, mask = episodes[i], masks[i]
        before, steps = episode.potential, orders[i] == STEP
        ended[i] = steps and apply(tables, rules, episode, mask, numbers[i], shares[i])
        if orders[i] == BEGIN:
            begin(tables, rules, episode)
        judge(tables, rules, episode)
        rewards[i] = episode.potential - before if steps else _ZERO
        find_candidates(rules, episode, positions, reached)
        find_possible(tables, rules, episode, reached, mask)
        if len(observations) > 0:
            observe(tables, rules, episode, positions, mask, observations[i])


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
