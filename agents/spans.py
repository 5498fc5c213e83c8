"""Overlap of spans as tensors; `vmr_env.metrics.spans` has it for arrays."""

import torch
from torch import Tensor


def tiou(a: Tensor, b: Tensor) -> Tensor:
    """Temporal intersection over union of spans ``(..., 2)`` as [start, end], broadcast.

    Two empty spans have a tIoU of 0.
    """
    (start, end), (low, high) = a.unbind(-1), b.unbind(-1)
    common = (torch.minimum(end, high) - torch.maximum(start, low)).clamp(min=0)
    return common / (end - start + high - low - common).clamp(min=1e-6)
