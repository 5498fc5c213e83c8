"""Tables derived from a cache: what names them, what a damaged cache or table does, and a full disk."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from caches import ARGUMENTS, make_cache, random_batch
from test_writing import small_disk

from vmr_env.caches.clip_sums import clip_sums_of
from vmr_env.caches.derived import derived_tables
from vmr_env.caches.reader import DecoderStateCache, write_cache
from vmr_env.errors import DataError


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("VMR_ENV_CACHE", str(tmp_path / "user"))
    return tmp_path / "user"


def names(folder: Path) -> list[str]:
    """All files and folders below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def expected(cache: DecoderStateCache) -> np.ndarray:
    """Running sums computed from the clips as they are now."""
    assert cache.clips is not None
    rows = []
    for clips in map(np.float64, (cache.clips[sample] for sample in range(len(cache)))):
        rows += [clips[:k].sum(axis=0) / len(clips) for k in range(len(clips) + 1)]
    return np.array(rows)


def sums_of(cache: DecoderStateCache) -> np.ndarray:
    found = clip_sums_of(cache)
    assert found is not None
    return found.sums


def test_every_file_and_parameter_of_a_cache_names_its_tables(tmp_path: Path, folder: Path) -> None:
    path = make_cache(tmp_path / "c", full=True)
    manifest = json.loads((path / "manifest.json").read_text())

    def made(parameters: list[int]) -> int:
        cache = DecoderStateCache.open(path)
        derived_tables("kind", cache, [], parameters, 0, lambda part: {"a": np.ones((1, 2), np.float32)})
        return len(os.listdir(folder / "kind"))

    assert [made([1]), made([1]), made([2])] == [1, 1, 2]
    for count, entry in enumerate(manifest["files"].values(), 3):
        entry["sha256"] = "0" * 64
        (path / "manifest.json").write_text(json.dumps(manifest))
        assert made([1]) == count
    manifest["clip_seconds"] = 2.0
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert made([1]) == count + 1


@pytest.mark.parametrize("file", ["clips.values", "clips.offsets"])
def test_a_damaged_copy_leaves_no_tables_for_the_good_one(tmp_path: Path, folder: Path, file: str) -> None:
    good = make_cache(tmp_path / "good", n=40, full=True)
    shutil.copytree(good, tmp_path / "damaged")
    path = tmp_path / "damaged" / f"{file}.npy"
    raw = bytearray(path.read_bytes())
    raw[-16] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=rf"{file}\.npy: has sha256"):
        sums_of(DecoderStateCache.open(tmp_path / "damaged"))
    assert not [name for name in names(folder) if name.endswith(".npy")]
    cache = DecoderStateCache.open(good)
    np.testing.assert_allclose(sums_of(cache), expected(cache), atol=1e-6)


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-40, os.SEEK_END)
        file.write(bytes([byte ^ 0x40]))


DAMAGES: list[Callable[[Path], object]] = [
    _flip,
    Path.unlink,
    lambda path: os.truncate(path, path.stat().st_size - 1),
    lambda path: os.truncate(path, 0),
    lambda path: (path.unlink(), path.mkdir()),
]


TABLES = ["sums.npy", "tables.json"]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("damage", range(len(DAMAGES)))
def test_a_damaged_table_is_made_again(tmp_path: Path, folder: Path, name: str, damage: int) -> None:
    cache = DecoderStateCache.open(make_cache(tmp_path / "c", full=True))
    sums_of(cache)
    (tables,) = (folder / "clip-sums").iterdir()
    DAMAGES[damage](tables / name)
    np.testing.assert_allclose(sums_of(cache), expected(cache), atol=1e-6)
    assert os.listdir(folder / "clip-sums") == [tables.name]
    assert names(tables) == TABLES


def test_good_tables_that_were_moved_are_kept(tmp_path: Path, folder: Path) -> None:
    cache = DecoderStateCache.open(make_cache(tmp_path / "c", full=True))
    sums_of(cache)
    (tables,) = (folder / "clip-sums").iterdir()
    shutil.copytree(tables, tmp_path / "moved")
    shutil.rmtree(tables)
    (tmp_path / "moved").rename(tables)
    inode = (tables / "sums.npy").stat().st_ino
    record = json.loads((tables / "tables.json").read_text())
    sums_of(cache)
    assert (tables / "sums.npy").stat().st_ino == inode
    now = json.loads((tables / "tables.json").read_text())
    assert now["sums"]["sha256"] == record["sums"]["sha256"]
    assert now["sums"]["stamp"][1] == inode


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    cache = DecoderStateCache.open(make_cache(tmp_path / "c", n=200, full=True))
    says = r"cannot be written \(.*VMR_ENV_CACHE chooses"
    with small_disk(32), pytest.raises(DataError, match=says) as caught:
        sums_of(cache)
    assert len(caught.value.problems) == 1
    assert names(folder / "clip-sums") == []
    np.testing.assert_allclose(sums_of(cache), expected(cache), atol=1e-6)


def test_tables_that_the_disk_has_no_room_for_are_not_begun(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DecoderStateCache.open(make_cache(tmp_path / "c", n=200, full=True))
    size = expected(cache).size * 4
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    says = rf"has {size - 1:,} bytes of room, clip-sums takes {size:,}; .*VMR_ENV_CACHE chooses"
    with pytest.raises(DataError, match=says):
        sums_of(cache)
    assert names(folder) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size))
    np.testing.assert_allclose(sums_of(cache), expected(cache), atol=1e-6)


def test_blocks_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DecoderStateCache.open(write_cache(tmp_path / "c", random_batch(50, full=True), **ARGUMENTS))
    assert cache.clips is not None
    monkeypatch.setattr("vmr_env.caches.derived.BLOCK_SAMPLES", 7)
    sums = clip_sums_of(cache)
    assert sums is not None
    for sample in range(50):
        first, count = sums.firsts[sample], sums.counts[sample]
        mean = np.asarray(cache.clips[sample], np.float64).mean(axis=0)
        np.testing.assert_allclose(sums.sums[first + count], mean, rtol=1e-5, atol=1e-6)
        assert not sums.sums[first].any()
