"""Sine positions of clips and of spans, and learned positions of text tokens."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from vmr_env.backbones.girl_detr.layers import Dropout

TEMPERATURE = 10000.0


def sine_embedding(x: Tensor, width: int) -> Tensor:
    """Angles ``x (...)`` to ``(..., width)``: channel 2k is sin(x / 10000^(2k / width)), 2k + 1 its cos."""
    exponents = torch.arange(0, width, 2, dtype=x.dtype, device=x.device) / width
    angles = x[..., None] / TEMPERATURE**exponents
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)


def clip_positions(mask: Tensor, width: int) -> Tensor:
    """Positions ``(B, Lv, width)`` of clips with ``mask (B, Lv)``, 1 = valid.

    A full turn over the valid clips of each sample; padded clips keep the position of the last valid one.
    """
    counts = mask.cumsum(1)
    return sine_embedding(2 * math.pi * counts / (counts[:, -1:] + 1e-6), width)


def span_positions(spans: Tensor, width: int) -> Tensor:
    """Positions ``(..., width)`` of spans ``(..., 2)``: half the channels for each coordinate."""
    return sine_embedding(2 * math.pi * spans, width // 2).flatten(-2)


class TextPositions(nn.Module):
    """A learned position for each of the first ``length`` tokens, added before a normalisation."""

    def __init__(self, length: int, width: int, p: float) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(p)

    def forward(self, text: Tensor) -> Tensor:
        """Positions ``(B, Lt, d)`` of ``text (B, Lt, d)``."""
        return cast(Tensor, self.dropout(self.norm(text + self.embeddings.weight[: text.shape[1]])))
