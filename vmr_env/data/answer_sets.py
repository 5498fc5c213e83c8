"""Rows of generalised moment retrieval: a query may have no moment, and an answer no window.

The files are those of Soccer-GMR (Ding et al. 2026, arXiv:2605.02623): ground truth with `relevant_windows`,
which is empty where the video does not show what the query asks for; predictions with
`pred_relevant_windows`, which may be empty, and `pred_exist_score`, which may be lacking.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmr_env.data.records import Rows, name_rows, pair_by_qid, read_records
from vmr_env.data.rows import Qid, Row


@dataclass(frozen=True, slots=True, eq=False)
class TruthSet:
    """All moments of one query.

    Attributes:
        qid: query id; 7 and "7" are the same query.
        vid: video id.
        moments: float64 (M, 2), M >= 0, [start, end] in seconds.
    """

    qid: Qid
    vid: str
    moments: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class AnswerSet:
    """All windows that a model answers one query with.

    Attributes:
        qid: query id; 7 and "7" are the same query.
        windows: float64 (K, 3), K >= 0, [start s, end s, score], best first.
        existence: how sure the model is that there is a moment at all, or None where it does not say.
    """

    qid: Qid
    windows: NDArray[np.float64]
    existence: float | None = None

    @property
    def existence_score(self) -> float:
        """`existence`, where it is given; else the highest score of a window, 0 without windows."""
        if self.existence is not None:
            return self.existence
        return float(self.windows[:, 2].max(initial=0.0)) if len(self.windows) else 0.0


def read_truth_sets(rows: Rows) -> list[TruthSet]:
    """Ground truth, in order.

    Raises:
        DataError: all problems at once.
    """
    return read_records(rows, "ground_truth", _truth_set)


def read_answer_sets(rows: Rows) -> list[AnswerSet]:
    """Predictions, in order.

    Raises:
        DataError: all problems at once.
    """
    return read_records(rows, "predictions", _answer_set)


def paired_sets(answers: Rows, truth: Rows) -> tuple[list[AnswerSet], list[TruthSet]]:
    """Answers and ground truth of the same queries, in the order of the ground truth.

    Raises:
        DataError: a row is broken, a query is not answered, or an answer is to no query.
    """
    known = read_truth_sets(truth)
    return pair_by_qid(name_rows(answers, "predictions"), read_answer_sets(answers), known), known


def _truth_set(row: Row) -> TruthSet | None:
    qid, vid = row.qid(), row.text("vid")
    moments = row.table("relevant_windows", "start, end", np.float64)
    if qid is None or vid is None or moments is None:
        return None
    bad = ~(np.isfinite(moments).all(axis=1) & (moments[:, 0] < moments[:, 1]))
    _note(row, "relevant_windows", moments, bad, "finite seconds with start < end")
    return TruthSet(qid, vid, moments)


def _answer_set(row: Row) -> AnswerSet | None:
    qid = row.qid()
    windows = row.table("pred_relevant_windows", "start, end, score", np.float64)
    existence = row.number_of("pred_exist_score") if "pred_exist_score" in row.values else None
    if qid is None or windows is None:
        return None
    bad = ~(np.isfinite(windows).all(axis=1) & (windows[:, 0] <= windows[:, 1]))
    _note(row, "pred_relevant_windows", windows, bad, "finite numbers with start <= end")
    if existence is not None and not np.isfinite(existence):
        row.note("pred_exist_score", f"is {existence}; expected a finite number")
    return AnswerSet(qid, windows, existence)


def _note(row: Row, field: str, values: NDArray[np.float64], bad: NDArray[np.bool_], expected: str) -> None:
    for i in np.flatnonzero(bad).tolist():
        row.note(f"{field}[{i}]", f"is {values[i].tolist()}; expected {expected}")
