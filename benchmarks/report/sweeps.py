"""The report of a sweep: one table over all its rows, and what agents change in the mean over detectors.

In the folder of the sweep: `table.md`, `report.html`, `combined/` with what `combine` writes of rows that
differ by their detector only, and `sweep.json`, a list with an object for each line:

    data, detector, setting, agent    of the row; `agent` is null for the detector itself
    seeds      that are done
    figures    measure -> mean over seeds, percent
    change     measure -> {mean, low, high}, percent points; null for the detector
    report     page of the row, relative to the folder
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vmr_env.benchmarks.experiment.experiment import Experiment
from vmr_env.benchmarks.experiment.results import Difference, measures, table
from vmr_env.benchmarks.report import plots
from vmr_env.benchmarks.report.combine import combine, read_record
from vmr_env.benchmarks.report.comparison import truth_of
from vmr_env.benchmarks.report.html import REPORT_FILE
from vmr_env.benchmarks.report.verdicts import MEASURE
from vmr_env.data.profiles import get_profile
from vmr_env.files.text import write_text

COMBINED = "combined"

Line = dict[str, Any]


class ReportedRow(NamedTuple):
    """A row that has its own report, in the folder of its experiment."""

    data: str
    detector: str
    setting: str
    experiment: Experiment


def sweep_lines(out: Path, rows: Sequence[ReportedRow]) -> list[Line]:
    """The lines of the table.

    Args:
        out: folder of the sweep.
        rows: those that have results.

    Raises:
        DataError: a row has no results.
    """
    lines: list[Line] = []
    for data, detector, setting, experiment in rows:
        folder = experiment.folder
        record = read_record(folder)
        of_row = {
            "data": data,
            "detector": detector,
            "setting": setting,
            "report": (folder / REPORT_FILE).relative_to(out).as_posix(),
        }
        name, figures = next(iter(record["detectors"].items()))
        lines.append({**of_row, "agent": None, "seeds": 0, "figures": figures, "change": None, "name": name})
        for agent, said in record["agents"].items():
            figures = {
                measure: float(np.mean([one[measure] for one in said["figures"]])) for measure in measures()
            }
            lines.append(
                {
                    **of_row,
                    "agent": agent,
                    "seeds": len(said["seeds"]),
                    "figures": figures,
                    "change": said["change"],
                    "name": agent,
                }
            )
    return lines


def report_sweep(out: Path, rows: Sequence[ReportedRow]) -> str:
    """Write the report of a sweep; returns the table.

    Args:
        out: folder of the sweep.
        rows: see `sweep_lines`.
    """
    lines = sweep_lines(out, rows)
    text = table({_label(line): _cells(line) for line in lines}) if lines else "No run is done."
    text += "\n\nΔ are differences from the detector of the row, with 95 % intervals over videos and seeds.\n"
    for (data, setting), group in _groups(rows).items():
        folder = out / COMBINED / "/".join(filter(None, (data, setting)))
        experiment = group[0].experiment
        profile = get_profile(experiment.folds[0].test.manifest["dataset"])
        combined = combine(
            [row.experiment.folder for row in group], truth_of(experiment.folds), profile, folder
        )
        name = " / ".join(filter(None, (data, setting))) or "all rows"
        text += f"\nMeans over the detectors of {name}, which stand under `backbones`:\n\n{combined}"
    write_text(out / "table.md", text)
    write_text(out / "sweep.json", json.dumps(lines, indent=1) + "\n")
    write_text(out / REPORT_FILE, _page(lines))
    return f"{text}\nReport: {out / REPORT_FILE}"


def _groups(rows: Sequence[ReportedRow]) -> dict[tuple[str, str], list[ReportedRow]]:
    """Rows that differ by their detector only and answer the same queries, by data and setting."""
    groups: dict[tuple[str, str], list[ReportedRow]] = {}
    for row in rows:
        groups.setdefault((row.data, row.setting), []).append(row)
    return {
        key: group
        for key, group in groups.items()
        if len(group) > 1 and len({_queries(row.experiment) for row in group}) == 1
    }


def _queries(experiment: Experiment) -> tuple[tuple[str, str, str], ...]:
    """Test queries with their videos and moments."""
    rows = truth_of(experiment.folds)
    return tuple(sorted((str(row.qid), row.vid, str(row.moments.tolist())) for row in rows))


def _label(line: Line) -> str:
    return " / ".join(filter(None, (line["data"], line["detector"], line["setting"], line["name"])))


def _cells(line: Line) -> dict[str, Any]:
    cells: dict[str, Any] = dict(line["figures"])
    if line["change"] is not None:
        cells |= {f"Δ {measure}": Difference(**line["change"][measure]) for measure in measures()}
        cells["seeds"] = str(line["seeds"])
    return cells


def _page(lines: Sequence[Line]) -> str:
    """The page: the table, and a figure for each data set."""
    folder = files("vmr_env.benchmarks.report") / "templates"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string((folder / "sweep.html").read_text("utf-8")).render(
        style=Markup((folder / "report.css").read_text("utf-8")),
        measures=measures(),
        lines=lines,
        figures={
            data: Markup(_figure(data, lines)) for data in dict.fromkeys(line["data"] for line in lines)
        },
    )


def _figure(data: str, lines: Sequence[Line]) -> str:
    """What agents change on one data set, a colour for each agent."""
    learnt = [line for line in lines if line["data"] == data and line["change"] is not None]
    agents = list(dict.fromkeys(line["agent"] for line in lines if line["agent"]))
    named = {
        " / ".join(filter(None, (line["detector"], line["setting"], line["agent"]))): line for line in learnt
    }
    if not named:
        return ""
    classes = {name: plots.series(1 + agents.index(line["agent"])) for name, line in named.items()}
    return plots.differences(
        {name: line["change"][MEASURE] for name, line in named.items()}, classes, MEASURE
    )
