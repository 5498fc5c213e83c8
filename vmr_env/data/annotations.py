"""Ground truth: queries with their moments, from moment-detr `.jsonl` and Charades-STA's text files."""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.data.durations import NUMBER
from vmr_env.data.rows import Fault, Qid, Row, collect, given_rows, identity_faults, is_number, read_rows
from vmr_env.errors import DataError, DataWarning, Problem, check_choice, shorten
from vmr_env.files.text import PathLike, name_of, read_lines

PastEnd: TypeAlias = Literal["error", "clip", "keep"]
"""What to do with moments that end after the video.

"error" reports them. "clip" moves the end to the video's end and counts the moments changed in a
`DataWarning`; one that starts at or after the end has nothing to clip and stays an error. "keep" leaves them
as they stand, as the official evaluator scores them.
"""

SALIENCY_CLIP_SECONDS = 2.0
"""Length of the clips that saliency annotations rate; the official evaluator knows no other."""

MAX_RATING = 4


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
        problems = [*identity_faults(self.qid, self.vid, self.query), *self._faults()]
        if problems:
            raise DataError(Problem("Annotation", None, field, message) for field, message in problems)
        object.__setattr__(self, "moments", np.asarray(self.moments, dtype=np.float64))
        if self.saliency is not None:
            object.__setattr__(self, "clip_ids", np.asarray(self.clip_ids, dtype=np.int64))
            object.__setattr__(self, "saliency", np.asarray(self.saliency, dtype=np.int64))

    def _faults(self) -> Iterable[Fault]:
        known = is_number(self.duration) and 0 < self.duration < np.inf
        if not known:
            yield "duration", f"is {shorten(self.duration)}; expected seconds, finite and above 0"
        moments = np.asarray(self.moments)
        if moments.ndim != 2 or moments.shape[1] != 2 or not len(moments) or moments.dtype.kind not in "fiu":
            yield "relevant_windows", f"is {shorten(self.moments)}; expected one or more [start, end]"
        else:
            for i, (start, end) in enumerate(moments.tolist()):
                if not 0 <= start < end < np.inf:
                    message = f"is [{start}, {end}]; expected finite seconds with 0 <= start < end"
                    yield f"relevant_windows[{i}]", message
        if self.clip_ids is not None and self.saliency is not None:
            clips = self.duration // SALIENCY_CLIP_SECONDS if known else np.inf
            yield from _saliency_faults(np.asarray(self.clip_ids), np.asarray(self.saliency), clips)
        elif self.clip_ids is not None:
            yield "saliency_scores", "is missing; expected it beside relevant_clip_ids"
        elif self.saliency is not None:
            yield "relevant_clip_ids", "is missing; expected it beside saliency_scores"


def _saliency_faults(clip_ids: NDArray[Any], saliency: NDArray[Any], clips: float) -> Iterable[Fault]:
    """Faults of rated clips (K,) and their ratings (K, 3), for a video of so many clips."""
    if clip_ids.ndim != 1 or saliency.shape != (len(clip_ids), 3):
        found = f"has shape {saliency.shape} for clips of shape {clip_ids.shape}"
        yield "saliency_scores", f"{found}; expected three ratings per clip"
    elif clip_ids.dtype.kind not in "iu" or saliency.dtype.kind not in "iu":
        yield "saliency_scores", f"is {saliency.dtype} for {clip_ids.dtype} clips; expected whole numbers"
    elif not len(clip_ids):
        return
    elif clip_ids.min() < 0 or clip_ids.max() >= clips:
        yield "relevant_clip_ids", f"is {shorten(clip_ids.tolist())}; expected two-second clips of the video"
    elif len(set(clip_ids.tolist())) < len(clip_ids):
        yield "relevant_clip_ids", f"is {shorten(clip_ids.tolist())}; expected each clip once"
    elif saliency.min() < 0 or saliency.max() > MAX_RATING:
        i = int(((saliency < 0) | (saliency > MAX_RATING)).any(axis=1).argmax())
        found = f"is {saliency[i].tolist()}"
        yield f"saliency_scores[{i}]", f"{found}; expected ratings from 0 to {MAX_RATING}"


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
    problems: list[Problem] = []
    annotations = parse_annotations(path, problems, past_end=past_end)
    if problems:
        raise DataError(problems)
    return list(annotations.values())


def parse_annotations(path: PathLike, problems: list[Problem], *, past_end: PastEnd) -> dict[int, Annotation]:
    """Usable rows of an annotation file by line; the problems of the others are added to `problems`."""
    return _collect(name_of(path), read_rows(path, problems), problems, past_end)


def annotations_from(
    rows: Iterable[Annotation | Mapping[str, Any]], where: str, *, past_end: PastEnd = "error"
) -> list[Annotation]:
    """Rows made in memory: `Annotation` objects as they are, dicts with the fields of a file under its rules.

    Args:
        rows: the rows.
        where: name of the argument, for messages.
        past_end: rule for moments of dicts that end after the video; see `PastEnd`.

    Raises:
        DataError: all problems at once.
    """
    problems: list[Problem] = []
    annotations = _collect(where, given_rows(where, rows, Annotation, problems), problems, past_end)
    if problems:
        raise DataError(problems)
    return list(annotations.values())


def _collect(
    where: str, rows: Iterable[tuple[int, Row | Annotation]], problems: list[Problem], past_end: PastEnd
) -> dict[int, Annotation]:
    check_choice("past_end", past_end, ("error", "clip", "keep"))
    clipped = 0

    def build(row: Row) -> Annotation | None:
        nonlocal clipped
        annotation = _annotation(row)
        if annotation is not None and past_end != "keep":
            clipped += _settle_past_end(row, annotation, past_end)
        return None if row.problems else annotation

    annotations = collect(where, rows, build, "saliency_scores", problems)
    if clipped and not problems:
        message = f"{where}: {clipped} moments that end after their video were cut at its end"
        warnings.warn(message, DataWarning, stacklevel=3)
    return annotations


def _annotation(row: Row) -> Annotation | None:
    qid, vid, query = row.qid(), row.text("vid"), row.text("query")
    duration = row.number_of("duration")
    moments = row.table("relevant_windows", "start, end", np.float64)
    clip_ids = row.vector("relevant_clip_ids", np.int64) if "relevant_clip_ids" in row.values else None
    saliency = row.table("saliency_scores", "a, b, c", np.int64) if "saliency_scores" in row.values else None
    if row.problems or qid is None or vid is None or query is None or duration is None or moments is None:
        return None
    try:
        return Annotation(qid, vid, query, duration, moments, clip_ids, saliency)
    except DataError as error:
        row.adopt(error)
        return None


def _settle_past_end(row: Row, annotation: Annotation, past_end: PastEnd) -> int:
    """Report or clip the moments of a fresh annotation that end after its video; the number clipped."""
    moments, duration = annotation.moments, annotation.duration
    clipped = 0
    for i, (start, end) in enumerate(moments.tolist()):
        if end <= duration:
            continue
        if past_end == "clip" and start < duration:
            moments[i, 1] = duration
            clipped += 1
        else:
            verb = "starts" if start >= duration else "ends"
            message = f"is [{start}, {end}] and {verb} after the video; expected at most {duration} s"
            row.note(f"relevant_windows[{i}]", f"{message} (past_end can allow more)")
    return clipped


_TEXT_LINE = re.compile(rf"(\S+)\s+({NUMBER})\s+({NUMBER})\s*##(.*)", re.ASCII)


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
        durations: length of each video in seconds, by video id; see `durations.read_durations`.
        first_qid: qid of the first row; the following rows count on, left-out rows without a gap.
        past_end: rule for moments that end after the video; see `PastEnd`.
        reversed_moments: "error" reports lines with end <= start (the original train file has four); "drop"
            leaves them out, as the `.jsonl` version of the data set does, and counts them in a `DataWarning`.

    Raises:
        DataError: all problems of the file at once.
    """
    where = name_of(path)
    check_choice("reversed_moments", reversed_moments, ("error", "drop"))
    problems: list[Problem] = []
    rows: list[tuple[int, Row]] = []
    dropped = 0
    for number, line in enumerate(read_lines(path), start=1):
        match = _TEXT_LINE.fullmatch(line.rstrip())
        if match is None:
            message = f"is {shorten(line)}; expected VIDEO start end##sentence"
            problems.append(Problem(where, number, None, message))
            continue
        vid, start, end, sentence = match.groups()
        if vid not in durations:
            message = f"is {shorten(vid)}; expected a video with a known duration"
            problems.append(Problem(where, number, "vid", message))
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
        rows.append((number, Row(where, number, values)))
    annotations = _collect(where, rows, problems, past_end)
    if problems:
        raise DataError(problems)
    if dropped:
        message = f"{where}: {dropped} lines with end <= start were left out"
        warnings.warn(message, DataWarning, stacklevel=2)
    return list(annotations.values())
