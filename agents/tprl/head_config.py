"""Settings that all trainers of a detection head share."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vmr_env.agents.tprl.data import VideoLength
from vmr_env.agents.tprl.validation import Selection

Rule = tuple[str, bool, str]
"""A setting, whether its value is sound, and what is expected of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """Settings of `vmr_env.agents.tprl.head_training.HeadTrainer`; the values given here are those published
    for TPRL."""

    batch_size: int
    """Samples of one step; the last step of an epoch may have fewer."""
    lr: float
    """Learning rate of AdamW."""
    weight_decay: float = 1e-4
    """Decoupled weight decay, towards 0."""
    pull: float = 0.0
    """The same towards the head as it came (Li et al., 2018, "L2-SP"): keeps training close to the start."""
    clip: float = 0.1
    """Bound of the gradient norm, over all that shares a learning rate."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is evaluated and returned; 0 turns averaging off."""
    target_length: VideoLength = "clips"
    """What training normalises moments by (`tprl_batches.StateBatches`); evaluation always uses the
    duration."""
    evaluate_every: int = 5
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""
    selection: Selection = "official"
    """What chooses among evaluations (`tprl_validation.Validator`)."""
    start_is_candidate: bool = False
    """Whether the head as it came can be chosen, so that training never loses on validation data."""

    def __post_init__(self) -> None:
        hints: dict[str, Any] = get_type_hints(type(self))
        for field in fields(self):
            allowed = get_args(hints[field.name])
            value = getattr(self, field.name)
            if get_origin(hints[field.name]) is Literal and value not in allowed:
                raise ValueError(f"{field.name} must be one of {allowed}, got {value!r}")
        for name, holds, expected in self.rules():
            if not holds:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")

    def rules(self) -> Iterator[Rule]:
        """What must hold of the numbers."""
        yield "batch_size", self.batch_size >= 1, "at least 1"
        yield "lr", self.lr > 0, "above 0"
        yield "weight_decay", self.weight_decay >= 0, "at least 0"
        yield "pull", self.pull >= 0, "at least 0"
        yield "clip", self.clip > 0, "above 0"
        yield "ema", 0 <= self.ema < 1, "in [0, 1)"
        yield "evaluate_every", self.evaluate_every >= 1, "at least 1"
