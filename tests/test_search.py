"""Search of settings: what trials are worth, that they go on, and that no test data are seen."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vmr_env.benchmarks.experiment.search import main, read_search
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.profiles import get_profile
from vmr_env.errors import DataError
from vmr_env.simulation.simulator import simulate

optuna = pytest.importorskip("optuna", reason="needs Optuna")
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

OWN = """
from dataclasses import dataclass
import numpy as np
from vmr_env.agents.base import Agent
from vmr_env.agents.expected_gain import ExpectedGain, ExpectedGainConfig

@dataclass(frozen=True)
class Config(ExpectedGainConfig):
    spoil: float = 0.0

class Own(ExpectedGain):
    num_envs = 8
    config_class = Config

    def update(self):
        if getattr(self.config, "spoil", 0) > 0.5:
            raise ValueError("spoilt")
        return super().update()
"""

SPACE = "{lr: {low: 1e-4, high: 1e-2, log: true}}"
FILE = f"""
method: own:Own
settings: {SPACE}
options: {{cache: train, folds: 2, members: 2, evaluations: 1, rounds: 1}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_module: Callable[[str, str], None]) -> Path:
    monkeypatch.chdir(tmp_path)
    own_module("own", OWN)
    (tmp_path / "search.yaml").write_text(FILE)
    simulate(tmp_path / "train", get_profile("charades"), "train", samples=40)
    return tmp_path


def search(out: str, trials: int, *more: str) -> int:
    return main(["search.yaml", "--trials", str(trials), "--jobs", "1", "--log", "csv", "--out", out, *more])


def test_a_value_is_the_mean_over_all_samples_each_judged_by_others(place: Path) -> None:
    """From the result files alone: the tIoU of every sample's window, computed here."""
    assert search("out", 2) == 0
    cache = DecoderStateCache.open(place / "train")
    values = {}
    for trial in ("trial-0000", "trial-0001"):
        tious = np.full(len(cache), np.nan)
        for path in (place / "out" / "trials" / trial / "runs").glob("*.json"):
            refined = json.loads(path.read_text())["refined"]
            for row, (start, end) in zip(refined["samples"], refined["windows"], strict=True):
                assert np.isnan(tious[row])
                tious[row] = max(
                    max(0.0, min(end, b) - max(start, a)) / (max(end, b) - min(start, a))
                    for a, b in cache.sample(row).moments.tolist()
                )
        values[trial] = 100 * tious.mean()
    best = json.loads((place / "out" / "best.json").read_text())
    assert best["value"] == pytest.approx(max(values.values()), abs=0.01)
    assert values[f"trial-{best['trial']:04d}"] == max(values.values())
    rows = (place / "out" / "table.md").read_text().splitlines()[2:]
    assert [row.split("|")[3].strip() for row in rows].count("default") == 1


def test_a_search_goes_on_with_the_trials_that_one_without_a_break_has(place: Path) -> None:
    assert search("broken", 2) == 0
    first = {path: path.stat().st_mtime_ns for path in (place / "broken").rglob("runs/*.json")}
    assert search("broken", 4, "--resume") == 0
    assert search("whole", 4) == 0
    assert {path: path.stat().st_mtime_ns for path in first} == first
    for name in ("table.md", "best.json"):
        assert (place / "broken" / name).read_bytes() == (place / "whole" / name).read_bytes()
    assert search("broken", 4, "--resume", "--search-seed", "1") == 1  # another search


def test_a_trial_that_fails_costs_only_itself(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "search.yaml").write_text(FILE.replace(SPACE, "{spoil: [1.0]}"))
    assert search("out", 2) == 0
    shown = capsys.readouterr()
    assert "trial-0001/own.Own-seed0-fold0: failed (ValueError: spoilt)" in shown.err
    assert "| trial 1 | failed |" in shown.out
    assert json.loads((place / "out" / "best.json").read_text())["trial"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cache: train", "cache: train, test_cache: x"), "options.test_cache: is given; expected none"),
        (("cache: train, ", ""), "has no predictions and no cache"),
        (("own:Own", "[a]"), "method: is ['a']; expected an agent"),
        (("high: 1e-2", "high: 1e-5"), "settings.lr: is {'high': '1e-5', "),
        (("low: 1e-4", "low: 0"), "expected a list of values, or low < high (with log: low > 0)"),
        ((SPACE, "{}"), "settings: is {}; expected settings"),
        (("folds: 2", "folds: two"), "folds: is 'two'; expected a whole number"),
    ],
)
def test_what_a_file_may_not_say(place: Path, change: tuple[str, str], message: str) -> None:
    (place / "search.yaml").write_text(FILE.replace(*change))
    with pytest.raises(DataError) as raised:
        read_search(place / "search.yaml")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lr: {low", "colour: {low"), "colour"),
        (("low: 1e-4, high: 1e-2, log: true", "low: -1.0, high: 1e-2"), "lr"),
    ],
)
def test_settings_are_tried_at_their_ends_before_anything_is_trained(
    place: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    (place / "search.yaml").write_text(FILE.replace(*change))
    assert search("out", 2) != 0
    assert message in capsys.readouterr().err
    assert not (place / "out").exists()


def test_an_unknown_figure_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("out", 1, "--measure", "beauty") == 2
    assert "--measure: is 'beauty', expected one of R1@0.5" in capsys.readouterr().err
