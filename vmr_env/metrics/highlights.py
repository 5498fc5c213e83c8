"""Highlight figures of data without moments."""

from vmr_env.data.highlights import paired_highlights
from vmr_env.data.records import Rows
from vmr_env.metrics.moments import Result, highlight_brief, highlight_details, score_highlights


def evaluate_highlights(predictions: Rows, ground_truth: Rows) -> Result:
    """Score saliency curves as the official evaluators do, where there are no moments to score.

    Args:
        predictions: path of a file with `qid` and `pred_saliency_scores`, or its rows.
        ground_truth: path of a file with `qid`, `vid`, `duration`, `relevant_clip_ids` and
        `saliency_scores`, or
            its rows.

    Returns:
        The part of the official result that is about highlights, in percent with two decimals: `brief`
        (`HL-min-VeryGood-mAP`, `HL-min-VeryGood-Hit1`, …) and a table per rating.

    Raises:
        DataError: unreadable or broken input, or qid sets that differ.
    """
    details = highlight_details(score_highlights(*paired_highlights(predictions, ground_truth)))
    return {"brief": highlight_brief(details), **details}
