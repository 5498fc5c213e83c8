"""Weights on disk: our own as safetensors with a JSON config, and the official checkpoints, read safely.

Our own checkpoint is a folder. ``config.json`` holds the configuration and names the weights file beside it,
whose name has its hash. So replacing ``config.json`` is the one step that makes a new checkpoint current, and
a kill at any moment leaves the old one or the new one.
"""

import argparse
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.girl_detr.official import config_from_options, official_name
from vmr_env.backbones.girl_detr.weights import state_sha256
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.objects import read_object
from vmr_env.files.writing import write_bytes, writing_errors

PathLike = str | os.PathLike[str]

FORMAT = "girl-detr"
VERSION = 1
CONFIG_FILE = "config.json"
IOU_BRANCH = "iou_embed."


def save_checkpoint(folder: PathLike, model: GirlDetr, notes: Mapping[str, Any] | None = None) -> str:
    """Write the model to ``folder``, in place of what was there; returns the hash of its weights.

    Args:
        folder: made if missing.
        model: on any device.
        notes: anything JSON-able worth keeping, such as the data set and the epoch.
    """
    folder = Path(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    digest = state_sha256(state)
    weights = f"weights-{digest[:16]}.safetensors"
    described = {
        "format": FORMAT,
        "version": VERSION,
        "weights": weights,
        "sha256": digest,
        "config": model.config.to_dict(),
        "notes": dict(notes or {}),
    }
    text = json.dumps(described, indent=1)
    with writing_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / weights, save(state))
        write_bytes(folder / CONFIG_FILE, text.encode())
        for old in folder.glob("weights-*.safetensors"):
            if old.name != weights:
                old.unlink(missing_ok=True)
    return digest


def load_checkpoint(folder: PathLike) -> GirlDetr:
    """The model saved in ``folder``, on the CPU, in evaluation mode; `DataError` where anything is amiss."""
    folder = Path(folder)
    described = read_manifest(folder)
    config = GirlDetrConfig.from_dict(described["config"], str(folder / CONFIG_FILE))
    path = folder / described["weights"]
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _bad(path, f"no readable safetensors file ({error})") from error
    model = _empty_model(config)
    _fill(model, state, {name: name for name in model.state_dict()}, path)
    digest = state_sha256(model.state_dict())
    if digest != described["sha256"]:
        raise _bad(path, f"weights hash to {digest}; {CONFIG_FILE} says {described['sha256']}")
    return model.eval()


def read_manifest(folder: PathLike) -> dict[str, Any]:
    """Contents of a checkpoint's ``config.json``: ``config``, ``weights``, ``sha256`` and ``notes``."""
    path = Path(folder) / CONFIG_FILE
    described = read_object(path)
    if described.get("format") != FORMAT or described.get("version") != VERSION:
        found = f"format {described.get('format')!r}, version {described.get('version')!r}"
        raise _bad(path, f"{found}; expected {FORMAT!r}, version {VERSION}")
    kinds = {"config": dict, "weights": str, "sha256": str, "notes": dict}
    problems = [
        Problem(str(path), None, name, f"{shorten(described.get(name))}; expected {kind.__name__}")
        for name, kind in kinds.items()
        if not isinstance(described.get(name), kind)
    ]
    if not problems and Path(described["weights"]).name != described["weights"]:
        problems = [
            Problem(str(path), None, "weights", f"{described['weights']!r}; expected a plain file name")
        ]
    if problems:
        raise DataError(problems)
    return described


def load_official(
    path: PathLike,
    *,
    options: PathLike | None = None,
    repairs: frozenset[str] = frozenset(),
    weights: str = "model",
    allow_missing_iou: bool = False,
) -> GirlDetr:
    """The model of an official checkpoint (`model_best.ckpt` or the merged form), on the CPU, for evaluation.

    The file can run no code: it is unpickled as weights only, with `argparse.Namespace` and `torch.device` as
    the only types allowed beyond PyTorch's own.

    Args:
        path: the checkpoint.
        options: an `opt.json`, in place of the options inside the checkpoint.
        repairs: names from `config.REPAIRS` to make, such as ``cmi_masks`` and ``sentence_padding``, with
            which predictions do not depend on the batch. Those that change parameters do not fit the weights.
        weights: ``model`` (the moving average, where there is one) or ``model_raw``.
        allow_missing_iou: accept a checkpoint whose ``iou_embed.*`` was removed, as a tool of theirs does;
            the IoU branch then gives 0.5 for everything.
    """
    content = _unpickle(Path(path))
    state = _official_state(content, weights, path)
    found = _official_options(content, options, path)
    config = config_from_options(found.values, found.where, adds_tef=found.adds_tef)
    if repairs:
        config = replace(config, behaviour="repaired", repairs=repairs)
    if allow_missing_iou and not any(name.startswith(IOU_BRANCH) for name in state):
        state |= _silent_iou_branch(config)
    return official_model(state, config, path)


def official_options(path: PathLike, options: PathLike | None = None) -> dict[str, Any]:
    """The options of an official checkpoint by their official names; arguments as in `load_official`."""
    return _official_options(_unpickle(Path(path)), options, path).values


def official_model(state: Mapping[str, Tensor], config: GirlDetrConfig, where: PathLike) -> GirlDetr:
    """A model in evaluation mode with the tensors of ``state``, by official names; errors name ``where``."""
    model = _empty_model(config)
    _fill(model, state, {name: official_name(name, config) for name in model.state_dict()}, where)
    return model.eval()


def _silent_iou_branch(config: GirlDetrConfig) -> dict[str, Tensor]:
    """Zeros for the IoU branch, by official names."""
    head = _empty_model(config).head.state_dict()
    return {name: torch.zeros(tensor.shape) for name, tensor in head.items() if name.startswith(IOU_BRANCH)}


def _empty_model(config: GirlDetrConfig) -> GirlDetr:
    """A model whose parameters have shapes but no memory yet; a config of absurd size costs nothing."""
    with torch.device("meta"):
        return GirlDetr(config)


def _fill(model: GirlDetr, state: Mapping[str, Tensor], names: Mapping[str, str], path: PathLike) -> None:
    """Give the model the tensors of ``state``, where the parameter ``name`` is called ``names[name]``."""
    own = model.state_dict()
    filled: dict[str, Tensor] = {}
    problems = [
        Problem(os.fspath(path), None, name, "surplus: the model has no such parameter")
        for name in sorted(state.keys() - set(names.values()))
    ]
    for name, stored_name in names.items():
        tensor = state.get(stored_name)
        if tensor is None:
            message = "missing"
        elif tuple(tensor.shape) not in (tuple(own[name].shape), _as_convolution(stored_name, own[name])):
            message = f"shape {tuple(tensor.shape)}; expected {tuple(own[name].shape)}"
        elif not tensor.is_floating_point() or not tensor.isfinite().all():
            message = f"{tensor.dtype} values, not all finite; expected finite floating-point numbers"
        else:
            filled[name] = tensor.to(own[name].dtype).reshape(own[name].shape).clone()
            continue
        problems.append(Problem(os.fspath(path), None, stored_name, message))
    if problems:
        raise DataError(problems)
    model.load_state_dict(filled, assign=True)


def _as_convolution(stored_name: str, tensor: Tensor) -> tuple[int, ...]:
    """Shape of a linear layer's weight in official checkpoints that store it as a 1x1 convolution."""
    shape = tuple(tensor.shape)
    return (*shape, 1) if stored_name.endswith("conv1d.weight") else shape


def _official_state(content: Mapping[str, Any], key: str, path: PathLike) -> dict[str, Tensor]:
    state = content.get(key)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        found = shorten(sorted(map(str, content)))
        raise _bad(path, f"has {found} but no tensors by name under {key!r}; expected a GIRL-DETR checkpoint")
    return dict(state)


class _Options(NamedTuple):
    """Official options, where they were found, and whether `v_feat_dim` still lacks the endpoint channels."""

    values: dict[str, Any]
    where: str
    adds_tef: bool


def _official_options(content: Mapping[str, Any], options: PathLike | None, path: PathLike) -> _Options:
    if options is not None:
        return _Options(read_object(Path(options)), os.fspath(options), adds_tef=True)
    if isinstance(content.get("opt"), argparse.Namespace):
        return _Options(vars(content["opt"]), os.fspath(path), adds_tef=False)
    if isinstance(content.get("config"), dict):
        return _Options(content["config"], os.fspath(path), adds_tef=True)
    raise _bad(path, "has no options under 'opt' or 'config'; pass the opt.json that lies beside it")


def _bad(path: PathLike, message: str) -> DataError:
    return DataError(Problem(os.fspath(path), None, None, message))


def _unpickle(path: Path) -> dict[str, Any]:
    allowed: list[Any] = [argparse.Namespace, torch.device]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file can make the restricted unpickler raise anything
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {found[1]}" if found else type(error).__name__
        raise _bad(path, f"cannot be read as a checkpoint of tensors and options ({reason})") from error
    if not isinstance(content, dict):
        raise _bad(
            path, f"holds a {type(content).__name__}; expected a dict with 'model' and 'opt' or 'config'"
        )
    return content
