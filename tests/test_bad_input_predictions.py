"""Every broken prediction file, and every broken request to write one, gives one clear error."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_input import Case, assert_refused, files_no_reader_takes

from vmr_env.data.predictions import Prediction, read_predictions, write_predictions
from vmr_env.errors import DataError

GOOD: dict[str, Any] = {
    "qid": 1,
    "query": "A man sits.",
    "vid": "v_1",
    "pred_relevant_windows": [[2, 8, 0.9], [10, 20.5, 0.1]],
    "pred_saliency_scores": [0.5, -1],
}
GOOD_LINE = json.dumps(GOOD) + "\n"
W = "pred_relevant_windows"
S = "pred_saliency_scores"


def with_(**changes: Any) -> str:
    return GOOD_LINE + json.dumps(GOOD | {"qid": 2} | changes) + "\n"


def windows(value: Any) -> str:
    return with_(pred_relevant_windows=value)


def saliency(value: Any) -> str:
    return with_(pred_saliency_scores=value)


def without(field: str) -> str:
    return GOOD_LINE + json.dumps({k: v for k, v in (GOOD | {"qid": 2}).items() if k != field}) + "\n"


CASES = [
    Case("array for a row", GOOD_LINE + "[[2, 8, 0.9]]\n", "expected a JSON object", 2),
    Case("number for a row", GOOD_LINE + "3\n", "expected a JSON object", 2),
    Case("broken JSON", GOOD_LINE + GOOD_LINE[:-20] + "\n", "is no JSON object", 2),
    Case("single quotes", GOOD_LINE + str(GOOD) + "\n", "is no JSON object", 2),
    Case("blank line", GOOD_LINE + "\n" + with_().split("\n")[1], "is blank", 2),
    Case("million characters", GOOD_LINE + "[" + "1," * 500_000 + "\n", "is no JSON object", 2),
    Case("million-character sentence", with_(query="x" * 1_000_000, vid=3), "expected a string", 2, "vid"),
    Case("key twice", GOOD_LINE + '{"qid": 2, "qid": 2}\n', "key 'qid' appears twice", 2),
    Case("qid missing", without("qid"), "is missing", 2, "qid"),
    Case("qid null", with_(qid=None), "is null", 2, "qid"),
    Case("qid float", with_(qid=1.5), "an int or a string", 2, "qid"),
    Case("qid bool", with_(qid=False), "an int or a string", 2, "qid"),
    Case("qid list", with_(qid=[1]), "an int or a string", 2, "qid"),
    Case("qid empty", with_(qid=""), "non-empty string", 2, "qid"),
    Case("qid twice", GOOD_LINE * 2, "as in row 1", 2, "qid"),
    Case("qid twice, as text", with_(qid="1"), "as in row 1", 2, "qid"),
    Case("vid missing", without("vid"), "is missing", 2, "vid"),
    Case("vid empty", with_(vid=""), "non-empty string", 2, "vid"),
    Case("query missing", without("query"), "is missing", 2, "query"),
    Case("query number", with_(query=3), "expected a string", 2, "query"),
    Case("windows missing", without(W), "is missing", 2, W),
    Case("windows null", windows(None), "is null", 2, W),
    Case("no windows", windows([]), "one or more", 2, W),
    Case("windows text", windows("[[2, 8, 0.9]]"), "expected a list", 2, W),
    Case("one window not nested", windows([[2, 8, 0.9], 3]), "[start, end, score]", 2, f"{W}[1]"),
    Case("no score", windows([[2, 8], [3, 9, 0.5]]), "[start, end, score]", 2, f"{W}[0]"),
    Case("four numbers", windows([[2, 8, 0.9, 1]]), "[start, end, score]", 2, f"{W}[0]"),
    Case("text for a number", windows([[2, 8, "0.9"]]), "each a number", 2, f"{W}[0]"),
    Case("null for a number", windows([[2, None, 0.9]]), "each a number", 2, f"{W}[0]"),
    Case("bool for a number", windows([[2, 8, True]]), "each a number", 2, f"{W}[0]"),
    Case("NaN start", windows([[float("nan"), 8, 0.9]]), "finite", 2, f"{W}[0]"),
    Case("NaN score", windows([[2, 8, 0.9], [2, 8, float("nan")]]), "finite", 2, f"{W}[1]"),
    Case("infinite end", windows([[2, float("inf"), 0.9]]), "finite", 2, f"{W}[0]"),
    Case("infinite score", windows([[2, 8, float("-inf")]]), "finite", 2, f"{W}[0]"),
    Case("overflowing end", windows([[2, 7e99, 0.9]]).replace("7e+99", "7e+999"), "finite", 2, f"{W}[0]"),
    Case("integer beyond floats", windows([[2, 10**400, 0.9]]), "fit 64 bits", 2, W),
    Case("negative start", windows([[2, 8, 0.9], [-1, 8, 0.9]]), "starts before the video", 2, f"{W}[1]"),
    Case("reversed window", windows([[8, 2, 0.9]]), "[8.0, 2.0, 0.9], reversed; expected", 2, f"{W}[0]"),
    Case("saliency null", saliency(None), "is null", 2, S),
    Case("saliency empty", saliency([]), "one number per clip", 2, S),
    Case("saliency number", saliency(0.5), "expected a list", 2, S),
    Case("saliency nested", saliency([0.5, [0.5]]), "expected a number", 2, f"{S}[1]"),
    Case("saliency text", saliency([0.5, "0.5"]), "expected a number", 2, f"{S}[1]"),
    Case("saliency bool", saliency([True, 0.5]), "expected a number", 2, f"{S}[0]"),
    Case("saliency NaN", saliency([0.5, float("nan")]), "32-bit number", 2, f"{S}[1]"),
    Case("saliency infinite", saliency([float("inf")]), "32-bit number", 2, f"{S}[0]"),
    Case("saliency beyond 32 bits", saliency([0.5, 1e39]), "32-bit number", 2, f"{S}[1]"),
    Case("windows in no row", without(W).replace(W, "x"), "is in none of the 2 rows", None, W),
    Case("annotations", GOOD_LINE.replace("pred_relevant", "relevant"), "is missing", 1, W),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_broken_rows(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "broken.jsonl"
    assert isinstance(case.content, str)
    path.write_text(case.content)
    assert_refused(lambda: read_predictions(path), "broken.jsonl", case, tmp_path)


def test_the_rows_that_the_cases_break_are_good(tmp_path: Path) -> None:
    path = tmp_path / "good.jsonl"
    path.write_text(with_())
    assert len(read_predictions(path)) == 2


def test_unreadable_files(tmp_path: Path) -> None:
    for path, case in files_no_reader_takes(tmp_path / "files", ".jsonl", GOOD_LINE):
        assert_refused(lambda path=path: read_predictions(path), Path(path).name, case, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "closed.jsonl"
    path.write_text(GOOD_LINE)
    path.chmod(0)
    assert_refused(
        lambda: read_predictions(path), "closed.jsonl", Case("", "", "Permission denied"), tmp_path
    )


def test_arguments(tmp_path: Path) -> None:
    bad: Any
    for bad in (None, 3, b"p.jsonl", ""):
        with pytest.raises(DataError, match="expected the path of a file"):
            read_predictions(bad)
    with pytest.raises(DataError, match="before_start: is 'clip'"):
        read_predictions(tmp_path, before_start="clip")  # type: ignore[arg-type]  # what the test is about


def prediction(qid: int | str = 1, saliency: bool = True) -> Prediction:
    scores = np.ones(2, dtype=np.float32) if saliency else None
    return Prediction(qid, "v", "q", np.array([[0.0, 1.0, 0.5]]), scores)


@pytest.mark.parametrize(
    ("name", "rows", "case"),
    [
        ("p.jsonl", [], Case("no rows", "", "expected at least one row")),
        ("p.jsonl", [prediction(1), prediction("1")], Case("", "", "as in row 1", 2, "qid")),
        ("p.jsonl", [prediction(), "row"], Case("", "", "expected Prediction or a dict", 2)),
        ("p.jsonl", None, Case("", "", "expected a path or rows")),
    ],
)
def test_rows_that_cannot_be_written(tmp_path: Path, name: str, rows: Any, case: Case) -> None:
    assert_refused(lambda: write_predictions(tmp_path / name, rows), "rows", case, tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent/p.jsonl", "No such file or directory"),
        ("file/p.jsonl", "Not a directory"),
        ("folder", "Is a directory"),
        ("p\0.jsonl", "null byte"),
        ("long" * 100, "File name too long"),
    ],
)
def test_places_that_cannot_be_written(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    case = Case("", "", says)
    assert_refused(lambda: write_predictions(tmp_path / name, [prediction()]), name, case, tmp_path)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("qid", {"qid": True}),
        ("vid", {"vid": 3}),
        ("query", {"query": ""}),
        (W, {"windows": np.zeros((0, 3))}),
        (W, {"windows": np.zeros((2, 2))}),
        (W, {"windows": np.zeros(3)}),
        (W, {"windows": np.array([["0", "1", "1"]])}),
        (f"{W}[1]", {"windows": np.array([[0, 1, 1], [2, 1, 1.0]])}),
        (f"{W}[0]", {"windows": np.array([[0, 1, np.nan]])}),
        (S, {"saliency": np.zeros((2, 2), dtype=np.float32)}),
        (S, {"saliency": np.array([True])}),
        (f"{S}[1]", {"saliency": np.array([0, np.inf], dtype=np.float32)}),
    ],
)
def test_a_prediction_made_by_hand_is_checked(field: str, changes: dict[str, Any]) -> None:
    good: dict[str, Any] = {"qid": 1, "vid": "v", "query": "q", "windows": np.array([[0.0, 1.0, 0.5]])}
    Prediction(**good)
    with pytest.raises(DataError) as caught:
        Prediction(**(good | changes))
    assert [p.field for p in caught.value.problems] == [field]
