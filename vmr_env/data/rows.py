"""Rows of JSON-lines files, checked field by field; all problems of a file are gathered first."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from numbers import Integral, Real
from typing import Any, Protocol, TypeAlias, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import PathLike, name_of, read_lines

Qid: TypeAlias = int | str
Number = TypeVar("Number", np.float64, np.int64)
Fault: TypeAlias = tuple[str, str]
"""Field and message of a problem whose file and row are not known yet."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {shorten(twice)} appears twice")
    return result


_decode = json.JSONDecoder(object_pairs_hook=_object).decode


def decode_value(text: str) -> Any:
    """The JSON value of a text.

    Raises:
        ValueError: it is no JSON, or has a key twice in one object.
        RecursionError: it is nested too deep.
    """
    return _decode(text)


def decode_json(where: str, row: int | None, text: str, problems: list[Problem]) -> dict[str, Any] | None:
    """The JSON object of a text; None with a problem where it is anything else, or has a key twice."""
    try:
        value = decode_value(text)
    except (ValueError, RecursionError) as error:
        found = f"{shorten(text)} is no JSON object ({error})" if text.strip() else "is blank"
    else:
        if isinstance(value, dict):
            return value
        found = f"is {shorten(value)}"
    problems.append(Problem(where, row, None, f"{found}; expected a JSON object"))
    return None


class Row:
    """One row under inspection: typed access to its fields, noting a problem for each one that does not fit.

    Getters return None where the field is unusable; the problem is added to `problems`. Beside JSON's own
    types they take NumPy's numbers and arrays, for rows made in memory.
    """

    def __init__(self, where: str, number: int, values: Mapping[str, Any]) -> None:
        self.where = where
        self.number = number
        self.values = values
        self.problems: list[Problem] = []

    def note(self, field: str | None, message: str) -> None:
        """Add a problem of this row."""
        self.problems.append(Problem(self.where, self.number, field, message))

    def adopt(self, error: DataError) -> None:
        """Add the problems of an object that could not be made of this row."""
        for problem in error.problems:
            self.note(problem.field, problem.message)

    def qid(self) -> Qid | None:
        """The query id: an int or a string."""
        value = self._get("qid")
        if value is None or isinstance(value, str):
            return value
        if _is(np.int64, value):
            return int(value)
        self.note("qid", f"is {shorten(value)}; expected an int or a string")
        return None

    def text(self, field: str) -> str | None:
        """A string."""
        value = self._get(field)
        if value is None or isinstance(value, str):
            return value
        self.note(field, f"is {shorten(value)}; expected a string")
        return None

    def number_of(self, field: str) -> float | None:
        """A real number that fits a float."""
        value = self._get(field)
        if value is None:
            return None
        if not _is(np.float64, value):
            self.note(field, f"is {shorten(value)}; expected a number")
            return None
        try:
            return float(value)
        except OverflowError:
            self.note(field, f"is {shorten(value)}; expected a number that fits a float")
            return None

    def vector(self, field: str, dtype: type[Number]) -> NDArray[Number] | None:
        """A list of numbers (of whole numbers, where dtype is int64), as an array (length,)."""
        values = self._list(field, "numbers")
        if values is None:
            return None
        if not set(map(type, values)) <= _JSON_TYPES[dtype]:
            bad = [(i, value) for i, value in enumerate(values) if not _is(dtype, value)]
            for i, value in bad:
                self.note(f"{field}[{i}]", f"is {shorten(value)}; expected a {_NAMES[dtype]}")
            if bad:
                return None
        return self._array(field, values, values, (len(values),), dtype)

    def table(self, field: str, columns: str, dtype: type[Number]) -> NDArray[Number] | None:
        """A list of lists of numbers as an array (rows, columns); `columns` names them in messages."""
        values = self._list(field, f"[{columns}]")
        if values is None:
            return None
        width = columns.count(",") + 1
        numbers = values
        # A good file has plain lists of plain numbers; only others are looked at one by one.
        if set(map(type, values)) <= {list} and set(map(len, values)) <= {width}:
            numbers = list(chain.from_iterable(values))
        if numbers is values or not set(map(type, numbers)) <= _JSON_TYPES[dtype]:
            bad = [
                (i, value)
                for i, value in enumerate(values)
                if not (is_list(value) and len(value) == width and all(_is(dtype, x) for x in value))
            ]
            expected = f"expected [{columns}], each a {_NAMES[dtype]}"
            for i, value in bad:
                self.note(f"{field}[{i}]", f"is {shorten(value)}; {expected}")
            if bad:
                return None
        return self._array(field, values, numbers, (len(values), width), dtype)

    def _get(self, field: str) -> Any:
        if field not in self.values:
            self.note(field, f"is missing; expected it beside {shorten(list(self.values))}")
            return None
        value = self.values[field]
        if value is None:
            self.note(field, "is null; expected a value")
        return value

    def _list(self, field: str, items: str) -> Sequence[Any] | None:
        value = self._get(field)
        if value is not None and not is_list(value):
            self.note(field, f"is {shorten(value)}; expected a list of {items}")
            return None
        values: Sequence[Any] | None = value
        return values

    def _array(
        self,
        field: str,
        values: Sequence[Any],
        numbers: Sequence[Any],
        shape: tuple[int, ...],
        dtype: type[Number],
    ) -> NDArray[Number] | None:
        """The numbers that a field's values hold as an array."""
        try:
            return np.array(numbers, dtype=dtype).reshape(shape)
        except OverflowError:
            self.note(field, f"is {shorten(values)}; expected each to fit 64 bits")
            return None


_JSON_TYPES: dict[type, set[type]] = {np.float64: {int, float}, np.int64: {int}}
_ABSTRACT: dict[type, type] = {np.float64: Real, np.int64: Integral}
_NAMES: dict[type, str] = {np.float64: "number", np.int64: "whole number"}


def _is(dtype: type, value: object) -> bool:
    plain = type(value) in _JSON_TYPES[dtype]
    return plain or (isinstance(value, _ABSTRACT[dtype]) and not isinstance(value, bool))


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number and no bool."""
    return _is(np.float64, value)


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a list, also one made in memory."""
    return isinstance(value, (list, tuple, np.ndarray))


def read_rows(path: PathLike, problems: list[Problem]) -> Iterator[tuple[int, Row]]:
    """The numbered JSON objects of a `.jsonl` or `.jsonl.gz` file; `problems` tells of other lines.

    Raises:
        DataError: the file itself cannot be read (see `files.read_lines`).
    """
    where = name_of(path)
    lines = read_lines(path)
    if begins_document(lines):
        message = (
            "is a JSON document, expected JSON lines: one object per line (`vmr-env convert` makes them)"
        )
        problems.append(Problem(where, None, None, message))
        return
    for number, line in enumerate(lines, start=1):
        values = decode_json(where, number, line, problems)
        if values is not None:
            yield number, Row(where, number, values)


def rows_of_kind(
    path: PathLike, problems: list[Problem], own: str, *, not_of: str
) -> Iterator[tuple[int, Row]]:
    """As `read_rows`, of a file whose rows have a field `own`.

    Raises:
        DataError: the file cannot be read, or its first row has the field `not_of` instead: the annotations
            and the predictions of a call were swapped.
    """
    for at, (number, row) in enumerate(read_rows(path, problems)):
        if not at and own not in row.values and not_of in row.values:
            message = f"is missing; expected it in place of {not_of}: annotations and predictions swapped?"
            raise DataError(Problem(name_of(path), number, own, message))
        yield number, row


def begins_document(lines: Sequence[str]) -> bool:
    """Whether a file holds one JSON value over all its lines, a list or an object, and no JSON lines."""
    first = lines[0].strip()
    if first.startswith("["):
        return True
    if not first.startswith("{") or first[-1] not in "{[,:":
        return False
    try:
        decode_value("\n".join(lines))
    except (ValueError, RecursionError):
        return first == "{"
    return True


def identity_faults(qid: object, vid: object, query: object) -> Iterable[Fault]:
    """Faults of the three fields that say which query a row is about."""
    if isinstance(qid, bool) or not isinstance(qid, (int, str)) or qid == "":
        yield "qid", f"is {shorten(qid)}; expected an int or a non-empty string"
    for field, value in (("vid", vid), ("query", query)):
        if not isinstance(value, str) or not value.strip():
            yield field, f"is {shorten(value)}; expected a non-empty string"
    for field, value in (("qid", qid), ("vid", vid), ("query", query)):
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            yield field, f"is {shorten(value)}; expected text, not half of a character (a surrogate)"


class _Record(Protocol):
    @property
    def qid(self) -> Qid: ...

    @property
    def saliency(self) -> object: ...


Record = TypeVar("Record", bound=_Record)


def given_rows(
    where: str, rows: object, kind: type[Record], problems: list[Problem]
) -> Iterator[tuple[int, Row | Record]]:
    """Numbered rows made in memory: records, and dicts for inspection; `problems` tells of all else."""
    if not isinstance(rows, Iterable):
        problems.append(Problem(where, None, None, f"is {shorten(rows)}; expected a path or rows"))
        return
    number = 0
    for number, row in enumerate(rows, start=1):
        if isinstance(row, kind):
            yield number, row
        elif isinstance(row, Mapping):
            yield number, Row(where, number, row)
        else:
            message = f"is {shorten(row)}; expected {kind.__name__} or a dict"
            problems.append(Problem(where, number, None, message))
    if not number:
        problems.append(Problem(where, None, None, "is empty; expected at least one row"))


def collect(
    where: str,
    rows: Iterable[tuple[int, Row | Record]],
    build: Callable[[Row], Record | None],
    windows_field: str,
    saliency_field: str,
    problems: list[Problem],
) -> dict[int, Record]:
    """Records by row number; problems of rows, alone and beside each other, are added to `problems`.

    Two qids are the same when their text is equal (7 and "7"). Saliency in some rows only is a
    warning; windows that stand in no row are one error for all of them.
    """
    records: dict[int, Record] = {}
    row_of_qid: dict[str, int] = {}
    lacking: list[int] = []
    others: list[Row] = []
    read = 0
    for number, row in rows:
        read += 1
        record = build(row) if isinstance(row, Row) else row
        if isinstance(row, Row):
            if windows_field not in row.values:
                others.append(row)
            problems.extend(row.problems)
        if record is None:
            continue
        earlier = row_of_qid.setdefault(str(record.qid), number)
        if earlier != number:
            message = f"is {shorten(record.qid)}, as in row {earlier}; expected each qid once"
            problems.append(Problem(where, number, "qid", message))
        if record.saliency is None:
            lacking.append(number)
        records[number] = record
    if 0 < len(lacking) < len(records):
        found = f"is missing in {len(lacking)} of {len(records)} rows, here first"
        message = f"{found}; highlights are not scored, as it is expected in all rows or in none"
        problems.append(Problem(where, lacking[0], saliency_field, message, "warning"))
    if 1 < len(others) == read:
        problems[:] = [problem for problem in problems if problem.field != windows_field]
        message = f"is in none of the {read} rows; expected it beside {shorten(list(others[0].values))}"
        problems.append(Problem(where, None, windows_field, message))
    problems.sort(key=lambda problem: problem.row or 0)
    return records
