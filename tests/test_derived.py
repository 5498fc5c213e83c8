"""Keys of derived tables, and the order of syncing and renaming."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vmr_env.caches.derived import derived_files
from vmr_env.files.sync import rename_synced

_FILES = ("spans.npy", "saliency.values.npy", "saliency.offsets.npy", "clips.values.npy", "clips.offsets.npy")


def _folder(clip_seconds: float = 1.0, parameters: Any = (1,), **changed: str) -> Path:
    files = {file: {"sha256": changed.get(file, "0"), "bytes": 1} for file in _FILES}
    cache: Any = SimpleNamespace(manifest={"files": files, "clip_seconds": clip_seconds})
    return derived_files("kind", cache, parameters, {"a": (2,)}, lambda tables: tables["a"].fill(3))


def test_every_part_of_the_content_changes_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = [_folder(), _folder(2.0), _folder(parameters=(2,))] + [_folder(**{f: "1"}) for f in _FILES]
    assert len(set(folders)) == len(folders)
    assert _folder() == folders[0]


def test_files_are_on_the_disk_before_their_folder_is_renamed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(handle: int) -> None:
        told.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real_sync(handle)

    def rename(self: Path, target: Path) -> None:
        told.append("rename")
        real_rename(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("a")
    rename_synced(source, tmp_path / "target")
    assert told == ["a", "source", "rename", tmp_path.name]
