"""A trained ensemble in one file: tensors as safetensors, everything else as JSON in the file's header.

The header's entry "ensemble" is a JSON object:

    run      how it came to be: seed, settings, versions, data set
    options  arguments of the environments under which it acts
    members  for each its "class" (`module:Class`), "config" (settings, or null), "width" (of observations)
             and "state" (`vmr_env.agents.base.Agent.state_dict`)

In a state, {"tensor": name} and {"array": name} represent tensors and NumPy arrays, {"dict": [[key, value],
…]} for a dict and {"list": […]} for a list. The file is one of `vmr_env.agents.tensors`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmr_env.agents.base import Agent, agent_class
from vmr_env.agents.ensemble.cross_fitting import CrossFittedEnsemble, training_environment
from vmr_env.agents.tensors import read_tensors, write_tensors
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import PathLike


def save_ensemble(
    path: Path, ensemble: CrossFittedEnsemble, cache: DecoderStateCache, run: Mapping[str, Any]
) -> None:
    """Keep a trained ensemble in one file, written in one step.

    Args:
        path: the file.
        ensemble: what to keep.
        cache: what it was trained on.
        run: how it came to be: seed, settings, versions.

    Raises:
        DataError: the file cannot be written.
        TypeError: a member's state holds what is neither tensor, array, number, text, dict nor list.
    """
    tensors: dict[str, Tensor] = {}
    content = {
        "run": {**run, "dataset": cache.manifest["dataset"]},
        "options": ensemble.options,
        "members": [_described(member, tensors) for member in ensemble.members],
    }
    write_tensors(path, tensors, {"ensemble": json.dumps(content)})


def load_ensemble(path: PathLike, cache: DecoderStateCache, device: str = "cpu") -> CrossFittedEnsemble:
    """An ensemble from its file; `refine(ensemble.act, cache, samples, ensemble.options)` applies it.

    Args:
        path: the file. It names the classes of the members, which are imported.
        cache: of the same data set, with the same kinds of observations.
        device: torch device where its networks act, wherever they have learnt.

    Raises:
        DataError: the file is no ensemble's or damaged, a class in it is no agent's, or the cache does not
            fit.
    """
    content, tensors = _read(Path(path))
    dataset = content["run"]["dataset"]
    if dataset != cache.manifest["dataset"]:
        message = f"is {dataset!r}, expected {cache.manifest['dataset']!r} as in {cache.path}"
        raise DataError(Problem(str(path), None, "dataset", message))
    members = [
        _member(kept, seed, cache, content["options"], tensors, str(path))
        for seed, kept in enumerate(content["members"])
    ]
    for member in members:
        member.to(device)
    return CrossFittedEnsemble(members, content["options"])


def ensemble_run(path: PathLike) -> dict[str, Any]:
    """How the ensemble in a file came to be: seed, settings, versions, data set; errors as of
    `load_ensemble`."""
    content, _ = _read(Path(path))
    run: dict[str, Any] = content["run"]
    return run | {"options": content["options"]}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header, tensors = read_tensors(path, "ensemble")
    if "ensemble" not in header:
        message = (
            "holds no ensemble, expected what `save_ensemble` wrote (`vmr-env graft` takes detectors' heads)"
        )
        raise DataError(Problem(str(path), None, None, message))
    content: dict[str, Any] = json.loads(header["ensemble"])
    return content, tensors


def _described(member: Agent, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A member for the JSON part; its tensors are added to the others."""
    config = getattr(member, "config", None)
    state = member.state_dict()
    if "curriculum" in state:  # it is a matter of learning, and the ensemble has learnt
        state = {**state, "curriculum": None}
    return {
        "class": f"{type(member).__module__}:{type(member).__qualname__}",
        "config": asdict(config) if is_dataclass(config) and not isinstance(config, type) else None,
        "width": member.env.observer.width,
        "state": _plain(state, tensors),
    }


def _member(
    kept: Mapping[str, Any],
    seed: int,
    cache: DecoderStateCache,
    options: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    where: str,
) -> Agent:
    """An agent from its description."""
    try:
        make: Any = agent_class(kept["class"])
    except ValueError as error:
        raise DataError(Problem(where, None, "class", str(error))) from error
    env = training_environment(make, cache, np.arange(len(cache)), options)
    if env.observer.width != kept["width"]:
        message = f"is {env.observer.width} with {cache.path}, expected {kept['width']} numbers each"
        raise DataError(Problem(where, None, "width", message))
    try:
        if kept["config"] is None:
            agent: Agent = make(env, seed)
        else:
            settings = {name: tuple(v) if isinstance(v, list) else v for name, v in kept["config"].items()}
            agent = make(env, seed, make.config_class(**settings))
        agent.load_state_dict(_restored(kept["state"], tensors))
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        message = f"does not fit {kept['class']}, expected that of the version that wrote it"
        raise DataError(Problem(where, None, "state", f"{message} ({shorten(str(error))})")) from error
    return agent


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A part of a state as JSON; its tensors are added to the others."""
    if isinstance(value, (Tensor, np.ndarray)):
        name = str(len(tensors))
        kind = "tensor" if isinstance(value, Tensor) else "array"
        found = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        tensors[name] = found.detach().cpu().clone().contiguous()
        return {kind: name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {"dict": [[_plain(key, tensors), _plain(part, tensors)] for key, part in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_plain(part, tensors) for part in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"state holds {shorten(value)}, expected tensors, arrays, numbers, text, dicts and lists")


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The part of a state that `_plain` wrote."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {_restored(key, tensors): _restored(part, tensors) for key, part in content}
    if kind == "list":
        return [_restored(part, tensors) for part in content]
    return tensors[content].numpy() if kind == "array" else tensors[content]
