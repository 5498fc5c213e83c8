"""From a distribution over spans to a ranked list of windows."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmr_env.agents.dense.spans import span_tiou, utility_table
from vmr_env.agents.dense.timeline import Timelines
from vmr_env.data.predictions import Prediction
from vmr_env.data.timelines import z_scores

SUPPRESSION = 0.6
WINDOWS = 10
RELEVANCE_WEIGHT = 0.3

First = Literal["utility", "mode"]


def answers(
    timelines: Timelines,
    probabilities: Tensor,
    rows: Sequence[int] | None = None,
    *,
    first: First = "utility",
    relevance: Tensor | None = None,
) -> list[Prediction]:
    """Ranked windows of each query, with probabilities as scores.

    The list goes by falling probability, without spans that overlap a better one by a tIoU above 0.6. The
    first window is the span of highest expected utility under the distribution (`spans.gain`), or the most
    probable one. A first window that a better one of the list would leave out is the answer, not one more
    moment: it has the lowest score, so that rankings by score do not count it twice.

    Args:
        timelines: the queries.
        probabilities: (n, S), zero beyond the video.
        rows: which queries these are; all by default.
        first: rule of the first window. "mode" leaves the list as it is.
        relevance: (n, L), of each clip; it is added to the detector's saliency. Without it that stays.
    """
    chosen = list(range(len(timelines))) if rows is None else list(rows)
    overlaps = span_tiou(timelines.spans, timelines.spans[None].float())[0]
    best = best_utility(timelines, probabilities) if first == "utility" else probabilities.argmax(dim=1)
    result = []
    for i, (row, head) in enumerate(zip(chosen, best.tolist(), strict=True)):
        scores = probabilities[i]
        ranked = suppress(scores, overlaps)
        order = [head, *(span for span in ranked if span != head)][:WINDOWS]
        duration = timelines.annotations[row].duration
        seconds = timelines.spans[order].numpy() * timelines.seconds[row]
        values = scores[order].double().numpy()
        if head not in ranked:
            values[0] = values.min()
        windows = np.column_stack([seconds.clip(max=duration), values])
        models = [model[row] for model in timelines.models]
        saliency = pooled_saliency([model.saliency for model in models])
        if saliency is not None and relevance is not None:
            curve = relevance[i, : int(timelines.clips[row])].double().numpy()
            saliency = with_relevance(saliency, curve)
        result.append(Prediction(models[0].qid, models[0].vid, models[0].query, windows, saliency))
    return result


def best_utility(timelines: Timelines, probabilities: Tensor) -> Tensor:
    """The span of highest expected gain where the distribution is the truth: (n, S) -> int64 (n,)."""
    expected = probabilities @ utility_table(timelines.spans)
    return expected.masked_fill(probabilities <= 0, -torch.inf).argmax(dim=1)


def suppress(scores: Tensor, overlaps: Tensor) -> list[int]:
    """Spans by falling score, each overlapping no earlier one by more than 0.6; at most ten.

    Args:
        scores: (S,), spans at 0 are left out.
        overlaps: (S, S), tIoU of all pairs.
    """
    left = scores.clone()
    kept: list[int] = []
    while len(kept) < WINDOWS and float(left.max()) > 0:
        kept.append(int(left.argmax()))
        left[overlaps[kept[-1]] > SUPPRESSION] = 0
    return kept


def pooled_saliency(curves: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    """One model's saliency as it is; of a pool the mean of z-scores, None where one is missing or differs."""
    given = [curve for curve in curves if curve is not None]
    if len(given) < len(curves) or len({len(curve) for curve in given}) > 1:
        return None
    if len(given) == 1:
        return given[0]
    mean: NDArray[np.float32] = np.mean([z_scores(curve) for curve in given], axis=0).astype(np.float32)
    return mean


def with_relevance(saliency: NDArray[np.float32], relevance: NDArray[np.float64]) -> NDArray[np.float32]:
    """z(saliency) + 0.3 z(relevance) of its grid clip: (T,), (L,) -> (T,)."""
    cells = np.arange(len(saliency)) * len(relevance) // len(saliency)
    better: NDArray[np.float32] = (z_scores(saliency) + RELEVANCE_WEIGHT * z_scores(relevance)[cells]).astype(
        np.float32
    )
    return better
