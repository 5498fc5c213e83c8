"""R@n, suppression, groups, comparisons and registered metrics, against slow loops and the official
figures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_metrics import Moment, Window, slow_average_precision, slow_hull_iou, slow_iou
from test_metrics import moments_, windows_

import vmr_env
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.data.profiles import PROFILES
from vmr_env.errors import DataError
from vmr_env.metrics import registry
from vmr_env.metrics.groups import GROUPINGS, by_group
from vmr_env.metrics.measures import measure_queries
from vmr_env.metrics.moments import Joined, evaluate, join, per_query

Query = tuple[list[Window], list[Moment]]


def joined_of(queries: list[Query]) -> Joined:
    return Joined(
        [Prediction(i, f"v{i}", "q", np.array(windows)) for i, (windows, _) in enumerate(queries)],
        [Annotation(i, f"v{i}", "q", 200.0, np.array(moments)) for i, (_, moments) in enumerate(queries)],
    )


def slow_recall(windows: list[Window], moments: list[Moment], n: int, threshold: float, above: bool) -> bool:
    ious = [slow_hull_iou(w[:2], m) if w[1] > w[0] else 0.0 for w in windows[:n] for m in moments]
    return any(iou > threshold if above else iou >= threshold for iou in ious)


def slow_suppression(windows: list[Window], threshold: float) -> list[Window]:
    kept: list[Window] = []
    for window in windows:
        if window[1] == window[0] or all(
            other[1] == other[0] or slow_iou(window[:2], other[:2]) <= threshold for other in kept
        ):
            kept.append(window)
    return kept


@settings(deadline=None)
@given(st.lists(st.tuples(windows_, moments_), min_size=1, max_size=6), st.booleans())
def test_recall_at_any_rank_and_threshold_equals_a_slow_loop(queries: list[Query], above: bool) -> None:
    names = [f"R{n}@{t}" for n in (1, 5, 10) for t in (0.1, 0.25, 0.5, 0.95)]
    found = measure_queries(joined_of(queries), names, above=above)
    for name in names:
        n, threshold = name[1:].split("@")
        expected = [100.0 * slow_recall(w, m, int(n), float(threshold), above) for w, m in queries]
        assert found[name].tolist() == expected


@settings(deadline=None)
@given(st.lists(st.tuples(windows_, moments_), min_size=1, max_size=6), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_suppression_comes_before_every_measure(queries: list[Query], threshold: float) -> None:
    found = measure_queries(joined_of(queries), ["R5@0.5", "mAP"], suppression=threshold)
    for row, (windows, moments) in enumerate(queries):
        kept = slow_suppression(windows, threshold)
        assert found["R5@0.5"][row] == 100.0 * slow_recall(kept, moments, 5, 0.5, False)
        precisions = [slow_average_precision(kept, moments, round(0.5 + 0.05 * i, 2)) for i in range(10)]
        assert found["mAP"][row] == pytest.approx(100 * sum(precisions) / 10)


def test_a_tiou_at_the_threshold_counts_unless_more_is_wanted() -> None:
    queries: list[Query] = [([(0.0, 5.0, 1.0)], [(0.0, 10.0)])]
    assert measure_queries(joined_of(queries), ["R1@0.5"])["R1@0.5"].tolist() == [100.0]
    assert measure_queries(joined_of(queries), ["R1@0.5"], above=True)["R1@0.5"].tolist() == [0.0]


def test_the_usual_measures_are_the_official_figures(data: Path) -> None:
    files = (
        data / "predictions" / "qvhighlights_val.cg_detr.jsonl.gz",
        data / "qvhighlights" / "highlight_val_release.jsonl",
    )
    means = measure_queries(join(*files)).mean()
    brief = evaluate(*files)["brief"]
    assert {name: round(mean, 2) for name, mean in means.items()} == {
        name: brief[f"MR-full-{name}"] for name in means.index
    }


@pytest.mark.parametrize("measures", [["R0@0.5"], ["R1@1.5"], ["miou"], []])
def test_unknown_measures_are_refused(measures: list[str]) -> None:
    with pytest.raises(DataError, match=r"measures: .*expected some of R<n>@<threshold>, mIoU, mAP"):
        measure_queries(joined_of([([(0.0, 5.0, 1.0)], [(0.0, 10.0)])]), measures)


def test_a_suppression_threshold_is_a_share() -> None:
    with pytest.raises(DataError, match="suppression: is 50; expected a number from 0 to 1"):
        measure_queries(joined_of([([(0.0, 5.0, 1.0)], [(0.0, 10.0)])]), suppression=50)


# --- registered metrics


@pytest.fixture
def no_metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = dict(registry._REGISTERED)
    yield
    registry._REGISTERED.clear()
    registry._REGISTERED.update(before)


def start_error(prediction: Prediction, annotation: Annotation) -> float:
    return abs(float(prediction.windows[0, 0] - annotation.moments[0, 0]))


QUERIES: list[Query] = [([(1.0, 5.0, 1.0)], [(0.0, 10.0)]), ([(7.0, 9.0, 0.5)], [(4.0, 9.0)])]


@pytest.mark.usefixtures("no_metrics")
@pytest.mark.parametrize("function", [start_error, f"{__name__}:start_error"])
def test_a_registered_metric_has_its_column_everywhere(function: registry.Metric | str) -> None:
    vmr_env.register_metric("start error", function)
    vmr_env.register_metric("start error", function)  # again
    joined = joined_of(QUERIES)
    assert evaluate(joined.predictions, joined.annotations)["brief"]["start error"] == 2.0
    assert per_query(joined.predictions, joined.annotations)["start error"].tolist() == [1.0, 3.0]
    assert measure_queries(joined, ["mIoU", "start error"])["start error"].tolist() == [1.0, 3.0]


@pytest.mark.usefixtures("no_metrics")
def test_metrics_that_say_no_number_are_named_with_the_query() -> None:
    vmr_env.register_metric("broken", lambda prediction, annotation: float("nan"))
    joined = joined_of(QUERIES)
    with pytest.raises(DataError, match="metric broken: is nan for qid 0; expected a finite number"):
        evaluate(joined.predictions, joined.annotations)


@pytest.mark.usefixtures("no_metrics")
@pytest.mark.parametrize(
    ("name", "function", "told"),
    [
        ("mAP", start_error, "known already"),
        ("", start_error, "expected text"),
        ("R1@0.5", start_error, "expected text"),
        ("own", 3, "expected a function or 'module:name'"),
        ("own", "no name", "expected a function or 'module:name'"),
    ],
)
def test_bad_registrations_are_refused(name: str, function: registry.Metric, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        vmr_env.register_metric(name, function)


@pytest.mark.usefixtures("no_metrics")
def test_another_function_cannot_take_a_known_name() -> None:
    vmr_env.register_metric("start error", start_error)
    with pytest.raises(ValueError, match="known already"):
        vmr_env.register_metric("start error", lambda prediction, annotation: 0.0)
    vmr_env.register_metric("gone", "no_such_module:f")
    with pytest.raises(ValueError, match="cannot be imported"):
        registry.metric("gone")
    with pytest.raises(ValueError, match="Did you mean 'start error'"):
        registry.metric("start eror")


# --- groups


def annotation(query: str, duration: float, *moments: Moment) -> Annotation:
    return Annotation(1, "v", query, duration, np.array(moments))


@pytest.mark.parametrize(
    ("by", "one", "group"),
    [
        ("length", annotation("q", 100, (0, 10)), "short"),
        ("length", annotation("q", 100, (0, 10), (20, 50)), "middle"),  # the longest stands for the query
        ("length", annotation("q", 400, (0, 150)), "long"),
        ("length", annotation("q", 400, (0, 151)), "over 150 s"),
        ("position", annotation("q", 90, (0, 59)), "first third"),
        ("position", annotation("q", 90, (0, 60)), "middle third"),  # the centre is at a third exactly
        ("position", annotation("q", 90, (80, 90)), "last third"),
        ("position", annotation("q", 90, (80, 200)), "last third"),
        ("duration", annotation("q", 30, (0, 9)), "up to 30 s"),
        ("duration", annotation("q", 30.1, (0, 9)), "up to 60 s"),
        ("duration", annotation("q", 601, (0, 9)), "over 600 s"),
        ("query-type", annotation("Where did I put the keys", 9, (0, 9)), "question"),
        ("query-type", annotation("did she leave?", 9, (0, 9)), "question"),
        (
            "query-type",
            annotation("a man sits down after eating and drinking", 9, (0, 9)),
            "relation in time",
        ),
        ("query-type", annotation("a man eats and drinks", 9, (0, 9)), "several actions"),
        ("query-type", annotation("a man at the island stands, whatever", 9, (0, 9)), "one action"),
    ],
)
def test_queries_fall_into_the_group_that_is_documented(by: str, one: Annotation, group: str) -> None:
    group_of, names = GROUPINGS[by]
    assert group_of(one) == group
    assert group in names


def test_groups_have_the_means_of_their_queries_and_intervals_over_source_videos() -> None:
    rng = np.random.default_rng(0)
    annotations = [
        Annotation(i, f"abcdefghijk_{i // 4 * 10}.0_{i // 4 * 10 + 9}.0", "q", 100.0, np.array([[0, 5 + i]]))
        for i in range(40)
    ]
    scores = pd.DataFrame({"mIoU": rng.random(40), "R1@0.5": rng.integers(2, size=40) * 100.0})
    table = by_group(scores, annotations, "length", PROFILES["qvhighlights"].source_video)
    assert table.index.tolist() == ["short", "middle", "long", "all"]
    lengths = np.arange(40) + 5
    for name, chosen in {"short": lengths <= 10, "middle": (lengths > 10) & (lengths <= 30)}.items():
        assert table.loc[name, "queries"] == chosen.sum()
        assert table.loc[name, "mIoU"].mean == pytest.approx(scores["mIoU"][chosen].mean())
    # All clips come from one source video, so that nothing can be resampled.
    assert table["videos"].tolist() == [1] * 4
    assert table.loc["all", "mIoU"].low == pytest.approx(table.loc["all", "mIoU"].high)
    apart = by_group(scores, annotations, "length")
    assert apart.loc["all", "videos"] == 10
    low, high = apart.loc["all", "mIoU"][1:]
    assert low < scores["mIoU"].mean() < high


def test_an_unknown_grouping_is_refused() -> None:
    with pytest.raises(DataError, match=r'by: is .colour.; expected "length" or "position"'):
        by_group(pd.DataFrame({"mIoU": [1.0]}), [annotation("q", 9, (0, 9))], "colour")
