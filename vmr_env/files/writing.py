"""The one way in which this package writes: under a temporary name, onto the disk, then renamed into place.

A target is replaced whole or left as it was, whatever happens meanwhile. Temporary names lie beside their
targets and are locked while their process lives; what a dead process left there is swept by the next writer.
"""

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vmr_env.errors import DataError, Problem

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


@contextmanager
def writing_errors(target: Path) -> Iterator[None]:
    """Turn an `OSError` of this block into a `DataError` that names the target."""
    try:
        yield
    except OSError as error:
        message = (
            f"cannot be written ({error.strerror or error}); expected room in an existing, writable folder"
        )
        raise DataError(Problem(os.fspath(target), None, None, message)) from error


@contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """An empty file to fill; it replaces the target when the block ends, and is dropped if the block fails.

    Raises:
        DataError: the folder is missing, the target is a folder, or the disk is full; nothing is left behind.
    """
    with writing_errors(target):
        temporary, lock = _claim(target, folder=False)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync(target.parent)
        finally:
            with suppress(OSError):
                os.unlink(temporary)
            os.close(lock)


def write_bytes(target: Path, content: bytes) -> None:
    """Write a whole file; errors as of `new_file`."""
    with new_file(target) as file:
        file.write(content)


def check_place(target: Path) -> None:
    """Find out before long work that a file could not be written.

    Raises:
        DataError: its folder is missing or does not let anybody write, or the target is a folder.
    """
    with writing_errors(target):
        temporary, lock = _claim(target, folder=False)
        os.unlink(temporary)
        os.close(lock)
        if target.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))


class NewFolder:
    """A folder under a temporary name; leaving its `with` block drops what was not put into place.

    Attributes:
        path: where to write its files.
    """

    def __init__(self, target: Path) -> None:
        """Make the folder, and parents that are missing.

        Raises:
            DataError: the disk refuses.
        """
        self._target = target
        with writing_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.path, self._lock = _claim(target, folder=True)

    def __enter__(self) -> "NewFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

    def publish(self, *, replace: bool = False) -> None:
        """Put the folder into its place once its content is on the disk.

        Args:
            replace: exchange it with a folder that is there, in one step where the file system can.

        Raises:
            DataError: the disk refuses, or there is a target that is not to be replaced; it stays as it was.
        """
        with writing_errors(self._target):
            for path in (*self.path.iterdir(), self.path):
                _sync(path)
            try:
                self.path.rename(self._target)
            except OSError as error:
                if not replace or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                _exchange(self.path, self._target)
            _sync(self._target.parent)

    def drop(self) -> None:
        """Remove what has not been put into place, or what it replaced; harmless when repeated."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep others who ask for the same folder out of it; the lock ends with this process at the latest.

    Raises:
        DataError: another process has it, or there is no such folder.
    """
    with writing_errors(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = "is written by another process; expected to be the only one, or another folder"
            raise DataError(Problem(os.fspath(folder), None, None, message)) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove temporary files and folders whose processes are dead.

    Args:
        folder: where they lie.
        name: of the target that they were to become; None for every target.
    """
    try:
        entries = [entry.name for entry in os.scandir(folder)]
    except OSError:
        return
    for entry in entries:
        match = _TEMPORARY.fullmatch(entry)
        if match is None or name not in (None, match[1]):
            continue
        path = folder / entry
        with suppress(OSError), _locked_now(path):
            remove(path)


@contextmanager
def _locked_now(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its process lives
        yield
    finally:
        os.close(handle)


def _claim(target: Path, folder: bool) -> tuple[Path, int]:
    """A new temporary file or folder for a target, and the handle whose lock says that its process lives."""
    try:
        with suppress(OSError):
            os.lstat(target)
    except ValueError as error:  # no file system could hold the name
        raise OSError(errno.EINVAL, str(error)) from None
    sweep(target.parent, target.name)
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        if folder:
            temporary.mkdir()
        else:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        handle = os.open(temporary, os.O_RDONLY)
        with suppress(OSError):  # on file systems without locks nothing is swept
            fcntl.flock(handle, fcntl.LOCK_EX)
        if temporary.exists():  # else another process swept it before it was locked
            return temporary, handle
        os.close(handle)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(first: Path, second: Path) -> None:
    """Exchange two folders: in one step on Linux, elsewhere in three."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        code = function(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
        if code == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS):  # the file system cannot
            raise OSError(number, os.strerror(number), os.fspath(second))
    aside = second.with_name(f".{second.name}.{secrets.token_hex(8)}.old")
    second.rename(aside)
    try:
        first.rename(second)
    except BaseException:
        aside.rename(second)
        raise
    aside.rename(first)
