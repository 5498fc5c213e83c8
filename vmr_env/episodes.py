"""N refinement episodes as one NumPy program: the dynamics behind the single and the vector environment."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmr_env.actions import ActionMode, probe
from vmr_env.cache import DecoderStateCache
from vmr_env.curriculum import Stage, get_stage
from vmr_env.observations import Observer, View
from vmr_env.rewards import best_tiou, get_potential

Array = NDArray[Any]
Floats = NDArray[np.float32]


class Transition(NamedTuple):
    """Outcome of one step of N episodes."""

    rewards: Floats
    """(N,)"""
    terminated: NDArray[np.bool_]
    """(N,)"""


class Episodes:
    """State of N episodes over one cache; every method acts on all of them, or on the rows named, at once.

    Args:
        n: N.
        cache: where the samples come from.
        mode: the action mode.
        observer: assembles the observations.
        proposals: P, how many proposals of a sample take part.
        stage: number of the curriculum's stage.
        reward: name of the potential; None for the stage's own.
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
    ) -> None:
        self._cache, self._mode, self._observer, self._proposals = cache, mode, observer, proposals
        self._reward = reward
        self.samples = np.zeros(n, np.intp)
        self.sources = np.zeros(n, np.intp)
        self.steps = np.zeros(n, np.intp)
        self.spans = np.zeros((n, 2), np.float32)
        self.start_spans = np.zeros((n, 2), np.float32)
        self.tiou = np.zeros(n, np.float32)
        self._clip = np.ones(n, np.float32)
        self._counts = np.zeros(n, np.intp)
        self.proposals = np.zeros((n, proposals, 2), np.float32)
        self._slots = np.arange(proposals)
        self._rows = np.arange(n)
        self.moments = np.tile(np.array([0, 1], np.float32), (n, 1, 1))
        self.set_stage(stage)

    def set_stage(self, number: int) -> None:
        """Change the stage; running episodes go on under the new rules.

        Raises:
            ValueError: there is no such stage.
        """
        self.stage: Stage = get_stage(number)
        self._potential = get_potential(self.stage.reward if self._reward is None else self._reward)
        self._free = np.zeros(self._mode.size, bool)
        for group, part in self._mode.groups.items():
            self._free[part] = group in self.stage.actions
        self._potentials = self._potential(self.spans, self.moments)
        self._look()

    def start(self, rows: Array, samples: Array, starts: Array) -> None:
        """Begin episodes in `rows` (K,) with the given samples (K,), each at the given proposal (K,)."""
        cache = self._cache
        self.samples[rows] = samples
        self.sources[rows] = starts
        self.steps[rows] = 0
        proposals = cache.spans[samples, : self._proposals]
        self.proposals[rows] = proposals
        self._counts[rows] = cache.counts[samples]
        self._clip[rows] = np.float32(cache.manifest["clip_seconds"]) / cache.durations[samples]
        spans = proposals[np.arange(len(rows)), starts]
        self.spans[rows] = self.start_spans[rows] = spans
        moments = self._load_moments(rows, samples)
        self.tiou[rows] = best_tiou(spans, moments)
        self._potentials[rows] = self._potential(spans, moments)
        self._look()

    def _load_moments(self, rows: Array, samples: Array) -> Floats:
        offsets = self._cache.moments.offsets
        first, last = offsets[samples], offsets[samples + 1] - 1
        missing = int((last - first).max()) + 1 - self.moments.shape[1]
        if missing > 0:
            repeated = np.repeat(self.moments[:, -1:], missing, axis=1)
            self.moments = np.concatenate([self.moments, repeated], axis=1)
        at = np.minimum(first[:, None] + np.arange(self.moments.shape[1]), last[:, None])
        moments: Floats = self._cache.moments.values[at]
        self.moments[rows] = moments
        return moments

    def step(self, actions: Array) -> Transition:
        """Take one action in every episode."""
        outcome = self._mode.apply(actions, self.spans, self._probes, self._clip, self.mask)
        switching = np.flatnonzero(outcome.switched >= 0)
        slots = outcome.switched[switching]
        self.spans = outcome.spans
        self.spans[switching] = self.proposals[switching, slots]
        self.sources[switching] = slots
        self.steps += 1
        self.tiou = best_tiou(self.spans, self.moments)
        potentials = self.tiou if self._potential is best_tiou else self._potential(self.spans, self.moments)
        rewards = potentials - self._potentials
        self._potentials = potentials.copy()
        self._look()
        return Transition(rewards, outcome.stopped | (self.steps >= self._mode.horizon))

    def gains(self) -> Floats:
        """Change of tIoU by every action: (N, A), 0 for impossible ones. For training only: it knows the answer.

        Raises:
            TypeError: the actions cannot be listed (continuous ones).
        """
        spans, n = self._mode.destinations(self.spans, self._probes, self.proposals, self._clip), len(self.spans)
        moments = np.repeat(self.moments, spans.shape[1], axis=0)
        tiou = best_tiou(spans.reshape(-1, 2), moments).reshape(n, -1)
        gains: Floats = np.where(self.mask, tiou - self.tiou[:, None], np.float32(0))
        return gains

    def _look(self) -> None:
        """Find out which actions are possible from here."""
        self._probes = probe(self.spans, self._clip, self._mode.offsets(self.steps))
        # A switch back to where the span came from makes sense only if it has moved since.
        at_source = self.proposals[self._rows, self.sources]
        moved = (self.spans[:, 0] != at_source[:, 0]) | (self.spans[:, 1] != at_source[:, 1])
        switchable = self._slots < self._counts[:, None]
        switchable[self._rows, self.sources] = moved
        self.mask: NDArray[np.bool_] = self._mode.mask(self._probes.valid, switchable) & self._free

    def observe(self, out: Floats, rows: Array | slice = slice(None)) -> None:
        """Write flat observations of `rows` into `out` (K, width)."""
        horizon = self._mode.horizon
        view = View(
            samples=self.samples[rows],
            spans=self.spans[rows],
            sources=self.sources[rows],
            remaining=((horizon - self.steps[rows]) / horizon).astype(np.float32),
            clip=self._clip[rows],
            proposals=self.proposals[rows],
            positions=self._probes.positions[..., rows],
        )
        self._observer.write(out, view)

    def seconds(self, rows: Array | slice = slice(None)) -> NDArray[np.float64]:
        """Current spans in seconds: (K, 2)."""
        durations = self._cache.durations[self.samples[rows]].astype(np.float64)
        return self.spans[rows].astype(np.float64) * durations[:, None]


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """One stream of random numbers per episode slot, drawn for all slots at once.

    Slot i's k-th number is a hash of (key_i, k) (SplitMix64: Steele, Lea and Flood, 2014), so a slot draws the same
    numbers whether it stands alone or among thousands.
    """

    def __init__(self, keys: Sequence[int] | Array) -> None:
        self._keys = np.array(keys, np.uint64)
        self._counts = np.zeros(len(self._keys), np.uint64)

    def below(self, rows: Array, bounds: Array | int) -> NDArray[np.intp]:
        """The next number of each slot in `rows` (K,), in [0, bound)."""
        self._counts[rows] += np.uint64(1)
        z = self._keys[rows] + self._counts[rows] * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        # The modulo's bias is below 2^-40 for any cache.
        return (z % np.asarray(bounds, np.uint64)).astype(np.intp)
