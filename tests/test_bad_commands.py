"""Every command with every class of bad input: one error, the documented exit code, and no traceback."""

import gzip
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from caches import make_cache
from click.testing import CliRunner

from vmr_env.benchmarks.cli import main as cli
from vmr_env.files import text

COMMANDS: dict[str, list[str]] = {
    "evaluate predictions": ["evaluate", "BAD", "TRUTH"],
    "evaluate annotations": ["evaluate", "PREDICTIONS", "BAD"],
    "validate annotations": ["validate", "annotations", "BAD"],
    "validate predictions": ["validate", "predictions", "BAD"],
    "validate cache": ["validate", "cache", "BAD"],
    "validate features": ["validate", "features", "BAD"],
    "cache predictions": [
        *("cache", "predictions", "BAD", "--annotations", "TRUTH"),
        *("--dataset", "charades", "--split", "test", "--out", "OUT"),
    ],
    "cache checkpoint, weights": [
        *("cache", "checkpoint", "BAD", "--annotations", "TRUTH", "--clips", "CACHE", "--text", "CACHE"),
        *("--split", "test", "--out", "OUT"),
    ],
    "predict": ["predict", "BAD", "--annotations", "TRUTH", "--out", "OUT"],
    "train": ["train", "charades-simulated", "--annotations", "BAD", "--out", "OUT"],
    "train, features": [
        *("train", "charades-simulated", "--annotations", "TRUTH", "--clips", "BAD", "--text", "BAD"),
        *("--out", "OUT"),
    ],
    "graft": ["graft", "BAD", "BAD", "--out", "OUT"],
    "report": ["report", "BAD"],
    "play": ["play", "--source", "BAD"],
    "encode features": [
        *("encode", "features", "BAD", "--kind", "video", "--folder", "OUT", "--out", "OUT"),
    ],
    "encode text": ["encode", "text", "BAD", "--out", "OUT"],
    "encode captions": ["encode", "captions", "BAD", "--out", "OUT"],
    "convert": ["convert", "BAD", "--out", "OUT"],
    "refine, predictions": ["refine", "BAD", "TRUTH", "--agent", "vote", "--out", "OUT"],
    "refine, queries": ["refine", "PREDICTIONS", "BAD", "--agent", "vote", "--out", "OUT"],
    "refine, agent": ["refine", "PREDICTIONS", "TRUTH", "--agent", "BAD", "--out", "OUT"],
    "measure moments": ["measure", "moments", "PREDICTIONS", "BAD"],
    "measure difference": ["measure", "difference", "PREDICTIONS", "BAD", "TRUTH"],
    "measure generalised": ["measure", "generalised", "BAD", "TRUTH"],
    "measure highlights": ["measure", "highlights", "PREDICTIONS", "BAD"],
    "dense, annotations": ["dense", "--train", "BAD", "PREDICTIONS", "--clips", "BAD"],
    "dense, predictions": ["dense", "--train", "TRUTH", "BAD", "--clips", "BAD"],
    "dense, features": ["dense", "--train", "TRUTH", "PREDICTIONS", "--clips", "BAD"],
    "tprl, cache": ["tprl", "--cache", "BAD", "--agents", "ppo", "--out", "OUT"],
    "tprl, predictions": [
        *("tprl", "--predictions", "BAD", "--annotations", "TRUTH", "--agents", "ppo", "--out", "OUT"),
    ],
}


def _bomb(path: Path) -> Path:
    path = path.with_suffix(".jsonl.gz")
    path.write_bytes(gzip.compress(bytes(4_000_000)))
    return path


def _folder(path: Path, file: str, content: bytes) -> Path:
    path.mkdir()
    (path / file).write_bytes(content)
    return path


def _torn_cache(path: Path) -> Path:
    make_cache(path)
    (path / "spans.npy").write_bytes(b"")
    return path


def _written(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path = path.with_suffix(".jsonl")
        path.write_bytes(content)
        return path

    return write


INPUTS: dict[str, Callable[[Path], Path]] = {
    "missing": lambda path: path,
    "empty": _written(b""),
    "binary": _written(bytes(range(256)) * 9),
    "no json": _written(b"qid: 1\n"),
    "a list": _written(b"[1, 2]\n"),
    "other keys": _written(b'{"a": 1}\n'),
    "nested": _written(b"[" * 200_000),
    "nested value": _written(b'{"qid": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"),
    "a number of many digits": _written(b'{"qid": ' + b"9" * 10_000 + b"}\n"),
    "bomb": _bomb,
    "empty folder": lambda path: (path.mkdir(), path)[1],
    "folder of another": lambda path: _folder(path, "manifest.json", b"{}"),
    "nested manifest": lambda path: _folder(path, "manifest.json", b"[" * 200_000),
    "nested config": lambda path: _folder(path, "config.json", b"[" * 200_000),
    "torn cache": _torn_cache,
    "escapes in the name": lambda path: _written(b"")(path.with_name("\x1b[31mred\n")),
}


@pytest.mark.parametrize("bad", INPUTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_bad_input_gives_a_traceback(
    command: str, bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "MOST_BYTES", 1_000_000)
    monkeypatch.setenv("VMR_ENV_CACHE", str(tmp_path / "user"))
    row = '{"qid": 1, "vid": "v", "query": "q", "duration": 20, '
    (tmp_path / "truth.jsonl").write_text(row + '"relevant_windows": [[0, 10]]}\n')
    (tmp_path / "predictions.jsonl").write_text(row + '"pred_relevant_windows": [[0, 10, 0.5]]}\n')
    places = {
        "BAD": INPUTS[bad](tmp_path / "bad"),
        "TRUTH": tmp_path / "truth.jsonl",
        "PREDICTIONS": tmp_path / "predictions.jsonl",
        "CACHE": tmp_path / "nowhere",
        "OUT": tmp_path / "out",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(cli.main, [str(places.get(word, word)) for word in COMMANDS[command]])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output
    assert "rror" in result.output
    assert len(result.output) < 5000
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["train", "charades-simulated", "--annotations", "a", "--out", "o", "--device", "nope"],
        ["train", "charades-simulated", "--annotations", "a", "--out", "o", "--threads", "0"],
        ["train", "nothing", "--annotations", "a", "--out", "o"],
        ["train", "charades-simulated", "--annotations", "a", "--out", "o", "--set", "lr"],
        ["cache", "checkpoint", "w", "--annotations", "a", "--split", "s", "--out", "o", "--shard", "1"],
        ["cache", "checkpoint", "w", "--annotations", "a", "--split", "s", "--out", "o", "--shard", "4/4"],
        ["tprl", "--seeds", "0"],
        ["tprl", "--agents", "nobody"],
        ["evaluate"],
        ["nothing"],
    ],
)
def test_wrong_options_exit_with_2(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.main, words)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    assert os.listdir(tmp_path) == []
