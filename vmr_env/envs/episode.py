"""One refinement episode in scalars: what `vmr_env.envs.episodes` does for N, for the single environment.

The time of one episode in NumPy goes into calls, not into numbers, so what concerns a few numbers is done
here with float32 scalars, which round as arrays do: both give the same to the last bit.
"""

from collections.abc import Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Floats, Span
from vmr_env.caches.boundary_features import (
    CELLS,
    FLOOR,
    INTEGRALS,
    SHORTEST,
    cell_of,
    inside_features,
    log_length,
)
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.actions import ALMOST_ONE, HERE, PROBES, TINY, ActionMode, needs_in
from vmr_env.envs.curriculum import Stage, get_stage
from vmr_env.envs.observations import Observer, rows_of_sight
from vmr_env.envs.rewards import get_potential, overlaps

_ZERO, _ONE = np.float32(0), np.float32(1)


class Episode:
    """State of one episode. Arguments are those of `vmr_env.envs.episodes.Episodes`.

    Attributes:
        sample: row of the cache.
        source: the proposal that the span came from.
        steps: steps taken.
        trail: the spans so far, the one it started from first, the current one last.
        proposals: (P, 2), proposals that take part, zeros where there is none.
        moments: (M, 2), ground truth.
        tiou: highest tIoU of the span with a moment.
        mask: (A,), which actions are possible.
        stage: the curriculum's stage.
    """

    def __init__(
        self,
        cache: DecoderStateCache,
        mode: ActionMode,
        observer: Observer,
        proposals: int,
        stage: int,
        reward: str | None,
        free: Set[str],
    ) -> None:
        self._cache, self._mode, self._observer, self._reward = cache, mode, observer, reward
        self._free = free
        self._p = proposals
        self._clip_seconds = np.float32(cache.manifest["clip_seconds"])
        self._offsets = mode.offsets(np.arange(mode.horizon + 1)).T
        rows, height = rows_of_sight(proposals)
        self._table = np.zeros(height, np.float32)
        self._row_remaining, self._row_video = rows["remaining"].start, rows["video"].start
        self._rows_span, self._rows_overlaps = rows["span"], rows["overlaps"]
        self._rows_source, self._rows_positions = rows["source"], rows["positions"]
        self._rows_whole, self._rows_inside = rows["whole"], rows["inside"]
        self.trail: list[Span] = []
        self.set_stage(stage)

    def set_stage(self, number: int) -> None:
        """Change the stage; a running episode goes on under the new rules.

        Raises:
            ValueError: there is no such stage.
        """
        self.stage: Stage = get_stage(number)
        self._potential = get_potential(self.stage.reward if self._reward is None else self._reward)
        self._needs = needs_in(self._mode, self.stage.actions & self._free)
        if self.trail:
            self._refresh()

    @property
    def horizon(self) -> int:
        """Steps after which the episode ends."""
        return self._mode.horizon

    @property
    def span(self) -> Floats:
        """The current span: (2,)."""
        return np.array(self.trail[-1])

    def seconds(self) -> NDArray[np.float64]:
        """The current span in seconds: (2,)."""
        return self.span * np.float64(self._cache.durations[self.sample])

    def start(self, sample: int, proposal: int) -> None:
        """Begin an episode."""
        cache, points = self._cache, self._observer.points
        self.sample, self.source, self.steps = sample, proposal, 0
        self.proposals, self.moments = cache.spans[sample, : self._p], cache.moments[sample]
        self._low, self._high = np.concatenate([self.proposals, self.moments]).T.copy()
        self._bounds_of_moments = self._low[self._p :], self._high[self._p :]
        self._starts, self._ends = list(self._low[: self._p]), list(self._high[: self._p])
        present = min(int(cache.counts[sample]), self._p)
        self._present = list(zip(self._starts[:present], self._ends[:present], strict=True))
        self._absent = [False] * (self._p - present)
        self._clip = self._clip_seconds / cache.durations[sample]
        self._first = sample * (CELLS + 1)
        whole = points[self._first + CELLS, INTEGRALS]
        self._whole = np.maximum(whole[:3], FLOOR)
        self._table[self._row_video] = log_length(_ONE / self._clip)
        self._table[self._rows_whole] = whole
        self.trail = [(self._starts[proposal], self._ends[proposal])]
        self._refresh()

    def step(self, action: Any) -> tuple[np.float32, bool]:
        """Take an action that the mode has checked.

        Returns:
            The reward, and whether the episode ended.
        """
        marks = [*self._positions[:PROBES], *self._starts], [*self._positions[PROBES:], *self._ends]
        outcome = self._mode.take(action, self.trail[-1], marks, self._clip, self.mask)
        self.trail.append(outcome.span)
        if outcome.switched is not None:
            self.source = outcome.switched
        self.steps += 1
        before = self._value
        self._refresh()
        reward: np.float32 = self._value - before
        return reward, outcome.stopped or self.steps >= self._mode.horizon

    def _refresh(self) -> None:
        """Judge the current span, and see what is possible from there."""
        start, end = self.trail[-1]
        table, p = self._table, self._p
        width = end - start
        table[self._rows_span] = start, end, width, log_length(width / self._clip)
        tious = overlaps(start, end, self._low, self._high)
        table[self._rows_overlaps] = tious[:p]
        self.tiou = max(tious[p:])
        self._value = self._potential(self.tiou, self.trail[-1], self._bounds_of_moments)
        conditions = np.array(self._look(start, end, width), bool)
        self.mask = conditions.take(self._needs[0]) & conditions.take(self._needs[1])
        table[self._rows_positions] = self._positions

    def _look(self, start: np.float32, end: np.float32, width: np.float32) -> list[bool]:
        """Find out where the boundaries can go: `positions` and `conditions` of
        `vmr_env.envs.actions.Reach`."""
        shifts = list(self._offsets[min(self.steps, len(self._offsets) - 1)] * self._clip)
        backward, forward = shifts[:HERE], shifts[HERE + 1 :]
        # Moving the start back or the end on makes the span wider, up to the borders of the video.
        start_back = [max(start + shift, _ZERO) for shift in backward]
        end_on = [min(end + shift, _ONE) for shift in forward]
        back, on = start > TINY, end < ALMOST_ONE
        # Moving them towards each other stops at one clip; a span that is already shorter may only grow.
        least = min(width, self._clip) - TINY
        latest, earliest = end - least, start + least
        start_on, end_back = [start + shift for shift in forward], [end + shift for shift in backward]
        can_start_on = [position <= latest for position in start_on]
        can_end_back = [position >= earliest for position in end_back]
        pairs = [there - here >= least for here in start_on for there in end_back]
        # A switch to where the span already is would change nothing.
        switches = [low != start or high != end for low, high in self._present]
        self._positions = [*start_back, start, *start_on, *end_back, end, *end_on]
        for i in range(HERE):
            if not can_start_on[i]:
                self._positions[HERE + 1 + i] = start
            if not can_end_back[i]:
                self._positions[PROBES + i] = end
        alone = [back, back, back, True, *can_start_on, *can_end_back, True, on, on, on]
        return [*alone, *pairs, *switches, *self._absent, False]

    def observe(self) -> Floats:
        """The flat observation: (width,)."""
        table, observer, horizon = self._table, self._observer, self._mode.horizon
        table[self._row_remaining] = max(horizon - self.steps, 0) / horizon
        table[self._rows_source] = _ZERO
        table[self._rows_source.start + self.source] = _ONE
        cells = cell_of(table[self._rows_positions])
        cells += self._first
        start, end = cells[HERE], cells[PROBES + HERE]
        mass = observer.points[end, INTEGRALS] - observer.points[start, INTEGRALS]
        width = max(self._table[self._rows_span.start + 2], SHORTEST)
        inside_features(table[self._rows_inside], mass, width, self._whole)
        return observer.of_one(table, self.sample, self.source, cells)
