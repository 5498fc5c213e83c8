"""Input projections: features of any width to the width of the model."""

from typing import cast

import torch
from torch import Tensor, nn

from backbones.girl_detr.layers import Dropout


class ProjectionBlock(nn.Module):
    """Layer norm, dropout, linear (a 1x1 convolution over time), and ReLU if ``relu``."""

    def __init__(self, inputs: int, outputs: int, p: float, relu: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.dropout = Dropout(p)
        self.linear = nn.Linear(inputs, outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, L, inputs)`` to ``(B, L, outputs)``."""
        x = cast(Tensor, self.linear(self.dropout(self.norm(x))))
        return torch.relu(x) if self.relu else x


class InputProjection(nn.Sequential):
    """``blocks`` projection blocks with ReLU between them; padded rows are not special."""

    def __init__(self, inputs: int, width: int, p: float, blocks: int) -> None:
        widths = [inputs, *[width] * blocks]
        super().__init__(*(ProjectionBlock(widths[i], width, p, relu=i < blocks - 1) for i in range(blocks)))
