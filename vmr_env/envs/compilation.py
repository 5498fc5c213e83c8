"""Compiling by Numba: once for every user and version, into the user's cache folder.

`NUMBA_DISABLE_JIT=1` leaves everything as it is written, for debuggers.
"""

import hashlib
import logging
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import DTypeLike

from vmr_env.arrays import Array
from vmr_env.files.user_cache import user_cache_folder

if sys.platform != "win32":
    import fcntl

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",  # a division by 0 gives inf or NaN, as in NumPy
    "_nrt": False,  # no array is made in compiled code: no references to count, which threads would share
}
_SOURCES = ("envs", "caches", "metrics")  # folders that compiled code, or a constant in it, comes from

_CONFIG: Any = numba.config
COMPILES: bool = not _CONFIG.DISABLE_JIT
"""Whether anything is compiled here."""

_READY: set[Any] = set()
_DIRECT: dict[Any, Any] = {}


def scalar(function: Function) -> Function:
    """Compile a part of other compiled functions, without what calls from Python would need.

    That is a third of the time of compiling.
    """
    compiled: Function = njit(**_OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True})(function)
    return compiled


def entry(function: Function) -> Function:
    """Compile a function that Python calls; what is compiled is kept on disk."""
    if not COMPILES:
        return np.errstate(over="ignore")(function)  # numbers wrap around in compiled code
    before = _CONFIG.CACHE_DIR
    _CONFIG.CACHE_DIR = str(_folder())  # is read by the decorator alone
    try:
        compiled: Function = njit(cache=True, **_OPTIONS)(function)
    finally:
        _CONFIG.CACHE_DIR = before
    return compiled


def direct(function: Function) -> Function:
    """A compiled function without Numba's look-up of types at each call, once it has been called.

    With some forty arrays the look-up takes five times as long as a step of an episode. Only for functions
    that are always called with the same types.

    Raises:
        ValueError: it has been called with others.
    """
    found: Function | None = _DIRECT.get(function)
    if found is None:
        versions = list(getattr(function, "overloads", {}).values())
        if not versions:
            return function  # is compiled by its first call, or not at all
        (version,) = versions
        found = _DIRECT[function] = version.entry_point
    return found


def _prefetch(typing: Any, row: Any, at: Any) -> Any:
    """What Numba asks of an intrinsic: its types, and a function that writes LLVM's instruction."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(row)(context, builder, arguments[0])
        address = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        instruction = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        to_read, near, data = number(0), number(3), number(1)
        builder.call(instruction, [address, to_read, near, data])
        return context.get_dummy_value()

    return types.void(row, types.intp), write


_made: Any = intrinsic(_prefetch)
prefetch: Callable[[Array, int], None] = _made if COMPILES else lambda row, at: None
"""`prefetch(row, at)`: the processor fetches what stands in memory at `row[at]`, and goes on meanwhile."""


@cache
def _folder() -> Path:
    """Where compiled code is kept: in NUMBA_CACHE_DIR or the user's cache folder, by all that it depends on.

    Numba itself looks at the file of the function alone, not at those where its constants come from.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256(f"{numba.__version__} {sys.version} {binding.get_host_cpu_name()}".encode())
    for path in sorted(path for folder in _SOURCES for path in (package / folder).glob("*.py")):
        digest.update(path.read_bytes())
    chosen = _CONFIG.CACHE_DIR
    return (Path(chosen) if chosen else user_cache_folder() / "compiled") / digest.hexdigest()[:32]


def fixed(array: Array | None, dtype: DTypeLike, axes: int) -> Array:
    """A read-only C-contiguous view or copy, so that compiled code meets one type; an empty one for None."""
    found = np.ascontiguousarray(np.empty((0,) * axes) if array is None else array, dtype).view()
    found.flags.writeable = False
    return found


@contextmanager
def first_call(functions: Collection[Callable[..., Any]]) -> Iterator[None]:
    """Hold this around the first call of compiled functions.

    Where one is not compiled yet it says so. Of many processes that begin at once one compiles; the others
    wait, and load what it made.
    """
    if not COMPILES or _READY.issuperset(functions):
        yield
        return
    folder = _folder()
    with _locked(folder):
        if not all(any(folder.rglob(f"*.{function.__name__}-*.nbi")) for function in functions):
            logging.getLogger("vmr_env").warning(
                "vmr_env: compiling the environments, once, for some seconds (kept in %s)", folder
            )
        yield
    _READY.update(functions)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out, where the system and the folder allow it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError:  # nothing can be kept there: Numba looks for another place
        yield
        return
    with file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
