"""N refinement episodes as one NumPy program: the dynamics behind the single and the vector environment."""

from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Array, Bools, Floats, Ints, Rows
from vmr_env.caches.boundary_features import log_length
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.actions import ActionMode, Reach, needs_in
from vmr_env.envs.curriculum import Stage, get_stage
from vmr_env.envs.observations import Observer, Sight
from vmr_env.envs.rewards import get_potential, overlaps


class Starts(NamedTuple):
    """Episodes to begin."""

    rows: Rows
    """Where, (K,)."""
    samples: Ints
    """(K,), rows of the cache."""
    proposals: Ints
    """(K,), numbers of the proposals at which they start."""


class Episodes:
    """State of N episodes over one cache. Arrays have the episodes on the last axis, unless said otherwise.

    Args:
        n: N.
        cache: where the samples come from.
        mode: the action mode.
        observer: assembles the observations.
        proposals: P, how many proposals of a sample take part.
        stage: number of the curriculum's stage.
        reward: name of the potential; None for the stage's own.
        free: groups of actions that may be free; the stage may free fewer.

    Attributes:
        samples: (N,), rows of the cache.
        sources: (N,), the proposals that the spans came from.
        steps: (N,), steps taken.
        tiou: (N,), highest tIoU of the spans with a moment.
        observations: (N, width), flat, as they were when `observe` was called last.
        stage: the curriculum's stage.
    """

    def __init__(
        self,
        n: int,
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
        self._marks = _marks(cache, proposals)
        moments = self._marks.shape[2] - proposals
        self._horizon, self._p = np.array(mode.horizon), proposals
        self._proposal_numbers = np.arange(proposals, dtype=np.int16)[:, None]
        self._remaining = (np.arange(mode.horizon, -1, -1) / mode.horizon).astype(np.float32)
        self.samples = np.zeros(n, np.intp)
        self.sources = np.zeros(n, np.intp)
        self.steps = np.zeros(n, np.intp)
        self._spans = cache.spans.reshape(-1, 2)
        self._counts = np.zeros(n, np.int16)
        self._clip = np.ones(n, np.float32)
        self.observations = np.zeros((n, observer.width), np.float32)
        self._reach = Reach(n, proposals, moments)
        self._sight = Sight(n, proposals)
        self._sight.bounds[1] = 1
        self.set_stage(stage)

    @property
    def spans(self) -> Floats:
        """The current spans: (N, 2)."""
        return self._sight.bounds.T

    @property
    def proposals(self) -> Floats:
        """Proposals that take part: (N, P, 2), zeros where there is none."""
        return self._reach.others[:, : self._p].T

    @property
    def moments(self) -> Floats:
        """Ground truth: (N, M, 2); of a sample with fewer moments than M the last is repeated."""
        return self._reach.moments.T

    @property
    def mask(self) -> Bools:
        """Which actions are possible: (N, A)."""
        return self._mask.T

    def set_stage(self, number: int) -> None:
        """Change the stage; running episodes go on under the new rules.

        Raises:
            ValueError: there is no such stage.
        """
        self.stage: Stage = get_stage(number)
        self._potential = get_potential(self.stage.reward if self._reward is None else self._reward)
        self._needs = needs_in(self._mode, self.stage.actions & self._free)
        self.refresh()

    def start(self, starts: Starts) -> None:
        """Begin episodes; `refresh` must follow."""
        rows, samples, first = starts
        if len(samples) == len(self.samples):
            rows = slice(None)  # the same rows, quicker
        cache, sight, reach = self._cache, self._sight, self._reach
        reach.others[..., rows] = self._marks.take(samples, axis=0).transpose(1, 2, 0)
        self._counts[rows] = cache.counts.take(samples)
        clip = np.float32(cache.manifest["clip_seconds"]) / cache.durations.take(samples)
        self._clip[rows] = clip
        sight.bounds[:, rows] = self._spans.take(samples * cache.spans.shape[1] + first, axis=0).T
        self._observer.meet(sight, self.observations, rows, samples, clip)
        self.samples[rows] = samples
        self.sources[rows] = first
        self.steps[rows] = 0

    def step(self, actions: Array, starts: Starts | None = None) -> tuple[Floats, Bools]:
        """Take one action in every episode, or begin it.

        Returns:
            Rewards (N,) and which episodes ended (N,); 0 and False where one began.
        """
        outcome = self._mode.apply(actions, self._sight.bounds, self._reach, self._clip, self._mask)
        self._sight.bounds[:] = outcome.bounds
        np.copyto(self.sources, outcome.switched, where=outcome.switched >= _FIRST)
        self.steps = self.steps + _ONE
        ended = outcome.stopped | (self.steps >= self._horizon)
        if starts is not None:
            self.start(starts)
        before = self._potentials
        self.refresh()
        rewards = self._potentials - before
        if starts is not None:
            rewards[starts.rows], ended[starts.rows] = 0, False
        return rewards, ended

    def refresh(self) -> None:
        """Judge the current spans, and see what is possible from there."""
        sight, reach = self._sight, self._reach
        np.subtract(sight.end, sight.start, out=sight.width)
        sight.length[:] = log_length(sight.width / self._clip)
        tious = overlaps(sight.start, sight.end, reach.low, reach.high)
        sight.overlaps[:] = tious[: self._p]
        self.tiou = np.maximum.reduce(tious[self._p :]) if len(tious) > self._p + 1 else tious[self._p]
        self._potentials = self._potential(self.tiou, sight.bounds, reach.moments)
        exists = self._proposal_numbers < self._counts
        reach.look(sight.bounds, sight.width, self._clip, self._mode.offsets(self.steps), exists)
        sight.positions[:] = reach.positions
        self._mask = reach.mask(self._needs)

    def observe(self, rows: Rows = slice(None)) -> Floats:
        """Flat observations of episodes `rows` (K,): (K, width); of all of them, `observations` itself."""
        sight, samples, sources = self._sight, self.samples, self.sources
        self._remaining.take(self.steps, out=sight.remaining, mode="clip")
        self._observer.look(sight, samples, sources)
        out = self.observations[rows]
        self._observer.write(out, sight, rows, samples[rows], sources[rows])
        return out

    def gains(self) -> Floats:
        """Change of tIoU by every action: (N, A), 0 for impossible ones. For training only.

        Raises:
            TypeError: the actions cannot be listed.
        """
        starts, ends = self._mode.choices
        bounds = np.stack([self._reach.marks[0, starts], self._reach.marks[1, ends]])  # (2, A, N)
        best = np.zeros(bounds.shape[1:], np.float32)
        for moment in self._reach.moments.swapaxes(0, 1):
            np.maximum(best, overlaps(*bounds, *moment), out=best)
        gains: Floats = np.where(self._mask, best - self.tiou, np.float32(0)).T
        return gains

    def seconds(self, rows: Rows = slice(None)) -> NDArray[np.float64]:
        """Current spans in seconds: (K, 2)."""
        durations = self._cache.durations[self.samples[rows]].astype(np.float64)
        result: NDArray[np.float64] = self.spans[rows] * durations[:, None]
        return result


def _marks(cache: DecoderStateCache, proposals: int) -> Floats:
    """Starts and ends of proposals and moments of all samples: (S, 2, P + M).

    Of a sample with fewer moments than another the last is repeated, which leaves maxima as they are.
    """
    offsets = np.asarray(cache.moments.offsets)
    at = np.minimum(
        offsets[:-1, None] + np.arange(int(np.diff(offsets).max())), offsets[1:, None] - 1
    )  # (S, M)
    both = np.concatenate([cache.spans[:, :proposals], cache.moments.values[at]], axis=1)
    return np.ascontiguousarray(both.transpose(0, 2, 1))


_FIRST, _ONE = np.array(0), np.array(1)
_INCREMENT, _MIX_1, _MIX_2 = (
    np.array(number, np.uint64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_64_BITS = 2**64 - 1
_27, _30, _31 = (np.array(bits, np.uint64) for bits in (27, 30, 31))


class Draws:
    """One stream of random numbers per episode slot, drawn for all slots at once.

    SplitMix64 (Steele, Lea and Flood, 2014): a slot draws the same numbers whether it stands alone or among
    thousands.
    """

    def __init__(self, keys: Sequence[int] | Array) -> None:
        self._state = np.array(keys, np.uint64)

    def restart(self, slot: int, generator: np.random.Generator) -> None:
        """Begin the stream of one slot anew, with a key from the generator."""
        self._state[slot] = generator.integers(2**63)

    def next_of_first(self) -> int:
        """What `next` gives the first slot, in whole numbers of Python: quicker for a single environment."""
        z = int(self._state[0]) + int(_INCREMENT) & _64_BITS
        self._state[0] = z
        z = (z ^ z >> 30) * int(_MIX_1) & _64_BITS
        z = (z ^ z >> 27) * int(_MIX_2) & _64_BITS
        return z ^ z >> 31

    def next(self, rows: Rows) -> NDArray[np.uint64]:
        """The next number of each slot in `rows` (K,): (K,)."""
        self._state[rows] += _INCREMENT
        z = self._state[rows]
        z = (z ^ (z >> _30)) * _MIX_1
        z = (z ^ (z >> _27)) * _MIX_2
        z ^= z >> _31
        return z
