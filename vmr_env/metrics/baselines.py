"""Reference baselines that look at no video.

A window is given as a fraction of the video, [0, 1]. Constant windows are fitted on train annotations only.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.errors import check_choice
from vmr_env.metrics import spans

Window: TypeAlias = tuple[float, float]

GRID_STEPS = 40
"""Constant windows are looked for on a grid of 1/40 of the video."""

OBJECTIVES: Mapping[str, Callable[[NDArray[np.floating[Any]]], float]] = MappingProxyType(
    {
        "R1@0.5": lambda overlaps: float((overlaps >= 0.5).mean()),
        "mIoU": lambda overlaps: float(overlaps.mean()),
    }
)
"""Objectives of the best constant window, from the best tIoU of each query."""


def constant_window(annotations: Iterable[Annotation], window: Window = (0.0, 1.0)) -> list[Prediction]:
    """The same part of each video as the answer to each query; by default the whole video."""
    return [_answer(annotation, window) for annotation in annotations]


def random_window(annotations: Iterable[Annotation], rng: np.random.Generator) -> list[Prediction]:
    """A window between two uniformly drawn points of the video as the answer to each query."""
    return [_answer(annotation, sorted(rng.random(2).tolist())) for annotation in annotations]


def fit_constant_window(train: Sequence[Annotation], objective: str) -> Window:
    """The window of the grid that is best on train annotations by an objective (key of `OBJECTIVES`).

    Of equally good windows the one that starts, then ends, first. An unknown objective raises DataError.
    """
    check_choice("objective", objective, tuple(OBJECTIVES))
    measure = OBJECTIVES[objective]
    moments = np.concatenate([annotation.moments for annotation in train])
    counts = np.array([len(annotation.moments) for annotation in train])
    first = np.cumsum(counts) - counts
    seconds = np.repeat([annotation.duration for annotation in train], counts)
    grid = np.linspace(0.0, 1.0, GRID_STEPS + 1)
    windows = [(start, end) for start in grid.tolist() for end in grid.tolist() if start < end]

    def value(window: Window) -> float:
        overlaps = spans.tiou(np.array(window) * seconds[:, None], moments)
        return measure(np.maximum.reduceat(overlaps, first))

    return max(windows, key=value)


def baselines(
    train: Sequence[Annotation], test: Sequence[Annotation], rng: np.random.Generator
) -> dict[str, list[Prediction]]:
    """All of them by name, for the queries of `test`."""
    return {
        "whole video": constant_window(test),
        **{
            f"constant window best for train {objective}": constant_window(
                test, fit_constant_window(train, objective)
            )
            for objective in OBJECTIVES
        },
        "uniform random window": random_window(test, rng),
    }


def _answer(annotation: Annotation, window: Sequence[float]) -> Prediction:
    start, end = (fraction * annotation.duration for fraction in window)
    return Prediction(annotation.qid, annotation.vid, annotation.query, np.array([[start, end, 1.0]]))
