"""Rows of highlight detection alone: ratings of clips, and a curve of scores, without any moment.

The fields are those of QVHighlights' files; windows, where rows have them, are not looked at.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmr_env.data.annotations import SALIENCY_CLIP_SECONDS, saliency_faults
from vmr_env.data.durations import SECONDS, is_seconds
from vmr_env.data.records import Rows, name_rows, pair_by_qid, read_records
from vmr_env.data.rows import Qid, Row


@dataclass(frozen=True, slots=True, eq=False)
class Ratings:
    """How three people rated the clips of a video for one query.

    Attributes:
        qid: query id; 7 and "7" are the same query.
        vid: video id.
        duration: length of the video in seconds.
        clip_ids: int64 (K,) clips of two seconds that were rated.
        saliency: int64 (K, 3) ratings 0 to 4.
    """

    qid: Qid
    vid: str
    duration: float
    clip_ids: NDArray[np.int64]
    saliency: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A model's scores of the clips of a video for one query.

    Attributes:
        qid: query id; 7 and "7" are the same query.
        saliency: float32 (L,), L >= 1, finite, on any scale.
    """

    qid: Qid
    saliency: NDArray[np.float32]


def paired_highlights(curves: Rows, ratings: Rows) -> tuple[list[Curve], list[Ratings]]:
    """Curves and ratings of the same queries, in the order of the ratings.

    Raises:
        DataError: a row is broken, a query has no curve, or a curve belongs to no query.
    """
    rated = read_records(ratings, "ground_truth", _ratings)
    given = read_records(curves, "predictions", _curve)
    return pair_by_qid(name_rows(curves, "predictions"), given, rated), rated


def _ratings(row: Row) -> Ratings | None:
    qid, vid, duration = row.qid(), row.text("vid"), row.number_of("duration")
    clip_ids = row.vector("relevant_clip_ids", np.int64)
    saliency = row.table("saliency_scores", "a, b, c", np.int64)
    if qid is None or vid is None or duration is None or clip_ids is None or saliency is None:
        return None
    if not is_seconds(duration):
        row.note("duration", f"is {duration}; expected {SECONDS}")
        return None
    for field, message in saliency_faults(clip_ids, saliency, duration // SALIENCY_CLIP_SECONDS):
        row.note(field, message)
    return Ratings(qid, vid, duration, clip_ids, saliency)


def _curve(row: Row) -> Curve | None:
    qid, saliency = row.qid(), row.vector("pred_saliency_scores", np.float64)
    if qid is None or saliency is None:
        return None
    if not len(saliency):
        row.note("pred_saliency_scores", "is []; expected one number per clip")
    with np.errstate(over="ignore"):  # what overflows is infinite, and told
        kept = saliency.astype(np.float32)
    for i in np.flatnonzero(~np.isfinite(kept)).tolist():
        row.note(f"pred_saliency_scores[{i}]", f"is {saliency[i]}; expected a finite 32-bit number")
    return Curve(qid, kept)
