"""Settings of agents and backbones: one check of their types and ranges for all, told in one way."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """Which numbers a setting may be."""

    holds: Callable[[Any], bool]
    expected: str


ABOVE_0 = Range(lambda value: 0 < value < math.inf, "a number above 0")
AT_LEAST_0 = Range(lambda value: 0 <= value < math.inf, "a number of at least 0")
SHARE = Range(lambda value: 0 <= value <= 1, "a number from 0 to 1")
INSIDE = Range(lambda value: 0 < value < 1, "a number above 0 and below 1")
BELOW_1 = Range(lambda value: 0 <= value < 1, "a number from 0, below 1")
COUNT = Range(lambda value: value >= 1, "a whole number of at least 1")
COUNT_OR_0 = Range(lambda value: value >= 0, "a whole number of at least 0")

RANGES: Mapping[str, Range] = {
    "lr": ABOVE_0,
    "class_lr": ABOVE_0,
    "std_lr": ABOVE_0,
    "warm_up_lr": ABOVE_0,
    "learning_rate": ABOVE_0,
    "max_norm": ABOVE_0,
    "clip": ABOVE_0,
    "temperature": ABOVE_0,
    "std": ABOVE_0,
    "ratio_clip": INSIDE,
    "gamma": SHARE,
    "lam": SHARE,
    "gae_lambda": SHARE,
    "baseline_momentum": SHARE,
    "centre_weight": SHARE,
    "hard_below": SHARE,
    "ema": BELOW_1,
    "dropout": BELOW_1,
    "state_dropout": BELOW_1,
    "warm_up_epochs": COUNT_OR_0,
}
"""By name; other whole numbers are at least 1, and other numbers at least 0."""

_WORDS: Mapping[Any, str] = {bool: "true or false", str: "text"}


class Settings:
    """Base of dataclasses of settings: values are of the annotated types, numbers finite and in their ranges.

    Raises:
        ValueError: a value is not as expected.
    """

    __slots__ = ()
    ranges: ClassVar[Mapping[str, Range]] = {}
    """Ranges of names that mean something else there."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            check(field.name, getattr(self, field.name), hints[field.name], self.ranges)


def check(name: str, value: Any, hint: Any, ranges: Mapping[str, Range]) -> None:
    """Check one setting.

    Args:
        name: of the setting.
        value: what it is.
        hint: its annotation: a class, a `Literal`, or one of these or None.
        ranges: ranges that go before `RANGES`.

    Raises:
        ValueError: the value is not as expected.
    """
    optional = NoneType in get_args(hint)
    if optional and value is None:
        return
    kind = get_args(hint)[0] if optional else hint
    known = {**RANGES, **ranges}.get(name)
    if get_origin(kind) is Literal:
        holds, expected = value in get_args(kind), f"one of {', '.join(map(repr, get_args(kind)))}"
    elif kind in (int, float):
        limits = known or (COUNT if kind is int else AT_LEAST_0)
        right = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        holds, expected = right and limits.holds(value), limits.expected
    elif known is not None:
        holds, expected = known.holds(value), known.expected
    else:
        of = get_origin(kind) or kind
        holds, expected = isinstance(value, of), _WORDS.get(kind, f"a {of.__name__}")
    if not holds:
        raise ValueError(f"{name} is {value!r}, expected {expected}{', or None' if optional else ''}")
