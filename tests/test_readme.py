"""What the README shows works as it stands there."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import gymnasium
import numpy as np
import pytest
from click.testing import CliRunner
from gymnasium.envs.registration import registry as environments

from vmr_env.agents.evaluation import refine, submission
from vmr_env.benchmarks.cli import main as cli
from vmr_env.benchmarks.experiment.main import main
from vmr_env.caches.from_predictions import build_prediction_cache
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data import profiles
from vmr_env.data.predictions import write_predictions
from vmr_env.data.profiles import get_profile
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.metrics import registry as metrics
from vmr_env.simulation.simulator import simulate

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(text: str) -> list[str]:
    """Python code on a page."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Lines of shell code on a page."""
    return [
        line.strip()
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for line in block.replace("\\\n", " ").splitlines()
    ]


SHIPPED = ROOT / "vmr_env" / "assets" / "charades-simulated"
BLOCKS, COMMANDS = blocks(README), commands(README)
PROFILE = get_profile("charades")
QUICK = ["--members", "2", "--evaluations", "1", "--rounds", "1", "--seeds", "1", "--jobs", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small simulated caches, and with the files that the README speaks of."""
    made = tmp_path_factory.mktemp("readme")
    for split, samples in (("train", 40), ("val", 30), ("test", 30)):
        (made / "data" / "charades").mkdir(parents=True, exist_ok=True)
        simulate(made / "data" / "charades" / split, get_profile("charades"), split, samples=samples)
    cache = DecoderStateCache.open(made / "data" / "charades" / "test")
    stay = refine(lambda _, masks: np.full(len(masks), masks.shape[1] - 1), cache, np.arange(len(cache)))
    write_predictions(made / "my_model.jsonl", submission(cache, stay))
    rows = [
        {
            "qid": sample.qid,
            "vid": sample.vid,
            "query": sample.query,
            "duration": sample.duration,
            "relevant_windows": sample.moments.tolist(),
        }
        for sample in map(cache.sample, range(len(cache)))
    ]
    (made / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture(autouse=True)
def _working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VMR_ENV_DATA", str(folder / "data"))


def _caches(folder: Path) -> list[str]:
    data = folder / "data" / "charades"
    return ["--cache", str(data / "train"), "--test-cache", str(data / "test")]


def test_its_code_runs_and_prints_something_that_rises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "charades").symlink_to(SHIPPED)  # the data that a reader has, without the warning
    monkeypatch.setenv("VMR_ENV_DATA", str(tmp_path))
    assert len(BLOCKS) == 3
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    told = re.findall(r"^(\d+) steps: ([+-]\d+\.\d\d) points", capsys.readouterr().out, re.MULTILINE)
    assert len(told) == 4
    assert float(told[-1][1]) > float(told[0][1])


def test_its_own_agent_wins() -> None:
    """On the data that ship it gains significantly on videos that it did not learn from."""
    (block,) = (block for block in BLOCKS if block.startswith("# my_agent.py"))
    names: dict[str, Any] = {"__name__": "my_agent"}
    exec(compile(block, "README.md", "exec"), names)
    train, held_out = (DecoderStateCache.open(SHIPPED / split) for split in ("train", "val"))
    options = names["MyAgent"].env_options
    env = VMRVectorEnv(256, "charades", source=train, autoreset_mode="SameStep", **options)
    agent = names["MyAgent"](env, seed=0)
    for _ in range(15):
        agent.update()
    refined = refine(agent.act, held_out, np.arange(len(held_out)), options)
    gains = refined.after - refined.before
    assert gains.mean() > 3 * gains.std() / np.sqrt(len(gains))


def test_its_own_agent_comes_into_the_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in BLOCKS if block.startswith("# my_agent.py"))
    (folder / "my_agent.py").write_text(block)
    (command,) = (line for line in COMMANDS if "my_agent" in line)
    arguments = shlex.split(command)[2:]  # without "vmr-env tprl"
    try:
        assert main([*arguments, "--agents", *_caches(folder), *QUICK, "--out", "own"]) == 0
    finally:
        sys.modules.pop("my_agent", None)
    assert "my_agent:MyAgent" in json.loads((folder / "own" / "results.json").read_text())["agents"]


def test_its_commands_are_understood() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {shlex.split(line, comments=True)[1] for line in COMMANDS if line.startswith("make")} <= {*targets}


@pytest.fixture
def registries() -> Iterator[None]:
    """What pages register for all that comes later is forgotten again."""
    kept = [
        (registry, dict(registry)) for registry in (profiles._REGISTERED, metrics._REGISTERED, environments)
    ]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page.read_text())], ids=lambda page: page.stem
)
def test_code_of_the_documentation_runs(page: Path, folder: Path, registries: None) -> None:
    if page.stem == "predictions":
        main([*_caches(folder), "--agents", "expected_gain", *QUICK])
    if page.stem == "agent":  # goes on where this page ends
        build_prediction_cache(
            "own-cache", "my_model.jsonl", "annotations.jsonl", PROFILE, "test", overwrite=True
        )
    names = {"__name__": "docs"}  # later code of a page may use what stands before
    for block in blocks(page.read_text(encoding="utf-8")):
        exec(compile(block, page.name, "exec"), names)
    shutil.rmtree("own-cache", ignore_errors=True)


def test_features_of_ones_own_train_a_detector_and_fill_a_cache(folder: Path) -> None:
    """The commands of the guide, with a smaller model and one epoch."""
    page = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    for name in ("clips", "text"):
        shutil.rmtree(name, ignore_errors=True)
    exec(compile(blocks(page)[0], "features.md", "exec"), {"__name__": "docs"})
    small = ["--set", "epochs=1", "--set", "hidden_dim=32", "--set", "batch_size=16", "--set", "eval_every=1"]
    for line, options in zip(commands(page)[:3], (small, [], []), strict=True):
        _, *words = shlex.split(line)
        done = CliRunner().invoke(cli.main, [*words, *options])
        assert done.exit_code == 0, done.output
    assert DecoderStateCache.open("own-states").states is not None


def test_commands_of_the_documentation_are_understood() -> None:
    """Every command and option of `vmr-env` on the pages exists."""
    lines = [line for page in PAGES for line in commands(page.read_text(encoding="utf-8"))]
    ours = [line for line in lines if line.startswith("vmr-env")]
    assert len(ours) > 10
    for line in ours:
        _, *words = shlex.split(line, comments=True)
        command: click.Command = cli.main
        path = []
        while isinstance(command, click.Group):
            path.append(words.pop(0))
            command = command.commands[path[-1]]
        known = {option for parameter in command.params for option in parameter.opts}
        if "arguments" in {parameter.name for parameter in command.params}:  # another program's
            known = set(re.findall(r"--[a-z-]+", _help(path)))
        assert {word for word in words if word.startswith("--")} <= known, line


def _help(words: list[str]) -> str:
    return CliRunner().invoke(cli.main, [*words, "--help"]).output


def test_its_environments_are_registered() -> None:
    names = set(re.findall(r"VMR-\w+(?:-\w+)?-v0", README))
    assert len(names) == 8, names
    for name in names:
        assert gymnasium.spec(name).id == name


def test_its_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert "LICENSE" in links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert missing == []
