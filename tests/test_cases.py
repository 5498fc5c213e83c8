"""Small inputs that public files made us meet: what is right for each, from the README beside them."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vmr_env.benchmarks.cli import main as cli

GT: dict[str, Any] = {"qid": 1, "vid": "v1", "query": "a", "duration": 35, "relevant_windows": [[2, 5]]}
PRED: dict[str, Any] = {"qid": 1, "vid": "v1", "query": "a", "pred_relevant_windows": [[0, 25, 0.9]]}
SECOND = {"qid": 2, "query": "b"}


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def answer(qid: int, *windows: list[float]) -> dict[str, Any]:
    return {"qid": qid, "vid": "v1", "query": "ab"[qid - 1], "pred_relevant_windows": list(windows)}


TWO = lines(GT, GT | SECOND)
NEUTRAL = {
    "gt_float_rounding.jsonl": lines(
        GT | {"duration": 113.25999999999999, "relevant_windows": [[103.06, 113.26]]}
    ),
    "gt_negative_start.jsonl": lines(GT | {"relevant_windows": [[-0.1, 25.1]]}),
    "gt_zero_length.jsonl": lines(GT | {"relevant_windows": [[2, 2]]}),
    "gt_reversed.jsonl": lines(GT | {"relevant_windows": [[5, 2]]}),
    "gt_array.json": json.dumps([GT, GT | SECOND], indent=1),
    "gt_crlf.jsonl": TWO.replace("\n", "\r\n"),
    "gt_trailing_blank.jsonl": TWO + "\n",
    "gt_two.jsonl": TWO,
    "gt_unlabelled.jsonl": lines({"qid": 1, "vid": "v1", "query": "a", "duration": 60}),
    "pred_one.jsonl": lines(PRED),
    "pred_two.jsonl": lines(answer(1, [2, 5, 1]), answer(2, [2, 5, 0.5])),
    "pred_no_answer.jsonl": lines(answer(1, [2, 5, 1]), answer(2)),
    "pred_no_scores.jsonl": lines(answer(1, [2, 5]), answer(2, [1, 4])),
    "pred_reversed.jsonl": lines(answer(1, [5, 2, 1]), answer(2, [1, 4, 1])),
    "pred_logits.jsonl": lines(answer(1, [2, 5, 7.3], [1, 4, -2]), answer(2, [1, 4, 3.2])),
}
"""Inputs of the same shapes, so that the table is tested where the published ones are absent too."""


@pytest.fixture(params=["neutral", "published"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The path of an input by its name: written here, or as published, where it is both."""
    published = request.getfixturevalue("shared") / "cases" if request.param == "published" else None

    def path(name: str) -> Path:
        if published is not None and (published / name).exists():
            return Path(published / name)
        (tmp_path / name).write_bytes(NEUTRAL[name].encode())
        return tmp_path / name

    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def figures(*arguments: object) -> dict[str, float]:
    told = run("evaluate", *arguments, "--json")
    assert told.exit_code == 0, told.output
    brief: dict[str, float] = json.loads(told.stdout)["brief"]
    return brief


@pytest.mark.parametrize(
    ("truth", "option", "miou", "told"),
    [
        ("gt_float_rounding.jsonl", (), 0.0, "1 moments that pass their video by at most 0.02 s were cut"),
        ("gt_negative_start.jsonl", ("--past-end", "keep"), 100 * 25 / 25.2, ""),
        ("gt_negative_start.jsonl", ("--keep-outside",), 100 * 25 / 25.2, ""),
        (
            "gt_negative_start.jsonl",
            ("--past-end", "clip"),
            100 * 25 / 25.1,
            "1 moments that leave their video",
        ),
        ("gt_zero_length.jsonl", ("--keep-outside",), 0.0, ""),
        ("gt_reversed.jsonl", ("--keep-outside",), 0.0, ""),
    ],
)
def test_one_moment_under_each_rule(
    case: Any, truth: str, option: tuple[str, ...], miou: float, told: str
) -> None:
    found = run("evaluate", case("pred_one.jsonl"), case(truth), *option, "--json")
    brief = json.loads(found.stdout)["brief"]
    assert brief["MR-full-mIoU"] == round(miou, 2)
    assert brief["MR-full-R1@0.3"] == (100.0 if miou > 30 else 0.0)
    assert told in found.stderr
    assert bool(told) == bool(found.stderr)


@pytest.mark.parametrize("truth", ["gt_negative_start.jsonl", "gt_zero_length.jsonl", "gt_reversed.jsonl"])
def test_by_default_a_moment_that_is_no_stretch_is_one_error_that_names_the_option(
    case: Any, truth: str
) -> None:
    told = run("evaluate", case("pred_one.jsonl"), case(truth))
    assert (told.exit_code, len(told.output.splitlines())) == (1, 1)
    assert "row 1, relevant_windows[0]" in told.output
    assert "--past-end" in told.output


def test_what_is_dropped_is_counted(case: Any, tmp_path: Path) -> None:
    truth = tmp_path / "mixed.jsonl"
    truth.write_text(lines(GT | {"relevant_windows": [[2, 2]]}, GT | SECOND))
    found = run("evaluate", case("pred_two.jsonl"), truth, "--past-end", "drop", "--json")
    assert json.loads(found.stdout)["brief"]["MR-full-mIoU"] == 100.0
    assert "1 moments that do not lie within their video were left out, and with them 1 rows" in found.stderr


@pytest.mark.parametrize("command", ["evaluate", "validate"])
def test_a_document_is_one_sentence(case: Any, command: str) -> None:
    document = case("gt_array.json")
    arguments = (case("pred_two.jsonl"), document) if command == "evaluate" else ("annotations", document)
    told = run(command, *arguments)
    assert told.exit_code == 1
    assert told.output.count("is a JSON document, expected JSON lines") == 1
    assert "row" not in told.output


@pytest.mark.parametrize("truth", ["gt_crlf.jsonl", "gt_trailing_blank.jsonl", "gt_two.jsonl"])
def test_line_ends_and_blank_last_lines_change_nothing(case: Any, truth: str) -> None:
    assert figures(case("pred_two.jsonl"), case(truth))["MR-full-mAP"] == 100.0


def test_annotations_without_ground_truth_are_refused_in_one_sentence(case: Any) -> None:
    told = run("evaluate", case("pred_one.jsonl"), case("gt_unlabelled.jsonl"))
    assert (told.exit_code, len(told.output.splitlines())) == (1, 1)
    assert "relevant_windows" in told.output


def test_a_query_without_an_answer(case: Any) -> None:
    answers, truth = case("pred_no_answer.jsonl"), case("gt_two.jsonl")
    refused = run("evaluate", answers, truth)
    assert (refused.exit_code, len(refused.output.splitlines())) == (1, 1)
    assert "no answer for qid 2" in refused.output
    assert "--missing miss" in refused.output
    assert figures(answers, truth, "--missing", "miss")["MR-full-R1@0.5"] == 50.0
    shared_only = run("evaluate", answers, truth, "--shared-only", "--json")
    assert json.loads(shared_only.stdout)["brief"]["MR-full-R1@0.5"] == 100.0
    assert "answers 1 of 2 queries" in shared_only.stderr


def test_an_only_window_needs_no_score(case: Any) -> None:
    found = run("evaluate", case("pred_no_scores.jsonl"), case("gt_two.jsonl"), "--json")
    assert json.loads(found.stdout)["brief"]["MR-full-mIoU"] == 75.0  # 1 and [1, 4] with [2, 5]: 2 / 4
    assert "has no score in 2 rows of one window" in found.stderr


def test_a_reversed_window_is_one_error(case: Any) -> None:
    told = run("evaluate", case("pred_reversed.jsonl"), case("gt_two.jsonl"))
    assert told.exit_code == 1
    assert "row 1, pred_relevant_windows[0]: is [5.0, 2.0, 1.0], reversed" in told.output


def test_validate_and_cache_say_the_same_of_logits(case: Any, tmp_path: Path) -> None:
    answers, truth = case("pred_logits.jsonl"), case("gt_two.jsonl")
    common = (answers, "--annotations", truth, "--dataset", "charades")
    validated = run("validate", "predictions", *common)
    made = run("cache", "predictions", *common, "--split", "test", "--out", tmp_path / "cache")
    assert (validated.exit_code, made.exit_code) == (1, 1)
    (said,) = (line.removeprefix("error: ") for line in validated.output.splitlines() if "error: " in line)
    assert said == made.output.strip().removeprefix("error: ")
    for scores in ("sigmoid", "minmax"):
        folder = tmp_path / scores
        made = run("cache", "predictions", *common, "--split", "test", "--scores", scores, "--out", folder)
        assert made.exit_code == 0, made.output


def test_what_needs_no_ground_truth_says_so(case: Any, tmp_path: Path) -> None:
    options = ["--annotations", case("gt_unlabelled.jsonl"), "--dataset", "charades", "--split", "test"]
    options += ["--out", str(tmp_path / "cache")]
    refused = run("cache", "predictions", case("pred_one.jsonl"), *options)
    assert (refused.exit_code, len(refused.output.splitlines())) == (1, 1)
    assert "--unlabelled" in refused.output
    assert run("cache", "predictions", case("pred_one.jsonl"), *options, "--unlabelled").exit_code == 0
    assert run("validate", "cache", str(tmp_path / "cache")).exit_code == 0


def test_refining_refuses_what_caches_refuse_and_writes_what_they_take(case: Any, tmp_path: Path) -> None:
    out = str(tmp_path / "refined.jsonl")
    refused = run("refine", case("pred_logits.jsonl"), case("gt_two.jsonl"), "--agent", "vote", "--out", out)
    assert (refused.exit_code, len(refused.output.splitlines())) == (1, 1)
    assert "expected a score within [0, 1]" in refused.output
    one = run("refine", case("pred_one.jsonl"), case("gt_unlabelled.jsonl"), "--agent", "vote", "--out", out)
    assert one.exit_code == 0
    assert run("validate", "predictions", out).output == "0 errors, 0 warnings\n"


def test_answers_without_sentences_are_one_error_that_names_the_option(tmp_path: Path) -> None:
    rows = [{"video_id": "v", "query_id": i, "answer": f"From {i} to {i + 2}."} for i in range(3)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = run("convert", str(tmp_path / "answers.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    assert (told.exit_code, len(told.output.splitlines())) == (1, 1)
    expected = "query: is missing in 3 rows, here first; expected annotations that tell it (--annotations)"
    assert expected in told.output
