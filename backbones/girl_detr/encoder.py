"""Encoder: self-attention over a global token and the clips."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.layers import Attention, Dropout, FeedForward, recomputed, residual


class Memory(NamedTuple):
    """Output of the encoder for a video and a text."""

    clips: Tensor  # (B, Lv, d)
    whole: Tensor  # (B, d): the global token


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with residual and norm."""

    def __init__(self, config: GirlDetrConfig) -> None:
        super().__init__()
        width, p = config.hidden_dim, config.dropout
        self.pre_norm = config.pre_norm
        shared = config.repaired("shared_dropout")
        self.attention = Attention(width, config.nheads, p, shared)
        self.feed_forward = FeedForward(width, config.dim_feedforward, p, shared)
        self.dropout = Dropout(p)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Map ``x (B, L, d)`` to the same shape; ``visible`` as in `attend`."""

        def attend(y: Tensor) -> Tensor:
            placed = y + positions
            return cast(Tensor, self.attention(placed, placed, y, visible))

        x = residual(x, attend, self.norm1, self.pre_norm, self.dropout)
        return residual(x, self.feed_forward, self.norm2, self.pre_norm, self.dropout)


class Encoder(nn.Module):
    """Encoder layers over ``[global token, clips]``; the text is not part of the sequence."""

    def __init__(self, config: GirlDetrConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.global_token = nn.Parameter(torch.randn(width))
        self.global_position = nn.Parameter(torch.randn(width))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.enc_layers))
        self.norm = nn.LayerNorm(width) if config.pre_norm else nn.Identity()

    def forward(self, clips: Tensor, positions: Tensor, mask: Tensor, recompute: bool) -> Memory:
        """Encode ``clips (B, Lv, d)`` with ``positions (B, Lv, d)`` and ``mask (B, Lv)``, 1 = valid."""
        x = _prepend(self.global_token, clips)
        places = _prepend(self.global_position, positions)
        visible = torch.cat((mask.new_ones(len(mask), 1), mask), 1).bool()[:, None, None]
        for layer in self.layers:
            x = recomputed(layer, recompute, x, places, visible)
        x = self.norm(x)
        return Memory(clips=x[:, 1:], whole=x[:, 0])


def _prepend(row: Tensor, rows: Tensor) -> Tensor:
    return torch.cat((row.expand(len(rows), 1, -1), rows), 1)
