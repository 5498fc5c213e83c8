"""An experiment: which data are learnt from and judged on, and the units of work that it consists of.

A unit is one agent, one seed, one fold. Its result is a file, written in one step; a run that was interrupted goes on with
the units that have none, to the same numbers.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.committee import Progress, Selection, cross_fit
from agents.evaluation import Refined, refine
from agents.protocol import Agent
from vmr_env.cache import DecoderStateCache, video_folds
from vmr_env.errors import DataError, Problem
from vmr_env.files import write_text
from vmr_env.vector_env import VMRVectorEnv

MakeAgent = Callable[[VMRVectorEnv, int], Agent]

FOLD_SEED = 0


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
        DataError: the two share videos.
    """
    if shared := set(train.vids()) & set(test.vids()):
        message = f"shares {len(shared)} videos with the training cache, {sorted(shared)[0]!r} among them; expected none"
        raise DataError(Problem(str(test.path), None, "vid", message))
    return [Fold(train, np.arange(len(train)), test, np.arange(len(test)))]


def cross_validation(cache: DecoderStateCache, folds: int) -> list[Fold]:
    """Folds by video: each sample is judged once, by what was learnt from the other videos."""
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
        agents: dict[str, MakeAgent],
        seeds: int,
        settings: Settings,
    ) -> None:
        self.folder, self.folds, self.agents, self.seeds, self.settings = (
            folder,
            folds,
            agents,
            seeds,
            settings,
        )

    def units(self) -> Iterator[tuple[str, int, int]]:
        """(agent, seed, fold), seeds slowest, so that an interrupted run has whole seeds of every agent."""
        for seed in range(self.seeds):
            for agent in self.agents:
                for fold in range(len(self.folds)):
                    yield agent, seed, fold

    def path(self, agent: str, seed: int, fold: int) -> Path:
        """Result file of a unit, without suffix."""
        return self.folder / "units" / f"{agent.replace(':', '.')}-seed{seed}-fold{fold}"

    def is_done(self, agent: str, seed: int, fold: int) -> bool:
        """Whether the unit has its result."""
        return self.path(agent, seed, fold).with_suffix(".json").exists()

    def run(
        self, agent: str, seed: int, fold: int, watch: Callable[[Progress], None] = lambda progress: None
    ) -> UnitResult:
        """Do a unit and keep its result."""
        data, settings, make = self.folds[fold], self.settings, self.agents[agent]
        options = {"proposals": settings.proposals, **getattr(make, "env_options", {})}
        began = time.perf_counter()
        committee, selection = cross_fit(
            make,
            data.train,
            data.train_samples,
            members=settings.members,
            evaluations=settings.evaluations,
            seed=seed * len(self.folds) + fold,
            options=options,
            rounds=settings.rounds,
            watch=watch,
        )
        refined = refine(committee.act, data.test, data.test_samples, options)
        result = UnitResult(refined, selection, time.perf_counter() - began)
        self._write(self.path(agent, seed, fold), result)
        return result

    def _write(self, path: Path, result: UnitResult) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "selection": asdict(result.selection),
            "seconds": result.seconds,
            "refined": {name: column.tolist() for name, column in result.refined._asdict().items()},
        }
        write_text(path.with_suffix(".json"), json.dumps(content))

    def read(self, agent: str, seed: int, fold: int) -> UnitResult:
        """Result of a unit that is done."""
        content: dict[str, Any] = json.loads(self.path(agent, seed, fold).with_suffix(".json").read_text())
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

    def merged(self, agent: str, seed: int) -> Refined | None:
        """Refined moments of all folds' test samples for one seed; None while a fold is missing."""
        if not all(self.is_done(agent, seed, fold) for fold in range(len(self.folds))):
            return None
        parts = [self.read(agent, seed, fold).refined for fold in range(len(self.folds))]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = np.argsort(columns[0])
        return Refined(*(column[order] for column in columns))
