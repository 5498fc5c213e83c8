"""Every broken annotation file gives one clear error."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from bad_input import Case, assert_refused, files_no_reader_takes

from vmr_env.data.annotations import read_annotations, read_charades_text
from vmr_env.data.durations import read_durations
from vmr_env.errors import DataError

GOOD: dict[str, Any] = {
    "qid": 1,
    "query": "A man sits.",
    "vid": "v_1",
    "duration": 30,
    "relevant_windows": [[2, 8], [10, 20]],
    "relevant_clip_ids": [1, 2],
    "saliency_scores": [[1, 2, 3], [4, 0, 2]],
}
GOOD_LINE = json.dumps(GOOD) + "\n"


def with_(**changes: Any) -> str:
    return GOOD_LINE + json.dumps(GOOD | {"qid": 2} | changes) + "\n"


def without(field: str) -> str:
    return GOOD_LINE + json.dumps({k: v for k, v in (GOOD | {"qid": 2}).items() if k != field}) + "\n"


def raw(old: str, new: str) -> str:
    """A second line with one piece of its text replaced."""
    second = json.dumps(GOOD | {"qid": 2})
    assert old in second
    return GOOD_LINE + second.replace(old, new) + "\n"


W = "relevant_windows"
S = "saliency_scores"
ANNOTATION_CASES = [
    Case("array for a row", GOOD_LINE + "[1, 2]\n", "expected a JSON object", 2),
    Case("whole file one array", "[" + GOOD_LINE.strip() + "]\n", "is a JSON document, expected JSON lines"),
    Case(
        "array over many lines", json.dumps([GOOD] * 9, indent=1), "is a JSON document, expected JSON lines"
    ),
    Case(
        "object over many lines", json.dumps({"v": GOOD}, indent=1), "is a JSON document, expected JSON lines"
    ),
    Case("object begun on a line", '{"v":\n' + GOOD_LINE + "}", "is a JSON document, expected JSON lines"),
    Case("broken document", "[\n" + GOOD_LINE * 3, "is a JSON document, expected JSON lines"),
    Case("text for a row", GOOD_LINE + '"row"\n', "expected a JSON object", 2),
    Case("broken JSON", GOOD_LINE + '{"qid": 2,\n', "is no JSON object", 2),
    Case("blank line between", GOOD_LINE + "\n" + with_().split("\n")[1] + "\n", "is blank", 2),
    Case("two objects in a line", GOOD_LINE + '{"qid": 2} {"qid": 3}\n', "is no JSON object", 2),
    Case("old Mac line ends", GOOD_LINE.strip() + "\r" + GOOD_LINE, "is no JSON object", 1),
    Case("nested too deep", GOOD_LINE + "[" * 100_000 + "\n", "is no JSON object", 2),
    Case(
        "number of 5,000 digits", raw('"duration": 30', f'"duration": {"9" * 5000}'), "is no JSON object", 2
    ),
    Case("million characters of noise", GOOD_LINE + "x" * 1_000_000 + "\n", "is no JSON object", 2),
    Case(
        "million characters in a field", with_(qid=["x" * 1_000_000]), "expected an int or a string", 2, "qid"
    ),
    Case("key twice", raw('"qid": 2', '"qid": 2, "qid": 3'), "key 'qid' appears twice", 2),
    Case("qid missing", without("qid"), "is missing", 2, "qid"),
    Case("qid null", with_(qid=None), "is null", 2, "qid"),
    Case("qid float", with_(qid=2.0), "expected an int or a string", 2, "qid"),
    Case("qid bool", with_(qid=True), "expected an int or a string", 2, "qid"),
    Case("qid empty", with_(qid=""), "expected an int or a non-empty string", 2, "qid"),
    Case("qid twice", with_(qid=1), "as in row 1", 2, "qid"),
    Case("qid twice, as text", with_(qid="1"), "as in row 1", 2, "qid"),
    Case("vid missing", without("vid"), "is missing", 2, "vid"),
    Case("vid number", with_(vid=5), "expected a string", 2, "vid"),
    Case("vid blank", with_(vid=" "), "expected a non-empty string", 2, "vid"),
    Case("vid half a character", with_(vid="v\ud800"), "half of a character", 2, "vid"),
    Case("query missing", without("query"), "is missing", 2, "query"),
    Case("query list", with_(query=["a"]), "expected a string", 2, "query"),
    Case("query empty", with_(query=""), "expected a non-empty string", 2, "query"),
    Case("duration missing", without("duration"), "is missing", 2, "duration"),
    Case("duration text", with_(duration="30"), "expected a number", 2, "duration"),
    Case("duration bool", with_(duration=True), "expected a number", 2, "duration"),
    Case("duration NaN", with_(duration=float("nan")), "expected seconds from 0.01 to 864000", 2, "duration"),
    Case(
        "duration infinite",
        with_(duration=float("inf")),
        "expected seconds from 0.01 to 864000",
        2,
        "duration",
    ),
    Case(
        "duration overflows to infinity",
        raw('"duration": 30', '"duration": 1e999'),
        "expected seconds from 0.01 to 864000",
        2,
        "duration",
    ),
    Case("duration an int beyond floats", with_(duration=10**400), "fits a float", 2, "duration"),
    Case("duration negative", with_(duration=-30), "expected seconds from 0.01 to 864000", 2, "duration"),
    Case("duration of ages", with_(duration=1e300), "expected seconds from 0.01 to 864000", 2, "duration"),
    Case("duration of no time", with_(duration=1e-30), "expected seconds from 0.01 to 864000", 2, "duration"),
    Case("duration zero", with_(duration=0), "expected seconds from 0.01 to 864000", 2, "duration"),
    Case("windows missing", without(W), "is missing", 2, W),
    Case("windows null", with_(relevant_windows=None), "is null", 2, W),
    Case("windows text", with_(relevant_windows="[[2, 8]]"), "expected a list", 2, W),
    Case("windows object", with_(relevant_windows={"start": 2}), "expected a list", 2, W),
    Case("windows empty", with_(relevant_windows=[]), "one or more", 2, W),
    Case("window not a list", with_(relevant_windows=[2, [3, 8]]), "[start, end]", 2, f"{W}[0]"),
    Case("window of one", with_(relevant_windows=[[2, 8], [2]]), "[start, end]", 2, f"{W}[1]"),
    Case("window of three", with_(relevant_windows=[[2, 8, 0.5], [3, 4]]), "[start, end]", 2, f"{W}[0]"),
    Case("window of text", with_(relevant_windows=[["2", "8"]]), "each a number", 2, f"{W}[0]"),
    Case("window with null", with_(relevant_windows=[[2, None]]), "each a number", 2, f"{W}[0]"),
    Case("window with bool", with_(relevant_windows=[[False, 8]]), "each a number", 2, f"{W}[0]"),
    Case("window with NaN", with_(relevant_windows=[[2, float("nan")]]), "0 <= start < end", 2, f"{W}[0]"),
    Case("window infinite", with_(relevant_windows=[[2, float("inf")]]), "0 <= start < end", 2, f"{W}[0]"),
    Case("window beyond floats", with_(relevant_windows=[[2, 10**400]]), "fit 64 bits", 2, W),
    Case("window negative", with_(relevant_windows=[[2, 8], [-1, 8]]), "0 <= start < end", 2, f"{W}[1]"),
    Case("window reversed", with_(relevant_windows=[[8, 2]]), "0 <= start < end", 2, f"{W}[0]"),
    Case("window empty", with_(relevant_windows=[[8, 8]]), "0 <= start < end", 2, f"{W}[0]"),
    Case(
        "window of no time",
        with_(relevant_windows=[[8, 8 + 1e-12]]),
        "shorter than a ten-millionth of the video",
        2,
        f"{W}[0]",
    ),
    Case("window past the end", with_(relevant_windows=[[8, 30.1]]), "ends after the video", 2, f"{W}[0]"),
    Case("window after the end", with_(relevant_windows=[[30, 40]]), "starts after the video", 2, f"{W}[0]"),
    Case("clips missing", without("relevant_clip_ids"), "is missing", 2, "relevant_clip_ids"),
    Case("ratings missing", without(S), "is missing", 2, S),
    Case(
        "clip beyond the video", with_(relevant_clip_ids=[1, 15]), "two-second clips", 2, "relevant_clip_ids"
    ),
    Case("clip negative", with_(relevant_clip_ids=[-1, 2]), "two-second clips", 2, "relevant_clip_ids"),
    Case("clip twice", with_(relevant_clip_ids=[2, 2]), "each clip once", 2, "relevant_clip_ids"),
    Case("clip float", with_(relevant_clip_ids=[1, 2.0]), "whole number", 2, "relevant_clip_ids[1]"),
    Case("clip beyond 64 bits", with_(relevant_clip_ids=[1, 2**70]), "fit 64 bits", 2, "relevant_clip_ids"),
    Case("clips text", with_(relevant_clip_ids="1 2"), "expected a list", 2, "relevant_clip_ids"),
    Case("fewer ratings than clips", with_(saliency_scores=[[1, 2, 3]]), "three ratings per clip", 2, S),
    Case("two raters", with_(saliency_scores=[[1, 2, 3], [1, 2]]), "[a, b, c]", 2, f"{S}[1]"),
    Case("rating of 5", with_(saliency_scores=[[1, 2, 3], [1, 2, 5]]), "from 0 to 4", 2, f"{S}[1]"),
    Case("rating negative", with_(saliency_scores=[[-1, 2, 3], [1, 2, 2]]), "from 0 to 4", 2, f"{S}[0]"),
    Case("rating float", with_(saliency_scores=[[1, 2, 3], [1, 2.5, 2]]), "whole number", 2, f"{S}[1]"),
    Case(
        "windows in no row",
        "".join(json.dumps({"qid": i, "vid": "v", "query": "q", "duration": 9}) + "\n" for i in range(3)),
        "is in none of the 3 rows",
        None,
        W,
    ),
]


@pytest.mark.parametrize("case", ANNOTATION_CASES, ids=lambda case: case.name)
def test_broken_rows(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "broken.jsonl"
    assert isinstance(case.content, str)
    path.write_text(case.content)
    assert_refused(lambda: read_annotations(path), "broken.jsonl", case, tmp_path)


def test_the_rows_that_the_cases_break_are_good(tmp_path: Path) -> None:
    path = tmp_path / "good.jsonl"
    path.write_text(with_())
    assert len(read_annotations(path)) == 2


def test_unreadable_files(tmp_path: Path) -> None:
    for path, case in files_no_reader_takes(tmp_path / "files", ".jsonl", GOOD_LINE):
        assert_refused(lambda path=path: read_annotations(path), Path(path).name, case, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "closed.jsonl"
    path.write_text(GOOD_LINE)
    path.chmod(0)
    assert_refused(
        lambda: read_annotations(path), "closed.jsonl", Case("", "", "Permission denied"), tmp_path
    )


@pytest.mark.parametrize("path", [None, 5, b"a.jsonl", "", ["a.jsonl"]])
def test_arguments_that_are_no_path(path: Any) -> None:
    for read in (read_annotations, read_durations, lambda p: read_charades_text(p, {})):
        with pytest.raises(DataError, match=r"path: is .*; expected the path of a file"):
            read(path)


def test_unknown_rules(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD_LINE)
    with pytest.raises(DataError, match="""past_end: is 'cut'; expected "error" or "clip" or "keep" or"""):
        read_annotations(path, past_end="cut")  # type: ignore[arg-type]  # what the test is about
    with pytest.raises(DataError, match="reversed_moments: is 'skip'"):
        read_charades_text(path, {}, reversed_moments="skip")  # type: ignore[arg-type]  # what the test is about


GOOD_TEXT = "AAAAA 0.5 6.9##person opens a door.\n"
TEXT = "expected VIDEO start end##sentence"
TEXT_CASES = [
    Case("no hashes", GOOD_TEXT + "AAAAA 1 2 person sits.\n", TEXT, 2),
    Case("one hash", GOOD_TEXT + "AAAAA 1 2#person sits.\n", TEXT, 2),
    Case("no sentence", GOOD_TEXT + "AAAAA 1 2##\n", "expected a non-empty string", 2, "query"),
    Case("blank sentence", GOOD_TEXT + "AAAAA 1 2##   \n", "expected a non-empty string", 2, "query"),
    Case("blank line", GOOD_TEXT + "\n" + GOOD_TEXT, TEXT, 2),
    Case("no video", GOOD_TEXT + "1 2##x\n", TEXT, 2),
    Case("one time", GOOD_TEXT + "AAAAA 1##x\n", TEXT, 2),
    Case("three times", GOOD_TEXT + "AAAAA 1 2 3##x\n", TEXT, 2),
    Case("commas", GOOD_TEXT + "AAAAA,1,2##x\n", TEXT, 2),
    Case("decimal comma", GOOD_TEXT + "AAAAA 1,5 2,5##x\n", TEXT, 2),
    Case("text for a time", GOOD_TEXT + "AAAAA one two##x\n", TEXT, 2),
    Case("NaN", GOOD_TEXT + "AAAAA nan 2##x\n", TEXT, 2),
    Case("infinite", GOOD_TEXT + "AAAAA 1 inf##x\n", TEXT, 2),
    Case("underscore in a number", GOOD_TEXT + "AAAAA 1_0 20##x\n", TEXT, 2),
    Case("other digits", GOOD_TEXT + "AAAAA ١ ٢##x\n", TEXT, 2),
    Case(
        "overflowing number", GOOD_TEXT + "AAAAA 1 1e999##x\n", "0 <= start < end", 2, "relevant_windows[0]"
    ),
    Case("negative", GOOD_TEXT + "AAAAA -1 2##x\n", "0 <= start < end", 2, "relevant_windows[0]"),
    Case("reversed", GOOD_TEXT + "AAAAA 5 2##x\n", "0 <= start < end", 2, "relevant_windows[0]"),
    Case("empty moment", GOOD_TEXT + "AAAAA 5 5##x\n", "0 <= start < end", 2, "relevant_windows[0]"),
    Case("past the end", GOOD_TEXT + "AAAAA 5 31##x\n", "ends after the video", 2, "relevant_windows[0]"),
    Case("after the end", GOOD_TEXT + "AAAAA 31 35##x\n", "starts after the video", 2, "relevant_windows[0]"),
    Case("unknown video", GOOD_TEXT + "BBBBB 1 2##x\n", "with a known duration", 2, "vid"),
    Case("duration NaN", GOOD_TEXT + "CCCCC 1 2##x\n", "expected seconds from 0.01 to 864000", 2, "duration"),
    Case("duration text", GOOD_TEXT + "DDDDD 1 2##x\n", "expected a number", 2, "duration"),
    Case("JSON lines", GOOD_TEXT + GOOD_LINE, TEXT, 2),
    Case("million characters", GOOD_TEXT + "x" * 1_000_000 + "\n", TEXT, 2),
]


@pytest.mark.parametrize("case", TEXT_CASES, ids=lambda case: case.name)
def test_broken_text_lines(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "broken.txt"
    assert isinstance(case.content, str)
    path.write_text(case.content)
    durations: Any = {"AAAAA": 30.5, "CCCCC": float("nan"), "DDDDD": "30"}
    assert_refused(lambda: read_charades_text(path, durations), "broken.txt", case, tmp_path)


def test_unreadable_text_files(tmp_path: Path) -> None:
    for path, case in files_no_reader_takes(tmp_path / "files", ".txt", GOOD_TEXT):
        assert_refused(
            lambda path=path: read_charades_text(path, {"AAAAA": 30.5}), Path(path).name, case, tmp_path
        )


JSON_CASES = [
    Case("list", '[["A", 5]]', "expected a JSON object"),
    Case("number", "5", "expected a JSON object"),
    Case("broken", '{"A": 5', "is no JSON object"),
    Case("no videos", "{}", "has no rows"),
    Case("key twice", '{"A": 5, "A": 6}', "key 'A' appears twice"),
    Case("text", '{"A": 5, "B": "6"}', "expected a number", 2, "length"),
    Case("null", '{"A": 5, "B": null}', "is null", 2, "length"),
    Case("bool", '{"A": true}', "expected a number", 1, "length"),
    Case("NaN", '{"A": NaN}', "expected seconds from 0.01 to 864000", 1, "length"),
    Case("ages", '{"A": 1e300}', "expected seconds from 0.01 to 864000", 1, "length"),
    Case("no time", '{"A": 1e-30}', "expected seconds from 0.01 to 864000", 1, "length"),
    Case("zero", '{"A": 0}', "expected seconds from 0.01 to 864000", 1, "length"),
    Case("negative", '{"A": -1.5}', "expected seconds from 0.01 to 864000", 1, "length"),
    Case("list of lengths", '{"A": [5, 6]}', "expected a number", 1, "length"),
]
CSV_CASES = [
    Case("only a header", "id,length\n", "has no rows"),
    Case("no length column", "id,seconds\nA,5\n", "expected id and length", 1),
    Case("no header", "A,5\n", "expected id and length", 1),
    Case("tabs", "id\tlength\nA\t5\n", "expected id and length", 1),
    Case("short row", "id,length\nA,5\nB\n", "is null", 3, "length"),
    Case("empty length", "id,length\nA,\n", "expected a number", 2, "length"),
    Case("text length", "id,length\nA,long\n", "expected a number", 2, "length"),
    Case("NaN", "id,length\nA,nan\n", "expected a number", 2, "length"),
    Case("infinite", "id,length\nA,1e999\n", "expected seconds from 0.01 to 864000", 2, "length"),
    Case("zero", "id,length\nA,0\n", "expected seconds from 0.01 to 864000", 2, "length"),
    Case("negative", "id,length\nA,-3\n", "expected seconds from 0.01 to 864000", 2, "length"),
    Case("video twice", "id,length\nA,3\nA,3\n", "each video once", 3, "id"),
    Case("quote left open", 'id,length\n"A,3\n', "is no CSV", 2),
    Case("huge field", "id,length\n" + "A" * 200_000 + ",3\n", "is no CSV", 2),
]


@pytest.mark.parametrize(
    ("suffix", "case"),
    [(".json", case) for case in JSON_CASES] + [(".csv", case) for case in CSV_CASES],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_broken_durations(tmp_path: Path, suffix: str, case: Case) -> None:
    path = tmp_path / f"broken{suffix}"
    assert isinstance(case.content, str)
    path.write_text(case.content)
    assert_refused(lambda: read_durations(path), path.name, case, tmp_path)


@pytest.mark.parametrize(("suffix", "good"), [(".json", '{"A": 5}\n'), (".csv", "id,length\nA,5\n")])
def test_unreadable_durations(tmp_path: Path, suffix: str, good: str) -> None:
    for path, case in files_no_reader_takes(tmp_path / "files", suffix, good):
        assert_refused(lambda path=path: read_durations(path), Path(path).name, case, tmp_path)


def test_durations_of_another_kind_of_file(tmp_path: Path) -> None:
    case = Case("", "", "expected .json or .csv")
    assert_refused(lambda: read_durations(tmp_path / "d.yaml"), "d.yaml", case, tmp_path)


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    lines = [json.dumps(GOOD | {"qid": i, "duration": -i}) for i in range(1, 31)]
    path.write_text("\n".join([*lines, "nonsense"]) + "\n")
    with pytest.raises(DataError) as caught:
        read_annotations(path)
    # Rows 1 to 30: a negative duration; row 31: no JSON.
    assert [p.row for p in caught.value.problems] == list(range(1, 32))
    assert "… and 11 more problems" in str(caught.value)
