"""Highlight-only data: the figures of full data without its moments, and errors by row and field."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from vmr_env.data.highlights import paired_highlights
from vmr_env.errors import DataError
from vmr_env.metrics.highlights import evaluate_highlights, highlight_intervals
from vmr_env.metrics.moments import evaluate


def without(path: Path, *fields: str) -> list[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    return [{field: value for field, value in row.items() if field not in fields} for row in rows]


def test_figures_without_moments_are_the_official_ones(data: Path) -> None:
    predictions = data / "predictions" / "qvhighlights_val.cg_detr.jsonl.gz"
    truth = data / "qvhighlights" / "highlight_val_release.jsonl"
    bare = evaluate_highlights(
        without(predictions, "pred_relevant_windows", "vid", "query"),
        without(truth, "relevant_windows", "query"),
    )
    official = evaluate(predictions, truth)
    assert bare["brief"] == {key: value for key, value in official["brief"].items() if key.startswith("HL")}
    assert (bare["brief"]["HL-min-VeryGood-mAP"], bare["brief"]["HL-min-VeryGood-Hit1"]) == (40.79, 66.71)


RATED = {"qid": 1, "vid": "v", "duration": 4.0, "relevant_clip_ids": [1], "saliency_scores": [[4, 4, 2]]}


def test_a_clip_rated_highest_is_found() -> None:
    brief = evaluate_highlights([{"qid": "1", "pred_saliency_scores": [0.1, 0.7]}], [RATED])["brief"]
    assert (brief["HL-min-Fair-Hit1"], brief["HL-min-VeryGood-mAP"]) == (100.0, pytest.approx(66.67))
    brief = evaluate_highlights([{"qid": "1", "pred_saliency_scores": [0.7, 0.1]}], [RATED])["brief"]
    assert (brief["HL-min-Fair-Hit1"], brief["HL-min-VeryGood-mAP"]) == (0.0, pytest.approx(33.33))


@pytest.mark.parametrize(
    ("curve", "rated", "told"),
    [
        ([], {}, r"predictions, row 1, pred_saliency_scores: is \[\]; expected one number per clip"),
        ([1e300], {}, r"pred_saliency_scores\[0\]: is 1e\+300; expected a finite 32-bit number"),
        ([1.0], {"relevant_clip_ids": [2]}, "ground_truth, row 1, relevant_clip_ids: is .*two-second clips"),
        ([1.0], {"duration": 0.0}, "duration: is 0.0; expected seconds"),
        ([1.0], {"qid": 2}, r"lacks 1 queries of the ground truth, \[2\]; expected all"),
    ],
)
def test_broken_rows_are_told(curve: list[float], rated: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        paired_highlights([{"qid": 1, "pred_saliency_scores": curve}], [RATED | rated])


def test_rows_that_are_not_there_are_told() -> None:
    with pytest.raises(DataError, match="ground_truth: is empty; expected at least one row"):
        paired_highlights([], [])


def test_intervals_are_about_the_official_figures_and_narrow_with_agreement() -> None:
    rated = [RATED | {"qid": i, "vid": f"v{i % 4}"} for i in range(8)]
    curves = [{"qid": i, "pred_saliency_scores": [0.1, 0.7] if i % 2 else [0.7, 0.1]} for i in range(8)]
    brief = evaluate_highlights(curves, rated)["brief"]
    found = highlight_intervals(curves, rated)
    assert {name: round(one.mean, 2) for name, one in found.items()} == brief
    assert found["HL-min-Fair-Hit1"].low < 50 < found["HL-min-Fair-Hit1"].high
    # All queries of one source video: nothing can be resampled.
    same = highlight_intervals(curves, rated, lambda vid: "one")["HL-min-Fair-Hit1"]
    assert (same.low, same.high) == (same.mean, same.mean)
