"""Small building blocks that several parts of the model share."""

import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vmr_env.backbones.girl_detr.kernels import dropout, prelu

SHORTEST = 1e-8  # length of a vector that a cosine divides by


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


def cosine(rows: Tensor, row: Tensor) -> Tensor:
    """Cosine ``(B, L)`` of each of ``rows (B, L, d)`` with ``row (B, d)``; 0 for rows of zeros.

    `torch.nn.functional.cosine_similarity` would scale all the rows first.
    """
    lengths: Tensor = rows.norm(dim=-1).clamp(min=SHORTEST) * row.norm(dim=-1, keepdim=True).clamp(
        min=SHORTEST
    )
    return (rows @ row[..., None]).squeeze(-1) / lengths


class Dropout(nn.Module):
    """Zeroes each element with probability ``p`` in training and scales the others by ``1 / (1 - p)``."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    @property
    def active(self) -> float:
        """The probability at present: 0 outside training."""
        return self.p if self.training else 0.0

    def forward(self, x: Tensor, add_to: Tensor | None = None) -> Tensor:
        """Same shape as ``x``; the sum with ``add_to``, if given."""
        return dropout(x, self.active, add_to)


class FeedForward(nn.Module):
    """Linear to ``inner`` channels, PReLU, dropout, linear back.

    With ``shared_dropout``, dropout takes the same channels from all rows of a batch, so they need not be
    computed; otherwise, as published, it is drawn for each element.
    """

    def __init__(self, width: int, inner: int, p: float, shared_dropout: bool = True) -> None:
        super().__init__()
        self.shared_dropout = shared_dropout
        self.dropout = Dropout(p)
        self.linear1 = nn.Linear(width, inner)
        self.activation = nn.PReLU()
        self.linear2 = nn.Linear(inner, width)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to the same shape."""
        weight1, bias1, weight2 = self._weights()
        inner = prelu(F.linear(x, weight1, bias1), self.activation.weight)
        if not self.shared_dropout:
            inner = self.dropout(inner)
        return F.linear(inner, weight2, self.linear2.bias)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and bias to the inner channels and weights from there, without the dropped ones."""
        weight1, bias1, weight2 = self.linear1.weight, self.linear1.bias, self.linear2.weight
        if not (self.shared_dropout and self.training) or self.p == 0:
            return weight1, bias1, weight2
        count = len(bias1)
        kept = torch.randperm(count, device=bias1.device)[: kept_channels(count, self.p)]
        weight2 = weight2.index_select(1, kept) * (count / len(kept))
        return weight1.index_select(0, kept), bias1.index_select(0, kept), weight2


def kept_channels(count: int, p: float) -> int:
    """How many of ``count`` channels remain without a share ``p``: at least one.

    Of many channels a multiple of 16, as many as a vector register holds; other widths take a tenth longer.
    """
    step = 16 if count >= 512 else 1
    return max(1, step * round(count * (1 - p) / step))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``(B, L, C)`` to ``(B, heads, L, C / heads)``."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, p: float = 0.0, shared: bool = True
) -> Tensor:
    """Scaled dot-product attention with dropout.

    If ``shared``, each head drops a key with probability ``p`` for all queries of the sample at once, which
    is dropout of the values. Dropping each weight by itself, as published, needs all the weights in memory,
    and PyTorch's fast kernel for CPUs cannot do it.

    Args:
        query: ``(B, H, Lq, E)``.
        key: ``(B, H, Lk, E)``.
        value: ``(B, H, Lk, Ev)``.
        visible: bool, broadcastable to ``(B, H, Lq, Lk)``, False hides a key from a query; None hides none.
        p: dropout probability, 0 outside training.
        shared: whether all queries lose the same keys.

    Returns:
        ``(B, Lq, H * Ev)``, heads side by side.
    """
    if p > 0 and not shared:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        return (dropout(scores.softmax(-1), p) @ value).transpose(1, 2).flatten(2)
    if p > 0:
        value = value * dropout(value.new_ones(*value.shape[:3], 1), p)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    return mixed.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head attention with packed input projections, as `torch.nn.MultiheadAttention`, batch first."""

    def __init__(self, width: int, heads: int, p: float, shared_dropout: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.p = p
        self.shared_dropout = shared_dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
        """Attend from ``query (B, Lq, d)`` to ``key``, ``value (B, Lk, d)``; ``visible`` as in `attend`."""
        return cast(Tensor, self.out_proj(self.mix(query, key, value, visible)))

    def mix(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
        """The values mixed in each head, before the last projection of `forward`."""
        q, k, v = (split_heads(x, self.heads) for x in self._project(query, key, value))
        return attend(q, k, v, visible, self.p if self.training else 0.0, self.shared_dropout)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Each input by its part of the packed projection; parts that share an input are done at once."""
        inputs, shares = [query, key, value], [1, 1, 1]
        if key is value:
            inputs, shares = [query, key], [1, 2]
        elif query is key:
            inputs, shares = [query, value], [2, 1]
        sizes = [share * query.shape[-1] for share in shares]
        weights, biases = torch.split(self.in_proj_weight, sizes), torch.split(self.in_proj_bias, sizes)
        return tuple(
            part
            for x, weight, bias, share in zip(inputs, weights, biases, shares, strict=True)
            for part in F.linear(x, weight, bias).chunk(share, -1)
        )


def residual(
    x: Tensor,
    branch: Callable[[Tensor], Tensor],
    norm: nn.Module,
    pre_norm: bool,
    add: Callable[[Tensor, Tensor], Tensor] = torch.add,
) -> Tensor:
    """``x`` plus what ``branch`` makes of it; normalised after the sum, or before the branch.

    ``add(branch(x), x)`` makes the sum: a `Dropout`, or plain addition.
    """
    if pre_norm:
        return add(branch(norm(x)), x)
    return cast(Tensor, norm(add(branch(x), x)))


def recomputed(module: Callable[..., Any], recompute: bool, *inputs: Any) -> Any:
    """``module(*inputs)``; with ``recompute``, activations are computed again for the gradient."""
    return checkpoint(module, *inputs, use_reentrant=False) if recompute else module(*inputs)
