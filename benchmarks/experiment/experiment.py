"""An experiment: which data are learnt from and judged on, and the runs that it consists of.

A run is one agent, one seed, one fold. Its result is a file, written in one step, with what was learnt
beside it; a run that was interrupted goes on with the runs that have none, to the same numbers.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from vmr_env.agents.ensemble.cross_fitting import Progress, Selection
from vmr_env.agents.evaluation import Refined, Trajectories
from vmr_env.benchmarks.experiment.methods import Answers, Fold, Method, MethodResult, Ranked, Settings

import vmr_env
from vmr_env.caches.reader import DecoderStateCache, video_folds
from vmr_env.errors import DataError, Problem
from vmr_env.files.objects import read_state, write_state
from vmr_env.programs import end_with_parent
from vmr_env.seeding import derived

FOLD_SEED = 0
REMEDY = "remove it, and --resume does the run again"
_POLL = 0.2  # seconds between looks at what worker processes tell
_MESSAGES = 100  # read of them at most before looking whether all still live


def train_test(
    train: DecoderStateCache, test: DecoderStateCache, select: DecoderStateCache | None = None
) -> list[Fold]:
    """All of one cache to learn from, all of another to be judged on, and perhaps a third to choose by.

    Raises:
        DataError: two share source videos, or training and test are of different data sets or numbers of
            models.
    """
    videos = set(train.source_videos())
    for other in (test, select):
        if other is not None and (shared := videos & set(other.source_videos())):
            message = f"shares {len(shared)} source videos with another cache, {min(shared)!r} among them"
            raise DataError(Problem(str(other.path), None, "vid", f"{message}; expected none"))
        videos |= set(test.source_videos())
    for what, learnt, judged in (
        ("dataset", train.manifest["dataset"], test.manifest["dataset"]),
        ("number of models", len(train.manifest["models"]), len(test.manifest["models"])),
    ):
        if learnt != judged:
            message = f"is {judged}, expected {learnt} as in the training cache"
            raise DataError(Problem(str(test.path), None, what, message))
    return [Fold(train, np.arange(len(train)), test, np.arange(len(test)), select)]


def cross_validation(cache: DecoderStateCache, folds: int) -> list[Fold]:
    """Folds by source video: each sample is judged once, by what was learnt from the other videos.

    Raises:
        DataError: fewer videos than folds.
    """
    fold_of = video_folds(cache.source_videos(), folds, FOLD_SEED)
    return [
        Fold(cache, np.flatnonzero(fold_of != k), cache, np.flatnonzero(fold_of == k)) for k in range(folds)
    ]


class Run(NamedTuple):
    """One training."""

    agent: str
    seed: int
    fold: int
    row: str = ""
    """Of the table of a sweep; empty where there is none."""

    @property
    def file(self) -> str:
        """Name of its files."""
        return f"{self.agent.replace(':', '.')}-seed{self.seed}-fold{self.fold}"

    @property
    def name(self) -> str:
        """Its name among all runs that are done together."""
        return f"{self.row}/{self.file}" if self.row else self.file


@dataclass(frozen=True)
class RunResult:
    """Result of one run, and how long it took."""

    outcome: MethodResult
    seconds: float

    @property
    def selection(self) -> Selection:
        """Report on the training."""
        return self.outcome.selection


class Work(Protocol):
    """Runs that are done together: those of an experiment, or of all experiments of a sweep."""

    folder: Path
    """Where results are kept."""

    def runs(self) -> Iterator[Run]:
        """All runs."""
        ...

    def of(self, run: Run) -> "Experiment":
        """The experiment that a run belongs to."""
        ...


class Experiment:
    """Agents times seeds times folds, with results in a folder.

    Args:
        folder: where results are kept.
        folds: the data.
        agents: name -> how it learns.
        seeds: how many.
        settings: see `Settings`.
        row: name of the experiment in a sweep's table.
    """

    def __init__(
        self,
        folder: Path,
        folds: Sequence[Fold],
        agents: Mapping[str, Method],
        seeds: int,
        settings: Settings,
        row: str = "",
    ) -> None:
        self.folder, self.folds, self.agents = folder, folds, agents
        self.seeds, self.settings, self.row = seeds, settings, row

    def of(self, run: Run) -> "Experiment":
        """This experiment: all its runs belong to it."""
        return self

    def runs(self) -> Iterator[Run]:
        """All runs, seeds slowest, so that an interrupted run has whole seeds of every agent."""
        for seed in range(self.seeds):
            for agent in self.agents:
                for fold in range(len(self.folds)):
                    yield Run(agent, seed, fold, self.row)

    def path(self, run: Run) -> Path:
        """Result file of a run; what was learnt lies beside it (`.safetensors`).

        The file is a JSON object: "selection" (`vmr_env.agents.ensemble.cross_fitting.Selection`),
        "seconds", "frozen"
        (`methods.MethodResult`), and either "ranked" (columns of `methods.Ranked`), or "refined" and
        "trajectories" (columns of `vmr_env.agents.evaluation.Refined` and `Trajectories`).
        """
        return self.folder / "runs" / f"{run.file}.json"

    def is_done(self, run: Run) -> bool:
        """Whether the run has its result."""
        return os.path.lexists(self.path(run))

    def do(self, run: Run, watch: Callable[[Progress], None] = lambda progress: None) -> RunResult:
        """Carry out a run; keep its result, and what was learnt."""
        path = self.path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        of_run = {"agent": run.agent, "seed": run.seed, "fold": run.fold}
        about = {**of_run, "settings": asdict(self.settings), "version": vmr_env.__version__}
        seed = derived(run.seed, "fold", run.fold)
        began = time.perf_counter()
        outcome = self.agents[run.agent].run(
            self.folds[run.fold], seed, self.settings, path.with_suffix(""), about, watch
        )
        result = RunResult(outcome, time.perf_counter() - began)
        self._write(path, result)
        return result

    def _write(self, path: Path, result: RunResult) -> None:
        outcome = result.outcome
        content = {
            "selection": asdict(result.selection),
            "seconds": result.seconds,
            "frozen": outcome.frozen,
        }
        for table in (outcome.answers, outcome.trajectories):
            if table is not None:
                columns = {name: column.tolist() for name, column in table._asdict().items()}
                content[type(table).__name__.lower()] = columns
        write_state(path, content)

    def read(self, run: Run) -> RunResult:
        """Result of a run that is done.

        Raises:
            DataError: its file is damaged, or of other samples.
        """
        path = self.path(run)
        content = read_state(path, REMEDY)
        answers = _answers(content)
        if not np.array_equal(answers.samples, self.folds[run.fold].test_samples):
            message = f"answers other samples than those of fold {run.fold}; {REMEDY}"
            raise DataError(Problem(str(path), None, "samples", message))
        selection = content["selection"]
        return RunResult(
            MethodResult(
                answers,
                Selection(
                    tuple(selection["rounds"]),
                    tuple(selection["gains"]),
                    selection["chosen"],
                    selection["steps"],
                    tuple(map(tuple, selection["uses"])),
                    tuple(selection["health"]),
                ),
                content["frozen"],
                _trajectories(content),
            ),
            content["seconds"],
        )

    def check_done(self) -> None:
        """Read the results of all runs that are done.

        Raises:
            DataError: with all that are damaged.
        """
        problems: list[Problem] = []
        for run in filter(self.is_done, self.runs()):
            try:
                self.read(run)
            except DataError as error:
                problems += error.problems
        if problems:
            raise DataError(problems)

    def results(self, agent: str, seed: int) -> list[RunResult] | None:
        """Results of all folds for one seed; None while one is missing."""
        runs = [Run(agent, seed, fold, self.row) for fold in range(len(self.folds))]
        return [self.read(run) for run in runs] if all(map(self.is_done, runs)) else None


def _answers(content: Mapping[str, Any]) -> Answers:
    if "ranked" in content:
        columns = content["ranked"]
        return Ranked(np.array(columns["samples"], np.intp), np.array(columns["windows"], np.float64))
    columns = content["refined"]
    return Refined(
        np.array(columns["samples"], np.intp),
        np.array(columns["windows"], np.float64).reshape(-1, 2),
        np.array(columns["proposals"], np.intp),
        np.array(columns["before"], np.float64),
        np.array(columns["after"], np.float64),
    )


def _trajectories(content: Mapping[str, Any]) -> Trajectories | None:
    if "trajectories" not in content:
        return None
    columns = content["trajectories"]
    return Trajectories(
        np.array(columns["samples"], np.intp),
        np.array(columns["kinds"], np.intp),
        np.array(columns["windows"], np.float64).reshape(-1, 2),
        np.array(columns["proposals"], np.intp),
    )


OneKind = TypeVar("OneKind", bound=Answers | Trajectories)


def merge(parts: Sequence[OneKind]) -> OneKind:
    """Answers, or steps, of all folds as one, in the order of their samples."""
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return type(parts[0])(*(column[order] for column in columns))


def run_all(
    work: Work,
    runs: Sequence[Run],
    jobs: int,
    watch: Callable[[Run, Progress], None],
    finished: Callable[[Run], None],
) -> dict[Run, str]:
    """Do runs in as many processes as `jobs` says; the numbers do not depend on it.

    Args:
        work: what the runs are of.
        runs: which to do.
        jobs: 1 does them in this process, as one run alone is.
        watch: called after every round of every run.
        finished: called when a run has its result.

    Returns:
        what went wrong, in a line, of each run that failed; all others are done.

    Raises:
        KeyboardInterrupt: interrupted; worker processes have ended.
        DataError: a worker process was killed.
    """
    failed: dict[Run, str] = {}

    def settled(run: Run, result: Callable[[], object]) -> None:
        try:
            result()
        except BrokenProcessPool:
            raise
        except Exception as error:  # a fault of one run, whatever it is, must not cost the others
            failed[run] = reason(error)
        else:
            finished(run)

    jobs = min(jobs, len(runs))
    if jobs <= 1:
        for run in runs:
            settled(run, partial(work.of(run).do, run, partial(watch, run)))
        return failed
    context = multiprocessing.get_context("spawn")
    told, stop = context.SimpleQueue(), context.Event()
    arguments = work, told, stop
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    ended: queue.SimpleQueue[Future[None]] = queue.SimpleQueue()
    # In a thread of its own: a worker that is killed while telling leaves half a message to wait for.
    threading.Thread(target=_relay, args=(told, inbox), daemon=True).start()
    running: dict[Future[None], Run] = {}
    with ProcessPoolExecutor(jobs, context, initializer=_start_worker, initargs=arguments) as pool:
        try:
            with _interrupts_ignored():  # workers inherit it: only `stop` ends them
                running = {pool.submit(_work, run): run for run in runs}
                # Not `wait`: an interrupt while it takes the futures' locks would leave some of them taken,
                # and the executor would wait for them for ever.
                for future in running:
                    future.add_done_callback(ended.put)
                # The executor watches the workers that were there when it was last woken, which is before it
                # starts another one: without this, nobody hears that the last worker was killed.
                pool.submit(_nothing)
            while running:
                last: Future[None] | None = None
                with suppress(queue.Empty):
                    last = ended.get(timeout=_POLL)
                for _ in range(min(inbox.qsize(), _MESSAGES)):
                    watch(*inbox.get())
                if last is not None:
                    settled(running.pop(last), last.result)
        except BrokenProcessPool as error:
            message = "a worker process was killed, perhaps for want of memory; --resume goes on"
            raise DataError(Problem(str(work.folder), None, None, message)) from error
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _nothing() -> None:
    """Work that is done at once."""


def _relay(told: Any, inbox: "queue.SimpleQueue[Any]") -> None:
    """Pass on what workers tell, also while they are being stopped, so that none waits for room."""
    while True:
        inbox.put(told.get())


def reason(error: BaseException) -> str:
    """What went wrong in a run, in a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_worker: tuple[Work, Any, Any]


def _start_worker(work: Work, told: Any, stop: Any) -> None:
    global _worker
    _worker = work, told, stop
    torch.set_num_threads(1)
    end_with_parent()


def _work(run: Run) -> None:
    work, told, stop = _worker

    def watch(progress: Progress) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        told.put((run, progress))

    work.of(run).do(run, watch)
