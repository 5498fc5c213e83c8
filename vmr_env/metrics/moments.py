"""The field's metrics, equal to jayleicn/moment_detr `standalone_eval` and wjun0830/CGDETR's extension of it.

- R1@t: share of queries whose *first* window, in file order, overlaps its best ground truth with IoU >= t.
- mIoU: mean of that IoU.
- mAP: the first ten windows in file order, sorted by falling score (ties keep file order), matched greedily
  at each IoU threshold; VOC-2011 interpolated area per query, averaged over queries, then over thresholds.
- short, middle, long: the same against ground truth of that length only; queries without any are left out.
- HL: clips rated at least 2 / 3 / 4 (Fair / Good / VeryGood) by a rater are positive; HIT@1 looks at the clip
  of highest saliency, best of the three raters; mAP is the mean over raters.

Two IoU formulas live side by side, as in the original: intersection / (length + length - intersection), which
is `spans.tiou`, for matching, and intersection / (last end - first start) for R1 and mIoU. They differ in the
last bit, and `>=` makes that visible.
"""

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import AnyFloats, Bools
from vmr_env.data.annotations import (
    SALIENCY_CLIP_SECONDS,
    Annotation,
    PastEnd,
    annotations_from,
    parse_annotations,
)
from vmr_env.data.predictions import BeforeStart, Prediction, is_unsorted, parse_predictions, predictions_from
from vmr_env.data.profiles import LENGTH_RANGES
from vmr_env.data.validation import qid_mismatches, video_mismatches
from vmr_env.errors import DataError, DataWarning, Problem, check_choice, conclude
from vmr_env.files.text import PathLike, name_of, write_text
from vmr_env.metrics import spans
from vmr_env.metrics.registry import METRICS, registered_scores

if TYPE_CHECKING:
    import pandas as pd

Result: TypeAlias = dict[str, dict[str, Any]]
Predictions: TypeAlias = PathLike | Iterable[Prediction | Mapping[str, Any]]
Missing: TypeAlias = Literal["error", "miss"]
GroundTruth: TypeAlias = PathLike | Iterable[Annotation | Mapping[str, Any]]

# The decimal value of each threshold, not what 0.3 + 6 * 0.05 adds up to.
R1_THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(6, 20))
AP_THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(10, 20))
AP_WINDOWS = 10
RATINGS: Mapping[str, int] = {"Fair": 2, "Good": 3, "VeryGood": 4}


def evaluate(
    predictions: Predictions,
    ground_truth: GroundTruth,
    *,
    match_number: bool = True,
    missing: Missing = "error",
    past_end: PastEnd = "error",
) -> Result:
    """Score predictions as the official evaluators do.

    Args:
        predictions: path of a prediction file, or its rows (`Prediction`, or dicts with the file's fields).
        ground_truth: path of an annotation file, or its rows (`Annotation`, or dicts with the file's fields).
        match_number: both sides must have the same qids; with False only the shared ones are scored, and a
            `DataWarning` says how many they are.
        missing: what a query without an answer is: "error", or a "miss", which a `DataWarning` counts.
        past_end: rule for moments that do not lie within their video; see `PastEnd`. The original keeps them
            without a word. Windows of predictions that start before 0 s are refused under "error", and scored
            as they stand under every other rule.

    Returns:
        The official nested result, in percent with two decimals: `brief` (`MR-full-R1@0.7`, `MR-full-mIoU`,
        `MR-short-mAP`, `HL-min-VeryGood-Hit1`, …) and, for `full`, `short`, `middle`, `long`, the tables
        `MR-mIoU`, `MR-R1` and `MR-mAP` by threshold. A length range without ground truth reports zeros.
        Highlight figures exist where both sides have saliency. `brief` also has the mean of each registered
        metric; see `vmr_env.register_metric`.

    Raises:
        DataError: unreadable or broken input, qid sets that differ, a video that differs for one qid.

    A `DataWarning` counts the rows of a prediction file whose windows are not by falling score.
    """
    joined = join(predictions, ground_truth, match_number, missing, past_end)
    result = _official(_score(joined))
    for name in METRICS:
        scores = registered_scores(name, joined.predictions, joined.annotations)
        result["brief"][name] = round(float(scores.mean()), 2)
    return result


def per_query(
    predictions: Predictions,
    ground_truth: GroundTruth,
    *,
    match_number: bool = True,
    missing: Missing = "error",
    past_end: PastEnd = "error",
) -> "pd.DataFrame":
    """What `evaluate` averages, one row per query in the order of the ground truth; arguments as there.

    Returns:
        Columns `qid`, `vid`, `iou` (of the first window; R1@t is the share of `iou >= t`, mIoU the mean),
        `ap@0.5` … `ap@0.95`, `ap` (their mean) and, with saliency on both sides, `HL-min-Fair-mAP`,
        `HL-min-Fair-Hit1` and so on for Good and VeryGood. All are fractions in [0, 1]. Sums by `vid` are all
        that a bootstrap over videos needs. Registered metrics have a column each, in a unit of their own.
    """
    import pandas as pd

    joined = join(predictions, ground_truth, match_number, missing, past_end)
    scores = _score(joined)
    columns: dict[str, Any] = {
        "qid": pd.Series([annotation.qid for annotation in joined.annotations], dtype=object),
        "vid": [annotation.vid for annotation in joined.annotations],
        "iou": scores.ranges["full"].iou,
        "ap": scores.ranges["full"].ap.mean(axis=1),
    }
    for i, threshold in enumerate(AP_THRESHOLDS):
        columns[f"ap@{threshold}"] = scores.ranges["full"].ap[:, i]
    for name, highlight in scores.highlights.items():
        columns[f"HL-min-{name}-mAP"] = highlight.ap.mean(axis=1)
        columns[f"HL-min-{name}-Hit1"] = highlight.hit
    for name in METRICS:
        columns[name] = registered_scores(name, joined.predictions, joined.annotations)
    return pd.DataFrame(columns)


def table(results: Mapping[str, Result]) -> "pd.DataFrame":
    """Results by name as one table: a row per name, a column per key of `brief`, in percent."""
    import pandas as pd

    return pd.DataFrame.from_dict({name: result["brief"] for name, result in results.items()}, orient="index")


def write_result(path: PathLike, result: Result) -> None:
    """Write a result of `evaluate` as the official JSON file, in one step."""
    write_text(path, json.dumps(result, indent=4) + "\n")


@dataclass(frozen=True, slots=True)
class Joined:
    """Predictions and annotations of the same queries, in the order of the annotations."""

    predictions: list[Prediction]
    annotations: list[Annotation]


def join(
    predictions: Predictions,
    ground_truth: GroundTruth,
    match_number: bool = True,
    missing: Missing = "error",
    past_end: PastEnd = "error",
) -> Joined:
    """Both sides of the same queries, read and checked; arguments and errors as in `evaluate`."""
    check_choice("missing", missing, ("error", "miss"))
    dropped: set[str] = set()
    annotations = _read_truth(ground_truth, past_end, dropped)
    where = name_of(predictions) if isinstance(predictions, (str, os.PathLike)) else "predictions"
    before_start: BeforeStart = "error" if past_end == "error" else "keep"
    partial = missing == "miss" or not match_number
    predicted = _read_answers(predictions, before_start, partial)

    wanted = {number: row for number, row in enumerate(predicted, start=1) if str(row.qid) not in dropped}
    problems = video_mismatches(where, wanted, annotations)
    if match_number:
        problems += qid_mismatches(where, wanted, annotations, lacking=missing == "error")
    if problems:
        raise DataError(problems)
    by_qid = {str(prediction.qid): prediction for prediction in wanted.values()}
    answered = sum(str(annotation.qid) in by_qid for annotation in annotations)
    if not answered:
        raise DataError(Problem(where, None, "qid", "has no query of the ground truth; expected some"))
    if answered < len(annotations):
        counted = "the others are misses" if missing == "miss" else "only these are scored"
        message = f"{where} answers {answered} of {len(annotations)} queries; {counted}"
        warnings.warn(message, DataWarning, stacklevel=4)
    if missing == "miss":
        by_qid = {str(annotation.qid): _miss(annotation) for annotation in annotations} | by_qid
    pairs = [(by_qid[str(a.qid)], a) for a in annotations if str(a.qid) in by_qid]
    return Joined([p for p, _ in pairs], [a for _, a in pairs])


def _read_truth(ground_truth: GroundTruth, past_end: PastEnd, dropped: set[str]) -> list[Annotation]:
    if not isinstance(ground_truth, (str, os.PathLike)):
        return annotations_from(ground_truth, "ground_truth", past_end=past_end, dropped=dropped)
    problems: list[Problem] = []
    rows = parse_annotations(ground_truth, problems, past_end=past_end, dropped=dropped)
    conclude(problems, stacklevel=5)
    return list(rows.values())


def _read_answers(predictions: Predictions, before_start: BeforeStart, partial: bool) -> list[Prediction]:
    """Answered rows; rows without an answer are an error but where only a part is to be scored."""
    unanswered: set[str] | None = set() if partial else None
    if not isinstance(predictions, (str, os.PathLike)):
        return predictions_from(predictions, "predictions", before_start=before_start, unanswered=unanswered)
    problems: list[Problem] = []
    rows = parse_predictions(predictions, problems, before_start=before_start, unanswered=unanswered)
    if unsorted := [number for number, row in rows.items() if is_unsorted(row)]:
        message = (
            f"of {len(unsorted)} of {len(rows)} rows are not by falling score, "
            "and the first is taken for the answer, as in the official evaluation"
        )
        problems.append(
            Problem(name_of(predictions), unsorted[0], "pred_relevant_windows", message, "warning")
        )
    conclude(problems, stacklevel=5)
    return list(rows.values())


def _miss(annotation: Annotation) -> Prediction:
    """An answer that overlaps nothing: a window without length."""
    return Prediction(annotation.qid, annotation.vid, annotation.query, np.zeros((1, 3)))


@dataclass(frozen=True, slots=True)
class _RangeScores:
    """Scores of the queries that have ground truth of one length range: iou (P,), ap (P, thresholds)."""

    iou: AnyFloats
    ap: AnyFloats


@dataclass(frozen=True, slots=True)
class HighlightScores:
    """Highlight scores at one rating: ap (P, raters), hit (P,)."""

    ap: AnyFloats
    hit: AnyFloats


@dataclass(frozen=True, slots=True)
class _Scores:
    ranges: dict[str, _RangeScores]
    highlights: dict[str, HighlightScores]


def _score(joined: Joined) -> _Scores:
    with_saliency = all(p.saliency is not None for p in joined.predictions) and all(
        a.saliency is not None for a in joined.annotations
    )
    return _Scores(
        _score_moments(joined),
        score_highlights(joined.predictions, joined.annotations) if with_saliency else {},
    )


def pad(arrays: Sequence[NDArray[Any]]) -> tuple[AnyFloats, Bools]:
    """Ragged (K_i, ...) arrays as one (P, max K, ...) padded with 0, and the mask (P, max K) of the real."""
    counts = np.array([len(array) for array in arrays])
    mask = np.arange(counts.max()) < counts[:, None]
    padded = np.zeros((*mask.shape, *arrays[0].shape[1:]))
    padded[mask] = np.concatenate(arrays)
    return padded, mask


def average_precision_of(joined: Joined) -> AnyFloats:
    """Average precision of each query at each of the ten thresholds, (P, 10), as fractions."""
    return _score_moments(joined)["full"].ap


def _score_moments(joined: Joined) -> dict[str, _RangeScores]:
    windows, real_windows = pad([p.windows[:AP_WINDOWS] for p in joined.predictions])
    moments, real_moments = pad([a.moments for a in joined.annotations])
    overlaps = spans.pairwise_tiou(windows[..., :2], moments)
    by_score = np.argsort(np.where(real_windows, -windows[..., 2], np.inf), axis=1, kind="stable")
    ranked = np.take_along_axis(overlaps, by_score[..., None], axis=1)

    lengths = spans.lengths(moments)
    # No length range takes in padding, which has length 0.
    chosen = {name: (low < lengths) & (lengths <= high) for name, low, high in LENGTH_RANGES}
    chosen["full"] = real_moments
    scores = {}
    for name, usable in chosen.items():
        some = usable.any(axis=1)
        scores[name] = _RangeScores(
            iou=first_iou(windows[some, 0, :2], moments[some], overlaps[some, 0], usable[some]),
            ap=average_precision(ranked[some], usable[some]),
        )
    return scores


def first_iou(first: AnyFloats, moments: AnyFloats, overlaps: AnyFloats, usable: Bools) -> AnyFloats:
    """IoU (by the formula of R1) of first windows (P, 2) with the usable moment (P, G, 2) of highest overlap.

    The first moment on a tie; `overlaps` (P, G) are by the formula of matching, as the evaluator does.
    """
    best = np.where(usable, overlaps, -1.0).argmax(axis=1)
    moment = moments[np.arange(len(moments)), best]
    hull = np.maximum(first[:, 1], moment[:, 1]) - np.minimum(first[:, 0], moment[:, 0])
    # Two windows without length at one place have no hull; they overlap as little as any of that length.
    result: AnyFloats = spans.intersection(first, moment) / np.where(hull > 0, hull, 1)
    return result


def average_precision(overlaps: AnyFloats, usable: Bools) -> AnyFloats:
    """Average precision per query and threshold (P, T), of windows ranked by score.

    Args:
        overlaps: (P, K, G) IoU of ranked windows with ground truth. Padding ranks last and overlaps nothing:
            it adds false positives after all else, which change no interpolated precision.
        usable: (P, G) which ground truth counts, at least one per query.
    """
    counts = usable.sum(axis=1)
    hits = np.zeros((len(counts), len(AP_THRESHOLDS), overlaps.shape[1]), dtype=bool)
    # Ground truth that counts moves to the front, later first: the evaluator takes the later on equal IoU.
    order = np.argsort(~usable[:, ::-1], axis=1, kind="stable")
    by_use = np.take_along_axis(overlaps[:, :, ::-1], order[:, None], axis=2)
    # Queries with few moments are matched apart from those with many, so that there is little padding.
    fewer, most = 0, 1
    while fewer < counts.max(initial=0):
        queries = np.flatnonzero((fewer < counts) & (counts <= most))
        candidates = by_use[queries, :, :most]
        real = np.arange(candidates.shape[2]) < counts[queries, None]
        hits[queries] = greedy_hits(np.where(real[:, None], candidates, -1.0))
        fewer, most = most, 2 * most

    found = hits.cumsum(axis=2)
    precision = found / np.arange(1, overlaps.shape[1] + 1)
    interpolated = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    recall_steps = np.diff(found / counts[:, None, None], axis=2, prepend=0.0)
    result: AnyFloats = (recall_steps * interpolated).sum(axis=2)
    return result


def greedy_hits(overlaps: AnyFloats) -> Bools:
    """Greedy matching of ranked windows at each threshold: overlaps (P, K, G) -> true positives (P, T, K).

    A window takes the moment of highest IoU that no better-ranked window has, the first on a tie, if the IoU
    reaches the threshold. Moments with negative overlap are never taken.
    """
    thresholds = np.array(AP_THRESHOLDS)
    queries, ranks, moments = overlaps.shape
    free = np.ones((queries, len(thresholds), moments), dtype=bool)
    hits = np.zeros((queries, len(thresholds), ranks), dtype=bool)
    for rank in range(ranks):
        candidates = np.where(free, overlaps[:, rank, None], -1.0)
        hit = candidates.max(axis=2) >= thresholds
        best = candidates.argmax(axis=2)[..., None] == np.arange(moments)
        free &= ~(best & hit[..., None])
        hits[..., rank] = hit
    return hits


class RatedQuery(Protocol):
    """Fields of the ground truth that highlight metrics read; `Annotation` is one."""

    @property
    def duration(self) -> float:
        """Seconds."""

    @property
    def clip_ids(self) -> NDArray[np.int64] | None:
        """(K,), clips that have ratings."""

    @property
    def saliency(self) -> NDArray[np.int64] | None:
        """(K, 3), their ratings."""


class SaliencyCurve(Protocol):
    """Fields of an answer that highlight metrics read; `Prediction` is one."""

    @property
    def saliency(self) -> NDArray[np.float32] | None:
        """(L,), a score per clip."""


def score_highlights(
    curves: Sequence[SaliencyCurve], rated: Sequence[RatedQuery]
) -> dict[str, HighlightScores]:
    """Highlight scores at each of `RATINGS`, of answers and ground truth that all have saliency."""
    predicted, given = pad([curve.saliency for curve in curves if curve.saliency is not None])
    clips = np.array([int(query.duration / SALIENCY_CLIP_SECONDS) for query in rated])
    width = max(int(clips.max()), predicted.shape[1])
    inside = np.arange(width) < clips[:, None]
    ratings = _ratings(rated, width)

    # HIT@1 looks at all scores given; a best clip after the last one is a miss.
    top_clip = np.where(given, predicted, -np.inf).argmax(axis=1)
    top_ratings = ratings[np.arange(len(clips)), :, top_clip]

    # For mAP, clips without a score have 0, and scores after the last clip are cut.
    filled = np.pad(predicted, ((0, 0), (0, width - predicted.shape[1])))
    values = np.where(inside, filled, -np.inf)
    order = np.argsort(-values, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    ranked = np.take_along_axis(ratings, order[:, None], axis=2)
    # Equal scores are one point of the curve: each tie is represented by its last clip.
    points = np.isfinite(values)
    points[:, :-1] &= values[:, 1:] != values[:, :-1]
    return {
        name: HighlightScores(
            ap=_curve_precision(ranked >= rating, points),
            hit=(top_ratings >= rating).any(axis=1).astype(float),
        )
        for name, rating in RATINGS.items()
    }


def _ratings(rated: Sequence[RatedQuery], width: int) -> NDArray[np.int8]:
    """Ratings per rater and clip (P, 3, width); clips without a rating have 0."""
    ratings = np.zeros((len(rated), width, 3), dtype=np.int8)
    clip_ids = [query.clip_ids for query in rated if query.clip_ids is not None]
    rows = np.repeat(np.arange(len(rated)), [len(ids) for ids in clip_ids])
    ratings[rows, np.concatenate(clip_ids)] = np.concatenate(
        [query.saliency for query in rated if query.saliency is not None]
    )
    return ratings.swapaxes(1, 2)


def _curve_precision(positive: Bools, points: Bools) -> AnyFloats:
    """Highlight average precision (P, raters): mean interpolated precision of the points where recall rises.

    Args:
        positive: (P, raters, clips) by falling score. A row without a positive clip gives 0.
        points: (P, clips) at which clips the precision-recall curve has a point.
    """
    found = np.where(points[:, None], positive.cumsum(axis=2, dtype=np.int32), 0)
    before = np.zeros_like(found)
    before[..., 1:] = np.maximum.accumulate(found, axis=2)[..., :-1]
    rises = found > before
    precision = found / np.arange(1, found.shape[2] + 1)
    interpolated = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    result: AnyFloats = (interpolated * rises).sum(axis=2) / np.maximum(rises.sum(axis=2), 1)
    return result


def _mean(values: NDArray[Any]) -> NDArray[Any]:
    """Mean over queries; 0 where there are none, as wjun0830/CGDETR reports."""
    result: NDArray[Any] = values.mean(axis=0) if len(values) else np.zeros(values.shape[1:])
    return result


def _percent(value: float) -> float:
    return float(f"{100 * value:.2f}")


def _official(scores: _Scores) -> Result:
    details: Result = {}
    for name, moments in scores.ranges.items():
        precision = _mean(moments.ap)
        recall = _mean(moments.iou[:, None] >= np.array(R1_THRESHOLDS))
        by_threshold = dict(zip(map(str, AP_THRESHOLDS), map(_percent, precision), strict=True))
        details[name] = {
            "MR-mIoU": _percent(float(_mean(moments.iou))),
            "MR-mAP": {**by_threshold, "average": _percent(precision.mean())},
            "MR-R1": dict(zip(map(str, R1_THRESHOLDS), map(_percent, recall), strict=True)),
        }
    details |= highlight_details(scores.highlights)
    return {"brief": _brief(details), **dict(sorted(details.items()))}


def highlight_details(highlights: Mapping[str, HighlightScores]) -> Result:
    """The part of an official result that is about highlights, in percent."""
    return {
        f"HL-min-{name}": {"HL-mAP": _percent(scores.ap.mean()), "HL-Hit1": _percent(scores.hit.mean())}
        for name, scores in highlights.items()
    }


def _brief(details: Result) -> dict[str, float]:
    full = details["full"]
    brief = {
        f"MR-{name}-mAP": details[name]["MR-mAP"]["average"] for name in ("short", "middle", "long", "full")
    }
    brief |= {f"MR-full-mAP@{t}": full["MR-mAP"][t] for t in ("0.5", "0.75")}
    brief |= {f"MR-full-R1@{t}": full["MR-R1"][t] for t in ("0.3", "0.5", "0.7")}
    brief["MR-full-mIoU"] = full["MR-mIoU"]
    brief = dict(sorted(brief.items()))
    return brief | highlight_brief(details)


def highlight_brief(details: Result) -> dict[str, float]:
    """The highlight figures among details, by the names of `brief`."""
    return {
        f"HL-min-{name}-{key.removeprefix('HL-')}": value
        for name in RATINGS
        for key, value in details.get(f"HL-min-{name}", {}).items()
    }
