"""An experiment: which data are learnt from and judged on, and the units of work that it consists of.

A unit is one agent, one seed, one fold. Its result is a file, written in one step, with the trained committee
beside it; a run that was interrupted goes on with the units that have none, to the same numbers.
"""

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import vmr_env
from agents.committee import MakeAgent, Progress, Selection, cross_fit, save_committee
from agents.evaluation import Refined, refine
from vmr_env.cache import DecoderStateCache, video_folds
from vmr_env.errors import DataError, Problem
from vmr_env.files import write_text

FOLD_SEED = 0
_POLL = 0.2  # seconds between looks at what worker processes tell


@dataclass(frozen=True)
class Fold:
    """What one training learns from and is judged on."""

    train: DecoderStateCache
    train_samples: NDArray[np.intp]
    test: DecoderStateCache
    test_samples: NDArray[np.intp]


def train_test(train: DecoderStateCache, test: DecoderStateCache) -> list[Fold]:
    """All of one cache to learn from, all of another to be judged on.

    Raises:
        DataError: the two share videos, or are of different data sets or numbers of models.
    """
    if shared := set(train.vids()) & set(test.vids()):
        message = (
            f"shares {len(shared)} videos with the training cache, {min(shared)!r} among them; expected none"
        )
        raise DataError(Problem(str(test.path), None, "vid", message))
    for what, learnt, judged in (
        ("dataset", train.manifest["dataset"], test.manifest["dataset"]),
        ("number of models", len(train.manifest["models"]), len(test.manifest["models"])),
    ):
        if learnt != judged:
            message = f"is {judged}, expected {learnt} as in the training cache"
            raise DataError(Problem(str(test.path), None, what, message))
    return [Fold(train, np.arange(len(train)), test, np.arange(len(test)))]


def cross_validation(cache: DecoderStateCache, folds: int) -> list[Fold]:
    """Folds by video: each sample is judged once, by what was learnt from the other videos.

    Raises:
        DataError: fewer videos than folds.
    """
    fold_of = video_folds(cache.vids(), folds, FOLD_SEED)
    return [
        Fold(cache, np.flatnonzero(fold_of != k), cache, np.flatnonzero(fold_of == k)) for k in range(folds)
    ]


@dataclass(frozen=True)
class Settings:
    """How agents are trained."""

    members: int
    """Members of a committee."""
    evaluations: int
    """How often each member is judged on the samples held out for it."""
    proposals: int
    """Proposals of a sample that take part."""
    rounds: int | None
    """Rounds of learning; None for the agent's own number."""


class Unit(NamedTuple):
    """One training."""

    agent: str
    seed: int
    fold: int

    @property
    def name(self) -> str:
        """Its name, also of its files."""
        return f"{self.agent.replace(':', '.')}-seed{self.seed}-fold{self.fold}"


@dataclass(frozen=True)
class UnitResult:
    """Outcome of one unit."""

    refined: Refined
    selection: Selection
    seconds: float


class Experiment:
    """Agents times seeds times folds, with results in a folder.

    Args:
        folder: where results are kept.
        folds: the data.
        agents: name -> what makes an agent for an environment and a seed.
        seeds: how many.
        settings: see `Settings`.
    """

    def __init__(
        self,
        folder: Path,
        folds: Sequence[Fold],
        agents: Mapping[str, MakeAgent],
        seeds: int,
        settings: Settings,
    ) -> None:
        self.folder, self.folds, self.agents = folder, folds, agents
        self.seeds, self.settings = seeds, settings

    def units(self) -> Iterator[Unit]:
        """All units, seeds slowest, so that an interrupted run has whole seeds of every agent."""
        for seed in range(self.seeds):
            for agent in self.agents:
                for fold in range(len(self.folds)):
                    yield Unit(agent, seed, fold)

    def path(self, unit: Unit) -> Path:
        """Result file of a unit; its committee lies beside it, with the suffix `.pt`."""
        return self.folder / "units" / f"{unit.name}.json"

    def is_done(self, unit: Unit) -> bool:
        """Whether the unit has its result."""
        return self.path(unit).exists()

    def run(self, unit: Unit, watch: Callable[[Progress], None] = lambda progress: None) -> UnitResult:
        """Do a unit; keep its result and its committee."""
        data, settings, make = self.folds[unit.fold], self.settings, self.agents[unit.agent]
        options = {"proposals": settings.proposals, **getattr(make, "env_options", {})}
        seed = unit.seed * len(self.folds) + unit.fold
        began = time.perf_counter()
        committee, selection = cross_fit(
            make,
            data.train,
            data.train_samples,
            members=settings.members,
            evaluations=settings.evaluations,
            seed=seed,
            options=options,
            rounds=settings.rounds,
            watch=watch,
        )
        refined = refine(committee.act, data.test, data.test_samples, committee.options)
        result = UnitResult(refined, selection, time.perf_counter() - began)
        path = self.path(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        run = {
            **unit._asdict(),
            "settings": asdict(settings),
            "chosen": selection.chosen,
            "version": vmr_env.__version__,
        }
        save_committee(path.with_suffix(".pt"), committee, data.train, run)
        self._write(path, result)
        return result

    def _write(self, path: Path, result: UnitResult) -> None:
        content = {
            "selection": asdict(result.selection),
            "seconds": result.seconds,
            "refined": {name: column.tolist() for name, column in result.refined._asdict().items()},
        }
        write_text(path, json.dumps(content))

    def read(self, unit: Unit) -> UnitResult:
        """Result of a unit that is done."""
        content: dict[str, Any] = json.loads(self.path(unit).read_text())
        refined, selection = content["refined"], content["selection"]
        return UnitResult(
            Refined(
                np.array(refined["samples"], np.intp),
                np.array(refined["windows"], np.float64).reshape(-1, 2),
                np.array(refined["proposals"], np.intp),
                np.array(refined["before"], np.float64),
                np.array(refined["after"], np.float64),
            ),
            Selection(
                tuple(selection["rounds"]), tuple(selection["gains"]), selection["chosen"], selection["steps"]
            ),
            content["seconds"],
        )

    def results(self, agent: str, seed: int) -> list[UnitResult] | None:
        """Results of all folds for one seed; None while one is missing."""
        units = [Unit(agent, seed, fold) for fold in range(len(self.folds))]
        return [self.read(unit) for unit in units] if all(map(self.is_done, units)) else None


def merge(parts: Sequence[Refined]) -> Refined:
    """Refined moments of all folds as one, in the order of their samples."""
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0])
    return Refined(*(column[order] for column in columns))


def run_units(
    experiment: Experiment,
    units: Sequence[Unit],
    jobs: int,
    watch: Callable[[Unit, Progress], None],
    finished: Callable[[Unit], None],
) -> None:
    """Do units in as many processes as `jobs` says; the numbers do not depend on it.

    Args:
        experiment: what the units are of.
        units: which to do.
        jobs: 1 does them in this process.
        watch: called after every round of every unit.
        finished: called when a unit has its result.

    Raises:
        KeyboardInterrupt: interrupted; worker processes have ended.
    """
    if jobs == 1:
        for unit in units:
            experiment.run(unit, partial(watch, unit))
            finished(unit)
        return
    context = multiprocessing.get_context("spawn")
    told, stop = context.SimpleQueue(), context.Event()
    arguments = experiment, told, stop
    with ProcessPoolExecutor(jobs, context, initializer=_start_worker, initargs=arguments) as pool:
        try:
            with _interrupts_ignored():  # workers inherit it: they are told by `stop` alone
                running = {pool.submit(_work, unit) for unit in units}
            while running:
                done, running = wait(running, _POLL, FIRST_COMPLETED)
                while not told.empty():
                    watch(*told.get())
                for future in done:
                    finished(future.result())
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_worker: tuple[Experiment, Any, Any]


def _start_worker(experiment: Experiment, told: Any, stop: Any) -> None:
    global _worker
    _worker = experiment, told, stop
    torch.set_num_threads(1)


def _work(unit: Unit) -> Unit:
    experiment, told, stop = _worker

    def watch(progress: Progress) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        told.put((unit, progress))

    experiment.run(unit, watch)
    return unit
