"""Types of arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Ints = NDArray[np.intp]

Numbers = Any
"""`Floats`, or one `np.float32`; NumPy's types cannot say that operators keep either."""
