"""Metrics against the published figures of fifteen real files and against slow, obvious implementations."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_metrics import (
    Moment,
    Window,
    percent,
    slow_average_precision,
    slow_first_iou,
    slow_highlight_precision,
    slow_hull_iou,
    slow_iou,
)

from vmr_env.data.annotations import Annotation, read_annotations
from vmr_env.data.predictions import Prediction, read_predictions
from vmr_env.errors import DataWarning
from vmr_env.metrics.moments import Result, evaluate, per_query, table, write_result

# R1@0.3, @0.5, @0.7, mIoU, mAP@0.5, @0.75, mAP, short, middle, long mAP, and VeryGood mAP and HIT@1: what the
# official programs print for these files.
RESULTS = {
    "charades_sta_test.qd_la_detr": (69.33, 56.83, 35.7, 49.03, 67.77, 36.05, 37.94, 36.36, 43.81, 0.0),
    "qvhighlights_test.cg_detr": (
        77.69,
        65.43,
        48.38,
        59.98,
        64.51,
        42.77,
        42.86,
        9.61,
        45.23,
        47.32,
        40.33,
        66.21,
    ),
    "qvhighlights_test.qd_detr_40q": (
        72.05,
        60.96,
        43.84,
        55.01,
        60.58,
        38.63,
        39.0,
        7.5,
        40.94,
        44.34,
        38.84,
        63.1,
    ),
    "qvhighlights_val.cg_detr": (
        77.94,
        67.35,
        52.06,
        61.69,
        65.57,
        45.73,
        44.93,
        10.58,
        48.3,
        49.36,
        40.79,
        66.71,
    ),
    "qvhighlights_val.cg_detr_onlyclip": (
        *(78.52, 65.42, 49.61, 60.22, 65.99, 44.39, 43.56, 6.64, 45.57, 52.25, 39.03, 62.97),
    ),
    "qvhighlights_val.eatr": (
        71.74,
        60.9,
        46.13,
        55.95,
        62.01,
        42.17,
        41.43,
        9.67,
        42.68,
        48.02,
        36.9,
        57.87,
    ),
    "qvhighlights_val.moment_detr": (
        67.48,
        53.94,
        34.84,
        49.21,
        54.96,
        31.01,
        32.2,
        3.28,
        32.3,
        41.11,
        35.65,
        55.55,
    ),
    "qvhighlights_val.moment_detr_run_on_video_ckpt": (
        *(67.16, 53.23, 34.0, 48.52, 54.8, 29.02, 30.58, 3.11, 29.42, 41.27, 35.51, 55.87),
    ),
    "qvhighlights_val.qd_detr": (
        74.77,
        62.9,
        46.77,
        57.59,
        62.66,
        41.51,
        41.24,
        8.34,
        43.54,
        47.8,
        39.49,
        64.13,
    ),
    "qvhighlights_val.qd_detr_40q": (
        71.42,
        61.35,
        46.06,
        55.96,
        60.51,
        41.33,
        40.29,
        8.88,
        43.95,
        44.17,
        39.08,
        61.48,
    ),
    "qvhighlights_val.qd_detr_audio": (
        75.03,
        63.74,
        47.74,
        58.2,
        62.92,
        42.16,
        41.72,
        8.39,
        43.1,
        49.27,
        39.34,
        65.03,
    ),
    "qvhighlights_val.qd_detr_onlyclip": (
        *(73.1, 60.58, 43.35, 55.31, 60.49, 38.66, 38.66, 5.91, 41.52, 44.69, 37.73, 61.1),
    ),
    "qvhighlights_val.univtg": (
        78.84,
        68.39,
        54.0,
        62.19,
        65.6,
        47.73,
        45.99,
        12.61,
        49.17,
        49.02,
        41.25,
        67.42,
    ),
    "qvhighlights_val.vtg_gpt_zeroshot": (
        *(74.9, 59.03, 38.9, 54.55, 56.11, 35.44, 35.57, 3.74, 39.84, 38.22, 34.99, 61.1),
    ),
    "tacos_test.qd_la_detr": (53.84, 36.64, 20.34, 36.0, 44.53, 19.7, 22.57, 23.46, 26.26, 18.35),
}
KEYS = (
    "MR-full-R1@0.3",
    "MR-full-R1@0.5",
    "MR-full-R1@0.7",
    "MR-full-mIoU",
    "MR-full-mAP@0.5",
    "MR-full-mAP@0.75",
    "MR-full-mAP",
    "MR-short-mAP",
    "MR-middle-mAP",
    "MR-long-mAP",
    "HL-min-VeryGood-mAP",
    "HL-min-VeryGood-Hit1",
)
TRUTH = {
    "charades_sta_test": "charades_sta/charades_sta_test.jsonl",
    "qvhighlights_test": "qvhighlights/highlight_test_with_gt.jsonl",
    "qvhighlights_val": "qvhighlights/highlight_val_release.jsonl",
    "tacos_test": "tacos/test.jsonl",
}


def truth_of(data: Path, name: str) -> Path:
    return data / TRUTH[name.split(".")[0]]


def evaluate_file(data: Path, name: str) -> Result:
    return evaluate(data / "predictions" / f"{name}.jsonl.gz", truth_of(data, name))


@pytest.mark.parametrize("name", RESULTS)
def test_figures_of_real_files_are_the_official_ones(data: Path, name: str) -> None:
    brief = evaluate_file(data, name)["brief"]
    figures = RESULTS[name]
    assert {key: brief.get(key) for key in KEYS} == dict(zip(KEYS, (*figures, None, None)[:12], strict=True))


def test_the_figures_above_are_those_of_the_reference_table(shared: Path) -> None:
    text = (shared / "METRICS.md").read_text()
    rows = re.findall(r"^\| `(\w+\.\w+)` \|(.*)\|$", text, re.MULTILINE)
    assert {name: tuple(map(float, re.findall(r"[\d.]+", figures))) for name, figures in rows} == RESULTS


# --- against slow, obvious implementations of METRICS.md

THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
RANGES = {"short": (0, 10), "middle": (10, 30), "long": (30, 150), "full": (0, float("inf"))}


# Few distinct times and scores, so that ties, repeats, empty windows and exact thresholds are common.
TIMES = (0.0, 2.0, 4.0, 5.0, 8.0, 10.0, 20.0, 36.0, 40.0, 200.0)
SPANS = [(start, end) for start in TIMES for end in TIMES if start < end]
moments_ = st.lists(st.sampled_from(SPANS), min_size=1, max_size=12)
windows_ = st.lists(
    st.tuples(st.sampled_from([*SPANS, (5.0, 5.0), (300.0, 300.0)]), st.sampled_from([0.1, 0.5, 0.9])).map(
        lambda window: (*window[0], window[1])
    ),
    min_size=1,
    max_size=14,
)


@settings(deadline=None)
@given(st.lists(st.tuples(windows_, moments_), min_size=1, max_size=8))
def test_moment_figures_equal_a_slow_reference(queries: list[tuple[list[Window], list[Moment]]]) -> None:
    predictions = [Prediction(i, "v", "q", np.array(windows)) for i, (windows, _) in enumerate(queries)]
    # Another order and another type of qid on the other side.
    truth = [Annotation(str(i), "v", "q", 200.0, np.array(m)) for i, (_, m) in enumerate(queries)][::-1]
    result = evaluate(predictions, truth)
    for name, (low, high) in RANGES.items():
        inside = [(w, [m for m in ms if low < m[1] - m[0] <= high]) for w, ms in queries]
        inside = [(w, ms) for w, ms in inside if ms]
        first = [slow_first_iou(w, ms) for w, ms in inside]
        assert result[name]["MR-mIoU"] == pytest.approx(percent(first), abs=0.0051)
        for threshold in [0.3, 0.35, 0.4, 0.45, *THRESHOLDS]:
            expected = percent([iou >= threshold for iou in first])
            assert result[name]["MR-R1"][str(threshold)] == pytest.approx(expected, abs=0.0051)
        every = []
        for threshold in THRESHOLDS:
            expected = percent([slow_average_precision(w, ms, threshold) for w, ms in inside])
            assert result[name]["MR-mAP"][str(threshold)] == pytest.approx(expected, abs=0.0051)
            every.append(expected)
        assert result[name]["MR-mAP"]["average"] == pytest.approx(sum(every) / 10, abs=0.0051)


@settings(deadline=None)
@given(st.lists(st.tuples(windows_, moments_), min_size=1, max_size=6))
def test_per_query_values_equal_a_slow_reference_to_the_last_bits(
    queries: list[tuple[list[Window], list[Moment]]],
) -> None:
    predictions = [Prediction(i, f"v{i}", "q", np.array(windows)) for i, (windows, _) in enumerate(queries)]
    truth = [Annotation(i, f"v{i}", "q", 200.0, np.array(m)) for i, (_, m) in enumerate(queries)]
    rows = per_query(predictions, truth)
    assert rows["qid"].tolist() == list(range(len(queries)))
    assert rows["vid"].tolist() == [f"v{i}" for i in range(len(queries))]
    assert rows["iou"].tolist() == [slow_first_iou(w, m) for w, m in queries]
    for threshold in THRESHOLDS:
        expected = [slow_average_precision(w, m, threshold) for w, m in queries]
        np.testing.assert_allclose(rows[f"ap@{threshold}"], expected, rtol=1e-12)
    np.testing.assert_allclose(rows["ap"], rows[[f"ap@{t}" for t in THRESHOLDS]].mean(axis=1), rtol=1e-12)


clips = st.integers(1, 8)
ratings = st.tuples(*[st.integers(0, 4)] * 3)


@st.composite
def highlight_query(draw: st.DrawFn) -> tuple[float, dict[int, tuple[int, int, int]], list[float]]:
    """Duration, ratings by clip, predicted saliency with ties and up to two clips too few or too many."""
    count = draw(clips)
    duration = 2 * count + draw(st.sampled_from([0.0, 1.5]))
    rated = draw(st.dictionaries(st.integers(0, count - 1), ratings))
    length = max(1, count + draw(st.integers(-2, 2)))
    saliency = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 3.0]), min_size=length, max_size=length))
    return duration, rated, saliency


@settings(deadline=None)
@given(st.lists(highlight_query(), min_size=1, max_size=6))
def test_highlight_figures_equal_a_slow_reference(
    queries: list[tuple[float, dict[int, tuple[int, int, int]], list[float]]],
) -> None:
    window, moment = np.array([[0.0, 1.0, 1.0]]), np.array([[0.0, 1.0]])
    predictions = [
        Prediction(i, "v", "q", window, np.array(saliency, dtype=np.float32))
        for i, (_, _, saliency) in enumerate(queries)
    ]
    truth = [
        Annotation(
            *(i, "v", "q", duration, moment),
            np.array(list(rated), dtype=np.int64),
            np.array(list(rated.values()), dtype=np.int64).reshape(len(rated), 3),
        )
        for i, (duration, rated, _) in enumerate(queries)
    ]
    result = evaluate(predictions, truth)
    for name, lowest in {"Fair": 2, "Good": 3, "VeryGood": 4}.items():
        precisions, hits = [], []
        for duration, rated, saliency in queries:
            count = int(duration / 2)
            padded = (saliency + [0.0] * count)[:count]
            positive = [
                [rated.get(clip, (0, 0, 0))[rater] >= lowest for clip in range(count)] for rater in range(3)
            ]
            precisions += [slow_highlight_precision(padded, positive[rater]) for rater in range(3)]
            top = saliency.index(max(saliency))
            hits.append(float(top < count and any(positive[rater][top] for rater in range(3))))
        assert result["brief"][f"HL-min-{name}-mAP"] == pytest.approx(percent(precisions), abs=0.0051)
        assert result["brief"][f"HL-min-{name}-Hit1"] == pytest.approx(percent(hits), abs=0.0051)


# --- rules of the official evaluators, one by one


def one(windows: list[Window], moments: list[Moment]) -> Result:
    return evaluate(
        [Prediction(1, "v", "q", np.array(windows))],
        [Annotation(1, "v", "q", 500.0, np.array(moments, dtype=float))],
    )


def test_top_1_is_the_first_window_of_the_file_not_the_best_scored() -> None:
    brief = one([(50, 60, 0.1), (0, 10, 0.9)], [(0, 10)])["brief"]
    assert (brief["MR-full-R1@0.3"], brief["MR-full-mAP"]) == (0.0, 100.0)


def test_windows_are_cut_to_ten_before_they_are_sorted() -> None:
    misses = [(50.0, 60.0, 0.1)] * 10
    assert one([*misses, (0, 10, 0.9)], [(0, 10)])["brief"]["MR-full-mAP"] == 0.0
    assert one([*misses[:9], (0, 10, 0.9)], [(0, 10)])["brief"]["MR-full-mAP"] == 100.0


def test_equal_scores_keep_the_order_of_the_file() -> None:
    assert one([(0, 10, 0.5), (50, 60, 0.5)], [(0, 10)])["brief"]["MR-full-mAP"] == 100.0
    assert one([(50, 60, 0.5), (0, 10, 0.5)], [(0, 10)])["brief"]["MR-full-mAP"] == 50.0


def test_recall_and_matching_use_different_formulas_of_iou() -> None:
    # 7 of 10 seconds: the two formulas round to different sides of 0.7, as on two Charades-STA queries.
    window, moment = (6.3, 13.3), (6.1, 16.1)
    assert slow_hull_iou(window, moment) >= 0.7 > slow_iou(window, moment)
    result = one([(*window, 0.9)], [moment])
    assert (result["full"]["MR-R1"]["0.7"], result["full"]["MR-mAP"]["0.7"]) == (100.0, 0.0)


def test_an_empty_range_reports_zeros_in_every_place() -> None:
    result = one([(0, 10, 0.9)], [(0, 10)])
    assert result["brief"]["MR-long-mAP"] == 0.0
    assert result["long"].keys() == result["full"].keys()
    assert result["long"]["MR-mIoU"] == 0.0
    assert set(result["long"]["MR-R1"].values()) | set(result["long"]["MR-mAP"].values()) == {0.0}


def test_moments_over_150_seconds_count_in_full_only() -> None:
    brief = one([(0, 200, 0.9)], [(0, 200)])["brief"]
    assert [brief[f"MR-{name}-mAP"] for name in ("short", "middle", "long", "full")] == [0, 0, 0, 100]


def test_ranges_drop_other_moments_but_no_predictions() -> None:
    # The first window belongs to the long moment; for "short" it is a false positive ahead of the hit.
    brief = one([(100, 150, 0.9), (0, 5, 0.8)], [(100, 150), (0, 5)])["brief"]
    assert [brief[f"MR-{name}-mAP"] for name in ("short", "long", "full")] == [50, 100, 100]


def test_the_nested_result_has_the_official_keys(data: Path, tmp_path: Path) -> None:
    result = evaluate_file(data, "qvhighlights_val.univtg")
    assert list(result) == [
        "brief",
        "HL-min-Fair",
        "HL-min-Good",
        "HL-min-VeryGood",
        "full",
        "long",
        "middle",
        "short",
    ]
    assert list(result["full"]["MR-R1"]) == ["0.3", "0.35", "0.4", "0.45", *map(str, THRESHOLDS)]
    assert list(result["full"]["MR-mAP"]) == [*map(str, THRESHOLDS), "average"]
    assert result["HL-min-Fair"].keys() == {"HL-mAP", "HL-Hit1"}
    assert result["brief"]["HL-min-Fair-mAP"] == result["HL-min-Fair"]["HL-mAP"]
    write_result(tmp_path / "metrics.json", result)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result


def test_the_table_has_a_row_per_result(data: Path) -> None:
    results = {name: evaluate_file(data, name) for name in ("tacos_test.qd_la_detr", "qvhighlights_val.eatr")}
    frame = table(results)
    assert list(frame.index) == list(results)
    assert frame.loc["tacos_test.qd_la_detr", "MR-full-R1@0.5"] == 36.64
    assert frame.loc["qvhighlights_val.eatr", "HL-min-VeryGood-Hit1"] == 57.87
    assert frame.loc["tacos_test.qd_la_detr"].isna().sum() == 6  # no highlights there


def test_per_query_averages_are_the_figures(data: Path) -> None:
    name = "qvhighlights_val.moment_detr"
    rows = per_query(data / "predictions" / f"{name}.jsonl.gz", truth_of(data, name))
    found = [(rows["iou"] >= t).mean() for t in (0.3, 0.5, 0.7)]
    found += [rows[column].mean() for column in ("iou", "ap@0.5", "ap@0.75", "ap")]
    found += [rows[f"HL-min-VeryGood-{column}"].mean() for column in ("mAP", "Hit1")]
    np.testing.assert_allclose(100 * np.array(found), [*RESULTS[name][:7], *RESULTS[name][10:]], atol=0.0051)
    assert rows["vid"].nunique() == 1519


def test_paths_rows_objects_and_mixtures_give_the_same(data: Path) -> None:
    path = data / "predictions/qvhighlights_val.vtg_gpt_zeroshot.jsonl.gz"
    truth_path = truth_of(data, "qvhighlights_val")
    expected = evaluate(path, truth_path)
    predictions, truth = read_predictions(path), read_annotations(truth_path)
    dicts: list[Any] = [json.loads(line) for line in truth_path.read_text().splitlines()]
    assert evaluate(str(path), dicts) == expected
    assert evaluate(predictions[::-1], iter(truth)) == expected
    assert evaluate(predictions, [*truth[:100], *dicts[100:]]) == expected


def test_match_number_false_scores_the_shared_queries(data: Path) -> None:
    predictions = read_predictions(data / "predictions/tacos_test.qd_la_detr.jsonl.gz")
    truth = read_annotations(data / TRUTH["tacos_test"])
    shared = {p.qid for p in predictions[:3000]} & {a.qid for a in truth[500:]}
    with pytest.warns(DataWarning, match=f"answers {len(shared)} of {len(truth) - 500} queries"):
        partial = evaluate(predictions[:3000], truth[500:], match_number=False)
    assert partial == evaluate(
        [p for p in predictions if p.qid in shared], [a for a in truth if a.qid in shared]
    )


def test_windows_outside_the_video_are_scored_on_request() -> None:
    predictions = [{"qid": 1, "query": "q", "vid": "v", "pred_relevant_windows": [[-2, 16, 0.7]]}]
    truth = [{"qid": 1, "query": "q", "vid": "v", "duration": 14, "relevant_windows": [[0, 16]]}]
    assert evaluate(predictions, truth, past_end="keep")["brief"]["MR-full-mIoU"] == 88.89


def test_charades_cd_can_be_scored_as_published(data: Path) -> None:
    path = data / "charades_sta/charades_cd/test_ood.jsonl"
    truth = read_annotations(path, past_end="keep")
    perfect = [Prediction(a.qid, a.vid, a.query, np.c_[a.moments, np.ones(len(a.moments))]) for a in truth]
    assert evaluate(perfect, path, past_end="keep")["brief"]["MR-full-mAP"] == 100.0
