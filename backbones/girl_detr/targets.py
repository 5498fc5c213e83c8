"""Labels that the losses compare the model's output with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Labels of a batch of B samples, padded to Lv clips."""

    spans: Sequence[Tensor]
    """Per sample its moments ``(n, 2)`` float32 as (centre, width) in units of the video length, n >= 1."""
    saliency_all_labels: Tensor
    """Label of each clip ``(B, Lv)`` float32, 0 where it is not relevant and in the padding."""
    saliency_pos_labels: Tensor
    """Indices ``(B, P)`` int64 of clips that must score higher than those of `saliency_neg_labels`."""
    saliency_neg_labels: Tensor
    """Indices ``(B, P)`` int64."""

    def to(self, device: torch.device | str) -> "Targets":
        """The same labels on ``device``."""
        return Targets(
            [spans.to(device) for spans in self.spans],
            self.saliency_all_labels.to(device),
            self.saliency_pos_labels.to(device),
            self.saliency_neg_labels.to(device),
        )
