"""Means with 95 % intervals, and paired comparisons: queries of one source video are resampled together.

Queries of one video are not independent, so that intervals which resample queries are too narrow. Here videos
are resampled (cluster bootstrap, percentile interval) and, for a comparison of two answers to the same
queries, the answers to all queries of a video change sides together (permutation test).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import AnyFloats
from vmr_env.errors import check_choice

Over: TypeAlias = Literal["queries", "videos"]
"""Unit of a mean: queries, or videos, each with the mean of its queries."""

DRAWS = 2000
PERMUTATIONS = 10_000
SEED = 0

_CELLS = 2_000_000
"""Most numbers of a block of draws, which bounds memory whatever the number of videos."""


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Mean difference of two answers to the same queries, its 95 % interval and its p-value (two-sided)."""

    mean: float
    low: float
    high: float
    p: float


def mean_intervals(
    values: AnyFloats, videos: Sequence[Any] | NDArray[Any], over: Over = "queries", draws: int = DRAWS
) -> list[Interval]:
    """Mean of each column with its interval by a bootstrap over videos.

    Args:
        values: (Q, M), a row per query.
        videos: (Q,), the source video of each query.
        over: what the mean is over.
        draws: number of draws, each of as many videos as there are, with replacement.
    """
    sums, sizes = _by_video(values, videos, over)
    drawn = np.concatenate(
        [
            weights @ sums / (weights @ sizes)[:, None]
            for weights in video_draws(len(sizes), draws, np.random.default_rng(SEED))
        ]
    )
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    means = sums.sum(axis=0) / sizes.sum()
    return [Interval(*map(float, row)) for row in zip(means, low, high, strict=True)]


def statistic_intervals(
    statistic: Callable[[AnyFloats], Mapping[str, float]],
    videos: Sequence[Any] | NDArray[Any],
    draws: int = DRAWS,
) -> dict[str, Interval]:
    """Figures with their intervals where they need not be means over queries, by the same bootstrap.

    Args:
        statistic: how often each query counts (Q,) -> figures by name. NaN where a figure has no query to be
            about; a draw without one takes no part in its interval.
        videos: (Q,), the source video of each query.
        draws: as in `mean_intervals`.
    """
    names, codes = np.unique(np.asarray(videos, dtype=object).astype(str), return_inverse=True)
    figures = statistic(np.ones(len(codes)))
    blocks = video_draws(len(names), draws, np.random.default_rng(SEED))
    drawn = np.array([list(statistic(weights[codes]).values()) for block in blocks for weights in block])
    found = {}
    for (name, figure), column in zip(figures.items(), drawn.T, strict=True):
        there = column[~np.isnan(column)]
        ends = np.quantile(there, [0.025, 0.975]).tolist() if len(there) else [np.nan, np.nan]
        found[name] = Interval(figure, *ends)
    return found


def comparisons(
    values: AnyFloats,
    others: AnyFloats,
    videos: Sequence[Any] | NDArray[Any],
    over: Over = "queries",
    draws: int = DRAWS,
    permutations: int = PERMUTATIONS,
) -> list[Comparison]:
    """Mean of `values - others` of each column, its interval, and a p-value by permutation of videos.

    Under the hypothesis that both answer equally well, the answers to a video's queries may change sides. The
    p-value is the share of such exchanges whose mean difference is at least as far from 0; all of them where
    that are no more than `permutations`, else that many drawn ones and the data's own.

    Args:
        values: (Q, M), a row per query.
        others: (Q, M), of the same queries.
        videos: (Q,), the source video of each query.
        over: what the mean is over.
        draws: number of draws for the interval.
        permutations: number of exchanges for the p-value.
    """
    gains = values - others
    sums, _ = _by_video(gains, videos, over)
    found = np.abs(sums.sum(axis=0))
    least = found - 1e-9 * np.abs(sums).sum(axis=0)  # sums of the same numbers in another order are equal
    total, beyond = 0, np.zeros(len(found), np.int64)
    for signs in _signs(len(sums), permutations):
        total += len(signs)
        beyond += (np.abs(signs @ sums) >= least).sum(axis=0)
    if 2 ** min(len(sums), 63) > permutations:
        total, beyond = total + 1, beyond + 1
    intervals = mean_intervals(gains, videos, over, draws)
    return [Comparison(*interval, float(p)) for interval, p in zip(intervals, beyond / total, strict=True)]


def _by_video(
    values: AnyFloats, videos: Sequence[Any] | NDArray[Any], over: Over
) -> tuple[AnyFloats, AnyFloats]:
    """Contribution of each of V videos to a mean (V, M), and to its denominator (V,)."""
    check_choice("over", over, ("queries", "videos"))
    names, codes = np.unique(np.asarray(videos, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(codes, minlength=len(names)).astype(np.float64)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, codes, values)
    return (sums, sizes) if over == "queries" else (sums / sizes[:, None], np.ones(len(names)))


def _blocks(width: int, rows: int) -> Iterator[int]:
    """Sizes of blocks of rows of that width, `rows` in all."""
    block = max(1, _CELLS // width)
    for first in range(0, rows, block):
        yield min(block, rows - first)


def video_draws(videos: int, draws: int, rng: np.random.Generator) -> Iterator[AnyFloats]:
    """Draws of as many videos as there are, with replacement: how often each is drawn, (block, V), in blocks.

    Args:
        videos: V, number of videos.
        draws: rows of all blocks together.
        rng: where the draws come from.
    """
    shares = np.full(videos, 1 / videos)
    for size in _blocks(videos, draws):
        yield rng.multinomial(videos, shares, size=size).astype(np.float64)


def _signs(videos: int, permutations: int) -> Iterator[AnyFloats]:
    """-1 where a video's answers change sides, else 1: (block, V); all ways where they are few, else drawn
    ones."""
    if 2 ** min(videos, 63) <= permutations:
        ways = np.arange(2**videos)
        yield 1.0 - 2.0 * (ways[:, None] >> np.arange(videos) & 1)
        return
    rng = np.random.default_rng(SEED)
    for size in _blocks(videos, permutations):
        yield 1.0 - 2.0 * rng.integers(2, size=(size, videos))
