"""Tensors on disk: safetensors whose header carries, as "sha256", a hash of all that the file holds."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vmr_env.errors import DataError, Problem
from vmr_env.files.writing import write_bytes, writing_errors

_DIGEST = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Write tensors, contiguous and on the CPU, in one step.

    Args:
        path: the file.
        tensors: by name.
        header: texts to keep beside them.

    Raises:
        DataError: the file cannot be written.
    """
    texts = dict(header or {})
    with writing_errors(path):
        write_bytes(path, save(dict(tensors), texts | {_DIGEST: _sha256(texts, tensors)}))


def read_tensors(path: Path, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors that `write_tensors` wrote.

    Args:
        path: the file.
        what: what it should hold, in a word for the error.

    Raises:
        DataError: the file cannot be read, carries no hash, or holds something else than what was written.
    """
    try:
        with safe_open(path, "pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        message = f"cannot be read ({error}); expected a kept {what}"
        raise DataError(Problem(str(path), None, None, message)) from error
    digest = header.pop(_DIGEST, None)
    if digest is None:
        message = f"holds no {what} with a hash of its content"
        raise DataError(Problem(str(path), None, _DIGEST, message))
    if digest != _sha256(header, tensors):
        message = "is damaged: its hash is another than that of its content"
        raise DataError(Problem(str(path), None, _DIGEST, message))
    return header, tensors


def _sha256(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256("".join(header[name] for name in sorted(header)).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
