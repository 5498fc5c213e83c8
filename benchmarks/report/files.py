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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

import vmr_env
from vmr_env.agents.ensemble.cross_fitting import Selection
from vmr_env.agents.tprl.validation import submission_times
from vmr_env.benchmarks.experiment.experiment import Experiment, RunResult, merge
from vmr_env.benchmarks.experiment.methods import Answers, Ranked
from vmr_env.benchmarks.experiment.results import figures, table
from vmr_env.benchmarks.report.comparison import STOP, Comparison
from vmr_env.benchmarks.report.html import PAGE_FILE, POOL_NOTE, Given, gather, write_report
from vmr_env.benchmarks.report.trajectories import Trajectory, trajectories
from vmr_env.benchmarks.report.verdicts import lines
from vmr_env.caches.writer import sha256_of
from vmr_env.data.predictions import Prediction, write_predictions
from vmr_env.data.profiles import get_profile
from vmr_env.files.text import write_text


class AgentReport(NamedTuple):
    """What is told of one agent."""

    row: Mapping[str, Any]
    """Cells of the table."""
    record: Mapping[str, Any]
    """Its part of `results.json`."""
    given: Mapping[int, Given]
    """Its answers by seed."""
    trainings: Sequence[Selection]
    """How each run was trained and chosen."""


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
    comparison = Comparison(experiment, detector_files)
    detector = comparison.detectors[comparison.compared_with]
    write_predictions(experiment.folder / "submission-detector.jsonl", detector)
    references = {name: comparison.judge([answers]) for name, answers in comparison.references.items()}
    told = {name: report_agent(experiment, name, comparison) for name in experiment.agents}
    agents = {name: agent for name, agent in told.items() if agent is not None}
    record: dict[str, Any] = {
        "run": {**_provenance(experiment, command), "notes": list(notes)},
        "detectors": {
            name: figures(answers, comparison.truth) for name, answers in comparison.detectors.items()
        },
        "references": {
            name: {"figures": judged.figures[0], **judged.record()} for name, judged in references.items()
        },
        "agents": {name: agent.record for name, agent in agents.items()},
    }
    rows = {
        **record["detectors"],
        **{name: judged.row() for name, judged in references.items()},
        **{name: agent.row for name, agent in agents.items()},
    }
    heading = _heading(experiment, len(comparison.truth), comparison.compared_with)
    notes = [*notes, POOL_NOTE] if comparison.pooled else notes
    text = "\n\n".join([heading, table(rows), *notes]) + "\n"
    write_text(experiment.folder / "table.md", text)
    write_text(experiment.folder / "results.json", json.dumps(record, indent=1) + "\n")
    page = gather(
        heading,
        record,
        comparison.truth,
        detector,
        comparison.references[STOP],
        {name: agent.given for name, agent in agents.items()},
        {name: agent.trainings for name, agent in agents.items()},
    )
    write_text(experiment.folder / PAGE_FILE, json.dumps(page))
    page_path = write_report(experiment.folder)
    said = "\n".join([*lines(record), f"Report: {page_path}"])
    return f"{text}\n{said}"


def report_agent(experiment: Experiment, agent: str, comparison: Comparison) -> AgentReport | None:
    """Write the submissions of an agent's seeds that are done and judge them; None where none is done."""
    results = {seed: experiment.results(agent, seed) for seed in range(experiment.seeds)}
    done = {seed: runs for seed, runs in results.items() if runs}
    if not done:
        return None
    given = {seed: _given(experiment, runs, comparison) for seed, runs in done.items()}
    for seed, one in given.items():
        name = f"submission-{agent.replace(':', '.')}-seed{seed}.jsonl"
        write_predictions(experiment.folder / name, one.answers)
    judged = comparison.judge([one.answers for one in given.values()])
    runs = [run for of_seed in done.values() for run in of_seed]
    seconds, steps = sum(run.seconds for run in runs), sum(run.selection.steps for run in runs)
    kept = sum(run.selection.chosen == 0 for run in runs)
    row = {
        **judged.row(),
        "seeds": f"{len(done)}/{experiment.seeds}",
        "fell back to detector": f"{kept}/{len(runs)}",
        "steps/s": f"{steps / seconds:,.0f}" if steps else None,
        "s": f"{seconds:.0f}",
    }
    record = {
        "seeds": list(done),
        "figures": judged.figures,
        **judged.record(),
        "compared_with": comparison.compared_with,
        "config": experiment.agents[agent].describe(),
        "frozen": frozen_tensors(runs),
        "chosen_rounds": [run.selection.chosen for run in runs],
        "steps": steps,
        "seconds": seconds,
    }
    return AgentReport(row, record, given, [run.selection for run in runs])


def _given(experiment: Experiment, runs: Sequence[RunResult], comparison: Comparison) -> Given:
    """Answers of one seed, whose runs are its folds."""
    parts = [run.outcome.answers for run in runs]
    merged, answers = merge(parts), comparison.submission(parts)
    return Given(
        answers, trajectories_of(runs, experiment), isinstance(merged, Ranked), switched(answers, merged)
    )


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


def frozen_tensors(runs: Sequence[RunResult]) -> dict[str, Any]:
    """Hashes of the frozen tensors over all runs, by name: before, and all that were found afterwards."""
    found = [run.outcome.frozen for run in runs if run.outcome.frozen]
    if not found:
        return {}
    return {
        name: {"before": before, "after": sorted({of_unit["after"][name] for of_unit in found})}
        for name, before in found[0]["before"].items()
    }


def _heading(experiment: Experiment, queries: int, compared_with: str) -> str:
    manifest = experiment.folds[0].test.manifest
    folds = len(experiment.folds)
    seeds = f"{experiment.seeds} seed{'s' if experiment.seeds > 1 else ''}"
    rounded = experiment.settings.submission_times
    times = "Times rounded as in published submissions. " if rounded else ""
    treated = "cut to the video and rounded" if rounded else "cut to the video"
    protocol = f"{folds} folds by video" if folds > 1 else "train and test data apart"
    return (
        f"Source of the data: {manifest['source']}. {manifest['dataset']}, {', '.join(manifest['models'])}, "
        f"{protocol}, {queries:,} test queries, {seeds}, "
        f"{experiment.settings.members} members an ensemble. {times}"
        f"Δ are differences from {compared_with}, its windows {treated} as those of all answers are, with "
        "95 % bootstrap intervals over videos and seeds."
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
