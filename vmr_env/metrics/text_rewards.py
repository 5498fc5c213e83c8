"""The environments' reward of a language model's answer in words.

    trainer = trl.GRPOTrainer(model, reward_funcs=vmr_env.rewards_for_text, train_dataset=dataset)

where the data set has the columns `relevant_windows` and `duration` beside its prompts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from vmr_env.data.converters.answers import Answer, read_answer
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.metrics import spans

Completion: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a chat (`role`, `content`), of which the last one is the answer."""


def rewards_for_text(
    completions: Sequence[Completion],
    *,
    relevant_windows: Sequence[Sequence[Sequence[float]]],
    duration: Sequence[float] | None = None,
    scale: Sequence[float | None] | None = None,
    **columns: Any,
) -> list[float]:
    """Reward of each completion: tIoU of the first span that it names with the nearest moment, from 0 to 1.

    An answer that names no span is worth 0, and so is one without length. Where a query has no moment, saying
    that the event does not occur is worth 1, and anything else 0. The signature is that of a reward function
    of TRL's `GRPOTrainer`.

    Args:
        completions: (n,), what the model wrote.
        relevant_windows: (n,), the moments of each query, [[start s, end s], …]; [] where there is none.
        duration: (n,), seconds; needed by answers in per cent or on a scale.
        scale: (n,), the number for the end of the video in answers that are no seconds, such as 100; None for
            seconds.
        columns: further columns that the trainer passes on; not used.

    Raises:
        DataError: a query has no ground truth, columns differ in length, or a completion is no text.
    """
    n = len(completions)
    durations = [None] * n if duration is None else list(duration)
    scales = [None] * n if scale is None else list(scale)
    for name, column in (("relevant_windows", relevant_windows), ("duration", durations), ("scale", scales)):
        if len(column) != n:
            message = f"has {len(column)} values for {n} completions; expected one for each"
            raise DataError(Problem(name, None, None, message))
    return [
        _reward(read_answer(_text(completion, row), of_video, per), moments, row)
        for row, (completion, moments, of_video, per) in enumerate(
            zip(completions, relevant_windows, durations, scales, strict=True), start=1
        )
    ]


def _reward(answer: Answer, moments: Sequence[Sequence[float]] | None, row: int) -> float:
    if moments is None:
        message = "is None; expected the moments of the query, as a reward needs ground truth"
        raise DataError(Problem("relevant_windows", row, None, message))
    if not len(moments):
        return float(answer.denied)
    if not answer.spans:
        return 0.0
    return float(spans.best_tiou(np.array(answer.spans[0]), np.array(moments, np.float64)))


def _text(completion: Completion, row: int) -> str:
    """The words of a completion."""
    content: Any = completion
    if isinstance(content, Sequence) and not isinstance(content, str) and content:
        content = content[-1].get("content") if isinstance(content[-1], Mapping) else None
    if isinstance(content, Sequence) and not isinstance(
        content, str
    ):  # parts of a message, some of them pictures
        content = " ".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    if not isinstance(content, str):
        message = f"is {shorten(completion)}; expected a text or the messages of a chat"
        raise DataError(Problem("completions", row, None, message))
    return content
