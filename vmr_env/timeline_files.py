"""Timelines of a cache on disk: derived once, then memory-mapped by every process that needs them.

They lie in the user's cache folder (`XDG_CACHE_HOME` or `~/.cache`, then `vmr_env/timelines`) under a name
that is a hash of the cache's checksums, so a cache that changes gets new tables. Deleting the folder is
always safe.
"""

import hashlib
import json
import os
import secrets
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from vmr_env.cache import DecoderStateCache
from vmr_env.errors import DataError, Problem
from vmr_env.timeline import CELLS, Timelines, build_timelines

_VERSION = 4  # a new number for every change of what a table holds
_CHUNK = 1024  # bounds the memory of building


def user_cache_folder() -> Path:
    """Where derived files of this package lie."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vmr_env"


def timelines_of(cache: DecoderStateCache) -> Timelines:
    """Timelines of all samples, memory-mapped. Built on first use.

    Raises:
        DataError: the user's cache folder cannot be written.
    """
    inputs = ("spans.npy", "scores.npy", "counts.npy", "models.npy", "durations.npy", "saliency.values.npy")
    files = cache.manifest["files"]
    identity = [
        _VERSION,
        CELLS,
        cache.manifest["clip_seconds"],
        *(files[f]["sha256"] for f in inputs if f in files),
    ]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    folder = user_cache_folder() / "timelines" / name
    if not folder.exists():
        _build(cache, folder)
    return _open(folder)


@lru_cache(maxsize=64)
def _open(folder: Path) -> Timelines:
    return Timelines(
        *(
            np.asarray(np.load(folder / f"{f}.npy", mmap_mode="r", allow_pickle=False))
            for f in Timelines._fields
        )
    )


def _build(cache: DecoderStateCache, folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    try:
        temporary.mkdir(parents=True)
        tables: list[np.memmap[tuple[int, ...], np.dtype[np.float32]]] = []
        for low in range(0, len(cache), _CHUNK):
            part = slice(low, min(low + _CHUNK, len(cache)))
            built = _of_part(cache, part)
            if not tables:
                tables = [
                    open_memmap(temporary / f"{field}.npy", "w+", np.float32, (len(cache), *table.shape[1:]))
                    for field, table in zip(Timelines._fields, built, strict=True)
                ]
            for target, table in zip(tables, built, strict=True):
                target[part] = table
        for target in tables:
            target.flush()
        temporary.rename(folder)
    except OSError as error:
        if not folder.exists():  # else another process was first, with the same bytes
            message = f"cannot be written ({error}), expected a writable folder (XDG_CACHE_HOME chooses it)"
            raise DataError(Problem(str(folder.parent), None, None, message)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
