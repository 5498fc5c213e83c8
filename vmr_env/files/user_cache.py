"""Where files lie that this package makes for itself and may make again."""

import os
import tempfile
import warnings
from pathlib import Path

from vmr_env.errors import DataError, Problem
from vmr_env.files.writing import remove, sweep

VARIABLE = "VMR_ENV_CACHE"


def user_cache_folder() -> Path:
    """The folder of derived tables, simulated caches and encoded sentences; deleting it is always safe.

    The first of: `VMR_ENV_CACHE`; `vmr_env` in `XDG_CACHE_HOME`; `~/.cache/vmr_env`, where there is a home
    folder that can be written; with a warning, a folder of this user among the temporary files.

    Raises:
        DataError: another user owns that temporary folder.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "vmr_env"
    try:
        folder = Path.home() / ".cache" / "vmr_env"
    except RuntimeError:  # neither HOME nor an entry in the list of users, as in many containers
        return _temporary_folder()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return folder if nearest == folder or os.access(nearest, os.W_OK) else _temporary_folder()


def prune(most_bytes: int) -> tuple[int, int]:
    """Remove the oldest of what this package can make again, until the rest fits.

    Args:
        most_bytes: what may stay.

    Returns:
        bytes removed, bytes left.

    Raises:
        DataError: something cannot be removed.
    """
    entries = []
    for kind in sorted(path for path in user_cache_folder().glob("*") if path.is_dir()):
        sweep(kind)
        for entry in kind.iterdir():
            size = sum(path.lstat().st_size for path in (entry, *entry.rglob("*")))
            entries.append((entry.lstat().st_mtime, size, entry))
    left, removed = sum(size for _, size, _ in entries), 0
    for _, size, entry in sorted(entries):
        if left <= most_bytes:
            break
        try:
            remove(entry)
        except OSError as error:
            raise DataError(Problem(str(entry), None, None, f"cannot be removed ({error})")) from error
        left, removed = left - size, removed + size
    return removed, left


def _temporary_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else None
    folder = Path(tempfile.gettempdir()) / ("vmr_env" if user is None else f"vmr_env-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        stranger = user is not None and (folder.is_symlink() or folder.stat().st_uid != user)
    except OSError as error:
        message = f"cannot be made ({error}); set {VARIABLE} to a writable folder"
        raise DataError(Problem(str(folder), None, None, message)) from error
    if stranger:
        message = f"belongs to another user; set {VARIABLE} to a writable folder"
        raise DataError(Problem(str(folder), None, None, message))
    message = f"no writable home folder: caches go to {folder}; set {VARIABLE} to keep them elsewhere"
    warnings.warn(message, stacklevel=3)
    return folder
