"""The main job from the command line: results, resuming, interruption, bad arguments."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vmr_env.benchmarks.experiment.options
from tests.caches import ARGUMENTS, random_batch
from vmr_env.agents.ensemble.files import load_ensemble
from vmr_env.agents.evaluation import refine, submission
from vmr_env.agents.expected_gain import ExpectedGain
from vmr_env.benchmarks.experiment.experiment import Experiment
from vmr_env.benchmarks.experiment.main import main
from vmr_env.caches.reader import DecoderStateCache, write_cache
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import read_predictions, write_predictions
from vmr_env.data.profiles import get_profile
from vmr_env.metrics.moments import evaluate
from vmr_env.simulation.simulator import simulate

QUICK = ["--members", "2", "--evaluations", "1", "--rounds", "1", "--jobs", "1"]
SMALL = ["--agent", "own_agent:Small", "--agent", "own_agent:SmallPPO"]
MY_AGENT = """
import numpy as np
from vmr_env.agents.expected_gain import ExpectedGain
from vmr_env.agents.ppo import PPO
from vmr_env.agents.base import Agent

class Small(ExpectedGain):
    num_envs = 8

class SmallPPO(PPO):
    num_envs = 8

class MyAgent(Agent):
    num_envs = 4
    def act(self, observations, masks):
        return np.full(len(masks), masks.shape[1] - 1)

class Gliding(MyAgent):
    env_options = {"actions": "continuous"}

class Poisoned(Small):
    def update(self):
        raise ValueError("spoilt\\nall of it")

class Half:
    def act(self, observations, masks): ...
"""


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated caches: train and test of Charades-STA; and others that do not go together with them."""
    folder = tmp_path_factory.mktemp("caches")
    for split, samples in (("train", 40), ("test", 30)):
        simulate(folder / split, get_profile("charades"), split, samples=samples)
    simulate(folder / "tacos", get_profile("tacos"), "test", samples=30)
    write_cache(folder / "pool", random_batch(9), **ARGUMENTS)
    return folder


@pytest.fixture
def data(caches: Path) -> list[str]:
    return ["--cache", str(caches / "train"), "--test-cache", str(caches / "test")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_module: Callable[[str, str], None]) -> Path:
    """A working folder with own agents in it."""
    own_module("own_agent", MY_AGENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _without_seconds(content: Any) -> Any:
    if isinstance(content, dict):
        timed = ("seconds", "sha256")  # the digest is of the seconds too
        return {key: _without_seconds(value) for key, value in content.items() if key not in timed}
    return [_without_seconds(value) for value in content] if isinstance(content, list) else content


def _results(out: Path) -> Any:
    return _without_seconds(json.loads((out / "results.json").read_text()))


def _interrupt_after(runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run, done = Experiment.do, []

    def interrupted(self: Experiment, *args: Any) -> Any:
        if len(done) == runs:
            raise KeyboardInterrupt
        done.append(args)
        return run(self, *args)

    monkeypatch.setattr(Experiment, "do", interrupted)


def test_from_data_to_table(
    caches: Path, data: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    own = ["--agent", "own_agent:MyAgent"]
    assert main([*data, "--agents", "expected_gain", *own, *QUICK, "--out", "out"]) == 0
    printed, _ = capsys.readouterr()
    assert printed.endswith("Report: out/report.html\n")
    assert "own_agent:MyAgent: R1@0.7 +0.0 [+0.0, +0.0]: fell back to the detector in every run\n" in printed
    lines = [line.split(" | ")[0].strip("| ") for line in printed.splitlines() if line.startswith("| ")]
    assert lines == [
        "agent",
        "detector (simulated detector)",
        "stop",
        "random",
        "greedy oracle (ceiling)",
        "constant window (best R1@0.5)",
        "constant window (best mIoU)",
        "expected_gain",
        "own_agent:MyAgent",
    ]
    assert (out / "table.md").read_text() in printed

    test = DecoderStateCache.open(caches / "test")
    truth = [
        Annotation(s.qid, s.vid, s.query, s.duration, s.moments, None, None)
        for s in map(test.sample, range(len(test)))
    ]
    record = _results(out)
    said = record["agents"]["expected_gain"]
    assert (said["seeds"], said["steps"]) == ([0, 1], 2 * 2 * 6 * ExpectedGain.num_envs)
    for seed, official in enumerate(said["figures"]):
        answers = read_predictions(out / f"submission-expected_gain-seed{seed}.jsonl")
        brief = evaluate(answers, truth)["brief"]
        assert official == {name: brief[f"MR-full-{name}"] for name in official}
    references = record["references"]
    detector = record["detectors"]["detector (simulated detector)"]
    assert references["stop"]["figures"] == detector
    assert references["greedy oracle (ceiling)"]["figures"]["mIoU"] > detector["mIoU"] + 5
    assert references["random"]["figures"]["mIoU"] < detector["mIoU"]
    # Stopping gains nothing, so the guard leaves the detector's moments alone.
    assert record["agents"]["own_agent:MyAgent"]["chosen_rounds"] == [0, 0]
    assert record["agents"]["own_agent:MyAgent"]["figures"] == [detector, detector]

    page = json.loads((out / "page.json").read_text())
    for name in ("expected_gain", "own_agent:MyAgent"):
        found = page["agents"][name]["0"]
        for place, span, iou, steps in zip(
            zip(page["start"]["spans"], page["start"]["ious"], strict=True),
            found["spans"],
            found["ious"],
            found["steps"],
            strict=True,
        ):
            assert 1 <= len(steps) <= (ExpectedGain.env_options["horizon"] if name == "expected_gain" else 3)
            places = [step for step in steps if step]  # stopping moves nothing
            last = places[-1] if places else [*place[0], place[1]]
            assert last[:3] == pytest.approx([*span, iou], abs=1e-3)
    assert all(steps == [[]] for steps in page["agents"]["own_agent:MyAgent"]["0"]["steps"])
    ((uses,),) = page["uses"]["own_agent:MyAgent"][:1]
    assert uses == [1, 0, 0, 0, 0]

    logs = {log.parent.name for log in (out / "tensorboard").glob("*/events.*")}
    assert logs == {
        f"{agent}-seed{seed}-fold0" for agent in ("expected_gain", "own_agent.MyAgent") for seed in (0, 1)
    }


@pytest.mark.parametrize("networks", [1, 2])
def test_a_kept_ensemble_gives_the_submission_again(
    networks: int, caches: Path, data: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more = [] if networks == 1 else ["--set", f"expected_gain.members={networks}"]
    assert main([*data, "--agents", "expected_gain", *QUICK, "--seeds", "1", "--out", str(out), *more]) == 0
    test = DecoderStateCache.open(caches / "test")
    kept = out / "runs" / "expected_gain-seed0-fold0.safetensors"
    ensemble = load_ensemble(kept, test)
    rows = np.arange(len(test))
    again = submission(test, refine(ensemble.act, test, rows, ensemble.options))
    for one, other in zip(again, read_predictions(out / "submission-expected_gain-seed0.jsonl"), strict=True):
        assert one.qid == other.qid
        np.testing.assert_array_equal(one.windows, other.windows)


def test_an_interrupted_run_tells_what_is_done_and_resumes_to_the_same_numbers(
    data: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*data, "--agents", *SMALL, *QUICK, "--out", "out"]
    for name in ("whole", "parts"):
        (folder / name).mkdir()
    monkeypatch.chdir(folder / "whole")
    assert main(arguments) == 0
    monkeypatch.chdir(folder / "parts")
    capsys.readouterr()
    with monkeypatch.context() as patched:
        _interrupt_after(3, patched)
        assert main(arguments) == 130
    printed, errors = capsys.readouterr()
    rows = {line.split(" | ")[0].strip("| "): line for line in printed.splitlines()}
    assert " | 2/2 | " in rows["own_agent:Small"]
    assert " | 1/2 | " in rows["own_agent:SmallPPO"]
    assert "interrupted; --resume goes on" in errors
    partial = _results(folder / "parts" / "out")
    assert partial["agents"]["own_agent:SmallPPO"]["seeds"] == [0]

    assert main([*arguments, "--resume"]) == 0
    assert _results(folder / "parts" / "out") == _results(folder / "whole" / "out")
    for run in (folder / "whole" / "out" / "runs").glob("*.json"):
        other = folder / "parts" / "out" / "runs" / run.name
        assert _without_seconds(json.loads(run.read_text())) == _without_seconds(
            json.loads(other.read_text())
        )


def test_an_interruption_before_any_unit_still_leaves_the_references(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupt_after(0, monkeypatch)
    assert main([*data, "--agents", "ppo", *QUICK, "--out", str(tmp_path / "out")]) == 130
    record = _results(tmp_path / "out")
    assert record["agents"] == {}
    assert "stop" in record["references"]


def test_processes_side_by_side_give_the_same_numbers(data: list[str], folder: Path) -> None:
    arguments = [*data, "--agents", *SMALL, *QUICK]
    assert main([*arguments, "--out", "one"]) == 0
    assert main([*arguments, "--jobs", "2", "--out", "two"]) == 0
    one, two = _results(folder / "one"), _results(folder / "two")
    assert one.pop("run")["command"] != two.pop("run")["command"]
    assert one == two


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_that_fails_is_named_and_the_others_finish(
    jobs: str, data: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agents = ["--agents", "--agent", "own_agent:Poisoned", "--agent", "own_agent:Small"]
    assert main([*data, *agents, *QUICK, "--jobs", jobs, "--seeds", "1", "--out", "out"]) in (1, 2)
    said = capsys.readouterr()
    assert "error: own_agent.Poisoned-seed0-fold0: failed (ValueError: spoilt)" in said.err
    assert "| own_agent:Small |" in said.out
    assert list(_results(folder / "out")["agents"]) == ["own_agent:Small"]


@pytest.fixture
def files(caches: Path, tmp_path: Path) -> list[str]:
    """The simulated detector's answers as prediction file, and their annotations."""
    cache = DecoderStateCache.open(caches / "train")
    stay = refine(
        lambda _, masks: np.full(len(masks), masks.shape[1] - 1),
        cache,
        np.arange(len(cache)),
        {"proposals": 1},
    )
    write_predictions(tmp_path / "predictions.jsonl", submission(cache, stay))
    with (tmp_path / "annotations.jsonl").open("w") as file:
        for sample in map(cache.sample, range(len(cache))):
            row = {
                "qid": sample.qid,
                "vid": sample.vid,
                "query": sample.query,
                "duration": sample.duration,
                "relevant_windows": sample.moments.tolist(),
            }
            file.write(json.dumps(row) + "\n")
    return [
        "--predictions",
        str(tmp_path / "predictions.jsonl"),
        "--annotations",
        str(tmp_path / "annotations.jsonl"),
    ]


def test_folds_by_video_over_one_file_judge_every_query_once(files: list[str], folder: Path) -> None:
    arguments = [*files, "--folds", "2", "--agents", "--agent", "own_agent:MyAgent", *QUICK]
    assert main([*arguments, "--out", "out"]) == 0
    record = _results(folder / "out")
    assert record["run"]["source"] == "predictions"
    official = evaluate(files[1], files[3])["brief"]
    expected = {name: official[f"MR-full-{name}"] for name in ("R1@0.5", "R1@0.7", "mIoU", "mAP")}
    assert record["detectors"]["predictions, as published"] == expected
    assert list(record["detectors"]) == ["detector (predictions)", "predictions, as published"]
    change = record["agents"]["own_agent:MyAgent"]["change"]  # it keeps all
    assert all(value == 0.0 for interval in change.values() for value in interval.values())
    answers = read_predictions(folder / "out" / "submission-own_agent.MyAgent-seed0.jsonl")
    assert [row.qid for row in answers] == [row.qid for row in read_predictions(Path(files[1]))]


Arguments = Callable[[Path], list[str]]


def _pair(train: str, test: str, *more: str) -> Arguments:
    return lambda caches: ["--cache", str(caches / train), "--test-cache", str(caches / test), *more]


BAD: dict[str, tuple[Arguments, str]] = {
    "unknown data set": (lambda _: ["--dataset", "charade"], "--dataset: No dataset profile 'charade'"),
    "no rule of a curriculum": (
        _pair("train", "test", "--curriculum", "soon"),
        "--curriculum: is 'soon', expected plateau, or 2 rising numbers of steps",
    ),
    "falling steps of a curriculum": (
        _pair("train", "test", "--curriculum", "9,3"),
        "--curriculum: is '9,3', expected plateau, or 2 rising numbers of steps",
    ),
    "unknown agent": (_pair("train", "test", "--agents", "pppo"), "--agents: 'pppo' cannot be imported"),
    "no such module": (_pair("train", "test", "--agent", "no_such.module:A"), "No module named 'no_such'"),
    "no such class": (_pair("train", "test", "--agent", "own_agent:Nope"), "has no attribute 'Nope'"),
    "no class": (_pair("train", "test", "--agent", "json:dumps"), "'json:dumps' is no agent"),
    "half an agent": (
        _pair("train", "test", "--agent", "own_agent:Half"),
        "it lacks rounds, update, state_dict",
    ),
    "settings that do not fit": (
        _pair("train", "test", "--agents", "grpo", "--set", "grpo.group=7"),
        "grpo: group is 7, expected at least 2, and a divisor of the 256",
    ),
    "nothing free": (
        _pair("train", "test", "--agents", "--agent", "own_agent:Gliding", "--free", "switch"),
        "own_agent:Gliding: free is ['switch'], expected 'move' among them",
    ),
    "settings of variants": (
        _pair("train", "test", "--ablate", "--weights", "w", "--set", "tprl.lr=1"),
        "--set: is given beside --ablate",
    ),
    "no agents": (_pair("train", "test", "--agents"), "--agents: is empty"),
    "no seeds": (_pair("train", "test", "--seeds", "0"), "--seeds: is 0, expected a whole number from 1"),
    "one member": (
        _pair("train", "test", "--members", "1"),
        "--members: is 1, expected a whole number from 2",
    ),
    "no evaluations": (_pair("train", "test", "--evaluations", "0"), "--evaluations: is 0"),
    "no rounds": (_pair("train", "test", "--rounds", "0"), "--rounds: is 0"),
    "no proposals": (_pair("train", "test", "--proposals", "-1"), "--proposals: is -1"),
    "no jobs": (_pair("train", "test", "--jobs", "0"), "--jobs: is 0"),
    "one fold": (lambda caches: ["--cache", str(caches / "train"), "--folds", "1"], "--folds: is 1"),
    "too many folds": (
        lambda caches: ["--cache", str(caches / "train"), "--folds", "99"],
        "expected at least 99",
    ),
    "too many members": (_pair("train", "test", "--members", "99"), "--members: is 99, expected at most"),
    "too many proposals": (
        _pair("train", "test", "--proposals", "99"),
        "--proposals: is 99, expected at most",
    ),
    "not a number": (_pair("train", "test", "--seeds", "two"), "invalid int value: 'two'"),
    "unknown option": (_pair("train", "test", "--sneeds", "2"), "unrecognized arguments: --sneeds"),
    "predictions alone": (lambda _: ["--predictions", "a.jsonl"], "--annotations: is missing"),
    "annotations alone": (lambda _: ["--annotations", "a.jsonl"], "--predictions: is missing"),
    "test predictions alone": (
        lambda caches: ["--cache", str(caches / "train"), "--test-predictions", "a.jsonl"],
        "--test-annotations: is missing",
    ),
    "both sources": (
        lambda caches: ["--cache", str(caches / "train"), "--predictions", "a", "--annotations", "b"],
        "--cache: is given beside --predictions",
    ),
    "nothing to learn from": (
        lambda caches: ["--test-cache", str(caches / "test")],
        "--predictions: is missing",
    ),
    "missing file": (lambda _: ["--predictions", "none.jsonl", "--annotations", "none.jsonl"], "none.jsonl"),
    "missing cache": (_pair("none", "test"), "none"),
    "another data set": (_pair("tacos", "test"), "--dataset: is charades, expected tacos"),
    "the same videos": (_pair("train", "train"), "shares"),
    "another number of models": (_pair("train", "pool"), "number of models: is 2, expected 1"),
    "a file as folder": (
        _pair("train", "test", "--out", "own_agent.py"),
        "--out: own_agent.py cannot be made",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str, caches: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = BAD[name]
    try:
        code: Any = main(arguments(caches))
    except SystemExit as exit_:  # argparse's own
        code = exit_.code
    printed, errors = capsys.readouterr()
    told_by_option = "usage: " in errors or "error: --" in errors
    assert (code, printed) == (2 if told_by_option else 1, "")  # of data 1
    assert message in errors
    assert errors.count("error: ") == 1
    assert not (folder / "runs" / "tprl").exists()


def test_all_that_is_wrong_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0", "--members", "1", "--annotations", "a"]) == 2
    errors = capsys.readouterr().err
    assert all(f"--{name}: is" in errors for name in ("seeds", "members", "predictions"))


def test_another_run_is_neither_overwritten_nor_mixed(
    data: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*data, "--agents", "--agent", "own_agent:MyAgent", *QUICK, "--out", "out"]
    assert main(arguments) == 0
    before = {path: path.read_bytes() for path in (folder / "out").glob("*.json")}
    for code, changed, message in (
        (2, arguments, "has a run already, expected --resume"),
        (1, [*arguments, "--resume", "--members", "3"], "members: was '2', expected '3' to resume"),
        (1, [*arguments, "--resume", "--test-cache", data[1]], "shares"),
    ):
        assert main(changed) == code
        assert message in capsys.readouterr().err
    (folder / "out" / "settings.json").write_text("{")
    assert main([*arguments, "--resume"]) == 1
    assert "settings.json: is not JSON" in capsys.readouterr().err
    (folder / "out" / "settings.json").write_bytes(before.pop(folder / "out" / "settings.json"))
    assert all(path.read_bytes() == content for path, content in before.items())
    # More seeds, or other processes, are the same run going on.
    assert main([*arguments, "--resume", "--seeds", "3"]) == 0
    assert _results(folder / "out")["agents"]["own_agent:MyAgent"]["seeds"] == [0, 1, 2]


def test_a_run_goes_on_where_its_data_were_moved(
    caches: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def arguments(data: Path) -> list[str]:
        where = ["--cache", str(data / "train"), "--test-cache", str(data / "test")]
        return [*where, "--agents", "--agent", "own_agent:MyAgent", *QUICK, "--out", "out"]

    shutil.copytree(caches, folder / "first")
    assert main(arguments(folder / "first")) == 0
    before = _results(folder / "out")["agents"]
    (folder / "first").rename(folder / "second")
    assert main([*arguments(folder / "second"), "--resume"]) == 0
    assert _results(folder / "out")["agents"] == before
    # Data of the same name and other content are another run.
    shutil.rmtree(folder / "second" / "test")
    simulate(folder / "second" / "test", get_profile("charades"), "test", samples=29)
    assert main([*arguments(folder / "second"), "--resume"]) == 1
    assert "data: was" in capsys.readouterr().err


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vmr_env.benchmarks.experiment.options.importlib.util, "find_spec", lambda _: None)
    assert main([]) == 1
    assert "tensorboard: is missing, expected `pip install vmr-env[bench]`" in capsys.readouterr().err


def test_the_order_of_a_pool_changes_nothing(files: list[str], folder: Path) -> None:
    """The reference is the better file by training videos, and keeping it is no change."""
    good = read_predictions(Path(files[1]))
    worse = [replace(row, windows=row.windows * [0.5, 0.5, 1.0]) for row in good]
    (folder / "pool").mkdir()
    paths = [folder / "pool" / name for name in ("test.zeta.jsonl", "test.alpha.jsonl")]
    for path, rows in zip(paths, (good, worse), strict=True):
        write_predictions(path, rows)
    found = []
    for number, order in enumerate((paths, paths[::-1])):
        arguments = ["--predictions", *map(str, order), *files[2:], "--folds", "2", "--seeds", "1"]
        agents = ["--agents", "--agent", "own_agent:MyAgent", "--agent", "own_agent:Small"]
        assert main([*arguments, *agents, *QUICK, "--out", f"out{number}"]) == 0
        record = _results(folder / f"out{number}")
        record["run"].pop("command")
        record["run"].pop("manifests")  # they have the time of writing
        page = json.loads((folder / f"out{number}" / "page.json").read_text())
        found.append((record, page["detector"], page["start"], page["agents"]))
    assert found[0] == found[1]
    record, detector, start, _ = found[0]
    assert next(iter(record["detectors"])) == "detector (zeta)"
    assert detector["spans"] == start["spans"]
    answers = [np.round(row.windows[0, :2], 2).tolist() for row in good]
    assert sorted(detector["spans"]) == sorted(answers)  # fold after fold
    kept = record["agents"]["own_agent:MyAgent"]
    for measure in ("R1@0.5", "R1@0.7", "mIoU"):
        assert kept["change"][measure] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert kept["change_from_pool"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert kept["change"]["mAP"]["mean"] != 0.0  # the other file's windows


def test_moments_that_are_kept_are_judged_as_the_official_evaluator_does(folder: Path) -> None:
    rows = [
        {"qid": i, "vid": f"v{i}", "query": "q", "duration": 40.0, "relevant_windows": [[20.0, 30.0 + 4 * i]]}
        for i in range(6)
    ]
    guesses = [
        {**rows[i], "pred_relevant_windows": [[18.0, 38.0, 0.9], [2.0 * i, 12.0, 0.5]]} for i in range(6)
    ]
    for name, content in (("truth.jsonl", rows), ("model.jsonl", guesses)):
        (folder / name).write_text("".join(json.dumps(one) + "\n" for one in content))
    words = ["--predictions", "model.jsonl", "--annotations", "truth.jsonl", "--folds", "2"]
    words += ["--agent", "own_agent:Small", "--agents", "--seeds", "1", *QUICK]
    assert main([*words, "--out", "strict"]) == 1
    assert main([*words, "--past-end", "keep", "--out", "kept"]) == 0
    detector = _results(folder / "kept")["detectors"]["detector (model)"]
    brief = evaluate("model.jsonl", "truth.jsonl", past_end="keep")["brief"]
    assert detector == {name: brief[f"MR-full-{name}"] for name in detector}
    assert max(row["relevant_windows"][0][1] for row in rows) == 50  # beyond the 40 s of its video
