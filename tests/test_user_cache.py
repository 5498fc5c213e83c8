"""The folder of files that the package makes for itself, with and without a home folder."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vmr_env.errors import DataError
from vmr_env.files.user_cache import VARIABLE, prune, user_cache_folder


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def unknown(_: int) -> None:
        raise KeyError

    for name in ("VMR_ENV_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_order(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="VMR_ENV_CACHE"):
        assert user_cache_folder().parent == homeless
    monkeypatch.setenv("HOME", str(homeless))
    assert user_cache_folder() == homeless / ".cache" / "vmr_env"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert user_cache_folder() == Path("/x/vmr_env")
    monkeypatch.setenv("VMR_ENV_CACHE", "/y")
    assert user_cache_folder() == Path("/y")


def test_a_temporary_folder_that_is_a_link_is_refused(homeless: Path) -> None:
    with pytest.warns(UserWarning, match="VMR_ENV_CACHE"):
        folder = user_cache_folder()
    folder.rmdir()
    (homeless / "elsewhere").mkdir()
    folder.symlink_to(homeless / "elsewhere")
    with pytest.raises(DataError, match="another user"):
        user_cache_folder()


def test_nothing_is_decided_at_import() -> None:
    code = (
        "import pathlib\n"
        "def fail(*_): raise RuntimeError('no home')\n"
        "pathlib.Path.home = fail\n"
        "import vmr_env.backbones.features.captions"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_pruning_removes_the_oldest_and_keeps_what_fits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    for age, name in enumerate(("a/young", "b/old", "a/older")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "table").write_bytes(bytes(100_000))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    (tmp_path / "a" / ".dead.0123456789abcdef.tmp").mkdir()
    removed, left = prune(250_000)
    assert removed >= 100_000
    assert 200_000 <= left <= 250_000
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")) == ["a/young", "b/old"]
    assert prune(0)[1] == 0
    assert list(tmp_path.glob("*/*")) == []
