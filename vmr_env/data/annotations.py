"""Ground truth: queries with their moments, from moment-detr `.jsonl` and Charades-STA's text files."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.data.durations import NUMBER, SECONDS, is_seconds
from vmr_env.data.rows import Fault, Qid, Row, collect, given_rows, identity_faults, rows_of_kind
from vmr_env.errors import DataError, Problem, check_choice, conclude, shorten
from vmr_env.files.text import PathLike, name_of, read_lines, write_text

PastEnd: TypeAlias = Literal["error", "clip", "keep", "drop"]
"""What to do with moments that do not lie within their video: that end after it, start before it, or have no
length.

"error" reports them. "clip" cuts them to the video; one of which nothing would be left stays an error. "keep"
leaves them as they stand, as the official evaluators score them; one without length is a miss. "drop" leaves
them out, and rows of which no moment is left. By at most `NOISE_SECONDS` moments pass the video for their
rounding: these are cut under every rule but "keep". A `DataWarning` counts what was cut and left out.
"""

PAST_END: tuple[PastEnd, ...] = ("error", "clip", "keep", "drop")

NOISE_SECONDS = 0.02

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
        moments: float64 (M, 2), M >= 1, finite [start, end] in seconds, in file order; 0 <= start < end <=
            duration but where a reader was told to keep others (see `PastEnd`).
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
        known = is_seconds(self.duration)
        if not known:
            yield "duration", f"is {shorten(self.duration)}; expected {SECONDS}"
        moments = np.asarray(self.moments)
        if moments.ndim != 2 or moments.shape[1] != 2 or not len(moments) or moments.dtype.kind not in "fiu":
            yield "relevant_windows", f"is {shorten(self.moments)}; expected one or more [start, end]"
        else:
            for i in np.flatnonzero(~np.isfinite(moments).all(axis=1)):
                message = f"is {shorten(moments[i])}; expected finite seconds with 0 <= start < end"
                yield f"relevant_windows[{i}]", message
        if self.clip_ids is not None and self.saliency is not None:
            clips = self.duration // SALIENCY_CLIP_SECONDS if known else np.inf
            yield from saliency_faults(np.asarray(self.clip_ids), np.asarray(self.saliency), clips)
        elif self.clip_ids is not None:
            yield "saliency_scores", "is missing; expected it beside relevant_clip_ids"
        elif self.saliency is not None:
            yield "relevant_clip_ids", "is missing; expected it beside saliency_scores"


def saliency_faults(clip_ids: NDArray[Any], saliency: NDArray[Any], clips: float) -> Iterable[Fault]:
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

    Unknown fields are ignored. If only some rows have saliency (`relevant_clip_ids` and `saliency_scores`), a
    `DataWarning` says so. Rows that repeat an earlier one under another qid are kept.

    Args:
        path: the file.
        past_end: rule for moments that do not lie within their video; see `PastEnd`.

    Raises:
        DataError: all problems of the file at once.
    """
    problems: list[Problem] = []
    annotations = parse_annotations(path, problems, past_end=past_end)
    conclude(problems)
    return list(annotations.values())


def parse_annotations(
    path: PathLike, problems: list[Problem], *, past_end: PastEnd, dropped: set[str] | None = None
) -> dict[int, Annotation]:
    """Usable rows of an annotation file by line; the problems of the others are added to `problems`.

    The qids of rows that the rule "drop" left out are added to `dropped`, as text.
    """
    rows = rows_of_kind(path, problems, "relevant_windows", not_of="pred_relevant_windows")
    return collect_annotations(name_of(path), rows, problems, past_end, dropped)


def parse_labelled(
    path: PathLike, problems: list[Problem], *, past_end: PastEnd, dropped: set[str]
) -> dict[int, Annotation]:
    """As `parse_annotations`, without the rows that have no `relevant_windows`; a warning counts them.

    Their qids are added to `dropped`. Where no row has any, that is an error as ever.
    """
    rows = list(rows_of_kind(path, problems, "relevant_windows", not_of="pred_relevant_windows"))
    unlabelled = {number for number, row in rows if row.values.get("relevant_windows") is None}
    if 0 < len(unlabelled) < len(rows):
        message = f"{len(unlabelled)} of {len(rows)} rows have no relevant_windows and are left out"
        problems.append(Problem(name_of(path), None, None, message, "warning"))
        dropped |= {str(row.values.get("qid")) for number, row in rows if number in unlabelled}
        rows = [(number, row) for number, row in rows if number not in unlabelled]
    return collect_annotations(name_of(path), rows, problems, past_end, dropped)


def annotations_from(
    rows: Iterable[Annotation | Mapping[str, Any]],
    where: str,
    *,
    past_end: PastEnd = "error",
    dropped: set[str] | None = None,
) -> list[Annotation]:
    """Rows made in memory: `Annotation` objects, or dicts with the fields of a file, under a file's rules.

    Args:
        rows: the rows.
        where: name of the argument, for messages.
        past_end: rule for moments that do not lie within their video; see `PastEnd`.
        dropped: takes the qids of rows that the rule "drop" left out, as text.

    Raises:
        DataError: all problems at once.
    """
    problems: list[Problem] = []
    annotations = collect_annotations(
        where, given_rows(where, rows, Annotation, problems), problems, past_end, dropped
    )
    conclude(problems)
    return list(annotations.values())


@dataclass(slots=True)
class _Tally:
    """Effect of a rule on the moments of a file: numbers of moments, and rows left out by qid."""

    cut: int = 0
    noise: int = 0
    dropped: int = 0
    rows: set[str] = field(default_factory=set)

    def told(self) -> Iterator[str]:
        """What to say of it."""
        if self.cut == self.noise > 0:
            yield f"{self.cut} moments that pass their video by at most {NOISE_SECONDS} s were cut to it"
        elif self.cut:
            rounding = f" ({self.noise} of them passed it by at most {NOISE_SECONDS} s)" if self.noise else ""
            yield f"{self.cut} moments that leave their video were cut to it{rounding}"
        if self.dropped:
            yield (
                f"{self.dropped} moments that do not lie within their video were left out, and with them "
                f"{len(self.rows)} rows that have no other"
            )


def collect_annotations(
    where: str,
    rows: Iterable[tuple[int, Row | Annotation]],
    problems: list[Problem],
    past_end: PastEnd,
    dropped: set[str] | None = None,
) -> dict[int, Annotation]:
    """Usable ones of numbered rows, under one rule for moments; all readers and converters go through here.

    Problems of the others, and warnings of what the rule did, are added to `problems`; the qids of rows that
    the rule "drop" left out to `dropped`, as text.
    """
    check_choice("past_end", past_end, PAST_END)
    tally = _Tally()

    def build(row: Row) -> Annotation | None:
        annotation = _annotation(row, past_end)
        return None if annotation is None else _settle(row, annotation, past_end, tally)

    def settled() -> Iterator[tuple[int, Row | Annotation]]:
        for number, row in rows:
            if isinstance(row, Row):
                yield number, row
                continue
            notes = Row(where, number, {})
            kept = _settle(notes, row, past_end, tally)
            problems.extend(notes.problems)
            if kept is not None:
                yield number, kept

    annotations = collect(where, settled(), build, "relevant_windows", "saliency_scores", problems)
    problems += [Problem(where, None, None, message, "warning") for message in tally.told()]
    if tally.rows and not annotations:
        message = "has no moment that is a stretch of its video; expected some"
        problems.append(Problem(where, None, "relevant_windows", message))
    if dropped is not None:
        dropped |= tally.rows
    return annotations


def _annotation(row: Row, past_end: PastEnd) -> Annotation | None:
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
        if past_end != "keep":  # faults that need no duration are reported too
            start, end = moments.T
            for i in np.flatnonzero(np.isfinite(start + end) & ((start < 0) | (start >= end))).tolist():
                row.note(f"relevant_windows[{i}]", _outside_video(moments[i], np.inf))
        return None


def _settle(row: Row, annotation: Annotation, past_end: PastEnd, tally: _Tally) -> Annotation | None:
    """The annotation under the rule for moments that do not lie within their video; None where it has none.

    Problems are noted in the row, and what was cut or left out is counted.
    """
    moments, duration = annotation.moments, annotation.duration
    start, end = moments.T
    fits = (start >= 0) & _have_length(moments, duration) & (end <= duration)
    if past_end == "keep" or fits.all():
        return annotation
    inside = np.clip(moments, 0, duration)
    slack = NOISE_SECONDS + 1e-9  # 113.28 - 113.26 is a little more than 0.02
    noise = (start >= -slack) & (end - duration <= slack)
    cut = ~fits & (start < end) & _have_length(inside, duration) & (noise | (past_end == "clip"))
    left = fits | cut
    if past_end != "drop":
        for i in np.flatnonzero(~left).tolist():
            row.note(f"relevant_windows[{i}]", _outside_video(moments[i], duration))
        if row.problems:
            return None
    tally.cut += int(cut.sum())
    tally.noise += int((cut & noise).sum())
    tally.dropped += int((~left).sum())
    if not left.any():
        tally.rows.add(str(annotation.qid))
        return None
    return replace(annotation, moments=np.where(cut[:, None], inside, moments)[left])


def _have_length(moments: NDArray[np.float64], duration: float) -> NDArray[np.bool_]:
    """Which moments (M, 2) have a length as shares of the video in single precision, as caches keep them."""
    with np.errstate(over="ignore"):
        shares = (moments / duration).astype(np.float32)
    return shares[:, 0] < shares[:, 1]


def _outside_video(moment: NDArray[np.float64], duration: float) -> str:
    """What is wrong with a moment (2,) that does not lie within its video, and what allows it."""
    start, end = moment.tolist()
    if 0 <= start < end <= duration:
        found = f"is [{start}, {end}], shorter than a ten-millionth of the video; expected a longer one"
    elif 0 <= start < end:
        place = "starts" if start >= duration else "ends"
        found = f"is [{start}, {end}] and {place} after the video; expected at most {duration} s"
    else:
        found = f"is [{start}, {end}]; expected 0 <= start < end, in seconds"
    return f"{found} (past_end, or --past-end, says what else to do with such moments)"


def write_annotations(path: PathLike, rows: Iterable[Annotation]) -> None:
    """Write annotations as JSON lines, in the given order; `.gz` by suffix.

    The file appears whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    write_text(path, "".join(json.dumps(annotation_row(row), ensure_ascii=False) + "\n" for row in rows))


def annotation_row(row: Annotation) -> dict[str, Any]:
    """The fields of an annotation in a file."""
    fields: dict[str, Any] = {
        "qid": row.qid,
        "query": row.query,
        "duration": row.duration,
        "vid": row.vid,
        "relevant_windows": row.moments.tolist(),
    }
    if row.clip_ids is not None and row.saliency is not None:
        fields |= {"relevant_clip_ids": row.clip_ids.tolist(), "saliency_scores": row.saliency.tolist()}
    return fields


_TEXT_LINE = re.compile(rf"(\S+)\s+({NUMBER})\s+({NUMBER})\s*##(.*)", re.ASCII)


def charades_line(
    where: str, number: int, line: str, durations: Mapping[str, float], problems: list[Problem]
) -> dict[str, Any] | None:
    """Fields of a line of Charades-STA's text but its qid; None with a problem where it is no such line."""
    match = _TEXT_LINE.fullmatch(line.rstrip())
    if match is None:
        message = f"is {shorten(line)}; expected VIDEO start end##sentence"
        problems.append(Problem(where, number, None, message))
        return None
    vid, start, end, sentence = match.groups()
    if vid not in durations:
        message = f"is {shorten(vid)}; expected a video with a known duration"
        problems.append(Problem(where, number, "vid", message))
        return None
    return {
        "vid": vid,
        "query": sentence,
        "duration": durations[vid],
        "relevant_windows": [[float(start), float(end)]],
    }


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
        values = charades_line(where, number, line, durations, problems)
        if values is None:
            continue
        ((start, end),) = values["relevant_windows"]
        if end <= start:
            if reversed_moments == "error":
                message = (
                    f"is [{start}, {end}]; expected 0 <= start < end (reversed_moments can drop such lines)"
                )
                problems.append(Problem(where, number, "relevant_windows[0]", message))
            else:
                dropped += 1
            continue
        rows.append((number, Row(where, number, {"qid": first_qid + len(rows), **values})))
    annotations = collect_annotations(where, rows, problems, past_end)
    if dropped:
        message = f"{dropped} lines with end <= start were left out"
        problems.append(Problem(where, None, None, message, "warning"))
    conclude(problems)
    return list(annotations.values())
