"""Batches of decoder states and moments, straight from a memory-mapped cache."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmr_env.agents.devices import ResidentRows, on_device
from vmr_env.agents.tprl.losses import Moments
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.metrics.spans import to_cxw

VideoLength = Literal["duration", "clips"]


class StateBatch(NamedTuple):
    """Inputs of one step of TPRL for B samples."""

    states: Tensor  # (B, Q, D) float32
    references: Tensor  # (B, Q, 2) float32: centre, width
    moments: Moments  # (B, M, 2), M the most moments of a sample of this batch


class StateBatches:
    """Batches of a cache that has decoder states.

    On the processor only their order (8 bytes each) grows with the samples; any other device keeps the states
    and references of the whole cache.

    Args:
        cache: Open cache of a backbone with a detection head.
        length: What moments are normalised by: "duration" as at inference, or "clips", the number of clips
            times their length, as GIRL-DETR's training does (the two differ by up to a clip).
        rows: Samples of the cache that take part, in this order; None for all.
        device: Where batches are.

    Raises:
        DataError: The cache has no decoder states or references, or samples with fewer proposals than others.
    """

    def __init__(
        self,
        cache: DecoderStateCache,
        length: VideoLength = "duration",
        rows: NDArray[np.integer] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cache = cache
        self.rows = np.arange(len(cache)) if rows is None else np.asarray(rows, np.intp)
        self._device = torch.device(device)
        states, references = cache.require_states()
        self._states = ResidentRows(states, self._device)
        self._references = ResidentRows(references, self._device)
        self._length: VideoLength = length

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: NDArray[np.integer]) -> StateBatch:
        """The samples of the cache at ``rows (B,)``, in that order."""
        return StateBatch(
            self._states.take(rows),
            self._references.take(rows),
            padded_moments(self.cache, rows, self._length, self._device),
        )

    def shuffled(self, batch_size: int, rng: np.random.Generator) -> Iterator[StateBatch]:
        """Every sample once, in random order; the last batch may be smaller."""
        order = rng.permutation(self.rows)
        for first in range(0, len(order), batch_size):
            yield self.take(order[first : first + batch_size])

    def ordered(self, batch_size: int) -> Iterator[StateBatch]:
        """Every sample once, in the order of `rows`."""
        for first in range(0, len(self), batch_size):
            yield self.take(self.rows[first : first + batch_size])


def padded_moments(
    cache: DecoderStateCache,
    rows: NDArray[np.integer],
    length: VideoLength = "duration",
    device: torch.device | None = None,
) -> Moments:
    """Moments of the samples at ``rows (B,)``, padded to the most that one of them has."""
    offsets, values = cache.moments.offsets, cache.moments.values
    first = offsets[rows]
    counts = offsets[rows + 1] - first
    column = np.arange(counts.max())
    mask = column < counts[:, None]
    # Padding repeats a sample's first moment: finite, inside the array, and masked.
    bounds = values[first[:, None] + column * mask]
    if length == "clips":
        seconds = cache.n_clips[rows] * cache.manifest["clip_seconds"]
        bounds = bounds * (cache.durations[rows] / seconds).astype(np.float32)[:, None, None]
    where = device or torch.device("cpu")
    return Moments(on_device(to_cxw(bounds), where), on_device(mask, where))
