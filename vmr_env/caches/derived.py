"""Tables derived from a cache, on disk: made once, then memory-mapped by every process that needs them.

They lie in the user's cache folder (`vmr_env.files.user_cache`) under a name that is a hash of what they are
made from, so a cache that changes gets new tables. Deleting the folder is always safe.

What a table is made from is compared with the hashes in its cache's manifest first, so that a damaged cache
leaves no tables behind. Sizes, times of change and hashes of the tables lie beside them: a table whose file
was touched since is hashed again when it is opened, and made anew where it does not fit.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_env.caches.format import broken
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.caches.writer import sha256_of
from vmr_env.errors import DataError, Problem
from vmr_env.files.npy import NpyWriter
from vmr_env.files.objects import read_state, write_state
from vmr_env.files.user_cache import VARIABLE, user_cache_folder
from vmr_env.files.writing import NewFolder, sweep, writing_errors

Tables = Mapping[str, NDArray[Any]]

BLOCK_SAMPLES = 1024
"""Samples that are computed at a time, which bounds the memory of building."""

_RECORD = "tables.json"
_BUILDS = 2  # a table that does not fit right after it was built is the disk's fault


def derived_tables(
    kind: str,
    cache: DecoderStateCache,
    sources: Iterable[str],
    parameters: Sequence[Any],
    size: int,
    block: Callable[[slice], Tables],
) -> Tables:
    """The tables by name, memory-mapped; made if they are not there, or are damaged.

    Args:
        kind: what they are, the name of the folder above.
        cache: what they are made from; the hashes of all of its files name the folder.
        sources: names of its arrays that are read for them.
        parameters: all else that their content depends on, JSON values.
        size: bytes that they will take, but for headers; they are not begun where the disk has less room.
        block: rows of every table for a range of the cache's samples; the ranges follow each other.

    Raises:
        DataError: the cache is damaged, or the user's cache folder cannot be written or has too little room.
    """
    identity = json.dumps([list(parameters), cache.manifest["clip_seconds"], cache.fingerprint])
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    folder = user_cache_folder() / kind / name
    for _ in range(_BUILDS):
        try:
            return _open(folder)
        except (DataError, OSError):
            cache.verify_files([f"{source}.npy" for source in sources])
            _require_room(folder, kind, size)
            _make(folder, f"{kind} of {cache.path.name}", len(cache), block)
    return _open(folder)


def _require_room(folder: Path, kind: str, size: int) -> None:
    """Refuse tables that the disk has no room for, before minutes go into them."""
    there = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        message = f"has {free:,} bytes of room, {kind} takes {size:,}; `vmr-env cache prune` makes some"
        raise DataError(Problem(str(there), None, None, f"{message}, {VARIABLE} chooses another folder"))


def _make(folder: Path, what: str, samples: int, block: Callable[[slice], Tables]) -> None:
    """Write the tables and their record; tables that are there are replaced."""
    from tqdm import tqdm

    sweep(folder.parent)
    try:
        with NewFolder(folder) as made, writing_errors(folder), ExitStack() as files:
            writers: dict[str, NpyWriter] = {}
            # Shown only where it takes a while.
            bar = files.enter_context(tqdm(total=samples, desc=what, unit=" samples", delay=2))
            for low in range(0, samples, BLOCK_SAMPLES):
                part = slice(low, min(low + BLOCK_SAMPLES, samples))
                for name, rows in block(part).items():
                    if name not in writers:
                        writer = NpyWriter(made.path / f"{name}.npy", rows)
                        writers[name] = files.enter_context(closing(writer))
                    writers[name].append(rows)
                bar.update(part.stop - part.start)
            for writer in writers.values():
                writer.finish()
            paths = [made.path / f"{name}.npy" for name in writers]
            record = {path.stem: {"sha256": sha256_of(path), "stamp": _stamp(path)} for path in paths}
            write_state(made.path / _RECORD, record)
            made.publish(replace=True)
    except DataError as error:
        raise error.advised(f"{VARIABLE} chooses another folder") from error


def _open(folder: Path) -> Tables:
    """The tables of a folder.

    Raises:
        DataError, OSError: one is missing, or is not what was written.
    """
    path = folder / _RECORD
    record = read_state(path, "it is made again")
    stamps = {name: _stamp(folder / f"{name}.npy") for name in record}
    if any(stamps[name] != facts["stamp"] for name, facts in record.items()):
        for name, facts in record.items():
            if sha256_of(folder / f"{name}.npy") != facts["sha256"]:
                raise broken(folder / f"{name}.npy", "is damaged, it is made again")
        with suppress(DataError):  # where it cannot be written the tables are hashed each time
            write_state(path, {name: {**record[name], "stamp": stamps[name]} for name in record})
    return _mapped(folder, tuple((name, *stamp) for name, stamp in stamps.items()))


def _stamp(path: Path) -> list[int]:
    """Stamp that changes whenever a file is touched."""
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


@lru_cache(maxsize=64)
def _mapped(folder: Path, stamps: tuple[tuple[str | int, ...], ...]) -> Tables:
    """Tables that have these stamps; one map of each in a process."""
    names = [str(name) for name, *_ in stamps]
    return {
        name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in names
    }
