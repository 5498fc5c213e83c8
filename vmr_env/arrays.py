"""Types of the arrays in the environments' dynamics."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
