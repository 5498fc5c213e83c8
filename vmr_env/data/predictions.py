"""Prediction files in the moment-detr submission format: reading, checking, writing."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.data.rows import Fault, Qid, Row, collect, given_rows, identity_faults, is_list, rows_of_kind
from vmr_env.errors import DataError, Problem, check_choice, conclude, shorten
from vmr_env.files.text import PathLike, name_of, write_text

BeforeStart: TypeAlias = Literal["error", "keep"]
"""What to do with windows that start before 0 s: report them, or keep them as they stand.

GIRL-DETR's own post-processing leaves such windows in TACoS submissions; the official evaluator scores them.
"""

Scores: TypeAlias = Literal["keep", "minmax", "sigmoid"]
"""What to do with the scores of a file: keep them, bring the file's lowest to 0 and its highest to 1, or take
them for logits. Each keeps the order of windows; caches want scores within [0, 1].
"""

SCORES: tuple[Scores, ...] = ("keep", "minmax", "sigmoid")


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
        problems = [*identity_faults(self.qid, self.vid, self.query), *self._faults()]
        if problems:
            raise DataError(Problem("Prediction", None, field, message) for field, message in problems)
        object.__setattr__(self, "windows", np.asarray(self.windows, dtype=np.float64))
        if self.saliency is not None:
            object.__setattr__(self, "saliency", np.asarray(self.saliency, dtype=np.float32))

    def _faults(self) -> Iterable[Fault]:
        windows = np.asarray(self.windows)
        if windows.ndim != 2 or windows.shape[1] != 3 or not len(windows) or windows.dtype.kind not in "fiu":
            message = f"is {shorten(self.windows)}; expected one or more [start, end, score]"
            yield "pred_relevant_windows", message
        # Most rows are good, which two questions tell; which windows are bad takes more.
        elif not (np.isfinite(windows).all() and (windows[:, 0] <= windows[:, 1]).all()):
            bad = ~np.isfinite(windows).all(axis=1) | ~(windows[:, 0] <= windows[:, 1])
            for i in bad.nonzero()[0]:
                reversed_ = ", reversed" if windows[i, 0] > windows[i, 1] else ""
                message = f"is {shorten(windows[i])}{reversed_}; expected finite numbers with start <= end"
                yield f"pred_relevant_windows[{i}]", message
        if self.saliency is not None:
            saliency = np.asarray(self.saliency)
            if saliency.ndim != 1 or not len(saliency) or saliency.dtype.kind not in "fiu":
                yield "pred_saliency_scores", f"is {shorten(self.saliency)}; expected one number per clip"
                return
            with np.errstate(over="ignore"):  # what overflows is infinite, and told
                kept = saliency.astype(np.float32)
            for i in (~np.isfinite(kept)).nonzero()[0]:
                yield f"pred_saliency_scores[{i}]", f"is {saliency[i]}; expected a finite 32-bit number"


def read_predictions(path: PathLike, *, before_start: BeforeStart = "error") -> list[Prediction]:
    """Rows of a prediction file (`.jsonl`, `.jsonl.gz`), rows and windows in file order.

    Unknown fields are ignored. Windows are not sorted: the official evaluator takes the first window of a row
    as the model's answer, so a file in decoder order scores very low: `validate_predictions` tells. A row's
    only window may lack its score, which then is 1; a `DataWarning` counts such rows.

    Args:
        path: the file.
        before_start: rule for windows that start before 0 s; see `BeforeStart`.

    Raises:
        DataError: all problems of the file at once.
    """
    problems: list[Problem] = []
    predictions = parse_predictions(path, problems, before_start=before_start)
    conclude(problems)
    return list(predictions.values())


def parse_predictions(
    path: PathLike,
    problems: list[Problem],
    *,
    before_start: BeforeStart,
    refused: set[str] | None = None,
    unanswered: set[str] | None = None,
) -> dict[int, Prediction]:
    """Usable rows of a prediction file by line; the problems of the others are added to `problems`.

    The qids of those others are added to `refused`, as text: what is refused is not lacking as well. Rows
    without a window are an error, or are left out where `unanswered` takes their qids.
    """
    rows = rows_of_kind(path, problems, "pred_relevant_windows", not_of="relevant_windows")
    return collect_predictions(name_of(path), rows, problems, before_start, refused, unanswered)


def is_unsorted(row: Prediction) -> bool:
    """Whether a window follows one of lower score."""
    return bool((np.diff(row.windows[:, 2]) > 0).any())


def by_score(row: Prediction) -> Prediction:
    """The row with its windows by falling score; those of equal score keep their order."""
    order = np.argsort(-row.windows[:, 2], kind="stable")
    return replace(row, windows=row.windows[order])


def rescaled(rows: Sequence[Prediction], scores: Scores) -> list[Prediction]:
    """The rows of one file with their scores rescaled; see `Scores`.

    Equal scores stay equal, and where all are equal "minmax" makes them 1.
    """
    check_choice("scores", scores, SCORES)
    if scores == "keep" or not rows:
        return list(rows)
    values = np.concatenate([row.windows[:, 2] for row in rows])
    if scores == "sigmoid":
        values = 0.5 * (1 + np.tanh(values / 2))  # the logistic function, without overflow
    elif values.max() > values.min():
        values = (values - values.min()) / (values.max() - values.min())
    else:
        values = np.ones_like(values)
    parts = np.split(values, np.cumsum([len(row.windows) for row in rows])[:-1])
    return [
        replace(row, windows=np.column_stack([row.windows[:, :2], part]))
        for row, part in zip(rows, parts, strict=True)
    ]


def predictions_from(
    rows: Iterable[Prediction | Mapping[str, Any]],
    where: str,
    *,
    before_start: BeforeStart = "error",
    unanswered: set[str] | None = None,
) -> list[Prediction]:
    """Rows made in memory: `Prediction` objects as they are, dicts with the fields of a file under its rules.

    Args:
        rows: the rows.
        where: name of the argument, for messages.
        before_start: rule for windows of dicts that start before 0 s; see `BeforeStart`.
        unanswered: takes the qids of rows without a window, as text, which then are left out and no error.

    Raises:
        DataError: all problems at once.
    """
    problems: list[Problem] = []
    given = given_rows(where, rows, Prediction, problems)
    predictions = collect_predictions(where, given, problems, before_start, unanswered=unanswered)
    conclude(problems)
    return list(predictions.values())


def collect_predictions(
    where: str,
    rows: Iterable[tuple[int, Row | Prediction]],
    problems: list[Problem],
    before_start: BeforeStart,
    refused: set[str] | None = None,
    unanswered: set[str] | None = None,
) -> dict[int, Prediction]:
    """Usable ones of numbered rows, as `parse_predictions` says.

    All readers and converters go through here.
    """
    check_choice("before_start", before_start, ("error", "keep"))
    unscored: list[int] = []

    def build(row: Row) -> Prediction | None:
        if is_list(windows := row.values.get("pred_relevant_windows")) and not len(windows):
            _note_no_answer(row, unanswered, refused)
            return None
        if _score_only_window(row):
            unscored.append(row.number)
        prediction = _prediction(row)
        if prediction is not None and before_start == "error":
            for i in (prediction.windows[:, 0] < 0).nonzero()[0]:
                found = f"is {prediction.windows[i].tolist()} and starts before the video"
                row.note(f"pred_relevant_windows[{i}]", f"{found}; expected start >= 0")
        if not row.problems:
            return prediction
        _remember(row, refused)
        return None

    predictions = collect(where, rows, build, "pred_relevant_windows", "pred_saliency_scores", problems)
    if unscored:
        message = f"has no score in {len(unscored)} rows of one window, here first; it counts as 1"
        problems.append(Problem(where, unscored[0], "pred_relevant_windows", message, "warning"))
    return predictions


def _remember(row: Row, qids: set[str] | None) -> None:
    """Add the qid of a row, as text, to a set of them, where there is one."""
    if qids is not None and isinstance(qid := row.values.get("qid"), (int, str)):
        qids.add(str(qid))


def _note_no_answer(row: Row, unanswered: set[str] | None, refused: set[str] | None) -> None:
    """A row that has no window: left out where that is allowed, else a problem."""
    qid = row.qid()
    if unanswered is None:
        message = (
            f"is [], no answer for qid {shorten(qid)}; expected one or more [start, end, score] "
            '(evaluating with missing="miss", or --missing miss, counts it as a miss; `vmr-env convert` '
            "writes it as one)"
        )
        row.note("pred_relevant_windows", message)
        _remember(row, refused)
    else:
        _remember(row, unanswered)


def _score_only_window(row: Row) -> bool:
    """Give the only window of a row the score 1 where it has none; whether that was so."""
    windows = row.values.get("pred_relevant_windows")
    if not (is_list(windows) and len(windows) == 1 and is_list(windows[0]) and len(windows[0]) == 2):
        return False
    (window,) = windows
    row.values = {**row.values, "pred_relevant_windows": [[*window, 1.0]]}
    return True


def _prediction(row: Row) -> Prediction | None:
    qid, vid, query = row.qid(), row.text("vid"), row.text("query")
    windows = row.table("pred_relevant_windows", "start, end, score", np.float64)
    given = "pred_saliency_scores" in row.values
    # Wider than it will be kept: the constructor reports what does not fit 32 bits.
    saliency: NDArray[Any] | None = row.vector("pred_saliency_scores", np.float64) if given else None
    if row.problems or qid is None or vid is None or query is None or windows is None:
        return None
    try:
        return Prediction(qid, vid, query, windows, saliency)
    except DataError as error:
        row.adopt(error)
        return None


def write_predictions(path: PathLike, rows: Iterable[Prediction]) -> None:
    """Write predictions as an official submission file, in the given order; `.gz` by suffix.

    The file appears whole or not at all. Reading it back gives the same rows, bit for bit.

    Raises:
        DataError: no rows, a qid twice, saliency in some rows only, or the file cannot be written.
    """
    rows = predictions_from(rows, "rows")
    write_text(path, "".join(json.dumps(submission_row(row)) + "\n" for row in rows))


def submission_row(prediction: Prediction) -> dict[str, Any]:
    """The fields of a prediction in an official submission file."""
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
