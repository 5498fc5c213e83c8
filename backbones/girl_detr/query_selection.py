"""Query selection: the decoder's anchors are spans that the encoded clips speak for.

The official anchors are learned points, the same for every video; a decoder that starts from them learns
slowly, and hardly from a thousand videos. Taking a detector's first anchors from its encoder is known as
query selection (two-stage detectors; DINO, arXiv 2203.03605, section 3.4). Clips are few, so all spans from
clip to clip can be compared: a span scores by its first clip, its last clip, the two together, and the sum
over the clips inside.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.spans import cxw_to_span
from vmr_env.backbones.girl_detr.targets import Targets

SUPPRESSED = 1e4
"""Taken off the logit of a span that overlaps a chosen one; more than logits differ by."""


class QuerySelection(nn.Module):
    """Scores all spans that begin and end with a clip, and picks the decoder's anchors among them."""

    def __init__(self, config: GirlDetrConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.queries, self.overlap = config.num_queries, config.selection_overlap
        self.start = nn.Linear(width, width, bias=False)
        self.end = nn.Linear(width, width, bias=False)
        self.start_score = nn.Linear(width, 1, bias=False)
        self.end_score = nn.Linear(width, 1, bias=False)
        self.inside_score = nn.Linear(width, 1)

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
        """Logits ``(B, Lv, Lv)`` of the spans from clip i to clip j, both included; -inf where there is none.

        Args:
            clips: encoded clips ``(B, Lv, d)``.
            mask: ``(B, Lv)``, 1 = valid.
        """
        pairs = self.start(clips) @ self.end(clips).transpose(1, 2) / math.sqrt(clips.shape[-1])
        before = F.pad(self.inside_score(clips).squeeze(-1), (1, 0)).cumsum(1)  # (B, Lv + 1)
        inside = before[:, None, 1:] - before[:, :-1, None]
        logits = pairs + inside + self.start_score(clips) + self.end_score(clips).transpose(1, 2)
        return cast(Tensor, logits.masked_fill(~_possible(mask), -torch.inf))

    @torch.no_grad()
    def anchors(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The best spans, best first, as (centre, width) in units of the video, ``(B, Q, 2)``.

        Spans that overlap a chosen one by more than ``selection_overlap`` (tIoU) come behind all others.
        """
        batch, length, _ = logits.shape
        left = logits.clone()
        rows = torch.arange(batch, device=logits.device)
        chosen = []
        for _ in range(self.queries):
            best = left.flatten(1).argmax(1)
            span = torch.stack((best // length, best % length + 1), -1) / mask.sum(1, keepdim=True)
            chosen.append(span)
            left -= SUPPRESSED * (clip_span_iou(span, mask) > self.overlap)
            left[rows, best // length, best % length] -= SUPPRESSED
        start, end = torch.stack(chosen, 1).unbind(-1)
        return torch.stack(((start + end) / 2, end - start), -1)


def selection_loss(logits: Tensor, mask: Tensor, targets: Targets, temperature: float) -> Tensor:
    """Cross-entropy of the spans' softmax with a target that falls off with the distance to the moments.

    The target of a span is proportional to exp(tIoU / temperature), tIoU with the nearest moment.

    Args:
        logits: of `QuerySelection`, ``(B, Lv, Lv)``.
        mask: ``(B, Lv)``, 1 = valid.
        targets: have the moments.
        temperature: of the target.

    Returns:
        the mean over samples, a scalar.
    """
    moments = cxw_to_span(pad_sequence(list(targets.spans), batch_first=True))  # padded ones overlap nothing
    iou = torch.stack([clip_span_iou(moment, mask) for moment in moments.unbind(1)]).amax(0)
    possible = _possible(mask)
    target = (iou / temperature).masked_fill(~possible, -torch.inf).flatten(1).softmax(1)
    likelihood = logits.flatten(1).log_softmax(1).masked_fill(~possible.flatten(1), 0)
    return -(target * likelihood).sum(1).mean()


def clip_span_iou(span: Tensor, mask: Tensor) -> Tensor:
    """tIoU ``(B, Lv, Lv)`` of all spans between clips with ``span (B, 2)``, start and end in video units."""
    edges = torch.arange(mask.shape[1] + 1, device=mask.device) / mask.sum(1, keepdim=True)
    first, last = edges[:, :-1, None], edges[:, None, 1:]
    start, end = span[:, :1, None], span[:, 1:, None]
    shared = (torch.minimum(last, end) - torch.maximum(first, start)).clamp(min=0)
    return shared / ((last - first).clamp(min=0) + (end - start) - shared).clamp(min=1e-6)


def _possible(mask: Tensor) -> Tensor:
    """Whether a span runs forwards and ends with a real clip, ``(B, Lv, Lv)``."""
    index = torch.arange(mask.shape[1], device=mask.device)
    return (index >= index[:, None]) & mask.bool()[:, None]
