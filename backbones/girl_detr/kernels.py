"""Dropout, PReLU and a recurrent network for training on a CPU, where PyTorch's cost a quarter of the step.

PyTorch draws random numbers slowly (8 ns an element), compares bytes slowly (five times as long as clamping
them), and takes five times as long for the gradient of a PReLU's slope as for that of its input. On other
devices the functions of this module call PyTorch's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

FEWEST_DROPPED, MOST_DROPPED = 1, 255  # of the 256 values of a byte
BLOCK = 1 << 16  # elements: a few such blocks fit into the cache of a core


def dropout(x: Tensor, p: float, add_to: Tensor | None = None) -> Tensor:
    """Dropout of ``x`` with probability ``p``, added to ``add_to`` of the same shape."""
    if FEWEST_DROPPED <= 256 * p <= MOST_DROPPED and x.device.type == "cpu":
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


def last_state(gru: nn.GRU, rows: Tensor, lengths: Tensor) -> Tensor:
    """State ``(B, d)`` of a one-layer ``gru`` after the first ``lengths (B,)`` of ``rows (B, L, d)``.

    PyTorch's own takes twice as long on packed sequences on a CPU: the gradient of each step there fills the
    whole sequence.
    """
    packed = pack_padded_sequence(rows, lengths.cpu(), batch_first=True, enforce_sorted=False)
    if rows.device.type != "cpu":
        last: Tensor = gru(packed)[1][0]
        return last
    input_weight, state_weight, input_bias, state_bias = gru.parameters()
    inputs = F.linear(packed.data, input_weight, input_bias)
    running = packed.batch_sizes.tolist()  # sequences that have this step, the longest first
    state, ended = rows.new_zeros(running[0], gru.hidden_size), []
    for count, step in zip(running, torch.split(inputs, running), strict=True):
        ended.append(state[count:])
        state = state[:count]
        own = F.linear(state, state_weight, state_bias)
        reset, update, new = step.chunk(3, 1)
        own_reset, own_update, own_new = own.chunk(3, 1)
        new = torch.addcmul(new, torch.sigmoid(reset + own_reset), own_new).tanh()
        state = torch.lerp(new, state, torch.sigmoid(update + own_update))
    return torch.cat([state, *reversed(ended)])[packed.unsorted_indices]


class _ByteDropout(torch.autograd.Function):
    """Dropout from one random byte per element.

    The probability is a multiple of 1/256: in each call the one below or the one above ``p``, drawn such that
    it is ``p`` on average. What is kept is scaled by that call's probability, so the expectation is exact.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, add_to: Tensor | None, p: float) -> Tensor:
        seed = int(torch.randint(2**62, ()).item())
        words = np.random.SFC64(seed).random_raw(1 + -(-x.numel() // 8))  # a third of the time of PyTorch's
        drawn = torch.from_numpy(words[1:].view(np.uint8))[: x.numel()].view(x.shape)
        dropped = min(int(p * 256 + float(words[0]) / 2**64), MOST_DROPPED)
        kept = drawn.clamp_(dropped - 1, dropped).sub_(dropped - 1)
        ctx.scale = 256 / (256 - dropped)
        ctx.save_for_backward(kept)
        return _keep(x, kept, ctx.scale, add_to)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (gradient,), (kept,) = gradients, ctx.saved_tensors
        to_x = _keep(gradient, kept, ctx.scale, None)
        return to_x, gradient if ctx.needs_input_grad[1] else None, None


def _keep(x: Tensor, kept: Tensor, scale: float, add_to: Tensor | None) -> Tensor:
    """``x`` times ``kept``, bytes 0 or 1, times ``scale``, added to ``add_to``."""
    result = kept.to(x.dtype)
    base = x.new_zeros(()) if add_to is None else add_to
    return torch.addcmul(base, x, result, value=scale, out=result)


class _SingleSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,), (x, slope) = gradients, ctx.saved_tensors
        to_x, to_slope = torch.empty_like(x), slope.new_zeros(())
        blocks = (tensor.view(-1).split(BLOCK) for tensor in (gradient.contiguous(), x, to_x))
        for outer, inner, result in zip(*blocks, strict=True):
            to_slope += torch.dot(outer, inner.clamp(max=0))
            torch.ops.aten.leaky_relu_backward.grad_input(
                outer, inner, slope.item(), False, grad_input=result
            )
        return to_x, to_slope.view_as(slope)
