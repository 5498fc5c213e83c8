"""Figures of a run: official ones, differences, and their bootstrap intervals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from vmr_env.benchmarks.experiment.results import (
    BOOTSTRAP_SEED,
    Difference,
    differences,
    figures,
    mean_curve,
    query_scores,
    table,
)
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.data.profiles import PROFILES
from vmr_env.metrics.measures import MEASURES

CHARADES, QVHIGHLIGHTS = PROFILES["charades"], PROFILES["qvhighlights"]


def _annotations(rng: np.random.Generator, n: int) -> list[Annotation]:
    rows = []
    for i in range(n):
        duration = float(rng.uniform(20, 40))
        start = float(rng.uniform(0, 10))
        moments = np.array([[start, start + float(rng.uniform(2, 10))]])
        rows.append(Annotation(i, f"v{i // 3}", "a query", duration, moments, None, None))
    return rows


def _predictions(rng: np.random.Generator, annotations: list[Annotation], noise: float) -> list[Prediction]:
    rows = []
    for row in annotations:
        ends = row.moments[0] + rng.normal(0, noise, (5, 2))
        windows = np.sort(np.clip(ends, 0, row.duration), axis=1)
        scores = np.sort(rng.random(5))[::-1]
        rows.append(Prediction(row.qid, row.vid, row.query, np.column_stack([windows, scores]), None))
    return rows


def _scores(gain_of_video: np.ndarray, queries: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of an agent and a detector, whose differences are the video's."""
    vids = np.repeat(np.arange(len(queries)), queries)
    index = pd.Index([f"q{i}" for i in range(len(vids))])
    detector = pd.DataFrame({"video": [f"v{v}" for v in vids]} | dict.fromkeys(MEASURES, 50.0), index=index)
    agent = detector.copy()
    for measure in MEASURES:
        agent[measure] += gain_of_video[vids]
    return agent, detector


def test_differences_are_those_of_the_official_figures() -> None:
    rng = np.random.default_rng(0)
    truth = _annotations(rng, 90)
    answers, detector = _predictions(rng, truth, 1.0), _predictions(rng, truth, 3.0)
    official = {measure: figures(answers, truth)[measure] for measure in MEASURES}
    before = figures(detector, truth)
    change = differences(
        [query_scores(answers, truth, CHARADES)], query_scores(detector, truth, CHARADES), draws=10
    )
    for measure in MEASURES:
        assert change[measure].mean == pytest.approx(official[measure] - before[measure], abs=0.011)
        assert change[measure].mean > 5  # three times less noise


def test_intervals_equal_an_obvious_bootstrap() -> None:
    rng = np.random.default_rng(1)
    truth = _annotations(rng, 31)
    detector = query_scores(_predictions(rng, truth, 3.0), truth, CHARADES)
    agents = [query_scores(_predictions(rng, truth, noise), truth, CHARADES) for noise in (1.0, 2.0)]
    # Rows in another order are still the same queries.
    shuffled = [scores.sample(frac=1, random_state=3) for scores in agents]
    draws = 40
    change = differences(shuffled, detector, draws=draws)

    videos = list(dict.fromkeys(detector["video"]))
    own = np.random.default_rng(BOOTSTRAP_SEED)
    times = own.multinomial(len(videos), np.full(len(videos), 1 / len(videos)), size=draws)
    seeds = own.integers(len(agents), size=(draws, len(agents)))
    for measure in MEASURES:
        means = []
        for draw in range(draws):
            qids = [
                qid
                for video, count in zip(videos, times[draw], strict=True)
                for qid in list(detector.index[detector["video"] == video]) * count
            ]
            of_seeds = [
                np.mean([agents[seed].at[qid, measure] - detector.at[qid, measure] for qid in qids])
                for seed in seeds[draw]
            ]
            means.append(np.mean(of_seeds))
        low, high = np.quantile(means, [0.025, 0.975])
        assert change[measure].low == pytest.approx(low)
        assert change[measure].high == pytest.approx(high)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(120):
        agent, detector = _scores(rng.normal(1.0, 4.0, 60), rng.integers(1, 5, 60))
        interval = differences([agent], detector, draws=150)["mIoU"]
        covered += interval.low <= 1.0 <= interval.high
    assert 0.88 <= covered / 120 <= 0.99


def test_queries_of_a_video_count_together() -> None:
    rng = np.random.default_rng(3)
    gains = rng.normal(0.0, 4.0, 40)
    few = differences([_scores(gains, np.full(40, 1))[0]], _scores(gains, np.full(40, 1))[1])["mIoU"]
    many = differences([_scores(gains, np.full(40, 9))[0]], _scores(gains, np.full(40, 9))[1])["mIoU"]
    # Nine equal queries of a video tell no more than one.
    assert (many.low, many.high) == pytest.approx((few.low, few.high))


def test_seeds_that_differ_widen_the_interval() -> None:
    flat = np.zeros(50)
    up, detector = _scores(flat + 2.0, np.full(50, 2))
    down, _ = _scores(flat - 2.0, np.full(50, 2))
    assert differences([up, up], detector)["mAP"] == pytest.approx((2.0, 2.0, 2.0))
    mixed = differences([up, down], detector)["mAP"]
    assert mixed == pytest.approx((0.0, -2.0, 2.0))


def test_table_has_a_cell_for_every_column() -> None:
    rows = {"detector": {"mIoU": 50.0}, "agent": {"mIoU": 51.234, "Δ mIoU": Difference(1.234, -0.5, 2.0)}}
    assert table(rows).splitlines() == [
        "| agent | mIoU | Δ mIoU |",
        "|---|---|---|",
        "| detector | 50.00 |  |",
        "| agent | 51.23 | +1.23 [-0.50, +2.00] |",
    ]


def test_mean_curve_of_trainings_known_at_their_own_points() -> None:
    at = np.linspace(0, 4, 5)
    trainings = [([0, 2, 4], [0, 2, 2]), ([0, 4], [0, 8])]
    curve = mean_curve(trainings, at)
    np.testing.assert_allclose(curve.mean, [0, 1.5, 3, 4, 5])  # of 0 1 2 2 2 and 0 2 4 6 8
    # A draw has the first twice, the second twice, or both: more often than 1 in 40 each.
    np.testing.assert_allclose(curve.low, [0, 1, 2, 2, 2])
    np.testing.assert_allclose(curve.high, [0, 2, 4, 6, 8])
    alone = mean_curve(trainings[:1], at)
    assert all(np.array_equal(part, alone.mean) for part in alone)


def test_clips_of_one_source_video_stand_and_fall_together() -> None:
    """Intervals over the clips of QVHighlights are those over the videos that they were cut from."""
    rng = np.random.default_rng(3)
    truth = [
        replace(row, vid=f"{i // 6:011d}_{i}.0_{i + 150}.0") for i, row in enumerate(_annotations(rng, 60))
    ]
    named = [replace(row, vid=row.vid[:11]) for row in truth]
    found = []
    for rows, profile in ((truth, QVHIGHLIGHTS), (named, CHARADES)):
        draw = np.random.default_rng(4)
        scores = [query_scores(_predictions(draw, rows, noise), rows, profile) for noise in (1.0, 3.0)]
        found.append(differences(scores[:1], scores[1]))
    assert found[0] == found[1]
