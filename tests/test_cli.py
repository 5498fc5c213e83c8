"""The command line: what it prints, writes and exits with."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from caches import make_cache
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

import vmr_env.backbones.features.text
import vmr_env.backbones.predict
import vmr_env.backbones.train
import vmr_env.benchmarks.experiment.main
from vmr_env.backbones.features.store import FeatureStoreWriter
from vmr_env.benchmarks.cli import main as cli
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.sources import simulated_source
from vmr_env.metrics.spans import best_tiou

PROGRAMS = (
    ["train"],
    ["dense"],
    ["predict"],
    ["graft"],
    ["encode", "text"],
    ["encode", "captions"],
    ["cache", "checkpoint"],
)
"""Commands whose arguments go to the `main` of a module."""


def run(*arguments: object, keys: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], input=keys)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def queries(**fields: Sequence[Any]) -> list[dict[str, Any]]:
    """Two queries about two videos, with more fields, one value for each."""
    return [
        {"qid": i, "vid": f"v{i}", "query": "a person runs", **{name: of[i] for name, of in fields.items()}}
        for i in range(2)
    ]


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return write(
        tmp_path / "truth.jsonl", queries(duration=[20, 20], relevant_windows=[[[0, 10]], [[5, 15]]])
    )


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """The first is perfect, the second overlaps 6 of 10 seconds."""
    windows = [[[0, 10, 0.9]], [[5, 11, 0.8], [0, 3, 0.1]]]
    return write(tmp_path / "model.jsonl", queries(pred_relevant_windows=windows))


def _commands(group: click.Group, *words: str) -> list[tuple[str, ...]]:
    """Words of all commands below a group, and of itself."""
    found = [words]
    for name, command in group.commands.items():
        below = isinstance(command, click.Group)
        found += _commands(command, *words, name) if below else [(*words, name)]
    return found


@pytest.mark.parametrize("words", _commands(cli.main), ids=" ".join)
def test_help_has_no_marks_of_the_text_that_it_is_made_from(words: tuple[str, ...]) -> None:
    """Click's mark of paragraphs that stay as they are is a backspace, which it drops where it knows it."""
    shown = CliRunner().invoke(cli.main, [*words, "--help"])
    assert shown.exit_code == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", shown.output)


def test_evaluate_prints_a_table_or_the_official_json(truth: Path, predictions: Path, tmp_path: Path) -> None:
    shown = run("evaluate", predictions, truth)
    assert shown.exit_code == 0
    rows = dict(line.split() for line in shown.output.splitlines()[1:])
    assert (rows["MR-full-R1@0.5"], rows["MR-full-R1@0.7"], rows["MR-full-mIoU"]) == ("100.0", "50.0", "80.0")
    assert "model.jsonl" in shown.output.splitlines()[0]
    said = run("evaluate", predictions, truth, "--json", "--out", tmp_path / "official.json")
    result = json.loads(said.output)
    assert result["brief"]["MR-full-mIoU"] == 80.0
    assert json.loads((tmp_path / "official.json").read_text()) == result
    other = write(tmp_path / "other.jsonl", queries(pred_relevant_windows=[[[0, 10, 1]], [[5, 15, 1]]]))
    both = json.loads(run("evaluate", predictions, other, truth, "--json").output)
    assert both[str(predictions)] == result
    assert both[str(other)]["brief"]["MR-full-mIoU"] == 100.0
    assert run("evaluate", predictions, other, truth, "--out", tmp_path / "o.json").exit_code == 2


def test_evaluate_warns_of_windows_that_are_not_by_score(truth: Path, predictions: Path) -> None:
    """The official evaluation takes the first window; a file in the decoder's order scores low there."""
    windows = [[[0, 10, 0.9]], [[0, 3, 0.1], [5, 11, 0.8]]]
    turned = write(predictions.parent / "turned.jsonl", queries(pred_relevant_windows=windows))
    said = run("evaluate", turned, truth, "--json")
    assert "turned.jsonl, row 2, pred_relevant_windows: of 1 of 2 rows are not by falling" in said.stderr
    assert json.loads(said.stdout)["brief"]["MR-full-mIoU"] == 50.0
    assert "falling score" not in run("evaluate", predictions, truth, "--json").stderr


def test_evaluate_tells_problems_and_exits_with_1(truth: Path, predictions: Path) -> None:
    one = write(predictions.parent / "one.jsonl", queries(pred_relevant_windows=[[[0, 10, 1]]] * 2)[:1])
    refused = run("evaluate", one, truth)
    assert refused.exit_code == 1
    assert "Traceback" not in refused.output
    assert "qid" in refused.output
    scored = run("evaluate", one, truth, "--shared-only", "--json")
    assert json.loads(scored.stdout)["brief"]["MR-full-mIoU"] == 100.0
    assert "answers 1 of 2 queries; only these are scored" in scored.stderr
    counted = run("evaluate", one, truth, "--missing", "miss", "--json")
    assert json.loads(counted.stdout)["brief"]["MR-full-mIoU"] == 50.0
    assert "answers 1 of 2 queries; the others are misses" in counted.stderr
    early = write(one, queries(pred_relevant_windows=[[[-1, 10, 1]]] * 2))
    assert run("evaluate", early, truth).exit_code == 1
    assert run("evaluate", early, truth, "--keep-outside").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate"],
        ["evaluate", "nowhere.jsonl", "nowhere.jsonl"],
        ["evaluate", "--no-such-option"],
        ["no-such-command"],
        ["validate", "cache", "nowhere"],
        ["cache", "predictions", "--dataset", "imagenet"],
        ["train", "--no-such-option"],
        ["tprl", "--no-such-option"],
        ["graft", "weights"],
        ["bench", "sped"],
        ["encode", "text"],
        ["evaluate", "a\x1b[31mred.jsonl", "\udcff.jsonl"],
        ["tprl", "--out", "a\x07"],
        ["play", "CartPole-v1"],
        ["play", "VMR-Charades-v9"],
        ["play", "VMR-Charades-Continuous-v0"],
    ],
)
def test_wrong_commands_exit_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.output.replace("\n", "").isprintable()


def test_validate_files(truth: Path, predictions: Path) -> None:
    assert run("validate", "annotations", truth).output == "0 errors, 0 warnings\n"
    fine = run("validate", "predictions", predictions, "--annotations", truth)
    assert (fine.exit_code, fine.output) == (0, "0 errors, 0 warnings\n")
    windows = [[[0, 10, 0.1], [0, 3, 0.9]], [[7, 3, 0.5]]]
    broken = write(predictions, queries(pred_relevant_windows=windows))
    told = run("validate", "predictions", broken)
    assert told.exit_code == 1
    assert told.output.splitlines()[-1] == "1 errors, 1 warnings"
    listed = json.loads(run("validate", "predictions", broken, "--json").output)
    assert {problem["severity"]: problem["row"] for problem in listed} == {"warning": 1, "error": 2}
    unsorted = write(predictions, queries(pred_relevant_windows=[windows[0]] * 2))
    assert run("validate", "predictions", unsorted).exit_code == 0  # warnings alone are fine


def test_validate_cache(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    assert run("validate", "cache", cache).exit_code == 0
    values = bytearray((cache / "scores.npy").read_bytes())
    values[-1] ^= 64
    (cache / "scores.npy").write_bytes(values)
    told = run("validate", "cache", cache, "--json")
    assert told.exit_code == 1
    assert [problem["where"] for problem in json.loads(told.output)] == [str(cache / "scores.npy")]


def test_validate_features(tmp_path: Path) -> None:
    with FeatureStoreWriter(tmp_path / "store", source="real", origin={}) as writer:
        writer.add("v0", np.ones((3, 2), np.float32))
    assert run("validate", "features", tmp_path / "store").exit_code == 0
    (tmp_path / "store" / "values.npy").write_bytes(b"")
    told = run("validate", "features", tmp_path / "store", tmp_path)
    assert told.exit_code == 1
    assert told.output.splitlines()[-1] == "2 errors, 0 warnings"  # the second is no store at all


def test_cache_of_predictions(truth: Path, predictions: Path, tmp_path: Path) -> None:
    arguments = ["--annotations", truth, "--dataset", "charades", "--split", "test", "--out", tmp_path / "c"]
    made = run("cache", "predictions", predictions, *arguments)
    assert made.exit_code == 0
    assert "2 samples of 2 proposals" in made.output
    cache = DecoderStateCache.open(tmp_path / "c")
    np.testing.assert_allclose(cache.spans[1, 0] * 20, [5, 11], rtol=1e-6)
    again = run("cache", "predictions", predictions, *arguments)
    assert again.exit_code == 1
    assert (
        run("cache", "predictions", predictions, *arguments, "--overwrite", "--proposals", 1).exit_code == 0
    )
    assert DecoderStateCache.open(tmp_path / "c").manifest["proposals"] == 1


def test_forwarded_commands_keep_their_options_and_their_codes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def main(arguments: Sequence[str]) -> int:
        asked.append(list(arguments))
        return 130

    monkeypatch.setattr("vmr_env.benchmarks.experiment.main.main", main)
    assert run("tprl", "--agents", "ppo", "--out", "x").exit_code == 130
    assert asked == [["--agents", "ppo", "--out", "x"]]
    for command in (["tprl"], *PROGRAMS):
        monkeypatch.undo()
        helped = run(*command, "--help")
        assert helped.exit_code == 0
        assert "--out" in helped.output
    problem = run("encode", "text", tmp_path / "absent.jsonl", "--out", tmp_path / "store")
    assert problem.exit_code == 1
    assert "absent.jsonl" in problem.output


def test_demo_shows_an_episode_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    shown = run("demo")
    assert shown.exit_code == 0, shown.output
    found = re.findall(r"^(?:Before|After): .*tIoU (\d\.\d\d)$", shown.output, re.MULTILINE)
    before, after = map(float, found)
    assert before < 0.7 <= after
    assert shown.output.count("“person ") == 2
    cache = DecoderStateCache.open(simulated_source("charades", "test"))
    first = [
        best_tiou(cache.spans[row, :1].astype(float), cache.moments[row].astype(float))[0]
        for row in range(len(cache))
    ]
    (shares,) = re.findall(r"1,000 test queries .*: (.*) % of moments .* before, (.*) % after", shown.output)
    assert float(shares[0]) == pytest.approx(100 * np.mean(np.array(first) >= 0.7 - 1e-5), abs=0.05)
    assert float(shares[1]) > float(shares[0]) + 5
    other = run("demo", "--qid", str(cache.sample(3).qid))
    assert cache.sample(3).query in other.output
    assert run("demo", "--qid", "nothing").exit_code == 1


def test_every_command_teaches() -> None:
    def walk(command: click.Command, name: str) -> None:
        assert command.help or command.short_help, name
        if isinstance(command, click.Group):
            for child in command.commands.values():
                walk(child, f"{name} {child.name}")

    walk(cli.main, "vmr-env")
    shown = run("--help")
    assert shown.exit_code == 0
    for name in (
        *("demo", "train", "cache", "tprl", "predict", "graft", "evaluate", "validate", "encode"),
        *("play", "report", "bench", "convert", "refine", "measure", "dense"),
    ):
        assert f"\n  {name} " in shown.output
    assert run("--version").output.startswith("vmr-env, version ")


def completions(*words: str) -> list[str]:
    """What the shell offers for the last word."""
    *before, last = words
    return [item.value for item in ShellComplete(cli.main, {}, "vmr-env", "").get_completions(before, last)]


def test_shells_complete_commands_options_and_ids() -> None:
    assert completions("rep") == ["report"]
    assert completions("validate", "cache", "--j") == ["--json"]
    assert completions("play", "VMR-TACoS-S") == [f"VMR-TACoS-Stage{number}-v0" for number in (1, 2, 3)]
    assert completions("play", "VMR-TACoS-C") == []  # continuous actions have no keys
    # Of options that belong to other parsers, too: those that their help tells.
    assert completions("tprl", "--ag") == ["--agents", "--agent"]
    for command, module in (
        (["tprl"], vmr_env.benchmarks.experiment.main),
        (["encode", "text"], vmr_env.backbones.features.text),
        (["train"], vmr_env.backbones.train),
        (["predict"], vmr_env.backbones.predict),
    ):
        with pytest.raises(SystemExit), redirect_stdout(StringIO()) as told:
            module.main(["--help"])
        assert set(completions(*command, "--")) == set(
            re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", told.getvalue())
        )
    (item,) = ShellComplete(cli.main, {}, "vmr-env", "").get_completions(["tprl", "--out"], "runs")
    assert item.type == "file"


@pytest.fixture
def screens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `play` shows after each of some keys."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    cache = make_cache(tmp_path / "cache")

    def play(keys: str, *options: object) -> list[str]:
        result = run("play", "--source", cache, "--split", "test", *options, keys=keys)
        assert result.exit_code == 0, result.output
        return result.output.split("“")[1:]

    return play


def test_play_moves_by_keys(screens: Any) -> None:
    first, moved, same, wrong, over, stays, again = screens("kZ3.lr", "--qid", "q4")
    assert "step 0" in first
    assert "end -1 clips." in moved
    assert "step 1" in moved
    assert "'Z' is no key." in same
    assert "(3 now)" in wrong
    assert "stop. Over. tIoU: " in over
    assert "Press r for another episode." in stays
    assert "step 0" in again


def test_play_hides_the_truth_until_the_end(screens: Any) -> None:
    *running, over, again = screens("k3a.r", "--qid", "q4")
    for screen in (*running, again):
        assert not re.search(r"tIoU|reward|truth .*█", screen)
        assert re.search(r"^truth .* \?$", screen, re.MULTILINE)
    assert re.search(r"^truth .*█.* \d+\.\d–\d+\.\d s", over, re.MULTILINE)
    assert len(re.findall(r"s · tIoU \d\.\d\d", over)) == 4  # the start, two moves, the stop


ARROWS = {"left": "\x1b[D", "right": "\x1b[C", "up": "\x1b[A", "down": "\x1b[B"}


def test_play_takes_arrows(screens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of terminals in application mode, and of Windows."""
    keys = [ARROWS["right"], "\x1bOD", ARROWS["up"], "\xe0P" + ARROWS["down"], "q"]
    reads = iter(keys)
    monkeypatch.setattr(click, "getchar", lambda: next(reads))
    shown = [" ".join(screen.split()) for screen in screens("", "--qid", "q4")]
    for screen, wanted in zip(shown[1:3], ("start +1, end +1", "start -1, end -1"), strict=True):
        assert f"{wanted} clips." in screen or f"Not possible now: {wanted} clips." in screen
    assert all("switch to proposal" in screen or "episode is over" in screen for screen in shown[3:])
    assert len(shown) == 6


@pytest.mark.filterwarnings("ignore:no cache given")
def test_play_scores_the_person_against_the_agent_that_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal: what the person reaches by no move is what the detector has."""
    monkeypatch.delenv("VMR_ENV_DATA", raising=False)
    reads = iter(["\rr", ".q"])
    monkeypatch.setattr(click, "getchar", lambda: next(reads))
    result = run("play", "--seed", 3)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    first, second = re.findall(r"Over\. tIoU: ([^.]+\.\d\d, [^.]+\.\d\d, [^.]+\.\d\d)\.", text)
    scores = [dict(part.rsplit(" ", 1) for part in said.split(", ")) for said in (first, second)]
    assert [set(one) for one in scores] == [{"you", "detector", "agent"}] * 2
    assert all(one["you"] == one["detector"] for one in scores)
    (means,) = re.findall(r"Mean of 2 episodes: (.*?)\. Press", text)
    for said in means.split(", "):
        name, mean = said.rsplit(" ", 1)
        assert float(mean) == pytest.approx(sum(float(one[name]) for one in scores) / 2, abs=0.011)


def test_play_fits_the_terminal(screens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (os.terminal_size((80, 24)), os.terminal_size((70, 18))):
        monkeypatch.setattr(shutil, "get_terminal_size", lambda fallback, size=size: size)
        for screen in screens("kaq", "--qid", "q4"):
            lines = f"“{screen}".rstrip("\n").split("\n")
            assert len(lines) <= size.lines
            assert max(map(len, lines)) <= size.columns


def test_play_reads_keys_that_come_together(screens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = iter(["3k", "\x1b[D", "q"])
    monkeypatch.setattr(click, "getchar", lambda: next(reads))
    _, three, moved, arrow = screens("", "--qid", "q4")
    assert "(3 now)" in three
    assert "end -3 clips." in moved
    assert "start -3, end -3 clips." in arrow or "The episode is over." in arrow


def test_play_switches_among_the_proposals(screens: Any) -> None:
    _, switched, back = screens("np", "--seed", 1)
    assert "switch to proposal " in switched
    assert "switch to proposal " in back


def test_play_needs_a_terminal_and_a_known_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    cache = make_cache(tmp_path / "cache")
    unknown = run("play", "--source", cache, "--qid", "unknown", keys="q")
    assert unknown.exit_code == 1
    assert "'unknown' is none of the 7 query ids" in unknown.output

    def no_terminal() -> str:
        raise OSError("No such device or address")

    monkeypatch.setattr(click, "getchar", no_terminal)
    refused = run("play", "--source", cache)
    assert refused.exit_code == 2
    assert "play needs a terminal" in refused.output
