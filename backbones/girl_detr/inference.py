"""From the model's output to ranked windows in seconds and to saliency curves."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vmr_env.backbones.girl_detr.model import GirlDetrOutput
from vmr_env.backbones.girl_detr.spans import cxw_to_span

Windows = NDArray[np.float64]
"""``(K, 3)``: start and end in seconds, score."""

DECIMALS = 4


@dataclass(frozen=True)
class WindowSettings:
    """How windows are scored, sorted and rounded.

    Attributes:
        clip_seconds: starts and ends are rounded to multiples of this, half to even.
        longest: starts and ends are clamped to [0, ``longest`` seconds]; None clamps nothing. Officially 150
            for QVHighlights and Charades-STA whatever the video's duration, None for TACoS (Q33).
        inside_video: clamp to the video's own length too; never done officially.
        use_iou_head: multiply the foreground probability by the IoU estimate.
        iou_rerank_alpha: without ``use_iou_head``, the weight a in (1 - a) * probability + a * IoU estimate.
        sort: best first; otherwise in the order of the queries.
    """

    clip_seconds: float
    longest: float | None = None
    inside_video: bool = False
    use_iou_head: bool = False
    iou_rerank_alpha: float = 0.0
    sort: bool = True


def proposal_scores(output: GirlDetrOutput, settings: WindowSettings) -> Tensor:
    """Score of each query of the last layer, ``(B, Q)``."""
    scores, iou = output.detections.scores[-1], output.pred_iou
    if settings.use_iou_head:
        return scores * iou
    return (1 - settings.iou_rerank_alpha) * scores + settings.iou_rerank_alpha * iou


@torch.no_grad()
def windows(output: GirlDetrOutput, seconds: ArrayLike, settings: WindowSettings) -> list[Windows]:
    """Windows of each sample, one per query, in the order that ``settings`` asks for.

    Args:
        output: of the model.
        seconds: ``(B,)``, length in seconds of a span of 1. Official predictions take the
            annotation's duration, though training normalises by the number of clips times their length (Q32).
        settings: see `WindowSettings`.
    """
    lengths = np.asarray(seconds, dtype=np.float64)
    spans = cxw_to_span(output.pred_spans.float()).cpu().numpy().astype(np.float64)
    scores = proposal_scores(output, settings).float().cpu().numpy().astype(np.float64)
    if lengths.shape != scores.shape[:1]:
        raise ValueError(f"seconds has shape {lengths.shape}; expected {scores.shape[:1]}")
    if not (np.isfinite(spans).all() and np.isfinite(scores).all()):
        raise ValueError("the model's spans or scores are not all finite")
    results = []
    for span, score, length in zip(spans, scores, lengths, strict=True):
        rows = np.column_stack((span * length, score))
        if settings.sort:
            rows = rows[np.argsort(-score, kind="stable")]
        results.append(post_process(_rounded(rows), float(length), settings))
    return results


def post_process(rows: Windows, length: float, settings: WindowSettings) -> Windows:
    """Clamp and round windows ``(K, 3)`` of a video of ``length`` seconds; see `WindowSettings`."""
    times = rows[:, :2]
    if settings.longest is not None:
        times = times.clip(0, settings.longest)
    if settings.inside_video:
        times = times.clip(0, length)
    times = (times / settings.clip_seconds).round() * settings.clip_seconds
    if settings.inside_video:
        times = times.clip(0, length)  # the last multiple may lie beyond the end
    return np.column_stack((times, _rounded(rows[:, 2])))


@torch.no_grad()
def saliency_curves(output: GirlDetrOutput) -> list[NDArray[np.float32]]:
    """Saliency of the real clips of each sample, rounded through float16 as the official predictions are."""
    counts = output.video_mask.sum(1).long().tolist()
    scores = output.saliency_scores.half().float().cpu().numpy()
    return [row[:count] for row, count in zip(scores, counts, strict=True)]


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """To `DECIMALS` decimals, as Python rounds; NumPy's rounding of 0.55555 differs in the last digit."""
    return np.array([round(value, DECIMALS) for value in values.ravel().tolist()]).reshape(values.shape)
