"""Prediction files in the moment-detr submission format: reading, checking, writing."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.annotations import check_all_or_none, check_identity
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files import PathLike, write_text
from vmr_env.rows import Qid, Row, check_unique_qids, read_rows

BeforeStart: TypeAlias = Literal["error", "keep"]
"""What to do with windows that start before 0 s: report them, or keep them as they stand.

GIRL-DETR's own post-processing leaves such windows in TACoS submissions; the official evaluator scores them.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The proposals of one model for one query.

    Attributes:
        qid: query id, int or non-empty string; 7 and "7" are the same query.
        vid: video id.
        query: the sentence.
        windows: float64 (K, 3), K >= 1, [start s, end s, score] in file order. Empty windows (start == end),
            equal scores, repeated windows and ends after the video's end are all legal and kept.
        saliency: float32 (L,) one score per clip on any scale, or None.

    Raises:
        DataError: a value breaks these rules; all broken fields are named.
    """

    qid: Qid
    vid: str
    query: str
    windows: NDArray[np.float64]
    saliency: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        problems = list(check_identity(self.qid, self.vid, self.query))
        windows = np.asarray(self.windows, dtype=np.float64)
        object.__setattr__(self, "windows", windows)
        if windows.ndim != 2 or windows.shape[1] != 3 or not len(windows):
            message = f"has shape {windows.shape}; expected at least one [start, end, score]"
            problems.append(("pred_relevant_windows", message))
        elif not (np.isfinite(windows).all() and (windows[:, 0] <= windows[:, 1]).all()):
            for i in np.flatnonzero(~np.isfinite(windows).all(axis=1) | ~(windows[:, 0] <= windows[:, 1])):
                message = f"is {shorten(windows[i].tolist())}; expected finite numbers with start <= end"
                problems.append((f"pred_relevant_windows[{i}]", message))
        if self.saliency is not None:
            problems.extend(self._check_saliency())
        if problems:
            raise DataError(Problem("Prediction", None, field, message) for field, message in problems)

    def _check_saliency(self) -> Iterable[tuple[str, str]]:
        with np.errstate(over="ignore"):  # what overflows becomes infinite and is reported
            saliency = np.asarray(self.saliency, dtype=np.float32)
        object.__setattr__(self, "saliency", saliency)
        if saliency.ndim != 1 or not len(saliency):
            yield "pred_saliency_scores", f"has shape {saliency.shape}; expected one number per clip"
        elif not np.isfinite(saliency).all():
            i = int(np.flatnonzero(~np.isfinite(saliency))[0])
            yield f"pred_saliency_scores[{i}]", "is not finite; expected a number that fits a 32-bit float"


def read_predictions(path: PathLike, *, before_start: BeforeStart = "error") -> list[Prediction]:
    """Rows of a prediction file (`.jsonl`, `.jsonl.gz`), rows and windows in file order.

    Unknown fields are ignored. Windows are not sorted: the official evaluator takes the first window of a row
    as the model's answer, so a file in decoder order scores very low: `validate_predictions` tells.

    Args:
        path: the file.
        before_start: rule for windows that start before 0 s; see `BeforeStart`.

    Raises:
        DataError: all problems of the file at once.
    """
    predictions, problems = parse_predictions(path, before_start=before_start)
    if problems:
        raise DataError(problems)
    return predictions


def parse_predictions(path: PathLike, *, before_start: BeforeStart) -> tuple[list[Prediction], list[Problem]]:
    """Usable rows of a prediction file, and the problems of all others."""
    problems: list[Problem] = []
    predictions = predictions_of_rows(os.fspath(path), read_rows(path, problems), problems, before_start)
    return predictions, sorted(problems, key=lambda problem: problem.row or 0)


def predictions_of_rows(
    where: str, rows: Iterable[Row], problems: list[Problem], before_start: BeforeStart
) -> list[Prediction]:
    """Predictions of checked rows; what does not fit is added to `problems`."""
    if before_start not in ("error", "keep"):
        raise DataError(
            Problem("before_start", None, None, f'is {before_start!r}; expected "error" or "keep"')
        )
    predictions: list[Prediction] = []
    numbers: list[int] = []
    for row in rows:
        prediction = _prediction(row)
        if prediction is not None and before_start == "error":
            for i in np.flatnonzero(prediction.windows[:, 0] < 0):
                found = shorten(prediction.windows[i].tolist())
                row.note(
                    f"pred_relevant_windows[{i}]",
                    f"is {found} and starts before the video; expected start >= 0",
                )
        problems.extend(row.problems)
        if prediction is not None and not row.problems:
            predictions.append(prediction)
            numbers.append(row.number)
    problems.extend(check_unique_qids(where, zip(numbers, (p.qid for p in predictions), strict=True)))
    present = [p.saliency is not None for p in predictions]
    problems.extend(check_all_or_none(where, numbers, present, "pred_saliency_scores"))
    return predictions


def _prediction(row: Row) -> Prediction | None:
    qid, vid, query = row.qid(), row.text("vid"), row.text("query")
    windows = row.table("pred_relevant_windows", "start, end, score")
    saliency = row.vector("pred_saliency_scores") if "pred_saliency_scores" in row.values else None
    if row.problems or qid is None or vid is None or query is None or windows is None:
        return None
    try:
        # The constructor casts float64 saliency and reports what does not fit.
        return Prediction(qid, vid, query, windows, saliency)  # type: ignore[arg-type]
    except DataError as error:
        for problem in error.problems:
            row.note(problem.field, problem.message)
        return None


def write_predictions(path: PathLike, rows: Iterable[Prediction]) -> None:
    """Write predictions as an official submission file, in the given order; `.gz` by suffix.

    The file appears whole or not at all. Reading it back gives the same rows, bit for bit.

    Raises:
        DataError: no rows, a qid twice, saliency in some rows only, or the file cannot be written.
    """
    rows = list(rows)
    where = os.fspath(path)
    if not rows:
        raise DataError(Problem("rows", None, None, "is empty; expected at least one prediction"))
    numbers = list(range(1, len(rows) + 1))
    problems = check_unique_qids("rows", zip(numbers, (row.qid for row in rows), strict=True))
    problems += check_all_or_none("rows", numbers, [row.saliency is not None for row in rows], "saliency")
    if problems:
        raise DataError(problems)
    write_text(where, "".join(json.dumps(_official(row), ensure_ascii=False) + "\n" for row in rows))


def _official(prediction: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {
        "qid": prediction.qid,
        "query": prediction.query,
        "vid": prediction.vid,
        "pred_relevant_windows": prediction.windows.tolist(),
    }
    if prediction.saliency is not None:
        # The shortest text that reads back as the same 32-bit float.
        row["pred_saliency_scores"] = [float(str(score)) for score in prediction.saliency]
    return row
