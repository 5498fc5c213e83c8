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
from vmr_env.agents.ensemble.cross_fitting import Selection
from vmr_env.benchmarks.report.figures import all_figures, stage_lengths
from vmr_env.benchmarks.report.trajectories import Trajectory

from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.errors import DataError, Problem
from vmr_env.files.text import write_text
from vmr_env.metrics.moments import per_query

Page = dict[str, Any]

FROM_POOL = "Δ mAP from the pool unlearnt"
POOL_NOTE = (
    "Of a pool, the difference in mAP from the detector is mostly the other files' windows, which answers "
    "keep; what learning did to it is the difference from the pool unlearnt."
)
PAGE_FILE = "page.json"
REPORT_FILE = "report.html"


class Given(NamedTuple):
    """What one seed of an agent gave."""

    answers: Sequence[Prediction]
    """To all test queries."""
    trajectories: Mapping[str, Trajectory] | None
    """By qid as text; None where there were no episodes, as for heads."""
    is_head: bool
    """Whether a detection head answered, in one step."""
    switched: Mapping[str, bool] | None = None
    """By qid as text, whether the answer is another proposal than the first; None of heads."""


def gather(
    heading: str,
    record: Mapping[str, Any],
    truth: Sequence[Annotation],
    detector: Sequence[Prediction],
    start: Sequence[Prediction],
    agents: Mapping[str, Mapping[int, Given]],
    trainings: Mapping[str, Sequence[Selection]],
) -> Page:
    """All that the page shows, as JSON values.

    Args:
        heading: what was run, in a sentence or two.
        record: what stands in `results.json`.
        truth: ground truth of the test queries.
        detector: the answers that the agents are compared with.
        start: the answers that the agents start from; others in a pool of detectors.
        agents: agent -> seed -> what it gave.
        trainings: agent -> how each of its trainings went.
    """

    def spans(predictions: Sequence[Prediction]) -> list[list[float]]:
        windows = {str(row.qid): row.windows[0, :2] for row in predictions}
        rounded: list[list[float]] = np.round([windows[str(row.qid)] for row in truth], 2).tolist()
        return rounded

    def ious(predictions: Sequence[Prediction]) -> list[float]:
        return per_query(predictions, truth, past_end="keep")["iou"].round(4).tolist()

    def judged(predictions: Sequence[Prediction]) -> dict[str, Any]:
        return {"spans": spans(predictions), "ious": ious(predictions)}

    def of_seed(given: Given) -> dict[str, Any]:
        told = judged(given.answers) | {"is_head": given.is_head}
        if given.switched is not None:
            told["switched"] = [given.switched[str(row.qid)] for row in truth]
        if given.trajectories is not None:
            told["steps"] = [given.trajectories[str(row.qid)] for row in truth]
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
            agent: [[list(one.rounds), np.round(one.gains, 5).tolist()] for one in each]
            for agent, each in trainings.items()
        },
        "uses": {
            agent: [np.round(one.uses, 4).tolist() for one in each]
            for agent, each in trainings.items()
            if all(one.uses for one in each)
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
    folder = files("vmr_env.benchmarks.report") / "templates"
    parts = {
        "style": (folder / "report.css").read_text("utf-8"),
        "script": (folder / "report.js").read_text("utf-8"),
        "heading": escape(page["heading"]),
        "table": _table(page),
        "variants": _variants(page["record"]),
        "plots": all_figures(page),
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
        "start": page["start"],
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
        means = {name: float(np.mean([one[name] for one in row["figures"]])) for name in _measures(record)}
        kept = sum(chosen == 0 for chosen in row.get("chosen_rounds", []))
        seeds = len(row["seeds"])
        remark = f"{seeds} seed{'s' if seeds > 1 else ''}"
        if kept:
            remark += f"; {kept} of {len(row['chosen_rounds'])} trainings kept the detector"
        rows.append((name, "agent", means, row["change"], remark))
    return rows


def _measures(record: Mapping[str, Any]) -> list[str]:
    """Names of the figures that a run recorded: those of its time, registered metrics among them."""
    return list(next(iter(record["detectors"].values())))


def _table(page: Page) -> str:
    """Results: figures, and differences from the detector, of pools also from the pool, with intervals."""
    record = page["record"]
    measures = _measures(record)
    from_pool = {
        name: row["change_from_pool"]
        for name, row in {**record["references"], **record["agents"]}.items()
        if row.get("change_from_pool")
    }
    head = "".join(f'<th scope="col">{escape(m)}</th>' for m in measures)
    head += "".join(f'<th scope="col">Δ {escape(m)}</th>' for m in measures)
    if from_pool:
        head += f'<th scope="col">{escape(FROM_POOL)}</th>'
    lines = []
    for name, kind, figures, change, remark in _rows(page):
        cells = "".join(f"<td>{figures[m]:.2f}</td>" for m in measures)
        cells += "".join(_change(change[m]) if change else "<td></td>" for m in measures)
        if from_pool:
            cells += _change(from_pool[name]) if name in from_pool else "<td></td>"
        lines.append(
            f'<tr class="{kind}"><th scope="row">{escape(name)}</th>{cells}<td>{escape(remark)}</td></tr>'
        )
    note = f'<p class="note">{escape(POOL_NOTE)}</p>' if from_pool else ""
    return (
        f'<table><caption>Results on test queries</caption><thead><tr><th scope="col">answers</th>{head}'
        f'<th scope="col">remarks</th></tr></thead><tbody>{"".join(lines)}</tbody></table>{note}'
    )


def _change(change: Mapping[str, float]) -> str:
    low, high = change["low"], change["high"]
    kind = "better" if low > 0 else "worse" if high < 0 else ""
    said = {"better": "▲ ", "worse": "▼ "}.get(kind, "")
    return (
        f'<td class="{kind}">{said}{change["mean"]:+.2f} '
        f'<span class="interval">[{low:+.2f}, {high:+.2f}]</span></td>'
    )


def _variants(record: Mapping[str, Any]) -> str:
    """What agents of one kind differ in, and what came of it: ablations."""
    agents, measures = record["agents"], _measures(record)
    kinds: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for agent, row in agents.items():
        if row.get("config"):
            settings = _settings(row["config"])
            kinds.setdefault(tuple(sorted(settings.keys() - {"unfrozen"})), {})[agent] = settings
    lines = []
    for kind in kinds.values():
        (first, base), *others = kind.items()
        for agent, settings in kind.items() if others else ():
            differing = ", ".join(
                f"{name} {value}" for name, value in settings.items() if base.get(name) != value
            )
            said = differing or ("what the next ones are compared with" if agent == first else "nothing")
            cells = "".join(_change(agents[agent]["change"][m]) for m in measures)
            lines.append(f'<tr><th scope="row">{escape(agent)}</th><td>{escape(said)}</td>{cells}</tr>')
    if not lines:
        return ""
    head = "".join(f'<th scope="col">Δ {escape(m)}</th>' for m in measures)
    return (
        '<h3 id="variants">Ablations</h3><div class="scroll" role="region" tabindex="0" '
        'aria-labelledby="variants"><table class="variants"><caption>Variants of one method: the '
        "settings that are not those of the first, and differences from the detector</caption><thead><tr>"
        f'<th scope="col">variant</th><th scope="col">other settings</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Settings by name as text; a schedule is told by the epochs of its stages and its coefficient."""
    settings = {name: value for name, value in config.items() if name != "schedule"}
    if schedule := config.get("schedule"):
        settings["rl_coef"] = schedule.get("rl_coef")
    if lengths := stage_lengths(config):
        settings["epochs"] = " + ".join(map(str, lengths))
    return dict(_flat(settings))


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
    apart = ("command", "notes", "submission_times")  # the last is a setting
    run = {name: value for name, value in record["run"].items() if name not in apart}
    parts = [
        f"<h3>Command</h3><pre>{escape(record['run']['command'])}</pre>",
        *(f"<p>{escape(note)}</p>" for note in record["run"].get("notes", ())),
        _definitions(dict(_flat(run))),
    ]
    shown: dict[str, str] = {}  # hashes -> the first agent that has them
    for agent, row in record["agents"].items():
        told = {name: row[name] for name in ("seeds", "steps", "seconds", "chosen_rounds") if name in row}
        told |= row.get("config", {})
        frozen = row.get("frozen", {})
        if frozen:
            same = sum(tensor["after"] == [tensor["before"]] for tensor in frozen.values())
            told["frozen tensors with the same sha256 before and after"] = f"{same} of {len(frozen)}"
        hashes = _hashes(frozen)
        shown.setdefault(hashes, agent)
        if frozen and shown[hashes] != agent:
            hashes = f"<p>Hashes as those of {escape(shown[hashes])}.</p>"
        parts.append(
            f"<details><summary>{escape(agent)}</summary>{_definitions(dict(_flat(told)))}{hashes}</details>"
        )
    return "".join(parts)


def _hashes(frozen: Mapping[str, Any]) -> str:
    """Hashes of frozen tensors, each once where it stayed the same."""
    if not frozen:
        return ""
    lines = [
        f"{tensor['before']}  {name}"
        + ("" if tensor["after"] == [tensor["before"]] else f"  then {tensor['after']}")
        for name, tensor in frozen.items()
    ]
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


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
