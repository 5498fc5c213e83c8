"""Video lengths from the tables that come with Charades."""

import csv
import re
from pathlib import Path

from vmr_env.data.rows import Row, decode_json, is_number
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import PathLike, name_of, read_lines

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
"""A decimal number in text, for `re.ASCII`; narrower than `float`, which takes "nan" and "1_000"."""


SHORTEST, LONGEST = 0.01, 864_000.0
"""Bounds of lengths in seconds, of videos and of clips: a hundredth of a second to ten days."""

SECONDS = f"seconds from {SHORTEST:g} to {LONGEST:g}"
"""The bounds in words, for messages."""


def is_seconds(value: object) -> bool:
    """Whether a value is a number within the bounds of lengths."""
    return is_number(value) and SHORTEST <= value <= LONGEST


def covers(rows: int, clip_seconds: float, duration: float) -> bool:
    """Whether so many clips are a whole video, to within a tenth of it or two clips."""
    return abs(rows * clip_seconds - duration) <= max(2 * clip_seconds, 0.1 * duration)


def read_durations(path: PathLike) -> dict[str, float]:
    """Video lengths in seconds by video id.

    Reads a `.json` object `{video: seconds}` or a `.csv` table with columns `id` and `length`, as the AI2
    Charades tables have; both may be gzipped.

    Raises:
        DataError: all problems of the file at once.
    """
    where = name_of(path)
    suffix = Path(where.removesuffix(".gz")).suffix
    readers = {".json": _rows_of_json, ".csv": _rows_of_csv}
    if suffix not in readers:
        raise DataError(
            Problem(where, None, None, f"ends in {suffix!r}; expected .json or .csv, or .gz of them")
        )
    problems: list[Problem] = []
    durations: dict[str, float] = {}
    for row in readers[suffix](where, read_lines(path), problems):
        vid, seconds = row.text("id"), row.number_of("length")
        if seconds is not None and not is_seconds(seconds):
            row.note("length", f"is {seconds}; expected {SECONDS}")
        if vid in durations:
            row.note("id", f"is {shorten(vid)}, as in an earlier row; expected each video once")
        problems.extend(row.problems)
        if vid is not None and seconds is not None:
            durations[vid] = seconds
    if not durations and not problems:
        problems.append(Problem(where, None, None, "has no rows; expected at least one video"))
    if problems:
        raise DataError(problems)
    return durations


def _rows_of_json(where: str, lines: list[str], problems: list[Problem]) -> list[Row]:
    """The entries of a JSON object; their position counts as row."""
    table = decode_json(where, None, "\n".join(lines), problems) or {}
    return [
        Row(where, i, {"id": vid, "length": value}) for i, (vid, value) in enumerate(table.items(), start=1)
    ]


def _rows_of_csv(where: str, lines: list[str], problems: list[Problem]) -> list[Row]:
    reader = csv.DictReader(lines, strict=True)
    rows = []
    try:
        columns = reader.fieldnames or ()
        if not {"id", "length"} <= set(columns):
            message = f"has the columns {shorten(list(columns))}; expected id and length among them"
            problems.append(Problem(where, 1, None, message))
            return []
        for values in reader:
            length = values["length"]
            number = float(length) if length and re.fullmatch(NUMBER, length, re.ASCII) else length
            rows.append(Row(where, reader.line_num, {"id": values["id"], "length": number}))
    except csv.Error as error:
        # The row that begins after the last good one.
        problems.append(Problem(where, reader.line_num + 1, None, f"is no CSV ({error}); expected a table"))
    return rows
