"""What an agent sees: named components, side by side in one flat vector or as a `Dict`.

| component | shape | what |
|---|---|---|
| `remaining` | (1,) | share of the horizon that is left |
| `video` | (1,) | logarithm of the video's length in clips |
| `span` | (4,) | start, end, width, logarithm of the length in clips |
| `source` | (P,) | which proposal the span came from, one-hot |
| `overlaps` | (P,) | tIoU of the span with each proposal |
| `positions` | (14,) | where the 7 probes of the start and the 7 of the end are |
| `points` | (14, 14) | what the timeline says at each of them (`POINT_FEATURES`) |
| `whole` | (4,) | integral of each curve over the whole video (`CURVES`) |
| `inside` | (7,) | what lies inside the span (`INSIDE_FEATURES`) |
| `proposals` | (P, 34) | all that is known of each proposal (`SPAN_FEATURES`), zeros where there is none |
| `models` | (P, M) | which model each proposal came from, one-hot (pools only) |
| `decoder_state` | (D,) | decoder state of the proposal the span came from (caches with states only) |
| `text` | (X,) | sentence vector (caches with text only) |
| `point_clips` | (14, 3, C) | clip features at each probe (`POINT_PARTS`; caches with clips only) |
| `proposal_clips` | (P, 5, C) | clip features of each proposal (`SPAN_PARTS`; caches with clips only) |

All values are finite float32 inside the declared bounds. The features are described in
`vmr_env.caches.boundary_features`
and `vmr_env.caches.clip_sums`. Clip features are worth having, and make observations wide: 23,552 numbers of
C = 256 channels and P = 10 proposals. Naming the other components leaves them out.
"""

import difflib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from vmr_env.arrays import Floats, Ints, Rows, row_length
from vmr_env.caches.boundary_features import (
    CELLS,
    CURVES,
    FLOOR,
    INSIDE_FEATURES,
    INTEGRALS,
    POINT_FEATURES,
    SHORTEST,
    SPAN_FEATURES,
    cell_of,
    inside_features,
    log_length,
)
from vmr_env.caches.boundary_tables import timelines_of
from vmr_env.caches.clip_sums import POINT_PARTS, SPAN_PARTS, clip_sums_of
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.actions import HERE, PROBES

STATE_BOUND = 65504.0
"""Largest float16: bound of decoder states, sentence vectors and clip features."""

_UNBOUNDED = ("decoder_state", "text", "point_clips", "proposal_clips")
"""Components of any scale; the others lie in [-1, 1]."""

_BLOCK = 256
"""Observations that are put together at once, so that their parts stay in the processor's cache."""

_ONE = np.ones((), np.float32)
_POINTS, _WIDTH_OF_POINTS = np.array(CELLS + 1), np.array(len(POINT_FEATURES))
_COLUMNS_OF_INTEGRALS = np.arange(INTEGRALS.start, INTEGRALS.stop)[:, None, None]


class Sight:
    """What N episodes look like, without the wide components, which `Observer` looks up.

    Attributes:
        table: (rows, N), a row for every number.
        remaining: (N,), parts of the table, as are all that follow; see `vmr_env.envs.observations`.
        video: (N,).
        bounds: (2, N), start and end.
        start: (N,).
        end: (N,).
        width: (N,).
        length: (N,), on a logarithmic scale.
        source: (P, N).
        overlaps: (P, N).
        positions: (2, PROBES, N).
        whole: (C, N).
        inside: (I, N).
        cells: (2, PROBES, N), rows of the points' table at the positions.
    """

    def __init__(self, n: int, proposals: int) -> None:
        self._rows, height = rows_of_sight(proposals)
        self.table = np.zeros((height, row_length(n)), np.float32)[:, :n]
        self.cells = np.zeros((2, PROBES, row_length(n, np.intp)), np.intp)[..., :n]
        self._name_parts()

    def _name_parts(self) -> None:
        part = {name: self.table[rows] for name, rows in self._rows.items()}
        (self.remaining,), (self.video,) = part["remaining"], part["video"]
        self.bounds = part["span"][:2]
        self.start, self.end, self.width, self.length = part["span"]
        self.source, self.overlaps = part["source"], part["overlaps"]
        self.positions = part["positions"].reshape(2, PROBES, -1)
        self.whole, self.inside = part["whole"], part["inside"]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._name_parts()  # copies of views are views no longer


def rows_of_sight(proposals: int) -> tuple[dict[str, slice], int]:
    """Which rows of a sight's table belong to each component, and how many there are."""
    sizes = {
        "remaining": 1,
        "video": 1,
        "span": 4,
        "source": proposals,
        "overlaps": proposals,
        "positions": 2 * PROBES,
        "whole": len(CURVES),
        "inside": len(INSIDE_FEATURES),
    }
    return _side_by_side(sizes)


class Observer:
    """Assembles observations from the chosen components.

    Args:
        cache: where the samples come from.
        proposals: P, how many proposals are shown.
        components: names, in the order in which they stand; None for all that the cache has.

    Attributes:
        shapes: shape of each component.
        slices: where each component stands in the flat vector.
        width: length of the flat vector.
        points: (S * (CELLS + 1), `POINT_FEATURES`), the timelines of all samples, one after the other.

    Raises:
        ValueError: a component is unknown, named twice, or not in this cache.
        DataError: the timelines of the cache cannot be kept.
    """

    def __init__(
        self, cache: DecoderStateCache, proposals: int, components: Sequence[str] | None = None
    ) -> None:
        self._arguments = cache, proposals, components
        self._cache, self._slots = cache, np.arange(proposals, dtype=np.int16)[:, None]
        timelines = timelines_of(cache)
        self.points = timelines.points.reshape(-1, len(POINT_FEATURES))
        self._proposals = timelines.proposals[:, :proposals].reshape(len(cache), -1)

        known = _known_shapes(cache, proposals)
        names = list(known) if components is None else list(components)
        _check_components(names, list(known))
        self.shapes = {name: known[name] for name in names}
        shows_clips = not {"point_clips", "proposal_clips"}.isdisjoint(names)
        self._clip_sums = clip_sums_of(cache) if shows_clips else None  # a large table, made on first use
        self.slices, self.width = _side_by_side({name: math.prod(known[name]) for name in names})
        rows, _ = rows_of_sight(proposals)
        self._copies = _merged([(self.slices[name], rows[name]) for name in names if name in rows])
        of_samples = {
            "proposals": self._proposals_of,
            "models": self._models_of,
            "text": self._texts_of,
            "proposal_clips": self._clips_of_proposals,
        }
        of_spans = {
            "points": self._points_of,
            "decoder_state": self._decoder_states_of,
            "point_clips": self._clips_of_points,
        }
        self._of_samples = [(self.slices[name], of_samples[name]) for name in names if name in of_samples]
        self._of_spans = [(self.slices[name], of_spans[name]) for name in names if name in of_spans]

    def __reduce__(self) -> tuple[Any, ...]:
        return Observer, self._arguments  # a pickle holds no tables; they are mapped again

    def __deepcopy__(self, memo: dict[int, Any]) -> "Observer":
        return self

    def space(self, flat: bool) -> spaces.Space[Any]:
        """Observation space of one episode: a `Box`, or a one-level `Dict` with a key per component."""
        limits = {
            name: np.full(shape, STATE_BOUND if name in _UNBOUNDED else 1, np.float32)
            for name, shape in self.shapes.items()
        }
        if not flat:
            return spaces.Dict({name: spaces.Box(-limit, limit) for name, limit in limits.items()})
        limit = np.concatenate([limit.ravel() for limit in limits.values()])
        return spaces.Box(-limit, limit)

    def split(self, flat: Floats) -> dict[str, Floats]:
        """The components of flat observations (..., width), as fresh arrays."""
        return {
            name: flat[..., part].reshape(*flat.shape[:-1], *self.shapes[name]).copy()
            for name, part in self.slices.items()
        }

    def meet(self, sight: Sight, out: Floats, rows: Rows, samples: Ints, clip: Floats) -> None:
        """Set what stays the same throughout the episodes that begin in `rows` (K,).

        Args:
            sight: of N episodes.
            out: (N, width), flat observations of all episodes, filled as far as they stay the same.
            rows: which of them begin.
            samples: (K,), rows of the cache.
            clip: (K,), length of a clip as a share of the video.
        """
        sight.video[rows] = log_length(_ONE / clip)
        ends = samples * _POINTS + CELLS
        sight.whole[:, rows] = self.points.take(ends, axis=0)[:, INTEGRALS].T
        for part in _blocks(len(samples)):
            where = part if isinstance(rows, slice) else rows[part]
            for there, look_up in self._of_samples:
                out[where, there] = look_up(samples[part])

    def look(self, sight: Sight, samples: Ints, sources: Ints) -> None:
        """Update what lies inside the spans, where the positions are, and which proposals they came from.

        Args:
            sight: of N episodes, with bounds and positions.
            samples: (N,), rows of the cache.
            sources: (N,), the proposals that the spans came from.
        """
        sight.source[:] = self._slots == sources.astype(np.int16)
        np.add(cell_of(sight.positions), samples * _POINTS, out=sight.cells)
        places = sight.cells[:, HERE] * _WIDTH_OF_POINTS + _COLUMNS_OF_INTEGRALS
        integrals = self.points.reshape(-1).take(places)  # (C, 2, N)
        width, whole = np.maximum(sight.width, SHORTEST), np.maximum(sight.whole[:3], FLOOR)
        inside_features(sight.inside, integrals[:, 1] - integrals[:, 0], width, whole)

    def write(self, out: Floats, sight: Sight, rows: Rows, samples: Ints, sources: Ints) -> None:
        """Complete flat observations in which what stays the same stands already.

        Args:
            out: (K, width), filled.
            sight: of N episodes, after `look`.
            rows: which of them, (K,).
            samples: (K,), rows of the cache.
            sources: (K,), the proposals that the spans came from.
        """
        table, cells = sight.table[:, rows], sight.cells.reshape(2 * PROBES, -1)[:, rows].T
        for part in _blocks(len(out)):
            self._complete(out[part], table[:, part], samples[part], sources[part], cells[part])

    def of_one(self, table: Floats, sample: int, source: int, cells: Ints) -> Floats:
        """The flat observation (width,) of one episode.

        Args:
            table: (rows,), as a `Sight` has it.
            sample: row of the cache.
            source: the proposal that the span came from.
            cells: (2 * PROBES,), rows of the points' table at the positions.
        """
        out = np.empty(self.width, np.float32)
        for there, look_up in self._of_samples:
            out[there] = look_up(sample)
        self._complete(out, table, sample, source, cells)
        return out

    def _complete(
        self, out: Floats, table: Floats, samples: Ints | int, sources: Ints | int, cells: Ints
    ) -> None:
        """Fill what changes from step to step; of one episode the arrays have no axis of episodes."""
        for there, look_up in self._of_spans:
            out[..., there] = look_up(samples, sources, cells)
        for there, here in self._copies:
            out[..., there] = table[here].T

    def _points_of(self, samples: Ints | int, sources: Ints | int, cells: Ints) -> Floats:
        return self.points.take(cells, axis=0).reshape(*cells.shape[:-1], -1)

    def _proposals_of(self, samples: Ints | int) -> Floats:
        return self._proposals.take(samples, axis=0)

    def _models_of(self, samples: Ints | int) -> Floats:
        numbers = np.arange(len(self._cache.manifest["models"]))
        exists = self._slots[:, 0] < self._cache.counts[samples, None]
        models = self._cache.models[samples, : len(self._slots), None]
        onehot: Floats = ((models == numbers) & exists[..., None]).astype(np.float32)
        return onehot.reshape(*exists.shape[:-1], -1)

    def _decoder_states_of(self, samples: Ints | int, sources: Ints | int, cells: Ints) -> Floats:
        assert self._cache.states is not None
        states: Floats = self._cache.states[samples, sources]
        return states

    def _texts_of(self, samples: Ints | int) -> Floats:
        assert self._cache.text is not None
        texts: Floats = self._cache.text[samples]
        return texts

    def _clips_of_points(self, samples: Ints | int, sources: Ints | int, cells: Ints) -> Floats:
        assert self._clip_sums is not None
        samples = np.asarray(samples)[..., None]
        parts = self._clip_sums.at(samples, cells - samples * _POINTS)
        return parts.reshape(*cells.shape[:-1], -1)

    def _clips_of_proposals(self, samples: Ints | int) -> Floats:
        assert self._clip_sums is not None
        samples = np.asarray(samples)
        starts, ends = np.moveaxis(cell_of(self._cache.spans[samples, : len(self._slots)]), -1, 0)
        parts = self._clip_sums.of_spans(samples[..., None], starts, ends)
        exists = self._slots[:, 0] < self._cache.counts[samples, None]
        parts *= exists[..., None, None]
        return parts.reshape(*samples.shape, -1)


def _blocks(n: int) -> Iterator[slice]:
    """N episodes, `_BLOCK` after `_BLOCK`."""
    return (slice(first, first + _BLOCK) for first in range(0, n, _BLOCK))


def _known_shapes(cache: DecoderStateCache, proposals: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all components that a cache has."""
    models = len(cache.manifest["models"])
    shapes: dict[str, tuple[int, ...]] = {
        "remaining": (1,),
        "video": (1,),
        "span": (4,),
        "source": (proposals,),
        "overlaps": (proposals,),
        "positions": (2 * PROBES,),
        "points": (2 * PROBES, len(POINT_FEATURES)),
        "whole": (len(CURVES),),
        "inside": (len(INSIDE_FEATURES),),
        "proposals": (proposals, len(SPAN_FEATURES)),
    }
    if models > 1:
        shapes["models"] = (proposals, models)
    if cache.states is not None:
        shapes["decoder_state"] = (cache.states.shape[2],)
    if cache.text is not None:
        shapes["text"] = (cache.text.shape[1],)
    if cache.clips is not None:
        width = cache.clips.values.shape[1]
        shapes["point_clips"] = (2 * PROBES, len(POINT_PARTS), width)
        shapes["proposal_clips"] = (proposals, len(SPAN_PARTS), width)
    return shapes


def _side_by_side(sizes: dict[str, int]) -> tuple[dict[str, slice], int]:
    """Where vectors of the given sizes stand in one, and its size."""
    slices, end = {}, 0
    for name, size in sizes.items():
        slices[name] = slice(end, end + size)
        end += size
    return slices, end


def _merged(pairs: list[tuple[slice, slice]]) -> list[tuple[slice, slice]]:
    """Pairs of slices, those made one that follow each other on both sides."""
    merged = pairs[:1]
    for there, here in pairs[1:]:
        before, source = merged[-1]
        if (before.stop, source.stop) == (there.start, here.start):
            merged[-1] = slice(before.start, there.stop), slice(source.start, here.stop)
        else:
            merged.append((there, here))
    return merged


def _check_components(names: list[str], known: list[str]) -> None:
    if not names:
        raise ValueError(f"components is empty, expected some of {', '.join(known)}")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"No observation component {name!r} with this cache.{hint} Known: {', '.join(known)}."
            )
    if len(set(names)) != len(names):
        raise ValueError(f"components names one twice: {', '.join(names)}")
