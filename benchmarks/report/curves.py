"""Learning curves and differences from the detector as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from vmr_env.agents.ensemble.cross_fitting import Selection
from vmr_env.benchmarks.experiment.results import Difference, mean_curve

COLOURS = ("#0072b2", "#d55e00", "#b5568f", "#b37700", "#3a97d1", "#5b4fa2")
"""Those of the report's page, after Okabe and Ito: told apart by colour-blind readers too."""


def draw_curves(path: Path, trainings: Mapping[str, Sequence[Selection]], title: str) -> None:
    """Gain in `vmr_env.agents.ensemble.cross_fitting.quality` on held-out training samples against rounds.

    A line per agent, the mean of its trainings, with a 95 % interval.

    Args:
        path: PNG file.
        trainings: agent -> how each went.
        title: what was learnt from.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    percent = np.linspace(0, 100, 41)
    for colour, (agent, selections) in zip(COLOURS * 9, trainings.items(), strict=False):
        curve = mean_curve([percent_curve(one.rounds, one.gains) for one in selections], percent)
        axes.plot(percent, curve.mean, color=colour, label=agent, linewidth=2)
        axes.fill_between(percent, curve.low, curve.high, color=colour, alpha=0.15)
    axes.axhline(0, color="#666666", linewidth=1, linestyle="--", label="detector")
    ylabel = "gain on held-out samples (points)\nmean of mIoU, R1@0.5, R1@0.7"
    axes.set(xlabel="training (% of rounds)", ylabel=ylabel, title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def percent_curve(rounds: Sequence[float], gains: Sequence[float]) -> tuple[list[float], list[float]]:
    """A training from 0, where nothing is gained, in percent of its rounds and in points."""
    return [0.0, *(100 * at / rounds[-1] for at in rounds)], [0.0, *(100 * gain for gain in gains)]


def draw_changes(path: Path, changes: Mapping[str, Mapping[str, Difference]], title: str) -> None:
    """Difference of each agent or variant from the detector in R1@0.7 and mIoU, with 95 % intervals.

    Args:
        path: PNG file.
        changes: name -> measure -> difference, as `results.differences` gives them.
        title: what was learnt from.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, 2, figsize=(9, 1.4 + 0.32 * len(changes)), dpi=120, sharey=True, squeeze=False
    )
    at = np.arange(len(changes))[::-1]
    for axes, measure, colour in zip(panels[0], ("R1@0.7", "mIoU"), COLOURS, strict=False):
        found = np.array([change[measure] for change in changes.values()]).reshape(-1, 3)
        mean, low, high = found.T
        errors = np.maximum([mean - low, high - mean], 0)
        axes.errorbar(mean, at, xerr=errors, fmt="o", color=colour, capsize=3, markersize=5)
        axes.axvline(0, color="#666666", linewidth=1, linestyle="--")
        axes.set(xlabel=f"change in {measure} (points)", yticks=at, yticklabels=list(changes))
        axes.grid(alpha=0.25, axis="x")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
