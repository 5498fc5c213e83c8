"""Sweeps: a table of experiments, done as one, with one report over all of them; see `SweepOptions`."""

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from vmr_env.benchmarks.experiment.experiment import Experiment, Run
from vmr_env.benchmarks.experiment.main import check_all, do_runs, ended, prepared, raise_failed, reported
from vmr_env.benchmarks.experiment.names import AGENTS, BACKBONE_METHODS
from vmr_env.benchmarks.experiment.options import (
    Execution,
    Options,
    SweepOptions,
    execution_problems,
    resolved,
)
from vmr_env.benchmarks.experiment.run_folder import SETTINGS_FILE, make_folder
from vmr_env.benchmarks.report.sweeps import ReportedRow, report_sweep
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.writing import only_writer
from vmr_env.files.yaml import read_yaml
from vmr_env.options import from_mapping, parse
from vmr_env.programs import run_program

AXES = ("data", "detectors", "settings")
"""What rows differ by, in the order of their names."""

OF_ALL = ("methods", "seeds")
"""Options that may stand beside the axes, since every sweep has them."""

ROWS = "rows"
"""Folder with the experiments, in that of the sweep."""

_NAME = re.compile(r"\w[\w.+-]*")
_NOT_OF_ROWS = ("agents", "agent", "backbone", "backbone_seed", *(one.name for one in fields(Execution)))


@dataclass(frozen=True)
class Row:
    """One experiment of a sweep: its name on each axis, empty where the file has none, and its options."""

    data: str
    detector: str
    setting: str
    options: Options

    @property
    def name(self) -> str:
        """Its name, also of its folder."""
        return "/".join(filter(None, (self.data, self.detector, self.setting)))


class Sweep:
    """Several experiments as one.

    Args:
        folder: of the sweep.
        experiments: by row.
    """

    def __init__(self, folder: Path, experiments: Mapping[str, Experiment]) -> None:
        self.folder, self.experiments = folder, experiments

    def runs(self) -> Iterator[Run]:
        """All runs, row by row."""
        for experiment in self.experiments.values():
            yield from experiment.runs()

    def of(self, run: Run) -> Experiment:
        """The experiment of the run's row."""
        return self.experiments[run.row]


def read_sweep(path: Path) -> list[Row]:
    """The rows of a table.

    Raises:
        DataError: with all that is wrong in the file.
    """
    content = read_yaml(path)
    known = (*AXES, *OF_ALL, "options")
    problems = [
        Problem(str(path), None, key, f"is no part of a sweep; expected some of {', '.join(known)}")
        for key in content
        if key not in known
    ]
    axes = [_axis(path, axis, content.get(axis), problems) for axis in AXES]
    common = content.get("options") or {}
    if not isinstance(common, dict):
        problems.append(Problem(str(path), None, "options", f"is {shorten(common)}; expected options"))
    if not any(axes):
        problems.append(Problem(str(path), None, None, f"has none of {', '.join(AXES)}; expected some"))
    if problems:
        raise DataError(problems)
    common = {key: content[key] for key in OF_ALL if key in content} | common
    rows = []
    for names in product(*(axis or {"": {}} for axis in axes)):
        data, detector, setting = names
        values = dict(common)
        for axis, name in zip(axes, names, strict=True):
            values |= axis.get(name, {})
        named = {"{data}": data, "{detector}": detector}
        where = f"{path}, {'/'.join(filter(None, names))}"
        try:
            options = row_options({key: _filled(value, named) for key, value in values.items()}, where)
            rows.append(Row(data, detector, setting, options))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return rows


def _axis(path: Path, axis: str, given: Any, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """Options of each name on an axis."""
    found = {str(name): {} for name in given} if isinstance(given, list) else {} if given is None else given
    if not isinstance(found, dict):
        message = f"is {shorten(given)}; expected names, or names with options"
        problems.append(Problem(str(path), None, axis, message))
        return {}
    if isinstance(given, list) and len(found) < len(given):
        problems.append(Problem(str(path), None, axis, f"is {shorten(given)}; expected each name once"))
    for name, values in found.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            message = f"has the name {shorten(name)}; expected letters, digits, and . _ + - between them"
            problems.append(Problem(str(path), None, axis, message))
        if values is not None and not isinstance(values, dict):
            problems.append(
                Problem(str(path), None, f"{axis}.{name}", f"is {shorten(values)}; expected options")
            )
    return {name: values or {} for name, values in found.items()}


def _filled(value: Any, named: Mapping[str, str]) -> Any:
    """A value with the names of the row in its texts."""
    if isinstance(value, list):
        return [_filled(each, named) for each in value]
    if isinstance(value, str):
        for place, name in named.items():
            value = value.replace(place, name)
    return value


def row_options(values: Mapping[str, Any], where: str) -> Options:
    """Options of the main job from values in a file, with agents of both kinds under `methods`.

    Args:
        values: by name.
        where: what to call the place in errors.

    Raises:
        DataError: with all that are unknown, of another type, or not for a file to say.
    """
    given = dict(values)
    problems = [
        Problem(where, None, name, "is no option of a row; see `vmr-env bench sweep --help`")
        for name in _NOT_OF_ROWS
        if given.pop(name, None) is not None
    ]
    methods = given.pop("methods", None)
    if methods is not None and (not isinstance(methods, list) or not methods):
        problems.append(Problem(where, None, "methods", f"is {shorten(methods)}; expected a list of agents"))
    if problems:
        raise DataError(problems)
    if methods is not None:
        ours = [name for name in methods if name in AGENTS or name in BACKBONE_METHODS]
        given |= {"agents": ours, "agent": [name for name in methods if name not in ours]}
    return from_mapping(Options, given, where)


def carry_out(given: SweepOptions, words: Sequence[str]) -> bool:
    """Check all rows, do their runs, and write the reports; False if interrupted.

    Args:
        given: the options.
        words: the command line that they come from.

    Raises:
        DataError: options, a row, or data cannot be used; nothing was trained then. Or runs failed.
    """
    if problems := execution_problems(given):
        raise DataError(problems)
    rows = [_placed(row, given) for row in read_sweep(given.file)]
    _each(rows, lambda row: check_all(row.options))
    make_folder(given.out, ROWS, given.resume)
    with only_writer(given.out):
        experiments = _each(rows, _prepared)
        sweep = Sweep(given.out, experiments)
        failed = do_runs(sweep, given)
        command = shlex.join(["vmr-env", "bench", "sweep", *(word for word in words if word != "--resume")])
        begun = []
        for row in rows:
            experiment = experiments[row.name]
            if any(map(experiment.is_done, experiment.runs())):
                reported(experiment, row.options, command)
                begun.append(ReportedRow(row.data, row.detector, row.setting, experiment))
        print(report_sweep(given.out, begun))
    raise_failed(failed or {})
    return failed is not None


def _placed(row: Row, given: SweepOptions) -> Row:
    """A row with a folder in that of the sweep, and the defaults that follow from its options."""
    out = given.out / ROWS / row.name
    resume = (out / SETTINGS_FILE).exists()
    options = replace(row.options, out=out, resume=resume, log=given.log, device=given.device)
    return replace(row, options=resolved(options))


def _prepared(row: Row) -> Experiment:
    make_folder(row.options.out, SETTINGS_FILE, row.options.resume)
    return prepared(row.options, row.name)


def _each(rows: Sequence[Row], do: Any) -> dict[str, Any]:
    """What a function gives for each row, by name.

    Raises:
        DataError: with the problems of all rows, which name theirs.
    """
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for row in rows:
        try:
            found[row.name] = do(row)
        except DataError as error:
            problems += [replace(each, where=f"{row.name}: {each.where}") for each in error.problems]
    if problems:
        raise DataError(problems)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: carry out a sweep."""
    words = list(sys.argv[1:] if argv is None else argv)
    given = parse(SweepOptions, words, "vmr-env bench sweep")
    return ended(lambda: carry_out(given, words), given.out)


if __name__ == "__main__":
    run_program(main)
