"""Output of a run: table, figures as JSON, submissions and learning curves of all that is done.

`results.json` is an object:

    run         command, source, dataset, models, backbone (kind, sha256), manifests (sha256 of the caches'
                manifest.json, which has those of all files), seeds, settings, versions, submission_times
                (whether answers were rounded as in published submissions), notes (what was not run, and why)
    detectors   name -> figures (`results.measures()`, percent)
    references  name -> {figures, change}
    agents      name -> {
                    seeds          seeds that are done
                    figures        for each of them
                    change         measure -> {mean, low, high}, percent points: difference from the
                                   detector `compared_with`, 95 % bootstrap over videos and seeds
                    change_from_pool  {mean, low, high} of mAP: difference from the pool unlearnt; null where
                                   there is no pool
                    compared_with  name of a detector
                    config         settings of a method that trains the head, else {}
                    chosen_rounds  for each unit (seed by seed, its folds); 0 where the detector was kept
                    frozen         backbone tensor -> {"before": sha256, "after": [sha256, …]}, the hashes
                                   that all runs found; {} where only cached states were there
                    steps, seconds of all runs together: environment steps, or samples learnt from
                }

Submissions are `submission-<agent>-seed<n>.jsonl`, and `submission-detector.jsonl` of what all are compared
with; `runs/` holds what `experiment.Experiment.path` says.
"""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from vmr_env.agents.ensemble.cross_fitting import Selection
from vmr_env.agents.evaluation import Refined, refine
from vmr_env.agents.references import GreedyOracle, RandomAgent, StopAtOnce, constant_window
from vmr_env.agents.tprl.validation import submission_times
from vmr_env.benchmarks.experiment.experiment import Experiment, RunResult, merge
from vmr_env.benchmarks.experiment.methods import Answers, Fold, Ranked, predictions
from vmr_env.benchmarks.experiment.results import (
    Difference,
    differences,
    figures,
    measures,
    query_scores,
    table,
)
from vmr_env.benchmarks.report.html import FROM_POOL, PAGE_FILE, POOL_NOTE, Given, gather, write_report
from vmr_env.benchmarks.report.trajectories import Trajectory, trajectories
from vmr_env.benchmarks.report.verdicts import lines

import vmr_env
from vmr_env.caches.from_predictions import model_name
from vmr_env.caches.writer import sha256_of
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction, read_predictions, write_predictions
from vmr_env.data.profiles import DatasetProfile, get_profile
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.files.text import write_text
from vmr_env.metrics.baselines import OBJECTIVES

STOP = "stop"


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


def report(
    experiment: Experiment, detector_files: Sequence[Path], command: str, notes: Sequence[str] = ()
) -> str:
    """Write all that is known of the runs that are done; returns the table, and what it says in words.

    Args:
        experiment: its results are read from its folder, and written there.
        detector_files: prediction files on the test data; none where these are caches.
        command: what made the run.
        notes: what else to tell, under the table.
    """
    truth = truth_of(experiment.folds)
    profile = get_profile(experiment.folds[0].test.manifest["dataset"])
    standing = references(experiment.folds, experiment.settings.environment)
    if experiment.settings.submission_times:
        standing = {name: rounded(answers, profile) for name, answers in standing.items()}
    published = detectors(experiment.folds, detector_files, standing[STOP])
    record: dict[str, Any] = {
        "run": {**_provenance(experiment, command), "notes": list(notes)},
        "detectors": {name: figures(answers, truth) for name, answers in published.items()},
        "references": {},
        "agents": {},
    }
    compared_with = next(iter(published))
    detector = query_scores(published[compared_with], truth, profile)
    write_predictions(experiment.folder / "submission-detector.jsonl", published[compared_with])
    rows: dict[str, Mapping[str, Any]] = dict(record["detectors"])
    trainings: dict[str, list[Selection]] = {}
    given: dict[str, dict[int, Given]] = {}

    pooled = len(experiment.folds[0].test.manifest["models"]) > 1
    unlearnt = query_scores(standing[STOP], truth, profile)

    def from_pool(answers: Sequence[Sequence[Prediction]]) -> dict[str, Difference]:
        """Difference from the pool unlearnt, where there is a pool."""
        scores = [query_scores(each, truth, profile) for each in answers]
        return {FROM_POOL: differences(scores, unlearnt)["mAP"]} if pooled else {}

    for name, answers in standing.items():
        row: dict[str, Any] = {"figures": figures(answers, truth)}
        change = differences([query_scores(answers, truth, profile)], detector)
        pool = from_pool([answers])
        row |= {"change": _plain(change), "change_from_pool": _plain(pool).get(FROM_POOL)}
        record["references"][name] = row
        rows[name] = row["figures"] | {f"Δ {measure}": change[measure] for measure in measures()}
        rows[name] = {**rows[name], **pool}

    for agent in experiment.agents:
        results = {seed: experiment.results(agent, seed) for seed in range(experiment.seeds)}
        done = {seed: runs for seed, runs in results.items() if runs}
        if not done:
            continue
        runs = [run for of_seed in done.values() for run in of_seed]
        answers_of_seeds = []
        given[agent] = {}
        for seed, of_seed in done.items():
            merged = merge([run.outcome.answers for run in of_seed])
            answers = submitted(experiment.folds, [run.outcome.answers for run in of_seed])
            if experiment.settings.submission_times:
                answers = rounded(answers, profile)
            name = f"submission-{agent.replace(':', '.')}-seed{seed}.jsonl"
            write_predictions(experiment.folder / name, answers)
            answers_of_seeds.append(answers)
            given[agent][seed] = Given(
                answers,
                trajectories_of(of_seed, experiment),
                isinstance(merged, Ranked),
                switched(answers, merged),
            )
        each = [figures(answers, truth) for answers in answers_of_seeds]
        change = differences(
            [query_scores(answers, truth, profile) for answers in answers_of_seeds], detector
        )
        seconds, steps = sum(run.seconds for run in runs), sum(run.selection.steps for run in runs)
        kept = sum(run.selection.chosen == 0 for run in runs)
        rows[agent] = {
            **{measure: float(np.mean([one[measure] for one in each])) for measure in measures()},
            **{f"Δ {measure}": change[measure] for measure in measures()},
            **from_pool(answers_of_seeds),
            "seeds": f"{len(done)}/{experiment.seeds}",
            "fell back to detector": f"{kept}/{len(runs)}",
            "steps/s": f"{steps / seconds:,.0f}" if steps else None,
            "s": f"{seconds:.0f}",
        }
        record["agents"][agent] = {
            "seeds": list(done),
            "figures": each,
            "change": _plain(change),
            "change_from_pool": _plain(from_pool(answers_of_seeds)).get(FROM_POOL),
            "compared_with": compared_with,
            "config": experiment.agents[agent].describe(),
            "frozen": frozen_tensors(runs),
            "chosen_rounds": [run.selection.chosen for run in runs],
            "steps": steps,
            "seconds": seconds,
        }
        trainings[agent] = [run.selection for run in runs]

    heading = _heading(experiment, len(truth), compared_with)
    notes = [*notes, POOL_NOTE] if pooled else notes
    text = "\n\n".join([heading, table(rows), *notes]) + "\n"
    write_text(experiment.folder / "table.md", text)
    write_text(experiment.folder / "results.json", json.dumps(record, indent=1) + "\n")
    page = gather(heading, record, truth, published[compared_with], standing[STOP], given, trainings)
    write_text(experiment.folder / PAGE_FILE, json.dumps(page))
    page_path = write_report(experiment.folder)
    said = "\n".join([*lines(record), f"Report: {page_path}"])
    return f"{text}\n{said}"


def trajectories_of(runs: Sequence[RunResult], experiment: Experiment) -> Mapping[str, Trajectory] | None:
    """Steps of one seed by qid, with times rounded as those of its answers; None where a fold has none."""
    parts = [run.outcome.trajectories for run in runs if run.outcome.trajectories is not None]
    if len(parts) < len(runs):
        return None
    steps, cache = merge(parts), experiment.folds[0].test
    if experiment.settings.submission_times:
        profile = get_profile(cache.manifest["dataset"])
        steps = steps._replace(windows=submission_times(steps.windows, profile))
    return trajectories(steps, cache)


def switched(answers: Sequence[Prediction], merged: Answers) -> Mapping[str, bool] | None:
    """Which answers came from another proposal than the first, by qid as text; None of heads."""
    if isinstance(merged, Ranked):
        return None
    return {str(row.qid): bool(at) for row, at in zip(answers, merged.proposals > 0, strict=True)}


def rounded(answers: Sequence[Prediction], profile: DatasetProfile) -> list[Prediction]:
    """Windows moved as in published submissions (`tprl_validation.submission_times`)."""
    rows = []
    for row in answers:
        windows = row.windows.copy()
        windows[:, :2] = submission_times(windows[:, :2], profile)
        rows.append(replace(row, windows=windows))
    return rows


def frozen_tensors(runs: Sequence[RunResult]) -> dict[str, Any]:
    """Hashes of the frozen tensors over all runs, by name: before, and all that were found afterwards."""
    found = [run.outcome.frozen for run in runs if run.outcome.frozen]
    if not found:
        return {}
    return {
        name: {"before": before, "after": sorted({of_unit["after"][name] for of_unit in found})}
        for name, before in found[0]["before"].items()
    }


def _plain(change: Mapping[str, Any]) -> dict[str, Any]:
    return {measure: value._asdict() for measure, value in change.items()}


def _heading(experiment: Experiment, queries: int, compared_with: str) -> str:
    manifest = experiment.folds[0].test.manifest
    folds = len(experiment.folds)
    seeds = f"{experiment.seeds} seed{'s' if experiment.seeds > 1 else ''}"
    times = "Times rounded as in published submissions. " if experiment.settings.submission_times else ""
    protocol = f"{folds} folds by video" if folds > 1 else "train and test data apart"
    return (
        f"Source of the data: {manifest['source']}. {manifest['dataset']}, {', '.join(manifest['models'])}, "
        f"{protocol}, {queries:,} test queries, {seeds}, "
        f"{experiment.settings.members} members an ensemble. {times}"
        f"Δ are differences from {compared_with}, its windows cut to the video and rounded as all answers "
        "are, with 95 % bootstrap intervals over videos and seeds."
    )


def _provenance(experiment: Experiment, command: str) -> dict[str, Any]:
    fold = experiment.folds[0]
    manifest = fold.train.manifest
    caches = {"train": fold.train, "test": fold.test, "select": fold.select}
    return {
        "command": command,
        "source": manifest["source"],
        "dataset": manifest["dataset"],
        "models": manifest["models"],
        "backbone": manifest["backbone"],
        "manifests": {
            name: sha256_of(cache.path / "manifest.json")
            for name, cache in caches.items()
            if cache is not None
        },
        "seeds": experiment.seeds,
        "settings": asdict(experiment.settings),
        "submission_times": experiment.settings.submission_times,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "gymnasium": gymnasium.__version__,
            "torch": torch.__version__,
            "vmr_env": vmr_env.__version__,
        },
    }
