"""Timelines of a cache on disk (`vmr_env.caches.derived`)."""

from vmr_env.caches.boundary_features import CELLS, Timelines, build_timelines
from vmr_env.caches.derived import Tables, derived_tables
from vmr_env.caches.reader import DecoderStateCache

_VERSION = 4  # a new number for every change of what a table holds
_SOURCES = ("spans", "scores", "counts", "models", "durations")
_CURVES = ("saliency.values", "saliency.offsets")


def timelines_of(cache: DecoderStateCache) -> Timelines:
    """Timelines of all samples, memory-mapped. Built on first use.

    Raises:
        DataError: the cache is damaged, or the user's cache folder cannot be written.
    """
    sources = _SOURCES if cache.saliency is None else (*_SOURCES, *_CURVES)
    tables = derived_tables("timelines", cache, sources, [_VERSION, CELLS], lambda part: _block(cache, part))
    return Timelines(**tables)


def _block(cache: DecoderStateCache, part: slice) -> Tables:
    curves = cache.saliency
    timelines = build_timelines(
        cache.spans[part],
        cache.scores[part],
        cache.counts[part],
        cache.models[part],
        cache.durations[part],
        cache.manifest["clip_seconds"],
        None if curves is None else [curves[i] for i in range(part.start, part.stop)],
    )
    return timelines._asdict()
