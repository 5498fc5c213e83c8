"""Dropout and PReLU for training on a CPU, where PyTorch's cost a quarter of the whole step.

PyTorch draws random numbers slowly (8 ns an element) and takes five times as long for the gradient of a
PReLU's slope as for that of its input. On other devices the functions of this module call PyTorch's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MOST_DROPPED = 255  # of the 256 values of a byte


def dropout(x: Tensor, p: float, add_to: Tensor | None = None) -> Tensor:
    """Dropout of ``x`` with probability ``p``, added to ``add_to`` of the same shape."""
    if 0 < p <= MOST_DROPPED / 256 and x.device.type == "cpu":
        apply: Callable[[Tensor, Tensor | None, float], Tensor] = _ByteDropout.apply
        return apply(x, add_to, p)
    x = F.dropout(x, p) if p > 0 else x
    return x if add_to is None else add_to + x


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """PReLU with one ``slope (1,)``."""
    if x.device.type == "cpu":
        apply: Callable[[Tensor, Tensor], Tensor] = _SingleSlope.apply
        return apply(x.contiguous(), slope)
    return F.prelu(x, slope)


class _ByteDropout(torch.autograd.Function):
    """Dropout from one random byte per element.

    The probability is a multiple of 1/256: in each call the one below or the one above ``p``, drawn such that
    it is ``p`` on average. What is kept is scaled by that call's probability, so the expectation is exact.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, add_to: Tensor | None, p: float) -> Tensor:
        seed = int(torch.randint(2**62, ()).item())
        words = np.random.SFC64(seed).random_raw(1 + -(-x.numel() // 8))  # a third of the time of PyTorch's
        drawn = torch.from_numpy(words[1:].view(np.int8))[: x.numel()].view(x.shape)
        ctx.dropped = min(int(p * 256 + float(words[0]) / 2**64), MOST_DROPPED)
        ctx.save_for_backward(drawn)
        return _keep(x, drawn, ctx.dropped, add_to)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (gradient,), (drawn,) = gradients, ctx.saved_tensors
        to_x = _keep(gradient, drawn, ctx.dropped, None)
        return to_x, gradient if ctx.needs_input_grad[1] else None, None


def _keep(x: Tensor, drawn: Tensor, dropped: int, add_to: Tensor | None) -> Tensor:
    """``x`` where its byte is not among the ``dropped`` lowest values, scaled, and added to ``add_to``."""
    kept = torch.gt(drawn, dropped - 129, out=x.new_empty(0))
    base = x.new_zeros(()) if add_to is None else add_to
    return torch.addcmul(base, x, kept, value=256 / (256 - dropped), out=kept)


class _SingleSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,), (x, slope) = gradients, ctx.saved_tensors
        to_slope = torch.dot(gradient.reshape(-1), x.clamp(max=0).view(-1))
        to_x = torch.ops.aten.leaky_relu_backward(gradient, x, slope.item(), False)
        return to_x, to_slope.view_as(slope)
