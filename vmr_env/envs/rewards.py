"""Potentials of a span, from which the environments' rewards are differences, and terms that are none.

A step from span s to span s' earns potential(s') - potential(s). Undiscounted, these sum over an episode to
the gain from its start to its end, whatever lies between: the return depends on the last span alone, and the
best policy is the one whose last span has the highest expected potential. The differences are the whole
reward, there is no other that they shape; so each potential is an objective of its own, and the best policies
of two of them may differ. A discount below 1 adds a preference for early gains.

| name | potential |
|---|---|
| `tiou` | the highest tIoU with any moment |
| `giou` | the highest generalised IoU with any moment, in (-1, 1] |
| `step` | 0.5 from a tIoU of 0.5 and another 0.5 from 0.7: the mean of the two recalls that papers report (GIRL-DETR's `scst_reward_mode step`, there from above the thresholds) |
| `tiou_step` | tIoU plus 0.1, 0.2 and 0.3 from 0.3, 0.5 and 0.7 (GIRL-DETR's `scst_reward_mode iou_step`, there from above the thresholds) |

`register_reward` adds one of your own.
"""  # noqa: E501  # rows of a table

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vmr_env.arrays import Floats
from vmr_env.envs.lookup import Registry

if TYPE_CHECKING:
    from vmr_env.envs.episodes import Episodes


@dataclass(frozen=True)
class Reward:
    """A reward of your own: the change of a potential, and terms that are no potential.

    The environments call the functions once for all N episodes, after each step.

    Attributes:
        potential: from the episodes, the potential of every current span: (N,). None for the tIoU.
        term: from the episodes, whose last step it was, and which of them it ended (N,) bool, what is earned
            besides by the step: (N,). None for nothing.
    """

    potential: Callable[["Episodes"], Any] | None = None
    term: Callable[["Episodes", Any], Any] | None = None


BUILT_IN = ("tiou", "giou", "step", "tiou_step")
"""Potentials that are compiled, in the order in which `vmr_env.envs.kernel` numbers them."""

POTENTIALS: Registry[Reward] = Registry("reward", {name: Reward() for name in BUILT_IN}, Reward)
"""Names that the environments' argument `reward` and the stages of the curriculum use."""


def register_reward(
    name: str,
    potential: Callable[["Episodes"], Any] | None = None,
    term: Callable[["Episodes", Any], Any] | None = None,
) -> None:
    """Add a reward that the environments' argument `reward` and stages can name; arguments are `Reward`'s.

    Worker processes know it too where the call stands in a plugin (`vmr_env.plugins`). Without one, `reward`
    takes `"module:name"` of a `Reward`.

    Raises:
        ValueError: another reward has that name.
    """
    POTENTIALS.add(name, Reward(potential, term))


def potentials(name: str, spans: Floats, moments: Floats) -> Floats:
    """A compiled potential of each of the spans (K, 2) with its own moments (K, M, 2): (K,).

    Raises:
        ValueError: there is no such potential.
    """
    from vmr_env.envs import kernel

    if name not in BUILT_IN:
        raise ValueError(f"reward is {name!r}, expected one of {', '.join(BUILT_IN)}")
    out = np.empty(len(spans), np.float32)
    spans, moments = np.ascontiguousarray(spans, np.float32), np.ascontiguousarray(moments, np.float32)
    kernel.potentials(BUILT_IN.index(name), spans, moments, out)
    return out
