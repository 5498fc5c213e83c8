"""Generalised moment retrieval: queries with no moment, one, or several, and answers that may be empty.

Definitions of Ding et al. 2026, "Retrieving Any Relevant Moments: Benchmark and Models for Generalized Moment
Retrieval" (arXiv:2605.02623), and of its evaluation toolkit where the two leave something open:

- The existence score of an answer is its `pred_exist_score`; where none is given, its highest window score;
  0 of an empty answer. It is rejected when its score is at most a threshold (0.4 in the paper).
- `AUROC`: of existence scores, queries with moments against those without. `Rej-F1`: F1 of rejection, where
  queries without moments are the positives. `Acc`: share of queries that are rightly rejected or kept.
- Over queries with moments, whatever the existence score: `mAP` as in `metrics.moments`; `mR@k`, the share of
  a query's moments that its first k windows hit, mean over thresholds 0.5, 0.55, … 0.95; `mIoU@k`, the mean
  tIoU of the first k windows with the moments that they are matched to.
- Over queries with several moments: `mR+@k`, as mR@k without the first hit, (hits - 1) / (moments - 1);
  `mIoU+@k`, as mIoU@k without the best pair.
- Over all queries: `G-mIoU@k`, the sum of tIoUs of matched pairs / (windows + moments - pairs) of the first k
  windows that are not rejected and not empty; 1 where there is neither window nor moment, 0 where one is
  lacking.

Windows are matched in file order, each to the moment of highest tIoU that is free, the first of equals. For
recalls it must reach the threshold; for mIoU and G-mIoU any free moment is taken, also one that it does not
meet.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import AnyFloats
from vmr_env.data.answer_sets import AnswerSet, TruthSet
from vmr_env.metrics import spans
from vmr_env.metrics.intervals import Interval, statistic_intervals
from vmr_env.metrics.measures import check_share
from vmr_env.metrics.moments import AP_WINDOWS, average_precision, greedy_hits, pad

RANKS = (1, 3, 5)
REJECTION = 0.4


class Scored(NamedTuple):
    """Columns behind the tables: of each query (P,), NaN where a measure leaves the query out."""

    existence: AnyFloats
    positive: NDArray[np.bool_]
    """Which queries have a moment."""
    measures: dict[str, AnyFloats]
    """Fractions, by name."""


def generalised_scores(
    answers: Sequence[AnswerSet],
    truth: Sequence[TruthSet],
    *,
    rejection: float = REJECTION,
    ranks: Sequence[int] = RANKS,
) -> dict[str, float]:
    """All figures by name, in percent; NaN where there is no query that one is about.

    Args:
        answers: (P,), in the order of `truth`.
        truth: (P,) queries.
        rejection: existence score up to which an answer is rejected.
        ranks: k of the measures that look at the first k windows.
    """
    check_share("rejection", rejection)
    scored = score_queries(answers, truth, rejection=rejection, ranks=ranks)
    return {name: round(value, 2) for name, value in _figures(scored, rejection, np.ones(len(truth))).items()}


def generalised_intervals(
    answers: Sequence[AnswerSet],
    truth: Sequence[TruthSet],
    *,
    rejection: float = REJECTION,
    ranks: Sequence[int] = RANKS,
    source_video: Callable[[str], str] = str,
) -> dict[str, Interval]:
    """The same with 95 % intervals by a bootstrap over source videos (`metrics.intervals`).

    Args:
        answers: as in `generalised_scores`, as `truth`, `rejection` and `ranks` are.
        truth: (P,) queries.
        rejection: existence score up to which an answer is rejected.
        ranks: k of the measures that look at the first k windows.
        source_video: the video that a vid is cut from.
    """
    check_share("rejection", rejection)
    scored = score_queries(answers, truth, rejection=rejection, ranks=ranks)
    videos = [source_video(row.vid) for row in truth]
    return statistic_intervals(lambda weights: _figures(scored, rejection, weights), videos)


def _figures(scored: Scored, rejection: float, weights: AnyFloats) -> dict[str, float]:
    """All figures in percent, where each query counts so often: (P,)."""
    kept = scored.existence > rejection
    figures = {
        "AUROC": area_under_curve(scored.existence, scored.positive, weights),
        f"Rej-F1@{rejection:g}": f1(~kept, ~scored.positive, weights),
        f"Acc@{rejection:g}": _weighted_mean((kept == scored.positive).astype(float), weights),
    }
    figures |= {name: _weighted_mean(values, weights) for name, values in scored.measures.items()}
    return {name: 100 * value for name, value in figures.items()}


def _weighted_mean(values: AnyFloats, weights: AnyFloats) -> float:
    """Mean of the values that are there; NaN where none counts."""
    there = ~np.isnan(values)
    total = weights[there].sum()
    return float(weights[there] @ values[there] / total) if total else float("nan")


def score_queries(
    answers: Sequence[AnswerSet],
    truth: Sequence[TruthSet],
    *,
    rejection: float = REJECTION,
    ranks: Sequence[int] = RANKS,
) -> Scored:
    """The same before it is averaged; arguments as in `generalised_scores`."""
    existence = np.array([answer.existence_score for answer in answers])
    windows, real = pad([answer.windows for answer in answers])
    # One moment of padding at least, so that there is something to take a maximum of.
    moments, usable = (
        np.concatenate([part, np.zeros_like(part, shape=(len(part), 1, *part.shape[2:]))], axis=1)
        for part in pad([row.moments for row in truth])
    )
    counts = usable.sum(axis=1)
    overlaps = np.where(usable[:, None], spans.pairwise_tiou(windows[..., :2], moments), -1.0)
    overlaps[~real] = -1.0
    hits = greedy_hits(overlaps)  # (P, thresholds, K)
    pairs = matched_overlaps(overlaps)  # (P, K), NaN where a window finds no free moment
    positive, several = counts > 0, counts > 1
    measures = {"mAP": np.where(positive, _precision(windows, real, overlaps, usable), np.nan)}
    gated = _gated(windows, real, existence > rejection)
    for k in ranks:
        found = hits[..., :k].sum(axis=2)
        recall = (found / np.maximum(counts, 1)[:, None]).mean(axis=1)
        further = (np.maximum(found - 1, 0) / np.maximum(counts - 1, 1)[:, None]).mean(axis=1)
        ious, all_but_best = _mean_overlaps(pairs[:, :k])
        measures[f"mR@{k}"] = np.where(positive, recall, np.nan)
        measures[f"mR+@{k}"] = np.where(several, further, np.nan)
        measures[f"mIoU@{k}"] = np.where(positive, ious, np.nan)
        measures[f"mIoU+@{k}"] = np.where(several, all_but_best, np.nan)
        measures[f"G-mIoU@{k}"] = _set_overlaps(overlaps, gated, k, counts)
    return Scored(existence, positive, measures)


def area_under_curve(scores: AnyFloats, positive: NDArray[np.bool_], weights: AnyFloats) -> float:
    """Share of pairs of a positive and a negative in which the positive has the higher score.

    Ties count half, each query as often as `weights` says; NaN where there is no such pair.
    """
    values, ranks = np.unique(scores, return_inverse=True)
    above = np.bincount(ranks[positive], weights[positive], minlength=len(values))
    below = np.bincount(ranks[~positive], weights[~positive], minlength=len(values))
    pairs = above.sum() * below.sum()
    won = (above * (np.cumsum(below) - below / 2)).sum()
    return float(won / pairs) if pairs else float("nan")


def f1(predicted: NDArray[np.bool_], true: NDArray[np.bool_], weights: AnyFloats) -> float:
    """Harmonic mean of precision and recall; 0 where nothing is found, NaN where nothing is true."""
    total = weights @ true
    return (
        float(2 * (weights @ (predicted & true)) / (weights @ predicted + total)) if total else float("nan")
    )


def matched_overlaps(overlaps: AnyFloats) -> AnyFloats:
    """tIoU of each window with the free moment of highest tIoU, in order: (P, K, G) -> (P, K).

    Negative overlaps mark padding; NaN marks windows without a free moment.
    """
    result = np.full(overlaps.shape[:2], np.nan)
    free = np.ones((len(overlaps), overlaps.shape[2]), bool)
    rows = np.arange(len(overlaps))
    for rank in range(overlaps.shape[1]):
        candidates = np.where(free, overlaps[:, rank], -1.0)
        best = candidates.argmax(axis=1)
        taken = candidates[rows, best] >= 0
        result[taken, rank] = candidates[rows, best][taken]
        free[rows[taken], best[taken]] = False
    return result


def _precision(
    windows: AnyFloats, real: NDArray[np.bool_], overlaps: AnyFloats, usable: NDArray[np.bool_]
) -> AnyFloats:
    """Mean average precision of each query (P,), of its first ten windows; 0 where it has no moment."""
    order = np.argsort(np.where(real, -windows[..., 2], np.inf)[:, :AP_WINDOWS], axis=1, kind="stable")
    ranked = np.take_along_axis(overlaps, order[..., None], axis=1)
    result = np.zeros(len(windows))
    some = usable.any(axis=1)
    result[some] = average_precision(ranked[some], usable[some]).mean(axis=1)
    return result


def _gated(windows: AnyFloats, real: NDArray[np.bool_], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which windows (P, K) an answer consists of: none of a rejected answer, none without length."""
    result: NDArray[np.bool_] = real & kept[:, None] & (spans.lengths(windows[..., :2]) > 0)
    return result


def _mean_overlaps(pairs: AnyFloats) -> tuple[AnyFloats, AnyFloats]:
    """Mean of matched tIoUs (P, k), and of all but the highest; 0 where there are none: (P,) each."""
    matched = ~np.isnan(pairs)
    number = matched.sum(axis=1)
    total = np.where(matched, pairs, 0.0).sum(axis=1)
    best = np.where(matched, pairs, 0.0).max(axis=1, initial=0.0)
    return total / np.maximum(number, 1), (total - best) / np.maximum(number - 1, 1) * (number > 1)


def _set_overlaps(overlaps: AnyFloats, gated: NDArray[np.bool_], k: int, counts: AnyFloats) -> AnyFloats:
    """tIoU of the sets of windows and of moments of each query: (P,)."""
    taken = gated & (np.cumsum(gated, axis=1) <= min(k, AP_WINDOWS))
    pairs = matched_overlaps(np.where(taken[..., None], overlaps, -1.0))
    matched = (~np.isnan(pairs)).sum(axis=1)
    union = taken.sum(axis=1) + counts - matched
    total = np.nansum(pairs, axis=1)
    result: AnyFloats = np.where(union > 0, total / np.maximum(union, 1), 1.0)
    return result
