"""The folder of a run: it belongs to one run, and a run that goes on is the one that wrote it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vmr_env
from vmr_env.benchmarks.experiment.methods import Fold
from vmr_env.benchmarks.experiment.options import Options
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.objects import read_state, write_state

SETTINGS_FILE = "settings.json"
_REMEDY = "expected the settings of the run to resume; bring the file back, or take another --out"
_MAY_CHANGE = ("out", "resume", "seeds", "jobs", "cluster", "cpus_per_run", "gpus_per_run", "device")
"""Options that may have other values when a run goes on."""
_BY_CONTENT = (
    *("predictions", "annotations", "test_predictions", "test_annotations"),
    *("cache", "test_cache", "select_cache", "weights"),
)
"""Options whose files may lie elsewhere when a run goes on: their content is compared, as `data`."""


def make_folder(out: Path, mark: str, resume: bool) -> None:
    """The folder of results; those of another run stay untouched.

    Args:
        out: the folder.
        mark: name in it that is there when a run has begun.
        resume: whether to go on with a run in it.

    Raises:
        DataError: it has results that are not to be resumed, or none that are, or it cannot be made.
    """
    if (out / mark).exists() and not resume:
        message = f"{out} has a run already, expected --resume or another --out"
        raise DataError(Problem("--out", None, None, message))
    if resume and not (out.is_dir() and any(out.iterdir())):
        message = f"{out} has no run, expected the folder of an interrupted one"
        raise DataError(Problem("--resume", None, None, message))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot be made ({error.strerror}), expected a folder to write to"
        raise DataError(Problem("--out", None, None, f"{out} {message}")) from error


def settle(options: Options, folds: Sequence[Fold]) -> None:
    """Write down what the run is of, or compare it with what an interrupted run wrote down.

    Raises:
        DataError: the interrupted run was another.
    """
    caches = [cache for fold in folds for cache in (fold.train, fold.test, fold.select) if cache is not None]
    data = [{key: cache.manifest[key] for key in ("files", "backbone", "models")} for cache in caches]
    given = {name: value for name, value in asdict(options).items() if name not in _MAY_CHANGE + _BY_CONTENT}
    now: dict[str, Any] = {name: _text(value) for name, value in sorted(given.items())}
    now["data"] = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    now["versions"] = f"vmr_env {vmr_env.__version__}, torch {torch.__version__}, numpy {np.__version__}"
    path = options.out / SETTINGS_FILE
    if not path.exists() and any((options.out / "runs").glob("*")):
        message = f"is missing, and without it nobody knows what the runs are of; {_REMEDY}"
        raise DataError(Problem(str(path), None, None, message))
    same_or_new(path, now, _REMEDY)


def same_or_new(path: Path, now: Mapping[str, Any], remedy: str) -> None:
    """Write down what is done here, or compare it with what an interrupted run or search wrote down.

    Args:
        path: the state file; its folder exists.
        now: what must be the same to go on.
        remedy: what to do where the file is damaged.

    Raises:
        DataError: the file is damaged, or the interrupted one was another.
    """
    if not path.exists():
        write_state(path, now)
        return
    before = read_state(path, remedy)
    problems = [
        Problem(str(path), None, key, f"was {shorten(before.get(key))}, expected {shorten(value)} to resume")
        for key, value in now.items()
        if before.get(key) != value
    ]
    if problems:
        raise DataError(problems)


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
