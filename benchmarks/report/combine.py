"""One table of several runs of `run_tprl.py` on the same test samples, each from a backbone of its own.

    python -m vmr_env.benchmarks.report.combine runs/tprl-b0 runs/tprl-b1 runs/tprl-b2 --out runs/tprl-all

Each agent is compared with the detector of its own run. Intervals are 95 %, by bootstrap over source
videos, backbones and seeds: a draw takes videos, backbones, and seeds of each backbone with replacement.
Writes `table.md`, `combined.svg` and `combined.json`:

    runs    folders of the runs
    rows    detector or agent -> {
                figures  measure -> mean over backbones and seeds, percent
                change   measure -> {mean, low, high}, percent points; not for the detector
                runs     backbones that have the agent
                seeds    of all of them together
            }
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vmr_env.benchmarks.experiment.results import (
    DRAWS,
    Difference,
    Resampling,
    measures,
    query_scores,
    table,
)
from vmr_env.benchmarks.report import plots
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import read_predictions
from vmr_env.data.profiles import DatasetProfile, get_profile
from vmr_env.errors import DataError, Problem
from vmr_env.files.text import write_text
from vmr_env.programs import run_program

DETECTOR = "detector"


def combined_differences(
    runs: Sequence[tuple[pd.DataFrame, Sequence[pd.DataFrame]]], draws: int = DRAWS
) -> dict[str, Difference]:
    """Mean difference of an agent from the detectors of its runs, with a bootstrap interval.

    Args:
        runs: For each backbone the scores of the detector and of the agent's seeds, as
            `results.query_scores` gives them, over the same queries.
        draws: Number of draws.
    """
    resampling = Resampling(runs[0][0], draws)
    of_backbone = resampling.choices(len(runs), len(runs))
    of_seed = [resampling.choices(len(seeds), len(runs), len(seeds)) for _, seeds in runs]
    result = {}
    for measure in measures():
        gains = [
            np.stack([resampling.column(scores, measure) for scores in seeds])
            - resampling.column(detector, measure)
            for detector, seeds in runs
        ]
        total = np.zeros(draws)
        for backbone, gain in enumerate(gains):
            means = resampling.means(gain)  # (draws, seeds)
            for place in range(len(runs)):
                drawn = np.take_along_axis(means, of_seed[backbone][:, place], axis=1).mean(1)
                total += drawn * (of_backbone[:, place] == backbone)
        low, high = np.quantile(total / len(runs), [0.025, 0.975])
        mean = float(np.mean([gain.mean() for gain in gains]))
        result[measure] = Difference(mean, float(low), float(high))
    return result


def read_run(
    folder: Path, truth: Sequence[Annotation], profile: DatasetProfile
) -> dict[str, list[pd.DataFrame]]:
    """Scores of a run's detector (one) and of each agent's seeds.

    Raises:
        DataError: The folder has no results, or answers to other queries.
    """
    record = read_record(folder)
    scores = {
        DETECTOR: [query_scores(read_predictions(folder / "submission-detector.jsonl"), truth, profile)]
    }
    for agent, said in record["agents"].items():
        files = [folder / f"submission-{agent.replace(':', '.')}-seed{seed}.jsonl" for seed in said["seeds"]]
        scores[agent] = [query_scores(read_predictions(file), truth, profile) for file in files]
    return scores


def read_record(folder: Path) -> dict[str, Any]:
    """Contents of a run's `results.json`.

    Raises:
        DataError: There is none.
    """
    path = folder / "results.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        message = f"cannot be read ({error}); expected the results of a run"
        raise DataError(Problem(str(path), None, None, message)) from error


def combine(folders: Sequence[Path], truth: Sequence[Annotation], profile: DatasetProfile, out: Path) -> str:
    """Write the combined results of runs; returns the table.

    Raises:
        DataError: A run cannot be read.
    """
    runs = [read_run(folder, truth, profile) for folder in folders]
    rows: dict[str, Mapping[str, Any]] = {}
    record: dict[str, Any] = {"runs": [str(folder) for folder in folders], "rows": {}}
    changes = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        having = [run for run in runs if name in run]
        figures = {
            measure: float(np.mean([np.mean([one[measure].mean() for one in run[name]]) for run in having]))
            for measure in measures()
        }
        seeds = sum(len(run[name]) for run in having)
        record["rows"][name] = {"figures": figures, "runs": len(having), "seeds": seeds}
        rows[name] = {**figures, "backbones": str(len(having)), "seeds": str(seeds)}
        if name != DETECTOR:
            change = combined_differences([(run[DETECTOR][0], run[name]) for run in having])
            changes[name] = change
            record["rows"][name]["change"] = {key: value._asdict() for key, value in change.items()}
            rows[name] = {**rows[name], **{f"Δ {measure}": change[measure] for measure in measures()}}
    out.mkdir(parents=True, exist_ok=True)
    text = table(rows) + "\n"
    write_text(out / "table.md", text)
    write_text(out / "combined.json", json.dumps(record, indent=1) + "\n")
    if changes:
        classes = {name: plots.series(number) for number, name in enumerate(changes, 1)}
        drawn = {name: change["R1@0.7"]._asdict() for name, change in changes.items()}
        write_text(out / "combined.svg", plots.standalone(plots.differences(drawn, classes, "R1@0.7")))
    return text


def truth_of_run(folder: Path) -> tuple[list[Annotation], DatasetProfile]:
    """Ground truth of a run's test samples and their data set, from the cache that it was judged on.

    Raises:
        DataError: The run's settings do not name one, or it cannot be opened.
    """
    path = folder / "settings.json"
    try:
        settings = dict(json.loads(path.read_text(encoding="utf-8")))
        named = settings["test_cache"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        message = f"cannot be used ({error!r}); expected the settings of a run with --test-cache"
        raise DataError(Problem(str(path), None, None, message)) from error
    cache = DecoderStateCache.open(named)
    truth = [
        Annotation(sample.qid, sample.vid, sample.query, sample.duration, sample.moments, None, None)
        for sample in map(cache.sample, range(len(cache)))
    ]
    return truth, get_profile(cache.manifest["dataset"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: one table of several runs, each from a backbone of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m vmr_env.benchmarks.report.combine", description=main.__doc__
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs of run_tprl.py")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    print(combine(options.runs, *truth_of_run(options.runs[0]), options.out))


if __name__ == "__main__":
    run_program(main)
