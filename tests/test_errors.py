"""Problems and the error that carries them."""

import pickle

import numpy as np
import pytest

from vmr_env.errors import DataError, Problem, check_choice, shorten


def test_a_problem_reads_as_where_row_field_message() -> None:
    assert str(Problem("a.jsonl", 7, "qid", "is 1; expected 2")) == "a.jsonl, row 7, qid: is 1; expected 2"
    assert str(Problem("a.jsonl", None, None, "is empty")) == "a.jsonl: is empty"


def test_the_message_shows_twenty_problems_and_counts_the_rest() -> None:
    problems = [Problem("a.jsonl", i, None, "bad") for i in range(1, 26)]
    error = DataError(problems)
    lines = str(error).splitlines()
    assert lines[19] == "a.jsonl, row 20: bad"
    assert lines[20:] == ["… and 5 more problems"]
    assert error.problems == tuple(problems)


def test_an_error_without_a_problem_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        DataError([])


def test_an_error_survives_pickling_with_its_problems() -> None:
    error = DataError(Problem("a.jsonl", 3, "vid", "bad"))
    copy = pickle.loads(pickle.dumps(error))
    assert copy.problems == error.problems
    assert str(copy) == str(error)


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, [[1.5] * 1000] * 1000, {"k" * 10**5: "v" * 10**5}, 10**400, dict.fromkeys(range(10**4))],
)
def test_shortened_values_stay_short(value: object) -> None:
    assert len(shorten(value)) < 400


def test_a_choice_outside_the_list_is_refused_with_the_list() -> None:
    check_choice("mode", "b", ("a", "b"))
    with pytest.raises(DataError, match="""mode: is 'c'; expected "a" or "b\""""):
        check_choice("mode", "c", ("a", "b"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.array([[2.0, 5.0]]), "[[2.0, 5.0]]"),
        (np.float32(0.5), "0.5"),
        (np.int64(7), "7"),
        (np.zeros((100, 100)), "an array of shape (100, 100)"),
        ([np.float64(1.5), None, True], "[1.5, None, True]"),
        ({"a": np.arange(2)}, "{'a': [0, 1]}"),
        (object(), "an object of type object"),
        (Problem("a", None, None, "b"), "an object of type Problem"),
        (b"x", "b'x'"),
    ],
)
def test_messages_show_values_and_no_reprs_of_arrays_and_objects(value: object, shown: str) -> None:
    assert shorten(value) == shown
