"""All spans of a grid of clips, and what a detector's windows say about each of them.

A span is [first clip, clip after the last). Spans stand in the order of their starts, then ends, so that
a grid of L clips has S = L * (L + 1) / 2 of them: 2,850 for 75 clips. All times are in clips.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vmr_env.agents.spans import tiou
from vmr_env.metrics.spans import ROUNDING

NUMBERS = (
    "expected tIoU",
    "expected hit at 0.5",
    "expected hit at 0.7",
    "first tIoU",
    "first hit at 0.5",
    "first hit at 0.7",
)
"""The six numbers of a span, each from 0 to 1; their sum is the detector's vote."""

HITS = (0.5, 0.7)
SOFTNESS = 0.05


class Windows(NamedTuple):
    """The windows of all models for B queries, K of them."""

    spans: Tensor
    """(B, K, 2) float32."""
    shares: Tensor
    """(B, K), share of a window in its model's scores, divided by the number of models; 0 is padding."""
    first: Tensor
    """(B, K), 1 / models for each model's first window, else 0."""

    @classmethod
    def of(cls, pooled: Tensor) -> "Windows":
        """From rows of `PaintedTimelines.pooled_windows`, padded with zeros: (B, K, 4)."""
        return cls(pooled[..., :2], *pooled[..., 2:].unbind(-1))


def all_spans(clips: int) -> Tensor:
    """Every span of a grid: int64 (S, 2)."""
    starts, last = torch.triu_indices(clips, clips)
    return torch.stack([starts, last + 1], dim=1)


def span_mask(spans: Tensor, clips: Tensor) -> Tensor:
    """Which spans lie inside videos of so many clips: (S, 2), (B,) -> bool (B, S)."""
    return spans[:, 1] <= clips[:, None]


def span_tiou(spans: Tensor, windows: Tensor) -> Tensor:
    """Intersection over union of S spans with K windows each: (S, 2), (B, K, 2) -> (B, S, K)."""
    return tiou(spans[:, None].float(), windows[:, None])


def soft_hit(overlaps: Tensor, threshold: float) -> Tensor:
    """Near 1 where the tIoU is above the threshold, near 0 where it is below, 0.5 on it."""
    return torch.sigmoid((overlaps - threshold) / SOFTNESS)


def span_numbers(spans: Tensor, windows: Windows) -> Tensor:
    """Evidence of the detector, or of the models of a pool, for each span: `NUMBERS`, (S, 2) -> (B, S, 6)."""
    overlaps = span_tiou(spans, windows.spans)
    weights = torch.stack([windows.shares, windows.first], dim=2)  # (B, K, 2)
    tables = [overlaps, *(soft_hit(overlaps, threshold) for threshold in HITS)]
    return torch.cat([(table @ weights).unsqueeze(3) for table in tables], dim=3).flatten(2)


def vote(numbers: Tensor) -> Tensor:
    """The detector's own vote on each span, the sum of its six numbers: (B, S, 6) -> (B, S)."""
    return numbers.sum(dim=-1)


def best_overlap(spans: Tensor, moments: Tensor) -> Tensor:
    """Highest tIoU of each span with any moment; padding repeats a moment: (S, 2), (B, M, 2) -> (B, S)."""
    return span_tiou(spans, moments).amax(dim=2)


def gain(overlaps: Tensor) -> Tensor:
    """Value of an answer: mean of tIoU and of the hits at 0.5 and 0.7 as metrics judge them, any shape."""
    hits = [(overlaps >= threshold - float(ROUNDING)).float() for threshold in HITS]
    return (overlaps + hits[0] + hits[1]) / 3


def utility_table(spans: Tensor) -> Tensor:
    """Gain of answering with one span where another is the truth: (S, S), symmetric; 32 MB for 75 clips."""
    return gain(span_tiou(spans, spans[None].float())[0])
