"""The arguments that the single and the vector environment share, and what is made of them."""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np

from vmr_env.arrays import Array, Ints
from vmr_env.caches.boundary_features import log_length
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs import kernel
from vmr_env.envs.actions import FREE, KINDS, free_groups, get_action_mode
from vmr_env.envs.compilation import COMPILES, fixed
from vmr_env.envs.components import Group, groups_of
from vmr_env.envs.curriculum import CURRICULA
from vmr_env.envs.memory import Computed, Memory
from vmr_env.envs.observations import Observer
from vmr_env.envs.rewards import BUILT_IN, POTENTIALS, Reward
from vmr_env.envs.sources import check_split, open_source
from vmr_env.envs.timelines import empty_timelines, find_timelines, timeline_bytes, workspace
from vmr_env.errors import DataError, Problem, check_count

Source = str | os.PathLike[str] | DecoderStateCache | None

PROPOSALS = 10
"""Proposals of a sample that take part, by default."""


@dataclass(frozen=True)
class EnvConfig:
    """Arguments of both environments, as `VMREnv` describes them."""

    dataset: str = "charades"
    split: str | None = None
    source: Source = None
    _: KW_ONLY
    samples: Sequence[int] | Array | None = None
    stage: int | None = None
    curriculum: str = "tprl"
    actions: str = "discrete"
    components: Sequence[str] | None = None
    observation: str = "flat"
    proposals: int = PROPOSALS
    horizon: int | None = None
    reward: str | None = None
    free: Sequence[str] = FREE


def configured(dataset: str, split: str | None, source: Source, options: Mapping[str, Any]) -> EnvConfig:
    """The configuration of an environment that was given these options.

    Raises:
        TypeError: there is no such option.
    """
    known = [field.name for field in fields(EnvConfig)]
    if unknown := sorted(set(options) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise TypeError(f"there is no argument {unknown[0]!r}; {hint}known are {', '.join(known)}")
    return EnvConfig(dataset, split, source, **options)


class Task:
    """What the environments of one configuration share; nothing in it changes.

    Attributes:
        config: the configuration, whose source is the open cache.
        cache: where the samples come from.
        proposals: P.
        mode: the action mode.
        curriculum: the stages.
        observer: tells where the components of observations stand.
        flat: whether observations are flat vectors.
        observation_space: of one episode.
        action_space: of one episode.
        tables: for `vmr_env.envs.kernel`.
        samples: rows of the cache to draw from, empty for all.

    Raises:
        ValueError: an argument is none of those expected.
        DataError: the source is no cache of the data set, or has no such samples.
    """

    def __init__(self, config: EnvConfig) -> None:
        if config.observation not in ("flat", "dict"):
            raise ValueError(f"observation is {config.observation!r}, expected 'flat' or 'dict'")
        check_count("proposals", config.proposals)
        cache = opened(config.dataset, config.split, config.source)
        self.config = replace(config, source=cache)
        self.cache = cache
        self.proposals = min(config.proposals, cache.manifest["proposals"])
        self.mode = get_action_mode(config.actions, self.proposals, config.horizon)
        self.observer = Observer(cache, self.mode, self.proposals, config.components)
        self.flat = config.observation == "flat"
        self.observation_space = self.observer.space(self.flat)
        self.action_space = self.mode.space
        rows = None if config.samples is None else sample_rows(config.samples, len(cache))
        self.samples = fixed(rows, np.int64, 1)
        self._free = free_groups(config.free, self.mode)
        self.curriculum = CURRICULA.get(config.curriculum)
        for number in self.curriculum.numbers:  # a fault of a later stage is told now, not in mid-training
            self.reward(number)
            self._free_in(number)
        cache.require_sound()
        self.tables = _tables(cache)

    def __reduce__(self) -> tuple[Any, ...]:
        return Task, (self.config,)  # a pickle holds no tables; they are mapped again

    def __deepcopy__(self, memo: dict[int, Any]) -> "Task":
        return self

    def timelines(self, n: int) -> Memory:
        """Memory for the timelines of n episodes; shared ones take so little time that all are computed."""
        cache, of, saliency = self.cache, self.tables, self.cache.saliency
        proposals, longest = cache.manifest["proposals"], 0 if saliency is None else saliency.lengths.max()
        scores = fixed(cache.scores, np.float32, 2)
        curves = fixed(None if saliency is None else saliency.values, np.float32, 1)
        timelines = Computed(
            find_timelines,
            (of.samples, of.spans, scores, of.models, curves),
            len(cache) * timeline_bytes(proposals),
            lambda rows, shared: empty_timelines(rows, proposals, shared),
            partial(workspace, proposals, int(longest)),
        )
        memory, every = Memory(cache, timelines, n), np.arange(len(cache))
        if COMPILES and memory.shared and not memory.complete:
            memory.hold(every, every)
        return memory

    def groups(self, n: int) -> list[Group]:
        """What writes the components of n episodes that the kernel does not.

        Raises:
            DataError: the cache is damaged, or the tables of clips cannot be kept.
        """
        return groups_of(self.cache, self.observer.shapes, n)

    def reward(self, stage: int) -> Reward:
        """The reward of a stage.

        Raises:
            ValueError: there is no such stage or reward.
        """
        return POTENTIALS.get(self._reward_name(stage))

    def _reward_name(self, stage: int) -> str:
        return self.curriculum[stage].reward if self.config.reward is None else self.config.reward

    def _free_in(self, stage: int) -> frozenset[str]:
        """The groups of actions that are free in a stage."""
        free = self.curriculum[stage].free & self._free
        if not free & self.mode.groups.keys():
            which, groups = f"stage {stage}, {self.curriculum[stage].name!r},", ", ".join(self.mode.groups)
            raise ValueError(f"{which} frees {sorted(free)}, expected some of {groups}")
        return free

    def rules(self, number: int) -> kernel.Rules:
        """The rules of a stage.

        Raises:
            ValueError: there is no such stage or reward.
        """
        offsets, reward, free = self.mode.offsets, self._reward_name(number), self._free_in(number)
        return kernel.Rules(
            form=("listed", "paired", "continuous").index(self.mode.moves.form),
            horizon=self.mode.horizon,
            proposals=self.proposals,
            models=len(self.cache.manifest["models"]),
            candidates=self.mode.probes,
            potential=BUILT_IN.index(reward) if reward in BUILT_IN else kernel.TIOU,
            moves_free=int("move" in free),
            switches_free=int("switch" in free),
            switches=self.mode.choices[:, 0].tolist().count(KINDS["switch"]),
            start_k=self.curriculum[number].start_k,
            longest=offsets.max(),
            offsets=fixed(offsets, np.float32, 2),
            moves=fixed(self.mode.choices[self.mode.groups["move"], 1:].T, np.uint32, 2),
            columns=fixed(self.observer.columns(kernel.COMPONENTS), np.int64, 1),
        )

    def formed(self, flat: Array) -> Any:
        """Flat observations (..., width) in the form asked for."""
        return flat if self.flat else self.observer.split(flat)

    def chosen(
        self, rows: Ints, samples: Ints, firsts: Ints, options: dict[str, Any], n: int
    ) -> tuple[Ints, Ints]:
        """Samples and proposals (K,) at which the episodes `rows` (K,) of N start, by a reset's options.

        An option has one value for all or N values; what it does not choose stays as it was drawn.

        Raises:
            ValueError: an option is not as expected.
            DataError: the cache has no such query.
        """
        unknown = set(options) - {"qid", "sample", "start"}
        if unknown or {"qid", "sample"} <= set(options):
            raise ValueError(
                f"options has {sorted(options)}, expected some of 'qid' or 'sample', and 'start'"
            )
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
        return samples, np.minimum(firsts, counts - 1)


def opened(dataset: str, split: str | None, source: Source) -> DecoderStateCache:
    """The cache that `open_source` finds, or one that is open already.

    Raises:
        DataError: it is no cache of the data set and split.
        ValueError: the data set is unknown.
    """
    cache = source if isinstance(source, DecoderStateCache) else open_source(dataset, split, source)
    check_split(cache, split)
    return cache


def _tables(cache: DecoderStateCache) -> kernel.Tables:
    """What the kernel knows of a cache."""
    samples = np.zeros(len(cache), kernel.SAMPLE)
    samples["count"], samples["duration"] = cache.counts, cache.durations
    samples["clip_length"] = np.float32(cache.manifest["clip_seconds"]) / samples["duration"]
    samples["log_length"] = log_length(np.float32(1) / samples["clip_length"])
    samples["first_moment"], samples["last_moment"] = cache.moments.offsets[:-1], cache.moments.offsets[1:]
    if cache.saliency is not None:
        offsets = cache.saliency.offsets
        samples["first_saliency"], samples["last_saliency"] = offsets[:-1], offsets[1:]
    spans, models = fixed(cache.spans, np.float32, 3), fixed(cache.models, np.uint8, 2)
    return kernel.Tables(samples, spans, models, fixed(cache.moments.values, np.float32, 2))


def sample_rows(samples: Sequence[int] | Array, count: int) -> Ints:
    """Rows of a cache of `count` samples, once they are known to be some.

    Raises:
        DataError: they are not.
    """
    rows = np.asarray(samples)
    if rows.ndim == 1 and not len(rows):
        message = "is empty, expected rows of the cache, or None for all of them"
        raise DataError(Problem("samples", None, None, message))
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        message = f"has shape {rows.shape} and type {rows.dtype}, expected rows of the cache"
        raise DataError(Problem("samples", None, None, message))
    outside = np.flatnonzero((rows < 0) | (rows >= count))
    if len(outside):
        at = int(outside[0])
        raise DataError(Problem("samples", at + 1, None, f"is {rows[at]}, expected 0 to {count - 1}"))
    return rows.astype(np.int64)


def _fitting(name: str, values: Any, n: int) -> Ints:
    """The option's values as whole numbers (n,)."""
    rows = np.asarray(values)
    if rows.dtype.kind not in "iu" or rows.shape not in ((), (1,), (n,)):
        raise ValueError(f"options[{name!r}] is {values!r}, expected one whole number or {n} of them")
    return np.broadcast_to(rows, (n,)).astype(np.int64)


def _check_below(name: str, values: Ints, bounds: Array | int) -> None:
    outside = np.flatnonzero((values < 0) | (values >= bounds))
    if len(outside):
        bound = np.broadcast_to(bounds, values.shape)[outside[0]]
        raise ValueError(f"options[{name!r}] is {values[outside[0]]}, expected 0 to {bound - 1}")
