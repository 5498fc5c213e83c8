"""Other people's files: each format to the same checked rows, with all that was changed counted."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from vmr_env.benchmarks.cli import main as cli
from vmr_env.caches.from_predictions import build_prediction_cache
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import Annotation, read_annotations, write_annotations
from vmr_env.data.converters import (
    ANNOTATION_FORMATS,
    PREDICTION_FORMATS,
    convert_annotations,
    convert_predictions,
    guess_format,
    write_converted,
)
from vmr_env.data.converters.answers import read_answer
from vmr_env.data.converters.datasets import medoid
from vmr_env.data.converters.guesses import windows_of_curve
from vmr_env.data.durations import read_durations
from vmr_env.data.predictions import read_predictions
from vmr_env.data.profiles import PROFILES
from vmr_env.errors import DataError
from vmr_env.metrics.moments import evaluate


def write(path: Path, content: Any) -> Path:
    """JSON lines of a list of rows for `.jsonl`, text as it is, anything else as a JSON document."""
    if path.suffix == ".jsonl":
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return path


def fields(row: Annotation) -> list[Any]:
    return [row.qid, row.vid, row.query, row.duration, row.moments.tolist()]


# --- annotations

ROW = {"qid": "q", "vid": "v", "query": "a man sits", "duration": 60.0, "relevant_windows": [[13.4, 28.1]]}
EGO4D = {
    "version": "v1",
    "videos": [
        {
            "video_uid": "long",
            "clips": [
                {
                    "clip_uid": "c1",
                    "video_start_sec": 100.5,
                    "video_end_sec": 580.5,
                    "annotations": [
                        {
                            "annotation_uid": "u",
                            "language_queries": [
                                {"clip_start_sec": 3.0, "clip_end_sec": 9.5, "query": "where is the cup? "},
                                {"clip_start_sec": 3.0, "clip_end_sec": 9.5, "query": None},
                                {"clip_start_sec": 11, "clip_end_sec": 12, "query": "who sat down?"},
                            ],
                        }
                    ],
                }
            ],
        }
    ],
}
ANNOTATIONS: dict[str, tuple[str, str, Any, list[list[Any]], str]] = {
    # name: format, file, content, rows, a line of the summary
    "activitynet": (
        "activitynet",
        "a.json",
        {"v": {"duration": 30.5, "timestamps": [[0, 4.5], [4.5, 30.51]], "sentences": ["one", " two"]}},
        [["v_0", "v", "one", 30.5, [[0, 4.5]]], ["v_1", "v", "two", 30.5, [[4.5, 30.5]]]],
        "1 moments that pass their video by at most 0.02 s were cut",
    ),
    "timelens": (
        "activitynet",
        "a.json",
        {"v": {"duration": 30, "spans": [[[1, 2], [5, 9]], [3, 4]], "queries": ["one", "two"]}},
        [["v_0", "v", "one", 30, [[1, 2], [5, 9]]], ["v_1", "v", "two", 30, [[3, 4]]]],
        "2 queries of 1 videos",
    ),
    "tacos": (
        "tacos",
        "a.json",
        {"v.avi": {"fps": 29.4, "num_frames": 900, "timestamps": [[141, 354]], "sentences": ["one"]}},
        [["v_0", "v", "one", 900 / 29.4, [[141 / 29.4, 354 / 29.4]]]],
        "format tacos: 1 queries of 1 videos",
    ),
    "didemo": (
        "didemo",
        "a.json",
        [
            {
                "annotation_id": 7,
                "video": "v.mp4",
                "description": "one",
                "num_segments": 6,
                "times": [[4, 4], [4, 4], [0, 0], [4, 5]],
            }
        ],
        [[7, "v", "one", 30, [[20, 25]]]],
        "queries whose raters differ, of which the time that agrees best was taken: 1",
    ),
    "ego4d": (
        "ego4d",
        "a.json",
        EGO4D,
        [
            ["u_0", "c1", "where is the cup?", 480, [[3, 9.5]]],
            ["u_2", "c1", "who sat down?", 480, [[11, 12]]],
        ],
        "queries without a sentence that were left out: 1",
    ),
    "TVG-Bench": (
        "records",
        "a.jsonl",
        [{"video": "clips/v.mp4", "duration": 60, "sentence": "one ", "solution": "13.4-28.1"}],
        [[1, "v", "one", 60, [[13.4, 28.1]]]],
        "0 rows refused",
    ),
    "Time-R1": (
        "records",
        "a.json",
        [{"qid": "x", "video": "v.mp4", "duration": 60, "timestamp": [1, 2.5], "sentence": "one"}],
        [["x", "v", "one", 60, [[1, 2.5]]]],
        "format records",
    ),
    "lighthouse": (
        "records",
        "a.jsonl",
        [{"qid": 3, "vid": "v", "query": "one", "video_duration": 60, "relevant_windows": [[1, 2], [3, 5]]}],
        [[3, "v", "one", 60, [[1, 2], [3, 5]]]],
        "format records",
    ),
    "start and end": (
        "records",
        "a.json",
        {
            "annotations": [
                {"id": 4, "video_id": "v", "caption": "one", "video_length": 9, "start": 1, "end": 3}
            ]
        },
        [[4, "v", "one", 9, [[1, 3]]]],
        "format records",
    ),
}


@pytest.mark.parametrize("name", ANNOTATIONS)
@pytest.mark.parametrize("guessed", [False, True])
def test_annotations_of_each_format(tmp_path: Path, name: str, guessed: bool) -> None:
    format, file, content, rows, told = ANNOTATIONS[name]
    source = write(tmp_path / file, content)
    if guessed and name == "start and end":
        pytest.skip("a document within a document is not guessed")
    out = tmp_path / "out.jsonl"
    named = () if guessed else ("--from", format)
    made = CliRunner().invoke(cli.main, ["convert", str(source), *named, "--out", str(out)])
    assert made.exit_code == 0, made.output
    assert f"format {format}: {len(rows)} queries" in made.output
    assert told in made.output
    assert [fields(row) for row in read_annotations(out)] == rows


def test_charades_text_gives_the_published_rows(data: Path) -> None:
    folder = data / "charades_sta"
    found = convert_annotations(
        folder / "original/charades_sta_train.txt",
        durations=read_durations(folder / "Charades_v1_train.csv.gz"),
        past_end="clip",
        refused="drop",
    )
    published = read_annotations(folder / "charades_sta_train.jsonl.gz")
    assert [fields(row)[1:] for row in found.rows] == [
        [row.vid, row.query.strip(), row.duration, row.moments.tolist()] for row in published
    ]
    assert "4 rows refused" in found.summary()
    assert "1802 moments that leave their video were cut" in found.summary()


def test_charades_needs_the_lengths_of_videos(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "v 0.0 6.9##one\n")
    with pytest.raises(DataError, match=r"durations: is missing; .*--durations"):
        convert_annotations(source)


def test_nextgqa_takes_its_questions_from_a_table(tmp_path: Path) -> None:
    source = write(
        tmp_path / "g.json", {"9": {"duration": 34, "location": {"1": [[1.2, 5.8], [7, 9]]}, "fps": 3}}
    )
    questions = write(tmp_path / "q.csv", "video_id,qid,question,a0\n9,1,why did he sit?,x\n9,2,other,x\n")
    (row,) = convert_annotations(source, questions=questions).rows
    assert fields(row) == ["9_1", "9", "why did he sit?", 34, [[1.2, 5.8], [7, 9]]]
    with pytest.raises(DataError, match="questions: is missing"):
        convert_annotations(source)


def test_a_parquet_table_and_its_rows(tmp_path: Path) -> None:
    import pandas as pd

    rows = [
        {"id": i, "video": "v", "caption": "one", "duration": 60.0, "span": [1.0, 2.0 + i]} for i in range(3)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    for source in (tmp_path / "t.parquet", rows):
        found = convert_annotations(source).rows  # type: ignore[arg-type]  # of two kinds in one loop
        assert [fields(row) for row in found] == [[i, "v", "one", 60, [[1, 2 + i]]] for i in range(3)]
    (tmp_path / "t.parquet").write_text("no table")
    with pytest.raises(DataError, match="is no Parquet file"):
        convert_annotations(tmp_path / "t.parquet")


def test_a_table_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([ROW]).save_to_disk(str(tmp_path / "saved"))
    (row,) = convert_annotations(tmp_path / "saved").rows
    assert fields(row) == list(ROW.values())


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ([(4, 4), (4, 4), (0, 0), (4, 5)], (4, 4)),
        ([(0, 1), (2, 3)], (0, 1)),  # a tie: the first
        ([(0, 0), (0, 2), (0, 5)], (0, 2)),
    ],
)
def test_of_several_raters_the_one_counts_that_agrees_best(
    times: list[tuple[int, int]], chosen: tuple[int, int]
) -> None:
    assert medoid(times) == chosen

    def segments(time: tuple[int, int]) -> set[int]:
        return set(range(time[0], time[1] + 1))

    agreement = {
        time: sum(len(segments(time) & segments(o)) / len(segments(time) | segments(o)) for o in times)
        for time in times
    }
    assert agreement[chosen] == max(agreement.values())


def test_didemo_ends_with_its_video(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.json",
        [{"annotation_id": 1, "video": "v.mp4", "description": "x", "num_segments": 6, "times": [[4, 5]]}],
    )
    found = convert_annotations(source, durations={"v": 27.3})
    assert fields(found.rows[0])[3:] == [27.3, [[20, 27.3]]]
    assert "moments whose last segment was cut to its video: 1" in found.summary()


def test_refused_rows_are_told_or_left_out_and_counted(tmp_path: Path) -> None:
    broken = {"a": {"duration": 9, "timestamps": [[0, 1]], "sentences": ["x", "y"]}, "b": 3}
    good = {"duration": 9, "timestamps": [[1, 2], [5, 3], ["1", 2]], "sentences": ["x", "y", "z"]}
    source = write(tmp_path / "a.json", broken | {"c": good})
    with pytest.raises(DataError) as caught:
        convert_annotations(source, "activitynet")
    messages = str(caught.value)
    assert "a: has 1 times and 2 sentences" in messages
    assert "b: is 3; expected an object" in messages
    assert "a.json, c, row 2, relevant_windows[0]: is [5.0, 3.0]" in messages
    assert "array(" not in messages
    found = convert_annotations(source, "activitynet", refused="drop")
    assert [row.qid for row in found.rows] == ["c_0"]
    assert "4 rows refused" in found.summary()
    with pytest.raises(DataError, match="relevant_windows"):
        convert_annotations(
            write(tmp_path / "n.json", {"c": good | {"timestamps": [1, 2, 3]}}), refused="drop"
        )


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", {"a": 1}), ("a.jsonl", [{"x": 1}]), ("a.json", [1, 2]), ("a.json", {})],
)
def test_what_cannot_be_guessed_is_said(tmp_path: Path, name: str, content: Any) -> None:
    with pytest.raises(DataError, match=r"expected its format \(--from\), one of activitynet, "):
        guess_format(write(tmp_path / name, content))


def test_written_annotations_read_the_same(tmp_path: Path, data: Path) -> None:
    rows = read_annotations(data / "qvhighlights/highlight_val_release.jsonl")
    write_annotations(tmp_path / "a.jsonl.gz", rows)
    again = read_annotations(tmp_path / "a.jsonl.gz")
    assert list(map(fields, again)) == list(map(fields, rows))
    for one, other in zip(rows, again, strict=True):
        np.testing.assert_array_equal(one.saliency, other.saliency)
        np.testing.assert_array_equal(one.clip_ids, other.clip_ids)


def test_every_format_is_in_a_test() -> None:
    tested = {case[0] for case in ANNOTATIONS.values()} | {"charades", "nextgqa", "table"}
    assert tested == set(ANNOTATION_FORMATS)
    assert set(PREDICTION_FORMATS) == {"windows", "answers", "dense"}


# --- predictions

TRUTH = [Annotation(i, "v1", f"query {i}", 60.0, np.array([[10.0, 20.0]])) for i in range(5)]


def test_windows_of_other_shapes(tmp_path: Path) -> None:
    source = write(
        tmp_path / "p.jsonl",
        [
            {"qid": 0, "pred_relevant_windows": [[1, 2], [3, 4], [5, 6], [7, 8]]},
            {"qid": 1, "pred_relevant_windows": [10, 20]},
            {"qid": 2, "pred_relevant_windows": []},
            {"qid": 3, "pred_relevant_windows": [[10, 20, 0.4]], "pred_exist_score": 0.9},
            {"query": "query 4", "pred_relevant_windows": [[10, 15, 0.5], [1, 2, 0.7]]},
        ],
    )
    found = convert_predictions(source, annotations=TRUTH)
    assert [row.windows.tolist() for row in found.rows] == [
        [[1, 2, 1], [3, 4, 0.75], [5, 6, 0.5], [7, 8, 0.25]],
        [[10, 20, 1]],
        [[0, 0, 0]],
        [[10, 20, 0.4]],
        [[10, 15, 0.5], [1, 2, 0.7]],
    ]
    assert [row.qid for row in found.rows] == list(range(5))
    for told in ("queries without an answer, which are misses: 1", "got scores by their rank: 2"):
        assert told in found.summary()
    out = tmp_path / "out.jsonl"
    write_converted(out, found)
    assert json.loads(out.read_text().splitlines()[3])["pred_exist_score"] == 0.9
    assert (
        evaluate(read_predictions(out), TRUTH)["brief"]["MR-full-R1@0.5"] == 60.0
    )  # rows 1, 3 and 4 of five


def test_predictions_by_qid_in_one_object(tmp_path: Path) -> None:
    source = write(tmp_path / "p.json", {"1": [[10, 20, 0.5]], "0": [[1, 2, 0.5]]})
    found = convert_predictions(source, "windows", annotations=TRUTH)
    assert [(row.qid, row.windows.tolist()) for row in found.rows] == [
        (1, [[10, 20, 0.5]]),
        (0, [[1, 2, 0.5]]),
    ]
    with pytest.raises(DataError, match="expected one of the annotated queries"):
        convert_predictions(write(tmp_path / "q.json", {"9": [[1, 2]]}), "windows", annotations=TRUTH)


def test_logits_are_rescaled_and_misses_stay_misses(tmp_path: Path) -> None:
    rows = [
        {"qid": 0, "vid": "v", "query": "a", "pred_relevant_windows": [[2, 5, 7.3], [1, 4, -2.0]]},
        {"qid": 1, "vid": "v", "query": "b", "pred_relevant_windows": []},
    ]
    for scores, expected in {
        "sigmoid": [1 / (1 + math.exp(-7.3)), 1 / (1 + math.exp(2))],
        "minmax": [1, 0],
    }.items():
        found = convert_predictions(rows, scores=scores)  # type: ignore[arg-type]  # a string of the loop
        np.testing.assert_allclose(found.rows[0].windows[:, 2], expected)
        assert found.rows[1].windows.tolist() == [[0, 0, 0]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_windows_of_a_curve_are_its_runs(values: list[int]) -> None:
    curve = np.array(values, np.float64)
    found = windows_of_curve(curve, 2.0)
    assert (found[:, 0] < found[:, 1]).all()
    assert ((found[:, 2] >= 0) & (found[:, 2] <= 1)).all()
    assert (np.diff(found[:, 2]) <= 0).all()
    for start, end, _ in (found / [2, 2, 1]).tolist():
        inside = curve[int(start) : int(end)]
        beside = [curve[i] for i in (int(start) - 1, int(end)) if 0 <= i < len(curve)]
        assert all(value < inside.min() for value in beside)


def test_dense_scores_become_windows_and_the_curve(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", [{"qid": 0, "scores": [0.1, 0.1, 0.9, 0.9, 0.1, 0.1]}])
    (row,) = convert_predictions(source, annotations=TRUTH).rows
    assert row.windows.tolist() == [[20, 40, 1]]
    assert row.saliency is not None
    np.testing.assert_allclose(row.saliency, [0.1, 0.1, 0.9, 0.9, 0.1, 0.1], rtol=1e-6)


# --- language models' answers

SPANS = {
    "The thing happens from 17 to 34.": [[17, 34]],
    "<think>perhaps 1 to 2</think><answer>12.3 to 15.0</answer>": [[12.3, 15]],
    "<answer>1 to 2</answer> no, <answer>3 to 4</answer>": [[3, 4]],
    '{"relevant_windows": [["00:12", "00:15"]]}': [[12, 15]],
    "12.3-15": [[12.3, 15]],
    "12.3s–15s": [[12.3, 15]],
    "00:12 - 00:15": [[12, 15]],
    "01:02:03 to 01:02:10.5": [[3723, 3730.5]],
    "from 12.3 to 15 seconds": [[12.3, 15]],
    "between 3 and 5 s": [[3, 5]],
    "From 10% to 20 percent": [[6, 12]],
    "start: 3, end: 5": [[3, 5]],
    '{"start_time": 3.2, "end_time": 4.5}': [[3.2, 4.5]],
    "It starts at 3.5s and ends at 7 seconds.": [[3.5, 7]],
    "0-5, 10-12.5 and 20 to 30": [[0, 5], [10, 12.5], [20, 30]],
    "[[3.0, 5.5], [7, 9]]": [[3, 5.5], [7, 9]],
    "1 min 5 s to 2 min": [[65, 120]],
    "1m5s - 2m": [[65, 120]],
    "from second 3 to second 7": [[3, 7]],
    "It does not happen at the start, but from 5 to 9": [[5, 9]],
}
DENIALS = (
    *(
        "It does not happen in the video.",
        "The event doesn't occur.",
        "I cannot find the moment.",
        "None",
        "[]",
    ),
    *(
        '{"relevant_windows": []}',
        "No such event.",
        "No.",
        "<answer>The event does not occur</answer>",
        "N/A",
    ),
)
UNREADABLE = {
    "<answer>15.0 to 12.3</answer>": "is reversed",
    "at 12 seconds": "names no two times",
    "": "names no two times",
    "I am a language model.": "names no two times",
}


@pytest.mark.parametrize("text", SPANS)
def test_spans_of_a_text(text: str) -> None:
    answer = read_answer(text, 60.0)
    np.testing.assert_allclose(answer.spans, SPANS[text])
    assert (answer.denied, answer.trouble) == (False, None)


@pytest.mark.parametrize("text", DENIALS)
def test_the_event_does_not_occur(text: str) -> None:
    answer = read_answer(text, 60.0)
    assert (answer.spans, answer.denied, answer.trouble) == ((), True, None)


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_is_not_understood_is_said(text: str) -> None:
    answer = read_answer(text)
    assert (answer.spans, answer.denied) == ((), False)
    assert answer.trouble is not None
    assert UNREADABLE[text] in answer.trouble


@given(
    start=st.integers(0, 99_999),
    length=st.integers(0, 9_999),
    form=st.sampled_from(
        ["{} to {}", "from {}s to {}s", "[{}, {}]", "{}-{} seconds", "<answer>{} - {}</answer>"]
    ),
)
def test_written_times_are_read_again(start: int, length: int, form: str) -> None:
    times = (start / 100, (start + length) / 100)
    assert read_answer(f"I think {form.format(*times)}.").spans == (times,)


def test_scales_need_the_duration() -> None:
    assert read_answer("from 17 to 34", 60, 100).spans == ((17 * 60 / 100, 34 * 60 / 100),)
    assert read_answer("from 0 to 99", 45.5, 99).spans == ((0, 45.5),)
    assert read_answer("from 3 s to 4 s", 60, 100).spans == ((3, 4),)
    trouble = read_answer("from 17% to 34%").trouble
    assert trouble is not None
    assert "needs the duration" in trouble


def test_answers_are_predictions_whose_rows_all_stay(shared: Path, tmp_path: Path) -> None:
    truth = write(
        tmp_path / "truth.jsonl",
        [
            {"qid": i, "vid": "v1", "query": "q", "duration": 50, "relevant_windows": [[12, 15]]}
            for i in range(5)
        ],
    )
    out = tmp_path / "model.jsonl"
    source = shared / "cases/llm_answers.jsonl"
    made = CliRunner().invoke(
        cli.main, ["convert", str(source), "--annotations", str(truth), "--out", str(out)]
    )
    assert made.exit_code == 0, made.output
    rows = read_predictions(out)
    assert [row.windows[0, :2].tolist() for row in rows] == [[8.5, 17], [12.3, 15], [0, 0], [12, 15], [0, 0]]
    for told in (
        "format answers",
        "answers that were understood: 3",
        "answers that say that it does not occur: 1",
        "answers that were not understood: 1",
        "'15.0 to 12.3' is reversed",
    ):
        assert told in made.output
    brief = evaluate(out, truth)["brief"]
    assert brief["MR-full-R1@0.7"] == 40.0  # of five rows; 2.7 / 3 and 1
    cache = DecoderStateCache.open(
        build_prediction_cache(tmp_path / "cache", out, truth, PROFILES["charades"], "test")
    )
    assert len(cache) == 5
