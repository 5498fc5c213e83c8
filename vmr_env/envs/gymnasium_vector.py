"""What the vector environment and its wrapper take from Gymnasium 1.1 and later; one error before that."""

import gymnasium

try:
    from gymnasium.vector import AutoresetMode, VectorWrapper
except ImportError:
    raise ImportError(
        f"The native vector environment needs gymnasium 1.1 or later, found {gymnasium.__version__}; "
        "single environments and Gymnasium's own vector environments over them work without"
    ) from None

__all__ = ["AutoresetMode", "VectorWrapper", "autoreset"]


def autoreset(mode: AutoresetMode | str) -> AutoresetMode:
    """The mode of that name.

    Raises:
        ValueError: there is no such mode.
    """
    try:
        return AutoresetMode(mode)
    except ValueError:
        names = ", ".join(repr(known.value) for known in AutoresetMode)
        raise ValueError(f"autoreset_mode is {mode!r}, expected one of {names}") from None
