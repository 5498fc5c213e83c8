"""All problems of a file at once: what readers refuse, and warnings about what is legal but suspicious."""

import math
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vmr_env.data.annotations import (
    SALIENCY_CLIP_SECONDS,
    Annotation,
    PastEnd,
    annotations_from,
    parse_annotations,
)
from vmr_env.data.predictions import Prediction, is_unsorted, parse_predictions
from vmr_env.data.profiles import DatasetProfile, seems_of_another
from vmr_env.data.timelines import Asked
from vmr_env.errors import DataError, DataWarning, Problem, shorten
from vmr_env.files.text import PathLike, name_of


def validate_annotations(path: PathLike, *, past_end: PastEnd = "error") -> list[Problem]:
    """Problems of an annotation file, by row; empty for a perfect one.

    Errors are what `read_annotations` refuses under the same rule, and warnings what it tells. Further
    warnings: rows that repeat video, sentence and moments of an earlier row under another qid (TACoS has
    many; each is kept and scored).
    """
    problems: list[Problem] = []
    try:
        rows = parse_annotations(path, problems, past_end=past_end)
    except DataError as error:
        return list(error.problems)
    first: dict[tuple[str, str, bytes], int] = {}
    repeats = {}
    for number, row in rows.items():
        earlier = first.setdefault((row.vid, row.query.strip().lower(), row.moments.tobytes()), number)
        if earlier != number:
            repeats[number] = f"repeats video, sentence and moments of row {earlier} under another qid"
    return _by_row([*problems, *_warning(path, None, repeats, "each is kept and scored")])


def validate_predictions(
    path: PathLike,
    annotations: PathLike | Iterable[Annotation] | None = None,
    profile: DatasetProfile | None = None,
    *,
    past_end: PastEnd = "error",
) -> list[Problem]:
    """Problems of a prediction file, by row; empty for a perfect one.

    Errors are what `read_predictions` and a cache refuse and, with annotations, what `evaluate` refuses:
    scores outside [0, 1], qids that are unknown or missing, other videos than the annotations' and, with a
    data set, saliency curves that do not fit the clips. Warnings: windows that are not by falling score or
    look normalised and, with annotations, another sentence, a number of saliency scores other than that of
    clips, windows that look counted in clips, and windows past the end. Each kind of warning is
    given once, at its first row, with a count.

    Args:
        path: the prediction file.
        annotations: ground truth of the same split, a file or rows; its own problems are reported too.
        profile: the data set, whose clips saliency curves are compared with.
        past_end: rule for moments that do not lie within their video; see `PastEnd`.
    """
    problems: list[Problem] = []
    refused: set[str] = set()
    try:
        rows = parse_predictions(path, problems, before_start="error", refused=refused)
    except DataError as error:
        return list(error.problems)
    unsorted = {
        number: "lists a window after one of lower score" for number, row in rows.items() if is_unsorted(row)
    }
    note = "the evaluator takes the first window as the answer, so a file in decoder order scores low"
    problems += _warning(path, "pred_relevant_windows", unsorted, note)
    problems += score_problems(name_of(path), rows)
    if (message := normalised(rows)) is not None:
        problems.append(Problem(name_of(path), min(rows), "pred_relevant_windows", message, "warning"))
    if annotations is None:
        return _by_row(problems)
    try:
        truth = _truth(annotations, problems, past_end)
    except DataError as error:
        return _by_row([*problems, *error.problems])
    where = name_of(path)
    problems += qid_mismatches(where, rows, truth, refused)
    problems += video_mismatches(where, rows, truth)
    problems += _detail_warnings(path, rows, truth)
    if profile is not None:
        problems += saliency_problems(where, rows, truth, profile.clip_seconds)
        if (message := seems_of_another((row.vid for row in rows.values()), profile)) is not None:
            problems.append(Problem(where, min(rows), "vid", message, "warning"))
    rated = any(row.saliency is not None for row in truth)  # of QVHighlights
    if rated and (message := counted_in_clips(rows, truth, SALIENCY_CLIP_SECONDS)) is not None:
        problems.append(Problem(where, min(rows), "pred_relevant_windows", message, "warning"))
    return _by_row(problems)


def warn_of_suspicions(
    where: str, rows: Sequence[Prediction], queries: Iterable[Asked], profile: DatasetProfile | None
) -> None:
    """Warn of predictions that are legal but probably mistaken.

    Args:
        where: what they are called in messages.
        rows: of one model.
        queries: what each of them answers, and perhaps others.
        profile: the data set; None where nobody knows, and so not what a clip is.

    Warns:
        DataWarning: windows are not by falling score, or look like shares or like clips, or vids look like
            those of another data set.
    """
    if unsorted := sum(map(is_unsorted, rows)):
        message = (
            f"{where}: pred_relevant_windows of {unsorted} of {len(rows)} rows are not by falling score, and "
            "the first is taken for the answer; sort=True (--sort) sorts them"
        )
        warnings.warn(message, DataWarning, stacklevel=3)
    by_number = dict(enumerate(rows))
    suspicions = {"pred_relevant_windows": [normalised(by_number)]}
    if profile is not None:
        suspicions["pred_relevant_windows"].append(counted_in_clips(by_number, queries, profile.clip_seconds))
        suspicions["vid"] = [seems_of_another((row.vid for row in rows), profile)]
    for field, said in suspicions.items():
        for one in said:
            if one is not None:
                warnings.warn(f"{where}: {field} {one}", DataWarning, stacklevel=3)


def check_windows(
    where: str, rows: Sequence[Prediction], queries: Iterable[Asked], profile: DatasetProfile | None
) -> None:
    """Refuse predictions whose scores caches refuse, and warn as `warn_of_suspicions`, whose arguments these
    are.

    Raises:
        DataError: a score is not within [0, 1].
    """
    if problems := score_problems(where, dict(enumerate(rows, 1))):
        raise DataError(problems)
    warn_of_suspicions(where, rows, queries, profile)


LEAST_ROWS = 20
"""Rows of a file from which on its times are judged as a whole."""


def normalised(rows: Mapping[int, Prediction]) -> str | None:
    """What to say of a file whose windows look like shares of the video; None where they do not."""
    ends = [float(row.windows[:, 1].max()) for row in rows.values()]
    if len(ends) < LEAST_ROWS or max(ends) > 1:
        return None
    return f"end at {max(ends):g} at the latest, so they look normalised; expected seconds"


def counted_in_clips(
    rows: Mapping[int, Prediction], annotations: Iterable[Asked], clip_seconds: float
) -> str | None:
    """What to say of a file whose windows look counted in clips; None where they do not.

    No window then ends later than the video has clips, though some come close to it. Of clips of a second
    nothing can be told.
    """
    durations = {str(annotation.qid): annotation.duration for annotation in annotations}
    shares = [
        float(row.windows[:, 1].max()) * clip_seconds / durations[str(row.qid)]
        for row in rows.values()
        if str(row.qid) in durations
    ]
    if clip_seconds <= 1 or len(shares) < LEAST_ROWS or not 0.5 < max(shares) <= 1 + 1e-6:
        return None
    return (
        f"end before 1 / {clip_seconds:g} of every video, so they look counted in clips of "
        f"{clip_seconds:g} s; expected seconds"
    )


def qid_mismatches(
    where: str,
    predictions: Mapping[int, Prediction],
    annotations: Iterable[Annotation],
    refused: Collection[str] = (),
    lacking: bool = True,
) -> list[Problem]:
    """A problem if predictions (by row) miss queries of the ground truth, and one if they have others.

    Qids in `refused` (as text) stood in rows that were refused for something else: they are not missing.
    Where `lacking` is False, queries that are missing are no problem.
    """
    wanted = {str(annotation.qid): annotation.qid for annotation in annotations}
    given = {str(prediction.qid) for prediction in predictions.values()}
    unknown = {number: row.qid for number, row in predictions.items() if str(row.qid) not in wanted}
    missing = [qid for text, qid in wanted.items() if text not in given and text not in refused]
    problems = []
    if missing and lacking:
        message = (
            f"lacks {len(missing)} queries of the ground truth, {shorten(missing)}; expected all "
            '(evaluating with missing="miss", or --missing miss, counts them as misses)'
        )
        problems.append(Problem(where, None, "qid", message))
    if unknown:
        found = shorten(list(unknown.values()))
        message = f"has {len(unknown)} queries more than the ground truth, {found}; expected none"
        problems.append(Problem(where, min(unknown), "qid", message))
    return problems


def video_mismatches(
    where: str, predictions: Mapping[int, Prediction], annotations: Iterable[Annotation]
) -> list[Problem]:
    """A problem for each prediction (by row) whose video is not that of its query in the ground truth."""
    videos = {str(annotation.qid): annotation.vid for annotation in annotations}
    return [
        Problem(
            where, number, "vid", f"is {shorten(row.vid)}; expected {shorten(vid)} for qid {shorten(row.qid)}"
        )
        for number, row in predictions.items()
        if (vid := videos.get(str(row.qid), row.vid)) != row.vid
    ]


SALIENCY_SLACK = 1
"""By how many values a saliency curve may differ from the number of clips.

Video features often are a clip shorter than the annotated duration; a larger difference means other clips.
"""


def score_problems(where: str, predictions: Mapping[int, Prediction]) -> list[Problem]:
    """A problem if predictions (by row) have scores outside [0, 1], at the first, with their number."""
    outside = [
        (number, int(window), row.windows[window])
        for number, row in predictions.items()
        for window in np.flatnonzero((row.windows[:, 2] < 0) | (row.windows[:, 2] > 1))
    ]
    if not outside:
        return []
    number, window, values = outside[0]
    message = (
        f"is {shorten(values)}; expected a score within [0, 1] ({len(outside)} windows in all; "
        "`vmr-env convert --scores sigmoid`, or minmax, rescales them)"
    )
    return [Problem(where, number, f"pred_relevant_windows[{window}]", message)]


def saliency_problems(
    where: str, predictions: Mapping[int, Prediction], annotations: Iterable[Annotation], clip_seconds: float
) -> list[Problem]:
    """A problem for each saliency curve (by row) whose length is not about that of the video in clips.

    One for all where none is: then the clips are of another length.
    """
    clips = {str(row.qid): math.ceil(row.duration / clip_seconds) for row in annotations}
    problems = [
        Problem(
            where,
            number,
            "pred_saliency_scores",
            f"of qid {shorten(row.qid)} has {len(row.saliency)} values; expected {wanted}, one per clip",
        )
        for number, row in predictions.items()
        if row.saliency is not None
        and (wanted := clips.get(str(row.qid))) is not None
        and abs(wanted - len(row.saliency)) > SALIENCY_SLACK
    ]
    curves = sum(row.saliency is not None for row in predictions.values())
    if curves < LEAST_ROWS or len(problems) < curves:
        return problems
    first = problems[0]
    hint = f"so it is in all {curves} rows; is the data set (--dataset) the right one?"
    return [replace(first, message=f"{first.message} of {clip_seconds:g} s; {hint}")]


def _truth(
    annotations: PathLike | Iterable[Annotation], problems: list[Problem], past_end: PastEnd
) -> list[Annotation]:
    if isinstance(annotations, (str, os.PathLike)):
        return list(parse_annotations(annotations, problems, past_end=past_end).values())
    return annotations_from(annotations, "annotations", past_end=past_end)


def _detail_warnings(
    path: PathLike, rows: Mapping[int, Prediction], annotations: Iterable[Annotation]
) -> Iterable[Problem]:
    """Warnings about predictions that fit their query by qid but differ from it in detail."""
    by_qid = {str(annotation.qid): annotation for annotation in annotations}
    sentences, lengths, ends = {}, {}, {}
    for number, row in rows.items():
        truth = by_qid.get(str(row.qid))
        if truth is None:
            continue
        if row.query != truth.query:
            sentences[number] = f"is {shorten(row.query)} and {shorten(truth.query)} in the ground truth"
        clips = int(truth.duration / SALIENCY_CLIP_SECONDS)
        if row.saliency is not None and truth.saliency is not None and len(row.saliency) != clips:
            lengths[number] = f"has {len(row.saliency)} scores for {clips} clips"
        if (end := row.windows[:, 1].max()) > truth.duration:
            ends[number] = f"ends at {end} s in a video of {truth.duration} s"
    yield from _warning(path, "query", sentences, "sentences are not scored")
    yield from _warning(path, "pred_saliency_scores", lengths, "the evaluator cuts, or fills up with zeros")
    yield from _warning(path, "pred_relevant_windows", ends, "the evaluator scores windows as they stand")


def _warning(path: PathLike, field: str | None, rows: Mapping[int, Any], note: str) -> Iterable[Problem]:
    """One warning for all rows of a kind: at the first, with its text, the count and what it means."""
    if rows:
        number = min(rows)
        message = f"{rows[number]} ({len(rows)} rows in all; {note})"
        yield Problem(name_of(path), number, field, message, severity="warning")


def _by_row(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: problem.row or 0)
