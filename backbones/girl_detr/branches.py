"""Branches beside the decoder: clip saliency, saliency from the predicted moment, contrastive projections.

All serve training; clip saliency is also an output at inference, for highlight detection.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.encoder import Memory
from vmr_env.backbones.girl_detr.head import Detections
from vmr_env.backbones.girl_detr.kernels import last_state


class Saliency(nn.Module):
    """Score of each clip: its agreement with the whole, ``<A clip, B whole> / sqrt(d)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.clip = nn.Linear(width, width)
        self.whole = nn.Linear(width, width)

    def forward(self, memory: Memory) -> Tensor:
        """Scores ``(B, Lv)``; those of padded clips mean nothing."""
        whole: Tensor = self.whole(memory.whole)  # (B, d)
        # <A m + a, w> = <m, A^T w> + <a, w>: one product per sample instead of one per clip
        scores = (memory.clips @ (whole @ self.clip.weight)[..., None]).squeeze(-1)
        scores = scores + (whole @ self.clip.bias)[:, None]
        return scores / math.sqrt(memory.clips.shape[-1])


class MomentSaliency(nn.Module):
    """Score of each clip by its likeness to the predicted moment, whose clips a recurrent network sums up."""

    def __init__(self, config: GirlDetrConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.counts_real_clips = config.repaired("moment_length")
        self.cuts_at_ends = config.repaired("moment_clamp")
        self.gru = nn.GRU(width, width, batch_first=True)
        self.projection = nn.Linear(width, width)

    def forward(self, video: Tensor, video_mask: Tensor, memory: Memory, best: Detections) -> Tensor:
        """Scores ``(B, Lv)``.

        Args:
            video: projected clips before refinement, ``(B, Lv, d)``.
            video_mask: ``(B, Lv)``, 1 = valid.
            memory: encoder output.
            best: detections of the last decoder layer.
        """
        moment = self.moment(video, video_mask, best)  # (B, d)
        likeness = video @ moment[..., None]  # (B, Lv, 1)
        clips = memory.clips * (1 + likeness)
        # the official score sums all channels of the projection, so its columns can be summed first
        scores: Tensor = clips @ self.projection.weight.sum(0) + self.projection.bias.sum()
        return scores / math.sqrt(video.shape[-1])

    def moment(self, video: Tensor, video_mask: Tensor, best: Detections) -> Tensor:
        """Summary of the moment of the highest-scored query, ``(B, d)``."""
        start, stop = self._bounds(video_mask, best)
        rows = start[:, None] + torch.arange(video.shape[1], device=video.device)  # (B, Lv)
        inside = rows < stop[:, None]
        clips = video.gather(1, rows.clamp(max=video.shape[1] - 1)[..., None].expand_as(video))
        clips = clips * inside[..., None]
        if self.counts_real_clips:
            return last_state(self.gru, clips, (stop - start).clamp(min=1))
        _, last = self.gru(clips)  # runs on through zeros
        return cast(Tensor, last[0])

    def _bounds(self, video_mask: Tensor, best: Detections) -> tuple[Tensor, Tensor]:
        """First clip of the moment and the one after its last, each ``(B,)``."""
        query = best.scores.argmax(-1)
        centre, width = best.spans[torch.arange(len(query), device=query.device), query].unbind(-1)
        padded = torch.full_like(centre, video_mask.shape[1])
        clips = video_mask.sum(1) if self.counts_real_clips else padded
        start = ((centre - width / 2) * clips).floor()
        stop = ((centre + width / 2) * clips).floor() + 1
        if self.cuts_at_ends:
            start = start.clamp(min=0).minimum(clips - 1)
            stop = stop.minimum(clips).maximum(start + 1)
        else:
            start, stop = (_from_the_end(index, padded) for index in (start, stop))
        return start.long(), stop.long()


def _from_the_end(index: Tensor, length: Tensor) -> Tensor:
    """A slice bound as Python reads it: negative ones count from the end (Q17)."""
    return torch.where(index < 0, (index + length).clamp(min=0), index.minimum(length))


class ContrastiveProjections(nn.Module):
    """Queries, tokens and clips as unit vectors of one space, where the contrastive loss compares them."""

    def __init__(self, config: GirlDetrConfig) -> None:
        super().__init__()
        width, inner = config.hidden_dim, config.contrastive_hdim
        self.query = nn.Linear(width, inner)
        self.text = nn.Linear(width, inner)
        self.video = None if config.repaired("unused_parameters") else nn.Linear(width, inner)

    def forward(self, states: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors ``(..., contrastive_hdim)`` of ``states (layers, B, Q, d)``, ``text (B, Lt, d)``."""
        return F.normalize(self.query(states), dim=-1), F.normalize(self.text(text), dim=-1)
