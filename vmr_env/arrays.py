"""Types and layout of the arrays in the environments' dynamics."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Ints = NDArray[np.intp]

Rows = Ints | slice
"""Which of N episodes."""

Numbers = Any
"""`Floats` of N episodes, or `np.float32` of one; NumPy's types cannot say that operators keep either."""

Span = tuple[np.float32, np.float32]
"""Start and end of one span."""

Pair = Floats | tuple[Numbers, Numbers]
"""Starts and ends: (2, ...), or two arrays."""

_CACHE_LINE = 64  # bytes


def row_length(n: int, dtype: DTypeLike = np.float32) -> int:
    """How far rows of N entries stand apart in arrays whose columns are read or written one by one.

    It is a little more than N: where it is a power of two, as N often is, all entries of a column compete for
    the same few places in the processor's cache.
    """
    return n + _CACHE_LINE // np.dtype(dtype).itemsize
