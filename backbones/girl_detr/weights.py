"""Freezing a model, and hashes that show that nothing of it changed."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from vmr_env.backbones.girl_detr.model import GirlDetr


def freeze(model: GirlDetr, *, train_head: bool = False) -> GirlDetr:
    """Put the model in evaluation mode and let no parameter learn, but for the head's with ``train_head``.

    Evaluation mode keeps dropout out of the frozen part; the official post-training leaves it on (Q25).
    """
    model.eval().requires_grad_(False)
    model.head.requires_grad_(train_head)
    return model


def tensor_sha256(state: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor's type, shape and bytes, by name."""
    return {name: _sha256(tensor) for name, tensor in state.items()}


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """One SHA-256 over all tensors and their names, whatever their order."""
    lines = sorted(f"{name} {digest}\n" for name, digest in tensor_sha256(state).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest.update(raw.numpy().data)
    return digest.hexdigest()
