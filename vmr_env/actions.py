"""Action modes: what an action does to the current span.

All modes move boundaries to one of `PROBES` positions each, counted in clips from where the boundary is; the observation
shows what the timeline says at each of them, so an agent sees where a move leads before it takes it. A span never
leaves the video and is never shortened below one clip.
"""

import difflib
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]

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
"""The probe at the boundary itself."""

_TINY = np.float32(1e-6)  # below any difference that data sets annotate, above float32 rounding


class Probes(NamedTuple):
    """Where the boundaries could go. Episodes stand last, so that NumPy's inner loops are long."""

    positions: Floats
    """(2, PROBES, N), of the start and of the end; the boundary itself where a move is impossible."""
    valid: NDArray[np.bool_]
    """(2, PROBES, N), whether the move is possible and changes the span."""


def probe(spans: Floats, clip: Floats, offsets: Floats) -> Probes:
    """Positions of either boundary while the other stays.

    Args:
        spans: (N, 2).
        clip: (N,), length of a clip as a share of the video.
        offsets: (PROBES, 1) or (PROBES, N), in clips.
    """
    here = np.ascontiguousarray(spans.T)[:, None]  # (2, 1, N)
    positions = here + offsets * clip
    np.maximum(positions, 0, out=positions)
    np.minimum(positions, 1, out=positions)
    change = positions - here
    # Moving the start back, or the end on, makes the span wider.
    width = here[1] - here[0]
    wider = np.array([[[-1.0]], [[1.0]]], np.float32) * change
    # Shortening stops at one clip; a span that is already shorter may only grow.
    valid = wider >= np.minimum(clip - width, 0) - _TINY
    valid &= np.abs(change) > _TINY
    np.copyto(positions, here, where=~valid)
    return Probes(positions, valid)


class Outcome(NamedTuple):
    """Where the actions lead."""

    spans: Floats
    """(N, 2), the new spans; those that switch are still to be set."""
    switched: Array
    """(N,), number of the proposal switched to, -1 for none."""
    stopped: NDArray[np.bool_]
    """(N,), whether the agent stopped."""


class ActionMode(Protocol):
    """What the environments ask of an action mode."""

    horizon: int
    """Steps of an episode."""

    @property
    def space(self) -> spaces.Space[Any]:
        """Action space of one episode."""

    @property
    def groups(self) -> dict[str, slice]:
        """Which entries of the action mask belong to the groups that the stages free: move, switch, stop."""

    @property
    def size(self) -> int:
        """A, entries of the action mask."""

    def offsets(self, steps: Array) -> Floats:
        """Offsets of the probes in clips after `steps` (N,) steps: (PROBES, 1) or (PROBES, N)."""

    def mask(self, valid: NDArray[np.bool_], switchable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which actions are possible: (2, PROBES, N) probes, (N, P) proposals -> (N, A)."""

    def apply(self, actions: Array, spans: Floats, probes: Probes, clip: Floats, mask: Array) -> Outcome:
        """Take actions; one that the mask forbids changes nothing."""


def _nothing(n: int) -> tuple[Array, NDArray[np.bool_]]:
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

    @property
    def space(self) -> spaces.Space[Any]:
        """`Discrete(A)`."""
        return spaces.Discrete(self.size)

    @property
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

    def names(self) -> list[str]:
        """What each action does, in words."""
        moves = [f"start {MOVES[i]:+g}, end {MOVES[j]:+g} clips" for i, j in zip(*PROBES_OF_MOVES, strict=True)]
        return [*moves, *(f"switch to proposal {i + 1}" for i in range(self.proposals)), "stop"]

    def offsets(self, steps: Array) -> Floats:
        """The same at every step."""
        return _MOVES

    def mask(self, valid: NDArray[np.bool_], switchable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Possible moves and switches; stopping always is."""
        n = len(switchable)
        mask = np.empty((n, self.size), bool)
        starts, ends = PROBES_OF_MOVES
        possible = valid | _AT_HERE
        mask[:, :_N_MOVES] = (possible[0, starts] & possible[1, ends]).T
        mask[:, _N_MOVES:-1] = switchable
        mask[:, -1] = True
        return mask

    def destinations(self, spans: Floats, probes: Probes, proposals: Floats, clip: Floats) -> Floats:
        """The span that every action leads to: (N, A, 2)."""
        result = np.repeat(spans[:, None], self.size, axis=1)
        for side, probe_of_move in enumerate(PROBES_OF_MOVES):
            result[:, :_N_MOVES, side] = probes.positions[side, probe_of_move].T
        least = (np.minimum(clip, spans[:, 1] - spans[:, 0]) - _TINY)[:, None]
        too_short = result[..., 1] - result[..., 0] < least
        np.copyto(result, spans[:, None], where=too_short[..., None])
        result[:, _N_MOVES:-1] = proposals
        return result

    def apply(self, actions: Array, spans: Floats, probes: Probes, clip: Floats, mask: Array) -> Outcome:
        """Actions (N,)."""
        rows = np.arange(len(actions))
        # What is no move, or an impossible one, puts the boundaries where they are.
        move = np.where(mask[rows, actions], np.minimum(actions, _N_MOVES), _N_MOVES)
        moved = np.empty_like(spans)
        for side, probe_of_move in enumerate(_PROBES_OF_ACTIONS):
            moved[:, side] = probes.positions[side, probe_of_move[move], rows]
        spans = _unless_too_short(moved, spans, clip)
        slot = actions - _N_MOVES
        slot[~mask[rows, actions]] = -1
        stopped = slot == self.proposals
        return Outcome(spans, np.where(stopped, -1, np.maximum(slot, -1)), stopped)


@dataclass(frozen=True)
class CoarseToFineActions:
    """`MultiDiscrete([7, 7])`: a move of the start and one of the end, coarse first, then finer. No switch, no stop.

    Attributes:
        horizon: steps of an episode.
    """

    horizon: int = 3

    @property
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

    def offsets(self, steps: Array) -> Floats:
        """Finer with every step."""
        return _COARSE_TO_FINE[:, np.minimum(steps, len(COARSE_TO_FINE) - 1)]

    def mask(self, valid: NDArray[np.bool_], switchable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Possible moves; staying always is."""
        mask = valid.reshape(-1, len(switchable)).T.copy()
        mask[:, [HERE, PROBES + HERE]] = True
        return mask

    def apply(self, actions: Array, spans: Floats, probes: Probes, clip: Floats, mask: Array) -> Outcome:
        """Actions (N, 2). Two moves that together leave less than a clip change nothing."""
        rows = np.arange(len(actions))
        moved = np.stack([probes.positions[side, actions[:, side], rows] for side in (0, 1)], axis=1)
        return Outcome(_unless_too_short(moved, spans, clip), *_nothing(len(actions)))


@dataclass(frozen=True)
class ContinuousActions:
    """`Box(-1, 1, (2,))`: a move of the start and one of the end, 1 being the coarsest move. No switch, no stop.

    Attributes:
        horizon: steps of an episode.
    """

    horizon: int = 6

    @property
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

    def offsets(self, steps: Array) -> Floats:
        """The same at every step."""
        return _MOVES

    def mask(self, valid: NDArray[np.bool_], switchable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Possible probes; staying always is."""
        return CoarseToFineActions().mask(valid, switchable)

    def apply(self, actions: Array, spans: Floats, probes: Probes, clip: Floats, mask: Array) -> Outcome:
        """Actions (N, 2) in [-1, 1]. Two moves that together leave less than a clip change nothing."""
        moved = spans + np.asarray(actions, np.float32) * (np.float32(MOVES[-1]) * clip[:, None])
        return Outcome(_unless_too_short(np.clip(moved, 0, 1), spans, clip), *_nothing(len(spans)))


def _unless_too_short(moved: Floats, spans: Floats, clip: Floats) -> Floats:
    """Moved spans (N, 2); the old ones where a move leaves less than a clip and less than there was."""
    least = np.minimum(clip, spans[:, 1] - spans[:, 0]) - _TINY
    kept: Floats = np.where((moved[:, 1] - moved[:, 0] >= least)[:, None], moved, spans)
    return kept


PROBES_OF_MOVES = tuple(np.divmod(np.delete(np.arange(PROBES**2), HERE * PROBES + HERE), PROBES))
"""Which probe of the start and which of the end each move of `DiscreteActions` goes to: 2 arrays of 48."""

_MOVES = np.array(MOVES, np.float32)[:, None]
_COARSE_TO_FINE = np.array(COARSE_TO_FINE, np.float32).T
_N_MOVES = PROBES**2 - 1
# The same with one more entry, for what is no move.
_PROBES_OF_ACTIONS = tuple(np.append(probes, HERE) for probes in PROBES_OF_MOVES)
_AT_HERE = (np.arange(PROBES) == HERE)[:, None]

ACTION_MODES = ("discrete", "multidiscrete", "continuous")
"""Names that the environments' argument `actions` takes."""


def get_action_mode(name: str, proposals: int, horizon: int | None) -> ActionMode:
    """The action mode of that name, with its own horizon unless one is given.

    Raises:
        ValueError: there is no such mode, or the horizon is not positive.
    """
    if name not in ACTION_MODES:
        near = difflib.get_close_matches(str(name), ACTION_MODES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"No action mode {name!r}.{hint} Known modes: {', '.join(ACTION_MODES)}.")
    if horizon is not None and (not isinstance(horizon, int) or horizon < 1):
        raise ValueError(f"horizon is {horizon!r}, expected a whole number of steps from 1")
    chosen = {} if horizon is None else {"horizon": horizon}
    if name == "discrete":
        return DiscreteActions(proposals, **chosen)
    return CoarseToFineActions(**chosen) if name == "multidiscrete" else ContinuousActions(**chosen)
