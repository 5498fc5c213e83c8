"""What training asks of a detection head, whichever detector it is of."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Head(Protocol):
    """A module that makes proposals of a frozen detector's decoder states.

    The first five members are for the head to define; the others every `torch.nn.Module` has.
    """

    @property
    def width(self) -> int:
        """D, width of a decoder state."""
        ...

    @property
    def span_layers(self) -> tuple[str, ...]:
        """Names of the submodules that learn where moments are."""
        ...

    @property
    def score_layers(self) -> tuple[str, ...]:
        """Names of the submodules that learn which proposal is best."""
        ...

    def score(self, states: Tensor) -> Tensor:
        """Logits ``(..., 2)``, foreground and background, of decoder states ``(..., D)``."""
        ...

    def locate(self, states: Tensor, references: Tensor) -> Tensor:
        """Spans ``(..., 2)`` of states ``(..., D)`` and references ``(..., 2)``; both are (centre, width)."""
        ...

    def get_submodule(self, target: str) -> nn.Module:
        """A submodule by its name."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All tensors by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take over all tensors."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Move all tensors to a device."""
        ...

    def requires_grad_(self, requires_grad: bool = ...) -> Any:
        """Let all parameters learn, or none."""
        ...


_OWN = ("width", "span_layers", "score_layers", "score", "locate")


def check_head(head: Any) -> None:
    """Refuse what is no `Head`.

    Raises:
        TypeError: it is no module, or lacks a member.
    """
    if not isinstance(head, nn.Module):
        raise TypeError(f"the head is a {type(head).__name__}, expected a torch.nn.Module")
    if lacking := [name for name in _OWN if not hasattr(head, name)]:
        raise TypeError(f"the head, a {type(head).__name__}, lacks {', '.join(lacking)}")


def learning(head: Head, names: tuple[str, ...] | None = None) -> list[nn.Parameter]:
    """Parameters of the submodules of those names, each once; None for all that learn."""
    names = (*head.span_layers, *head.score_layers) if names is None else names
    return list(dict.fromkeys(_parameters(head, names)))


def frozen(tensors: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    """The tensors of a detector, by name, less those that its head learns."""
    learnt = {parameter.data_ptr() for parameter in learning(head)}
    return {name: tensor for name, tensor in tensors.items() if tensor.data_ptr() not in learnt}


def _parameters(head: Head, names: tuple[str, ...]) -> Iterator[nn.Parameter]:
    for name in names:
        yield from head.get_submodule(name).parameters()
