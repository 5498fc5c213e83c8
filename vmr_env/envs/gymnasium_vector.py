"""What the vector environment and its wrapper take from Gymnasium 1.1 and later; one error before that."""

import gymnasium

try:
    from gymnasium.vector import AutoresetMode, VectorWrapper
except ImportError:
    raise ImportError(
        f"The native vector environment needs gymnasium 1.1 or later, found {gymnasium.__version__}; "
        "single environments and Gymnasium's own vector environments over them work without"
    ) from None

__all__ = ["AutoresetMode", "VectorWrapper"]
