"""What is in a folder."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

_BLOCK = 1 << 20

Files: TypeAlias = Iterator[tuple[str, bytes]]
"""Names, relative to a folder, and contents."""


def files_of(folder: Path) -> Files:
    """Names and contents of all files in a folder, in the order of their names."""
    for path in _paths_of(folder):
        yield path.relative_to(folder).as_posix(), path.read_bytes()


def sha256_of_folder(folder: Path) -> str:
    """Hash of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in _paths_of(folder):
        name = path.relative_to(folder).as_posix().encode()
        digest.update(f"{len(name)} {path.stat().st_size} ".encode() + name)
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _paths_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
