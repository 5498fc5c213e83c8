"""The speed script of TPRL measures what it says."""

import json
from pathlib import Path

import pytest

from vmr_env.agents.tprl.config import paper_config
from vmr_env.agents.tprl.data import StateBatches
from vmr_env.benchmarks.speed import tprl as tprl_speed


def test_figures_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tprl_speed, "FEW", 40)
    monkeypatch.setattr(tprl_speed, "MANY", 90)
    monkeypatch.setattr(tprl_speed, "WIDTH", 16)
    monkeypatch.setattr(tprl_speed.tprl_speed, "__defaults__", (4, 1))
    assert tprl_speed.main(["--json", str(tmp_path / "speed.json")]) == 0
    figures = json.loads((tmp_path / "speed.json").read_text())
    times = figures["published losses, samples/s"] / tprl_speed.OFFICIAL
    assert figures["published losses, times the official"] == pytest.approx(times)
    assert {"peak at 40 samples, MiB", "peak at 90 samples, MiB"} <= set(figures)


def test_it_is_stage_three_at_the_official_shape(tmp_path: Path) -> None:
    config = tprl_speed.stage_three(paper_config("charades"))
    assert (config.batch_size, config.schedule.phases[2].stage) == (32, 3)
    assert config.schedule.epochs == config.schedule.phases[2].epochs
    batch = next(StateBatches(tprl_speed.write_states(tmp_path / "c", 40)).ordered(32))
    assert batch.states.shape == (32, 10, 256)
