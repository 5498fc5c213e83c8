"""Shared fixtures: where the research data lie, and one torch thread."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmr_env.files.user_cache import user_cache_folder

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: small networks, and other tests
# Tests have users' cache folders of their own; compiled code is shared among them and kept between runs.
os.environ.setdefault("NUMBA_CACHE_DIR", str(user_cache_folder() / "compiled"))

SHARED = Path(os.environ.get("VMR_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the research data and goldens; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"research data not found at {SHARED} (set VMR_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def data(shared: Path) -> Path:
    """Folder of annotations and predictions."""
    return shared / "data"


@pytest.fixture(scope="session")
def goldens(shared: Path) -> Path:
    """Folder of GIRL-DETR reference tensors."""
    return shared / "girl_detr" / "goldens"


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes a module by name into the test's folder, importable until the test ends.

    It is forgotten then, so that another test may have a module of that name.
    """
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        names.append(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)
