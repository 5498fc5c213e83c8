"""Options of a program as a dataclass, whose fields are the one source of its help, defaults and checks.

    @dataclass(frozen=True)
    class Options:
        '''Read files.'''

        files: tuple[Path, ...] = argument("what to read")
        seeds: int = option(2, "runs of each agent", least=1)

    options = parse(Options, ["a.jsonl", "--seeds", "3"])

A field's type says how its values are read: `bool` is a flag, `tuple[X, ...]` takes any number of values and
`tuple[X, Y]` exactly two; `X | None` is an option that may be left out. A repeated
option may be `tuple[tuple[X, Y], ...]`.
"""

import argparse
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vmr_env.errors import DataError, Problem, shorten

T = TypeVar("T")


@dataclass(frozen=True)
class _Form:
    """How an option is written on the command line."""

    help: str
    group: str | None = None
    choices: tuple[str, ...] = ()
    least: int | None = None
    metavar: str | tuple[str, ...] | None = None
    repeated: bool = False
    empty: bool = False
    bare: str | None = None
    positional: bool = False


def option(
    default: Any,
    help: str,
    *,
    group: str | None = None,
    choices: Sequence[str] = (),
    least: int | None = None,
    metavar: str | tuple[str, ...] | None = None,
    repeated: bool = False,
    empty: bool = False,
    bare: str | None = None,
) -> Any:
    """A field for `--name`.

    Args:
        default: value where the option is not given; `dataclasses.MISSING` for an option that must be.
        help: what it is for. The default is added to it.
        group: heading above it in the help text.
        choices: the values that it may have; all where there are none.
        least: smallest number that makes sense; `out_of_range` tells smaller ones.
        metavar: placeholder of its value in the help text.
        repeated: whether it takes one value and may be given several times, instead of several values.
        empty: whether it may be given without any value.
        bare: its value where it is given without one; None where it needs one.
    """
    form = _Form(help, group, tuple(choices), least, metavar, repeated, empty, bare)
    return field(default=default, metadata={"form": form})


def argument(help: str) -> Any:
    """A field for a positional argument."""
    return field(metadata={"form": _Form(help, positional=True)})


def parse(options: type[T], argv: Sequence[str] | None, prog: str | None = None) -> T:
    """Read a command line.

    Args:
        options: the dataclass.
        argv: the words of the command line; None for those of the process.
        prog: as for `parser_of`.

    Raises:
        SystemExit: with 2 where the command is wrong, with 0 after its help.
    """
    given = vars(parser_of(options, prog).parse_args(argv))
    return options(**{name: _frozen(value) for name, value in given.items()})


def parse_in_range(options: type[T], argv: Sequence[str] | None, prog: str | None = None) -> T:
    """As `parse`, and numbers that are smaller than makes sense are wrong, too."""
    given = parse(options, argv, prog)
    if problems := out_of_range(given):
        parser_of(options, prog).error("; ".join(map(str, problems)))
    return given


def parser_of(options: type, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command line.

    Args:
        options: the dataclass, whose docstring says what the program does.
        prog: the program's name, for its help.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=inspect.getdoc(options),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    groups: dict[str | None, Any] = {None: parser}
    for one, kind, form in _forms(options):
        if form.group not in groups:
            groups[form.group] = parser.add_argument_group(form.group)
        name = one.name if form.positional else _flag(one)
        groups[form.group].add_argument(name, **_arguments(one, kind, form))
    return parser


def from_mapping(options: type[T], values: Mapping[str, Any], where: str) -> T:
    """Options from a file, by the names and with the types of the command line.

    Args:
        options: the dataclass; its required fields must be among the values.
        values: by name of the field; what takes several values is a list, or one value alone.
        where: what to call the place in errors.

    Raises:
        DataError: with every unknown name and every value of another type.
    """
    forms = {one.name: (kind, form) for one, kind, form in _forms(options)}
    problems: list[Problem] = []
    read: dict[str, Any] = {}
    for name, value in values.items():
        if name not in forms:
            message = f"is no option; expected some of {', '.join(forms)}"
            problems.append(Problem(where, None, str(name), message))
            continue
        kind, form = forms[name]
        try:
            read[name] = _value(kind, value)
            if form.choices and not set(_tuple(read[name])) <= set(form.choices):
                raise ValueError(f"some of {', '.join(form.choices)}")
        except ValueError as error:
            problems.append(Problem(where, None, name, f"is {shorten(value)}; expected {error}"))
    if problems:
        raise DataError(problems)
    return options(**read)


def _frozen(value: Any) -> Any:
    """Lists as tuples, within lists too."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _value(kind: Any, value: Any) -> Any:
    """A value of a file as a field of that type has it; a ValueError says what was expected."""
    if get_origin(kind) is tuple:
        of_one, *others = get_args(kind)
        values = value if isinstance(value, list) else [value]
        if others != [...] and len(values) != 1 + len(others):
            raise ValueError(f"{1 + len(others)} values")
        return tuple(_value(of_one, each) for each in values)
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(_EXPECTED.get(kind, "a text"))
    if kind in (int, float):
        try:
            return kind(str(value))
        except ValueError:
            raise ValueError(_EXPECTED[kind]) from None
    return Path(str(value)) if kind is Path else str(value)


_EXPECTED: Mapping[Any, str] = {int: "a whole number", float: "a number", Path: "a path"}


def out_of_range(options: Any) -> list[Problem]:
    """Every number that is smaller than makes sense."""
    return [
        Problem(_flag(one), None, None, f"is {value}, expected a whole number from {form.least}")
        for one, _, form in _forms(type(options))
        if form.least is not None and (value := getattr(options, one.name)) is not None and value < form.least
    ]


def _forms(options: Any) -> Iterator[tuple[Field[Any], Any, _Form]]:
    """Fields with their types, without `None`, and forms."""
    hints = get_type_hints(options)
    for one in fields(options):
        kind = hints[one.name]
        if get_origin(kind) in (Union, types.UnionType):
            (kind,) = (part for part in get_args(kind) if part is not type(None))
        yield one, kind, one.metadata["form"]


def _flag(one: Field[Any]) -> str:
    return "--" + one.name.replace("_", "-")


def _arguments(one: Field[Any], kind: Any, form: _Form) -> dict[str, Any]:
    """Arguments of argparse's `add_argument` for a field."""
    arguments: dict[str, Any] = {"help": form.help}
    if one.default not in (MISSING, None, (), False):
        shown = " ".join(map(str, one.default)) if isinstance(one.default, tuple) else one.default
        arguments["help"] += f" (default: {shown})"
    if kind is bool:
        return arguments | {"action": "store_true"}
    if form.metavar is not None:
        arguments["metavar"] = form.metavar
    if form.choices:
        arguments["choices"] = form.choices
    arguments["type"] = str if get_origin(kind) is Literal else kind
    if form.bare is not None:
        arguments |= {"nargs": "?", "const": form.bare}
    if get_origin(kind) is tuple:
        of_one, *others = get_args(kind)
        arguments["type"] = of_one
        if form.repeated:
            arguments["action"] = "append"
            if get_origin(of_one) is tuple:
                arguments |= {"type": get_args(of_one)[0], "nargs": len(get_args(of_one))}
        else:
            arguments["nargs"] = ("*" if form.empty else "+") if others == [...] else 1 + len(others)
    if not form.positional and one.default is MISSING:
        arguments["required"] = True
    return arguments
