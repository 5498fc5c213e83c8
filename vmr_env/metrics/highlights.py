"""Highlight figures of data without moments."""

from collections.abc import Callable

import numpy as np

from vmr_env.data.highlights import paired_highlights
from vmr_env.data.records import Rows
from vmr_env.metrics.intervals import Interval, mean_intervals
from vmr_env.metrics.moments import Result, highlight_brief, highlight_details, score_highlights


def evaluate_highlights(predictions: Rows, ground_truth: Rows) -> Result:
    """Score saliency curves as the official evaluators do, where there are no moments to score.

    Args:
        predictions: path of a file with `qid` and `pred_saliency_scores`, or its rows.
        ground_truth: path of a file with `qid`, `vid`, `duration`, `relevant_clip_ids` and
            `saliency_scores`, or its rows.

    Returns:
        The part of the official result that is about highlights, in percent with two decimals: `brief`
        (`HL-min-VeryGood-mAP`, `HL-min-VeryGood-Hit1`, …) and a table per rating.

    Raises:
        DataError: unreadable or broken input, or qid sets that differ.
    """
    details = highlight_details(score_highlights(*paired_highlights(predictions, ground_truth)))
    return {"brief": highlight_brief(details), **details}


def highlight_intervals(
    predictions: Rows, ground_truth: Rows, source_video: Callable[[str], str] = str
) -> dict[str, Interval]:
    """The figures of `brief` in percent, with 95 % intervals by a bootstrap over source videos.

    Args:
        predictions: as in `evaluate_highlights`, as `ground_truth` is.
        ground_truth: file or rows.
        source_video: the video that a vid is cut from.

    Raises:
        DataError: as of `evaluate_highlights`.
    """
    curves, rated = paired_highlights(predictions, ground_truth)
    columns = {}
    for name, scores in score_highlights(curves, rated).items():
        columns[f"HL-min-{name}-mAP"] = scores.ap.mean(axis=1)
        columns[f"HL-min-{name}-Hit1"] = scores.hit
    videos = [source_video(row.vid) for row in rated]
    found = mean_intervals(100 * np.stack(list(columns.values()), axis=1), videos)
    return dict(zip(columns, found, strict=True))
