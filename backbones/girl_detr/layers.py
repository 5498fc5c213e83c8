"""Small building blocks that several parts of the model share."""

import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class MLP(nn.Module):
    """``layers`` linear layers of widths ``inputs -> hidden -> ... -> outputs`` with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., inputs)`` to ``(..., outputs)``."""
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return cast(Tensor, self.layers[-1](x))

    def zero_last_layer(self) -> None:
        """Make the output 0, whatever the input."""
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)


def inverse_sigmoid(x: Tensor, floor: float = 1e-3) -> Tensor:
    """Logit of ``x`` clamped to [0, 1]; ``floor`` bounds numerator and denominator, so it stays finite."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=floor) / (1 - x).clamp(min=floor))


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout; on a CPU from 16-bit random numbers, at a fifth of PyTorch's cost (p is off by up to 1e-5)."""
    if not training or p == 0:
        return x
    if x.is_cuda:
        return F.dropout(x, p)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    keep = torch.gt(bits, round(p * 2**16) - 2**15 - 1, out=torch.empty(0, dtype=x.dtype, device=x.device))
    return x * keep.mul_(1 / (1 - p))


class Dropout(nn.Module):
    """Zeroes each element with probability ``p`` in training and scales the others by ``1 / (1 - p)``."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``."""
        return dropout(x, self.p, self.training)


class _SingleSlope(torch.autograd.Function):
    """PReLU with one slope; on a CPU PyTorch's own backward pass takes five times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        (gradient,) = gradients
        to_slope = torch.dot(gradient.reshape(-1), x.clamp(max=0).view(-1))
        to_x = torch.ops.aten.leaky_relu_backward(gradient, x, slope.item(), False)
        return to_x, to_slope.view_as(slope)


class PReLU(nn.PReLU):
    """PReLU with one learned slope."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``."""
        if x.is_cuda:
            return super().forward(x)
        apply: Callable[[Tensor, Tensor], Tensor] = _SingleSlope.apply
        return apply(x.contiguous(), self.weight)


class FeedForward(nn.Module):
    """Linear to ``inner`` channels, PReLU, dropout, linear back."""

    def __init__(self, width: int, inner: int, p: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, inner)
        self.activation = PReLU()
        self.linear2 = nn.Linear(inner, width)
        self.dropout = Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to the same shape."""
        return cast(Tensor, self.linear2(self.dropout(self.activation(self.linear1(x)))))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``(B, L, C)`` to ``(B, heads, L, C / heads)``."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, p: float = 0.0) -> Tensor:
    """Scaled dot-product attention with dropout ``p`` on its weights.

    Args:
        query: ``(B, H, Lq, E)``.
        key: ``(B, H, Lk, E)``.
        value: ``(B, H, Lk, Ev)``.
        visible: bool, broadcastable to ``(B, H, Lq, Lk)``, False hides a key from a query; None hides none.
        p: dropout probability, 0 outside training.

    Returns:
        ``(B, Lq, H * Ev)``, heads side by side.
    """
    if p == 0 or query.is_cuda:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=p)
    else:  # the CPU kernel without dropout is no use here, and PyTorch's fallback draws its dropout slowly
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if visible is not None:
            scores = scores + torch.zeros_like(visible, dtype=scores.dtype).masked_fill_(~visible, -torch.inf)
        mixed = dropout(scores.softmax(-1), p, True) @ value
    return mixed.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head attention with packed input projections, as `torch.nn.MultiheadAttention`, batch first."""

    def __init__(self, width: int, heads: int, p: float) -> None:
        super().__init__()
        self.heads = heads
        self.p = p
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
        """Attend from ``query (B, Lq, d)`` to ``key``, ``value (B, Lk, d)``; ``visible`` as in `attend`."""
        inputs = (query, key, value)
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            split_heads(F.linear(x, weight, bias), self.heads)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        return cast(Tensor, self.out_proj(attend(q, k, v, visible, self.p if self.training else 0.0)))


def residual(x: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module, pre_norm: bool) -> Tensor:
    """``x`` plus what ``branch`` makes of it; normalised after the sum, or before the branch."""
    if pre_norm:
        return x + branch(norm(x))
    return cast(Tensor, norm(x + branch(x)))


def recomputed(module: Callable[..., Tensor], recompute: bool, *inputs: Any) -> Tensor:
    """``module(*inputs)``; with ``recompute``, activations are computed again for the gradient."""
    if recompute:
        return cast(Tensor, checkpoint(module, *inputs, use_reentrant=False))
    return module(*inputs)
