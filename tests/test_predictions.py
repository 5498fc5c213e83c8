"""Prediction files: real ones as published, odd but legal ones kept as they stand, and writing them."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmr_env.data.predictions import Prediction, predictions_from, read_predictions, write_predictions
from vmr_env.errors import DataError


def row(**changes: Any) -> dict[str, Any]:
    """A good prediction row with some fields changed."""
    good = {"qid": 1, "query": "A man sits.", "vid": "v_1", "pred_relevant_windows": [[2, 8, 0.9]]}
    return good | changes


def fields(p: Prediction) -> tuple[object, ...]:
    saliency = None if p.saliency is None else p.saliency.tolist()
    return p.qid, type(p.qid), p.vid, p.query, p.windows.tolist(), saliency


@pytest.mark.parametrize(
    ("name", "rows", "fewest", "most", "saliency"),
    [
        # As the data's own description gives them.
        ("charades_sta_test.qd_la_detr", 3720, 40, 40, False),
        ("qvhighlights_test.cg_detr", 1542, 10, 10, True),
        ("qvhighlights_test.qd_detr_40q", 1542, 40, 40, True),
        ("qvhighlights_val.moment_detr", 1550, 10, 10, True),
        ("qvhighlights_val.univtg", 1550, 1, 10, True),
        ("qvhighlights_val.vtg_gpt_zeroshot", 1550, 1, 31, True),
        ("tacos_test.qd_la_detr", 4001, 40, 40, False),
    ],
)
def test_real_files_have_their_published_shape(
    data: Path, name: str, rows: int, fewest: int, most: int, saliency: bool
) -> None:
    predictions = read_predictions(data / "predictions" / f"{name}.jsonl.gz")
    assert len(predictions) == rows
    counts = [len(p.windows) for p in predictions]
    assert (min(counts), max(counts)) == (fewest, most)
    assert all((p.saliency is not None) == saliency for p in predictions)


def test_odd_but_legal_windows_are_kept_in_file_order(tmp_path: Path) -> None:
    windows = [[4, 4, 0.5], [2, 8, 0.5], [2, 8, 0.5], [100, 900.5, -3.25], [0, 1, 7]]
    path = tmp_path / "p.jsonl"
    path.write_text(
        json.dumps(row(pred_relevant_windows=windows, relevant_windows="answer", pred_saliency_scores=[1]))
    )
    (prediction,) = read_predictions(path)
    assert prediction.windows.tolist() == windows
    assert prediction.windows.dtype == np.float64
    assert prediction.saliency is not None
    assert (prediction.saliency.tolist(), prediction.saliency.dtype) == ([1], np.float32)


def test_windows_before_the_start_are_read_on_request_only(goldens: Path) -> None:
    # Written by GIRL-DETR's own post-processing, which leaves negative starts on TACoS.
    path = goldens / "dataset/tacos/submission_tiny_evalbsz4.jsonl"
    with pytest.raises(DataError, match="starts before the video"):
        read_predictions(path)
    rows = read_predictions(path, before_start="keep")
    assert rows[0].windows[0].tolist() == [-2.0, 16.0, 0.7004]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("qvhighlights_val.univtg", ".jsonl.gz"),
        ("charades_sta_test.qd_la_detr", ".jsonl"),
        ("tacos_test.qd_la_detr", ".jsonl"),
    ],
)
def test_real_files_survive_writing_bit_for_bit(data: Path, tmp_path: Path, name: str, suffix: str) -> None:
    rows = read_predictions(data / "predictions" / f"{name}.jsonl.gz")
    write_predictions(tmp_path / f"p{suffix}", rows)
    again = read_predictions(tmp_path / f"p{suffix}")
    assert [fields(p) for p in again] == [fields(p) for p in rows]


def test_the_file_is_what_the_official_evaluator_reads(tmp_path: Path) -> None:
    saliency = np.array([0.1, -1.25, 1e-20], dtype=np.float32)
    rows = [
        Prediction(7, "v_1", "É?", np.array([[0, 2, 0.5], [1, 1, 0.25]]), saliency),
        Prediction("s_0", "v_2", "x", np.array([[0.1, 0.3, 1]]), saliency[:1]),
    ]
    path = tmp_path / "p.jsonl"
    write_predictions(path, rows)
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert written == [
        {
            "qid": 7,
            "query": "É?",
            "vid": "v_1",
            "pred_relevant_windows": [[0, 2, 0.5], [1, 1, 0.25]],
            "pred_saliency_scores": [0.1, -1.25, 1e-20],
        },
        {
            "qid": "s_0",
            "query": "x",
            "vid": "v_2",
            "pred_relevant_windows": [[0.1, 0.3, 1]],
            "pred_saliency_scores": [0.1],
        },
    ]


numbers = st.floats(0, 1e6)
scores = st.floats(-1e6, 1e6)
windows = st.lists(
    st.tuples(numbers, numbers, scores).map(lambda w: (min(w[:2]), max(w[:2]), w[2])), min_size=1, max_size=4
)
# Any characters, but for halves of characters, which are refused; with one that is no blank.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda text: f"a{text}")
saliencies = st.none() | st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=4
)


@given(st.integers() | texts, texts, texts, windows, saliencies)
def test_any_prediction_survives_writing(
    tmp_path_factory: pytest.TempPathFactory,
    qid: int | str,
    vid: str,
    query: str,
    windows: list[tuple[float, float, float]],
    saliency: list[float] | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    values = None if saliency is None else np.array(saliency, dtype=np.float32)
    prediction = Prediction(qid, vid, query, np.array(windows), values)
    write_predictions(path, [prediction])
    assert [fields(p) for p in read_predictions(path)] == [fields(prediction)]


def test_equal_rows_give_equal_gzip_files(tmp_path: Path) -> None:
    rows = predictions_from([row()], "rows")
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_predictions(tmp_path / name, rows)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert json.loads(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()))["qid"] == 1


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("old")

    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, refuse)
    with pytest.raises(DataError, match="No space left on device"):
        write_predictions(path, predictions_from([row()], "rows"))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["p.jsonl"]


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_predictions(tmp_path / "p.jsonl", predictions_from([row()], "rows"))
    assert (tmp_path / "p.jsonl").stat().st_mode == (tmp_path / "usual").stat().st_mode
