"""Rows of JSON-lines files, checked field by field; all problems of a file are gathered first."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.errors import Problem, shorten
from vmr_env.files import PathLike, read_lines

Qid: TypeAlias = int | str

_JSON_NUMBERS = {int, float}


class _DuplicateKey(ValueError):
    """A JSON object names one key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKey(shorten(next(key for key in keys if keys.count(key) > 1)))
    return result


_decode = json.JSONDecoder(object_pairs_hook=_object).decode


class Row:
    """One row under inspection: typed access to its fields, noting a problem for each one that does not fit.

    Getters return None where the field is unusable; the problem then stands in `problems`.
    """

    def __init__(self, where: str, number: int, values: Mapping[str, Any]) -> None:
        self.where = where
        self.number = number
        self.values = values
        self.problems: list[Problem] = []

    def note(self, field: str | None, message: str) -> None:
        """Add a problem of this row."""
        self.problems.append(Problem(self.where, self.number, field, message))

    def _get(self, field: str) -> Any:
        if field not in self.values:
            found = ", ".join(str(key) for key in list(self.values)[:12])
            self.note(field, f"is missing; the row has {shorten(found)}")
            return None
        value = self.values[field]
        if value is None:
            self.note(field, "is null; expected a value")
        return value

    def qid(self) -> Qid | None:
        """The query id: an int or a string."""
        value = self._get("qid")
        if value is None or (isinstance(value, (int, str, np.integer)) and not isinstance(value, bool)):
            return int(value) if isinstance(value, np.integer) else value
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
        if not _is_number(value):
            self.note(field, f"is {shorten(value)}; expected a number")
            return None
        try:
            return float(value)
        except OverflowError:
            self.note(field, f"is {shorten(value)}; expected a number that fits a float")
            return None

    def table(self, field: str, columns: str) -> NDArray[np.float64] | None:
        """A list of lists of numbers as an array (rows, columns); `columns` names them in messages."""
        value = self._get(field)
        if value is None:
            return None
        width = columns.count(",") + 1
        expected = f"expected [{columns}] as numbers"
        if not _is_list(value):
            self.note(field, f"is {shorten(value)}; expected a list of [{columns}]")
            return None
        if not _is_json_table(value, width):
            bad = [
                (i, item)
                for i, item in enumerate(value)
                if not (_is_list(item) and len(item) == width and all(map(_is_number, item)))
            ]
            for i, item in bad:
                self.note(f"{field}[{i}]", f"is {shorten(item)}; {expected}")
            if bad:
                return None
        return self._floats(field, value, (len(value), width))

    def vector(self, field: str) -> NDArray[np.float64] | None:
        """A list of numbers, as an array (length,)."""
        value = self._get(field)
        if value is None:
            return None
        if not _is_list(value):
            self.note(field, f"is {shorten(value)}; expected a list of numbers")
            return None
        if not set(map(type, value)) <= _JSON_NUMBERS:
            bad = [(i, item) for i, item in enumerate(value) if not _is_number(item)]
            for i, item in bad:
                self.note(f"{field}[{i}]", f"is {shorten(item)}; expected a number")
            if bad:
                return None
        return self._floats(field, value, (len(value),))

    def _floats(self, field: str, value: Sequence[Any], shape: tuple[int, ...]) -> NDArray[np.float64] | None:
        try:
            return np.array(value, dtype=np.float64).reshape(shape)
        except OverflowError:
            self.note(field, f"is {shorten(value)}; expected numbers that fit a float")
            return None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _is_json_table(value: Sequence[Any], width: int) -> bool:
    """Whether it is plain lists of plain numbers: the fast way through for rows read from files."""
    return (
        set(map(type, value)) <= {list}
        and set(map(len, value)) <= {width}
        and set(map(type, chain.from_iterable(value))) <= _JSON_NUMBERS
    )


def is_integral(value: object) -> bool:
    """Whether a value is a whole number and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def read_rows(path: PathLike, problems: list[Problem]) -> Iterator[Row]:
    """The JSON objects of a `.jsonl` or `.jsonl.gz` file; lines that hold none are added to `problems`.

    Raises:
        DataError: the file itself cannot be read (see `files.read_lines`).
    """
    where = os.fspath(path)
    for number, line in enumerate(read_lines(path), start=1):
        try:
            values = _decode(line)
        except _DuplicateKey as error:
            problems.append(Problem(where, number, None, f"key {error} stands twice in one object"))
        except (ValueError, RecursionError) as error:
            found = f"{shorten(line)} is no JSON ({error})" if line.strip() else "is blank"
            problems.append(Problem(where, number, None, f"{found}; expected one JSON object a line"))
        else:
            if isinstance(values, dict):
                yield Row(where, number, values)
            else:
                problems.append(Problem(where, number, None, f"is {shorten(values)}; expected a JSON object"))


def check_unique_qids(where: str, numbered: Iterable[tuple[int, Qid]]) -> list[Problem]:
    """Problems of rows whose qid stood before; qids are the same when their text is equal (7 and "7")."""
    first: dict[str, int] = {}
    problems = []
    for number, qid in numbered:
        earlier = first.setdefault(str(qid), number)
        if earlier != number:
            problems.append(
                Problem(
                    where, number, "qid", f"is {shorten(qid)}, as in row {earlier}; expected each qid once"
                )
            )
    return problems
