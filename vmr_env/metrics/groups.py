"""Queries by what they ask for: how long and where the moment is, how long the video, how the sentence is
put.

Where a query has several moments, the longest counts, and the first of equally long ones. No group looks at
predictions, so that two models are compared on the same queries.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from vmr_env.data.annotations import Annotation
from vmr_env.data.profiles import LENGTH_RANGES
from vmr_env.errors import check_choice
from vmr_env.metrics.intervals import DRAWS, Over, mean_intervals

if TYPE_CHECKING:
    import pandas as pd

_LONGEST = LENGTH_RANGES[-1].high
LENGTHS = (*(part.name for part in LENGTH_RANGES), f"over {_LONGEST:g} s")
"""Names of lengths of moments: those of moment-detr's evaluator, and what is longer."""

POSITIONS = ("first third", "middle third", "last third")
"""Thirds of the video, by the centre of the moment."""

DURATION_LIMITS = (30.0, 60.0, 180.0, 600.0)
"""Upper bounds in seconds of the groups of videos by length."""

DURATIONS = (*(f"up to {limit:g} s" for limit in DURATION_LIMITS), f"over {DURATION_LIMITS[-1]:g} s")

QUERY_TYPES = ("question", "relation in time", "several actions", "one action")
"""Kinds of sentences, by their words; the first that fits."""

_QUESTION = re.compile(r"(what|which|who|whom|whose|when|where|why|how)\b", re.IGNORECASE)
_RELATION = re.compile(
    r"\b(before|after|then|while|until|during|first|last|again|finally|begins?|starts?|ends?|second time)\b",
    re.IGNORECASE,
)
_SEVERAL = re.compile(r"\band\b", re.IGNORECASE)


def length_of(annotation: Annotation) -> str:
    """One of `LENGTHS`: low < length <= high."""
    start, end = _longest(annotation)
    inside = [part.name for part in LENGTH_RANGES if part.low < end - start <= part.high]
    return inside[0] if inside else LENGTHS[-1]


def position_of(annotation: Annotation) -> str:
    """One of `POSITIONS`."""
    start, end = _longest(annotation)
    third = int(3 * (start + end) / 2 / annotation.duration)
    return POSITIONS[min(third, 2)]


def duration_of(annotation: Annotation) -> str:
    """One of `DURATIONS`."""
    return DURATIONS[int(np.searchsorted(DURATION_LIMITS, annotation.duration))]


def query_type_of(annotation: Annotation) -> str:
    """One of `QUERY_TYPES`: a question by its first word or mark, else by words of time, else by "and"."""
    query = annotation.query.strip()
    if query.endswith("?") or _QUESTION.match(query):
        return "question"
    if _RELATION.search(query):
        return "relation in time"
    return "several actions" if _SEVERAL.search(query) else "one action"


def _longest(annotation: Annotation) -> tuple[float, float]:
    moments = annotation.moments
    start, end = moments[int((moments[:, 1] - moments[:, 0]).argmax())].tolist()
    return start, end


GROUPINGS: Mapping[str, tuple[Callable[[Annotation], str], tuple[str, ...]]] = MappingProxyType(
    {
        "length": (length_of, LENGTHS),
        "position": (position_of, POSITIONS),
        "query-type": (query_type_of, QUERY_TYPES),
        "duration": (duration_of, DURATIONS),
    }
)
"""Ways to group queries: the group of a query, and all groups in their order."""


def by_group(
    scores: "pd.DataFrame",
    annotations: Sequence[Annotation],
    by: str | None,
    source_video: Callable[[str], str] = str,
    over: Over = "queries",
    draws: int = DRAWS,
) -> "pd.DataFrame":
    """Means of each group of queries with their 95 % intervals, which resample source videos.

    Args:
        scores: a row per query, a column per measure; see `measures.measure_queries`.
        annotations: (Q,), the queries, in the order of the rows.
        by: key of `GROUPINGS`; None gives the row "all" alone.
        source_video: the video that a vid belongs to; see `DatasetProfile.source_video`.
        over: what means are over.
        draws: number of draws.

    Returns:
        A row per group that has queries, in the order of the groups, and "all": `queries` and `videos` (their
        numbers), and of each measure an `Interval`.

    Raises:
        DataError: `by` or `over` is unknown.
    """
    import pandas as pd

    labels = np.full(len(annotations), "all", dtype=object)
    names: tuple[str, ...] = ()
    if by is not None:
        check_choice("by", by, tuple(GROUPINGS))
        group_of, names = GROUPINGS[by]
        labels = np.array([group_of(annotation) for annotation in annotations], dtype=object)
    videos = np.array([source_video(annotation.vid) for annotation in annotations], dtype=object)
    values = scores.to_numpy(np.float64)
    rows = {}
    for name in (*names, "all"):
        chosen = labels == name if name != "all" else np.ones(len(labels), bool)
        if not chosen.any():
            continue
        intervals = mean_intervals(values[chosen], videos[chosen], over, draws)
        rows[name] = {
            "queries": int(chosen.sum()),
            "videos": len(set(videos[chosen])),
            **dict(zip(scores.columns, intervals, strict=True)),
        }
    return pd.DataFrame.from_dict(rows, orient="index")
