"""Networks on a torch device, and what they are fed from the processor, where caches and environments are.

What is random is drawn on the processor, so that every device sees the same draws; dropout alone draws where
it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are, which are all in one place."""
    return next(module.parameters()).device


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor: the same memory on the processor, elsewhere a copy (by way of pinned memory)."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def permutation(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """The numbers below `count` in random order, by a generator of the processor: int64 (count,)."""
    return torch.randperm(count, generator=generator).to(device)


class ResidentRows:
    """Rows of an array that are gathered on a device.

    On the processor the array stays where it is, perhaps on the disk; elsewhere all of it is copied once.

    Args:
        array: (N, ...) of floats.
        device: where to.
    """

    def __init__(self, array: NDArray[np.floating[Any]], device: torch.device) -> None:
        self._array = array
        self._copy = None if device.type == "cpu" else on_device(np.array(array), device)

    def take(self, rows: NDArray[np.integer]) -> Tensor:
        """The rows (B,), as they are numbered: float32 (B, ...)."""
        if self._copy is None:
            return torch.from_numpy(np.take(self._array, rows, axis=0).astype(np.float32, copy=False))
        return self._copy[on_device(np.asarray(rows, np.int64), self._copy.device)].float()


def global_generator(device: torch.device) -> torch.Generator:
    """Torch's own generator of a device: dropout draws from it, and takes no other."""
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own generators, of the processor and of a device, seeded; afterwards as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
