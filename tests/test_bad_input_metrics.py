"""Every broken argument of the evaluator gives one clear error."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_input import Case, assert_refused

from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.errors import DataError, DataWarning
from vmr_env.metrics.moments import evaluate, per_query, write_result


def truth(qid: Any = 1, **changes: Any) -> dict[str, Any]:
    return {"qid": qid, "query": "q", "vid": "v", "duration": 30, "relevant_windows": [[2, 8]]} | changes


def guess(qid: Any = 1, **changes: Any) -> dict[str, Any]:
    return {"qid": qid, "query": "q", "vid": "v", "pred_relevant_windows": [[2, 8, 0.9]]} | changes


def saliency(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"pred_saliency_scores": [1, 2]}


ANNOTATION = Annotation(1, "v", "q", 30.0, np.array([[2.0, 8.0]]))
PREDICTION = Prediction(1, "v", "q", np.array([[2.0, 8.0, 0.9]]))
W = "relevant_windows"

CASES: list[tuple[Any, Any, str, Case]] = [
    # predictions, ground truth, the argument to blame, what to say
    (None, [truth()], "predictions", Case("predictions None", "", "expected a path or rows")),
    ([guess()], None, "ground_truth", Case("ground truth None", "", "expected a path or rows")),
    (3, [truth()], "predictions", Case("predictions a number", "", "expected a path or rows")),
    ([], [truth()], "predictions", Case("no predictions", "", "is empty")),
    ([guess()], [], "ground_truth", Case("no ground truth", "", "is empty")),
    ([guess()], iter([]), "ground_truth", Case("exhausted iterator", "", "is empty")),
    (
        [guess(), 3],
        [truth()],
        "predictions",
        Case("a number for a row", "", "expected Prediction or a dict", 2),
    ),
    (
        [guess(), None],
        [truth()],
        "predictions",
        Case("None for a row", "", "expected Prediction or a dict", 2),
    ),
    ([[1, "v"]], [truth()], "predictions", Case("a list for a row", "", "expected Prediction or a dict", 1)),
    (
        [ANNOTATION],
        [truth()],
        "predictions",
        Case("annotations for predictions", "", "expected Prediction", 1),
    ),
    (
        [guess()],
        [PREDICTION],
        "ground_truth",
        Case("predictions for annotations", "", "expected Annotation", 1),
    ),
    (
        [truth()],
        [truth()],
        "predictions",
        Case("annotation dicts", "", "is missing", 1, "pred_relevant_windows"),
    ),
    ([guess()], [guess(duration=30)], "ground_truth", Case("prediction dicts", "", "is missing", 1, W)),
    ([guess(), guess()], [truth()], "predictions", Case("qid twice", "", "as in row 1", 2, "qid")),
    (
        [guess(), guess("1")],
        [truth()],
        "predictions",
        Case("qid twice, as text", "", "as in row 1", 2, "qid"),
    ),
    (
        [guess(), PREDICTION],
        [truth()],
        "predictions",
        Case("qid twice, as object", "", "as in row 1", 2, "qid"),
    ),
    ([guess()], [truth(), ANNOTATION], "ground_truth", Case("truth twice", "", "as in row 1", 2, "qid")),
    (
        [guess()],
        [truth(), truth(2)],
        "predictions",
        Case("a query missing", "", "lacks 1 queries", None, "qid"),
    ),
    (
        [guess(), guess(2)],
        [truth()],
        "predictions",
        Case("a query too many", "", "has 1 queries more", 2, "qid"),
    ),
    ([guess(1.0)], [truth()], "predictions", Case("qid float", "", "an int or a string", 1, "qid")),
    ([guess(np.True_)], [truth()], "predictions", Case("qid NumPy bool", "", "an int or a string", 1, "qid")),
    ([guess(vid="w")], [truth()], "predictions", Case("another video", "", "expected 'v'", 1, "vid")),
    (
        [guess(pred_relevant_windows=[])],
        [truth()],
        "predictions",
        Case("no windows", "", "one or more", 1, "pred_relevant_windows"),
    ),
    (
        [guess(pred_relevant_windows=np.array([[2, 8, np.nan]]))],
        [truth()],
        "predictions",
        Case("NaN score in an array", "", "finite", 1, "pred_relevant_windows[0]"),
    ),
    (
        [guess(pred_relevant_windows=np.array([[True, False, True]]))],
        [truth()],
        "predictions",
        Case("bools in an array", "", "each a number", 1, "pred_relevant_windows[0]"),
    ),
    (
        [guess(pred_relevant_windows=[[-2, 8, 1]])],
        [truth()],
        "predictions",
        Case("window before the start", "", "starts before", 1, "pred_relevant_windows[0]"),
    ),
    (
        [guess(pred_relevant_windows=[[8, 2, 1]])],
        [truth()],
        "predictions",
        Case("window reversed", "", "start <= end", 1, "pred_relevant_windows[0]"),
    ),
    ([guess()], [truth(relevant_windows=[])], "ground_truth", Case("no moments", "", "one or more", 1, W)),
    (
        [guess()],
        [truth(relevant_windows=[[2, 31]])],
        "ground_truth",
        Case("moment past the end", "", "ends after the video", 1, f"{W}[0]"),
    ),
    (
        [guess()],
        [truth(relevant_windows=[[2, float("nan")]])],
        "ground_truth",
        Case("moment NaN", "", "finite", 1, f"{W}[0]"),
    ),
    ([guess()], [truth(duration=None)], "ground_truth", Case("duration None", "", "is null", 1, "duration")),
    ("absent.jsonl", [truth()], "absent.jsonl", Case("missing prediction file", "", "does not exist")),
    ([guess()], "absent.jsonl", "absent.jsonl", Case("missing annotation file", "", "does not exist")),
    ("", [truth()], "path", Case("empty path", "", "expected the path of a file")),
]


@pytest.mark.parametrize(
    ("predictions", "ground_truth", "where", "case"), CASES, ids=[c[3].name for c in CASES]
)
@pytest.mark.parametrize("score", [evaluate, per_query])
def test_broken_arguments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    score: Any,
    predictions: Any,
    ground_truth: Any,
    where: str,
    case: Case,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(lambda: score(predictions, ground_truth), where, case, tmp_path)


def test_the_rows_that_the_cases_break_are_good() -> None:
    for predictions, ground_truth in (([guess()], [truth()]), ([PREDICTION], [ANNOTATION])):
        assert evaluate(predictions, ground_truth)["brief"]["MR-full-mIoU"] == 100.0


def test_files_of_different_splits(data: Path, tmp_path: Path) -> None:
    predictions = data / "predictions/qvhighlights_test.cg_detr.jsonl.gz"
    ground_truth = data / "qvhighlights/highlight_val_release.jsonl"
    with pytest.raises(DataError) as caught:
        evaluate(predictions, ground_truth)
    lacking, unknown = caught.value.problems
    assert "lacks 1550 queries" in lacking.message
    assert "has 1542 queries more" in unknown.message
    case = Case("", "", "has no query of the ground truth", None, "qid")
    assert_refused(
        lambda: evaluate(predictions, ground_truth, match_number=False), predictions.name, case, tmp_path
    )


def test_a_broken_row_of_a_file_is_named_by_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join([json.dumps(guess()), json.dumps(guess(2, vid=7))]).encode()))
    case = Case("", "", "expected a string", 2, "vid")
    assert_refused(lambda: evaluate(path, [truth(), truth(2)]), str(path), case, tmp_path)


def test_an_unknown_rule(tmp_path: Path) -> None:
    case = Case("", "", 'expected "error" or "clip" or "keep" or "drop"')
    rule: Any = "cut"
    assert_refused(lambda: evaluate([guess()], [truth()], past_end=rule), "past_end", case, tmp_path)
    case = Case("", "", 'expected "error" or "miss"')
    assert_refused(lambda: evaluate([guess()], [truth()], missing=rule), "missing", case, tmp_path)


RATED = {"relevant_clip_ids": [1], "saliency_scores": [[1, 2, 3]]}


@pytest.mark.parametrize(
    ("predictions", "ground_truth", "where"),
    [
        ([saliency(guess()), guess(2)], [truth(**RATED), truth(2, **RATED)], "predictions, row 2"),
        ([saliency(guess()), saliency(guess(2))], [truth(**RATED), truth(2)], "ground_truth, row 2"),
    ],
)
def test_saliency_in_some_rows_blocks_highlights_alone(
    predictions: Any, ground_truth: Any, where: str
) -> None:
    with pytest.warns(DataWarning, match=f"{where}, .*: is missing in 1 of 2 rows"):
        result = evaluate(predictions, ground_truth)
    assert result["brief"]["MR-full-mIoU"] == 100.0
    assert not [name for name in result["brief"] if name.startswith("HL")]


def test_a_result_that_cannot_be_written(tmp_path: Path) -> None:
    case = Case("", "", "No such file or directory")
    result = evaluate([guess()], [truth()])
    assert_refused(lambda: write_result(tmp_path / "absent" / "m.json", result), "m.json", case, tmp_path)
