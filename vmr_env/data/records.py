"""Small rows of tasks beside moment retrieval: read from files or memory, checked, and paired by qid."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from vmr_env.data.rows import Qid, Row, read_rows
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import PathLike, name_of

Rows: TypeAlias = PathLike | Iterable[Mapping[str, Any]]
"""A `.jsonl` or `.jsonl.gz` file, or rows with its fields."""


class _Record(Protocol):
    @property
    def qid(self) -> Qid: ...


Record = TypeVar("Record", bound=_Record)
Answer = TypeVar("Answer", bound=_Record)


def name_rows(rows: Rows, argument: str) -> str:
    """How messages call rows: by their file, else by the argument."""
    return name_of(rows) if isinstance(rows, (str, os.PathLike)) else argument


def read_records(rows: Rows, argument: str, build: Callable[[Row], Record | None]) -> list[Record]:
    """Records of all rows, in order; two qids are the same when their text is equal.

    Args:
        rows: where they are.
        argument: name of the argument that gave the rows, for messages.
        build: the record of a row; problems are noted in the row.

    Raises:
        DataError: all problems at once.
    """
    problems: list[Problem] = []
    records: dict[str, Record] = {}
    for row in _numbered(rows, argument, problems):
        record = build(row)
        if record is not None and str(record.qid) in records:
            row.note("qid", f"is {shorten(record.qid)} again; expected each qid once")
        problems += row.problems
        if record is not None:
            records[str(record.qid)] = record
    if not (records or problems):
        problems.append(Problem(name_rows(rows, argument), None, None, "is empty; expected at least one row"))
    if problems:
        raise DataError(problems)
    return list(records.values())


def _numbered(rows: Rows, argument: str, problems: list[Problem]) -> Iterator[Row]:
    if isinstance(rows, (str, os.PathLike)):
        for _, row in read_rows(rows, problems):
            yield row
        return
    for number, values in enumerate(rows, start=1):
        yield Row(argument, number, values)


def pair_by_qid(
    where: str,
    answers: Sequence[Answer],
    queries: Sequence[Record],
    *,
    of: str = "the ground truth",
    more: bool = False,
) -> list[Answer]:
    """The answers in the order of the queries.

    Args:
        where: what the answers are called in messages.
        answers: one of each query.
        queries: what is asked.
        of: what the queries are called in messages.
        more: whether answers to other queries are passed over.

    Raises:
        DataError: a query is not answered, or an answer is to no query.
    """
    by_qid = {str(answer.qid): answer for answer in answers}
    wanted = {str(row.qid) for row in queries}
    problems = []
    if lacking := [row.qid for row in queries if str(row.qid) not in by_qid]:
        message = f"lacks {len(lacking)} queries of {of}, {shorten(lacking)}; expected all"
        problems.append(Problem(where, None, "qid", message))
    if not more and (others := [answer.qid for answer in answers if str(answer.qid) not in wanted]):
        message = f"has {len(others)} queries more than {of}, {shorten(others)}; expected none"
        problems.append(Problem(where, None, "qid", message))
    if problems:
        raise DataError(problems)
    return [by_qid[str(row.qid)] for row in queries]
