"""What a run's answers are judged by and compared with: truth, references, detector, the unlearnt pool."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vmr_env.agents.evaluation import Refined, refine
from vmr_env.agents.references import GreedyOracle, RandomAgent, StopAtOnce, constant_window
from vmr_env.agents.tprl.validation import submission_times
from vmr_env.benchmarks.experiment.experiment import Experiment
from vmr_env.benchmarks.experiment.methods import Answers, Fold, predictions
from vmr_env.benchmarks.experiment.results import Difference, differences, figures, measures, query_scores
from vmr_env.caches.from_predictions import model_name
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction, read_predictions
from vmr_env.data.profiles import DatasetProfile, get_profile
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.metrics.baselines import OBJECTIVES

STOP = "stop"
FROM_POOL = "Δ mAP from the pool unlearnt"


@dataclass(frozen=True)
class Judged:
    """Answers of one agent, or of one reference, beside what they are compared with."""

    figures: list[dict[str, float]]
    """Of each seed, in percent."""
    change: Mapping[str, Difference]
    """From the detector, by measure."""
    change_from_pool: Difference | None
    """Of mAP, from the pool unlearnt; None where there is no pool."""

    def row(self) -> dict[str, Any]:
        """Cells of the table: means over seeds, and differences."""
        means = {name: float(np.mean([one[name] for one in self.figures])) for name in measures()}
        pool = {} if self.change_from_pool is None else {FROM_POOL: self.change_from_pool}
        return {**means, **{f"Δ {name}": self.change[name] for name in measures()}, **pool}

    def record(self) -> dict[str, Any]:
        """Differences as JSON."""
        pool = self.change_from_pool
        return {
            "change": {name: value._asdict() for name, value in self.change.items()},
            "change_from_pool": None if pool is None else pool._asdict(),
        }


class Comparison:
    """The test samples of an experiment, and what answers to them are compared with.

    Args:
        experiment: see there.
        detector_files: prediction files on the test data; none where these are caches.

    Attributes:
        truth: ground truth of the test samples.
        references: answers of what does not learn, by name.
        detectors: answers of the detectors by name; all are compared with the first.
        compared_with: its name.
        pooled: whether proposals come from several models.
    """

    def __init__(self, experiment: Experiment, detector_files: Sequence[Path]) -> None:
        folds = experiment.folds
        self.truth = truth_of(folds)
        self._profile = get_profile(folds[0].test.manifest["dataset"])
        self._folds, self._rounds = folds, experiment.settings.submission_times
        self.references = {
            name: self._as_published(answers)
            for name, answers in references(folds, experiment.settings.environment).items()
        }
        self.detectors = detectors(folds, detector_files, self.references[STOP])
        self.compared_with = next(iter(self.detectors))
        self.pooled = len(folds[0].test.manifest["models"]) > 1
        self._detector = self._scores(self.detectors[self.compared_with])
        self._unlearnt = self._scores(self.references[STOP])

    def submission(self, parts: Sequence[Answers]) -> list[Prediction]:
        """Answers of all folds as one submission, with times as in published ones where that is asked."""
        return self._as_published(submitted(self._folds, parts))

    def judge(self, seeds: Sequence[Sequence[Prediction]]) -> Judged:
        """Compare the submissions of one agent's seeds."""
        scores = [self._scores(answers) for answers in seeds]
        return Judged(
            [figures(answers, self.truth) for answers in seeds],
            differences(scores, self._detector),
            differences(scores, self._unlearnt)["mAP"] if self.pooled else None,
        )

    def _scores(self, answers: Sequence[Prediction]) -> pd.DataFrame:
        return query_scores(answers, self.truth, self._profile)

    def _as_published(self, answers: list[Prediction]) -> list[Prediction]:
        return rounded(answers, self._profile) if self._rounds else answers


def truth_of(folds: Sequence[Fold]) -> list[Annotation]:
    """Ground truth of all test samples."""
    truth = []
    for fold in folds:
        for row in fold.test_samples:
            sample = fold.test.sample(int(row))
            truth.append(
                Annotation(sample.qid, sample.vid, sample.query, sample.duration, sample.moments, None, None)
            )
    return truth


def references(folds: Sequence[Fold], options: Mapping[str, Any]) -> dict[str, list[Prediction]]:
    """Answers of what does not learn, to all test samples, under these arguments of the environments.

    By name, as submissions.
    """

    def stop(fold: Fold, env: VMRVectorEnv) -> Refined:
        return refine(StopAtOnce(env, 0).act, fold.test, fold.test_samples, options)

    def chance(fold: Fold, env: VMRVectorEnv) -> Refined:
        return refine(RandomAgent(env, 0).act, fold.test, fold.test_samples, options)

    def oracle(fold: Fold, env: VMRVectorEnv) -> Refined:
        agent = GreedyOracle(env, 0)
        return refine(agent.act, fold.test, fold.test_samples, options, enter=agent.enter)

    of_fold: dict[str, Callable[[Fold, VMRVectorEnv], Refined]] = {
        STOP: stop,
        "random": chance,
        "greedy oracle (ceiling)": oracle,
    }
    envs = [VMRVectorEnv(1, fold.test.manifest["dataset"], source=fold.test, **options) for fold in folds]
    parts = {
        name: [refined(fold, env) for fold, env in zip(folds, envs, strict=True)]
        for name, refined in of_fold.items()
    }
    for objective in OBJECTIVES:
        parts[f"constant window (best {objective})"] = [
            constant_window(fold.train, fold.train_samples, fold.test, fold.test_samples, objective)
            for fold in folds
        ]
    return {name: submitted(folds, each) for name, each in parts.items()}


def submitted(folds: Sequence[Fold], parts: Sequence[Answers]) -> list[Prediction]:
    """Answers of all folds as one submission, in the order of their samples."""
    rows = [
        (int(sample), row)
        for fold, part in zip(folds, parts, strict=True)
        for sample, row in zip(part.samples, predictions(fold.test, part), strict=True)
    ]
    return [row for _, row in sorted(rows, key=itemgetter(0))]


def detectors(folds: Sequence[Fold], files: Sequence[Path], stopped: list[Prediction]) -> dict[str, Any]:
    """The detectors by name: first what all is compared with, then each file as published.

    What is compared with are the windows of the reference of each fold (`pools.reference_model`), cut to the
    video and rounded as all answers are, so that keeping them differs by 0. Where a pool's
    reference has no window, the pool's stand.

    Args:
        folds: the data; the models of their caches begin with the reference.
        files: prediction files on the test data; none for caches.
        stopped: the answers of stopping at once.
    """
    manifest = folds[0].test.manifest
    of_reference = {}
    for fold in folds:
        for sample in fold.test_samples.tolist():
            count = int(fold.test.counts[sample])
            of_reference[str(fold.test.sample(sample).qid)] = fold.test.models[sample, :count] == 0
    rows = []
    for row in stopped:
        own = of_reference[str(row.qid)]
        rows.append(replace(row, windows=row.windows[own]) if own.any() else row)
    names = ", ".join(sorted({fold.test.manifest["models"][0] for fold in folds}))
    named = names if files or len(manifest["models"]) > 1 else manifest["backbone"]["kind"]
    published = {
        f"{model_name(file)}, as published": read_predictions(file, before_start="keep") for file in files
    }
    return {f"detector ({named})": rows} | published


def rounded(answers: Sequence[Prediction], profile: DatasetProfile) -> list[Prediction]:
    """Windows moved as in published submissions (`tprl_validation.submission_times`)."""
    rows = []
    for row in answers:
        windows = row.windows.copy()
        windows[:, :2] = submission_times(windows[:, :2], profile)
        rows.append(replace(row, windows=windows))
    return rows
