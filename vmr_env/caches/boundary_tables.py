"""Timelines of a cache on disk (`vmr_env.caches.derived`)."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from vmr_env.caches.boundary_features import CELLS, POINT_FEATURES, SPAN_FEATURES, Timelines, build_timelines
from vmr_env.caches.derived import Tables, derived_files
from vmr_env.caches.reader import DecoderStateCache

_VERSION = 4  # a new number for every change of what a table holds
_CHUNK = 1024  # bounds the memory of building


def timelines_of(cache: DecoderStateCache) -> Timelines:
    """Timelines of all samples, memory-mapped. Built on first use.

    Raises:
        DataError: the user's cache folder cannot be written.
    """
    shapes = {
        "points": (len(cache), CELLS + 1, len(POINT_FEATURES)),
        "proposals": (*cache.scores.shape, len(SPAN_FEATURES)),
    }
    return _open(
        derived_files("timelines", cache, [_VERSION, CELLS], shapes, lambda tables: _fill(cache, tables))
    )


@lru_cache(maxsize=64)
def _open(folder: Path) -> Timelines:
    return Timelines(
        *(
            np.asarray(np.load(folder / f"{f}.npy", mmap_mode="r", allow_pickle=False))
            for f in Timelines._fields
        )
    )


def _fill(cache: DecoderStateCache, tables: Tables) -> None:
    for low in range(0, len(cache), _CHUNK):
        part = slice(low, min(low + _CHUNK, len(cache)))
        for name, table in _of_part(cache, part)._asdict().items():
            tables[name][part] = table


def _of_part(cache: DecoderStateCache, part: slice) -> Timelines:
    curves = cache.saliency
    return build_timelines(
        cache.spans[part],
        cache.scores[part],
        cache.counts[part],
        cache.models[part],
        cache.durations[part],
        cache.manifest["clip_seconds"],
        None if curves is None else [curves[i] for i in range(part.start, part.stop)],
    )
