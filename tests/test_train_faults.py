"""Training state under faults."""

import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

from vmr_env.backbones.train import cut_history


def test_history_is_never_cut_in_place(tmp_path: Path) -> None:
    history, as_before_a_kill = tmp_path / "history.jsonl", tmp_path / "same-inode"
    history.write_text("a\nb\nc\n")
    os.link(history, as_before_a_kill)
    cut_history(history, 2)
    assert history.read_text() == "a\nb\n"
    assert as_before_a_kill.read_text() == "a\nb\nc\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl", "same-inode"]
