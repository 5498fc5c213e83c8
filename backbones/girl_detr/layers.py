"""Small building blocks that several parts of the model share."""

from typing import cast

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """``layers`` linear layers of widths ``inputs -> hidden -> ... -> outputs`` with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., inputs)`` to ``(..., outputs)``."""
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return cast(Tensor, self.layers[-1](x))


def inverse_sigmoid(x: Tensor, floor: float = 1e-3) -> Tensor:
    """Logit of ``x`` clamped to [0, 1]; ``floor`` bounds numerator and denominator, so it stays finite."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=floor) / (1 - x).clamp(min=floor))
