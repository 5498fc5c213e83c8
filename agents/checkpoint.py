"""Checkpoints of resumable runs: written in one step, loaded safely, refused by any other run."""

import io
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.objects import read_sealed, write_sealed

VERSION = 1
REMEDY = "expected an undamaged checkpoint; remove it to begin anew"


def save_run(path: Path, kind: str, run: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; the file is replaced whole or left as it was.

    Args:
        path: File.
        kind: What writes it, in a word.
        run: What a run must share to continue from it: settings, seed, checksums of its data.
        state: Tensors, numbers, texts, and lists and dicts of them.

    Raises:
        DataError: It cannot be written.
    """
    content = io.BytesIO()
    torch.save({"kind": kind, "version": VERSION, "run": dict(run), "state": dict(state)}, content)
    write_sealed(path, content.getvalue())


def load_run(path: Path, kind: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """The state in a checkpoint of the same run, on the processor.

    Raises:
        DataError: The file is missing, damaged, of another kind, or of another run; differences are named.
    """
    raw = read_sealed(path, REMEDY)
    try:
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, UnpicklingError) as error:
        raise DataError(Problem(str(path), None, None, f"is no checkpoint ({error})")) from error
    if not isinstance(content, dict) or (content.get("kind"), content.get("version")) != (kind, VERSION):
        message = f"is no checkpoint of kind {kind!r}, version {VERSION}"
        raise DataError(Problem(str(path), None, None, message))
    problems = [
        Problem(
            str(path), None, key, f"{shorten(content['run'].get(key))}, expected {shorten(value)} to resume"
        )
        for key, value in run.items()
        if content["run"].get(key) != value
    ]
    if problems:
        raise DataError(problems)
    state: dict[str, Any] = content["state"]
    return state
