"""Rewards of answers in words, as TRL's GRPOTrainer asks for them."""

from collections.abc import Callable
from typing import Any

import pytest
from slow_metrics import slow_iou

import vmr_env
from vmr_env.errors import DataError


def rewards_of_trainer(function: Callable[..., list[float]], inputs: list[dict[str, Any]]) -> list[float]:
    """What `GRPOTrainer` does with a reward function: columns by name, one value for each completion.

    Everything in the inputs but the prompt and the completion is passed on, and the trainer's state with it.
    """
    keys = [key for key in inputs[0] if key not in ("prompt", "completion", "completion_ids")]
    columns: dict[str, Any] = {key: [example[key] for example in inputs] for key in keys}
    return function(
        prompts=[example["prompt"] for example in inputs],
        completions=[example["completion"] for example in inputs],
        completion_ids=[[1, 2, 3] for _ in inputs],
        **columns,
        trainer_state=object(),
    )


def example(completion: Any, moments: Any, duration: float = 60.0, **more: Any) -> dict[str, Any]:
    return {
        "prompt": "When does she sit down?",
        "completion": completion,
        "relevant_windows": moments,
        "duration": duration,
        **more,
    }


def test_texts_are_worth_their_overlap_with_the_nearest_moment() -> None:
    moments = [[10.0, 20.0], [40.0, 50.0]]
    inputs = [
        example("From 12.5 to 22.5 seconds.", moments),
        example("<think>perhaps 0 to 5</think><answer>00:41 - 00:50</answer>", moments),
        example("25% to 50%", moments),
        example("It does not occur in the video.", moments),
        example("No idea.", moments),
        example("It does not occur in the video.", []),
        example("from 3 to 5", []),
        example("from 10 to 10", moments),
    ]
    expected = [
        slow_iou((12.5, 22.5), (10, 20)),
        slow_iou((41, 50), (40, 50)),
        slow_iou((15, 30), (10, 20)),
        0.0,
        0.0,
        1.0,
        0.0,
        0.0,
    ]
    found = rewards_of_trainer(vmr_env.rewards_for_text, inputs)
    assert all(type(reward) is float for reward in found)
    assert found == pytest.approx(expected)


def test_chat_messages_are_read_by_their_last_one() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "10 to 20"}]
    inputs = [
        example([{"role": "assistant", "content": "10 to 20"}], [[10, 20]]),
        example([{"role": "assistant", "content": parts}], [[10, 20]]),
        example(
            [{"role": "user", "content": "0 to 5?"}, {"role": "assistant", "content": "10 to 15"}], [[10, 20]]
        ),
    ]
    assert rewards_of_trainer(vmr_env.rewards_for_text, inputs) == [1.0, 1.0, 0.5]


def test_answers_on_a_scale_need_it_and_the_duration() -> None:
    inputs = [example("from 17 to 34", [[10.2, 20.4]], 60.0, scale=100)]
    assert rewards_of_trainer(vmr_env.rewards_for_text, inputs) == pytest.approx([1.0])


def test_the_package_is_enough_without_a_trainer() -> None:
    assert vmr_env.rewards_for_text(["5 to 10"], relevant_windows=[[[0, 10]]]) == [0.5]
    assert vmr_env.rewards_for_text([], relevant_windows=[]) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            {"completions": ["a"], "relevant_windows": [None]},
            "relevant_windows, row 1: is None; expected the moments",
        ),
        ({"completions": ["a", "b"], "relevant_windows": [[]]}, "has 1 values for 2 completions"),
        ({"completions": [3], "relevant_windows": [[]]}, "completions, row 1: is 3; expected a text"),
        (
            {"completions": [[{"role": "assistant"}]], "relevant_windows": [[]]},
            "completions, row 1: is .*role",
        ),
    ],
)
def test_what_cannot_be_rewarded_is_told(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        vmr_env.rewards_for_text(**arguments)
