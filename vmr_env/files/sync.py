"""Putting files on the disk before they are renamed into place, so that a crash leaves all or none."""

import os
from pathlib import Path

from vmr_env.files.text import PathLike


def sync(path: PathLike) -> None:
    """Wait until a file, or a folder's list of names, is on the disk.

    Raises:
        OSError: it cannot be opened or written.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until the files in a folder, and the folder itself, are on the disk.

    Raises:
        OSError: one cannot be opened or written.
    """
    for path in (*folder.iterdir(), folder):
        sync(path)


def rename_synced(source: Path, target: Path) -> None:
    """Rename a folder of files into place once its content is on the disk, and put the new name there too.

    Raises:
        OSError: it cannot be synced or renamed; the target is then as it was.
    """
    sync_folder(source)
    source.rename(target)
    sync(target.parent)
