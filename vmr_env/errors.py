"""One error class for bad data, and the problem records it carries."""

import reprlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal
from unicodedata import category

SHOWN_PROBLEMS = 20


class _Short(reprlib.Repr):
    """`repr` of what files hold, cut; arrays read like lists, objects of other kinds by their kind."""

    def repr_ndarray(self, array: Any, level: int) -> str:
        if array.size > _MOST_NUMBERS:
            return f"an array of shape {array.shape}"
        return self.repr1(array.tolist(), level)

    def repr_instance(self, value: Any, level: int) -> str:
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a number of NumPy's or PyTorch's
            return self.repr1(value.item(), level)
        if value is None or isinstance(value, (bool, float, complex, bytes)):
            return super().repr_instance(value, level)
        return f"an object of type {type(value).__name__}"


_MOST_NUMBERS = 1000

_short = _Short()
_short.maxstring = _short.maxother = 80
_short.maxlist = _short.maxtuple = _short.maxarray = _short.maxdict = 4
_short.maxlevel = 3


def shorten(value: object) -> str:
    """A value as messages show it, cut so that a million-character line still gives a readable one."""
    return _short.repr(value)


def is_plain(text: str) -> bool:
    """Whether a text holds neither control characters, which steer terminals, nor halves of characters."""
    return not any(category(character) in ("Cc", "Cs") for character in text)


def _printable(text: str) -> str:
    """Text with everything escaped that would steer a terminal, begin a line, or be no character."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file or an argument.

    Attributes:
        where: file path or argument name.
        row: line of the file, or position in a list of rows, counted from 1; None for the whole input.
        field: name of the field, with an index where one element is meant (`relevant_windows[2]`).
        message: the value found and what was expected.
        severity: "error" stops a reader; "warning" is legal but deserves a look, and only validators tell it.
    """

    where: str
    row: int | None
    field: str | None
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        row = "" if self.row is None else f", row {self.row}"
        field = "" if self.field is None else f", {self.field}"
        return _printable(f"{self.where}{row}{field}: {self.message}")


class DataError(ValueError):
    """Data that cannot be used as they are: unreadable files, broken rows, arguments that do not fit.

    The message lists the first problems and counts the rest; `problems` has them all.
    """

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        if not self.problems:
            raise ValueError("a DataError needs at least one problem")
        lines = [str(problem) for problem in self.problems[:SHOWN_PROBLEMS]]
        if hidden := len(self.problems) - len(lines):
            lines.append(f"… and {hidden} more problems")
        super().__init__("\n".join(lines))

    def advised(self, advice: str) -> "DataError":
        """The same error, each of its problems followed by what to do about it."""
        return DataError(
            replace(problem, message=f"{problem.message}; {advice}") for problem in self.problems
        )

    def __reduce__(self) -> tuple[type["DataError"], tuple[tuple[Problem, ...]]]:
        # Exceptions pickle by their message; worker processes need the problems back.
        return type(self), (self.problems,)


def check_choice(argument: str, value: object, choices: Sequence[str]) -> None:
    """Raise a `DataError` unless the value of an argument is one of the choices."""
    if value not in choices:
        expected = " or ".join(f'"{choice}"' for choice in choices)
        raise DataError(Problem(argument, None, None, f"is {shorten(value)}; expected {expected}"))


class MissingExtra(ImportError):
    """An optional package is not installed; the message says which, and how to install it."""


class DataWarning(UserWarning):
    """Data were changed by a rule, or only some of them could be used; the message counts how often."""


def conclude(problems: Iterable[Problem], *, stacklevel: int = 3) -> None:
    """Raise the errors among problems as one `DataError`; where there are none, warn of the warnings."""
    found = list(problems)
    if errors := [problem for problem in found if problem.severity == "error"]:
        raise DataError(errors)
    for problem in found:
        warnings.warn(str(problem), DataWarning, stacklevel=stacklevel)


def check_count(name: str, value: object) -> None:
    """Refuse an argument that is no whole number from 1; a bool is none, although Python lets it count.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a whole number from 1")
