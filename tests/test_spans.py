"""Span functions against a plain-Python reference, algebra, and published head-room figures."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmr_env.data.annotations import read_annotations
from vmr_env.data.predictions import read_predictions
from vmr_env.metrics import spans

Span = tuple[float, float]
# Few distinct points, so that touching, equal and empty spans are common.
points = st.one_of(st.integers(0, 8).map(float), st.floats(-10, 10))
a_span = st.tuples(points, points).map(lambda pair: (min(pair), max(pair)))


def slow_tiou(a: Span, b: Span) -> float:
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - common
    return common / union if union > 0 else 0.0


@given(a_span, a_span)
def test_tiou_equals_its_definition(a: Span, b: Span) -> None:
    assert spans.tiou(np.array(a), np.array(b)) == slow_tiou(a, b)


@given(a_span, a_span)
def test_tiou_is_symmetric_and_between_0_and_1(a: Span, b: Span) -> None:
    value = spans.tiou(np.array(a), np.array(b))
    assert value == spans.tiou(np.array(b), np.array(a))
    assert 0 <= value <= 1 + 1e-12


@given(st.lists(a_span, min_size=1, max_size=4), st.lists(a_span, min_size=1, max_size=4))
def test_pairwise_and_best_are_tiou_of_all_pairs(a: list[Span], b: list[Span]) -> None:
    expected = [[slow_tiou(x, y) for y in b] for x in a]
    assert spans.pairwise_tiou(np.array(a), np.array(b)).tolist() == expected
    assert spans.best_tiou(np.array(a), np.array(b)).tolist() == [max(row) for row in expected]


def test_padding_counts_for_nothing() -> None:
    moments = np.array([[[0.0, 1.0], [5.0, 9.0]], [[0.0, 4.0], [0.0, 8.0]]])
    queries = np.array([[5.0, 9.0], [0.0, 8.0]])
    np.testing.assert_array_equal(spans.best_tiou(queries, moments), [1, 1])
    np.testing.assert_array_equal(spans.best_tiou(queries, moments, np.array([1, 1])), [0, 0.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_and_leading_axes_are_kept(dtype: type) -> None:
    a = np.array([[0, 2], [4, 4]], dtype=dtype)
    b = np.zeros((3, 1, 2), dtype=dtype) + np.array([1, 3], dtype=dtype)
    result = spans.tiou(a, b)
    assert (result.shape, result.dtype) == ((3, 2), dtype)
    np.testing.assert_allclose(result, [[1 / 3, 0]] * 3, rtol=1e-6)


@given(a_span)
def test_centre_and_width_go_there_and_back(span: Span) -> None:
    cxw = spans.to_cxw(np.array(span))
    np.testing.assert_allclose(cxw, [(span[0] + span[1]) / 2, span[1] - span[0]])
    np.testing.assert_allclose(spans.from_cxw(cxw), span, atol=1e-9)


def test_clip_moves_both_ends_into_the_video() -> None:
    clipped = spans.clip(np.array([[-1.0, 0.5], [0.2, 1.5], [1.2, 1.5]]), 0, 1)
    np.testing.assert_array_equal(clipped, [[0, 0.5], [0.2, 1], [1, 1]])


@pytest.mark.parametrize(
    ("predictions", "truth", "best", "figures"),
    [
        # Published head-room of the data: proposals looked at, then R1@0.5, R1@0.7, mIoU of the best of them.
        ("qvhighlights_val.moment_detr", "qvhighlights/highlight_val_release.jsonl", 5, (75.0, 47.7, 64.9)),
        ("qvhighlights_val.moment_detr", "qvhighlights/highlight_val_release.jsonl", 10, (83.1, 53.7, 69.5)),
        ("charades_sta_test.qd_la_detr", "charades_sta/charades_sta_test.jsonl", 5, (83.0, 55.8, 68.6)),
        ("tacos_test.qd_la_detr", "tacos/test.jsonl", 10, (61.7, 36.4, 54.2)),
    ],
)
def test_head_room_of_real_detectors(
    data: Path, predictions: str, truth: str, best: int, figures: tuple[float, float, float]
) -> None:
    annotations = {str(row.qid): row for row in read_annotations(data / truth)}
    rows = read_predictions(data / "predictions" / f"{predictions}.jsonl.gz")
    top: NDArray[np.float64] = np.array(
        [spans.pairwise_tiou(row.windows[:best, :2], annotations[str(row.qid)].moments).max() for row in rows]
    )
    found = [100 * (top >= 0.5).mean(), 100 * (top >= 0.7).mean(), 100 * top.mean()]
    np.testing.assert_allclose(found, figures, atol=0.06)
