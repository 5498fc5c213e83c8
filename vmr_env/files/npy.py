"""`.npy` files that are written row by row, by plain writes: a full disk is an error, not a signal."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER_BYTES = 128


class NpyWriter:
    """A `.npy` file that grows along its first axis; its header is written last, into room kept for it.

    Attributes:
        rows: written so far.
    """

    def __init__(self, path: Path, array: NDArray[Any]) -> None:
        """Begin a file for rows of the type and shape of those of `array`, which is not written.

        Raises:
            OSError: here and in the other methods, what the disk refuses.
        """
        self._file = open(path, "wb")  # noqa: SIM115  # open for as long as the writer is
        self._dtype, self._tail = array.dtype.newbyteorder("<"), array.shape[1:]
        self.rows = 0
        self._file.write(bytes(_HEADER_BYTES))

    def append(self, array: NDArray[Any]) -> None:
        """Write rows."""
        np.ascontiguousarray(array, self._dtype).tofile(self._file)
        self.rows += len(array)

    def finish(self) -> None:
        """Write the header, and close the file."""
        shape = (self.rows, *self._tail)
        header = f"{{'descr': {self._dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
        prefix = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
        self._file.seek(0)
        self._file.write(prefix + header.encode().ljust(_HEADER_BYTES - 11) + b"\n")
        self._file.close()

    def close(self) -> None:
        """Let go of the file as it is."""
        self._file.close()
