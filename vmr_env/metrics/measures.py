"""Scores of each query by the names that tables use: R@n at any threshold, mIoU, mAP, and registered metrics.

- `R5@0.7`: whether one of the first 5 windows, in file order, reaches tIoU 0.7 with a moment of the query. A
  tIoU reaches a threshold when it is at least that (`>=`), as moment-detr's evaluator has it, or, where
  `above` is set, when it is higher (`>`), as 2D-TAN's has it. The formula of tIoU is that of R1 in
  `metrics.moments`, so that `R1@0.5` is the official figure.
- `mIoU`: tIoU of the first window. `mAP`: as in `metrics.moments`, over its ten thresholds.

Non-maximum suppression, where it is asked for, comes before everything else: in file order, which is the
model's ranking, a window is left out when its tIoU with one that stays is higher than the threshold (Zhang et
al. 2020, "Learning 2D Temporal Adjacent Networks", suppress at 0.5 in this way).
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmr_env.data.predictions import Prediction
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.metrics import spans
from vmr_env.metrics.moments import Joined, average_precision_of, first_iou, pad
from vmr_env.metrics.registry import METRICS, registered_scores

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("R1@0.5", "R1@0.7", "mIoU", "mAP")
"""Measures that tables show by default."""

_RECALL = re.compile(r"R([1-9]\d*)@(0?\.\d+)")


def measure_queries(
    joined: Joined,
    measures: Sequence[str] = MEASURES,
    *,
    above: bool = False,
    suppression: float | None = None,
) -> "pd.DataFrame":
    """Scores of each query: a row per query in the order of the ground truth, a column per measure, in
    percent.

    Args:
        joined: predictions and ground truth of the same queries; see `metrics.moments.join`.
        measures: names of columns.
        above: whether R@n wants a tIoU above its threshold and not just at it.
        suppression: tIoU above which a window is left out beside an earlier one; None keeps all.

    Raises:
        DataError: a measure or the threshold is unknown.
    """
    import pandas as pd

    check_measures(measures)
    if suppression is not None:
        check_share("suppression", suppression)
        joined = replace(joined, predictions=suppressed(joined, suppression))
    recalls = {name: match for name in measures if (match := _RECALL.fullmatch(name))}
    deepest = max((int(match[1]) for match in recalls.values()), default=1)
    ious = best_ious(joined, deepest)
    columns: dict[str, NDArray[np.float64]] = {}
    for name in measures:
        if name in recalls:
            first = ious[:, : int(recalls[name][1])].max(axis=1)
            threshold = float(recalls[name][2])
            columns[name] = 100.0 * (first > threshold if above else first >= threshold)
        elif name == "mIoU":
            columns[name] = 100.0 * ious[:, 0]
        elif name == "mAP":
            columns[name] = 100.0 * average_precision_of(joined).mean(axis=1)
        else:
            columns[name] = registered_scores(name, joined.predictions, joined.annotations)
    return pd.DataFrame(columns)


def check_measures(measures: Sequence[str]) -> None:
    """Refuse names that no measure has.

    Raises:
        DataError: naming each.
    """
    own = [name for name in measures if name not in (*MEASURES, *METRICS) and not _RECALL.fullmatch(name)]
    own += [name for name in measures if (match := _RECALL.fullmatch(name)) and not 0 < float(match[2]) < 1]
    known = ", ".join(("R<n>@<threshold>", "mIoU", "mAP", *METRICS))
    if own or not measures:
        found = f"is {shorten(own)}" if own else "is empty"
        raise DataError(Problem("measures", None, None, f"{found}; expected some of {known}"))


def check_share(name: str, value: float) -> None:
    """Refuse a threshold that is no share.

    Raises:
        DataError: naming it.
    """
    if not 0 <= value <= 1:
        raise DataError(Problem(name, None, None, f"is {value!r}; expected a number from 0 to 1"))


def best_ious(joined: Joined, deepest: int) -> NDArray[np.float64]:
    """tIoU of each query's first windows with the nearest moment: (P, deepest), 0 where there are fewer."""
    windows, real = pad([prediction.windows[:deepest] for prediction in joined.predictions])
    moments, usable = pad([annotation.moments for annotation in joined.annotations])
    overlaps = spans.pairwise_tiou(windows[..., :2], moments)
    result = np.zeros((len(windows), deepest))
    for rank in range(windows.shape[1]):
        values = first_iou(windows[:, rank, :2], moments, overlaps[:, rank], usable)
        result[:, rank] = np.where(real[:, rank], values, 0.0)
    return result


def suppressed(joined: Joined, threshold: float) -> list[Prediction]:
    """The predictions without windows whose tIoU with an earlier one that stays is above the threshold."""
    windows, kept = pad([prediction.windows for prediction in joined.predictions])
    for rank in range(windows.shape[1] - 1):
        overlaps = spans.tiou(windows[:, rank, None, :2], windows[:, rank + 1 :, :2])
        kept[:, rank + 1 :] &= ~((overlaps > threshold) & kept[:, rank, None])
    return [
        replace(prediction, windows=prediction.windows[kept[i, : len(prediction.windows)]])
        for i, prediction in enumerate(joined.predictions)
    ]
