"""Models on the Hub, against a stub of it that keeps folders by revision on this disk."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.caches import ARGUMENTS, random_batch
from vmr_env.agents.ensemble.cross_fitting import CrossFittedEnsemble
from vmr_env.agents.ensemble.files import load_ensemble, save_ensemble
from vmr_env.agents.hub import CARD, CONFIG, MODEL, load_from_hub, push_to_hub, write_model_folder
from vmr_env.caches.reader import DecoderStateCache, write_cache
from vmr_env.errors import DataError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stub's folder: `<owner>/<name>/<revision>`."""
    root = tmp_path / "hub"

    class Api:
        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str]) -> Any:
            files = [Path(folder_path) / name for name in allow_patterns]
            revision = hashlib.sha1(b"".join(file.read_bytes() for file in files)).hexdigest()
            (root / repo_id / revision).mkdir()
            for file in files:
                shutil.copy(file, root / repo_id / revision)
            return SimpleNamespace(oid=revision)

    def download(*, repo_id: str, filename: str, revision: str) -> str:
        return str(root / repo_id / revision / filename)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api, hf_hub_download=download))
    return root


@pytest.fixture
def agent(tmp_path: Path) -> tuple[Path, DecoderStateCache]:
    cache = DecoderStateCache.open(write_cache(tmp_path / "cache", random_batch(6), **ARGUMENTS))
    path = tmp_path / "agent.safetensors"
    save_ensemble(path, CrossFittedEnsemble([], {"horizon": 2}), cache, {"seed": 7})
    return path, cache


def written(tmp_path: Path, agent: Path) -> Path:
    figures = {"R1@0.5": 61.25, "mIoU": 50.0}
    return write_model_folder(
        tmp_path / "model", agent, figures=figures, licence="mit", data_source="Simulated: no real video."
    )


def test_what_is_pushed_comes_back_by_its_revision(
    hub: Path, agent: tuple[Path, DecoderStateCache], tmp_path: Path
) -> None:
    path, cache = agent
    revision = push_to_hub(written(tmp_path, path), "me/agent")
    file = load_from_hub("me/agent", revision=revision)
    assert file.is_relative_to(hub)
    assert file.read_bytes() == path.read_bytes()
    assert load_ensemble(file, cache).options["horizon"] == 2


def test_the_card_has_licence_source_and_figures(
    agent: tuple[Path, DecoderStateCache], tmp_path: Path
) -> None:
    yaml = pytest.importorskip("yaml")
    folder = written(tmp_path, agent[0])
    assert {file.name for file in folder.iterdir()} == {MODEL, CONFIG, CARD}
    _, metadata, text = (folder / CARD).read_text().split("---\n", 2)
    said = yaml.safe_load(metadata)
    assert (said["license"], said["library_name"]) == ("mit", "vmr-env")
    (result,) = said["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "R1@0.5": 61.25,
        "mIoU": 50.0,
    }
    assert "Data: Simulated: no real video." in text
    assert "| R1@0.5 | 61.25 |" in text
    assert json.loads((folder / CONFIG).read_text())["seed"] == 7


@pytest.mark.usefixtures("hub")
def test_branches_and_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="revision: is 'main'; expected the hash of a commit"):
        load_from_hub("me/agent", revision="main")
    with pytest.raises(DataError, match=r"lacks model.safetensors, config.json, README.md"):
        push_to_hub(tmp_path, "me/agent")
