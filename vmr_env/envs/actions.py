"""Action modes: what an action does to the current span.

All modes move boundaries to one of `PROBES` positions each, counted in clips from where the boundary is; the
observation shows what the timeline says at each of them, so an agent sees where a move leads before it takes
it. A span never leaves the video and is never shortened below one clip.

Arrays of many episodes have the episodes on the last axis, so that NumPy's inner loops are long: the bounds
of N spans are (2, N), their starts and ends. Constants are arrays, and results go where arrays are already:
the time of a single episode goes into calls of NumPy, not into numbers.
"""

import difflib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces

from vmr_env.arrays import Array, Bools, Floats, Ints, Span, row_length
from vmr_env.errors import check_count

MOVES = (-8.0, -3.0, -1.0, 0.0, 1.0, 3.0, 8.0)
"""Positions of the default mode, in clips from the boundary: coarse, middle, fine, and where it is."""

COARSE_TO_FINE = (
    (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0),
    (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0),
    (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0),
)
"""Positions at the first, second and every later step (GIRL-DETR's step-wise agent, SPEC 8.2)."""

PROBES = len(MOVES)
HERE = PROBES // 2
"""The probe at the boundary itself; those before it go back, those after it go on."""

PROBES_OF_MOVES = tuple(np.divmod(np.delete(np.arange(PROBES**2), HERE * PROBES + HERE), PROBES))
"""Which probe of the start and which of the end each move of `DiscreteActions` goes to: 2 arrays of 48."""

_MOVES = np.array(MOVES, np.float32)[:, None]
_COARSE_TO_FINE = np.array(COARSE_TO_FINE, np.float32).T
_N_MOVES = PROBES**2 - 1
_PROBES = np.array(PROBES)
_COARSEST = np.array(MOVES[-1], np.float32)
_ZERO, _ONE = np.zeros((), np.float32), np.ones((), np.float32)

TINY = np.float32(1e-6)
"""Below any difference that data sets annotate, above float32 rounding."""

ALMOST_ONE = np.float32(1) - TINY


class Reach:
    """Where the boundaries of N spans can go, and what that makes possible.

    Attributes:
        marks: (2, PROBES + P + M, N), for start and end: the probes, the proposals, and the moments. A
            boundary can be put on the first two; a span is compared with the last two.
        positions: (2, PROBES, N), the probes among them; the boundary itself where it cannot go there while
            the other stays.
        proposals: (2, P, N), the proposals among them.
        moments: (2, M, N), the moments among them.
        others: (2, P + M, N), both.
        low: (P + M, N), the starts of both.
        high: (P + M, N), the ends of both.
        conditions: (C, N), what actions may need: that the start or the end can go to a probe, each alone
            (row `ALWAYS`, among them, is where it is); that they can go to two probes which shorten the span
            from both sides; that there is a proposal to switch to; last what never holds (`NEVER`).
    """

    ALWAYS = HERE
    PAIRS = 2 * PROBES
    SWITCHES = PAIRS + HERE**2
    NEVER = -1

    def __init__(self, n: int, proposals: int, moments: int) -> None:
        self._sizes = n, proposals, moments
        self._memory = np.zeros((2, PROBES + proposals + moments, row_length(n)), np.float32)
        self._memory[1] = 1
        self.conditions = np.ones((self.SWITCHES + proposals + 1, n), bool)
        self.conditions[self.NEVER] = False
        self._name_parts()

    def _name_parts(self) -> None:
        n, proposals, _ = self._sizes
        self.marks, conditions = self._memory[..., :n], self.conditions
        self.positions, self.others = self.marks[:, :PROBES], self.marks[:, PROBES:]
        self.proposals, self.moments = self.others[:, :proposals], self.others[:, proposals:]
        alone = conditions[: self.PAIRS].reshape(2, PROBES, n)
        self._start_back, self._end_on = self.positions[0, :HERE], self.positions[1, HERE + 1 :]
        self._start_on, self._end_back = self.positions[0, HERE + 1 :], self.positions[1, :HERE]
        self._start_can_back, self._end_can_on = alone[0, :HERE], alone[1, HERE + 1 :]
        self._start_can_on, self._end_can_back = alone[0, HERE + 1 :], alone[1, :HERE]
        self._start_on_of_pairs = self._start_on[:, None]
        self._pairs = conditions[self.PAIRS : self.SWITCHES].reshape(HERE, HERE, n)
        self._switches = conditions[self.SWITCHES : self.NEVER]
        self.low, self.high = self.others
        self._flat, self._step = self._memory.reshape(-1), np.array(self._memory.shape[2])
        self._firsts = np.array([[0], [self._memory[0].size]]) + np.arange(n)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._name_parts()  # copies of views are views no longer

    def look(self, bounds: Floats, widths: Floats, clip: Floats, offsets: Floats, exists: Bools) -> None:
        """Find out where the boundaries can go.

        Args:
            bounds: (2, N).
            widths: (N,), end - start.
            clip: (N,), length of a clip as a share of the video.
            offsets: (PROBES, 1) or (PROBES, N), of the probes in clips.
            exists: (P, N), which proposals there are.
        """
        start, end = bounds[0], bounds[1]
        shifts = offsets * clip
        np.add(bounds[:, None], shifts, out=self.positions)
        # Moving the start back or the end on makes the span wider, up to the borders of the video.
        np.maximum(self._start_back, _ZERO, out=self._start_back)
        np.minimum(self._end_on, _ONE, out=self._end_on)
        np.greater(start, TINY, out=self._start_can_back)
        np.less(end, ALMOST_ONE, out=self._end_can_on)
        # Moving them towards each other stops at one clip; a span that is already shorter may only grow.
        least = np.minimum(widths, clip)
        least -= TINY
        np.greater_equal(self._end_back - self._start_on_of_pairs, least, out=self._pairs)
        np.less_equal(self._start_on, end - least, out=self._start_can_on)
        np.greater_equal(self._end_back, start + least, out=self._end_can_back)
        # Where they cannot go they stay. A product is quicker than a choice that no processor foresees.
        np.multiply(shifts[HERE + 1 :], self._start_can_on, out=self._start_on)
        np.multiply(shifts[:HERE], self._end_can_back, out=self._end_back)
        np.add(self._start_on, start, out=self._start_on)
        np.add(self._end_back, end, out=self._end_back)
        # A switch to where the span already is would change nothing.
        differs = self.proposals != bounds[:, None]
        np.logical_or(differs[0], differs[1], out=self._switches)
        np.logical_and(self._switches, exists, out=self._switches)

    def mask(self, needs: Ints) -> Bools:
        """Which actions are possible: (2, A) conditions that both must hold -> (A, N)."""
        mask: Bools = self.conditions.take(needs[0], axis=0)
        mask &= self.conditions.take(needs[1], axis=0)
        return mask

    def pick(self, choice: Ints) -> Floats:
        """One mark for each boundary: (2, N), below PROBES + P -> (2, N)."""
        result: Floats = self._flat.take(choice * self._step + self._firsts)
        return result


Marks = tuple[Sequence[np.float32], Sequence[np.float32]]
"""Where the start and the end of one span can be put."""


class Outcome(NamedTuple):
    """Where the actions lead."""

    bounds: Floats
    """(2, N), the new spans."""
    switched: Ints
    """(N,), number of the proposal switched to, negative for none."""
    stopped: Bools
    """(N,), whether the agent stopped."""


class Taken(NamedTuple):
    """Where one action leads."""

    span: Span
    switched: int | None
    """Number of the proposal switched to."""
    stopped: bool


class ActionMode(Protocol):
    """What the environments ask of an action mode."""

    @property
    def horizon(self) -> int:
        """Steps of an episode."""

    @property
    def space(self) -> spaces.Space[Any]:
        """Action space of one episode."""

    @property
    def size(self) -> int:
        """A, entries of the action mask."""

    @property
    def groups(self) -> dict[str, slice]:
        """Which entries of the action mask belong to the groups that the stages free: move, switch, stop."""

    @property
    def needs(self) -> Ints:
        """(2, A), the two rows of `Reach.conditions` that must hold for each entry of the action mask."""

    @property
    def choices(self) -> Ints:
        """(2, A), on which mark each entry of the action mask puts start and end.

        Raises:
            TypeError: the entries are no actions.
        """

    def offsets(self, steps: Ints) -> Floats:
        """Offsets of the probes in clips after `steps` (N,) steps: (PROBES, 1) or (PROBES, N)."""

    def checked(self, actions: Array) -> Array:
        """The actions (N,) or (N, 2) of N episodes, once they are known to be in the action space.

        Raises:
            ValueError: an action has the wrong type or shape, or is outside.
        """

    def checked_one(self, action: Any) -> Any:
        """The same for the action of one episode."""

    def apply(self, actions: Array, bounds: Floats, reach: Reach, clip: Floats, mask: Bools) -> Outcome:
        """Take actions; one that the mask (A, N) forbids changes nothing.

        Args:
            actions: what `checked` returned.
            bounds: (2, N), the current spans.
            reach: where their boundaries can go.
            clip: (N,), length of a clip as a share of the video.
            mask: (A, N), which actions are possible.
        """

    def take(self, action: Any, span: Span, marks: Marks, clip: np.float32, mask: Bools) -> Taken:
        """The same for one episode.

        Args:
            action: what `checked_one` returned.
            span: the current span.
            marks: `Reach.marks` without the moments.
            clip: length of a clip as a share of the video.
            mask: (A,), which actions are possible.
        """


@lru_cache(maxsize=64)
def _numbered(n: int) -> Ints:
    """0 to n - 1; not to be changed."""
    return np.arange(n)


def _nothing(n: int) -> tuple[Ints, Bools]:
    """No switch and no stop, N times."""
    return np.full(n, -1), np.zeros(n, bool)


@dataclass(frozen=True)
class DiscreteActions:
    """`Discrete`: move the boundaries, switch to a proposal, or stop. The default.

    Actions 0 to 47 move start and end together, each by one of -8, -3, -1, 0, 1, 3, 8 clips (the start's move
    changes slowest; moving neither is left out), the next P switch to a proposal, the last one stops.

    Attributes:
        proposals: P, number of proposals that can be switched to.
        horizon: steps of an episode.
    """

    proposals: int
    horizon: int = 3

    @cached_property
    def space(self) -> spaces.Space[Any]:
        """`Discrete(A)`."""
        return spaces.Discrete(self.size)

    @cached_property
    def size(self) -> int:
        """A = 48 + P + 1."""
        return _N_MOVES + self.proposals + 1

    @property
    def groups(self) -> dict[str, slice]:
        """Moves, switches, stop."""
        stop = self.size - 1
        return {
            "move": slice(0, _N_MOVES),
            "switch": slice(_N_MOVES, stop),
            "stop": slice(stop, self.size),
        }

    @property
    def needs(self) -> Ints:
        """A move needs both its probes, or the pair of them; a switch its proposal."""
        starts, ends = PROBES_OF_MOVES
        needs = np.full((2, self.size), Reach.ALWAYS)
        needs[:, :_N_MOVES] = starts, PROBES + ends
        shortening = np.flatnonzero((starts > HERE) & (ends < HERE))
        needs[:, shortening] = Reach.PAIRS + (starts[shortening] - HERE - 1) * HERE + ends[shortening]
        needs[:, _N_MOVES:-1] = Reach.SWITCHES + np.arange(self.proposals)
        return needs

    @property
    def choices(self) -> Ints:
        """The probes of each move, the proposal of each switch; stopping leaves both where they are."""
        return self._choices[:, :-1]

    @cached_property
    def _choices(self) -> Ints:
        """The same with one more entry, for doing nothing."""
        switches = PROBES + np.arange(self.proposals)
        return np.array([(*probes, *switches, HERE, HERE) for probes in PROBES_OF_MOVES])

    @cached_property
    def _stop(self) -> Array:
        return np.array(self.size - 1)

    @cached_property
    def _nothing(self) -> Array:
        return np.array(self.size)

    def names(self) -> list[str]:
        """What each action does, in words."""
        moves = [
            f"start {MOVES[i]:+g}, end {MOVES[j]:+g} clips" for i, j in zip(*PROBES_OF_MOVES, strict=True)
        ]
        return [*moves, *(f"switch to proposal {i + 1}" for i in range(self.proposals)), "stop"]

    def offsets(self, steps: Ints) -> Floats:
        """The same at every step."""
        return _MOVES

    def checked(self, actions: Array) -> Array:
        """Whole numbers (N,)."""
        return _whole_numbers(actions, 1, self.size, self)

    def checked_one(self, action: Any) -> int:
        """A whole number."""
        if type(action) in (int, np.int64) and 0 <= action < self.size:  # no need for arrays
            return int(action)
        return int(self.checked(np.asarray(action)[None])[0])

    def apply(self, actions: Array, bounds: Floats, reach: Reach, clip: Floats, mask: Bools) -> Outcome:
        """Actions (N,)."""
        n = len(actions)
        impossible = ~mask.take(actions * n + _numbered(n))
        taken = np.maximum(actions, impossible * self._nothing)  # the highest number, which does nothing
        choice = self._choices.take(taken, axis=1)
        return Outcome(reach.pick(choice), choice[0] - _PROBES, taken == self._stop)

    def take(self, action: Any, span: Span, marks: Marks, clip: np.float32, mask: Bools) -> Taken:
        """A number."""
        if not mask[action] or action == self.size - 1:
            return Taken(span, None, bool(mask[action]))
        start, end = self._choices[:, action].tolist()
        return Taken((marks[0][start], marks[1][end]), start - PROBES if start >= PROBES else None, False)


@dataclass(frozen=True)
class CoarseToFineActions:
    """`MultiDiscrete([7, 7])`: a move of the start and one of the end, coarse first, then finer.

    There is no switch and no stop.

    Attributes:
        horizon: steps of an episode.
    """

    horizon: int = 3

    @cached_property
    def space(self) -> spaces.Space[Any]:
        """`MultiDiscrete([7, 7])`."""
        return spaces.MultiDiscrete([PROBES, PROBES])

    @property
    def size(self) -> int:
        """A = 14: the moves of the start, then those of the end."""
        return 2 * PROBES

    @property
    def groups(self) -> dict[str, slice]:
        """All are moves."""
        return {"move": slice(0, self.size)}

    @property
    def needs(self) -> Ints:
        """Each move needs its probe."""
        return np.array([range(self.size), range(self.size)])

    @property
    def choices(self) -> Ints:
        """An action is two entries of the mask."""
        raise TypeError(
            "actions='multidiscrete' has two moves an action, expected 'discrete' to list actions"
        )

    def offsets(self, steps: Ints) -> Floats:
        """Finer with every step."""
        result: Floats = _COARSE_TO_FINE.take(steps, axis=1, mode="clip")
        return result

    def checked(self, actions: Array) -> Array:
        """Whole numbers (N, 2)."""
        return _whole_numbers(actions, 2, PROBES, self)

    def checked_one(self, action: Any) -> Ints:
        """Whole numbers (2,)."""
        numbers: Ints = self.checked(np.asarray(action)[None])[0]
        return numbers

    def apply(self, actions: Array, bounds: Floats, reach: Reach, clip: Floats, mask: Bools) -> Outcome:
        """Actions (N, 2). Two moves that together leave less than a clip change nothing."""
        moved = reach.pick(actions.T)
        return Outcome(_unless_too_short(moved, bounds, clip), *_nothing(len(actions)))

    def take(self, action: Any, span: Span, marks: Marks, clip: np.float32, mask: Bools) -> Taken:
        """Two numbers."""
        start, end = action
        return Taken(_kept((marks[0][start], marks[1][end]), span, clip), None, False)


@dataclass(frozen=True)
class ContinuousActions:
    """`Box(-1, 1, (2,))`: a move of the start and one of the end, 1 being the coarsest move.

    There is no switch and no stop.

    Attributes:
        horizon: steps of an episode.
    """

    horizon: int = 6

    @cached_property
    def space(self) -> spaces.Space[Any]:
        """`Box(-1, 1, (2,))`."""
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    @property
    def size(self) -> int:
        """A = 14: probes of the neighbourhood."""
        return 2 * PROBES

    @property
    def groups(self) -> dict[str, slice]:
        """All are moves."""
        return {"move": slice(0, self.size)}

    @property
    def needs(self) -> Ints:
        """Each needs its probe."""
        return CoarseToFineActions().needs

    @property
    def choices(self) -> Ints:
        """There are more actions than could be listed."""
        raise TypeError("actions='continuous' cannot be listed, expected 'discrete'")

    def offsets(self, steps: Ints) -> Floats:
        """The same at every step."""
        return _MOVES

    def checked(self, actions: Array) -> Array:
        """Finite numbers (N, 2), clipped to [-1, 1] as Gymnasium's own continuous environments do.

        An unbounded Gaussian policy draws beyond the space, and `RescaleAction` may miss it by one rounding.
        """
        if actions.ndim != 2 or actions.shape[1] != 2 or actions.dtype.kind not in "fiu":
            raise _wrong_kind(actions, self)
        finite = np.isfinite(actions)
        if not finite.all():
            raise _outside(actions, ~finite, self)
        return np.clip(actions, -1, 1).astype(np.float32)

    def checked_one(self, action: Any) -> Floats:
        """Finite numbers (2,), clipped to [-1, 1]."""
        numbers: Floats = self.checked(np.asarray(action)[None])[0]
        return numbers

    def apply(self, actions: Array, bounds: Floats, reach: Reach, clip: Floats, mask: Bools) -> Outcome:
        """Actions (N, 2). Two moves that together leave less than a clip change nothing."""
        moved = bounds + actions.T * (_COARSEST * clip)
        np.maximum(moved, _ZERO, out=moved)
        np.minimum(moved, _ONE, out=moved)
        return Outcome(_unless_too_short(moved, bounds, clip), *_nothing(len(actions)))

    def take(self, action: Any, span: Span, marks: Marks, clip: np.float32, mask: Bools) -> Taken:
        """Two numbers."""
        unit = _COARSEST * clip
        start, end = (here + by * unit for here, by in zip(span, action, strict=True))
        return Taken(_kept((max(start, np.float32(0)), min(end, np.float32(1))), span, clip), None, False)


def _kept(moved: Span, span: Span, clip: np.float32) -> Span:
    """The moved span, or the old one where it would be less than a clip and less than it was."""
    least = min(clip, span[1] - span[0]) - TINY
    return moved if moved[1] - moved[0] >= least else span


def needs_in(mode: ActionMode, free: Set[str]) -> Ints:
    """`needs` of the mode where some groups of actions are free and the others are not possible."""
    needs = np.full((2, mode.size), Reach.NEVER)
    for group, part in mode.groups.items():
        if group in free:
            needs[:, part] = mode.needs[:, part]
    return needs


def _unless_too_short(moved: Floats, bounds: Floats, clip: Floats) -> Floats:
    """Moved spans (2, N); the old ones where a move leaves less than a clip and less than there was."""
    least = np.minimum(clip, bounds[1] - bounds[0]) - TINY
    kept: Floats = np.where(moved[1] - moved[0] >= least, moved, bounds)
    return kept


def _whole_numbers(actions: Array, ndim: int, bound: int, mode: ActionMode) -> Ints:
    """Actions that are whole numbers from 0 to below the bound."""
    if actions.ndim != ndim or actions.dtype.kind not in "iu" or (ndim == 2 and actions.shape[1] != 2):
        raise _wrong_kind(actions, mode)
    numbers = actions.astype(np.intp, order="C")
    outside = numbers.view(np.uintp) >= bound  # as an unsigned number, what is below 0 is far above
    if np.count_nonzero(outside):
        raise _outside(actions, outside, mode)
    return numbers


def _wrong_kind(actions: Array, mode: ActionMode) -> ValueError:
    found = f"an action has shape {actions.shape[1:]} and type {actions.dtype}"
    return ValueError(f"{found}, expected a member of {mode.space}")


def _outside(actions: Array, outside: Bools, mode: ActionMode) -> ValueError:
    first = int(np.argwhere(outside)[0, 0])
    which = "the action" if len(actions) == 1 else f"the action of environment {first}"
    return ValueError(f"{which} is {actions[first]}, expected a member of {mode.space}")


ACTION_MODES = ("discrete", "multidiscrete", "continuous")
"""Names that the environments' argument `actions` takes."""


FREE = ("move", "switch")
"""Names that the environments' argument `free` takes; stopping is always free where it is an action."""


def free_groups(names: Sequence[str], mode: ActionMode) -> frozenset[str]:
    """The groups of actions that `names` and the mode leave free.

    Raises:
        ValueError: a name is unknown, or nothing would be left to do.
    """
    groups = frozenset([names] if isinstance(names, str) else names)
    if unknown := sorted(groups - set(FREE), key=str):
        raise ValueError(f"free names {unknown[0]!r}, expected some of {', '.join(FREE)}")
    free = groups | {"stop"}
    if not free & mode.groups.keys():
        raise ValueError(
            f"free is {sorted(groups)}, expected 'move' among them, all that {mode.space} can do"
        )
    return free


def get_action_mode(name: str, proposals: int, horizon: int | None) -> ActionMode:
    """The action mode of that name, with its own horizon unless one is given.

    Raises:
        ValueError: there is no such mode, or the horizon is not positive.
    """
    if name not in ACTION_MODES:
        near = difflib.get_close_matches(str(name), ACTION_MODES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"No action mode {name!r}.{hint} Known modes: {', '.join(ACTION_MODES)}.")
    if horizon is not None:
        check_count("horizon", horizon)
    chosen = {} if horizon is None else {"horizon": horizon}
    if name == "discrete":
        return DiscreteActions(proposals, **chosen)
    return CoarseToFineActions(**chosen) if name == "multidiscrete" else ContinuousActions(**chosen)
