"""Metrics from outside of the package: a function of one answer, with a column of its own in every table.

def words_per_second(prediction, annotation):
    return len(annotation.query.split()) / annotation.duration

vmr_env.register_metric("words per second", words_per_second)
"""

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.errors import DataError, Problem, shorten

Metric: TypeAlias = Callable[[Prediction, Annotation], float]
"""The figure of one query, in the unit that tables show (percent, for shares), from its answer and its
truth."""

_REGISTERED: dict[str, Metric | str] = {}

METRICS: Mapping[str, Metric | str] = MappingProxyType(_REGISTERED)
"""All registered metrics by name."""


def register_metric(name: str, function: Metric | str) -> None:
    """Give a metric a column of its own: in `per_query`, in `evaluate`, in tables of runs and their
    intervals.

    Tables show its mean over queries. Registering the same function again changes nothing.

    Args:
        name: the column's; none that the package has itself.
        function: from `Prediction` and `Annotation` to a finite number, or `"module:name"` of such a
        function.

    Raises:
        ValueError: the name is taken or empty, or the function is none.
    """
    if not isinstance(name, str) or not name.strip() or any(mark in name for mark in "|@\n"):
        raise ValueError(f"name of a metric is {name!r}, expected text without '|' and '@'")
    if name in OWN_COLUMNS or _REGISTERED.get(name, function) != function:
        raise ValueError(f"metric {name!r} is known already, expected another name")
    if not callable(function) and not (isinstance(function, str) and function.count(":") == 1):
        raise ValueError(f"metric {name!r} is {function!r}, expected a function or 'module:name'")
    _REGISTERED[name] = function


OWN_COLUMNS = frozenset({"qid", "vid", "video", "iou", "ap", "mIoU", "mAP"})
"""Names of columns that tables have already."""


def metric(name: str) -> Metric:
    """The function of a registered metric, imported where it was registered as text.

    Raises:
        ValueError: no metric has the name, or its module has no such function.
    """
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"No metric {name!r}.{hint} Registered: {', '.join(METRICS) or 'none'}.")
    found = METRICS[name]
    if not isinstance(found, str):
        return found
    module, _, attribute = found.partition(":")
    try:
        function: Metric = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"metric {name!r} is {found!r}, which cannot be imported ({error})") from error
    return function


def registered_scores(
    name: str, predictions: Sequence[Prediction], annotations: Sequence[Annotation]
) -> NDArray[np.float64]:
    """Scores of a registered metric for each query (P,), from its answer and its truth.

    Raises:
        DataError: it says anything but a finite number; the query is named.
    """
    function = metric(name)
    values = []
    for prediction, annotation in zip(predictions, annotations, strict=True):
        value = function(prediction, annotation)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = np.nan
        if not np.isfinite(number):
            message = f"is {shorten(value)} for qid {shorten(annotation.qid)}; expected a finite number"
            raise DataError(Problem(f"metric {name}", None, None, message))
        values.append(number)
    return np.array(values)
