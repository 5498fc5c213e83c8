"""Code shared by all formats: a file while it is converted, and the result."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.data.rows import Row, begins_document, decode_json, decode_value, is_list
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import PathLike, name_of, read_lines

R = TypeVar("R", Annotation, Prediction)

Refused: TypeAlias = Literal["error", "drop"]
"""What to do with rows that cannot be used: report all and convert nothing, or leave them out, counted."""

REFUSED: tuple[Refused, ...] = ("error", "drop")

Content: TypeAlias = PathLike | Iterable[Mapping[str, Any]]
"""A file, or rows as a `datasets` table has them."""


@dataclass(slots=True)
class Source:
    """A file of some format while it is converted.

    Attributes:
        content: the file, or its rows.
        durations: length of each video in seconds, for formats that do not tell it.
        questions: a second file with the sentences, for formats that have them apart.
        truth: annotations by qid as text, to complete predictions from.
        problems: what was wrong so far; errors of rows, and warnings.
        counts: what was done to rows, as "what: how many".
    """

    content: Content
    durations: Mapping[str, float] = field(default_factory=dict)
    questions: PathLike | None = None
    truth: Mapping[str, Annotation] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """Its name in messages."""
        return name_of(self.content) if isinstance(self.content, (str, os.PathLike)) else "rows"

    @property
    def path(self) -> PathLike:
        """The file.

        Raises:
            DataError: there are rows in place of a file.
        """
        if not isinstance(self.content, (str, os.PathLike)):
            raise DataError(Problem("source", None, None, "is rows; expected the path of a file"))
        return self.content

    def row(self, number: int, values: Mapping[str, Any], place: str | None = None) -> Row:
        """A row to be checked; `place` says where it is in a document of many levels."""
        return Row(self.name if place is None else f"{self.name}, {place}", number, values)

    def fail(self, message: str) -> DataError:
        """An error about the whole file."""
        return DataError(Problem(self.name, None, None, message))

    def document(self) -> Any:
        """The file's JSON: an object as a dict, a list or JSON lines as (number, value) pairs in a list.

        Raises:
            DataError: the file cannot be read, or is no JSON.
        """
        if not isinstance(self.content, (str, os.PathLike)):
            return list(enumerate(self.content, start=1))
        lines = read_lines(self.content)
        if len(lines) == 1 or begins_document(lines):
            try:
                value = decode_value("\n".join(lines))
            except (ValueError, RecursionError) as error:
                raise self.fail(f"is no JSON ({error}); expected a JSON document or JSON lines") from None
            return list(enumerate(value, start=1)) if isinstance(value, list) else value
        found = (decode_json(self.name, number, line, self.problems) for number, line in numbered(lines))
        return [(number, row) for number, row in enumerate(found, start=1) if row is not None]

    def videos(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Vid and content of each video of a document that is an object of videos.

        Raises:
            DataError: it is something else.
        """
        document = self.document()
        if not isinstance(document, dict):
            raise self.fail("is a list; expected an object with an entry for each video")
        for vid, video in document.items():
            if isinstance(video, Mapping):
                yield vid, video
            else:
                self.problems.append(
                    Problem(self.name, None, vid, f"is {shorten(video)}; expected an object for the video")
                )


def numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1."""
    return enumerate(lines, start=1)


_VIDEO_FILE = re.compile(r"\.(?:avi|mp4|mkv|webm|mov|m4v|mpg)$", re.IGNORECASE)


def video_id(value: Any) -> Any:
    """The id of a video that is named by its file: without folders and the suffix of videos."""
    return _VIDEO_FILE.sub("", value.rpartition("/")[2]) if isinstance(value, str) else value


def sentence(value: Any) -> Any:
    """A sentence without blanks around it."""
    return value.strip() if isinstance(value, str) else value


def first_of(values: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of some fields that is there and not null; None without any."""
    return next((values[name] for name in names if values.get(name) is not None), None)


def paired(source: Source, place: str, times: Any, sentences: Any) -> Iterator[tuple[Any, Any]]:
    """Times and sentences of one video side by side; what does not pair is one problem."""
    if not is_list(times) or not is_list(sentences) or len(times) != len(sentences):
        found = [len(part) if is_list(part) else shorten(part) for part in (times, sentences)]
        message = f"has {found[0]} times and {found[1]} sentences; expected two lists of one length"
        source.problems.append(Problem(source.name, None, place, message))
        return
    yield from zip(times, sentences, strict=True)


@dataclass(frozen=True, slots=True)
class Converted(Generic[R]):
    """Result of a conversion.

    Attributes:
        format: name of the format it was read as.
        rows: usable rows, in file order.
        refused: problems of the rows that were left out.
        notes: what was cut, merged or left out, each with its number.
        extra: further fields of rows by qid as text, which are written beside the others.
    """

    format: str
    rows: list[R]
    refused: list[Problem]
    notes: list[str]
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def summary(self) -> str:
        """All of it as text, a line for each kind of change."""
        videos = len({row.vid for row in self.rows})
        lines = [f"format {self.format}: {len(self.rows)} queries of {videos} videos", *self.notes]
        refused = len({(problem.where, problem.row or problem.field) for problem in self.refused})
        lines.append(f"{refused} rows refused" + (f", the first: {self.refused[0]}" if refused else ""))
        return "\n".join(lines)


def conclude_rows(source: Source, name: str, rows: Mapping[int, R], refused: Refused) -> Converted[R]:
    """Result for a source whose rows, by number, are all read.

    Raises:
        DataError: rows cannot be used and were not to be left out, something else is wrong, or none is left.
    """
    errors = [problem for problem in source.problems if problem.severity == "error"]
    if errors and refused == "error":
        raise DataError(errors)
    bad = {problem.row for problem in errors}
    kept = [row for number, row in rows.items() if number not in bad]
    if not kept:
        raise DataError(errors or source.fail("has no rows; expected at least one").problems)
    notes = [problem.message for problem in source.problems if problem.severity == "warning"]
    notes += [f"{what}: {number}" for what, number in source.counts.items()]
    return Converted(name, kept, errors, notes)
