"""Training state under faults."""

import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

from vmr_env.backbones.train import cut_history
from vmr_env.errors import DataError


def test_history_is_never_cut_in_place(tmp_path: Path) -> None:
    history, as_before_a_kill = tmp_path / "history.jsonl", tmp_path / "same-inode"
    first, second, third = (f'{{"epoch": {epoch}}}\n' for epoch in (1, 2, 3))
    history.write_text(first + second + third)
    os.link(history, as_before_a_kill)
    cut_history(history, 2)
    assert history.read_text() == first + second
    assert as_before_a_kill.read_text() == first + second + third
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl", "same-inode"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"epoch": 1}\n{"epoch": 3}\n', "expected the figures of epoch 2"),
        ('{"epoch": 1}\nnothing\n', "expected the figures of epoch 2"),
        ('{"epoch": 1}\n[2]\n', "expected the figures of epoch 2"),
        ('{"epoch": 1}\n', "has 1 epochs; expected the 2"),
        ("", "is empty"),
    ],
)
def test_a_history_with_other_epochs_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "history.jsonl").write_text(text)
    with pytest.raises(DataError, match=says):
        cut_history(tmp_path / "history.jsonl", 2)
    assert (tmp_path / "history.jsonl").read_text() == text
