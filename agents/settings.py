"""Which values the numbers among the settings of agents may have, by name: one place for all agents."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

ABOVE_0 = (lambda value: 0 < value < math.inf, "a number above 0")
SHARE = (lambda value: 0 <= value <= 1, "a number from 0 to 1")
INSIDE = (lambda value: 0 < value < 1, "a number above 0 and below 1")

RANGES: Mapping[str, Any] = {
    "lr": ABOVE_0,
    "warm_up_lr": ABOVE_0,
    "max_norm": ABOVE_0,
    "clip": ABOVE_0,
    "ratio_clip": INSIDE,
    "gamma": SHARE,
    "lam": SHARE,
    "gae_lambda": SHARE,
    "baseline_momentum": SHARE,
}


def check_ranges(config: Any, **others: Any) -> None:
    """Check the numbers of a dataclass of settings.

    Args:
        config: the settings.
        others: ranges of names that mean something else there.

    Raises:
        ValueError: a number is out of its range, or is none.
    """
    ranges = {**RANGES, **others}
    for field in fields(config):
        if field.name not in ranges:
            continue
        value, (holds, expected) = getattr(config, field.name), ranges[field.name]
        if type(value) not in (int, float) or not holds(value):
            raise ValueError(f"{field.name} is {value!r}, expected {expected}")
