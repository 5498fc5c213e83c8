"""Random valid batches for the cache tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vmr_env.caches.reader import CacheBatch, Ragged, write_cache

ARGUMENTS: dict[str, Any] = {
    "dataset": "charades",
    "split": "test",
    "source": "real",
    "models": ["one", "two"],
    "clip_seconds": 1.0,
    "backbone_kind": "girl-detr",
    "backbone_sha256": "a" * 64,
}


def random_batch(
    n: int, q: int = 4, seed: int = 0, *, first: int = 0, full: bool = False, saliency: bool = True
) -> CacheBatch:
    """n valid samples; `full` adds states, references, clips and text."""
    rng = np.random.default_rng(seed)
    durations = rng.uniform(5, 40, n).round(2)
    n_clips = np.ceil(durations).astype(np.int32)
    counts = rng.integers(1, q + 1, n).astype(np.int32)
    real = np.arange(q) < counts[:, None]
    starts = [rng.uniform(0, 0.8 * duration, rng.integers(1, 4)) for duration in durations]
    moments = [np.stack([start, start + 0.2 * d], axis=1) for start, d in zip(starts, durations, strict=True)]
    batch = CacheBatch(
        qids=[first + i if i % 2 else f"q{first + i}" for i in range(n)],
        vids=[f"v{(first + i) // 3}" for i in range(n)],
        queries=[f"person {i} öffnet eine Tür" for i in range(n)],
        durations=durations,
        n_clips=n_clips,
        moments=Ragged.from_rows(moments),
        spans=(np.sort(rng.random((n, q, 2)), axis=2) * real[..., None]).astype(np.float32),
        scores=(rng.random((n, q)) * real).astype(np.float32),
        counts=counts,
        models=(rng.integers(0, 2, (n, q)) * real).astype(np.uint8),
        saliency=Ragged.from_rows([rng.normal(size=k).astype(np.float32) for k in n_clips])
        if saliency
        else None,
    )
    if not full:
        return batch
    return replace(
        batch,
        states=(rng.normal(size=(n, q, 6)) * real[..., None]).astype(np.float32),
        references=(rng.random((n, q, 2)) * real[..., None]).astype(np.float32),
        clips=Ragged.from_rows([rng.normal(size=(k, 5)).astype(np.float32) for k in n_clips]),
        text=rng.normal(size=(n, 3)).astype(np.float32),
    )


def make_cache(path: Path, n: int = 7, **options: Any) -> Path:
    """A valid cache of n random samples."""
    return write_cache(path, random_batch(n, **options), **ARGUMENTS)
