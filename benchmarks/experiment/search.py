"""Search of an agent's settings by Optuna, on held-out training videos alone; see `SearchOptions`."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmr_env.benchmarks.experiment.chosen_methods import methods_of
from vmr_env.benchmarks.experiment.experiment import Experiment
from vmr_env.benchmarks.experiment.main import check_all, do_runs, ended, prepared
from vmr_env.benchmarks.experiment.options import (
    Options,
    SearchOptions,
    execution_problems,
    resolved,
)
from vmr_env.benchmarks.experiment.results import figures, measures, table
from vmr_env.benchmarks.experiment.run_folder import SETTINGS_FILE, make_folder, same_or_new
from vmr_env.benchmarks.experiment.sweep import Sweep, row_options
from vmr_env.benchmarks.report.comparison import submitted, truth_of
from vmr_env.errors import DataError, MissingExtra, Problem, shorten
from vmr_env.files.text import write_text
from vmr_env.files.writing import only_writer
from vmr_env.files.yaml import read_yaml
from vmr_env.options import parse
from vmr_env.programs import run_program

if TYPE_CHECKING:
    import optuna

SEARCH_FILE = "search.json"
BEST_FILE = "best.json"
_TEST_DATA = ("test_predictions", "test_annotations", "test_cache", "select_cache")
_RANGE = {"low", "high", "log"}


@dataclass(frozen=True)
class Search:
    """What is searched."""

    method: str
    space: Mapping[str, Any]
    """Setting -> values to choose among, or low, high and perhaps log of a range."""
    options: Options


@dataclass(frozen=True)
class Trial:
    """A trial that is over."""

    number: int
    settings: Mapping[str, Any]
    value: float | None
    """None where a run failed."""


def read_search(path: Path) -> Search:
    """What a file says.

    Raises:
        DataError: with all that is wrong in it.
    """
    content = read_yaml(path)
    known = ("method", "settings", "options")
    problems = [
        Problem(str(path), None, key, f"is no part of a search; expected {', '.join(known)}")
        for key in content
        if key not in known
    ]
    method, space, values = (content.get(key) for key in known)
    if not isinstance(method, str):
        problems.append(Problem(str(path), None, "method", f"is {shorten(method)}; expected an agent"))
    if not isinstance(space, dict) or not space:
        message = f"is {shorten(space)}; expected settings with their ranges"
        problems.append(Problem(str(path), None, "settings", message))
    if not isinstance(values, dict):
        problems.append(Problem(str(path), None, "options", f"is {shorten(values)}; expected options"))
        values = {}
    for name in set(values) & set(_TEST_DATA):
        message = "is given; expected none: a search sees no data but those to learn from"
        problems.append(Problem(str(path), None, f"options.{name}", message))
    if not {"predictions", "cache"} & set(values):
        problems.append(Problem(str(path), None, "options", "has no predictions and no cache"))
    if problems:
        raise DataError(problems)
    assert isinstance(space, dict)
    options = row_options({"seeds": 1, **values, "methods": [method]}, str(path))
    return Search(str(method), {name: _range(path, name, given) for name, given in space.items()}, options)


def _range(path: Path, name: str, given: Any) -> Any:
    """Values to choose among, or a range with numbers."""
    if isinstance(given, list) and given and not any(isinstance(one, list | dict) for one in given):
        return given
    if isinstance(given, dict) and {"low", "high"} <= set(given) <= _RANGE:
        try:
            low, high = (_number(given[key]) for key in ("low", "high"))
            if low < high and (not given.get("log") or low > 0):
                return {"low": low, "high": high, "log": bool(given.get("log", False))}
        except ValueError:
            pass
    message = f"is {shorten(given)}; expected a list of values, or low < high (with log: low > 0)"
    raise DataError(Problem(str(path), None, f"settings.{name}", message))


def _number(value: Any) -> int | float:
    """A number; YAML reads those without a point, as 1e-4, as texts."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(value)
    return float(value) if isinstance(value, str) else value


def ask(trial: "optuna.Trial", space: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a trial, drawn by Optuna."""
    drawn: dict[str, Any] = {}
    for name, given in space.items():
        if isinstance(given, list):
            drawn[name] = trial.suggest_categorical(name, given)
        elif isinstance(given["low"], int) and isinstance(given["high"], int):
            drawn[name] = trial.suggest_int(name, given["low"], given["high"], log=given["log"])
        else:
            drawn[name] = trial.suggest_float(name, given["low"], given["high"], log=given["log"])
    return drawn


def carry_out(given: SearchOptions) -> bool:
    """Do the trials and write what they gave; False if interrupted.

    Raises:
        DataError: options, the file, or data cannot be used; nothing was trained then.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtra(f"{error}; a search needs `pip install vmr-env[search]`") from error

    problems = execution_problems(given)
    if given.measure not in measures():
        message = f"is {given.measure!r}, expected one of {', '.join(measures())}"
        problems.append(Problem("--measure", None, None, message))
    if problems:
        raise DataError(problems)
    search = read_search(given.file)
    options = replace(search.options, out=given.out, resume=given.resume, log=given.log)
    options = resolved(replace(options, device=given.device))
    check_all(options)
    for values in _corners(search.space):
        check_all(_with(options, search.method, values))
    make_folder(given.out, SETTINGS_FILE, given.resume)
    with only_writer(given.out):
        base = prepared(options)
        _settle(given, search)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=given.search_seed)
        )
        trials: list[Trial] = []
        finished = True
        while finished and len(trials) < given.trials:
            asked: list[tuple[int, optuna.Trial | None, dict[str, Any]]] = []
            for number in range(len(trials), min(len(trials) + given.together, given.trials)):
                trial = study.ask() if number else None
                asked.append((number, trial, {} if trial is None else ask(trial, search.space)))
            done = _try(base, options, search, given, [(number, values) for number, _, values in asked])
            finished = done is not None
            for (number, trial, values), value in zip(asked, done or (), strict=False):
                trials.append(Trial(number, values, value))
                if trial is not None:
                    state = optuna.trial.TrialState.FAIL if value is None else None
                    study.tell(trial, value, state=state)
        print(_report(given, search.method, trials))
    return finished


def _corners(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings that have each value of a list, and each end of a range, once."""
    ends = {
        name: given if isinstance(given, list) else [given["low"], given["high"]]
        for name, given in space.items()
    }
    return [{name: value} for name, values in ends.items() for value in values]


def _words(method: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings as `--set` takes them."""
    return tuple(f"{method}.{name}={json.dumps(value)}" for name, value in settings.items())


def _with(options: Options, method: str, settings: Mapping[str, Any]) -> Options:
    return replace(options, set=(*options.set, *_words(method, settings)))


def _settle(given: SearchOptions, search: Search) -> None:
    """Write down what is searched, or compare it with what an interrupted search wrote down.

    Raises:
        DataError: the interrupted search was another.
    """
    path = given.out / SEARCH_FILE
    now = {
        "method": search.method,
        "space": search.space,
        "search_seed": given.search_seed,
        "together": given.together,
        "measure": given.measure,
    }
    same_or_new(path, now, "take another --out")


def _try(
    base: Experiment,
    options: Options,
    search: Search,
    given: SearchOptions,
    asked: Sequence[tuple[int, Mapping[str, Any]]],
) -> list[float | None] | None:
    """Values of trials, None for those that failed; None if interrupted."""
    experiments = {}
    for number, settings in asked:
        row = f"trial-{number:04d}"
        methods = methods_of(_with(options, search.method, settings), base.folds)
        folder = given.out / "trials" / row
        experiments[row] = Experiment(folder, base.folds, methods, base.seeds, base.settings, row)
        experiments[row].check_done()
    failed = do_runs(Sweep(given.out, experiments), given)
    if failed is None:
        return None
    for run, text in failed.items():
        print(f"warning: {run.name}: failed ({text})", file=sys.stderr)
    return [value_of(experiment, given.measure) for experiment in experiments.values()]


def value_of(experiment: Experiment, measure: str) -> float | None:
    """A figure in percent over all folds, in the mean over seeds; None while a run is missing."""
    (method,) = experiment.agents
    truth, values = truth_of(experiment.folds), []
    for seed in range(experiment.seeds):
        results = experiment.results(method, seed)
        if results is None:
            return None
        answers = submitted(experiment.folds, [result.outcome.answers for result in results])
        values.append(figures(answers, truth)[measure])
    return float(np.mean(values))


def _report(given: SearchOptions, method: str, trials: Sequence[Trial]) -> str:
    """Write the table of trials and the best one's settings; returns the table, and what to do with them."""
    done = sorted(
        (trial for trial in trials if trial.value is not None), key=lambda trial: -(trial.value or 0)
    )
    rows: dict[str, dict[str, Any]] = {}
    for trial in [*done, *(trial for trial in trials if trial.value is None)]:
        value = "failed" if trial.value is None else trial.value
        rows[f"trial {trial.number}"] = {
            given.measure: value,
            "settings": " ".join(_words(method, trial.settings)) or "default",
        }
    text = table(rows) + "\n"
    write_text(given.out / "table.md", text)
    if not done:
        return f"{text}\nNo trial is done."
    best = done[0]
    words = _words(method, best.settings)
    record = {"trial": best.number, "measure": given.measure, "value": best.value, "set": list(words)}
    write_text(given.out / BEST_FILE, json.dumps(record, indent=1) + "\n")
    said = " ".join(f"--set '{word}'" for word in words) or "the default settings"
    return f"{text}\nBest: trial {best.number}, {said}. Judge it on data that no trial has seen."


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: carry out a search."""
    given = parse(SearchOptions, argv, "vmr-env bench search")
    return ended(lambda: carry_out(given), given.out)


if __name__ == "__main__":
    run_program(main)
