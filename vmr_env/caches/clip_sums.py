"""What a frozen backbone's clips say near the boundaries of a span and inside it.

A cache may hold the backbone's clip features (`clips`). Kept beside it is their running sum from the video's
start, in units of the whole video, so that the mean over any stretch of clips costs two look-ups, whatever
its length.
"""

from typing import NamedTuple

import numpy as np

from vmr_env.arrays import Floats, Ints
from vmr_env.caches.boundary_features import CELLS
from vmr_env.caches.derived import derived_tables
from vmr_env.caches.format import Ragged
from vmr_env.caches.reader import DecoderStateCache

EDGE_CLIPS = 2
"""Clips before and after a boundary that are averaged."""

POINT_PARTS = ("before", "after", "up to here")
"""Of each point: mean of the clips before it, mean of those after it, and the running sum."""

SPAN_PARTS = ("before the start", "after the start", "before the end", "after the end", "inside")
"""Of each proposal: the means at its boundaries, and inside it."""

_VERSION = 1  # a new number for every change of what the table holds


class ClipSums(NamedTuple):
    """Running sums of the clip features of all samples."""

    sums: Floats
    """(clips of all samples + N, C) float32: of a sample with n clips n + 1 rows, row k the sum of its first
    k clips divided by n."""
    firsts: Ints
    """(N,), row where each sample's begin."""
    counts: Ints
    """(N,), n of each sample."""

    def at(self, samples: Ints | int, cells: Ints) -> Floats:
        """`POINT_PARTS` of points of the timeline: (..., 3, C).

        Args:
            samples: rows of the cache, one, or an array that broadcasts with `cells`.
            cells: (...), from 0 to `CELLS`.
        """
        first, count = self.firsts[samples], self.counts[samples]
        clip = np.rint(cells * (count / CELLS)).astype(np.intp)
        low, high = np.maximum(clip - EDGE_CLIPS, 0), np.minimum(clip + EDGE_CLIPS, count)
        below, here, above = (self.sums[first + row] for row in (low, clip, high))

        def mean(part: Floats, clips: Ints) -> Floats:
            scale = count / np.maximum(clips, 1)
            means: Floats = part * scale[..., None].astype(np.float32)
            return means

        parts = mean(here - below, clip - low), mean(above - here, high - clip), here
        return np.stack(parts, axis=-2)

    def of_spans(self, samples: Ints | int, starts: Ints, ends: Ints) -> Floats:
        """`SPAN_PARTS` of spans between points of the timeline: (..., 5, C); other arguments as for `at`."""
        start, end = self.at(samples, starts), self.at(samples, ends)
        width = np.maximum(ends - starts, 1)[..., None, None] / np.float32(CELLS)
        inside = (end[..., 2:, :] - start[..., 2:, :]) / width
        return np.concatenate([start[..., :2, :], end[..., :2, :], inside], axis=-2, dtype=np.float32)


def clip_sums_of(cache: DecoderStateCache) -> ClipSums | None:
    """Running sums of a cache's clips, memory-mapped; built on first use. None where it has no clips.

    Raises:
        DataError: the cache is damaged, or the user's cache folder cannot be written.
    """
    clips = cache.clips
    if clips is None:
        return None
    tables = derived_tables(
        "clip-sums",
        cache,
        ("clips.values", "clips.offsets"),
        [_VERSION],
        4 * (len(clips.values) + len(cache)) * clips.values.shape[1],
        lambda part: {"sums": _sums(clips, part)},
    )
    offsets = np.asarray(clips.offsets)
    return ClipSums(tables["sums"], offsets[:-1] + np.arange(len(cache)), np.diff(offsets))


def _sums(clips: Ragged, part: slice) -> Floats:
    """Running sums of a range of samples, one after the other."""
    rows = []
    for i in range(part.start, part.stop):
        values = np.asarray(clips[i], np.float64)
        rows += [np.zeros((1, values.shape[1])), values.cumsum(axis=0) / max(len(values), 1)]
    return np.concatenate(rows, dtype=np.float32)
