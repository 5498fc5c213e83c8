"""Tables derived from a cache, on disk: made once, then memory-mapped by every process that needs them.

They lie in the user's cache folder (`vmr_env.files.user_cache`) under a name that is a
hash of what they are made from, so a cache that changes gets new tables. Deleting the folder is always safe.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from vmr_env.caches.reader import DecoderStateCache
from vmr_env.errors import DataError, Problem
from vmr_env.files.sync import rename_synced
from vmr_env.files.user_cache import VARIABLE, user_cache_folder

Tables = dict[str, NDArray[np.float32]]


def derived_files(
    kind: str,
    cache: DecoderStateCache,
    parameters: Sequence[Any],
    shapes: Mapping[str, tuple[int, ...]],
    fill: Callable[[Tables], None],
) -> Path:
    """The folder with the tables, each a float32 `.npy` file; made if it is not there.

    Args:
        kind: what they are, the name of the folder above.
        cache: what they are made from; every one of its arrays counts.
        parameters: all else that their content depends on, JSON values.
        shapes: of the tables, by name.
        fill: writes their values.

    Raises:
        DataError: the user's cache folder cannot be written.
    """
    manifest = cache.manifest
    files = {file: facts["sha256"] for file, facts in manifest["files"].items()}
    identity = json.dumps([list(parameters), manifest["clip_seconds"], files], sort_keys=True)
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    folder = user_cache_folder() / kind / name
    if not folder.exists():
        _make(folder, shapes, fill)
    return folder


def _make(folder: Path, shapes: Mapping[str, tuple[int, ...]], fill: Callable[[Tables], None]) -> None:
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    try:
        temporary.mkdir(parents=True)
        tables = {
            name: open_memmap(temporary / f"{name}.npy", "w+", np.float32, shape)
            for name, shape in shapes.items()
        }
        fill(dict(tables))
        for table in tables.values():
            table.flush()
        rename_synced(temporary, folder)
    except OSError as error:
        if not folder.exists():  # else another process was first, with the same bytes
            message = f"cannot be written ({error}), expected a writable folder ({VARIABLE} chooses it)"
            raise DataError(Problem(str(folder.parent), None, None, message)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
