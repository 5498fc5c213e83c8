"""Batches of detected samples for the step-wise agent, straight from a memory-mapped cache."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from vmr_env.agents.devices import on_device
from vmr_env.agents.stepwise.policy import DetectedSamples
from vmr_env.agents.tprl.data import padded_moments
from vmr_env.agents.tprl.losses import Moments
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.errors import DataError, Problem
from vmr_env.metrics.spans import to_cxw


class DetectedBatches:
    """Batches of detected samples and moments from a cache that holds clip features and text of one width.

    As published, moments are in units of the number of clips times their length, and proposals are not cut to
    the video, if the cache has them uncut (`detections`).

    Args:
        cache: Where the samples are.
        rows: Samples of the cache that take part, in this order; None for all.
        device: Where batches are.

    Raises:
        DataError: The cache has no clip features or text, or their widths differ.
    """

    def __init__(
        self,
        cache: DecoderStateCache,
        rows: NDArray[np.integer] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if cache.clips is None or cache.text is None:
            message = "no clip features and text, expected a cache written with the backbone's refined clips"
            raise DataError(Problem(str(cache.path), None, "clips", message))
        if (clips := cache.clips.values.shape[1]) != (text := cache.text.shape[1]):
            message = f"{text} values, expected {clips} as clips have"
            raise DataError(Problem(str(cache.path), None, "text", message))
        self.cache, self.d, self._device = cache, clips, torch.device(device)
        self.rows = np.arange(len(cache)) if rows is None else np.asarray(rows, np.intp)
        self._clips, self._text = cache.clips, cache.text

    def take(self, rows: NDArray[np.integer]) -> tuple[DetectedSamples, Moments]:
        """The samples at ``rows (B,)``."""
        cache, offsets = self.cache, self._clips.offsets
        counts = offsets[rows + 1] - offsets[rows]
        column = np.arange(counts.max())
        mask = column < counts[:, None]
        clips = self._clips.values[offsets[rows][:, None] + column * mask].astype(np.float32, copy=False)
        if cache.detections is None:
            spans = to_cxw(np.take(cache.spans, rows, axis=0))
            scores = np.take(cache.scores, rows, axis=0)
        else:
            detections = np.take(cache.detections, rows, axis=0)
            spans, scores = detections[..., :2].copy(), detections[..., 2].copy()
        detected = DetectedSamples(
            *(
                on_device(array, self._device)
                for array in (
                    clips * mask[..., None],
                    mask.astype(np.float32),
                    np.take(self._text, rows, axis=0).astype(np.float32, copy=False),
                    spans,
                    scores,
                )
            )
        )
        return detected, padded_moments(cache, rows, "clips", self._device)

    def shuffled(
        self, batch_size: int, rng: np.random.Generator
    ) -> Iterator[tuple[DetectedSamples, Moments]]:
        """Every sample once, in random order; the last batch may be smaller."""
        yield from self._batches(batch_size, rng.permutation(self.rows))

    def ordered(self, batch_size: int) -> Iterator[tuple[DetectedSamples, Moments]]:
        """Every sample once, in the order of `rows`."""
        yield from self._batches(batch_size, self.rows)

    def _batches(
        self, batch_size: int, order: NDArray[np.integer]
    ) -> Iterator[tuple[DetectedSamples, Moments]]:
        for first in range(0, len(order), batch_size):
            yield self.take(order[first : first + batch_size])
