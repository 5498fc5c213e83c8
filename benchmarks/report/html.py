"""The report of a run: one HTML file that needs no network, drawn from `page.json` in the run's folder.

`gather` collects what the page shows when a run ends; `write_report` makes the page of it, then or later.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vmr_env.agents.ensemble.cross_fitting import Selection
from vmr_env.agents.health import HEALTH_FIGURES, mean_health
from vmr_env.benchmarks.experiment.results import compared
from vmr_env.benchmarks.report.comparison import FROM_POOL
from vmr_env.benchmarks.report.figures import all_figures, stage_lengths
from vmr_env.benchmarks.report.trajectories import Trajectory
from vmr_env.benchmarks.report.verdicts import MEASURE, lines
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.data.profiles import get_profile
from vmr_env.errors import DataError, Problem
from vmr_env.files.text import write_text
from vmr_env.metrics.moments import per_query

Page = dict[str, Any]

POOL_NOTE = (
    "Of a pool, the difference in mAP from the detector is mostly the other files' windows, which answers "
    "keep; what learning did to it is the difference from the pool unlearnt."
)
EXPLAINED = {
    "R1@0.5": "share of queries whose first window has a tIoU of at least 0.5 with a moment, in percent",
    "R1@0.7": "share of queries whose first window has a tIoU of at least 0.7 with a moment, in percent",
    "mIoU": "mean tIoU of the first windows, in percent; tIoU: overlap of two time spans over their union",
    "mAP": "mean average precision over all windows of a query, in percent",
    "Δ": "difference from the detector in points, with its 95 % interval",
}
"""Abbreviations of the page, and what they mean."""

PAGE_FILE = "page.json"
REPORT_FILE = "report.html"


class Given(NamedTuple):
    """Results of one seed of an agent."""

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
        record: contents of `results.json`.
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
        "health": {
            agent: [one.health for one in each]
            for agent, each in trainings.items()
            if any(any(one.health) for one in each)
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
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    record = page["record"]
    measures = _measures(record)
    return environment.from_string((folder / "report.html").read_text("utf-8")).render(
        style=Markup((folder / "report.css").read_text("utf-8")),
        script=Markup((folder / "report.js").read_text("utf-8")),
        title=_title(record["run"]),
        heading=page["heading"],
        verdicts=lines(record),
        explained=EXPLAINED,
        measures=measures,
        from_pool=FROM_POOL if _changes_from_pool(record) else "",
        pool_note=POOL_NOTE,
        rows=_rows(page),
        matrix=_matrix(page),
        matrix_measure=MEASURE,
        variants=_variants(record),
        ablated="--ablate" in record["run"]["command"].split(),
        plots=Markup(all_figures(page)),
        health=_health(page),
        health_figures=HEALTH_FIGURES,
        facts=_facts(page),
        command=record["run"]["command"],
        notes=record["run"].get("notes", ()),
        run=_run(record["run"]),
        agents=list(record["agents"]),
        settings=_settings_of_agents(record["agents"]),
        hashes=_hashes(record["agents"]),
        # "<" could end the element that the data stand in.
        data=Markup(json.dumps(_explored(page), separators=(",", ":")).replace("<", "\\u003c")),
    )


def _title(run: Mapping[str, Any]) -> str:
    """What the page is called: the data set, the detector and the source of the data."""
    return f"{run.get('dataset', '')}, {', '.join(run.get('models', ()))}: {run.get('source', '')}"


def _explored(page: Page) -> Page:
    """Data of the episode explorer."""
    return {
        "queries": page["queries"],
        "detector": page["detector"],
        "start": page["start"],
        "agents": page["agents"],
    }


class Row(NamedTuple):
    """A row of the table of results."""

    name: str
    kind: str
    """"detector", "reference" or "agent"."""
    figures: Sequence[float]
    """In the order of the measures."""
    changes: Sequence[Mapping[str, float] | None]
    """From the detector, and where there is a pool from the pool unlearnt."""
    remark: str


def _rows(page: Page) -> list[Row]:
    """The rows of the table of results."""
    record = page["record"]
    measures, from_pool = _measures(record), _changes_from_pool(record)

    def row(name: str, kind: str, figures: Any, change: Any, remark: str = "") -> Row:
        changes = [change[measure] if change else None for measure in measures]
        if from_pool:
            changes.append(from_pool.get(name))
        return Row(name, kind, [figures[measure] for measure in measures], changes, remark)

    rows = [row(name, "detector", figures, None) for name, figures in record["detectors"].items()]
    rows += [
        row(name, "reference", said["figures"], said["change"]) for name, said in record["references"].items()
    ]
    for name, said in record["agents"].items():
        means = {measure: float(np.mean([one[measure] for one in said["figures"]])) for measure in measures}
        kept = sum(chosen == 0 for chosen in said.get("chosen_rounds", []))
        seeds = len(said["seeds"])
        remark = f"{seeds} seed{'s' if seeds > 1 else ''}"
        if kept:
            remark += f"; {kept} of {len(said['chosen_rounds'])} runs fell back to the detector"
        rows.append(row(name, "agent", means, said["change"], remark))
    return rows


def _changes_from_pool(record: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Change in mAP from the pool unlearnt, by name; nothing where there is no pool."""
    rows = {**record["references"], **record["agents"]}
    return {name: row["change_from_pool"] for name, row in rows.items() if row.get("change_from_pool")}


def _matrix(page: Page) -> list[tuple[str, list[Mapping[str, float] | None]]]:
    """Every agent's difference in `verdicts.MEASURE` from every other; [] of a single agent."""
    seeds = {agent: list(of_agent.values()) for agent, of_agent in page["agents"].items() if of_agent}
    if len(seeds) < 2:
        return []
    videos = list(page["queries"]["vid"])
    with suppress(KeyError, ValueError):  # a data set that is not registered here
        videos = list(map(get_profile(page["record"]["run"]["dataset"]).source_video, videos))
    scores = {
        agent: [
            pd.DataFrame({"video": videos, MEASURE: 100.0 * (np.array(seed["ious"]) >= 0.7)}) for seed in each
        ]
        for agent, each in seeds.items()
    }
    found: dict[tuple[str, str], Mapping[str, float]] = {}
    for one, other in combinations(scores, 2):
        change = compared(scores[one], scores[other])[MEASURE]
        found[one, other] = change._asdict()
        found[other, one] = {"mean": 0 - change.mean, "low": 0 - change.high, "high": 0 - change.low}
    return [(one, [found.get((one, other)) for other in scores]) for one in scores]


def _health(page: Page) -> list[tuple[str, list[tuple[float, float] | None]]]:
    """`HEALTH_FIGURES` of each agent: at the first and at the last evaluation, means over its trainings."""
    found = []
    for agent, trainings in page.get("health", {}).items():
        ends = [[training[at] for training in trainings if training] for at in (0, -1)]
        first, last = (mean_health(each) for each in ends)
        found.append(
            (
                agent,
                [
                    (first[name], last[name]) if name in first and name in last else None
                    for name in HEALTH_FIGURES
                ],
            )
        )
    return found


def _measures(record: Mapping[str, Any]) -> list[str]:
    """Names of the figures that a run recorded: those of its time, registered metrics among them."""
    return list(next(iter(record["detectors"].values())))


def _variants(record: Mapping[str, Any]) -> list[tuple[str, str, list[Mapping[str, float]]]]:
    """What agents of one kind differ in, and their differences from the detector."""
    agents, measures = record["agents"], _measures(record)
    kinds: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for agent, row in agents.items():
        if row.get("config"):
            settings = _settings(row["config"])
            kinds.setdefault(tuple(sorted(settings.keys() - {"unfrozen"})), {})[agent] = settings
    found = []
    for kind in kinds.values():
        (first, base), *others = kind.items()
        for agent, settings in kind.items() if others else ():
            differing = ", ".join(
                f"{name} {value}" for name, value in settings.items() if base.get(name) != value
            )
            said = differing or ("what the next ones are compared with" if agent == first else "nothing")
            found.append((agent, said, [agents[agent]["change"][measure] for measure in measures]))
    return found


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Settings by name as text; a schedule is shown as the epochs of its stages and its coefficient."""
    settings = {name: value for name, value in config.items() if name != "schedule"}
    if schedule := config.get("schedule"):
        settings["rl_coef"] = schedule.get("rl_coef")
    if lengths := stage_lengths(config):
        settings["epochs"] = " + ".join(map(str, lengths))
    return dict(_flat(settings))


def _facts(page: Page) -> dict[str, str]:
    """What the test data are."""
    queries, run = page["queries"], page["record"]["run"]
    lengths = [end - start for moments in queries["moments"] for start, end in moments]
    return {
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


def _run(run: Mapping[str, Any]) -> dict[str, str]:
    """Facts about the run that appear nowhere else on the page."""
    apart = ("command", "notes", "submission_times")  # the last is a setting
    return dict(_flat({name: value for name, value in run.items() if name not in apart}))


def _settings_of_agents(agents: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Settings by name, each with its value for every agent; empty where an agent has none of that name."""
    columns = []
    for row in agents.values():
        told = {name: row[name] for name in ("seeds", "steps", "seconds", "chosen_rounds") if name in row}
        told |= row.get("config", {})
        if frozen := row.get("frozen"):
            same = sum(tensor["after"] == [tensor["before"]] for tensor in frozen.values())
            told["frozen tensors with the same sha256 before and after"] = f"{same} of {len(frozen)}"
        columns.append(dict(_flat(told)))
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name, "") for column in columns]) for name in names]


def _hashes(agents: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of frozen tensors by agent, each once where it stayed the same; whose they are if shared."""
    shown: dict[str, str] = {}  # hashes -> the first agent that has them
    result = {}
    for agent, row in agents.items():
        if not row.get("frozen"):
            continue
        text = "\n".join(
            f"{tensor['before']}  {name}"
            + ("" if tensor["after"] == [tensor["before"]] else f"  then {', '.join(tensor['after'])}")
            for name, tensor in row["frozen"].items()
        )
        first = shown.setdefault(text, agent)
        result[agent] = text if first == agent else f"Hashes as those of {first}."
    return result


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
