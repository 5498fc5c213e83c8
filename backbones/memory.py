"""Memory of the process between the steps of a training."""

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h), and the largest values that it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK, MOST_KEPT = 2**25, 2**31 - 1


def keep_freed_memory() -> None:
    """Keep up to 2 GB of what tensors free in the process, instead of giving it back to the system.

    A training step frees some hundred megabytes that the next one needs again; getting them from the system
    page by page costs up to a tenth of a step. Blocks beyond 32 MB are still given back. Does nothing where
    the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
