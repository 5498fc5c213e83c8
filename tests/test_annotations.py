"""Annotation readers: real files against their published facts, and the rules for what they hold."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmr_env.data.annotations import Annotation, annotations_from, read_annotations, read_charades_text
from vmr_env.data.durations import read_durations
from vmr_env.errors import DataError, DataWarning


def row(**changes: Any) -> dict[str, Any]:
    """A good annotation row with some fields changed."""
    good = {"qid": 1, "query": "A man sits.", "vid": "v_1", "duration": 30.0, "relevant_windows": [[2, 8]]}
    return good | changes


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    return path


@pytest.mark.parametrize(
    ("name", "rows", "moments", "most", "saliency"),
    [
        # Row counts, windows by length range and windows per query as the data's own description gives them.
        ("qvhighlights/highlight_train_release.jsonl.gz", 7218, 4774 + 4997 + 3032, 24, True),
        ("qvhighlights/highlight_val_release.jsonl", 1550, 1130 + 1062 + 611, 25, True),
        ("qvhighlights/highlight_test_with_gt.jsonl", 1542, 1079 + 1069 + 613, 20, True),
        ("charades_sta/charades_sta_train.jsonl.gz", 12404, 12404, 1, False),
        ("charades_sta/charades_sta_test.jsonl", 3720, 3720, 1, False),
        ("tacos/train.jsonl.gz", 9790, 9790, 1, False),
        ("tacos/val.jsonl", 4436, 4436, 1, False),
        ("tacos/test.jsonl", 4001, 4001, 1, False),
    ],
)
def test_real_files_have_their_published_counts(
    data: Path, name: str, rows: int, moments: int, most: int, saliency: bool
) -> None:
    annotations = read_annotations(data / name)
    assert len(annotations) == rows
    assert sum(len(a.moments) for a in annotations) == moments
    assert max(len(a.moments) for a in annotations) == most
    assert all((a.saliency is not None) == saliency for a in annotations)


def test_saliency_clips_are_the_clips_of_the_moments(data: Path) -> None:
    for a in read_annotations(data / "qvhighlights/highlight_val_release.jsonl"):
        assert a.clip_ids is not None
        assert a.saliency is not None
        clips = [clip for start, end in a.moments.tolist() for clip in range(int(start) // 2, int(end) // 2)]
        assert a.clip_ids.tolist() == clips
        assert a.saliency.shape == (len(clips), 3)


def test_values_types_and_file_order_are_kept(tmp_path: Path) -> None:
    rows = [
        row(qid="s1_0", relevant_windows=[[12, 20], [2, 8.5]], extra=[1]),
        row(qid=3, duration=30, query='É ☃ \u2028 "x"'),
    ]
    path = write(tmp_path / "a.jsonl", *rows)
    first, second = read_annotations(path)
    assert (first.qid, second.qid) == ("s1_0", 3)
    assert first.moments.tolist() == [[12, 20], [2, 8.5]]
    assert first.moments.dtype == np.float64
    assert second.query == 'É ☃ \u2028 "x"'
    assert second.duration == 30.0
    assert first.saliency is None
    assert first.clip_ids is None


@pytest.mark.parametrize("raw", ['"qid"', "utf8", "crlf", "no final newline"])
def test_harmless_variants_of_the_text_read_alike(tmp_path: Path, raw: str) -> None:
    text = json.dumps(row(query="café"), ensure_ascii=raw != "utf8") + "\n"
    text = text.replace("\n", "\r\n") if raw == "crlf" else text
    text = text.removesuffix("\n") if raw == "no final newline" else text
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode())
    assert read_annotations(path)[0].query == "café"


def test_gzip_reads_like_plain_text(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", row(), row(qid=2))
    packed = tmp_path / "a.jsonl.gz"
    # Two members after each other are one legal gzip file.
    lines = plain.read_bytes().splitlines(keepends=True)
    packed.write_bytes(b"".join(gzip.compress(line) for line in lines))
    assert (
        [a.qid for a in read_annotations(packed)] == [a.qid for a in read_annotations(str(plain))] == [1, 2]
    )


def test_repeated_rows_under_different_qids_are_kept(tmp_path: Path) -> None:
    assert len(read_annotations(write(tmp_path / "a.jsonl", row(), row(qid=2)))) == 2


# --- moments past the end


PAST = (
    row(qid=1, relevant_windows=[[2, 8], [20, 31.5]]),
    row(qid=2, relevant_windows=[[29, 40]]),
    row(qid=3),
)


def test_moments_past_the_end_are_an_error_by_default(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_annotations(write(tmp_path / "a.jsonl", *PAST))
    assert [(p.row, p.field) for p in caught.value.problems] == [
        (1, "relevant_windows[1]"),
        (2, "relevant_windows[0]"),
    ]


def test_moments_past_the_end_are_clipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *PAST)
    with pytest.warns(DataWarning, match="a.jsonl: 2 moments .* were cut"):
        clipped = read_annotations(path, past_end="clip")
    assert [a.moments.tolist() for a in clipped] == [[[2, 8], [20, 30]], [[29, 30]], [[2, 8]]]


def test_moments_past_the_end_are_kept_on_request(tmp_path: Path) -> None:
    kept = read_annotations(write(tmp_path / "a.jsonl", *PAST), past_end="keep")
    assert [a.moments.tolist() for a in kept] == [r["relevant_windows"] for r in PAST]


@pytest.mark.parametrize("start", [30, 35])
def test_a_moment_that_starts_at_or_after_the_end_cannot_be_clipped(tmp_path: Path, start: float) -> None:
    path = write(tmp_path / "a.jsonl", *PAST, row(qid=4, relevant_windows=[[start, 40]]))
    with pytest.raises(DataError) as caught:
        read_annotations(path, past_end="clip")
    assert [(p.row, p.field) for p in caught.value.problems] == [(4, "relevant_windows[0]")]
    assert "starts after the video" in str(caught.value)


def test_a_moment_that_ends_with_the_video_is_inside(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", row(relevant_windows=[[0, 30.0]]))
    assert read_annotations(path)[0].moments.tolist() == [[0, 30]]


@pytest.mark.parametrize(
    ("name", "past", "late"),
    [
        ("train.jsonl.gz", 1652, 0),
        ("val.jsonl", 135, 0),
        ("test_iid.jsonl", 151, 0),
        ("test_ood.jsonl", 348, 3),
    ],
)
def test_charades_cd_has_its_published_number_of_moments_past_the_end(
    data: Path, name: str, past: int, late: int
) -> None:
    path = data / "charades_sta/charades_cd" / name
    raw = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).splitlines()
    passing = [end - r["duration"] for r in map(json.loads, raw) for _, end in r["relevant_windows"]]
    noise = sum(0 < seconds < 0.02 for seconds in passing)
    with pytest.raises(DataError) as caught:
        read_annotations(path)
    assert len(caught.value.problems) == past - noise
    if late:
        with pytest.raises(DataError) as caught:
            read_annotations(path, past_end="clip")
        assert len(caught.value.problems) == late
    else:
        with pytest.warns(DataWarning, match=f"{past} moments that leave .*cut"):
            read_annotations(path, past_end="clip")
    with pytest.warns(DataWarning) as told:
        kept = read_annotations(path, past_end="drop")
    assert f"{past - noise} moments that do not lie within their video were left out" in str(told[-1].message)
    assert len(kept) == len(raw) - (past - noise)


def test_rounding_is_cut_and_counted_under_every_rule_but_keep(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        row(qid=1, duration=113.25999999999999, relevant_windows=[[103.06, 113.26]]),
        row(qid=2, duration=30.5, relevant_windows=[[-0.01, 4], [4.5, 30.52]]),
        row(qid=3),
    )
    for rule in ("error", "clip", "drop"):
        with pytest.warns(DataWarning, match="a.jsonl: 3 moments that pass .* 0.02 s were cut"):
            rows = read_annotations(path, past_end=rule)  # type: ignore[arg-type]  # a string of the loop
        assert [r.moments.tolist() for r in rows] == [
            [[103.06, 113.25999999999999]],
            [[0, 4], [4.5, 30.5]],
            [[2, 8]],
        ]
    kept = read_annotations(path, past_end="keep")
    assert kept[1].moments.tolist() == [[-0.01, 4], [4.5, 30.52]]


def test_more_than_rounding_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", row(duration=30.5, relevant_windows=[[4.5, 30.53]]))
    with pytest.raises(DataError, match=r"ends after the video; expected at most 30.5 s .*--past-end"):
        read_annotations(path)


@pytest.mark.parametrize("moment", [[2, 2], [-5, -2], [8, 2], [30, 31]])
def test_what_is_no_stretch_of_the_video_is_refused_kept_or_dropped(
    tmp_path: Path, moment: list[float]
) -> None:
    path = write(
        tmp_path / "a.jsonl",
        row(qid=1, relevant_windows=[moment, [2, 8]]),
        row(qid=2, relevant_windows=[moment]),
    )
    for refusing in ("error", "clip"):
        with pytest.raises(DataError) as caught:
            read_annotations(path, past_end=refusing)  # type: ignore[arg-type]  # a string of the loop
        assert [(p.row, p.field) for p in caught.value.problems] == [
            (1, "relevant_windows[0]"),
            (2, "relevant_windows[0]"),
        ]
    assert [r.moments.tolist() for r in read_annotations(path, past_end="keep")] == [
        [moment, [2, 8]],
        [moment],
    ]
    with pytest.warns(DataWarning, match="2 moments .* left out, and with them 1 rows"):
        (left,) = read_annotations(path, past_end="drop")
    assert (left.qid, left.moments.tolist()) == (1, [[2, 8]])


def test_blank_last_lines_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row()) + "\r\n\n \n\t\n")
    assert len(read_annotations(path)) == 1


# --- Charades-STA's original text


@pytest.mark.parametrize(
    ("split", "jsonl", "first_qid", "clipped"),
    [("train", "charades_sta_train.jsonl.gz", 0, 1802), ("test", "charades_sta_test.jsonl", 12404, 562)],
)
def test_original_text_gives_the_same_rows_as_the_published_jsonl(
    data: Path, split: str, jsonl: str, first_qid: int, clipped: int
) -> None:
    folder = data / "charades_sta"
    durations = read_durations(folder / f"Charades_v1_{split}.csv.gz")
    with pytest.warns(DataWarning) as warned:
        rows = read_charades_text(
            folder / f"original/charades_sta_{split}.txt",
            durations,
            first_qid=first_qid,
            past_end="clip",
            reversed_moments="drop",
        )
    counted = [f"{clipped} moments"] + (["4 lines with end <= start"] if split == "train" else [])
    assert [text in str(w.message) for text, w in zip(counted, warned, strict=True)] == [True] * len(counted)

    def fields(a: Annotation) -> tuple[object, ...]:
        return a.qid, a.vid, a.query, a.duration, a.moments.tolist()

    assert [fields(a) for a in rows] == [fields(a) for a in read_annotations(folder / jsonl)]


def test_reversed_lines_are_an_error_by_default(data: Path) -> None:
    folder = data / "charades_sta"
    durations = read_durations(folder / "Charades_v1_train.csv.gz")
    with pytest.raises(DataError) as caught:
        read_charades_text(folder / "original/charades_sta_train.txt", durations, past_end="keep")
    assert len(caught.value.problems) == 4


def test_text_may_be_gzipped_and_hold_hashes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"AAAAA 0.5 6.9##person says ## twice.\r\nBBBBB 1 2##x\n"))
    rows = read_charades_text(path, {"AAAAA": 30.5, "BBBBB": 10.0}, first_qid=7)
    assert [(a.qid, a.vid, a.query) for a in rows] == [
        (7, "AAAAA", "person says ## twice."),
        (8, "BBBBB", "x"),
    ]
    assert rows[0].moments.tolist() == [[0.5, 6.9]]


def test_durations_of_json_and_csv(data: Path, tmp_path: Path) -> None:
    folder = data / "charades_sta"
    assert len(read_durations(folder / "video_durations.json")) == 9848
    table = read_durations(folder / "Charades_v1_test.csv.gz")
    assert len(table) == 1863
    assert {
        a.vid: a.duration for a in read_annotations(folder / "charades_sta_test.jsonl")
    }.items() <= table.items()
    (tmp_path / "d.csv").write_text('x,length,id\n"a ""b""",12.5,V1\n,3,V2\n')
    assert read_durations(tmp_path / "d.csv") == {"V1": 12.5, "V2": 3.0}


# --- rows made in memory


def test_dicts_and_objects_mix_and_follow_the_same_rules() -> None:
    one = Annotation(1, "v", "q", 10.0, np.array([[0.0, 5.0]]))
    rows = annotations_from(
        [one, row(qid="2", duration=np.float32(30), relevant_windows=np.array([[1, 2]]))], "gt"
    )
    assert rows[0] is one
    assert rows[1].moments.tolist() == [[1, 2]]
    assert rows[1].duration == 30
    with pytest.raises(DataError, match="gt, row 2, qid: is '1', as in row 1"):
        annotations_from([one, row(qid="1")], "gt")


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("qid", {"qid": True}),
        ("qid", {"qid": 1.5}),
        ("vid", {"vid": ""}),
        ("query", {"query": "  "}),
        ("duration", {"duration": float("nan")}),
        ("duration", {"duration": "30"}),
        ("relevant_windows", {"moments": np.zeros((0, 2))}),
        ("relevant_windows", {"moments": np.zeros(2)}),
        ("relevant_windows", {"moments": np.array([["0", "1"]])}),
        ("relevant_windows[1]", {"moments": np.array([[0.0, 1.0], [2.0, np.nan]])}),
        ("saliency_scores", {"clip_ids": np.array([1])}),
        ("relevant_clip_ids", {"saliency": np.array([[1, 2, 3]])}),
        ("saliency_scores", {"clip_ids": np.array([1, 2]), "saliency": np.array([[1, 2, 3]])}),
        ("relevant_clip_ids", {"clip_ids": np.array([15]), "saliency": np.array([[1, 2, 3]])}),
        ("saliency_scores", {"clip_ids": [1], "saliency": [[1.5, 2, 3]]}),
        ("saliency_scores[1]", {"clip_ids": np.array([1, 2]), "saliency": np.array([[1, 2, 3], [1, 5, 0]])}),
    ],
)
def test_an_annotation_made_by_hand_is_checked(field: str, changes: dict[str, Any]) -> None:
    good = {"qid": 1, "vid": "v", "query": "q", "duration": 30.0, "moments": np.array([[0.0, 1.0]])}
    Annotation(**good)
    with pytest.raises(DataError) as caught:
        Annotation(**(good | changes))
    assert [p.field for p in caught.value.problems] == [field]


times = st.integers(0, 600).map(lambda i: i / 20)


@given(st.lists(st.tuples(times, times).filter(lambda w: w[0] < w[1]), min_size=1, max_size=5))
def test_what_is_written_is_read(windows: list[tuple[float, float]]) -> None:
    given_row = row(duration=30.0, relevant_windows=[list(w) for w in windows])
    (annotation,) = annotations_from([json.loads(json.dumps(given_row))], "rows")
    assert annotation.moments.tolist() == given_row["relevant_windows"]
