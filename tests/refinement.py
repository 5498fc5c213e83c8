"""A cache on which the best move is known, for the tests of agents."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import ARGUMENTS, random_batch

from vmr_env.caches.reader import DecoderStateCache, Ragged, write_cache
from vmr_env.envs.vector_env import VMRVectorEnv

MISSING_CLIPS = 3
"""How much too early every first proposal of `short_cache` ends."""


@contextmanager
def user_cache_in(folder: Path) -> Iterator[Path]:
    """What is made from caches goes into this folder instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "user-cache"))
        yield folder


def short_cache(path: Path, n: int = 48) -> DecoderStateCache:
    """Every first proposal ends 3 clips before its moment does: one move, the same everywhere, is the best.

    That move raises the tIoU from 0.7 to 1. The other three proposals are random.
    """
    rng = np.random.default_rng(1)
    batch = random_batch(n, seed=1)
    durations = rng.uniform(30, 40, n).round(2)
    starts = rng.uniform(2, 18, n)
    moments = np.stack([starts, starts + 10], axis=1)
    batch.spans[:, 0] = (moments - [0, MISSING_CLIPS]) / durations[:, None]
    n_clips = np.ceil(durations).astype(np.int32)
    return written(
        path,
        replace(
            batch,
            durations=durations,
            n_clips=n_clips,
            moments=Ragged.from_rows(list(moments[:, None])),
            saliency=Ragged.from_rows([rng.normal(size=k).astype(np.float32) for k in n_clips]),
        ),
    )


def written(path: Path, batch: Any) -> DecoderStateCache:
    """The cache of a batch."""
    return DecoderStateCache.open(write_cache(path, batch, **ARGUMENTS))


def environment(cache: DecoderStateCache, n: int = 32, **options: Any) -> VMRVectorEnv:
    """Training environments: finished episodes restart in the same step."""
    return VMRVectorEnv(n, "charades", source=cache, autoreset_mode="SameStep", **options)
