"""What a policy over all spans must beat: the vote over candidates, evidence alone, and a supervised ranker.

The last two say how good every span of the grid is; `decoding.answers(..., first="mode")` makes lists of it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmr_env.agents.dense.decoding import pooled_saliency, suppress
from vmr_env.agents.dense.spans import NUMBERS, best_overlap, gain, span_numbers, span_tiou
from vmr_env.agents.dense.timeline import Timelines
from vmr_env.agents.spans import tiou
from vmr_env.arrays import Floats
from vmr_env.data.predictions import Prediction
from vmr_env.data.timelines import CHANNELS, PAINTED
from vmr_env.errors import MissingExtra

MOVES = (-8, -4, -2, -1, 0, 1, 2, 4, 8)
"""Clips by which a boundary of a first window is moved."""

CROSSED = 5
"""First windows of each model whose starts and ends are crossed."""

CURVES = ("cosine", "cosine z-score", "cosine smoothed", "saliency", "coverage", "starts", "ends")

OF_A_MODEL = len(NUMBERS) + 6
"""What is told of a span by one model."""


def candidates(proposals: Sequence[NDArray[np.float64]], clips: int) -> NDArray[np.float64]:
    """Windows worth a look, none empty, each once: float64 (C, 2), in clips.

    They are the proposals of all models; the first windows with their boundaries moved, as far as the video
    goes; and the starts of the first five of each model with the ends of all such.

    Args:
        proposals: of each model (K, 3), start and end in clips, first the best.
        clips: length of the video.
    """
    windows = np.concatenate([each[:, :2] for each in proposals])
    leading = np.concatenate([each[:CROSSED, :2] for each in proposals])
    moves = np.stack(np.meshgrid(MOVES, MOVES), axis=-1).reshape(-1, 2)
    moved = np.concatenate([each[0, :2] + moves for each in proposals]).clip(0, clips)
    crossed = np.stack(np.meshgrid(*leading.T), axis=-1).reshape(-1, 2)
    found = np.unique(np.concatenate([windows, moved, crossed]), axis=0)
    return found[found[:, 0] < found[:, 1]]


def candidate_masks(timelines: Timelines, rows: Sequence[int]) -> Tensor:
    """Spans of the grid that are nearest to `candidates`, one clip at least: bool (n, S)."""
    length, spans = timelines.grid.clips, timelines.spans.numpy()
    masks = np.zeros((len(rows), length + 1, length + 1), bool)
    for mask, row in zip(masks, rows, strict=True):
        count = int(timelines.clips[row])
        found = np.rint(candidates(timelines.proposals[row], count)).astype(int)
        starts = found[:, 0].clip(max=count - 1)
        mask[starts, np.maximum(found[:, 1], starts + 1)] = True
    return torch.from_numpy(masks[:, spans[:, 0], spans[:, 1]])


def vote_answers(timelines: Timelines) -> list[Prediction]:
    """The training-free reference: candidates ranked by what all models' windows say of them.

    A candidate's vote is the sum over all windows of score share times the mean of tIoU and soft hits at 0.5
    and 0.7, so that votes are scores from 0 to 1.
    Candidates that overlap a better one by a tIoU above 0.6 are left out. Saliency is the detector's.
    """
    result = []
    for row, seconds in enumerate(timelines.seconds):
        models = [model[row] for model in timelines.models]
        spans = torch.from_numpy(candidates(timelines.proposals[row], int(timelines.clips[row]))).float()
        votes = span_numbers(spans, timelines.windows([row]))[0, :, :3].mean(dim=1)
        order = suppress(votes, span_tiou(spans, spans[None])[0])
        times = (spans[order].double().numpy() * seconds).clip(max=timelines.annotations[row].duration)
        windows = np.column_stack([times, votes[order].double().numpy()])
        saliency = pooled_saliency([model.saliency for model in models])
        result.append(Prediction(models[0].qid, models[0].vid, models[0].query, windows, saliency))
    return result


def evidence_alone(timelines: Timelines) -> Tensor:
    """The span whose clips are most alike the query and the others least, whatever detectors say: (n, S).

    The softmax of the two-sample statistic of the cosine's z-scores, (mean inside - mean outside) times the
    root of inside * outside / clips: what the best single change of mean is found by. No training.
    """
    curve = CHANNELS.index("cosine z-score")
    parts = []
    for rows in _parts(len(timelines)):
        batch = timelines.batch(rows)
        inside, outside, lengths = _means(batch.channels[..., [curve]], timelines.spans, batch.clip_mask)
        others = batch.clip_mask.sum(dim=1, keepdim=True) - lengths
        weights = (lengths * others.clamp(min=0) / (lengths + others)).sqrt()
        scores = (inside - outside).squeeze(2) * weights
        parts.append(scores.masked_fill(~batch.span_mask, -torch.inf).softmax(dim=1))
    return torch.cat(parts)


class SpanRanker:
    """Gradient boosting that learns the gain of spans from the same facts as the policy (scikit-learn).

    Facts of a span are the detector's six numbers, its length and place, and of each curve of `CURVES` the
    means inside and outside and the steps at both boundaries; the models of a pool also speak one by one
    (`facts_of_models`). It learns from the candidates of each query, and judges all spans.
    """

    def __init__(self, timelines: Timelines, rows: Sequence[int] | None = None) -> None:
        """Learn from some queries, all by default.

        Raises:
            MissingExtra: scikit-learn is missing; the extra `ranker` has it.
        """
        try:
            from sklearn.ensemble import HistGradientBoostingRegressor
        except ImportError as error:
            raise MissingExtra("the ranker needs scikit-learn: pip install 'vmr-env[ranker]'") from error
        chosen = list(range(len(timelines))) if rows is None else list(rows)
        facts, gains = [], []
        for part in _parts(len(chosen)):
            these = [chosen[i] for i in part]
            mask = candidate_masks(timelines, these)
            facts.append(span_facts(timelines, these)[mask].numpy())
            gains.append(gain(best_overlap(timelines.spans, timelines.moments(these)))[mask].numpy())
        self._model = HistGradientBoostingRegressor(
            learning_rate=0.05, max_iter=200, max_leaf_nodes=15, min_samples_leaf=100, random_state=0
        )
        self._model.fit(np.concatenate(facts), np.concatenate(gains))

    def gains(self, timelines: Timelines, rows: Sequence[int] | None = None) -> Tensor:
        """Predicted gain of every span, -inf beyond the video: float32 (n, S)."""
        chosen = list(range(len(timelines))) if rows is None else list(rows)
        parts = []
        for part in _parts(len(chosen)):
            these = [chosen[i] for i in part]
            mask = timelines.batch(these).span_mask
            gains = torch.full(mask.shape, -torch.inf)
            told: Floats = self._model.predict(span_facts(timelines, these)[mask].numpy()).astype(np.float32)
            gains[mask] = torch.from_numpy(told)
            parts.append(gains)
        return torch.cat(parts)


def span_facts(timelines: Timelines, rows: Sequence[int]) -> Tensor:
    """Facts of every span, see `SpanRanker`: float32 (n, S, 9 + 4 * `CURVES`), of a pool more."""
    batch, spans = timelines.batch(rows), timelines.spans
    curves = batch.channels[..., [CHANNELS.index(name) for name in CURVES]]
    clips = batch.clip_mask.sum(dim=1, keepdim=True)
    place = torch.stack([(spans[:, 1] - spans[:, 0]) / clips, *(spans.T[:, None] / clips)], dim=2)
    facts = [batch.numbers, place, *_profile(curves, spans, batch.clip_mask)]
    if len(timelines.models) > 1:
        facts.append(facts_of_models(timelines, rows, batch.clip_mask))
    return torch.cat(facts, dim=2)


def facts_of_models(timelines: Timelines, rows: Sequence[int], mask: Tensor) -> Tensor:
    """What each of M models says of every span: float32 (n, S, M * `OF_A_MODEL` + 1).

    Of each model its six numbers, the density of its starts at the span's start and of its ends at the end
    (kernels of one clip, by score share), and of its saliency the means inside and outside and the steps at
    both boundaries. The last fact is how far the models agree: the mean tIoU of any two first windows.

    Args:
        timelines: of a pool of two models or more.
        rows: which queries.
        mask: bool (n, L), clips in the video.
    """
    spans, count = timelines.spans, len(timelines.models)
    saliency, starts, ends = (
        torch.from_numpy(timelines.painted[list(rows)][..., PAINTED.index(name)])
        for name in ("saliency", "starts", "ends")
    )  # (n, M, L) each
    facts = []
    for m in range(count):
        numbers = timelines.numbers(rows, [[m]] * len(rows))
        densities = torch.stack([starts[:, m, spans[:, 0]], ends[:, m, spans[:, 1] - 1]], dim=2)
        facts += [numbers, densities, *_profile(saliency[:, m, :, None], spans, mask)]
    firsts = torch.from_numpy(
        np.stack([[windows[0, :2] for windows in timelines.proposals[row]] for row in rows])
    )
    overlaps = tiou(firsts[:, :, None], firsts[:, None]).float()  # (n, M, M)
    pairs = torch.triu_indices(count, count, 1)
    agreement = overlaps[:, pairs[0], pairs[1]].mean(dim=1)
    return torch.cat([*facts, agreement[:, None, None].expand(-1, len(spans), 1)], dim=2)


def _profile(curves: Tensor, spans: Tensor, mask: Tensor) -> list[Tensor]:
    """Of curves (n, L, C) the means inside and outside each span, the rise at its start, the fall at its end.

    Before and after the grid they are zero. Four times (n, S, C).
    """
    inside, outside, _ = _means(curves, spans, mask)
    beside = torch.nn.functional.pad(curves, (0, 0, 1, 1))
    starts, ends = spans[:, 0], spans[:, 1]
    rise, fall = beside[:, starts + 1] - beside[:, starts], beside[:, ends] - beside[:, ends + 1]
    return [inside, outside, rise, fall]


def _means(curves: Tensor, spans: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of curves (B, L, C) inside and outside each span, (B, S, C) twice, and lengths of spans (S,)."""
    sums = torch.nn.functional.pad(curves.cumsum(dim=1), (0, 0, 1, 0))
    lengths = spans[:, 1] - spans[:, 0]
    inside = sums[:, spans[:, 1]] - sums[:, spans[:, 0]]
    others = (mask.sum(dim=1, keepdim=True) - lengths).clamp(min=1)
    outside = (sums[:, -1:] - inside) / others[..., None]
    return inside / lengths[:, None], outside, lengths


def _parts(count: int, size: int = 64) -> list[list[int]]:
    return [list(range(at, min(at + size, count))) for at in range(0, count, size)]
