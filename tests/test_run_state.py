"""Damaged state of a run: refused by name with the way out, never read as results."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vmr_env.agents.ensemble.cross_fitting import Selection
from vmr_env.agents.evaluation import Refined
from vmr_env.benchmarks.experiment.experiment import Experiment, Run
from vmr_env.benchmarks.experiment.methods import MethodResult, Settings
from vmr_env.benchmarks.experiment.options import Options
from vmr_env.benchmarks.experiment.run_folder import settle
from vmr_env.errors import DataError
from vmr_env.files.objects import write_state

SETTINGS = Settings(2, 1, 1, 1)
RUN = Run("a", 0, 0)


def experiment(folder: Path, samples: int = 4) -> Experiment:
    """One run whose result is known."""
    rows = np.arange(samples)
    spans = np.linspace(0, 1, 2 * samples).reshape(-1, 2)
    outcome = MethodResult(
        Refined(rows, spans, rows * 0, rows / 10, rows / 5),
        Selection((1,), (0.5,), 1, 8, ((0.5, 0.5),), ({"losses/entropy": 0.5},)),
    )
    method: Any = SimpleNamespace(members=lambda *_: 0, answer=lambda *_: outcome)
    fold: Any = SimpleNamespace(test_samples=rows)
    return Experiment(folder, [fold], {"a": method}, 1, SETTINGS)


def _edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "other keys": lambda path: path.write_text('{"a": 1}'),
    "a list": lambda path: path.write_text("[]"),
    "nested": lambda path: path.write_text("[" * 200_000),
    "a window far away": lambda path: _edit(path, lambda c: c["refined"]["windows"][0].__setitem__(1, 1e6)),
    "a better gain": lambda path: _edit(path, lambda c: c["selection"].update(gains=[0.9])),
    "a key less": lambda path: _edit(path, lambda c: c.pop("frozen")),
    "no digest": lambda path: _edit(path, lambda c: c.pop("sha256")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_refused_with_the_way_out(tmp_path: Path, damage: str) -> None:
    good = experiment(tmp_path)
    before = good.do(RUN)
    assert good.read(RUN).outcome.answers.windows.tolist() == before.outcome.answers.windows.tolist()
    path = good.path(RUN)
    DAMAGES[damage](path)
    assert good.is_done(RUN)
    with pytest.raises(DataError, match="--resume does the run again") as caught:
        good.check_done()
    assert [problem.where for problem in caught.value.problems] == [str(path)]
    assert len(str(caught.value)) < 600


def test_results_of_other_samples_are_refused(tmp_path: Path) -> None:
    experiment(tmp_path).do(RUN)
    with pytest.raises(DataError, match="answers other samples than those of fold 0"):
        experiment(tmp_path, samples=5).check_done()


def test_settings_that_are_damaged_or_gone_do_not_take_results_of_another_run(tmp_path: Path) -> None:
    cache = SimpleNamespace(manifest={"files": {}, "backbone": {}, "models": []})
    fold: Any = SimpleNamespace(train=cache, test=cache, select=None)
    settle(Options(out=tmp_path), [fold])
    experiment(tmp_path).do(RUN)
    path = tmp_path / "settings.json"
    settle(Options(out=tmp_path), [fold])
    _edit(path, lambda content: content.update(members="9"))
    with pytest.raises(DataError, match=r"settings\.json: does not have the sha256.*another --out"):
        settle(Options(out=tmp_path, members=9), [fold])
    path.unlink()
    with pytest.raises(DataError, match=r"settings\.json: is missing.*another --out"):
        settle(Options(out=tmp_path), [fold])


def test_states_hold_no_numbers_that_json_lacks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected finite numbers"):
        write_state(tmp_path / "state.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []
