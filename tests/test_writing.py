"""The one way to write: whole or not at all, on the disk before it has its name, swept after the dead."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from vmr_env.errors import DataError
from vmr_env.files.objects import read_object, read_sealed, read_state, write_sealed, write_state
from vmr_env.files.writing import NewFolder, new_file, sweep, write_bytes

REPOSITORY = Path(__file__).parents[1]


@contextmanager
def small_disk(kib: int) -> Iterator[None]:
    """Lets this process write at most so much into one file, which fails like a full disk."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with suppress(ZeroDivisionError), new_file(path) as file:
        file.write(bytes([1 // 0]))
    assert path.read_bytes() == b"old"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("place", ["gone/file", "plain/file", "folder", "a\0b", "x" * 300, "\udcff\ud800"])
def test_what_cannot_be_written_is_one_error_with_its_name(tmp_path: Path, place: str) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DataError, match="cannot be written") as caught:
        write_bytes(tmp_path / place, b"content")
    assert caught.value.problems[0].where == str(tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"old")
    with small_disk(64), pytest.raises(DataError, match=r"file: cannot be written \(File too large\)"):
        write_bytes(tmp_path / "file", bytes(100_000))
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_everything_is_on_the_disk_before_it_has_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []

    def watched(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object) -> None:
            what = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else "rename"
            told.append(Path(what).name.split(".")[-1])
            real(*arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "replace"):
        watched(name)
    write_bytes(tmp_path / "file", b"content")
    assert told == ["tmp", "rename", tmp_path.name]
    told.clear()
    with NewFolder(tmp_path / "folder") as folder:
        (folder.path / "inside").write_text("a")
        folder.publish()
    assert told == ["inside", "tmp", "rename", tmp_path.name]


def test_folders_are_exchanged_only_on_request(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for text, replace in (("first", False), ("second", True)):
        with NewFolder(target) as folder:
            (folder.path / "inside").write_text(text)
            folder.publish(replace=replace)
    with NewFolder(target) as folder:
        (folder.path / "inside").write_text("third")
        with pytest.raises(DataError, match="not empty"):
            folder.publish()
    assert (target / "inside").read_text() == "second"
    assert os.listdir(tmp_path) == ["folder"]


def test_file_systems_that_cannot_exchange_rename_three_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Without:
        def __init__(self, *_: object, **__: object) -> None: ...

    monkeypatch.setattr("ctypes.CDLL", Without)
    test_folders_are_exchanged_only_on_request(tmp_path)


def test_a_folder_is_there_at_every_moment_of_being_replaced(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    missing = []
    with NewFolder(target) as folder:
        folder.publish()
    code = f"""
import os, sys
from pathlib import Path
from vmr_env.files.writing import NewFolder
for i in range(200):
    with NewFolder(Path({str(target)!r})) as folder:
        (folder.path / "inside").write_text(str(i))
        folder.publish(replace=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY) as writer:
        looks = 0
        while writer.poll() is None:
            missing += [looks] * (not target.exists())
            looks += 1
    assert writer.returncode == 0
    assert looks > 200
    assert not missing


def _hold(target: Path, folder: bool, told: Connection) -> None:
    if folder:
        made = NewFolder(target)
        (made.path / "inside").write_text("half")
        told.send("begun")
        told.recv()
        made.publish()
    else:
        with new_file(target) as file:
            file.write(b"half")
            told.send("begun")
            told.recv()


@pytest.mark.parametrize("folder", [False, True])
def test_the_next_writer_sweeps_what_the_dead_left_and_nothing_of_the_living(
    tmp_path: Path, folder: bool
) -> None:
    context = multiprocessing.get_context("spawn")
    target = tmp_path / "target"
    workers = []
    for _ in range(2):
        here, there = context.Pipe()
        worker = context.Process(target=_hold, args=(target, folder, there))
        worker.start()
        assert here.recv() == "begun"
        workers.append((worker, here))
    (dead, _), (living, pipe) = workers
    dead.kill()
    dead.join()
    assert len(os.listdir(tmp_path)) == 2
    other = tmp_path / ".other.0123456789abcdef.tmp"
    other.mkdir()
    sweep(tmp_path, "target")
    (left, kept) = sorted(os.listdir(tmp_path))
    assert left == other.name
    assert kept.startswith(".target.")
    pipe.send("go on")
    living.join()
    assert target.exists()
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["target"]


STATES: list[tuple[Callable[[Path], object], Callable[[Path], object]]] = [
    (lambda path: write_state(path, {"a": [1.5, "ä"], "b": {"c": None}}), partial(read_state, remedy="go")),
    (lambda path: write_sealed(path, b"some content"), partial(read_sealed, remedy="go")),
]


@pytest.mark.parametrize(("write", "read"), STATES)
def test_every_changed_byte_of_a_state_is_seen(
    tmp_path: Path, write: Callable[[Path], object], read: Callable[[Path], object]
) -> None:
    path = tmp_path / "state"
    write(path)
    raw = path.read_bytes()
    before = read(path)
    for at in range(len(raw)):
        for changed in (raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], raw[:at]):
            path.write_bytes(changed)
            with suppress(DataError):
                assert read(path) == before  # blanks between values say nothing
                assert changed.split() == raw.split()
    path.unlink()
    with pytest.raises(DataError, match=r"state.*; go"):
        read(path)
    path.mkdir()
    with pytest.raises(DataError, match=r"state.*; go"):
        read(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"a": {"b": 1, "b": 1}}', "'b' appears twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ("[" * 200_000, "is not JSON"),
        ("[1]", "expected a JSON object"),
        ('{"a": 1', "is not JSON"),
    ],
)
def test_objects_are_strict(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(DataError, match=says):
        read_object(tmp_path / "file.json")
