"""Findings of a run in words: whether each agent improved the detector's moments, and what to try next."""

from collections.abc import Mapping
from typing import Any

MEASURE = "R1@0.7"
"""What the verdicts are about."""

_CEILING = "greedy oracle (ceiling)"
_LITTLE = 5.0
"""Points of `MEASURE` below which even the greedy oracle gains little."""


def verdict(row: Mapping[str, Any]) -> str:
    """Verdict on an agent, in a few words.

    Args:
        row: its entry in `results.json`.
    """
    change = row["change"][MEASURE]
    if row["chosen_rounds"] and not any(row["chosen_rounds"]):
        return "fell back to the detector in every run"
    if change["low"] > 0:
        return "improved"
    if change["high"] < 0:
        return "became worse"
    others = " and ".join(improved(row))
    return f"no significant change, but {others} improved" if others else "no significant change"


def improved(row: Mapping[str, Any]) -> list[str]:
    """Measures that an agent improved: their differences have intervals above 0.

    Args:
        row: its entry in `results.json`.
    """
    return [name for name, change in row["change"].items() if change["low"] > 0]


def lines(record: Mapping[str, Any]) -> list[str]:
    """A line for each agent, best first, and what to try next where none improved.

    Args:
        record: contents of `results.json`.
    """
    agents = sorted(record["agents"].items(), key=lambda item: -item[1]["change"][MEASURE]["mean"])
    said = []
    for name, row in agents:
        change = row["change"][MEASURE]
        interval = f"[{change['low']:+.1f}, {change['high']:+.1f}]"
        said.append(f"{name}: {MEASURE} {change['mean']:+.1f} {interval}: {verdict(row)}")
    if agents and not any(improved(row) for _, row in agents):
        said.append(advice(record))
    return said


def advice(record: Mapping[str, Any]) -> str:
    """What to try where no agent improved the detector's moments.

    Args:
        record: contents of `results.json`.
    """
    ceiling = record["references"].get(_CEILING)
    if ceiling is not None and ceiling["change"][MEASURE]["mean"] < _LITTLE:
        return (
            "Nothing was gained, and even the greedy oracle gains little here. Try a pool of several "
            "prediction files, or more --proposals, so that agents have better moments to choose from."
        )
    steps = ["more training videos"]
    if record["run"]["source"] == "predictions":
        steps += ["a pool of several prediction files", "`vmr-env dense`, which sees features of the clips"]
    if not any("tprl" in name for name in record["agents"]):
        steps.append("a backbone's cache with --weights, so that TPRL can train its head")
    return f"Nothing was gained. Try {', '.join(steps)}, or more --seeds for narrower intervals."
