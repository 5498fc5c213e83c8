"""A second torch device for machines that have none: its tensors lie in memory, and mix with no others.

What an accelerator would refuse is refused here: an operation on tensors of two devices (but for single
numbers), a random operation with a generator of another device, a NumPy array of what is not here.
The numbers are those of the processor, bit for bit, so that whatever is computed in both places is equal.

Torch takes such a device once for all of a process, so tests call `elsewhere`, which has one of its own.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "second"
DEVICE = f"{NAME}:0"

_MOVING = ("aten::_to_copy", "aten::copy_")
"""Operations that are there to go from one device to another."""


class _There(Tensor):
    """A tensor of the device; `here` is where its numbers really are."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "_There":
        made = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        made.here = here
        return made

    def tolist(self) -> Any:
        """Its numbers, which an accelerator copies to the processor."""
        return self.here.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Files hold its numbers, which are read on the processor."""
        return self.here.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _done(operation, args, kwargs or {})


class _Device(TorchDispatchMode):
    """Sees also the operations that make tensors from nothing."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _done(operation, args, kwargs or {})


def _done(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = tree_leaves((args, kwargs))
    tensors = [one for one in given if isinstance(one, Tensor)]
    there = any(isinstance(one, _There) for one in tensors)
    name = operation._schema.name
    if there and name not in _MOVING:
        if any(not isinstance(one, _There) and one.dim() for one in tensors):
            raise RuntimeError(f"{name}: expected all tensors on one device, found {DEVICE} and cpu")
        if any(isinstance(one, torch.Generator) for one in given):
            raise RuntimeError(f"{name}: expected a generator of {DEVICE}, found one of cpu")
    wanted = kwargs.pop("device", None)
    result = operation(*tree_map(_here, args), **tree_map(_here, kwargs))
    if operation._schema.is_mutable:
        changed = args[0] if isinstance(args[0], Tensor) else None
        return kwargs.get("out", changed)
    if there if wanted is None else torch.device(wanted).type == NAME:
        return tree_map(lambda one: _There(one) if isinstance(one, Tensor) else one, result)
    return result


def _here(one: Any) -> Any:
    return one.here if isinstance(one, _There) else one


def _start() -> None:
    _setup_privateuseone_for_python_backend(rename=NAME)
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay the same objects
    torch.set_num_threads(1)


def _run(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    with _Device():
        return work(*arguments)


def elsewhere() -> ProcessPoolExecutor:
    """A process that has the device: `elsewhere().submit(on_device, work, *arguments)`."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start)


def with_device(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function while there is a device, in a process of `elsewhere`."""
    return _run(work, arguments)
