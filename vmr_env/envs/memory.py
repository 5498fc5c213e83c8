"""Memory for what compiled code computes of a cache's samples; nothing of it is kept on disk.

Where that of all samples is small, all environments of the cache share it, and a sample's is computed once:
when an episode first begins there, or before. Else each episode holds that of its own sample.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vmr_env.arrays import Ints
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.compilation import direct

SHARED_BYTES = 1 << 29
"""Memory that one thing computed of all samples of a cache may take."""


class Computed(NamedTuple):
    """Something that is computed of samples, a row each."""

    find: Callable[..., None]
    """The compiled function: takes `inputs`, samples (K,), the rows (K,) to write, those rows' memory, and a
    workspace."""
    inputs: tuple[Any, ...]
    """What is frozen of the cache."""
    size: int
    """Bytes of the rows of all samples."""
    empty: Callable[[int, bool], Any]
    """Memory for so many rows: one for each sample (True), or rows that are long enough for any (False)."""
    workspace: Callable[[], Any]
    """Memory for one call."""


class Memory:
    """Rows of something that is computed of the samples of N episodes.

    Attributes:
        computed: what it is.
        shared: whether row r is that of sample r, not that of episode r's sample.
        rows: what `computed.empty` gave.
    """

    rows: Any

    def __init__(self, cache: DecoderStateCache, computed: Computed, n: int) -> None:
        self.computed = computed
        self.shared = computed.size <= SHARED_BYTES
        if self.shared:
            kept = _SHARED.setdefault(cache, {})
            if computed.find not in kept:
                kept[computed.find] = computed.empty(len(cache), True), np.full(len(cache), -1)
            self.rows, self._holds = kept[computed.find]
        else:
            self.rows, self._holds = computed.empty(n, False), np.full(n, -1)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to compute."""
        return self.shared and bool((self._holds >= 0).all())

    def hold(self, episodes: Ints, samples: Ints) -> None:
        """Compute what is not there yet of the samples (K,) at which the episodes (K,) begin."""
        rows = samples if self.shared else episodes
        new = self._holds[rows] != samples
        if np.count_nonzero(new):
            rows, samples = rows[new], samples[new]
            find, workspace = direct(self.computed.find), self.computed.workspace()
            find(*self.computed.inputs, samples, rows, self.rows, workspace)
            self._holds[rows] = samples  # afterwards, since other threads look here


_SHARED: weakref.WeakKeyDictionary[DecoderStateCache, dict[Callable[..., None], tuple[Any, Ints]]] = (
    weakref.WeakKeyDictionary()
)
"""Rows of all samples of the caches that are open, and the sample that each holds, -1 for none."""
