"""Sweeps: a table of experiments is checked as a whole, done as one, goes on, and has one report."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmr_env.benchmarks.experiment.main import main as tprl
from vmr_env.benchmarks.experiment.sweep import main, read_sweep
from vmr_env.data.profiles import get_profile
from vmr_env.errors import DataError
from vmr_env.files.yaml import read_yaml
from vmr_env.simulation.config import CONFIGS
from vmr_env.simulation.simulator import simulate

OWN = """
from pathlib import Path
from vmr_env.agents.expected_gain import ExpectedGain
class Small(ExpectedGain):
    num_envs = 8
class Fails(Small):
    def update(self):
        raise ValueError("spoilt")
"""

TABLE = """
data: [charades]
detectors:
  one: {}
  two: {}
settings:
  first: {}
  pair: {proposals: 2}
methods: ["own:Small"]
seeds: 1
options:
  cache: "{data}/{detector}/train"
  test_cache: "{data}/{detector}/test"
  members: 2
  evaluations: 1
  rounds: 1
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_module: Callable[[str, str], None]) -> Path:
    """A working folder with caches of two detectors on the same queries, and an own agent."""
    monkeypatch.chdir(tmp_path)
    own_module("own", OWN)
    for detector, noise in (("one", 0.1), ("two", 0.3)):
        config = replace(CONFIGS["charades"], region_noise=noise)
        for split in ("train", "test"):
            folder = tmp_path / "charades" / detector / split
            simulate(folder, get_profile("charades"), split, samples=40, config=config)
    (tmp_path / "sweep.yaml").write_text(TABLE)
    return tmp_path


def results(folder: Path) -> dict[str, Any]:
    """Results without how long they took."""
    found = {}
    for path in sorted(folder.rglob("runs/*.json")):
        found[path.relative_to(folder).as_posix()] = content = json.loads(path.read_text())
        del content["seconds"], content["sha256"]
    return found


def test_rows_are_all_combinations_and_the_nearest_value_counts(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(
        """
        data: {a: {dataset: tacos, members: 3}, b: }
        detectors: [x, y]
        settings: {s: {members: 5}, t: {methods: [grpo], curriculum: plateau}}
        methods: [ppo, "m:Own"]
        seeds: 7
        options: {dataset: charades, members: 2, predictions: ["{data}/val.{detector}.jsonl"]}
        """
    )
    rows = {row.name: row.options for row in read_sweep(tmp_path / "t.yaml")}
    assert list(rows) == [
        f"{data}/{detector}/{setting}" for data in "ab" for detector in "xy" for setting in "st"
    ]
    assert [rows[name].members for name in ("a/x/s", "a/x/t", "b/x/s", "b/x/t")] == [5, 3, 5, 2]
    assert rows["a/y/t"].predictions == (Path("a/val.y.jsonl"),)
    assert (rows["a/x/s"].dataset, rows["b/x/s"].dataset) == ("tacos", "charades")
    assert (rows["a/x/s"].agents, rows["a/x/s"].agent) == (("ppo",), ("m:Own",))
    assert (rows["b/y/t"].agents, rows["b/y/t"].agent) == (("grpo",), ())
    assert {options.seeds for options in rows.values()} == {7}


def test_a_row_is_the_experiment_of_the_main_job(place: Path) -> None:
    """The same numbers, in the same files; in one process or two; and the report has them all."""
    assert main(["sweep.yaml", "--jobs", "1", "--out", "alone", "--log", "csv"]) == 0
    assert main(["sweep.yaml", "--jobs", "2", "--out", "pool", "--log", "csv"]) == 0
    assert results(place / "alone") == results(place / "pool")
    data = ["--cache", "charades/two/train", "--test-cache", "charades/two/test", "--proposals", "2"]
    agents = ["--agents", "--agent", "own:Small", "--seeds", "1"]
    quick = ["--members", "2", "--evaluations", "1", "--rounds", "1", "--jobs", "1", "--out", "plain"]
    assert tprl([*data, *agents, *quick]) == 0
    row = place / "alone" / "rows" / "charades" / "two" / "pair"
    assert results(place / "plain") == results(row)
    assert (row / "report.html").exists()

    lines = json.loads((place / "alone" / "sweep.json").read_text())
    assert len(lines) == 4 * 2  # the detector and the agent of each row
    (line,) = (
        line
        for line in lines
        if (line["detector"], line["setting"], line["agent"]) == ("two", "pair", "own:Small")
    )
    told = json.loads((place / "plain" / "results.json").read_text())["agents"]["own:Small"]
    assert line["figures"] == told["figures"][0]
    assert line["change"] == told["change"]
    page = (place / "alone" / "report.html").read_text()
    assert page.count("<tr>") == 1 + len(lines)
    for line in lines:
        assert f'<a href="{line["report"]}">' in page
        assert (place / "alone" / line["report"]).exists()
    # In the mean over the two detectors, which answer the same queries.
    combined = json.loads((place / "alone" / "combined" / "charades" / "first" / "combined.json").read_text())
    changes = [
        line["change"]["mIoU"]["mean"] for line in lines if line["setting"] == "first" and line["change"]
    ]
    assert combined["rows"]["own:Small"]["change"]["mIoU"]["mean"] == pytest.approx(sum(changes) / 2)


def test_a_sweep_goes_on_with_rows_and_seeds_that_were_added(place: Path) -> None:
    def grown(settings: str, seeds: int) -> None:
        text = TABLE.replace("  pair: {proposals: 2}\n", settings).replace("seeds: 1", f"seeds: {seeds}")
        (place / "sweep.yaml").write_text(text)

    grown("", 1)
    assert main(["sweep.yaml", "--jobs", "1", "--out", "grown", "--log", "csv"]) == 0
    first = {path: path.stat().st_mtime_ns for path in (place / "grown").rglob("runs/*.json")}
    assert len(first) == 2
    assert main(["sweep.yaml", "--jobs", "1", "--out", "grown"]) == 2  # not without --resume
    grown("  pair: {proposals: 2}\n", 2)
    assert main(["sweep.yaml", "--jobs", "1", "--out", "grown", "--log", "csv", "--resume"]) == 0
    assert len(results(place / "grown")) == 8
    assert first == {path: path.stat().st_mtime_ns for path in first}  # done once
    assert main(["sweep.yaml", "--jobs", "1", "--out", "whole", "--log", "csv"]) == 0
    assert results(place / "grown") == results(place / "whole")


def test_runs_that_fail_are_named_by_row_and_the_others_finish(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TABLE.replace("pair: {proposals: 2}", 'bad: {methods: ["own:Fails"]}')
    (place / "sweep.yaml").write_text(text)
    assert main(["sweep.yaml", "--jobs", "1", "--out", "out", "--log", "csv"]) == 1
    said = capsys.readouterr().err
    for detector in ("one", "two"):
        assert f"charades/{detector}/bad/own.Fails-seed0-fold0: failed (ValueError: spoilt)" in said
    assert len(results(place / "out")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("proposals: 2", "proposals: 99"), "charades/one/pair: --proposals: is 99, expected at most"),
        (("proposals: 2", "set: [x.y=1]"), "charades/two/pair: --set: is 'x.y=1', expected"),
        (('"own:Small"', "nobody"), "expected one of expected_gain"),
        (("{data}/{detector}/test", "{data}/{detector}/train"), "charades/one/first: "),
        (("members: 2", "members: 99"), "charades/two/pair: --members: is 99"),
    ],
)
def test_every_row_is_checked_before_anything_is_trained(
    place: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    (place / "sweep.yaml").write_text(TABLE.replace(*change))
    assert main(["sweep.yaml", "--jobs", "1", "--out", "out", "--log", "csv"]) == 1
    assert message in capsys.readouterr().err
    assert not list(place.rglob("out/**/runs/*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [a, a]", "data: is ['a', 'a']; expected each name once"),
        ("data: [a]\ndata: [b]", "'data' stands twice in one mapping, line 2"),
        ("data: {a: 3}", "data.a: is 3; expected options"),
        ("data: 3", "data: is 3; expected names"),
        ("data: [../a]", "data: has the name '../a'; expected letters"),
        ("methods: [ppo]", "has none of data, detectors, settings"),
        ("data: [a]\ncolour: red", "colour: is no part of a sweep"),
        ("data: [a]\nmethods: ppo", "a, methods: is 'ppo'; expected a list of agents"),
        ("data: [a]\noptions: {out: x}", "a, out: is no option of a row"),
        ("data: [a]\noptions: {colour: red}", "a, colour: is no option; expected some of"),
        ("data: [a]\nseeds: many", "a, seeds: is 'many'; expected a whole number"),
        ("data: [a]\nseeds: true", "a, seeds: is True; expected a whole number"),
        ("data: [a]\noptions: {sort: 1}", "a, sort: is 1; expected true or false"),
        ("data: [a]\noptions: {features: [x]}", "a, features: is ['x']; expected 2 values"),
        ("data: [a]\noptions: {past_end: never}", "a, past_end: is 'never'; expected some of error"),
        ("data: [a]\noptions: {cache: {b: c}}", "a, cache: is {'b': 'c'}; expected a path"),
        ("[a, b]", "holds ['a', 'b']; expected a mapping"),
        ("data: [a", "is no readable YAML"),
    ],
)
def test_what_a_table_may_not_say(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as raised:
        read_sweep(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("data: !!python/object/apply:os.getcwd []")
    with pytest.raises(DataError, match="could not determine a constructor"):
        read_yaml(tmp_path / "t.yaml")
