"""The arguments that the single and the vector environment share, and what is made of them."""

import difflib
import os
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vmr_env.arrays import Array, Floats, Ints
from vmr_env.caches.clip_sums import clip_sums_of
from vmr_env.caches.evidence import evidence_of
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs import kernel
from vmr_env.envs.actions import FREE, free_groups, get_action_mode
from vmr_env.envs.compilation import COMPILES, direct
from vmr_env.envs.curriculum import CURRICULA
from vmr_env.envs.observations import Observer
from vmr_env.envs.rewards import BUILT_IN, POTENTIALS, Reward
from vmr_env.envs.sources import check_split, open_source
from vmr_env.envs.timelines import Timelines, empty_timelines, timeline_bytes, workspace
from vmr_env.errors import DataError, Problem, check_count

Source = str | os.PathLike[str] | DecoderStateCache | None

PROPOSALS = 10
"""Proposals of a sample that take part, by default."""

SHARED_BYTES = 1 << 29
"""Memory that the timelines of all samples of a cache may take; those of larger ones are computed where
episodes begin."""


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

    Raises:
        ValueError: an argument is none of those expected.
        DataError: the source is no cache of the data set, or has no such samples; tables cannot be kept.
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
        self._samples = (
            np.empty(0, np.int64) if config.samples is None else sample_rows(config.samples, len(cache))
        )
        self._free = free_groups(config.free, self.mode)
        self.curriculum = CURRICULA.get(config.curriculum)
        for number in self.curriculum.numbers:  # a fault of a later stage is told now, not in mid-training
            self.reward(number)
            self._free_in(number)
        cache.require_sound()
        self.tables = _tables(cache, self.observer.shapes)
        longest = 0 if cache.saliency is None else int(cache.saliency.lengths.max())
        self._workspace = workspace(cache.manifest["proposals"], longest)

    def __reduce__(self) -> tuple[Any, ...]:
        return Task, (self.config,)  # a pickle holds no tables; they are mapped again

    def __deepcopy__(self, memo: dict[int, Any]) -> "Task":
        return self

    @cached_property
    def timelines(self) -> Timelines | None:
        """Those of all samples, which all environments of the cache share. None where they are too large, or
        are not computed by compiled code: each episode has that of its own sample then."""
        samples, proposals = len(self.cache), self.cache.manifest["proposals"]
        found = _SHARED.get(self.cache)
        if found is None and COMPILES and samples * timeline_bytes(proposals) <= SHARED_BYTES:
            found = empty_timelines(samples, proposals, shared=True)
            every = np.arange(samples)
            self.find_timelines(every, every, found)
            _SHARED[self.cache] = found
        return found

    def own_timelines(self, n: int) -> Timelines:
        """Memory for those of n episodes."""
        return empty_timelines(n, self.cache.manifest["proposals"], shared=False)

    def find_timelines(self, samples: Ints, rows: Ints, timelines: Timelines) -> None:
        """Write the timelines of samples (K,) to rows (K,)."""
        clip_seconds = np.float32(self.cache.manifest["clip_seconds"])
        find = direct(kernel.find_timelines)
        find(self.tables, clip_seconds, samples, rows, timelines, self._workspace)

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
            potential=BUILT_IN.index(reward) if reward in BUILT_IN else kernel.TIOU,
            moves=int("move" in free),
            switches=int("switch" in free),
            start_k=self.curriculum[number].start_k,
            clip_seconds=np.float32(self.cache.manifest["clip_seconds"]),
            longest=offsets.max(),
            offsets=_fixed(offsets, np.float32, 2),
            choices=_fixed(self.mode.choices, np.uint32, 2),
            samples=_fixed(self._samples, np.int64, 1),
            columns=_fixed(self.observer.columns(kernel.COMPONENTS), np.int64, 1),
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


_SHARED: weakref.WeakKeyDictionary[DecoderStateCache, Timelines] = weakref.WeakKeyDictionary()
"""Timelines of all samples of the caches that are open."""


def _tables(cache: DecoderStateCache, components: Collection[str]) -> kernel.Tables:
    """The arrays of a cache and those derived from it; clip sums, a large table, where they are shown."""
    clips = None if {"point_clips", "proposal_clips"}.isdisjoint(components) else clip_sums_of(cache)
    states, half_states = _by_precision(cache.states, 3)
    text, half_text = _by_precision(cache.text, 2)
    evidence = None if {"relevance", "span_evidence"}.isdisjoint(components) else evidence_of(cache)
    saliency = cache.saliency
    no_saliency = np.zeros(len(cache) + 1, np.int64)
    return kernel.Tables(
        spans=_fixed(cache.spans, np.float32, 3),
        scores=_fixed(cache.scores, np.float32, 2),
        counts=_fixed(cache.counts, np.int32, 1),
        models=_fixed(cache.models, np.uint8, 2),
        durations=_fixed(cache.durations, np.float32, 1),
        moments=_fixed(cache.moments.values, np.float32, 2),
        moment_offsets=_fixed(cache.moments.offsets, np.int64, 1),
        saliency=_fixed(None if saliency is None else saliency.values, np.float32, 1),
        saliency_offsets=_fixed(no_saliency if saliency is None else saliency.offsets, np.int64, 1),
        states=states,
        half_states=half_states,
        text=text,
        half_text=half_text,
        clip_sums=_fixed(None if clips is None else clips.sums, np.float32, 2),
        clip_firsts=_fixed(None if clips is None else clips.firsts, np.int64, 1),
        clip_counts=_fixed(None if clips is None else clips.counts, np.int64, 1),
        score_shares=_fixed(_shares(cache) if "votes" in components else None, np.float32, 2),
        evidence=_fixed(None if evidence is None else evidence.spans.view(np.uint16), np.uint16, 2),
        evidence_points=_fixed(None if evidence is None else evidence.points, np.float32, 2),
        entropies=_fixed(None if evidence is None else evidence.entropies, np.float32, 1),
        evidence_cells=_fixed(None if evidence is None else evidence.cells, np.int64, 1),
        evidence_firsts=_fixed(None if evidence is None else evidence.span_firsts, np.int64, 1),
        evidence_point_firsts=_fixed(None if evidence is None else evidence.point_firsts, np.int64, 1),
    )


def _shares(cache: DecoderStateCache) -> Floats:
    """Share of each proposal in the sum of its model's scores; equal shares where all are 0: (S, Q)."""
    shares = np.zeros(cache.scores.shape, np.float32)
    present = np.arange(cache.scores.shape[1]) < np.asarray(cache.counts)[:, None]
    for model in range(len(cache.manifest["models"])):
        its = present & (cache.models == model)
        scores = np.where(its, cache.scores, 0)
        total = scores.sum(axis=1, keepdims=True)
        equal = its / np.maximum(its.sum(axis=1, keepdims=True), 1)
        shares += np.where(total > 0, scores / np.where(total > 0, total, 1), equal)
    return shares


def _by_precision(array: Array | None, axes: int) -> tuple[Array, Array]:
    """An array as float32, and as the bits of float16: one of them is empty."""
    half = array.view(np.uint16) if array is not None and array.dtype == np.float16 else None
    return _fixed(array if half is None else None, np.float32, axes), _fixed(half, np.uint16, axes)


def _fixed(array: Array | None, dtype: DTypeLike, axes: int) -> Array:
    """A read-only C-contiguous view or copy, so that compiled code meets one type; an empty one for None."""
    fixed = np.ascontiguousarray(np.empty((0,) * axes) if array is None else array, dtype).view()
    fixed.flags.writeable = False
    return fixed


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
