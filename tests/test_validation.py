"""Validators: all problems of a file at once, the reader's verdict, and warnings with published counts."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_metrics import RESULTS, truth_of

from vmr_env.caches.from_predictions import build_prediction_cache
from vmr_env.data.annotations import read_annotations
from vmr_env.data.predictions import read_predictions
from vmr_env.data.profiles import PROFILES
from vmr_env.data.validation import validate_annotations, validate_predictions
from vmr_env.errors import DataError, Problem


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def annotation(**changes: Any) -> dict[str, Any]:
    good = {"qid": 1, "query": "A man sits.", "vid": "v", "duration": 30, "relevant_windows": [[2, 8]]}
    return good | changes


def prediction(**changes: Any) -> dict[str, Any]:
    good = {"qid": 1, "query": "A man sits.", "vid": "v", "pred_relevant_windows": [[2, 8, 0.9], [3, 4, 0.5]]}
    return good | changes


def places(problems: list[Problem]) -> list[tuple[str, int | None, str | None]]:
    return [(p.severity, p.row, p.field) for p in problems]


@pytest.mark.parametrize(
    ("name", "repeats"),
    [
        ("tacos/train.jsonl.gz", 1207),
        ("tacos/val.jsonl", 519),
        ("tacos/test.jsonl", 574),
        ("qvhighlights/highlight_val_release.jsonl", 0),
        ("charades_sta/charades_sta_test.jsonl", 0),
    ],
)
def test_published_annotations_have_no_error_and_their_known_repeats(
    data: Path, name: str, repeats: int
) -> None:
    problems = validate_annotations(data / name)
    assert [p.severity for p in problems] == ["warning"] * bool(repeats)
    assert all(f"({repeats:d} rows in all" in p.message for p in problems)


@pytest.mark.parametrize("name", RESULTS)
def test_published_predictions_have_no_error(data: Path, name: str) -> None:
    problems = validate_predictions(data / "predictions" / f"{name}.jsonl.gz", truth_of(data, name))
    assert {p.severity for p in problems} <= {"warning"}
    assert not any("lower score" in p.message for p in problems)


def test_windows_past_the_end_of_a_published_file_are_counted(data: Path) -> None:
    name = "charades_sta_test.qd_la_detr"
    (problem,) = validate_predictions(data / "predictions" / f"{name}.jsonl.gz", truth_of(data, name))
    assert (problem.severity, problem.field) == ("warning", "pred_relevant_windows")
    assert "(1809 rows in all" in problem.message


def test_a_file_in_decoder_order_is_told(goldens: Path) -> None:
    path = goldens / "dataset/charadesSTA/submission_tiny_evalbsz4_unsorted.jsonl"
    (problem,) = validate_predictions(path)
    assert places([problem]) == [("warning", 1, "pred_relevant_windows")]
    assert "(4 rows in all; the evaluator takes the first window" in problem.message
    assert validate_predictions(goldens / "dataset/charadesSTA/submission_tiny_evalbsz4.jsonl") == []


def test_all_errors_of_annotations_come_in_the_order_of_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        annotation(),
        annotation(qid=2, duration=-1, relevant_windows=[[8, 2], [1, 2], [3, 3]]),
        "nonsense",
        annotation(qid="1"),
        annotation(qid=5, relevant_windows=[[2, 80]]),
        annotation(qid=6),
    )
    problems = validate_annotations(path)
    assert places(problems) == [
        ("error", 2, "duration"),
        ("error", 2, "relevant_windows[0]"),
        ("error", 2, "relevant_windows[2]"),
        ("error", 3, None),
        ("error", 4, "qid"),
        ("warning", 4, None),
        ("error", 5, "relevant_windows[0]"),
    ]
    with pytest.raises(DataError) as caught:
        read_annotations(path)
    assert list(caught.value.problems) == [p for p in problems if p.severity == "error"]


def test_all_problems_of_predictions_come_in_the_order_of_rows(tmp_path: Path) -> None:
    ratings = {"relevant_clip_ids": [1], "saliency_scores": [[1, 2, 3]]}
    truth = write(
        tmp_path / "a.jsonl",
        *(annotation(qid=qid, vid="w" if qid == 2 else "v", **ratings) for qid in (1, 2, 3, 7, 8)),
    )
    scores = {"pred_saliency_scores": [0.5] * 15}
    path = write(
        tmp_path / "p.jsonl",
        prediction(qid="1", pred_relevant_windows=[[2, 31, 0.5], [1, 2, 0.7]], **scores),
        prediction(qid=2, query="Another.", **scores),
        prediction(qid=3, pred_saliency_scores=[1]),
        prediction(qid=4, **scores),
        prediction(qid=5, pred_relevant_windows=[[3, 2, 1]], **scores),
    )
    problems = validate_predictions(path, truth)
    assert places(problems) == [
        ("error", None, "qid"),
        ("warning", 1, "pred_relevant_windows"),
        ("warning", 1, "pred_relevant_windows"),
        ("error", 2, "vid"),
        ("warning", 2, "query"),
        ("warning", 3, "pred_saliency_scores"),
        ("error", 4, "qid"),
        ("error", 5, "pred_relevant_windows[0]"),
    ]
    assert "lacks 2 queries of the ground truth, [7, 8]" in problems[0].message
    assert "has 1 queries more than the ground truth, [4]" in problems[6].message
    # The same with rows in place of the file.
    assert validate_predictions(path, read_annotations(truth)) == problems
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    assert [p.row for p in caught.value.problems] == [5]


def test_unreadable_files_are_a_problem_not_an_exception(tmp_path: Path) -> None:
    good = write(tmp_path / "p.jsonl", prediction())
    absent = tmp_path / "absent.jsonl"
    assert places(validate_annotations(absent)) == [("error", None, None)]
    assert places(validate_predictions(absent)) == [("error", None, None)]
    (problem,) = validate_predictions(good, absent)
    assert problem.where == str(absent)


def test_a_perfect_pair_has_no_problem(tmp_path: Path) -> None:
    truth = write(tmp_path / "a.jsonl", annotation())
    path = write(tmp_path / "p.jsonl", prediction())
    assert validate_annotations(truth) == []
    assert validate_predictions(path, truth) == []


def test_a_refused_row_is_not_lacking_as_well(tmp_path: Path) -> None:
    truth = write(tmp_path / "a.jsonl", annotation(), annotation(qid=2))
    broken = prediction(qid=2, pred_relevant_windows=[[1, float("nan"), 0.5]])
    problems = validate_predictions(write(tmp_path / "p.jsonl", prediction(), broken), truth)
    assert [problem.row for problem in problems] == [2]


def test_windows_in_another_unit_are_told(tmp_path: Path) -> None:
    ratings = {"relevant_clip_ids": [1], "saliency_scores": [[1, 2, 3]]}
    rows = [annotation(qid=qid, duration=30, **ratings) for qid in range(30)]
    truth = write(tmp_path / "a.jsonl", *rows)
    for times, said in ((1 / 30, "look normalised"), (0.5, "counted in clips of 2 s"), (1.0, None)):
        given = [
            prediction(qid=qid, pred_relevant_windows=[[qid % 20 * times, (qid % 20 + 10) * times, 0.5]])
            for qid in range(30)
        ]
        told = validate_predictions(write(tmp_path / "p.jsonl", *given), truth)
        messages = [problem.message for problem in told if "look" in problem.message]
        assert [said in message for message in messages if said] == ([True] if said else messages)


@pytest.mark.parametrize("name", ["qvhighlights_val.cg_detr", "tacos_test.qd_la_detr"])
def test_published_files_are_in_seconds(data: Path, name: str) -> None:
    problems = validate_predictions(data / "predictions" / f"{name}.jsonl.gz", truth_of(data, name))
    assert not [problem for problem in problems if "look" in problem.message]


NUMBERS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 19.0, 21.0, 7.3, float("nan"), float("inf")])
WINDOWS = st.lists(st.lists(NUMBERS, min_size=1, max_size=4), max_size=3)
WORDS = st.sampled_from(["A man sits.", "", "v", "w", "\ud800", 1, 2, 3, None])
ROWS = st.fixed_dictionaries(
    {
        "qid": st.sampled_from([1, 2, "1", "x", "", 9]),
        "vid": st.one_of(st.just("v"), WORDS),
        "query": st.one_of(st.just("A man sits."), WORDS),
        "pred_relevant_windows": st.one_of(st.just([[2, 8, 0.9]]), WINDOWS),
    },
    optional={"pred_saliency_scores": st.lists(NUMBERS, max_size=25)},
)


@given(
    rows=st.lists(ROWS, min_size=1, max_size=3), moment=st.sampled_from([[2, 8], [2, 8.01], [8, 30], [3, 3]])
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_cache_refuses_is_an_error_of_validate_too(
    tmp_path: Path, rows: list[dict[str, Any]], moment: list[float]
) -> None:
    truth = write(
        tmp_path / "a.jsonl", *(annotation(qid=qid, duration=20, relevant_windows=[moment]) for qid in (1, 2))
    )
    path = write(tmp_path / "p.jsonl", *rows)
    profile = PROFILES["charades"]
    errors = [p for p in validate_predictions(path, truth, profile) if p.severity == "error"]
    told = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            build_prediction_cache(tmp_path / "cache", path, truth, profile, "test", overwrite=True)
        except DataError as error:
            told = str(error)
    assert errors or not told, told
    assert not any(name in told for name in ("array(", "<object", "dtype="))
