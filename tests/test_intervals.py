"""Intervals and p-values over source videos, against enumeration, theory, and slow loops."""

from itertools import product

import numpy as np
import pytest

from vmr_env.errors import DataError
from vmr_env.metrics.intervals import comparisons, mean_intervals


def slow_p(gains: list[float], videos: list[str], over: str) -> float:
    """By all ways to exchange the answers of videos, one after the other."""
    names = sorted(set(videos))
    parts = []
    for name in names:
        own = [gain for gain, video in zip(gains, videos, strict=True) if video == name]
        parts.append(sum(own) if over == "queries" else sum(own) / len(own))
    found = abs(sum(parts))
    ways = list(product((1, -1), repeat=len(names)))
    beyond = [abs(sum(s * part for s, part in zip(way, parts, strict=True))) >= found - 1e-9 for way in ways]
    return sum(beyond) / len(ways)


@pytest.mark.parametrize("over", ["queries", "videos"])
def test_p_values_of_few_videos_are_those_of_all_exchanges(over: str) -> None:
    rng = np.random.default_rng(0)
    videos = [f"v{i}" for i in rng.integers(9, size=40)]
    values, others = rng.random((40, 2)), rng.random((40, 2)) - [0.0, 0.1]
    found = comparisons(values, others, videos, over)  # type: ignore[arg-type]
    for column, comparison in enumerate(found):
        gains = (values - others)[:, column].tolist()
        assert comparison.p == pytest.approx(slow_p(gains, videos, over))


def test_drawn_p_values_are_near_those_of_all_exchanges() -> None:
    rng = np.random.default_rng(1)
    videos = [f"v{i % 12}" for i in range(36)]
    gains = rng.normal(0.3, 1, (36, 1))
    exact = slow_p(gains[:, 0].tolist(), videos, "queries")
    (drawn,) = comparisons(gains, np.zeros_like(gains), videos, permutations=4000)  # 2**12 ways are more
    assert drawn.p == pytest.approx(exact, abs=0.03)


def test_p_values_are_fair_where_nothing_differs_and_small_where_all_do() -> None:
    rng = np.random.default_rng(2)
    videos = np.arange(400) // 4
    same = rng.random((400, 1))
    assert comparisons(same, same, videos)[0] == (0.0, 0.0, 0.0, 1.0)
    (better,) = comparisons(same + 0.1, same, videos)
    assert better.p == pytest.approx(1 / 10_001)
    ps = [comparisons(rng.random((60, 1)), rng.random((60, 1)), np.arange(60) // 2)[0].p for _ in range(60)]
    assert 0.35 < np.mean(ps) < 0.65


@pytest.mark.parametrize("over", ["queries", "videos"])
def test_means_are_over_queries_or_videos(over: str) -> None:
    values = np.array([[1.0], [0.0], [0.0], [0.5]])
    (interval,) = mean_intervals(values, ["a", "b", "b", "b"], over)  # type: ignore[arg-type]
    assert interval.mean == pytest.approx(0.375 if over == "queries" else (1 + 1 / 6) / 2)


def test_intervals_of_independent_videos_are_those_of_theory() -> None:
    """Of videos with one query each: mean ± 1.96 standard errors; queries that repeat tell nothing more."""
    values = np.random.default_rng(3).normal(5, 2, (500, 1))
    error = values.std() / np.sqrt(500)
    once = mean_intervals(values, np.arange(500))[0]
    assert once.low == pytest.approx(once.mean - 1.96 * error, abs=0.03)
    assert once.high == pytest.approx(once.mean + 1.96 * error, abs=0.03)
    repeated = mean_intervals(np.repeat(values, 5, axis=0), np.repeat(np.arange(500), 5))[0]
    assert repeated == pytest.approx(once, abs=1e-9)


def test_a_drawn_mean_is_that_of_the_drawn_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    """With videos of other sizes, against a loop that copies the queries of each drawn video; in blocks
    too."""
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 6, size=30)
    videos = np.repeat([f"v{i:02}" for i in range(30)], sizes)
    values = rng.random((len(videos), 1))
    draws = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=200)
    means = []
    for draw in draws:
        queries = [values[videos == f"v{i:02}", 0] for i, times in enumerate(draw) for _ in range(times)]
        means.append(np.concatenate(queries).mean())
    (interval,) = mean_intervals(values, videos, draws=200)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    monkeypatch.setattr("vmr_env.metrics.intervals._CELLS", 100)
    assert mean_intervals(values, videos, draws=200)[0] == pytest.approx(interval)


def test_another_mean_is_refused() -> None:
    with pytest.raises(DataError, match="over: is 'moments'"):
        mean_intervals(np.ones((1, 1)), ["v"], "moments")  # type: ignore[arg-type]
