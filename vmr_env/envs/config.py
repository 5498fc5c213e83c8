"""The arguments that the single and the vector environment share, checked, and what is made of them."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from vmr_env.arrays import Array, Ints, Rows
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.actions import free_groups, get_action_mode
from vmr_env.envs.episode import Episode
from vmr_env.envs.episodes import Draws, Episodes, Starts
from vmr_env.envs.observations import Observer
from vmr_env.envs.sources import check_split, open_source
from vmr_env.errors import DataError, Problem, check_count

Source = str | os.PathLike[str] | DecoderStateCache | None

PROPOSALS = 10
"""Proposals of a sample that take part, by default."""


class Setting:
    """What both environments are made of. Arguments are those of `VMREnv`.

    Attributes:
        cache: where the samples come from.
        proposals: P.
        mode: the action mode.
        observer: assembles the observations.
        flat: whether observations are flat vectors.
        observation_space: of one episode.
        action_space: of one episode.

    Raises:
        ValueError: an argument is none of those expected.
        DataError: the source is no cache of the data set, or has no such samples.
    """

    def __init__(
        self,
        *,
        dataset: str,
        split: str | None,
        source: Source,
        samples: Sequence[int] | Array | None,
        stage: int,
        actions: str,
        components: Sequence[str] | None,
        observation: str,
        proposals: int,
        horizon: int | None,
        reward: str | None,
        free: Sequence[str],
    ) -> None:
        if observation not in ("flat", "dict"):
            raise ValueError(f"observation is {observation!r}, expected 'flat' or 'dict'")
        check_count("proposals", proposals)
        cache = source if isinstance(source, DecoderStateCache) else open_source(dataset, split, source)
        check_split(cache, split)
        self.cache = cache
        self.proposals = min(proposals, cache.manifest["proposals"])
        self.mode = get_action_mode(actions, self.proposals, horizon)
        self.observer = Observer(cache, self.proposals, components)
        self.flat = observation == "flat"
        self.observation_space = self.observer.space(self.flat)
        self.action_space = self.mode.space
        self._samples = None if samples is None else _sample_rows(samples, len(cache))
        self._rules: dict[str, Any] = {
            "cache": cache,
            "mode": self.mode,
            "observer": self.observer,
            "proposals": self.proposals,
            "stage": stage,
            "reward": reward,
            "free": free_groups(free, self.mode),
        }

    def episodes(self, n: int) -> Episodes:
        """N episodes under this setting, not started yet."""
        return Episodes(n, **self._rules)

    def episode(self) -> Episode:
        """One episode under this setting, not started yet."""
        return Episode(**self._rules)

    def formed(self, flat: Array) -> Any:
        """Flat observations (..., width) in the form asked for."""
        return flat if self.flat else self.observer.split(flat)

    def starts(self, draws: Draws, rows: Rows, start_k: int) -> Starts:
        """Random episodes to begin in the given rows."""
        numbers = draws.next(rows)
        n = len(self.cache) if self._samples is None else len(self._samples)
        samples = (numbers % np.uint64(n)).astype(np.intp)
        if self._samples is not None:
            samples = self._samples.take(samples)
        if start_k == 1:
            return Starts(rows, samples, np.zeros(len(samples), np.intp))
        counts = np.minimum(self.cache.counts.take(samples), min(start_k, self.proposals))
        firsts = (numbers // np.uint64(n) % counts.astype(np.uint64)).astype(np.intp)
        return Starts(rows, samples, firsts)

    def start_of_one(self, draws: Draws, start_k: int) -> tuple[int, int]:
        """A random episode of a single environment, as `starts` gives it: sample and proposal."""
        number = draws.next_of_first()
        n = len(self.cache) if self._samples is None else len(self._samples)
        sample = number % n if self._samples is None else int(self._samples[number % n])
        count = min(int(self.cache.counts[sample]), start_k, self.proposals)
        return sample, number // n % count

    def chosen(self, starts: Starts, options: dict[str, Any], n: int) -> Starts:
        """The episodes with what a reset's options choose, each by one value for all or by N values."""
        unknown = set(options) - {"qid", "sample", "start"}
        if unknown or {"qid", "sample"} <= set(options):
            raise ValueError(
                f"options has {sorted(options)}, expected some of 'qid' or 'sample', and 'start'"
            )
        rows, samples, firsts = starts
        if "qid" in options:
            qids = options["qid"]
            qids = list(qids) if isinstance(qids, list | tuple | np.ndarray) else [qids]
            samples = _fitting("qid", [self.cache.index_of(qid) for qid in qids], n)[rows]
        elif "sample" in options:
            samples = _fitting("sample", options["sample"], n)[rows]
            _check_below("sample", samples, len(self.cache))
        counts = np.minimum(self.cache.counts.take(samples), self.proposals)
        if "start" in options:
            firsts = _fitting("start", options["start"], n)[rows]
            _check_below("start", firsts, counts)
        return Starts(rows, samples, np.minimum(firsts, counts - 1))


def _sample_rows(samples: Sequence[int] | Array, count: int) -> Ints:
    rows = np.asarray(samples)
    if rows.ndim != 1 or len(rows) == 0 or rows.dtype.kind not in "iu":
        message = f"has shape {rows.shape} and type {rows.dtype}, expected rows of the cache"
        raise DataError(Problem("samples", None, None, message))
    outside = np.flatnonzero((rows < 0) | (rows >= count))
    if len(outside):
        at = int(outside[0])
        raise DataError(Problem("samples", at + 1, None, f"is {rows[at]}, expected 0 to {count - 1}"))
    return rows.astype(np.intp)


def _fitting(name: str, values: Any, n: int) -> Ints:
    """The option's values as whole numbers (n,)."""
    rows = np.asarray(values)
    if rows.dtype.kind not in "iu" or rows.shape not in ((), (1,), (n,)):
        raise ValueError(f"options[{name!r}] is {values!r}, expected one whole number or {n} of them")
    return np.broadcast_to(rows, (n,)).astype(np.intp)


def _check_below(name: str, values: Ints, bounds: Array | int) -> None:
    outside = np.flatnonzero((values < 0) | (values >= bounds))
    if len(outside):
        bound = np.broadcast_to(bounds, values.shape)[outside[0]]
        raise ValueError(f"options[{name!r}] is {values[outside[0]]}, expected 0 to {bound - 1}")
