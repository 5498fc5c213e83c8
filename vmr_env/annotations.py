"""Ground truth: queries with their moments, from moment-detr `.jsonl` and Charades-STA's text files."""

import csv
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.errors import DataError, DataWarning, Problem, shorten
from vmr_env.files import PathLike, read_lines
from vmr_env.rows import Qid, Row, check_unique_qids, read_rows

PastEnd: TypeAlias = Literal["error", "clip", "keep"]
"""What to do with moments that end after the video.

"error" reports them. "clip" moves the end to the video's end and counts the moments changed in a
`DataWarning`; one that starts at or after the end has nothing to clip and stays an error. "keep" leaves them
as they stand, as the official evaluator scores them.
"""

SALIENCY_CLIP_SECONDS = 2.0
"""Length of the clips that saliency annotations rate; the official evaluator knows no other."""


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """One query with its ground truth.

    Attributes:
        qid: query id, int or non-empty string; 7 and "7" are the same query.
        vid: video id.
        query: the sentence.
        duration: length of the video in seconds.
        moments: float64 (M, 2), M >= 1, [start, end] in seconds, 0 <= start < end, in file order.
        clip_ids: int64 (K,) clips of two seconds that have saliency ratings, or None.
        saliency: int64 (K, 3) ratings 0 to 4 of three people for those clips, or None with `clip_ids`.

    Raises:
        DataError: a value breaks these rules; all broken fields are named.
    """

    qid: Qid
    vid: str
    query: str
    duration: float
    moments: NDArray[np.float64]
    clip_ids: NDArray[np.int64] | None = None
    saliency: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        problems = list(check_identity(self.qid, self.vid, self.query))
        duration = self.duration
        if not (np.isfinite(duration) and duration > 0):
            problems.append(("duration", f"is {shorten(duration)}; expected seconds, finite and above 0"))
        moments = np.asarray(self.moments, dtype=np.float64)
        object.__setattr__(self, "moments", moments)
        if moments.ndim != 2 or moments.shape[1] != 2 or not len(moments):
            problems.append(
                ("relevant_windows", f"has shape {moments.shape}; expected at least one [start, end]")
            )
        else:
            for i, (start, end) in enumerate(moments.tolist()):
                if not 0 <= start < end < np.inf:
                    message = f"is {shorten([start, end])}; expected finite seconds with 0 <= start < end"
                    problems.append((f"relevant_windows[{i}]", message))
        if self.clip_ids is not None or self.saliency is not None:
            problems.extend(self._check_saliency())
        if problems:
            raise DataError(Problem("Annotation", None, field, message) for field, message in problems)

    def _check_saliency(self) -> Iterable[tuple[str, str]]:
        if self.clip_ids is None or self.saliency is None:
            given, absent = ("relevant_clip_ids", "saliency_scores")[:: 1 if self.saliency is None else -1]
            yield absent, f"is missing; expected it beside {given}"
            return
        ids = np.asarray(self.clip_ids)
        scores = np.asarray(self.saliency)
        if ids.ndim != 1:
            yield "relevant_clip_ids", f"has shape {ids.shape}; expected a list of clip numbers"
        elif scores.shape != (len(ids), 3):
            yield (
                "saliency_scores",
                f"has shape {scores.shape}; expected ({len(ids)}, 3), three ratings per clip",
            )
        elif (
            not (np.mod(ids, 1) == 0).all()
            or (ids < 0).any()
            or (ids * SALIENCY_CLIP_SECONDS >= self.duration).any()
        ):
            message = f"is {shorten(ids.tolist())}; expected whole numbers of clips inside {self.duration} s"
            yield "relevant_clip_ids", message
        elif len(np.unique(ids)) < len(ids):
            yield "relevant_clip_ids", f"is {shorten(ids.tolist())}; expected each clip once"
        elif not np.isin(scores, range(5)).all():
            i = int(np.flatnonzero(~np.isin(scores, range(5)).all(axis=1))[0])
            yield f"saliency_scores[{i}]", f"is {shorten(scores[i].tolist())}; expected whole numbers 0 to 4"
        else:
            object.__setattr__(self, "clip_ids", ids.astype(np.int64))
            object.__setattr__(self, "saliency", scores.astype(np.int64))


def check_identity(qid: object, vid: object, query: object) -> Iterable[tuple[str, str]]:
    """(field, message) for each of the three that is no usable name."""
    if isinstance(qid, bool) or not isinstance(qid, (int, str)) or qid == "":
        yield "qid", f"is {shorten(qid)}; expected an int or a non-empty string"
    for field, value in (("vid", vid), ("query", query)):
        if not isinstance(value, str) or not value.strip():
            yield field, f"is {shorten(value)}; expected a non-empty string"


def read_annotations(path: PathLike, *, past_end: PastEnd = "error") -> list[Annotation]:
    """Rows of a moment-detr annotation file (`.jsonl`, `.jsonl.gz`), in file order.

    Unknown fields are ignored. Saliency (`relevant_clip_ids` and `saliency_scores`) must stand in all rows or
    in none. Rows that repeat an earlier one under another qid are kept.

    Args:
        path: the file.
        past_end: rule for moments that end after the video; see `PastEnd`.

    Raises:
        DataError: all problems of the file at once.
    """
    annotations, problems = parse_annotations(path, past_end=past_end)
    if problems:
        raise DataError(problems)
    return annotations


def parse_annotations(path: PathLike, *, past_end: PastEnd) -> tuple[list[Annotation], list[Problem]]:
    """Usable rows of an annotation file, and the problems of all others."""
    problems: list[Problem] = []
    annotations = annotations_of_rows(os.fspath(path), read_rows(path, problems), problems, past_end)
    return annotations, sorted(problems, key=lambda problem: problem.row or 0)


def annotations_of_rows(
    where: str, rows: Iterable[Row], problems: list[Problem], past_end: PastEnd
) -> list[Annotation]:
    """Annotations of checked rows; what does not fit is added to `problems`."""
    if past_end not in ("error", "clip", "keep"):
        raise DataError(
            Problem("past_end", None, None, f'is {past_end!r}; expected "error", "clip" or "keep"')
        )
    annotations: list[Annotation] = []
    numbers: list[int] = []
    clipped = 0
    for row in rows:
        annotation = _annotation(row)
        if annotation is not None and past_end != "keep":
            changed = _settle_past_end(row, annotation, past_end)
            clipped += changed
        problems.extend(row.problems)
        if annotation is not None and not row.problems:
            annotations.append(annotation)
            numbers.append(row.number)
    problems.extend(check_unique_qids(where, zip(numbers, (a.qid for a in annotations), strict=True)))
    problems.extend(
        check_all_or_none(where, numbers, [a.saliency is not None for a in annotations], "saliency_scores")
    )
    if clipped and not problems:
        warnings.warn(
            f"{where}: {clipped} moments that end after their video were cut at its end", DataWarning, 3
        )
    return annotations


def _annotation(row: Row) -> Annotation | None:
    qid, vid, query = row.qid(), row.text("vid"), row.text("query")
    duration = row.number_of("duration")
    moments = row.table("relevant_windows", "start, end")
    clip_ids = row.vector("relevant_clip_ids") if "relevant_clip_ids" in row.values else None
    saliency = row.table("saliency_scores", "a, b, c") if "saliency_scores" in row.values else None
    if row.problems or qid is None or vid is None or query is None or duration is None or moments is None:
        return None
    try:
        # Whole floats are checked and cast by the constructor.
        return Annotation(qid, vid, query, duration, moments, clip_ids, saliency)  # type: ignore[arg-type]
    except DataError as error:
        for problem in error.problems:
            row.note(problem.field, problem.message)
        return None


def _settle_past_end(row: Row, annotation: Annotation, past_end: PastEnd) -> int:
    """Report or clip moments past the end; the number clipped."""
    moments, duration = annotation.moments, annotation.duration
    changed = 0
    for i, (start, end) in enumerate(moments.tolist()):
        if end <= duration:
            continue
        if past_end == "clip" and start < duration:
            moments[i, 1] = duration
            changed += 1
        else:
            verb = "starts" if start >= duration else "ends"
            message = f"is [{start}, {end}] and {verb} after the video; expected at most its {duration} s"
            row.note(f"relevant_windows[{i}]", message)
    return changed


def check_all_or_none(where: str, numbers: list[int], present: list[bool], field: str) -> list[Problem]:
    """A problem if a field stands in some rows only."""
    if all(present) or not any(present):
        return []
    row = numbers[present.index(False)]
    message = (
        f"is missing here and given in {sum(present)} of {len(present)} rows; expected it in all or in none"
    )
    return [Problem(where, row, field, message)]


_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TEXT_LINE = re.compile(rf"(\S+)\s+({_NUMBER})\s+({_NUMBER})\s*##(.*)", re.ASCII)


def read_charades_text(
    path: PathLike,
    durations: Mapping[str, float],
    *,
    first_qid: int = 0,
    past_end: PastEnd = "error",
    reversed_moments: Literal["error", "drop"] = "error",
) -> list[Annotation]:
    """Rows of Charades-STA's original text format (`.txt`, `.txt.gz`): `VIDEO start end##sentence`, seconds.

    Args:
        path: the file.
        durations: length of each video in seconds, by video id; see `read_durations`.
        first_qid: qid of the first row; the following rows count on, left-out rows without a gap.
        past_end: rule for moments that end after the video; see `PastEnd`.
        reversed_moments: "error" reports lines with end <= start (the original train file has four); "drop"
            leaves them out, as the `.jsonl` version of the data set does, and counts them in a `DataWarning`.

    Raises:
        DataError: all problems of the file at once.
    """
    where = os.fspath(path)
    if reversed_moments not in ("error", "drop"):
        message = f'is {reversed_moments!r}; expected "error" or "drop"'
        raise DataError(Problem("reversed_moments", None, None, message))
    problems: list[Problem] = []
    rows: list[Row] = []
    dropped = 0
    for number, line in enumerate(read_lines(path), start=1):
        match = _TEXT_LINE.fullmatch(line.rstrip())
        if match is None:
            message = f"is {shorten(line)}; expected VIDEO start end##sentence"
            problems.append(Problem(where, number, None, message))
            continue
        vid, start, end, sentence = match.groups()
        if vid not in durations:
            problems.append(
                Problem(where, number, "vid", f"is {shorten(vid)}; expected a video with a known duration")
            )
            continue
        if reversed_moments == "drop" and float(end) <= float(start):
            dropped += 1
            continue
        values = {
            "qid": first_qid + len(rows),
            "vid": vid,
            "query": sentence,
            "duration": durations[vid],
            "relevant_windows": [[float(start), float(end)]],
        }
        rows.append(Row(where, number, values))
    annotations = annotations_of_rows(where, rows, problems, past_end)
    if problems:
        raise DataError(sorted(problems, key=lambda problem: problem.row or 0))
    if dropped:
        warnings.warn(f"{where}: {dropped} lines with end <= start were left out", DataWarning, 2)
    return annotations


def read_durations(path: PathLike) -> dict[str, float]:
    """Video lengths in seconds by video id.

    Reads a `.json` object `{video: seconds}` or a `.csv` table with columns `id` and `length`, as the AI2
    Charades tables have; both may be gzipped.

    Raises:
        DataError: all problems of the file at once.
    """
    where = os.fspath(path)
    lines = read_lines(path)
    suffix = Path(where.removesuffix(".gz")).suffix
    readers = {".json": _durations_of_json, ".csv": _durations_of_csv}
    if suffix not in readers:
        raise DataError(
            Problem(where, None, None, f"ends in {suffix!r}; expected .json or .csv, plain or .gz")
        )
    problems: list[Problem] = []
    durations: dict[str, float] = {}
    for row in readers[suffix](where, lines):
        vid, seconds = row.text("id"), row.number_of("length")
        if seconds is not None and not (np.isfinite(seconds) and seconds > 0):
            row.note("length", f"is {seconds}; expected seconds, finite and above 0")
        if vid in durations:
            row.note("id", f"is {shorten(vid)}, which stands before; expected each video once")
        problems.extend(row.problems)
        if vid is not None and seconds is not None:
            durations[vid] = seconds
    if problems:
        raise DataError(problems)
    return durations


def _durations_of_json(where: str, lines: list[str]) -> list[Row]:
    try:
        table = json.loads("\n".join(lines))
    except (ValueError, RecursionError) as error:
        raise DataError(Problem(where, None, None, f"is no JSON ({error}); expected an object")) from None
    if not isinstance(table, dict):
        raise DataError(
            Problem(where, None, None, f"is {shorten(table)}; expected an object {{video: seconds}}")
        )
    return [
        Row(where, i, {"id": vid, "length": value}) for i, (vid, value) in enumerate(table.items(), start=1)
    ]


def _durations_of_csv(where: str, lines: list[str]) -> list[Row]:
    reader = csv.DictReader(lines, strict=True)
    rows = []
    try:
        for values in reader:
            length = values.get("length")
            number = float(length) if length and re.fullmatch(_NUMBER, length, re.ASCII) else length
            rows.append(Row(where, reader.line_num, {**values, "length": number}))
    except csv.Error as error:
        raise DataError(Problem(where, reader.line_num, None, f"is no CSV ({error})")) from None
    return rows
