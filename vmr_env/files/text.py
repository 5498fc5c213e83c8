"""Reading and writing whole text files, plain or gzipped by suffix; every failure is one `DataError`."""

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import TypeAlias

from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.writing import write_bytes

PathLike: TypeAlias = str | os.PathLike[str]

_BOM = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"
MOST_BYTES = 2**30
"""Largest unpacked size of a compressed file: megabytes can unpack to all of a machine's memory."""


def name_of(path: PathLike) -> str:
    """The path as text, for messages; anything but a path raises a `DataError`."""
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(name, str) or not name:
        raise DataError(Problem("path", None, None, f"is {shorten(path)}; expected the path of a file"))
    return name


def _fail(path: Path, message: str, row: int | None = None) -> DataError:
    return DataError(Problem(os.fspath(path), row, None, message))


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        missing = path if path.parent.is_dir() else path.parent
        raise _fail(path, f"{missing} does not exist; expected a readable file") from None
    except IsADirectoryError:
        raise _fail(path, "is a folder; expected a file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _fail(path, f"cannot be read ({reason}); expected a readable file") from error
    if path.suffix != ".gz":
        if raw.startswith(_GZIP_MAGIC):
            raise _fail(path, "holds gzip data; expected plain text, or a name that ends in .gz")
        return raw
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            unpacked = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        message = f"is no complete gzip file ({error}); expected one, as its name ends in .gz"
        raise _fail(path, message) from error
    if len(unpacked) > MOST_BYTES:
        raise _fail(path, f"unpacks to more than {MOST_BYTES} bytes; expected a smaller file, or unpack it")
    return unpacked


def read_lines(path: PathLike) -> list[str]:
    """Lines of a UTF-8 text file, without line ends; `.gz` files are unpacked, blank last lines left out.

    Raises:
        DataError: the file is missing, a folder, unreadable, damaged, empty, or not plain UTF-8.
    """
    path = Path(name_of(path))
    raw = _read_bytes(path)
    if not raw.strip():
        raise _fail(path, "is empty; expected one row per line")
    if raw.startswith(_BOM):
        raise _fail(path, "starts with a byte-order mark; expected UTF-8 without one", row=1)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        row = raw.count(b"\n", 0, error.start) + 1
        found = shorten(raw[error.start : error.start + 8])
        raise _fail(path, f"bytes {found} are not UTF-8 text ({error.reason})", row) from None
    # Not str.splitlines: it also splits at characters that may stand inside a JSON string.
    return text.rstrip().split("\n")


def write_text(path: PathLike, text: str) -> None:
    """Write a UTF-8 text file in one step: the target is either replaced whole or left as it was.

    Names that end in `.gz` are compressed, without name and time stamp, so that equal text gives equal bytes.

    Raises:
        DataError: the folder is missing, the target is a folder, or writing fails; nothing is left behind.
    """
    path = Path(name_of(path))
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _fail(path, f"cannot be written ({error}); expected text without lone surrogates") from None
    write_bytes(path, gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
