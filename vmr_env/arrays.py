"""Types of arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
AnyFloats = NDArray[np.floating[Any]]
Ints = NDArray[np.intp]
Ints64 = NDArray[np.int64]

Numbers = Any
"""`Floats`, or one `np.float32`; NumPy's types cannot say that operators keep either."""
