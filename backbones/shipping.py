"""Sending work to another machine: its folders by content, everything else by value.

An experiment, or a detector with its samples, refers to folders: caches, weights, features. What is packed
names each by the hash of its content instead, so a machine that has the folder under the same path uses it,
and another one gets it once, into its own cache folder, where all its processes map the same files.
"""

import io
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vmr_env.caches.reader import DecoderStateCache
from vmr_env.files.folders import Files, sha256_of_folder
from vmr_env.files.user_cache import user_cache_folder


class Packed(NamedTuple):
    """An object without its folders."""

    content: bytes
    """What `unpack` reads. It is a pickle: only of one's own objects, between one's own processes."""
    folders: dict[str, str]
    """Path on the machine that packed, by the hash of the content."""
    search: list[str]
    """Where its Python looks for modules, of own agents for instance."""


def pack(content: object, out: Path | None = None) -> Packed:
    """An object as bytes that name its folders by their content.

    Args:
        content: what to send.
        out: a folder that it writes to, which stays behind.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, out)
    pickler.dump(content)
    return Packed(buffer.getvalue(), pickler.folders, list(sys.path))


def unpack(packed: Packed, fetch: Callable[[str], Files]) -> Any:
    """The object again, its folders found here or fetched.

    Args:
        packed: see `pack`.
        fetch: gives the files of a folder by its hash; called for folders that this machine has not.
    """
    sys.path += [path for path in packed.search if path not in sys.path]
    paths = {digest: _here(digest, Path(path), fetch) for digest, path in packed.folders.items()}
    return _Unpickler(io.BytesIO(packed.content), paths).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, out: Path | None) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.folders: dict[str, str] = {}
        self._out, self._hashes = out, dict[Path, str]()

    def persistent_id(self, found: Any) -> tuple[str, str] | None:
        if isinstance(found, DecoderStateCache):
            return "cache", self._name(found.path)
        if isinstance(found, Path) and found != self._out and found.is_dir():
            return "folder", self._name(found.resolve())
        return None

    def _name(self, folder: Path) -> str:
        if folder not in self._hashes:
            self._hashes[folder] = sha256_of_folder(folder)
            self.folders[self._hashes[folder]] = str(folder)
        return self._hashes[folder]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, paths: dict[str, Path]) -> None:
        super().__init__(file)
        self._paths = paths

    def persistent_load(self, key: tuple[str, str]) -> DecoderStateCache | Path:
        kind, digest = key
        return DecoderStateCache.open(self._paths[digest]) if kind == "cache" else self._paths[digest]


def _here(digest: str, path: Path, fetch: Callable[[str], Files]) -> Path:
    """A folder of that content on this machine."""
    if path.is_dir() and sha256_of_folder(path) == digest:
        return path
    folder = user_cache_folder() / "shipped" / digest
    if not folder.is_dir():
        _receive(folder, fetch(digest))
    return folder


def _receive(folder: Path, files: Files) -> None:
    """Write a folder in one step; of several processes that do so at once, the first one's stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name[:16]}.", dir=folder.parent))
    try:
        for name, content in files:
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
