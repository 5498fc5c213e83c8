"""A memory-mapped store of feature arrays: one folder, many keys, opened in the same time at any size.

A store maps keys (video ids, query ids, sentence hashes) to arrays ``(T, D)`` of one common width D::

    manifest.json   what it is: counts, width, dtype, where the features come from, sha256 of each file
    values.npy      (rows, D)   all arrays one after the other
    offsets.npy     (N + 1,)    int64; array i is values[offsets[i]:offsets[i + 1]]
    keys.npy        (N,)        UTF-8 bytes, sorted, so that a key is found by binary search

Nothing but the manifest and three headers is read on opening. The pages of the mapped files are shared by all
processes that open the store, and a store pickles as its path.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.objects import read_object
from vmr_env.files.text import PathLike
from vmr_env.files.writing import NewFolder, writing_errors

FORMAT = "vmr-env-features"
VERSION = 1
SOURCES = ("real", "annotation-derived", "simulated")
DTYPES = ("float16", "float32")
_ARRAYS = ("values", "offsets", "keys")
_NPY_HEADER_BYTES = 128


class Features(Protocol):
    """Arrays by key; what data sets read clip and token features through."""

    @property
    def dim(self) -> int:
        """Width D of every array."""
        ...

    def read(self, key: str) -> NDArray[np.float32]:
        """The array of one key, ``(T, D)`` float32 with T >= 1.

        Raises:
            DataError: there is no such key, or its array is damaged.
        """
        ...


def array_problem(array: NDArray[Any], width: int | None = None) -> str | None:
    """Problem of a feature array, as a sentence; None for a good one.

    Args:
        array: the array as read from its file.
        width: number of columns expected, None for any.
    """
    if array.ndim != 2 or 0 in array.shape:
        return f"has shape {array.shape}; expected (rows, width) with at least one of each"
    if not np.issubdtype(array.dtype, np.floating):
        return f"has dtype {array.dtype}; expected floating point"
    if width is not None and array.shape[1] != width:
        return f"has width {array.shape[1]}; expected {width}"
    finite = np.isfinite(array)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        return f"holds {array[row, column]} at row {row}, column {column}; expected finite numbers"
    return None


def width_problem(shape: tuple[int, ...], first: tuple[int, ...]) -> str | None:
    """What is wrong with the shape of an array beside that of the first; None where the widths are equal.

    Arrays of equal numbers of rows and unequal widths are transposed: videos differ in length, not in width.
    """
    if shape[1] == first[1]:
        return None
    if shape[0] == first[0]:
        return f"has shape {shape} beside {first}, which looks like (D, T); expected (T, D)"
    return f"has width {shape[1]}; expected {first[1]}"


class FeatureStore:
    """A store opened for reading.

    Attributes:
        path: folder of the store.
        manifest: content of ``manifest.json``.
    """

    def __init__(self, path: PathLike, checksums: bool = False) -> None:
        """Open a store.

        Args:
            path: folder of the store.
            checksums: also read every file and compare its sha256 with the manifest.

        Raises:
            DataError: the folder is no store, or a file is missing, cut, or does not fit the manifest.
        """
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        for name, facts in self.manifest["files"].items():
            _check_file(self.path / name, facts, checksums)
        self._values, self._offsets, self._keys = (_map(self.path / f"{name}.npy") for name in _ARRAYS)
        arrays, rows, dim = (self.manifest[key] for key in ("arrays", "rows", "dim"))
        for name, array, kind, shape in (
            ("values", self._values, np.dtype(self.manifest["dtype"]).str, (rows, dim)),
            ("offsets", self._offsets, "<i8", (arrays + 1,)),
            ("keys", self._keys, "|S", (arrays,)),
        ):
            if array.shape != shape or not array.dtype.str.startswith(kind):
                message = f"holds {array.dtype.str} {array.shape}; expected {kind} {shape}"
                raise _fail(self.path / f"{name}.npy", message)
        if self._offsets[0] != 0 or self._offsets[-1] != rows:
            message = f"runs from {self._offsets[0]} to {self._offsets[-1]}; expected 0 to {rows}"
            raise _fail(self.path / "offsets.npy", message)

    @property
    def dim(self) -> int:
        """Width of every array."""
        return int(self._values.shape[1])

    @property
    def source(self) -> str:
        """Where the features come from: one of `SOURCES`."""
        return str(self.manifest["source"])

    def __repr__(self) -> str:
        digest = self.manifest["files"]["values.npy"]["sha256"]
        return f"FeatureStore({str(self.path)!r}, values {digest[:16]})"

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return (self._text(key) for key in self._keys)

    def _text(self, key: bytes) -> str:
        try:
            return key.decode()
        except UnicodeDecodeError as error:
            raise _fail(self.path / "keys.npy", f"holds {shorten(key)}, which is no UTF-8 text") from error

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def __getitem__(self, key: str) -> NDArray[Any]:
        """Read-only view of one array in the dtype of the store, without copying."""
        index = self._find(key)
        if index is None:
            raise _fail(self.path, f"has no features for {shorten(key)}; it has {len(self)} keys")
        start, stop = self._offsets[index : index + 2].tolist()
        if not 0 <= start < stop <= len(self._values):
            message = f"has rows {start} to {stop} for {shorten(key)}; expected a range of the values"
            raise _fail(self.path / "offsets.npy", message)
        return self._values[start:stop]

    def read(self, key: str) -> NDArray[np.float32]:
        """One array as float32, ``(T, D)``."""
        return np.asarray(self[key], dtype=np.float32)

    def __reduce__(self) -> tuple[type["FeatureStore"], tuple[Path]]:
        return type(self), (self.path,)

    def _find(self, key: str) -> int | None:
        wanted = np.array(key.encode())
        index = int(np.searchsorted(self._keys, wanted))
        return index if index < len(self._keys) and self._keys[index] == wanted else None


class FeatureStoreWriter:
    """Writes a store array by array; it appears under its name only when complete.

    Use as a context manager: leaving the block normally finishes the store, leaving it by an exception
    removes everything written so far.
    """

    def __init__(
        self, path: PathLike, *, source: str, origin: Mapping[str, Any], dtype: str = "float16"
    ) -> None:
        """Start a store.

        Args:
            path: folder to create; it must not exist.
            source: one of `SOURCES`.
            origin: how the features were made (encoder, files, noise model …), as JSON; kept in the manifest.
            dtype: stored precision, float16 or float32.

        Raises:
            DataError: the folder exists or cannot be written.
            ValueError: unknown source or dtype.
        """
        if source not in SOURCES:
            raise ValueError(f"source is {source!r}; expected one of {', '.join(SOURCES)}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
        self.path = Path(path)
        if self.path.exists():
            raise _fail(self.path, "exists already; expected a new folder name")
        self._facts = {"source": source, "origin": dict(origin), "dtype": dtype}
        self._dtype = np.dtype(dtype)
        self._dim: int | None = None
        self._first: tuple[int, ...] | None = None
        self._lengths: dict[str, int] = {}
        self._folder = NewFolder(self.path)
        try:
            with writing_errors(self.path):
                self._values = (self._folder.path / "values.npy").open("xb")
                self._values.write(bytes(_NPY_HEADER_BYTES))  # filled in when the number of rows is known
        except DataError:
            self._folder.drop()
            raise

    def __enter__(self) -> "FeatureStoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with writing_errors(self.path):
                    self._finish()
        finally:
            with suppress(OSError):  # what was not written yet is of no use
                self._values.close()
            self._folder.drop()

    def add(self, key: str, array: NDArray[Any]) -> None:
        """Append the array ``(T, D)`` of one key.

        Raises:
            DataError: the key is there already; the array is not 2-D, empty, not finite (before or after the
                change of precision) or of another width than the first.
        """
        if not key:
            raise _fail(self.path, "got an empty key; expected a name")
        if key in self._lengths:
            raise _fail(self.path, f"key {shorten(key)} was added before; expected each key once")
        problem = array_problem(array)
        if problem is None and self._first is not None:
            problem = width_problem(array.shape, self._first)
        if problem is None:
            with np.errstate(over="ignore"):
                array = array.astype(self._dtype)
            problem = array_problem(array)
        if problem is not None:
            raise DataError(Problem(str(self.path), None, shorten(key), problem))
        self._first = self._first or array.shape
        self._dim = array.shape[1]
        self._lengths[key] = len(array)
        with writing_errors(self.path):
            self._values.write(array.tobytes())

    def _finish(self) -> None:
        if self._dim is None:
            raise _fail(self.path, "got no arrays; expected at least one")
        keys = list(self._lengths)
        lengths = np.fromiter(self._lengths.values(), np.int64, len(keys))
        encoded = np.array([key.encode() for key in keys])
        rows = int(lengths.sum())
        self._values.seek(0)
        self._values.write(_npy_header(self._dtype, (rows, self._dim)))
        self._values.flush()
        order = np.argsort(encoded)
        if not np.array_equal(order, np.arange(len(keys))):
            self._sort_values(order, lengths, rows)
        folder = self._folder.path
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths[order])]))
        np.save(folder / "keys.npy", encoded[order])
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **self._facts,
            "arrays": len(keys),
            "rows": rows,
            "dim": self._dim,
            "files": {f"{name}.npy": _file_facts(folder / f"{name}.npy") for name in _ARRAYS},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        self._folder.publish()

    def _sort_values(self, order: NDArray[np.intp], lengths: NDArray[np.int64], rows: int) -> None:
        """Bring the arrays into the order of the sorted keys, one at a time (memory stays flat)."""
        assert self._dim is not None
        folder = self._folder.path
        unsorted = _map(folder / "values.npy")
        ends = np.cumsum(lengths)
        with open(folder / "sorted.npy", "xb") as file:
            file.write(_npy_header(self._dtype, (rows, self._dim)))
            for index in order:
                file.write(unsorted[ends[index] - lengths[index] : ends[index]].tobytes())
        del unsorted
        (folder / "sorted.npy").replace(folder / "values.npy")


def import_features(
    path: PathLike, features: Features, keys: Iterable[str], *, source: str, origin: Mapping[str, Any]
) -> FeatureStore:
    """Copy the arrays of `keys` from any feature source (the official layout, say) into a new store.

    Raises:
        DataError: with every key whose features are missing or damaged; nothing is written then.
    """
    problems: list[Problem] = []
    with FeatureStoreWriter(path, source=source, origin=origin) as writer:
        for key in keys:
            try:
                writer.add(key, features.read(key))
            except DataError as error:
                problems.extend(error.problems)
        if problems:
            raise DataError(problems)
    return FeatureStore(path)


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Version 1.0 header of the npy format, padded to `_NPY_HEADER_BYTES`."""
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + (_NPY_HEADER_BYTES - 10).to_bytes(2, "little") + text.ljust(117) + b"\n"


def _fail(path: Path, message: str) -> DataError:
    return DataError(Problem(str(path), None, None, message))


def _map(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damaged headers raise half a dozen kinds: tokens, overflow, end of file, ...
        raise _fail(path, f"is no readable array ({error})") from error
    return array


def _file_facts(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}


def _check_file(path: Path, facts: Mapping[str, Any], checksums: bool) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _fail(path, f"cannot be read ({error}); the manifest lists it") from error
    if size != facts["bytes"]:
        raise _fail(path, f"has {size} bytes; the manifest says {facts['bytes']}")
    if checksums and _file_facts(path)["sha256"] != facts["sha256"]:
        raise _fail(path, "does not have the sha256 that the manifest lists: its content was changed")


_IS_COUNT = (lambda value: type(value) is int and value >= 1, "an integer from 1")
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "arrays": _IS_COUNT,
    "rows": _IS_COUNT,
    "dim": _IS_COUNT,
    "source": (lambda value: value in SOURCES, f"one of {', '.join(SOURCES)}"),
    "dtype": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "origin": (lambda value: isinstance(value, dict), "an object"),
    "files": (
        lambda value: isinstance(value, dict) and set(value) == {f"{name}.npy" for name in _ARRAYS},
        f"an object of {', '.join(f'{name}.npy' for name in _ARRAYS)}",
    ),
}
"""Rule for the value of each key of a manifest, and its wording in errors."""


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    manifest = read_object(path)
    wanted = {"format": FORMAT, "version": VERSION}
    if any(manifest.get(key) != value for key, value in wanted.items()):
        raise _fail(path, f"does not describe a feature store of version {VERSION} (format {FORMAT!r})")
    problems = [
        Problem(str(path), None, key, f"is {shorten(manifest.get(key))}; expected {expected}")
        for key, (holds, expected) in _RULES.items()
        if not holds(manifest.get(key))
    ]
    problems += [
        Problem(str(path), None, key, "is no known key")
        for key in manifest
        if key not in {**_RULES, **wanted}
    ]
    problems += [
        Problem(str(path), None, f"files.{name}", f"is {shorten(facts)}; expected sha256 and bytes")
        for name, facts in ({} if problems else manifest["files"]).items()
        if not isinstance(facts, dict)
        or {key: type(value) for key, value in facts.items()} != {"sha256": str, "bytes": int}
    ]
    if problems:
        raise DataError(problems)
    return manifest
