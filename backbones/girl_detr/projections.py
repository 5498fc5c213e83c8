"""Input projections: features of any width to the width of the model."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmr_env.backbones.girl_detr.layers import Dropout


class ProjectionBlock(nn.Module):
    """Layer norm, dropout, linear (a 1x1 convolution over time), and ReLU if ``relu``.

    Scale and shift of the norm are folded into the linear layer, behind the dropout, which thus drops
    normalised channels and leaves the shift alone. So the gradient ends at these few weights and need not be
    carried back to the features, which are wide and need none. Without ``shared_dropout`` it drops the shift
    too, as published.
    """

    def __init__(self, inputs: int, outputs: int, p: float, relu: bool, shared_dropout: bool = True) -> None:
        super().__init__()
        self.shared_dropout = shared_dropout
        self.norm = nn.LayerNorm(inputs)
        self.dropout = Dropout(p)
        self.linear = nn.Linear(inputs, outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, L, inputs)`` to ``(B, L, outputs)``."""
        if self.training and not self.shared_dropout:
            x = self.linear(self.dropout(self.norm(x)))
            return torch.relu(x) if self.relu else x
        normalised = F.layer_norm(x, self.norm.normalized_shape, eps=self.norm.eps)
        weight = self.linear.weight * self.norm.weight
        bias = self.linear.bias + self.linear.weight @ self.norm.bias
        x = F.linear(self.dropout(normalised), weight, bias)
        return torch.relu(x) if self.relu else x


class InputProjection(nn.Sequential):
    """``blocks`` projection blocks with ReLU between them; padded rows are not special."""

    def __init__(self, inputs: int, width: int, p: float, blocks: int, shared_dropout: bool = True) -> None:
        widths = [inputs, *[width] * blocks]
        super().__init__(
            *(ProjectionBlock(widths[i], width, p, i < blocks - 1, shared_dropout) for i in range(blocks))
        )
