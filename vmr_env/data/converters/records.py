"""One object for each query, whatever its fields are called: moment-detr, lighthouse, TVG-Bench, tables."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vmr_env.data.converters.answers import read_answer
from vmr_env.data.converters.source import Content, Source, first_of, sentence, video_id
from vmr_env.data.rows import Row, is_list, is_number
from vmr_env.errors import DataError, Problem, shorten

FIELDS: Mapping[str, tuple[str, ...]] = {
    "qid": ("qid", "query_id", "question_id", "annotation_id", "id", "idx"),
    "vid": ("vid", "video_id", "video_name", "video", "video_path", "video_file", "path"),
    "query": ("query", "sentence", "description", "caption", "question", "problem"),
    "duration": ("duration", "video_duration", "video_length", "length"),
    "relevant_windows": (
        *("relevant_windows", "windows", "moments", "spans", "timestamps", "timestamp", "span", "gt"),
        *("ground_truth", "solution", "answer", "time", "times"),
    ),
}
"""Names that public files give a field; the first that is there counts."""

_RATINGS = ("relevant_clip_ids", "saliency_scores")


def records(source: Source) -> Iterator[Row]:
    """A list of objects or JSON lines, an object for each query, with the fields' names as in `FIELDS`.

    A moment is `[start, end]`, several of them, `"13.4-28.1"`, or in `start` and `end`; in seconds. A
    row without an id gets its number. Names of video files lose folder and suffix.
    """
    document = source.document()
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        document = list(enumerate(lists[0], start=1)) if len(lists) == 1 and "qid" not in document else None
    for number, record in document or [(1, source.document())]:
        if not isinstance(record, Mapping):
            message = f"is {shorten(record)}; expected an object"
            source.problems.append(Problem(source.name, number, None, message))
            continue
        values = {field: first_of(record, names) for field, names in FIELDS.items()}
        values["qid"] = number if values["qid"] is None else values["qid"]
        values["vid"] = video_id(values["vid"])
        values["query"] = sentence(values["query"])
        if values["duration"] is None:
            values["duration"] = source.durations.get(values["vid"])
        values["relevant_windows"] = moments_of(record, values["relevant_windows"])
        given = {field: value for field, value in values.items() if value is not None}
        yield source.row(number, given | {name: record[name] for name in _RATINGS if name in record})


def moments_of(record: Mapping[str, Any], value: Any) -> Any:
    """Moments as a list of [start, end]; what is none stays unchanged, to be refused later."""
    if value is None and {"start", "end"} <= set(record):
        value = [record["start"], record["end"]]
    if isinstance(value, str):
        answer = read_answer(value)
        return [list(span) for span in answer.spans] or value
    if is_list(value) and len(value) == 2 and all(map(is_number, value)):
        return [list(value)]
    if is_list(value) and value and all(isinstance(part, str) for part in value):
        return [list(span) for part in value for span in read_answer(part).spans] or value
    return value


def table(source: Source) -> Iterator[Row]:
    """A table of the Hugging Face Hub, a row for each query with the names of `FIELDS`: a Parquet file, or a
    folder that `datasets` saved (`pip install vmr-env[datasets]`).
    """
    yield from records(_with_rows(source, _table_rows(source.path)))


def _with_rows(source: Source, rows: Content) -> Source:
    """The source with rows in place of its file; problems and counts go to the same places."""
    return Source(
        rows, source.durations, source.questions, source.truth, problems=source.problems, counts=source.counts
    )


def _table_rows(path: Content) -> Content:
    assert isinstance(path, (str, os.PathLike))
    folder = Path(path)
    if folder.is_dir():
        return _saved_dataset(folder)
    import pyarrow
    import pyarrow.parquet

    try:
        rows: Content = pyarrow.parquet.read_table(folder).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise DataError(Problem(str(folder), None, None, f"is no Parquet file ({reason})")) from error
    return rows


def _saved_dataset(folder: Path) -> Content:
    try:
        import datasets
    except ImportError as error:
        message = "is missing; expected `pip install vmr-env[datasets]` for folders"
        raise DataError(Problem("datasets", None, None, message)) from error
    try:
        rows: Content = datasets.load_from_disk(str(folder))
    except Exception as error:  # of many kinds, for a folder that is something else
        raise DataError(Problem(str(folder), None, None, f"is no saved table ({error})")) from error
    return rows
