"""Format of a decoder-state cache on disk: its manifest, its arrays, and the checks on opening.

A cache is a folder with `manifest.json`, `samples.parquet` and one `.npy` file for each array of `ARRAYS`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmr_env.arrays import Array, Ints
from vmr_env.data.durations import SECONDS, is_seconds
from vmr_env.data.profiles import PROFILES
from vmr_env.errors import DataError, Problem, is_plain, shorten
from vmr_env.files.objects import read_object

FORMAT = "vmr-env-cache"
VERSION = 1
SOURCES = ("real", "annotation-derived", "simulated", "predictions")
DTYPES = ("float32", "float16")
MAX_MODELS = 256  # the model of a proposal is stored in one byte

MANIFEST_FILE = "manifest.json"
SAMPLES_FILE = "samples.parquet"


class FileEntry(TypedDict):
    """Checksum and size of one file of a cache."""

    sha256: str
    bytes: int


class Backbone(TypedDict):
    """The frozen detector behind a cache: what it is, and the hash of its weights (None without weights)."""

    kind: str
    sha256: str | None


class Manifest(TypedDict):
    """Contents of `manifest.json`.

    `source` is one of `SOURCES`; `samples` is N, `proposals` is Q, `d` is D (None without decoder states),
    `dims` the widths of `clips` and `text`, `dtype` the type of `states`, `clips` and `text`, `models` the
    names behind the array `models`, `notes` free counts and remarks of whoever wrote the cache.
    """

    format: str
    version: int
    dataset: str
    split: str
    source: str
    backbone: Backbone
    features: list[str]
    dims: dict[str, int]
    d: int | None
    proposals: int
    dtype: str
    samples: int
    models: list[str]
    clip_seconds: float
    files: dict[str, FileEntry]
    notes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths in one array: row i is `values[offsets[i] : offsets[i + 1]]`.

    Attributes:
        values: (T, ...) the rows, one after the other.
        offsets: int64 (N + 1,), from 0 to T, never falling.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    @classmethod
    def from_rows(cls, rows: Sequence[ArrayLike]) -> "Ragged":
        """Rows of any lengths, all of one trailing shape."""
        arrays = [np.asarray(row) for row in rows]
        offsets = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        return cls(np.concatenate(arrays), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        row: NDArray[Any] = self.values[self.offsets[index] : self.offsets[index + 1]]
        return row

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each row: int64 (N,)."""
        return np.diff(self.offsets)

    def rows(self, start: int, stop: int) -> "Ragged":
        """Rows start to stop (exclusive); the values are a view."""
        offsets = self.offsets[start : stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Type and shape of one array; letters in the shape are sizes from the manifest.

    The letter "*" is the length of a ragged array, which only its offsets know; dtype None is the manifest's.
    """

    dtype: str | None
    shape: tuple[int | str, ...]
    optional: bool = False


# N samples, Q proposals of D-wide states, clips of width C, text of width X.
ARRAYS: Mapping[str, ArraySpec] = {
    "spans": ArraySpec("float32", ("N", "Q", 2)),
    "scores": ArraySpec("float32", ("N", "Q")),
    "counts": ArraySpec("int32", ("N",)),
    "models": ArraySpec("uint8", ("N", "Q")),
    "durations": ArraySpec("float32", ("N",)),
    "n_clips": ArraySpec("int32", ("N",)),
    "moments.values": ArraySpec("float32", ("*", 2)),
    "moments.offsets": ArraySpec("int64", ("N+1",)),
    "states": ArraySpec(None, ("N", "Q", "D"), optional=True),
    "references": ArraySpec("float32", ("N", "Q", 2), optional=True),
    "detections": ArraySpec("float32", ("N", "Q", 3), optional=True),
    "saliency.values": ArraySpec("float32", ("*",), optional=True),
    "saliency.offsets": ArraySpec("int64", ("N+1",), optional=True),
    "relevance.values": ArraySpec("float32", ("*",), optional=True),
    "relevance.offsets": ArraySpec("int64", ("N+1",), optional=True),
    "span_scores.values": ArraySpec("float32", ("*",), optional=True),
    "span_scores.offsets": ArraySpec("int64", ("N+1",), optional=True),
    "clips.values": ArraySpec(None, ("*", "C"), optional=True),
    "clips.offsets": ArraySpec("int64", ("N+1",), optional=True),
    "text": ArraySpec(None, ("N", "X"), optional=True),
}

MOST_CELLS = 75
"""Cells of the grid that `span_scores` are on: as many as clips, in longer videos at most so many (2,850
spans)."""

KEPT_MOMENTS = "kept_moments"
"""Note of a manifest: True where moments stand as they were annotated, also beyond their videos."""

RAGGED = tuple(name.removesuffix(".values") for name in ARRAYS if name.endswith(".values"))
"""Names of the ragged arrays."""


def cells_of(n_clips: Array) -> Ints:
    """Number of cells of videos of so many clips: any shape."""
    cells: Ints = -(-n_clips // merged(n_clips))
    return cells


def merged(n_clips: Array) -> Ints:
    """Number of clips in a cell: any shape."""
    clips: Ints = -(-np.asarray(n_clips, np.intp) // MOST_CELLS)
    return clips


def spans_of(cells: Array) -> Ints:
    """Number of spans between boundaries of so many cells: any shape."""
    spans: Ints = cells * (cells + 1) // 2
    return spans


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a cache folder.

    Raises:
        DataError: the folder or the manifest is missing, unreadable, not JSON, or breaks a rule; all at once.
    """
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise broken(folder, f"{what}, expected the folder of a decoder-state cache")
    require_file(path)
    raw = read_object(path)
    if problems := manifest_problems(str(path), raw):
        raise DataError(problems)
    return cast(Manifest, raw)


def broken(path: Path, message: str) -> DataError:
    """The error about a file or folder as a whole."""
    return DataError(Problem(str(path), None, None, message))


def require_file(path: Path) -> int:
    """Size of a regular file in bytes.

    Raises:
        DataError: it is missing, a folder, a pipe, or cannot be reached.
    """
    try:
        regular, size = path.is_file(), path.stat().st_size
    except FileNotFoundError:
        raise broken(path, "is missing from the cache; write the cache again") from None
    except OSError as error:
        raise broken(path, f"cannot be read ({error})") from error
    if not regular:
        raise broken(path, "is not a regular file")
    return size


def map_files(folder: Path, manifest: Manifest) -> dict[str, NDArray[np.uint8]]:
    """Memory-map the bytes of every file of a cache, read-only, by name; sizes are checked, contents are not.

    Raises:
        DataError: a file is missing, unreadable, or differs from the manifest in size.
    """
    files = {}
    for file, entry in manifest["files"].items():
        path = folder / file
        size = require_file(path)
        if size != entry["bytes"]:
            raise broken(path, f"has {size} bytes, expected {entry['bytes']}")
        try:
            # A memmap object pays for its bookkeeping on every index; a plain view of its pages does not.
            files[file] = np.memmap(path, np.uint8, "r").view(np.ndarray)
        except (OSError, ValueError) as error:
            raise broken(path, f"cannot be read ({error})") from error
    return files


def open_arrays(
    folder: Path, manifest: Manifest, files: Mapping[str, NDArray[np.uint8]]
) -> dict[str, NDArray[Any]]:
    """The arrays in the mapped files of a cache, by name; headers are checked, contents are not.

    Raises:
        DataError: a file holds no plain C-ordered array, or another than the manifest tells.
    """
    sizes = {
        "N": manifest["samples"],
        "N+1": manifest["samples"] + 1,
        "Q": manifest["proposals"],
        "D": manifest["d"],
        "C": manifest["dims"].get("clips"),
        "X": manifest["dims"].get("text"),
    }
    arrays = {}
    for file, raw in files.items():
        if file != SAMPLES_FILE:
            name = file.removesuffix(".npy")
            spec = ARRAYS[name]
            shape = tuple(sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in spec.shape)
            arrays[name] = _array(folder / file, raw, np.dtype(spec.dtype or manifest["dtype"]), shape)
    for name in RAGGED:
        if f"{name}.offsets" in arrays:
            _check_ends(folder, name, arrays)
    return arrays


# What `np.save` writes before a plain array; matching it avoids evaluating the header as Python.
_NPY_START = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([^']*)', 'fortran_order': (True|False), 'shape': \((\d{1,18}(?:, \d{1,18})*),?\), \} *\n"
)


def _array(
    path: Path, raw: NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int | str | None, ...]
) -> NDArray[Any]:
    """The array in the bytes of one file; "*" in the shape fits any length from 1."""
    start = raw[: len(_NPY_START) + 2].tobytes()
    header = raw[len(start) : len(start) + int.from_bytes(start[len(_NPY_START) :], "little")].tobytes()
    match = _NPY_HEADER.fullmatch(header)
    if not start.startswith(_NPY_START) or match is None:
        raise broken(path, "does not begin like a plain array in .npy format 1.0")
    descr, fortran, axes = (group.decode("latin-1") for group in match.groups())
    found = tuple(int(axis) for axis in axes.split(", "))
    fits = len(found) == len(shape) and all(
        want == have or (want == "*" and have > 0) for have, want in zip(found, shape, strict=True)
    )
    if descr != dtype.str or not fits:
        wanted = f"{dtype.str} ({', '.join(map(str, shape))})"
        raise broken(path, f"holds {descr} ({axes}), expected {wanted}")
    if fortran == "True":
        raise broken(path, "is in Fortran order, expected C order")
    offset = len(start) + len(header)
    if len(raw) != (expected := offset + math.prod(found) * dtype.itemsize):
        raise broken(path, f"has {len(raw)} bytes, expected {expected} for {descr} ({axes})")
    return raw[offset:].view(dtype).reshape(found)


def _check_ends(folder: Path, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Offsets must start at 0 and end at the number of values; what lies between is for `verify`."""
    offsets, total = arrays[f"{name}.offsets"], len(arrays[f"{name}.values"])
    if offsets[0] != 0 or offsets[-1] != total:
        path = folder / f"{name}.offsets.npy"
        raise broken(
            path, f"runs from {offsets[0]} to {offsets[-1]}, expected 0 to {total} as in {name}.values"
        )


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != "" and is_plain(value)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_name, value)) and len(set(value)) == len(value)


def _is_backbone(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"kind", "sha256"}:
        return False
    return _is_name(value["kind"]) and (value["sha256"] is None or _is_sha256(value["sha256"]))


def _is_widths(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return set(value) <= {"clips", "text"} and all(map(_is_size, value.values()))


# One rule per key of the manifest: what holds for a good value, and how the error names it.
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: value == FORMAT, repr(FORMAT)),
    "version": (lambda value: type(value) is int and value == VERSION, f"version {VERSION}"),
    "dataset": (lambda value: _is_name(value) and value in PROFILES, f"one of {', '.join(PROFILES)}"),
    "split": (_is_name, "the name of a split"),
    "source": (lambda value: _is_name(value) and value in SOURCES, f"one of {', '.join(SOURCES)}"),
    "backbone": (_is_backbone, 'an object {"kind": name, "sha256": 64 hexadecimal digits or null}'),
    "features": (_is_names, "a list of different names"),
    "dims": (_is_widths, "an object with the widths of clips and text, where there are any"),
    "d": (lambda value: value is None or _is_size(value), "the width of a decoder state, or null"),
    "proposals": (_is_size, "an integer from 1"),
    "dtype": (lambda value: _is_name(value) and value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "samples": (_is_size, "an integer from 1"),
    "models": (
        lambda value: _is_names(value) and 1 <= len(value) <= MAX_MODELS,
        f"a list of 1 to {MAX_MODELS} different names",
    ),
    "clip_seconds": (is_seconds, SECONDS),
    "files": (lambda value: isinstance(value, dict), "an object of file names"),
    "notes": (lambda value: isinstance(value, dict), "an object"),
}


def manifest_problems(where: str, raw: Mapping[str, Any], *, check_files: bool = True) -> list[Problem]:
    """Every rule that a manifest breaks; `check_files=False` for one whose files are not written yet."""
    problems = [Problem(where, None, key, "is missing") for key in _RULES if key not in raw]
    problems += [Problem(where, None, str(key), "is no known key") for key in raw if key not in _RULES]
    problems += [
        Problem(where, None, key, f"{shorten(raw[key])}, expected {expected}")
        for key, (holds, expected) in _RULES.items()
        if key in raw and not holds(raw[key])
    ]
    # Report only that the format or version differs: every other difference follows from it.
    foreign = [problem for problem in problems if problem.field in ("format", "version")]
    return foreign or problems or (_file_problems(where, raw) if check_files else [])


def _file_problems(where: str, raw: Mapping[str, Any]) -> list[Problem]:
    """The files must be those that the other keys ask for; no other name ever gets near the disk."""
    files = raw["files"]
    present = {"states": raw["d"] is not None, "text": "text" in raw["dims"]}
    present |= dict.fromkeys(("clips.values", "clips.offsets"), "clips" in raw["dims"])
    present |= {name: f"{name}.npy" in files for name in ("references", "detections")}
    for name in ("saliency", "relevance", "span_scores"):
        present |= dict.fromkeys((f"{name}.values", f"{name}.offsets"), f"{name}.values.npy" in files)
    wanted = {f"{name}.npy" for name, spec in ARRAYS.items() if not spec.optional or present[name]} | {
        SAMPLES_FILE
    }
    problems = [Problem(where, None, f"files.{name}", "is missing") for name in sorted(wanted - set(files))]
    problems += [
        Problem(where, None, f"files.{shorten(name)}", "is no file of such a cache")
        for name in sorted(set(files) - wanted)
    ]
    problems += [
        Problem(where, None, f"files.{name}", f"{shorten(entry)}, expected an object with sha256 and bytes")
        for name, entry in files.items()
        if name in wanted and not _is_file_entry(entry)
    ]
    return problems


def _is_file_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
        return False
    return _is_sha256(entry["sha256"]) and _is_size(entry["bytes"])
