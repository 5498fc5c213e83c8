"""The figures of a report's page, each with its caption and legend."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from vmr_env.agents.evaluation import USES
from vmr_env.arrays import Doubles
from vmr_env.benchmarks.experiment.results import mean_curve
from vmr_env.benchmarks.report import plots

Training = tuple[Sequence[int], Sequence[float]]
"""Rounds, and the gains after them."""

CHANGES = ("kept", "start only", "end only", "both", "another proposal")
"""Changes that an agent can make to the boundaries of the detector's moment."""

_SAME = 0.005
"""Seconds below which a boundary counts as not moved; submissions have four decimals."""

_LEARNT = (
    "Gain on training samples held out from the learner: mean of mIoU, R1@0.5 and R1@0.7, over all "
    "trainings; shaded its 95 % bootstrap interval over trainings (none with a single one)."
)


def all_figures(page: Mapping[str, Any]) -> str:
    """All figures."""
    detector = page["detector"]
    before, truth = np.array(detector["ious"]), page["queries"]["moments"]
    # One seed of each agent, so that every query counts once.
    first = {agent: next(iter(of_agent.values())) for agent, of_agent in page["agents"].items() if of_agent}
    answers = {"detector": detector, **first}
    names = ["detector", *page["record"]["agents"]]
    classes = {name: plots.series(number) for number, name in enumerate(names)}
    blocks = _differences(page, classes) + _learning(page, classes) + _uses(page)
    for boundary, word in enumerate(("start", "end")):
        errors = {name: boundary_errors(answer["spans"], truth, boundary) for name, answer in answers.items()}
        caption = (
            f"How many queries have their {word} within so many seconds of that of the best-matching moment; "
            "higher is better."
        )
        svg = plots.boundary_errors(errors, word, classes)
        blocks.append(_figure(f"Error of the {word}", svg, caption, _series(answers, classes)))
    svg = plots.reliability(
        np.array(detector["scores"]),
        {name: np.array(answer["ious"]) for name, answer in answers.items()},
        classes,
    )
    caption = "Each disc is a tenth of the queries, by rising score of the detector's first window."
    blocks.append(_figure("Reliability of scores", svg, caption, _series(answers, classes)))
    if first:
        used = {
            name: _changes(detector["spans"], answer["spans"], answer.get("switched"))
            for name, answer in first.items()
        }
        title, caption = (
            "What agents did",
            "Which boundaries of the detector's moments the answers have moved.",
        )
        svg = plots.shares(used, CHANGES, title, "% of test queries")
        blocks.append(_figure(title, svg, caption, _kinds(CHANGES)))
    for name, answer in first.items():
        svg = plots.before_after(before, np.array(answer["ious"]), name, classes)
        caption = "Discs above the line are queries that became better; their area is the number of queries."
        blocks.append(_figure(f"{name}: before and after", svg, caption))
    return "".join(blocks)


def _differences(page: Mapping[str, Any], classes: plots.Classes) -> list[str]:
    """Differences from the detector, with intervals."""
    agents = page["record"]["agents"]
    if not agents:
        return []
    caption = "Difference from the detector on test queries, with its 95 % bootstrap interval."
    return [
        _figure(
            f"Change in {measure}",
            plots.differences(
                {name: row["change"][measure] for name, row in agents.items()}, classes, measure
            ),
            caption,
        )
        for measure in ("R1@0.7", "mIoU")
    ]


def _learning(page: Mapping[str, Any], classes: plots.Classes) -> list[str]:
    """Learning curves: of the agents that go through stages, and of the others."""
    staged, others, stages = {}, {}, 0
    for agent, trainings in page["curves"].items():
        lengths = stage_lengths(page["record"]["agents"][agent].get("config", {}))
        if lengths:
            staged[agent] = [staged_curve(training, lengths) for training in trainings]
            stages = max(stages, len(lengths))
        else:
            others[agent] = [percent_curve(*training) for training in trainings]
    blocks = []
    for title, points, at, names, more in (
        (
            "Learning through the stages",
            staged,
            np.linspace(0, stages, 40 * stages + 1),
            [f"stage {number}" for number in range(1, stages + 1)],
            " Stages have one width, however long they take; where one is left out the line is level.",
        ),
        ("Learning", others, np.linspace(0, 100, 41), [], ""),
    ):
        if points:
            curves = {agent: mean_curve(each, at) for agent, each in points.items()}
            svg = plots.learning_curves(curves, at, classes, names)
            blocks.append(_figure(title, svg, _LEARNT + more, _series(["detector", *curves], classes)))
    return blocks


def percent_curve(rounds: Sequence[float], gains: Sequence[float]) -> tuple[list[float], list[float]]:
    """A training from 0, where nothing is gained, in percent of its rounds and in points."""
    return [0.0, *(100 * at / rounds[-1] for at in rounds)], [0.0, *(100 * gain for gain in gains)]


def stage_lengths(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Epochs of each stage of a head's training, from its settings; () where it has no stages."""
    if isinstance(epochs := config.get("epochs"), (list, tuple)):  # the step-wise agents have a number
        return tuple(epochs)
    phases = config.get("schedule", {}).get("phases", [])
    if any(phase.get("stage") is None for phase in phases):
        return ()
    numbers = range(1, 1 + max((phase["stage"] for phase in phases), default=0))
    return tuple(sum(phase["epochs"] for phase in phases if phase["stage"] == number) for number in numbers)


def staged_curve(training: Training, lengths: Sequence[int]) -> tuple[list[float], list[float]]:
    """A training as points, from 0 where nothing is gained: in stages, each of length 1, and in points.

    Args:
        training: rounds from 1, which are epochs here, and gains.
        lengths: epochs of each stage.
    """
    ends = np.cumsum(lengths)
    xs, ys = [0.0], [0.0]
    for epoch, gain in zip(*training, strict=True):
        stage = int(np.searchsorted(ends, epoch))
        if stage > xs[-1] and not lengths[stage - 1]:  # a stage that was left out teaches nothing
            xs.append(float(stage))
            ys.append(ys[-1])
        xs.append(float(stage + 1 - (ends[stage] - epoch) / lengths[stage]))
        ys.append(100 * gain)
    return xs, ys


def _uses(page: Mapping[str, Any]) -> list[str]:
    """Use of the detector's moments at the end of every stage."""
    used = {}
    for agent, trainings in page.get("uses", {}).items():
        rounds, shares = page["curves"][agent][0][0], np.mean(trainings, axis=0)  # (evaluations, uses)
        lengths = stage_lengths(page["record"]["agents"][agent].get("config", {}))
        if not lengths:
            used[agent] = shares[-1]
        for number, (length, end) in enumerate(zip(lengths, np.cumsum(lengths), strict=True), 1):
            last = np.searchsorted(rounds, end, side="right") - 1
            if length and last >= 0:
                used[f"{agent}, stage {number}"] = shares[last]
    if not used:
        return []
    title = "Action use through the stages"
    caption = (
        "What was made of the detector's moments of held-out training samples at the end of every stage, or "
        "of training; a boundary counts as moved from half a clip on."
    )
    return [_figure(title, plots.shares(used, USES, title, "% of held-out samples"), caption, _kinds(USES))]


def _figure(title: str, svg: str, caption: str, legend: str = "") -> str:
    return f"<figure><h3>{escape(title)}</h3>{svg}{legend}<figcaption>{caption}</figcaption></figure>"


def _series(names: Sequence[str] | Mapping[str, Any], classes: plots.Classes) -> str:
    """Legend of series."""
    return _legend([(f"series {classes[name]}", name) for name in names])


def _kinds(kinds: Sequence[str]) -> str:
    """Legend of kinds."""
    return _legend([(f"k{number}", kind) for number, kind in enumerate(kinds)])


def _legend(keys: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f'<li><span class="key {key}" aria-hidden="true"></span>{escape(name)}</li>' for key, name in keys
    )
    return f'<ul class="legend">{items}</ul>'


def boundary_errors(spans: Sequence[Sequence[float]], moments: Sequence[Any], boundary: int) -> Doubles:
    """Seconds from the boundary of the moment that a span overlaps best, or lies nearest to."""

    def best(span: Sequence[float], among: Sequence[Sequence[float]]) -> float:
        def misfit(moment: Sequence[float]) -> tuple[float, float]:
            overlap = max(0.0, min(span[1], moment[1]) - max(span[0], moment[0]))
            union = max(span[1], moment[1]) - min(span[0], moment[0])
            return -overlap / union if union else 0.0, abs(span[boundary] - moment[boundary])

        return span[boundary] - min(among, key=misfit)[boundary]

    return np.array([best(span, among) for span, among in zip(spans, moments, strict=True)])


def _changes(
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    switched: Sequence[bool] | None = None,
) -> Doubles:
    """Shares of `CHANGES`; what came from another proposal has not moved."""
    moved = np.abs(np.array(after) - np.array(before)) > _SAME  # (queries, 2)
    other = np.zeros(len(moved), bool) if switched is None else np.array(switched, bool)
    start, end = (moved & ~other[:, None]).T
    kept = ~start & ~end & ~other
    return np.array([np.mean(kind) for kind in (kept, start & ~end, end & ~start, start & end, other)])
