"""Groups of prediction files (the seeds of several models) side by side, with intervals.

    python -m vmr_env.benchmarks.report.compare_predictions --dataset qvhighlights val.jsonl \\
        repaired=r1.jsonl,r2.jsonl official=o1.jsonl,o2.jsonl

prints, for each group, the mean of the official figures over its files and a 95 % interval, and for every
group after the first the difference from the first. Intervals come from a bootstrap over source
videos and over the files of each group.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vmr_env.arrays import Doubles
from vmr_env.benchmarks.experiment.results import DRAWS, Resampling, measures, query_scores
from vmr_env.data.annotations import read_annotations
from vmr_env.data.predictions import read_predictions
from vmr_env.data.profiles import PROFILES
from vmr_env.programs import run_program


def bootstrap_means(groups: Mapping[str, Sequence[pd.DataFrame]], draws: int = DRAWS) -> dict[str, Doubles]:
    """Means of each measure, resampled: by group ``(draws + 1, measures)``, the first row as they are.

    A draw takes the same videos for all groups, with replacement, and files of each group with replacement;
    queries of one video stay together.

    Args:
        groups: scores of each file, as `results.query_scores` gives them, over the same queries.
        draws: number of draws.
    """
    resampling = Resampling(next(iter(groups.values()))[0], draws)
    result = {}
    for name, files in groups.items():
        chosen = resampling.choices(len(files), len(files))
        columns = []
        for measure in measures():
            values = np.stack([resampling.column(frame, measure) for frame in files])
            drawn = np.take_along_axis(resampling.means(values), chosen, axis=1).mean(axis=1)
            columns.append(np.concatenate([[values.mean()], drawn]))
        result[name] = np.stack(columns, axis=1)
    return result


def comparison(groups: Mapping[str, Sequence[pd.DataFrame]]) -> str:
    """Markdown table of all groups, and of their differences from the first."""
    means = bootstrap_means(groups)
    reference = next(iter(means))
    rows = {f"{name} ({len(groups[name])})": values for name, values in means.items()}
    rows |= {
        f"{name} - {reference}": values - means[reference]
        for name, values in means.items()
        if name != reference
    }
    lines = ["| group (files) | " + " | ".join(measures()) + " |", "|---" * (len(measures()) + 1) + "|"]
    for name, values in rows.items():
        low, high = np.quantile(values[1:], [0.025, 0.975], axis=0)
        cells = [f"{m:.2f} [{a:.2f}, {b:.2f}]" for m, a, b in zip(values[0], low, high, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: compare groups of prediction files."""
    parser = argparse.ArgumentParser(
        prog="python -m vmr_env.benchmarks.report.compare_predictions", description=main.__doc__
    )
    parser.add_argument("ground_truth", type=Path, help="annotation file")
    parser.add_argument("groups", nargs="+", metavar="NAME=FILE,FILE", help="prediction files of one model")
    parser.add_argument(
        "--dataset", choices=PROFILES, required=True, help="whose rule tells which vids are of one video"
    )
    options = parser.parse_args(arguments)
    truth = read_annotations(options.ground_truth, past_end="keep")
    groups: dict[str, list[pd.DataFrame]] = {}
    for text in options.groups:
        name, equals, files = text.partition("=")
        if not equals:
            parser.error(f"{text!r} is no NAME=FILE,FILE")
        groups[name] = [
            query_scores(read_predictions(path, before_start="keep"), truth, PROFILES[options.dataset])
            for path in files.split(",")
        ]
    print(comparison(groups))


if __name__ == "__main__":
    run_program(main)
