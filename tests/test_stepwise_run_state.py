"""Checkpoints of resumable runs: what goes in comes out, and nothing half-written stays."""

import io
from pathlib import Path

import pytest
import torch

from vmr_env.agents.checkpoint import load_run, save_run
from vmr_env.errors import DataError
from vmr_env.files.objects import write_sealed

RUN = {"seed": 1, "config": {"lr": 0.5, "stages": (1, 2)}}


def test_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    save_run(path, "test", RUN, {"weights": torch.arange(3), "history": [{"loss": 0.25}], "baseline": None})
    state = load_run(path, "test", RUN)
    assert state["weights"].tolist() == [0, 1, 2]
    assert state["history"] == [{"loss": 0.25}]
    assert state["baseline"] is None


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.pt"
    save_run(path, "test", RUN, {"epoch": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"run\.pt: cannot be written .*No space left"):
        save_run(path, "test", RUN, {"epoch": 2})
    assert load_run(path, "test", RUN) == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.pt"]


def test_missing_folder_and_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone/run\.pt: cannot be written"):
        save_run(tmp_path / "gone" / "run.pt", "test", RUN, {})
    with pytest.raises(DataError, match=r"run\.pt: cannot be read .*No such file.*remove it to begin anew"):
        load_run(tmp_path / "run.pt", "test", RUN)


def test_every_difference_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    save_run(path, "test", RUN, {})
    with pytest.raises(DataError) as caught:
        load_run(path, "test", {"seed": 2, "config": {"lr": 0.5, "stages": (1, 3)}})
    assert [problem.field for problem in caught.value.problems] == ["seed", "config"]
    with pytest.raises(DataError, match="of kind 'other'"):
        load_run(path, "other", RUN)


class Unsafe:
    """Something that only unpickling code could rebuild."""


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    content = io.BytesIO()
    torch.save({"kind": "test", "version": 1, "run": RUN, "state": Unsafe()}, content)
    write_sealed(path, content.getvalue())
    with pytest.raises(DataError, match="is no checkpoint"):
        load_run(path, "test", RUN)
