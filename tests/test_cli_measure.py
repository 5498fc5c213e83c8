"""`vmr-env measure`: what it prints, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vmr_env.benchmarks.cli.measure import measure


def run(*arguments: object) -> Result:
    return CliRunner().invoke(measure, [str(argument) for argument in arguments])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(qid: int, **fields: Any) -> dict[str, Any]:
    return {"qid": qid, "vid": f"v{qid}", "query": "a person runs", **fields}


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return write(
        tmp_path / "truth.jsonl",
        [row(i, duration=100, relevant_windows=[[10 * i, 10 * i + 5 + 5 * i]]) for i in range(4)],
    )


def answers(path: Path, shift: float) -> Path:
    """Windows of the truth, moved, behind one that is elsewhere."""
    windows = [[[90.0, 95.0, 0.9], [10 * i + shift, 10 * i + 5 + 5 * i + shift, 0.5]] for i in range(4)]
    return write(path, [row(i, pred_relevant_windows=windows[i]) for i in range(4)])


def test_recalls_are_shown_with_intervals_and_what_they_mean(truth: Path, tmp_path: Path) -> None:
    shown = run("moments", answers(tmp_path / "a.jsonl", 0.0), truth, "--measures", "R1@0.5,R5@0.95")
    assert shown.exit_code == 0, shown.output
    header, line, said = shown.output.splitlines()
    assert header.split() == ["queries", "videos", "R1@0.5", "R5@0.95"]
    assert line.split() == ["all", "4", "4", "0.00", "[0.00,", "0.00]", "100.00", "[100.00,", "100.00]"]
    assert said.startswith("hit: tIoU >= threshold; all windows; mean over queries")


def test_groups_have_rows_and_options_are_said(truth: Path, tmp_path: Path) -> None:
    options = ("--by", "length", "--above", "--nms", "0.5", "--mean-over", "videos")
    shown = run("moments", answers(tmp_path / "a.jsonl", 0.0), truth, *options)
    assert shown.exit_code == 0, shown.output
    assert [line.split()[:2] for line in shown.output.splitlines()[1:4]] == [
        ["short", "2"],
        ["middle", "2"],
        ["all", "4"],
    ]
    said = "hit: tIoU > threshold; windows after non-maximum suppression at 0.5; mean over videos"
    assert shown.output.splitlines()[-1].startswith(said)


def test_two_files_are_compared_with_an_interval_and_a_p_value(truth: Path, tmp_path: Path) -> None:
    exact, moved = answers(tmp_path / "exact.jsonl", 0.0), answers(tmp_path / "moved.jsonl", 30.0)
    shown = run("difference", exact, moved, truth, "--measures", "R5@0.5")
    assert shown.exit_code == 0, shown.output
    header, line, _ = shown.output.splitlines()
    assert header.split() == ["exact.jsonl", "moved.jsonl", "difference", "p"]
    # All four videos differ by 100: of 16 exchanges, two are as far from 0.
    assert line.split()[-4:] == ["100.00", "[100.00,", "100.00]", "0.1250"]


def test_clips_that_were_cut_from_one_video_stand_and_fall_together(tmp_path: Path) -> None:
    """As their ids tell, without being asked: four clips of two videos."""
    vids = [f"AAAAAAAAAA{video}_{start}.0_{start + 150}.0" for video in "ab" for start in (0, 150)]
    for name, shift in (("truth", 0.0), ("exact", 0.0), ("moved", 30.0)):
        field, window = "pred_relevant_windows", [[10.0 + shift, 30.0 + shift, 0.9]]
        if name == "truth":
            field, window = "relevant_windows", [[10.0, 30.0]]
        rows = [row(i, **{field: window}) | {"vid": vid, "duration": 150} for i, vid in enumerate(vids)]
        write(tmp_path / f"{name}.jsonl", rows)
    exact, moved, truth = (tmp_path / f"{name}.jsonl" for name in ("exact", "moved", "truth"))
    for options, videos, p in (((), "2", "0.5000"), (("--dataset", "charades"), "4", "0.1250")):
        shown = run("moments", exact, truth, *options)
        assert shown.output.splitlines()[1].split()[:3] == ["all", "4", videos]
        shown = run("difference", exact, moved, truth, "--measures", "R1@0.5", *options)
        assert shown.output.splitlines()[1].split()[-1] == p


def test_answers_to_other_queries_are_not_compared(truth: Path, tmp_path: Path) -> None:
    exact = answers(tmp_path / "exact.jsonl", 0.0)
    other = write(tmp_path / "o.jsonl", [row(9, pred_relevant_windows=[[0, 5, 1.0]])])
    shown = run("difference", exact, other, truth)
    assert shown.exit_code == 1
    assert "lacks 4 queries" in shown.output


def test_generalised_retrieval_and_highlights_have_tables(tmp_path: Path) -> None:
    rated = {"relevant_clip_ids": [0], "saliency_scores": [[4, 4, 4]], "duration": 4.0}
    truth = write(
        tmp_path / "g.jsonl",
        [row(1, relevant_windows=[], **rated), row(2, relevant_windows=[[0, 2]], **rated)],
    )
    curves = {"pred_saliency_scores": [0.9, 0.1]}
    predictions = write(
        tmp_path / "p.jsonl",
        [
            row(1, pred_relevant_windows=[], pred_exist_score=0.3, **curves),
            row(2, pred_relevant_windows=[[0, 2, 0.2]], pred_exist_score=0.6, **curves),
        ],
    )
    shown = run("generalised", predictions, truth, "--rejection", "0.5", "--ranks", "1")
    *lines, last = shown.output.splitlines()
    figures = dict(line.split(maxsplit=1) for line in lines)
    # A draw without both kinds of queries has no AUROC, and takes no part.
    for name in ("AUROC", "Rej-F1@0.5", "mR@1", "G-mIoU@1"):
        assert figures[name] == "100.00 [100.00, 100.00]"
    assert last == "[95 % interval over source videos]"
    shown = run("highlights", predictions, truth)
    figures = dict(line.split(maxsplit=1) for line in shown.output.splitlines())
    assert figures["HL-min-VeryGood-Hit1"] == "100.00 [100.00, 100.00]"


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--measures", "R1"), 1, "measures: is ['R1']; expected some of"),
        (("--nms", "2"), 1, "suppression: is 2.0; expected a number from 0 to 1"),
        (("--by", "colour"), 2, "'colour' is not one of 'length', 'position', 'query-type', 'duration'"),
    ],
)
def test_wrong_options_are_one_error(
    options: tuple[str, ...], code: int, told: str, truth: Path, tmp_path: Path
) -> None:
    shown = run("moments", answers(tmp_path / "a.jsonl", 0.0), truth, *options)
    assert shown.exit_code == code
    assert told in shown.output
    assert "Traceback" not in shown.output


def test_ranks_are_numbers(truth: Path) -> None:
    shown = run("generalised", truth, truth, "--ranks", "1,two")
    assert shown.exit_code == 2
    assert "is '1,two'; expected numbers from 1" in shown.output
