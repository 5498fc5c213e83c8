"""Logs of trainings: what is written is read back by each kind's own reader."""

import csv
import math
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vmr_env.agents.ensemble.cross_fitting import Progress
from vmr_env.benchmarks.experiment.experiment import Run
from vmr_env.benchmarks.experiment.logs import CsvLog, open_logs
from vmr_env.benchmarks.experiment.progress import Watcher


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_holds_every_figure_in_full_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "csv", "ppo-seed0")
    log.write(3, {"losses/policy": 0.1 + 0.2, "health/explained_variance": math.nan})
    found = rows(tmp_path / "csv" / "ppo-seed0.csv")  # still open
    assert [(row["step"], row["name"]) for row in found] == [
        ("3", "losses/policy"),
        ("3", "health/explained_variance"),
    ]
    assert float(found[0]["value"]) == 0.1 + 0.2
    assert math.isnan(float(found[1]["value"]))
    log.close()
    CsvLog(tmp_path / "csv", "ppo-seed0").close()  # an interrupted run begins anew
    assert rows(tmp_path / "csv" / "ppo-seed0.csv") == []


def test_tensorboard_and_csv_have_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = open_logs(("tensorboard", "csv"), tmp_path, "run")
    for step in range(4):
        log.write(step, {"charts/steps": 10.0 * step})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run")).Reload().Scalars("charts/steps")
    given = [(int(row["step"]), float(row["value"])) for row in rows(tmp_path / "csv" / "run.csv")]
    assert given == [(event.step, event.value) for event in events] == [(s, 10.0 * s) for s in range(4)]


def test_weights_and_biases_is_asked_to_stay_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    run = SimpleNamespace(
        log=lambda figures, step: told.append((step, figures)), finish=lambda: told.append("finished")
    )

    def init(**arguments: Any) -> SimpleNamespace:
        told.append(arguments)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    log = open_logs(("wandb",), tmp_path, "run")
    log.write(1, {"losses/policy": 0.5})
    log.close()
    assert told[0]["mode"] == "offline"
    assert told[0]["dir"] == str(tmp_path / "wandb")
    assert told[1:] == [(1, {"losses/policy": 0.5}), "finished"]


def test_a_watcher_logs_figures_and_gains_of_all_members(tmp_path: Path) -> None:
    one = Run("ppo", 0, 0)
    experiment = SimpleNamespace(is_done=lambda run: False)
    work: Any = SimpleNamespace(runs=lambda: iter([one]), of=lambda run: experiment)
    with Watcher(work, tmp_path, ("csv",), StringIO()) as watcher:
        watcher.progress(one, Progress(0, 2, 10, 0, {"losses/policy": 1.5}, None, members=2))
        watcher.progress(one, Progress(1, 10, 10, 0, {"losses/policy": 0.5}, 0.25, members=2))
    assert [tuple(row.values()) for row in rows(tmp_path / "csv" / f"{one.name}.csv")] == [
        ("2", "losses/policy", "1.5"),
        ("20", "losses/policy", "0.5"),
        ("20", "charts/held_out_gain", "0.25"),
    ]


def test_members_that_are_trained_side_by_side_are_logged_one_after_the_other(tmp_path: Path) -> None:
    """Steps of a log only rise, and what comes when the run has its result is left out."""
    one = Run("ppo", 0, 0)
    experiment = SimpleNamespace(is_done=lambda run: False)
    work: Any = SimpleNamespace(runs=lambda: iter([one]), of=lambda run: experiment)
    told = [(1, 1), (0, 1), (2, 1), (2, 2), (0, 2), (1, 2)]
    with Watcher(work, tmp_path, ("csv",), StringIO()) as watcher:
        for member, number in told:
            watcher.progress(one, Progress(member, number, 2, 0, {"losses/policy": member}, None, members=3))
        watcher.finished(one)
        watcher.progress(one, Progress(2, 2, 2, 0, {"losses/policy": 9.0}, None, members=3))
    logged = [(row["step"], row["value"]) for row in rows(tmp_path / "csv" / f"{one.name}.csv")]
    assert logged == [(str(2 * member + number), f"{member}.0") for member in range(3) for number in (1, 2)]
