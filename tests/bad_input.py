"""Broken files that every reader must refuse, and the one assertion about how it refuses."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmr_env.errors import DataError


@dataclass(frozen=True)
class Case:
    """One broken content: what the reader must name (row, field) and say."""

    name: str
    content: str | bytes
    says: str
    row: int | None = None
    field: str | None = None


def assert_refused(read: Callable[[], object], where: str, case: Case, folder: Path) -> None:
    """Exactly one problem, in the right place, in words, of readable length; nothing written."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(DataError) as caught:
        read()
    assert len(caught.value.problems) == 1, str(caught.value)
    problem = caught.value.problems[0]
    assert where in problem.where
    assert (problem.row, problem.field) == (case.row, case.field)
    assert case.says in problem.message
    assert "expected" in problem.message or "not UTF-8" in problem.message
    assert problem.severity == "error"
    assert len(str(caught.value)) < 1000
    assert sorted(folder.rglob("*")) == before


def files_no_reader_takes(folder: Path, suffix: str, good: str) -> list[tuple[Path | str, Case]]:
    """Paths and contents that are wrong whatever the format; `good` is a valid content."""
    folder.mkdir(exist_ok=True)

    def file(name: str, content: bytes) -> Path:
        path = folder / f"{name}{suffix}"
        path.write_bytes(content)
        return path

    packed = gzip.compress(good.encode(), mtime=0)
    flipped = bytearray(packed)
    flipped[-5] ^= 0xFF
    dangling = folder / f"dangling{suffix}"
    dangling.symlink_to(folder / "nowhere")
    loop = folder / f"loop{suffix}"
    loop.symlink_to(loop)
    subfolder = folder / f"folder{suffix}"
    subfolder.mkdir()
    plain = file("plain", good.encode())

    def gz(name: str, content: bytes) -> Path:
        path = folder / f"{name}{suffix}.gz"
        path.write_bytes(content)
        return path

    return [
        (folder / f"absent{suffix}", Case("missing file", "", "does not exist")),
        (folder / "no" / "such" / f"file{suffix}", Case("missing folder", "", "such does not exist")),
        (subfolder, Case("folder", "", "is a folder")),
        (dangling, Case("dangling link", "", "does not exist")),
        (loop, Case("link to itself", "", "cannot be read")),
        (plain / f"below{suffix}", Case("below a file", "", "cannot be read")),
        (str(folder / f"nul\0byte{suffix}"), Case("NUL in the name", "", "cannot be read")),
        (folder / f"{'long' * 100}{suffix}", Case("name too long", "", "cannot be read")),
        (file("empty", b""), Case("empty", "", "is empty")),
        (file("blank", b"\n \n\t\n"), Case("only blanks", "", "is empty")),
        (file("bom", b"\xef\xbb\xbf" + good.encode()), Case("byte-order mark", "", "byte-order mark", 1)),
        (file("utf16", good.encode("utf-16")), Case("UTF-16", "", "not UTF-8", 1)),
        (
            file("latin1", good.encode() + b"caf\xe9 \n"),
            Case("Latin-1", "", "not UTF-8", good.count("\n") + 1),
        ),
        (file("binary", bytes(range(256)) * 50), Case("binary", "", "not UTF-8", 2)),
        (file("packed", packed), Case("gzip without the name", "", "ends in .gz")),
        (gz("unpacked", good.encode()), Case("text named gzip", "", "no complete gzip")),
        (gz("truncated", packed[: len(packed) // 2]), Case("truncated gzip", "", "no complete gzip")),
        (gz("headless", packed[10:]), Case("gzip without header", "", "no complete gzip")),
        (gz("flipped", bytes(flipped)), Case("gzip with a wrong checksum", "", "no complete gzip")),
        (gz("tail", packed + b"tail"), Case("gzip with a tail", "", "no complete gzip")),
        (gz("zero", b""), Case("gzip of no bytes", "", "is empty")),
        (gz("nothing", gzip.compress(b"")), Case("gzip of nothing", "", "is empty")),
    ]
