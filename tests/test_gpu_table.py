"""The table of one accelerator, on whatever this machine has."""

import json
from pathlib import Path

import pytest
import torch

from vmr_env.benchmarks.speed.gpu import main


def test_every_figure_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert main(["--seconds", "0.01", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    on_both = {"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"}
    assert {name: set(of) for name, of in figures.items()} == {
        "supervised steps/s": on_both,
        "cached samples/s": on_both,
        "TPRL steps/s": on_both,
        "PPO frames/s": on_both,
    }
    assert all(value > 0 for of in figures.values() for value in of.values())
    table = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in table[2:]] == list(figures)
    assert torch.cuda.is_available() or "no GPU was seen" in table[0]
