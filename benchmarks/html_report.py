"""The report of a run: one HTML file that needs no network, drawn from `page.json` in the run's folder.

`gather` collects what the page shows when a run ends; `write_report` makes the page of it, then or later.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import plots
from benchmarks.results import MEASURES
from benchmarks.trails import Trail
from vmr_env.annotations import Annotation
from vmr_env.errors import DataError, Problem
from vmr_env.files import write_text
from vmr_env.metrics import per_query
from vmr_env.predictions import Prediction

Page = dict[str, Any]
Floats = NDArray[np.float64]

PAGE_FILE = "page.json"
REPORT_FILE = "report.html"

_SAME = 0.005
"""Seconds below which a boundary counts as not moved; submissions have four decimals."""


class Given(NamedTuple):
    """What one seed of an agent gave."""

    answers: Sequence[Prediction]
    """To all test queries."""
    trails: Mapping[str, Trail] | None
    """By qid as text; None where there were no episodes, or units of an earlier version recorded no steps."""
    is_head: bool
    """Whether a detection head answered, in one step."""


def gather(
    heading: str,
    record: Mapping[str, Any],
    truth: Sequence[Annotation],
    detector: Sequence[Prediction],
    start: Sequence[Prediction],
    agents: Mapping[str, Mapping[int, Given]],
    curves: Mapping[str, Sequence[tuple[Sequence[int], Sequence[float]]]],
) -> Page:
    """All that the page shows, as JSON values.

    Args:
        heading: what was run, in a sentence or two.
        record: what stands in `results.json`.
        truth: ground truth of the test queries.
        detector: the answers that the agents are compared with.
        start: the answers that the agents start from; others in a pool of detectors.
        agents: agent -> seed -> what it gave.
        curves: agent -> of each training the rounds and the gains in `agents.committee.quality`.
    """

    def spans(predictions: Sequence[Prediction]) -> list[list[float]]:
        windows = {str(row.qid): row.windows[0, :2] for row in predictions}
        rounded: list[list[float]] = np.round([windows[str(row.qid)] for row in truth], 2).tolist()
        return rounded

    def ious(predictions: Sequence[Prediction]) -> list[float]:
        return per_query(predictions, truth, outside="keep")["iou"].round(4).tolist()

    def judged(predictions: Sequence[Prediction]) -> dict[str, Any]:
        return {"spans": spans(predictions), "ious": ious(predictions)}

    def of_seed(given: Given) -> dict[str, Any]:
        told = judged(given.answers) | {"is_head": given.is_head}
        if given.trails is not None:
            told["steps"] = [given.trails[str(row.qid)] for row in truth]
        return told

    scores = {str(row.qid): float(row.windows[0, 2]) for row in detector}
    return {
        "heading": heading,
        "record": record,
        "queries": {
            "qid": [row.qid for row in truth],
            "vid": [row.vid for row in truth],
            "query": [row.query for row in truth],
            "duration": [round(row.duration, 2) for row in truth],
            "moments": [np.round(row.moments, 2).tolist() for row in truth],
        },
        "detector": {
            **judged(detector),
            "scores": [round(scores[str(row.qid)], 4) for row in truth],
        },
        "start": judged(start),
        "agents": {
            agent: {str(seed): of_seed(given) for seed, given in of_agent.items()}
            for agent, of_agent in agents.items()
        },
        "curves": {
            agent: [
                [list(map(int, rounds)), [round(float(gain), 5) for gain in gains]] for rounds, gains in each
            ]
            for agent, each in curves.items()
        },
    }


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run; returns its path.

    Args:
        run: folder of the run.
        out: the file; None for `report.html` in the folder.

    Raises:
        DataError: the folder has no results of a run, or broken ones.
    """
    path = run / PAGE_FILE
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        text = render(page)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"cannot be used ({error!r}); expected what a run leaves when it ends"
        raise DataError(Problem(str(path), None, None, message)) from error
    out = run / REPORT_FILE if out is None else out
    write_text(out, text)
    return out


def render(page: Page) -> str:
    """The page as HTML."""
    folder = files("benchmarks") / "templates"
    parts = {
        "style": (folder / "report.css").read_text("utf-8"),
        "script": (folder / "report.js").read_text("utf-8"),
        "heading": escape(page["heading"]),
        "table": _table(page),
        "plots": _plots(page),
        "facts": _facts(page),
        "provenance": _provenance(page["record"]),
        # "<" could end the element that the data stand in.
        "data": json.dumps(_explored(page), separators=(",", ":")).replace("<", "\\u003c"),
    }
    text = (folder / "report.html").read_text("utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    return text


def _explored(page: Page) -> Page:
    """What the episode explorer reads."""
    return {
        "queries": page["queries"],
        "detector": page["detector"],
        "start": page.get("start", page["detector"]),  # the first versions recorded none, and no steps
        "agents": page["agents"],
    }


def _rows(page: Page) -> list[tuple[str, str, Mapping[str, float], Mapping[str, Any] | None, str]]:
    """Name, kind, figures, changes and remark of every row of the table."""
    record = page["record"]
    rows: list[tuple[str, str, Mapping[str, float], Mapping[str, Any] | None, str]] = [
        (name, "detector", figures, None, "") for name, figures in record["detectors"].items()
    ]
    rows += [
        (name, "reference", row["figures"], row["change"], "") for name, row in record["references"].items()
    ]
    for name, row in record["agents"].items():
        means = {measure: float(np.mean([one[measure] for one in row["figures"]])) for measure in MEASURES}
        kept = sum(chosen == 0 for chosen in row.get("chosen_rounds", []))
        seeds = len(row["seeds"])
        remark = f"{seeds} seed{'s' if seeds > 1 else ''}"
        if kept:
            remark += f"; {kept} of {len(row['chosen_rounds'])} trainings kept the detector"
        rows.append((name, "agent", means, row["change"], remark))
    return rows


def _table(page: Page) -> str:
    """Results: figures, and differences from the detector with their intervals."""
    head = "".join(f'<th scope="col">{m}</th>' for m in MEASURES)
    head += "".join(f'<th scope="col">Δ {m}</th>' for m in MEASURES)
    lines = []
    for name, kind, figures, change, remark in _rows(page):
        cells = "".join(f"<td>{figures[m]:.2f}</td>" for m in MEASURES)
        cells += "".join(_change(change[m]) if change else "<td></td>" for m in MEASURES)
        lines.append(
            f'<tr class="{kind}"><th scope="row">{escape(name)}</th>{cells}<td>{escape(remark)}</td></tr>'
        )
    return (
        f'<table><caption>Results on test queries</caption><thead><tr><th scope="col">answers</th>{head}'
        f'<th scope="col">remarks</th></tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )


def _change(change: Mapping[str, float]) -> str:
    low, high = change["low"], change["high"]
    kind = "better" if low > 0 else "worse" if high < 0 else ""
    said = {"better": "▲ ", "worse": "▼ "}.get(kind, "")
    return (
        f'<td class="{kind}">{said}{change["mean"]:+.2f} '
        f'<span class="interval">[{low:+.2f}, {high:+.2f}]</span></td>'
    )


def _plots(page: Page) -> str:
    """All plots, each with its caption and legend."""
    detector = page["detector"]
    before, truth = np.array(detector["ious"]), page["queries"]["moments"]
    # One seed of each agent, so that every query counts once.
    first = {agent: next(iter(of_agent.values())) for agent, of_agent in page["agents"].items() if of_agent}
    names = ["detector", *first]
    answers = {"detector": detector, **first}
    blocks = []
    for ends, curves in _by_stages(page).items():
        caption = (
            "Gain on training samples held out from the learner: mean of mIoU, R1@0.5 and R1@0.7, over all "
            "trainings; shaded from their 10 % to their 90 % quantile."
        )
        if ends:
            caption += " Dotted lines: a stage of the curriculum ends."
        title = "Learning through the stages" if ends else "Learning"
        svg = plots.learning_curves(curves, ends)
        blocks.append(_figure(title, svg, ["detector", *curves], caption))
    for boundary in (0, 1):
        errors = {name: _errors(answer["spans"], truth, boundary) for name, answer in answers.items()}
        word = ("start", "end")[boundary]
        caption = f"How far the {word} lies from that of the best-matching moment."
        blocks.append(_figure(f"Error of the {word}", plots.boundary_errors(errors, word), names, caption))
    svg = plots.reliability(
        np.array(detector["scores"]), {name: np.array(answer["ious"]) for name, answer in answers.items()}
    )
    caption = "Each disc is a tenth of the queries, by rising score of the detector's first window."
    blocks.append(_figure("Reliability of scores", svg, names, caption))
    if first:
        used = {name: _changes(detector["spans"], answer["spans"]) for name, answer in first.items()}
        blocks.append(_figure("What agents did", plots.changes(used), None, _CHANGES_LEGEND))
    for number, (name, answer) in enumerate(first.items(), start=1):
        svg = plots.before_after(before, np.array(answer["ious"]), number, name)
        caption = "Discs above the line are queries that became better; their area is the number of queries."
        blocks.append(_figure(f"{name}: before and after", svg, None, caption))
    return "".join(blocks)


def _by_stages(page: Page) -> dict[tuple[float, ...], dict[str, Any]]:
    """Learning curves by where the stages of the agents' curricula end, as shares of the training."""
    groups: dict[tuple[float, ...], dict[str, Any]] = {}
    for agent, curves in page["curves"].items():
        schedule = page["record"]["agents"][agent].get("config", {}).get("schedule", {})
        ends = np.cumsum([phase["epochs"] for phase in schedule.get("phases", ())])
        shares = tuple((ends[:-1] / ends[-1]).tolist()) if len(ends) else ()
        groups.setdefault(shares, {})[agent] = curves
    return groups


def _figure(title: str, svg: str, legend: Sequence[str] | None, caption: str) -> str:
    keys = "".join(
        f'<li><span class="key {plots.series(number)}" aria-hidden="true"></span>{escape(name)}</li>'
        for number, name in enumerate(legend or [])
    )
    listed = f'<ul class="legend">{keys}</ul>' if keys else ""
    return f"<figure><h3>{escape(title)}</h3>{svg}{listed}<figcaption>{caption}</figcaption></figure>"


_CHANGES_LEGEND = ", ".join(
    f'<span class="key k{number}" aria-hidden="true"></span>{kind}'
    for number, kind in enumerate(plots.CHANGES)
)


def _errors(spans: Sequence[Sequence[float]], moments: Sequence[Any], boundary: int) -> Floats:
    """Seconds from the boundary of the moment that a span overlaps best, or lies nearest to."""

    def best(span: Sequence[float], among: Sequence[Sequence[float]]) -> float:
        def misfit(moment: Sequence[float]) -> tuple[float, float]:
            overlap = max(0.0, min(span[1], moment[1]) - max(span[0], moment[0]))
            union = max(span[1], moment[1]) - min(span[0], moment[0])
            return -overlap / union if union else 0.0, abs(span[boundary] - moment[boundary])

        return span[boundary] - min(among, key=misfit)[boundary]

    return np.array([best(span, among) for span, among in zip(spans, moments, strict=True)])


def _changes(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Floats:
    """Shares of `plots.CHANGES`."""
    moved = np.abs(np.array(after) - np.array(before)) > _SAME  # (queries, 2)
    start, end = moved.T
    return np.array([np.mean(kind) for kind in (~start & ~end, start & ~end, end & ~start, start & end)])


def _facts(page: Page) -> str:
    """What the test data are."""
    queries, run = page["queries"], page["record"]["run"]
    lengths = [end - start for moments in queries["moments"] for start, end in moments]
    facts = {
        "data set": run.get("dataset", ""),
        "source of the data": run.get("source", ""),
        "models": ", ".join(run.get("models", ())),
        "test queries": f"{len(queries['qid']):,}",
        "videos": f"{len(set(queries['vid'])):,}",
        "moments": f"{len(lengths):,}",
        "length of a video, median": f"{np.median(queries['duration']):.1f} s",
        "length of a moment, median": f"{np.median(lengths):.1f} s",
        "words of a query, mean": f"{np.mean([len(query.split()) for query in queries['query']]):.1f}",
    }
    return _definitions(facts)


def _provenance(record: Mapping[str, Any]) -> str:
    """Everything that the run wrote down about itself."""
    parts = [_definitions(dict(_flat(record["run"])))]
    for agent, row in record["agents"].items():
        told = {name: row[name] for name in ("steps", "seconds", "chosen_rounds") if name in row}
        told |= row.get("config", {})
        frozen = row.get("frozen", {})
        if frozen:
            same = sum(tensor["after"] == [tensor["before"]] for tensor in frozen.values())
            told["frozen tensors with the same sha256 before and after"] = f"{same} of {len(frozen)}"
        hashes = f"<pre>{escape(json.dumps(frozen, indent=1))}</pre>" if frozen else ""
        parts.append(
            f"<details><summary>{escape(agent)}</summary>{_definitions(dict(_flat(told)))}{hashes}</details>"
        )
    return "".join(parts)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as lines."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{name}.")
        else:
            lines.append(
                (f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            )
    return lines


def _definitions(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items()
    )
    return f"<dl>{rows}</dl>"
