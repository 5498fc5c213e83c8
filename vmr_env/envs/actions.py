"""Action modes: what an action of an environment means. What it does is in `vmr_env.envs.kernel`.

All modes move the boundaries of a span by offsets, counted in clips from where the boundary is. Observations
show what is known of each candidate, so an agent sees where a move leads before it takes it. A span never
leaves the video and no move makes it shorter than one clip.

A mode is data (`Moves`); `register_action_mode` adds one of your own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vmr_env.arrays import Array, Floats
from vmr_env.envs.lookup import Registry
from vmr_env.errors import check_count

MOVES = (-8.0, -3.0, -1.0, 0.0, 1.0, 3.0, 8.0)
"""Offsets of the default mode, in clips: coarse, middle, fine, and where the boundary is."""

COARSE_TO_FINE = (
    (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0),
    (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0),
    (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0),
)
"""Offsets at the first, second and every later step (GIRL-DETR's step-wise agent, SPEC 8.2)."""

BORROWED = 3
"""First proposals whose starts and ends the mode "candidates" crosses."""

FREE = ("move", "switch")
"""Names that the environments' argument `free` takes; stopping is always free where it is an action."""

KINDS = {"move": 0, "switch": 1, "stop": 2}
"""Kinds of entries of the action mask, in their order."""


@dataclass(frozen=True)
class Moves:
    """An action mode as data.

        >>> Moves("listed", ((-2.0, 0.0, 2.0),)).stay
        1

    Attributes:
        form: "listed": `Discrete`, every pair of offsets of start and end but that of staying, a switch to
            each proposal, and stop; "paired": `MultiDiscrete`, an offset of the start and one of the end;
            "continuous": `Box`, shifts of start and end as shares of the longest offset.
        offsets: K offsets for each step, in clips, rising, with 0 at the same place; the last ones hold for
            all later steps.
        horizon: steps of an episode, unless an environment is told otherwise.
        borrowed: boundaries can also go to those of so many first proposals, so that a span can start as one
            proposal does and end as another; numbered after the offsets. Not where actions are continuous.

    Raises:
        ValueError: the form is unknown, or the offsets are not as described.
    """

    form: Literal["listed", "paired", "continuous"]
    offsets: tuple[tuple[float, ...], ...]
    horizon: int = 3
    borrowed: int = 0

    def __post_init__(self) -> None:
        if self.form not in ("listed", "paired", "continuous"):
            raise ValueError(f"form is {self.form!r}, expected 'listed', 'paired' or 'continuous'")
        check_count("horizon", self.horizon)
        if self.borrowed != 0:
            check_count("borrowed", self.borrowed)
            if self.form == "continuous":
                raise ValueError(f"borrowed is {self.borrowed}, expected 0 where actions are continuous")
        if not self.offsets:
            raise ValueError("offsets has no row, expected one for each step")
        for step, row in enumerate(self.offsets):
            rises = all(math.isfinite(offset) for offset in row) and sorted(set(row)) == list(row)
            if not rises or len(row) != len(self.offsets[0]) or row[self.stay : self.stay + 1] != (0,):
                raise ValueError(
                    f"offsets of step {step} are {row}, expected finite numbers that rise, as many as at "
                    "step 0 and with 0 at the same place"
                )

    @property
    def stay(self) -> int:
        """Number of the offset that leaves a boundary where it is."""
        return self.offsets[0].index(0) if 0 in self.offsets[0] else 0


ACTION_MODES: Registry[Moves] = Registry(
    "action mode",
    {
        "discrete": Moves("listed", (MOVES,)),
        "multidiscrete": Moves("paired", COARSE_TO_FINE),
        "continuous": Moves("continuous", (MOVES,), horizon=6),
        "candidates": Moves("listed", (MOVES,), horizon=1, borrowed=BORROWED),
    },
    Moves,
)
"""Modes by the names that the environments' argument `actions` takes."""


def register_action_mode(
    name: str,
    form: Literal["listed", "paired", "continuous"],
    offsets: tuple[tuple[float, ...], ...],
    horizon: int = 3,
    borrowed: int = 0,
) -> None:
    """Add a mode that the environments' argument `actions` can name; arguments are those of `Moves`.

    Worker processes know it too where the call stands in a plugin (`vmr_env.plugins`). Without one, `actions`
    takes `"module:name"` of a `Moves`.

    Raises:
        ValueError: another mode has that name, or the arguments are not as `Moves` wants them.
    """
    ACTION_MODES.add(name, Moves(form, offsets, horizon, borrowed))


@dataclass(frozen=True)
class ActionMode:
    """The actions of an environment.

    Attributes:
        moves: offsets and form.
        proposals: P, number of proposals that can be switched to.
        horizon: steps of an episode.
    """

    moves: Moves
    proposals: int
    horizon: int

    @cached_property
    def space(self) -> spaces.Space[Any]:
        """`Discrete(A)`, `MultiDiscrete([K, K])` or `Box(-1, 1, (2,))`."""
        if self.moves.form == "listed":
            return spaces.Discrete(self.size)
        if self.moves.form == "paired":
            return spaces.MultiDiscrete([self.probes, self.probes])
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    @property
    def probes(self) -> int:
        """K, candidates of one boundary."""
        return len(self.moves.offsets[0]) + self.moves.borrowed

    @cached_property
    def size(self) -> int:
        """A, entries of the action mask."""
        return len(self.choices)

    @cached_property
    def choices(self) -> NDArray[np.int64]:
        """(A, 3), what each entry of the mask is: a move and the candidates of start and end that it goes to,
        a switch and its proposal, or to stop.

        Listed, the start's offset changes slowest. In other forms entries are offsets of one boundary: first
        those of the start, then those of the end.
        """
        every, stay = range(self.probes), self.moves.stay
        if self.moves.form != "listed":
            alone = [(start, stay) for start in every] + [(stay, end) for end in every]
            return np.array([(KINDS["move"], *pair) for pair in alone])
        moves = [(KINDS["move"], *pair) for pair in pairs_of_moves(self.probes, stay)]
        switches = [(KINDS["switch"], proposal, 0) for proposal in range(self.proposals)]
        return np.array([*moves, *switches, (KINDS["stop"], stay, stay)])

    @cached_property
    def groups(self) -> dict[str, slice]:
        """Which entries of the mask belong to the groups that stages free: move, switch, stop."""
        kinds = self.choices[:, 0].tolist()
        return {
            group: slice(kinds.index(kind), kinds.index(kind) + kinds.count(kind))
            for group, kind in KINDS.items()
            if kind in kinds
        }

    @property
    def offsets(self) -> Floats:
        """(H, K) float32, in clips."""
        return np.array(self.moves.offsets, np.float32)

    def names(self) -> list[str]:
        """What each entry of the mask does, in words; of `Box` what each number of an action does."""
        if self.moves.form == "continuous":
            return [f"{side}, in units of {self.moves.offsets[0][-1]:g} clips" for side in ("start", "end")]
        names: list[str] = []
        for kind, first, second in self.choices.tolist():
            if kind == KINDS["move"]:
                pair: tuple[tuple[str, int], ...] = (("start", first), ("end", second))
                if self.moves.form == "paired":
                    pair = (pair[0],) if len(names) < self.probes else (pair[1],)
                moved = [f"{side} {self._words(number)}" for side, number in pair]
                offsets = [place for place, (_, number) in enumerate(pair) if not self._borrows(number)]
                if offsets:
                    moved[offsets[-1]] += " clips"
                names.append(", ".join(moved))
            else:
                names.append(f"switch to proposal {first + 1}" if kind == KINDS["switch"] else "stop")
        return names

    def _borrows(self, number: int) -> bool:
        """Whether a candidate of that number is a proposal's boundary."""
        return number >= len(self.moves.offsets[0])

    def _words(self, number: int) -> str:
        """An offset, or those of each step where they differ; of borrowed boundaries the proposal."""
        if self._borrows(number):
            return f"as proposal {number - len(self.moves.offsets[0]) + 1}"
        return "/".join(dict.fromkeys(f"{row[number]:+g}" for row in self.moves.offsets))

    @property
    def limit(self) -> int:
        """Numbers in an action are below this."""
        return self.size if self.moves.form == "listed" else self.probes

    def as_numbers(self, actions: Array) -> Array:
        """Actions (N,) or (N, 2) of N episodes as int64 (N, 1 or 2), or as float32 (N, 2) in [-1, 1].

        Finite numbers beyond a `Box` are clipped to it, as Gymnasium's own continuous environments do: an
        unbounded Gaussian policy draws them, and `RescaleAction` may miss it by one rounding.

        Raises:
            ValueError: the actions have the wrong type or shape, or are not finite.
        """
        form = self.moves.form
        kinds = "fiu" if form == "continuous" else "iu"
        if (
            not actions.ndim
            or actions.shape[1:] != (() if form == "listed" else (2,))
            or actions.dtype.kind not in kinds
        ):
            found = f"an action has shape {actions.shape[1:]} and type {actions.dtype}"
            raise ValueError(f"{found}, expected a member of {self.space}")
        if form == "continuous":
            if not np.isfinite(actions).all():
                raise self.outside(actions)
            return np.clip(actions, -1, 1).astype(np.float32, order="C")
        return actions.astype(np.int64, order="C").reshape(len(actions), -1)

    def outside(self, actions: Array) -> ValueError:
        """The error that names the first action (N,) or (N, 2) that is outside of the space."""
        finite = self.moves.form == "continuous"
        inside = np.isfinite(actions) if finite else (actions >= 0) & (actions < self.limit)
        first = int(np.argwhere(~inside)[0, 0])
        which = "the action" if len(actions) == 1 else f"the action of environment {first}"
        return ValueError(f"{which} is {actions[first]}, expected a member of {self.space}")


def pairs_of_moves(probes: int, stay: int) -> list[tuple[int, int]]:
    """Numbers of the candidates of start and end that listed moves go to; the start's changes slowest.

    Args:
        probes: K, candidates of one boundary.
        stay: number of the one where the boundary is.
    """
    every = range(probes)
    return [(start, end) for start in every for end in every if (start, end) != (stay, stay)]


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
    moves = ACTION_MODES.get(name)
    if horizon is not None:
        check_count("horizon", horizon)
    return ActionMode(moves, proposals, moves.horizon if horizon is None else horizon)
