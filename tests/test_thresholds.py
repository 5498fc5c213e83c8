"""Hits at a threshold, judged from float32 spans as the metrics judge exact seconds."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmr_env.agents.ensemble.cross_fitting import quality
from vmr_env.caches.from_predictions import build_prediction_cache
from vmr_env.data.annotations import read_annotations
from vmr_env.data.profiles import get_profile
from vmr_env.envs.sources import open_cache
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.metrics.spans import reaches, tiou

TENTHS = {0.3: Fraction(3, 10), 0.5: Fraction(1, 2), 0.7: Fraction(7, 10)}

seconds = st.tuples(st.integers(0, 600), st.integers(1, 600)).map(lambda p: (min(p[0], p[1] - 1), p[1]))


def exact(a: tuple[int, int], b: tuple[int, int]) -> Fraction:
    common = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return Fraction(common, a[1] - a[0] + b[1] - b[0] - common)


def as_shares(span: tuple[int, int], duration: int) -> np.ndarray:
    return (np.array(span) / np.float64(duration)).astype(np.float32)


@given(seconds, seconds, st.just(600), st.sampled_from(sorted(TENTHS)))
def test_float32_hits_are_those_of_exact_arithmetic(
    a: tuple[int, int], b: tuple[int, int], duration: int, threshold: float
) -> None:
    found = tiou(as_shares(a, duration), as_shares(b, duration))
    assert bool(reaches(found, threshold)) == (exact(a, b) >= TENTHS[threshold])


def test_a_tiou_of_exactly_the_threshold_is_a_hit() -> None:
    found = tiou(as_shares((48, 60), 97), as_shares((54, 60), 97))
    assert exact((48, 60), (54, 60)) == Fraction(1, 2)
    just_below = np.nextafter(np.float32(0.5), np.float32(0))
    assert bool(reaches(found, 0.5))
    assert quality(np.array([just_below], np.float32)) == pytest.approx(0.5)
    assert quality(np.array([0.499], np.float32)) == pytest.approx(0.499 / 3)


def test_environments_reward_the_hits_that_the_metrics_count(data: Path, tmp_path: Path) -> None:
    """The potential `step` before and after a move, against exact arithmetic on seconds of the 2 s grid."""
    annotations = read_annotations(data / "qvhighlights" / "highlight_test_with_gt.jsonl")
    file = data / "predictions" / "qvhighlights_test.cg_detr.jsonl.gz"
    source = build_prediction_cache(tmp_path / "c", file, annotations, get_profile("qvhighlights"), "test")

    def steps(spans: np.ndarray) -> np.ndarray:
        hits = []
        for row, span in zip(annotations, np.round(spans).astype(int).tolist(), strict=True):
            best = max(exact(tuple(span), (int(low), int(high))) for low, high in row.moments)
            hits.append(0.5 * (best >= Fraction(1, 2)) + 0.5 * (best >= Fraction(7, 10)))
        return np.array(hits)

    n = len(annotations)
    env = VMRVectorEnv(
        n, "qvhighlights", source=source, split="test", reward="step", horizon=1, autoreset_mode="Disabled"
    )
    _, infos = env.reset(options={"sample": np.arange(n), "start": 0})
    cache = open_cache(source)
    before = cache.spans[:, 0] * cache.durations[:, None]
    rng = np.random.default_rng(0)
    actions = np.where(infos["action_mask"], rng.random(infos["action_mask"].shape), -1).argmax(axis=1)
    _, rewards, *_, infos = env.step(actions)
    at_threshold = [abs(float(one) - 0.5) < 1e-5 for one in infos["tiou"]]
    assert sum(at_threshold) > 3
    np.testing.assert_array_equal(rewards, steps(infos["span"]) - steps(before))
