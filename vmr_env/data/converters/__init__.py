"""Other people's files: one function for each format, all of whose rows pass the same checks.

`convert_annotations` and `convert_predictions` read a file of any format in the tables below. A format of
your own is a function from a `Source` to `Row` objects with the fields of our files, and an entry in a table.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vmr_env.data.annotations import Annotation, PastEnd, collect_annotations, write_annotations
from vmr_env.data.converters.captions import activitynet, tacos
from vmr_env.data.converters.datasets import charades, didemo, ego4d, nextgqa
from vmr_env.data.converters.guesses import CURVES, MISS, TEXTS, WINDOWS, answers, dense, windows
from vmr_env.data.converters.records import FIELDS, records, table
from vmr_env.data.converters.source import REFUSED, Content, Converted, Refused, Source, conclude_rows
from vmr_env.data.predictions import Prediction, Scores, collect_predictions, rescaled, submission_row
from vmr_env.data.rows import Row
from vmr_env.errors import DataError, Problem, check_choice
from vmr_env.files.text import PathLike, write_text

Rows = Callable[[Source], Iterator[Row]]

ANNOTATION_FORMATS: dict[str, Rows] = {
    "activitynet": activitynet,
    "charades": charades,
    "tacos": tacos,
    "didemo": didemo,
    "ego4d": ego4d,
    "nextgqa": nextgqa,
    "records": records,
    "table": table,
}
"""Formats of annotations by name."""

PREDICTION_FORMATS: dict[str, Rows] = {"windows": windows, "answers": answers, "dense": dense}
"""Formats of predictions by name."""

__all__ = [
    "ANNOTATION_FORMATS",
    "PREDICTION_FORMATS",
    "REFUSED",
    "Converted",
    "Refused",
    "Source",
    "convert_annotations",
    "convert_predictions",
    "guess_format",
    "write_converted",
]


def convert_annotations(
    source: Content,
    format: str | None = None,
    *,
    durations: Mapping[str, float] | None = None,
    questions: PathLike | None = None,
    past_end: PastEnd = "error",
    refused: Refused = "error",
) -> Converted[Annotation]:
    """Annotations of another format, in file order.

    Args:
        source: the file, or rows as a `datasets` table has them.
        format: one of `ANNOTATION_FORMATS`; None guesses.
        durations: video lengths in seconds, for formats that do not tell them; see `read_durations`.
        questions: the table of sentences, for formats that have them apart.
        past_end: rule for moments that do not lie within their video; see `PastEnd`.
        refused: what to do with rows that cannot be used.

    Raises:
        DataError: the file cannot be read, its format is not known, or rows cannot be used.
    """
    name = guess_format(source) if format is None else format
    check_choice("format", name, tuple(ANNOTATION_FORMATS))
    check_choice("refused", refused, REFUSED)
    given = Source(source, durations or {}, questions)
    rows = ((row.number, row) for row in ANNOTATION_FORMATS[name](given))
    found = collect_annotations(given.name, rows, given.problems, past_end)
    return conclude_rows(given, name, found, refused)


def convert_predictions(
    source: Content,
    format: str | None = None,
    *,
    annotations: Iterable[Annotation] = (),
    scores: Scores = "keep",
    scale: float | None = None,
    refused: Refused = "error",
) -> Converted[Prediction]:
    """Predictions of another format, in file order.

    Args:
        source: the file, or rows.
        format: one of `PREDICTION_FORMATS`; None guesses.
        annotations: ground truth of the split, which completes rows that lack video, sentence or duration.
        scores: whether scores are rescaled; see `Scores`.
        scale: of "answers": the number for the end of the video where bare numbers are no seconds.
        refused: what to do with rows that cannot be used.

    Raises:
        DataError: the file cannot be read, its format is not known, or rows cannot be used.
    """
    name = guess_format(source) if format is None else format
    check_choice("format", name, tuple(PREDICTION_FORMATS))
    check_choice("refused", refused, REFUSED)
    given = Source(source, truth={str(row.qid): row for row in annotations})
    read = partial(answers, scale=scale) if name == "answers" else PREDICTION_FORMATS[name]
    extra: dict[str, dict[str, Any]] = {}
    rows = ((row.number, _apart(row, extra)) for row in read(given))
    found = collect_predictions(given.name, rows, given.problems, "error")
    if not given.truth and refused == "error":
        given.problems[:] = _without_annotations(given.problems)
    converted = conclude_rows(given, name, found, refused)
    misses = {row.qid for row in converted.rows if np.array_equal(row.windows, [MISS])}
    scored = iter(rescaled([row for row in converted.rows if row.qid not in misses], scores))
    kept = [row if row.qid in misses else next(scored) for row in converted.rows]
    return Converted(name, kept, converted.refused, converted.notes, extra)


def _without_annotations(problems: Sequence[Problem]) -> list[Problem]:
    """Problems of rows that annotations would have completed are one, at the first."""
    incomplete = [one for one in problems if one.field in ("vid", "query") and "is missing" in one.message]
    if not incomplete:
        return list(problems)
    first, rows = incomplete[0], len({one.row for one in incomplete})
    message = f"is missing in {rows} rows, here first; expected annotations that tell it (--annotations)"
    return [replace(first, message=message), *(one for one in problems if one not in incomplete)]


def _apart(row: Row, extra: dict[str, dict[str, Any]]) -> Row:
    """The row; its existence score, which is no field of predictions, goes to `extra` by qid."""
    if "pred_exist_score" in row.values:
        score = row.number_of("pred_exist_score")
        if score is not None and not np.isfinite(score):
            row.note("pred_exist_score", f"is {score}; expected a finite number")
        extra[str(row.values.get("qid"))] = {"pred_exist_score": score}
    return row


def write_converted(path: PathLike, converted: Converted[Any]) -> None:
    """Write what came of a file as JSON lines of our own format; the file appears whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    if isinstance(converted.rows[0], Annotation):
        write_annotations(path, converted.rows)
        return
    rows = ({**submission_row(row), **converted.extra.get(str(row.qid), {})} for row in converted.rows)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def guess_format(source: Content) -> str:
    """The format of a file, where it is unambiguous: a name of one of the two tables.

    Raises:
        DataError: it is not, or the file cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir() or path.suffix == ".parquet":
            return "table"
        if path.name.removesuffix(".gz").endswith(".txt"):
            return "charades"
    given = Source(source if isinstance(source, (str, os.PathLike)) else list(source))
    document = given.document()
    if isinstance(document, dict) and isinstance(document.get("videos"), list):
        return "ego4d"
    entries = [entry for _, entry in document] if isinstance(document, list) else list(document.values())
    nested = isinstance(document, dict) and isinstance(next(iter(entries), None), Mapping)
    first = document if isinstance(document, dict) and not nested else next(iter(entries), None)
    keys = set(first) if isinstance(first, Mapping) else set()
    signs = {
        "tacos": nested and {"fps", "num_frames", "timestamps"} <= keys,
        "nextgqa": nested and "location" in keys,
        "activitynet": nested and bool(keys & {"sentences", "queries"}) and "fps" not in keys,
        "didemo": not nested and {"times", "num_segments"} <= keys,
    }
    if found := [name for name, sign in signs.items() if sign]:
        return found[0]
    return _guess_records(given, keys if not nested else set())


def _guess_records(source: Source, keys: set[str]) -> str:
    """The format of rows with these fields."""
    annotated = "relevant_windows" in keys or bool(
        keys & set(FIELDS["duration"]) and keys & set(FIELDS["query"])
    )
    signs = {
        "windows": "pred_relevant_windows" in keys
        or bool(keys & {"pred_windows", "predicted_windows", "pred_spans"}),
        "answers": not annotated and bool(keys & set(TEXTS)),
        "dense": bool(keys & set(CURVES)) and not keys & set(WINDOWS),
        "records": annotated,
    }
    found = [name for name, sign in signs.items() if sign]
    if len(found) != 1:
        known = ", ".join([*ANNOTATION_FORMATS, *PREDICTION_FORMATS])
        message = (
            f"may be {' or '.join(found) or 'of any format'}; expected its format (--from), one of {known}"
        )
        raise DataError(Problem(source.name, None, None, message))
    return found[0]
