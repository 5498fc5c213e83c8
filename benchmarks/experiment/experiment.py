"""An experiment: which data are learnt from and judged on, and the runs that it consists of.

A run is one agent, one seed, one fold. Its result is a file, written in one step, with what was learnt
beside it; a run that was interrupted goes on with the runs that have none, to the same numbers.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

import vmr_env
from vmr_env.agents.ensemble.cross_fitting import Selection
from vmr_env.agents.evaluation import Refined, Trajectories
from vmr_env.benchmarks.experiment.methods import Answers, Fold, Method, MethodResult, Ranked, Settings, Watch
from vmr_env.caches.reader import DecoderStateCache, video_folds
from vmr_env.errors import DataError, Problem
from vmr_env.files.objects import read_state, write_state
from vmr_env.seeding import derived

FOLD_SEED = 0
REMEDY = "remove it, and --resume does the run again"


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


class Trained(NamedTuple):
    """What one member of a run learnt, and how long that took; pickles."""

    learnt: Any
    seconds: float


@dataclass(frozen=True)
class RunResult:
    """Result of one run."""

    outcome: MethodResult
    seconds: float
    """Time that its parts took, as if they were done one after the other."""

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

    def members(self, run: Run) -> int:
        """How many members of a run are trained, each by itself."""
        return self.agents[run.agent].members(self.folds[run.fold], self.settings)

    def do(self, run: Run, watch: Watch = lambda progress: None) -> RunResult:
        """Carry out a run, one member after the other; keep its result, and what was learnt."""
        return self.finish(run, [self.train(run, member, watch) for member in range(self.members(run))])

    def train(self, run: Run, member: int, watch: Watch = lambda progress: None) -> Trained:
        """Train one member of a run; nothing is kept."""
        began = time.perf_counter()
        method, fold = self.agents[run.agent], self.folds[run.fold]
        learnt = method.train(fold, _seed(run), self.settings, member, watch)
        return Trained(learnt, time.perf_counter() - began)

    def finish(self, run: Run, trained: Sequence[Trained]) -> RunResult:
        """End a run whose members are trained; keep its result, and what was learnt."""
        path = self.path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        of_run = {"agent": run.agent, "seed": run.seed, "fold": run.fold}
        about = {**of_run, "settings": asdict(self.settings), "version": vmr_env.__version__}
        began = time.perf_counter()
        outcome = self.agents[run.agent].answer(
            [member.learnt for member in trained],
            self.folds[run.fold],
            _seed(run),
            self.settings,
            path.with_suffix(""),
            about,
        )
        seconds = time.perf_counter() - began + sum(member.seconds for member in trained)
        result = RunResult(outcome, seconds)
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


def _seed(run: Run) -> int:
    return derived(run.seed, "fold", run.fold)


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


def shared_out(work: Work, runs: Sequence[Run], workers: int) -> tuple[list[Run], dict[Run, int]]:
    """Runs that are done whole, and those whose members are trained side by side.

    The latter are the last ones, as many as there are workers: else one worker would train the members of a
    run one after the other while another has nothing to do.

    Returns:
        runs that are done whole, and the number of members of each of the others.
    """
    last = runs[-workers:] if workers > 1 else []
    members = {run: count for run in last if (count := work.of(run).members(run)) > 1}
    return [run for run in runs if run not in members], members


def reason(error: BaseException) -> str:
    """What went wrong in a run, in a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
