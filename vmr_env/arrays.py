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
