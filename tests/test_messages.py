"""What a newcomer mistypes or swaps is told in one line that says what to do."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from click.testing import CliRunner

import vmr_env  # noqa: F401  # registers the environments
from vmr_env.benchmarks.cli.main import main
from vmr_env.envs.head_env import VMRHeadEnv
from vmr_env.envs.sources import simulated_source
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:no cache given")

VAL = simulated_source("charades", "val")


def single(**options: Any) -> Any:
    return gymnasium.make("VMR-Charades-v0", **{"source": VAL, **options})


CALLS: dict[str, tuple[Any, type[Exception], str]] = {
    "text for a list": (
        lambda: single(components="span"),
        ValueError,
        r"components is 'span', expected a list of names: \['span'\]",
    ),
    "no samples": (
        lambda: single(samples=[]),
        DataError,
        "samples: is empty, expected rows of the cache, or None for all of them",
    ),
    "no samples of a head": (lambda: VMRHeadEnv(source=VAL, samples=[]), DataError, "samples: is empty"),
    "a mistyped split": (
        lambda: single(source=None, split="vall"),
        DataError,
        "expected one of train, val, test",
    ),
    "another split": (lambda: single(split="test"), DataError, "split: is a cache of 'val', expected 'test'"),
    "a mistyped mode": (
        lambda: VMRVectorEnv(2, source=VAL, autoreset_mode="samestep"),
        ValueError,
        "autoreset_mode is 'samestep', expected one of 'NextStep', 'SameStep', 'Disabled'",
    ),
    "a mistyped argument": (
        lambda: single(horizons=3),
        TypeError,
        "there is no argument 'horizons'; did you mean 'horizon'?",
    ),
    "a mistyped argument of a vector": (
        lambda: VMRVectorEnv(2, source=VAL, proposal=3),
        TypeError,
        "there is no argument 'proposal'; did you mean 'proposals'?",
    ),
    "another data set": (
        lambda: gymnasium.make("VMR-TACoS-v0", source=VAL),
        DataError,
        "is a cache of charades, expected tacos; ask for charades, or pass another cache",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMR_ENV_DATA", raising=False)
    call, kind, message = CALLS[name]
    with pytest.raises(kind, match=message):
        call()


def test_the_variable_with_the_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMR_ENV_DATA", str(tmp_path / "gone"))
    expected = r"VMR_ENV_DATA: is .*gone.*, expected a folder with a cache at charades/train; unset it to use"
    with pytest.raises(DataError, match=expected):
        single(source=None)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A prediction file and its annotations, of two queries."""
    predictions, annotations = tmp_path / "predictions.jsonl", tmp_path / "annotations.jsonl"
    for path, more in (
        (predictions, {"pred_relevant_windows": [[1.0, 9.0, 0.9]]}),
        (annotations, {"duration": 30.0, "relevant_windows": [[2.0, 9.0]]}),
    ):
        rows = [{"qid": i, "vid": f"v{i}", "query": "a person runs", **more} for i in range(2)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(predictions), str(annotations)


def test_swapped_files_are_one_error(files: tuple[str, str]) -> None:
    predictions, annotations = files
    assert CliRunner().invoke(main, ["evaluate", predictions, annotations]).exit_code == 0
    for command in (
        ["evaluate", annotations, predictions],
        ["validate", "predictions", annotations, "--annotations", predictions],
        ["validate", "annotations", predictions],
    ):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 1
        (line,) = (line for line in done.output.splitlines() if "expected" in line)
        assert "annotations and predictions swapped?" in line


def test_the_command_line_speaks_of_its_own_option(files: tuple[str, str], tmp_path: Path) -> None:
    options = [
        "--annotations",
        files[1],
        "--dataset",
        "charades",
        "--split",
        "val",
        "--out",
        str(tmp_path / "c"),
    ]
    assert CliRunner().invoke(main, ["cache", "predictions", files[0], *options]).exit_code == 0
    again = CliRunner().invoke(main, ["cache", "predictions", files[0], *options])
    assert again.exit_code == 1
    assert "exists already; --overwrite replaces it" in again.output
    assert (
        CliRunner().invoke(main, ["cache", "predictions", files[0], *options, "--overwrite"]).exit_code == 0
    )
