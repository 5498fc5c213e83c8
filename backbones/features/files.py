"""Feature files of other people: NumPy's, PyTorch's and HDF5, read without running what they hold."""

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import PathLike

_MAX_BYTES = 2**30  # of one array: a video of hours at 4,096 channels stays far below
HDF5_SUFFIXES = (".h5", ".hdf5")


def read_array(path: Path, name: str) -> NDArray[Any]:
    """The features in a file, ``(T, D)``; of those with a leading axis of 1, ``(1, T, D)``, what is below it.

    Args:
        path: file that ends in one of `SUFFIXES`; it is never unpickled.
        name: which array of a file that holds several; of a ``.pt`` file's dict its only tensor will do.

    Raises:
        DataError: the file is missing or damaged, has no array of that name, or one of more than 1 GiB.
    """
    if not path.exists():
        raise _fail(path, f"does not exist, nor with another of the endings {', '.join(SUFFIXES)}")
    return _without_leading_axis(_READERS.get(path.suffix, _read_numpy)(path, name))


def read_hdf5(path: Path, key: str, name: str) -> NDArray[Any]:
    """The features of one key in an HDF5 file: its data set, or the one called `name` in its group.

    Raises:
        DataError: the file or the key is missing or damaged, or h5py is not installed.
    """
    with _open_hdf5(path) as file:
        try:
            found = file[key]
            found = found[name] if hasattr(found, "keys") else found
            if found.size * found.dtype.itemsize > _MAX_BYTES:
                raise _fail(path, f"has an array of {found.size} numbers for {key!r}; expected at most 1 GiB")
            return _without_leading_axis(np.asarray(found[()]))
        except KeyError:
            names = shorten(sorted(file)[:5])
            raise _fail(path, f"has no features for {shorten(key)}; it begins with {names}") from None
        except (OSError, ValueError, TypeError) as error:
            raise _fail(path, f"is no readable HDF5 file ({error})") from error


def hdf5_keys(path: Path) -> list[str]:
    """Keys of an HDF5 file, sorted.

    Raises:
        DataError: it cannot be read, or h5py is not installed.
    """
    with _open_hdf5(path) as file:
        return sorted(file)


def _open_hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise _fail(path, "needs h5py; expected `pip install vmr-env[hdf5]`") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise _fail(path, f"is no readable HDF5 file ({error})") from error


def _without_leading_axis(array: NDArray[Any]) -> NDArray[Any]:
    """What is below a leading axis of length 1, as extractors of batches write it."""
    return array[0] if array.ndim == 3 and len(array) == 1 else array


def _read_torch(path: Path, name: str) -> NDArray[Any]:
    """The tensor of a ``.pt`` file, or one of its dict; nothing but tensors is loaded."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds; the message of one runs over pages
        reason = str(error).split("\n", 1)[0][:120]
        raise _fail(path, f"is no file of plain tensors ({reason})") from None
    if isinstance(found, Mapping):
        tensors = {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}
        found = tensors.get(name, next(iter(tensors.values())) if len(tensors) == 1 else None)
        if found is None:
            raise _fail(path, f"has tensors {sorted(map(str, tensors))}; expected {name!r}")
    if not isinstance(found, torch.Tensor):
        raise _fail(path, f"holds {type(found).__name__}; expected a tensor")
    values: NDArray[Any] = (found.float() if found.is_floating_point() else found).numpy()
    return values


def _read_numpy(path: Path, name: str) -> NDArray[Any]:
    """The array of an ``.npy`` file, or one of an ``.npz`` file.

    Memory is taken only for what the file holds: a shape that its bytes do not fill is refused first.
    """
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                return _read_npy(path, file, path.stat().st_size)
            with zipfile.ZipFile(file) as archive:
                names = [member.removesuffix(".npy") for member in archive.namelist()]
                if name not in names:
                    raise _fail(path, f"has arrays {sorted(names)}; expected {name!r}")
                member = archive.infolist()[names.index(name)]
                with archive.open(member) as content:
                    return _read_npy(path, content, member.file_size)
    except DataError:
        raise
    except Exception as error:  # damaged archives raise a dozen kinds: zlib, struct, NotImplementedError, ...
        raise _fail(path, f"is no readable array file ({error})") from error


def _read_npy(path: Path, file: IO[bytes], size: int) -> NDArray[Any]:
    """The array of an open ``.npy`` stream of `size` bytes."""
    file.seek(0)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise _fail(path, f"has array format {version}; expected 1.0 or 2.0")
    if dtype.hasobject:
        raise _fail(path, "holds Python objects; expected numbers")
    wanted, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or wanted != held:
        raise _fail(
            path, f"has shape {shape} of {wanted} bytes, but holds {held}; expected an undamaged file"
        )
    if wanted > _MAX_BYTES:
        raise _fail(path, f"has an array of {wanted} bytes; expected at most {_MAX_BYTES}")
    raw = file.read()  # to the end, so that the archive's checksum is compared
    if len(raw) != wanted:
        raise _fail(path, f"ends after {len(raw)} of {wanted} bytes; expected an undamaged file")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


_READERS: Mapping[str, Callable[[Path, str], NDArray[Any]]] = {
    ".npz": _read_numpy,
    ".npy": _read_numpy,
    ".pt": _read_torch,
    ".pth": _read_torch,
}
SUFFIXES = tuple(_READERS)
"""Endings of feature files; of two files of one name the first counts."""


def _fail(path: PathLike, message: str) -> DataError:
    return DataError(Problem(str(path), None, None, message))
