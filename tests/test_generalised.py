"""Generalised moment retrieval, against slow loops over the definitions of arXiv:2605.02623 and
scikit-learn."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from slow_metrics import Moment, Window, slow_average_precision, slow_iou
from test_metrics import SPANS

from vmr_env.data.answer_sets import AnswerSet, TruthSet, paired_sets
from vmr_env.errors import DataError
from vmr_env.metrics import intervals
from vmr_env.metrics.generalised import area_under_curve, f1, generalised_intervals, generalised_scores

THRESHOLDS = [round(0.5 + 0.05 * i, 2) for i in range(10)]

queries_ = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.sampled_from([*SPANS, (5.0, 5.0)]), st.sampled_from([0.1, 0.35, 0.4, 0.9])).map(
                lambda window: (*window[0], window[1])
            ),
            max_size=12,
        ),
        st.lists(st.sampled_from(SPANS), max_size=4, unique=True),
        st.none() | st.sampled_from([0.0, 0.4, 0.41, 1.0]),
    ),
    min_size=1,
    max_size=8,
)
Query = tuple[list[Window], list[Moment], float | None]


def overlap(window: Sequence[float], moment: Moment) -> float:
    return slow_iou((window[0], window[1]), moment) if window[1] > window[0] else 0.0


def slow_pairs(windows: Sequence[Window], moments: list[Moment], least: float) -> list[float]:
    """tIoUs of windows with the moments that they take, one after the other."""
    free, pairs = list(range(len(moments))), []
    for window in windows:
        if not free:
            break
        best = max(free, key=lambda j: (overlap(window, moments[j]), -j))
        if overlap(window, moments[best]) >= least:
            pairs.append(overlap(window, moments[best]))
            free.remove(best)
    return pairs


def slow_figures(queries: list[Query], rejection: float, ranks: Sequence[int]) -> dict[str, float]:
    kept = []
    for windows, _, existence in queries:
        score = existence if existence is not None else max((w[2] for w in windows), default=0.0)
        kept.append(score > rejection)
    columns: dict[str, list[float]] = {"mAP": []}
    for k in ranks:
        columns |= {f"{name}@{k}": [] for name in ("mR", "mR+", "mIoU", "mIoU+", "G-mIoU")}
    for (windows, moments, _), answers in zip(queries, kept, strict=True):
        if moments:
            with_length = [(*w[:2], w[2]) for w in windows]
            ap = [slow_ap(with_length, moments, t) for t in THRESHOLDS]
            columns["mAP"].append(sum(ap) / len(ap))
        for k in ranks:
            first = windows[:k]
            hits = [len(slow_pairs(first, moments, t)) for t in THRESHOLDS]
            pairs = slow_pairs(first, moments, 0.0)
            if moments:
                columns[f"mR@{k}"].append(sum(h / len(moments) for h in hits) / 10)
                columns[f"mIoU@{k}"].append(sum(pairs) / len(pairs) if pairs else 0.0)
            if len(moments) > 1:
                columns[f"mR+@{k}"].append(sum(max(h - 1, 0) / (len(moments) - 1) for h in hits) / 10)
                rest = sorted(pairs, reverse=True)[1:]
                columns[f"mIoU+@{k}"].append(sum(rest) / len(rest) if rest else 0.0)
            chosen = [w for w in windows if w[1] > w[0]][:k] if answers else []
            taken = slow_pairs(chosen, moments, 0.0)
            union = len(chosen) + len(moments) - len(taken)
            columns[f"G-mIoU@{k}"].append(sum(taken) / union if union else 1.0)
    return {name: sum(v) / len(v) if v else math.nan for name, v in columns.items()}


def slow_ap(windows: list[Window], moments: list[Moment], threshold: float) -> float:
    """As moment-detr's, which has no windows without length."""
    if not windows:
        return 0.0
    far = [(w if w[1] > w[0] else (1e6, 1e6 + 1, w[2])) for w in windows]
    return slow_average_precision(far, moments, threshold)


def sets_of(queries: list[Query]) -> tuple[list[AnswerSet], list[TruthSet]]:
    answers = [
        AnswerSet(i, np.array(windows, np.float64).reshape(-1, 3), existence)
        for i, (windows, _, existence) in enumerate(queries)
    ]
    truth = [
        TruthSet(i, f"v{i}", np.array(m, np.float64).reshape(-1, 2)) for i, (_, m, _) in enumerate(queries)
    ]
    return answers, truth


@settings(deadline=None)
@given(queries_, st.sampled_from([0.35, 0.4]))
def test_figures_equal_slow_loops_over_the_definitions(queries: list[Query], rejection: float) -> None:
    found = generalised_scores(*sets_of(queries), rejection=rejection, ranks=(1, 3, 5))
    for name, value in slow_figures(queries, rejection, (1, 3, 5)).items():
        assert found[name] == pytest.approx(100 * value, abs=0.0051, nan_ok=True), name


@settings(deadline=None)
@given(queries_)
def test_rejection_equals_scikit_learn(queries: list[Query]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    answers, truth = sets_of(queries)
    found = generalised_scores(answers, truth)
    scores = np.array([answer.existence_score for answer in answers])
    positive = np.array([len(row.moments) > 0 for row in truth])
    if positive.any() and not positive.all():
        assert found["AUROC"] == pytest.approx(100 * metrics.roc_auc_score(positive, scores), abs=0.0051)
    else:
        assert math.isnan(found["AUROC"])
    if not positive.all():
        expected = metrics.f1_score(~positive, scores <= 0.4, zero_division=0.0)
        assert found["Rej-F1@0.4"] == pytest.approx(100 * expected, abs=0.0051)
    expected = metrics.accuracy_score(positive, scores > 0.4)
    assert found["Acc@0.4"] == pytest.approx(100 * expected, abs=0.0051)


@settings(deadline=None)
@given(st.data())
def test_a_draw_has_the_figures_of_the_drawn_queries(data: st.DataObject) -> None:
    queries = data.draw(queries_)
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(queries), max_size=len(queries)))
    assume(any(times))
    with pytest.MonkeyPatch.context() as patch:
        # Each query has a video of its own, which is drawn as often as `times` says.
        patch.setattr(intervals, "video_draws", lambda *_: iter([np.array([times], float)]))
        found = generalised_intervals(
            *sets_of(queries), ranks=(1, 3), source_video=lambda vid: f"{int(vid[1:]):05d}"
        )
    drawn = [query for query, often in zip(queries, times, strict=True) for _ in range(often)]
    expected = generalised_scores(*sets_of(drawn), ranks=(1, 3))
    once = generalised_scores(*sets_of(queries), ranks=(1, 3))
    for name, interval in found.items():
        assert interval.mean == pytest.approx(once[name], abs=0.0051, nan_ok=True), name
        assert interval.low == pytest.approx(expected[name], abs=0.0051, nan_ok=True), name
        assert interval.low == interval.high or math.isnan(interval.low), name


def test_a_score_at_the_threshold_rejects_and_ties_count_half() -> None:
    queries: list[Query] = [
        ([], [], None),
        ([(0.0, 5.0, 0.4)], [], None),
        ([(0.0, 5.0, 0.4)], [(0.0, 5.0)], 0.41),
    ]
    found = generalised_scores(*sets_of(queries), ranks=(1,))
    assert (found["Rej-F1@0.4"], found["Acc@0.4"], found["G-mIoU@1"]) == (100.0, 100.0, 100.0)
    assert area_under_curve(np.array([0.5, 0.5]), np.array([True, False]), np.ones(2)) == 0.5
    assert f1(np.array([False]), np.array([True]), np.ones(1)) == 0.0


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_with_empty_sets_and_existence_scores_are_paired_by_qid(tmp_path: Path) -> None:
    truth = write(
        tmp_path / "gt.jsonl",
        [
            {"qid": 1, "vid": "v", "relevant_windows": []},
            {"qid": 2, "vid": "v", "relevant_windows": [[0, 5]]},
        ],
    )
    answers = write(
        tmp_path / "p.jsonl",
        [
            {"qid": "2", "pred_relevant_windows": [[0, 5, 0.2]], "pred_exist_score": 0.7},
            {"qid": 1, "pred_relevant_windows": []},
        ],
    )
    paired, known = paired_sets(answers, truth)
    assert [answer.existence_score for answer in paired] == [0.0, 0.7]
    assert [len(row.moments) for row in known] == [0, 1]
    assert generalised_scores(paired, known)["G-mIoU@5"] == 100.0


def test_broken_and_differing_rows_are_told_by_row_and_field(tmp_path: Path) -> None:
    truth = [{"qid": 1, "vid": "v", "relevant_windows": [[5, 5]]}]
    with pytest.raises(DataError, match=r"ground_truth, row 1, relevant_windows\[0\]: is \[5.0, 5.0\]"):
        paired_sets([{"qid": 1, "pred_relevant_windows": []}], truth)
    truth = [{"qid": 1, "vid": "v", "relevant_windows": []}]
    bad = write(
        tmp_path / "p.jsonl",
        [
            {"qid": 1, "pred_relevant_windows": [[5, 4, 0.1]], "pred_exist_score": float("inf")},
            {"qid": "1", "pred_relevant_windows": []},
        ],
    )
    with pytest.raises(DataError) as caught:
        paired_sets(bad, truth)
    assert [(p.row, p.field) for p in caught.value.problems] == [
        (1, "pred_relevant_windows[0]"),
        (1, "pred_exist_score"),
        (2, "qid"),
    ]
    with pytest.raises(DataError, match=r"lacks 1 queries .*\n.*has 1 queries more"):
        paired_sets([{"qid": 2, "pred_relevant_windows": []}], truth)


def test_a_threshold_is_a_share() -> None:
    with pytest.raises(DataError, match="rejection: is 40; expected a number from 0 to 1"):
        generalised_scores(*sets_of([([], [], None)]), rejection=40)
