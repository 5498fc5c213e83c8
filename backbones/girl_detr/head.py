"""Detection head: from decoder states to class logits, spans and IoU estimates.

A module of its own because it is all that reinforcement learning may change: what comes before stays frozen.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vmr_env.backbones.girl_detr.layers import MLP, inverse_sigmoid

FOREGROUND = 0  # index of the foreground class in the logits; 1 is background


class Detections(NamedTuple):
    """Output of the head for each proposal."""

    logits: Tensor  # (..., Q, 2): foreground, background
    spans: Tensor  # (..., Q, 2): (centre, width) in units of the video length, each in (0, 1)
    iou: Tensor  # (..., Q): estimate of the proposal's tIoU, in (0, 1)

    @property
    def scores(self) -> Tensor:
        """Foreground probability, ``(..., Q)``."""
        return self.logits.softmax(-1)[..., FOREGROUND]


class DetectionHead(nn.Module):
    """Class, span and IoU layers, shared by all decoder layers.

    Parameter names are those of the official checkpoints: ``class_embed.{weight,bias}``,
    ``span_embed.layers.{0,1,2}.*`` and ``iou_embed.layers.{0,1,2}.*``.

    Attributes:
        width: D, of a decoder state.
    """

    span_layers = ("span_embed",)
    """Submodules that reinforcement learning of spans changes."""
    score_layers = ("class_embed",)
    """Submodules that reinforcement learning of scores changes; the IoU layers stay as they are."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.width = hidden_dim
        self.class_embed = nn.Linear(hidden_dim, 2)
        self.span_embed = MLP(hidden_dim, hidden_dim, 2, 3)
        self.iou_embed = MLP(hidden_dim, hidden_dim, 1, 3)

    def forward(self, states: Tensor, references: Tensor) -> Detections:
        """Detections for ``states (..., Q, d)`` and ``references (..., Q, 2)``, spans as (centre, width)."""
        return Detections(
            logits=self.score(states),
            spans=self.locate(states, references),
            iou=torch.sigmoid(self.iou_embed(states)).squeeze(-1),
        )

    def score(self, states: Tensor) -> Tensor:
        """Class logits ``(..., 2)`` of ``states (..., d)``."""
        logits: Tensor = self.class_embed(states)
        return logits

    def locate(self, states: Tensor, references: Tensor) -> Tensor:
        """Spans ``(..., 2)`` of ``states (..., d)`` and ``references (..., 2)``, all as (centre, width)."""
        return torch.sigmoid(self.span_embed(states) + inverse_sigmoid(references))
