"""Members of a run that are trained side by side: numbers, processes, faults."""

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone import Backbone, make_backbone
from safetensors import safe_open

from vmr_env.agents.ensemble import cross_fitting
from vmr_env.agents.expected_gain import ExpectedGain
from vmr_env.benchmarks.experiment.experiment import Experiment, Run, shared_out, train_test
from vmr_env.benchmarks.experiment.head_methods import configured, head_config
from vmr_env.benchmarks.experiment.methods import EnvironmentMethod, HeadMethod, Method, Settings
from vmr_env.benchmarks.experiment.processes import run_all
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.errors import DataError
from vmr_env.seeding import derived

SETTINGS = Settings(members=3, evaluations=2, proposals=1, rounds=2)
PLACE = "VMR_TEST_PLACE"
"""Environment variable: a folder where agents leave marks."""


class Small(ExpectedGain):
    """As quick as may be."""

    num_envs = 8


class Meeting(Small):
    """Notes its process and the threads of it, and waits until another one has, if there is another."""

    def update(self) -> Any:
        place = Path(os.environ[PLACE])
        (place / str(os.getpid())).write_text(str(torch.get_num_threads()))
        until = time.monotonic() + 120
        while (place / "several").exists() and len(list(place.iterdir())) < 3:
            if time.monotonic() > until:
                raise ValueError("no other process came")
        return super().update()


class Fatal(Small):
    """Kills its process in the second round of the second member, once."""

    def update(self) -> Any:
        marker = Path(os.environ[PLACE]) / "killed"
        if self.seed == second_member() and self.round == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update()


class Poisoned(Small):
    """Its second member always fails."""

    def update(self) -> Any:
        if self.seed == second_member():
            raise ValueError("spoilt")
        return super().update()


def second_member() -> int:
    """Its seed in the first run."""
    return derived(derived(0, "fold", 0), "member", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("backbone"), train=40, test=12, memory="refined")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(PLACE, str(tmp_path / "place"))
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def experiment(folder: Path, made: Backbone, methods: Mapping[str, Method]) -> Experiment:
    train, test = (DecoderStateCache.open(made.caches / split) for split in ("train", "test"))
    return Experiment(folder, train_test(train, test), methods, 1, SETTINGS)


def ignore(*_: Any) -> None:
    """Nobody watches."""


def files(of: Experiment) -> dict[str, Any]:
    """What runs have left, without how long they took."""
    found: dict[str, Any] = {}
    for path in sorted((of.folder / "runs").iterdir()):
        if path.suffix == ".json":
            found[path.name] = json.loads(path.read_text())
            del found[path.name]["seconds"], found[path.name]["sha256"]
        else:  # names in its header are in any order
            with safe_open(path, "numpy") as file:
                tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
                found[path.name] = file.metadata(), tensors
    return found


def test_members_of_one_run_use_all_processes_and_give_the_files_of_one_after_the_other(
    made: Backbone, place: Path, tmp_path: Path
) -> None:
    """To the bit: what is kept too. One run of an ensemble at a time, and two processes."""
    head = HeadMethod(configured(head_config("tprl", "charades"), {"epochs": [0, 1, 2]}), made.weights)
    methods = {"meeting": EnvironmentMethod(Meeting), "head": head}
    alone = experiment(tmp_path / "alone", made, methods)
    assert run_all(alone, list(alone.runs()), 1, ignore, ignore) == {}
    assert [path.name for path in place.iterdir()] == [str(os.getpid())]
    (place / str(os.getpid())).unlink()
    (place / "several").touch()
    together = experiment(tmp_path / "together", made, methods)
    done: list[Run] = []
    for run in together.runs():
        assert run_all(together, [run], 2, ignore, done.append) == {}
    assert done == list(together.runs())
    assert files(alone) == files(together)
    assert len(files(alone)) == 4
    (place / "several").unlink()
    assert [path.read_text() for path in place.iterdir()] == ["1", "1"]  # two processes, of one thread each
    assert not (place / str(os.getpid())).exists()


def test_a_run_whose_worker_is_killed_in_a_member_is_done_by_the_next_call(
    made: Backbone, place: Path, tmp_path: Path
) -> None:
    of = experiment(tmp_path / "killed", made, {"fatal": EnvironmentMethod(Fatal)})
    with pytest.raises(DataError, match=r"a worker process was killed.*--resume goes on"):
        run_all(of, list(of.runs()), 2, ignore, ignore)
    assert (place / "killed").exists()
    assert not any(map(of.is_done, of.runs()))
    assert run_all(of, list(of.runs()), 2, ignore, ignore) == {}
    whole = experiment(tmp_path / "whole", made, {"fatal": EnvironmentMethod(Fatal)})
    for run in whole.runs():
        whole.do(run)
    assert files(of) == files(whole)


def test_a_member_that_fails_fails_its_run_alone(made: Backbone, tmp_path: Path) -> None:
    of = experiment(
        tmp_path / "out", made, {"bad": EnvironmentMethod(Poisoned), "small": EnvironmentMethod(Small)}
    )
    assert run_all(of, list(of.runs()), 2, ignore, ignore) == {Run("bad", 0, 0): "ValueError: spoilt"}
    assert [path.name for path in sorted((of.folder / "runs").iterdir())] == [
        "small-seed0-fold0.json",
        "small-seed0-fold0.safetensors",
    ]


@pytest.mark.parametrize(
    ("members", "workers", "whole", "shared"),
    [
        ([3, 3, 3], 1, [0, 1, 2], {}),  # nobody to share with
        ([3], 2, [], {0: 3}),
        ([3, 3, 3], 2, [0], {1: 3, 2: 3}),  # the last ones, of which one may be shorter
        ([3, 1, 1], 2, [0, 1, 2], {}),
        ([1, 3, 1], 8, [0, 2], {1: 3}),
        ([], 4, [], {}),
    ],
)
def test_members_are_shared_out_where_a_worker_would_have_nothing_to_do(
    members: list[int], workers: int, whole: list[int], shared: dict[int, int]
) -> None:
    class Stub:
        def of(self, run: Run) -> "Stub":
            return self

        def members(self, run: Run) -> int:
            return members[run.seed]

    work: Any = Stub()
    runs = [Run("a", seed, 0) for seed in range(len(members))]
    assert shared_out(work, runs, workers) == (
        [runs[seed] for seed in whole],
        {runs[seed]: count for seed, count in shared.items()},
    )


def test_an_agent_that_learns_and_tells_no_state_is_refused(made: Backbone) -> None:
    """Members are put together from their states: without one they would act as if they had not learnt."""

    class Stateless(Small):
        def state_dict(self) -> dict[str, Any]:
            return {}

    cache = DecoderStateCache.open(made.caches / "train")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cross_fitting, "_choose", lambda gains, videos: 0)
        with pytest.raises(ValueError, match=r"Stateless learns, and its state_dict is empty"):
            cross_fitting.CrossFit(
                Stateless,
                cache,
                np.arange(len(cache)),
                members=2,
                evaluations=1,
                seed=0,
                options={"proposals": 1},
                rounds=1,
            ).fit()
