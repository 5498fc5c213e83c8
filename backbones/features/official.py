"""Feature files in the official layout: an ``.npz`` (or ``.npy``) for each video and query.

    python -m vmr_env.backbones.features.official annotations.jsonl --kind video --folder clip --folder blip
    --out features/clips

copies such files into one feature store. Layout (GIRL-DETR specification, section 1.2):
``{folder}/{vid}.npz`` with array ``features`` or ``{folder}/{vid}.npy``; ``{folder}/qid{qid}.npz`` (TACoS:
``{folder}/{qid}.npz``) with array ``last_hidden_state``.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vmr_env.backbones.features.files import HDF5_SUFFIXES, SUFFIXES, hdf5_keys, read_array, read_hdf5
from vmr_env.backbones.features.store import array_problem, import_features, width_problem
from vmr_env.data.annotations import read_annotations
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import PathLike
from vmr_env.programs import run_program

VIDEO_ARRAY = "features"
TEXT_ARRAY = "last_hidden_state"
_NORM_FLOOR = 1e-5


def file_keys(folder: Path, prefix: str = "") -> list[str]:
    """Keys with features in a folder of files, or in an HDF5 file, sorted; without the prefix of names.

    Raises:
        DataError: it is neither.
    """
    if folder.suffix in HDF5_SUFFIXES:
        names = hdf5_keys(folder)
    else:
        if not folder.is_dir():
            raise _fail(folder, f"is no folder of features, nor a file named {', '.join(HDF5_SUFFIXES)}")
        names = sorted({path.stem for path in folder.iterdir() if path.suffix in SUFFIXES})
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def feature_file_problems(folder: Path) -> list[Problem]:
    """Problems of the files of a folder, or the arrays of an HDF5 file: each read once.

    Files that cannot be read, shapes, numbers that are not finite, and widths that differ from the first's.
    """
    problems: list[Problem] = []
    keys = file_keys(folder)
    if not keys:
        return [Problem(str(folder), None, None, "holds no features; expected a store, files, or HDF5")]
    first: tuple[int, ...] | None = None
    for key in keys:
        try:
            array = OfficialFeatures((folder,)).file(folder, key)
        except DataError as error:
            problems.extend(error.problems)
            continue
        first = array.shape if first is None else first
        if message := width_problem(array.shape, first):
            problems.append(Problem(str(folder), None, key, message))
    return problems


def l2_normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row of ``(T, D)`` divided by its length plus 1e-5, as the official loader does."""
    lengths: NDArray[np.float32] = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / (lengths + np.float32(_NORM_FLOOR))


@dataclass(frozen=True)
class OfficialFeatures:
    """Features of the official layout, read by key (a vid or a qid) from one file per folder.

    An HDF5 file may stand in place of a folder, and ``.pt`` files in place of NumPy's.

    The first `limit` rows of each file are L2-normalised on their own, all are cut to the shortest, and
    joined along the channels in the order of the folders.

    Attributes:
        folders: folders in channel order.
        array: name of the array in an ``.npz`` file.
        prefix: of file names, before the key.
        normalise: whether rows are L2-normalised.
    """

    folders: tuple[Path, ...]
    array: str = VIDEO_ARRAY
    prefix: str = ""
    normalise: bool = True

    @cached_property
    def dim(self) -> int:
        """Sum of the widths of the folders, taken from the first file in each."""
        return sum(self._width(folder) for folder in self.folders)

    def read(self, key: str) -> NDArray[np.float32]:
        """Features of one video or query, ``(T, D)`` float32.

        Raises:
            DataError: every folder whose file is missing, damaged, mis-shaped or not finite, or a key that
                is no plain file name.
        """
        parts: list[NDArray[np.float32]] = []
        problems: list[Problem] = []
        for folder in self.folders:
            try:
                rows = self.file(folder, key).astype(np.float32)
                parts.append(l2_normalised(rows) if self.normalise else rows)
            except DataError as error:
                problems.extend(error.problems)
        if problems:
            raise DataError(problems)
        length = min(len(part) for part in parts)
        return np.concatenate([part[:length] for part in parts], axis=1)

    def file(self, folder: Path, key: str) -> NDArray[Any]:
        """The array of one key in one folder, unchanged, ``(T, D)``.

        Raises:
            DataError: as `read` does.
        """
        if not key or any(character in key for character in "/\\:\0"):
            raise _fail(folder, f"key {shorten(key)} is no file name; expected one without separators")
        name = f"{self.prefix}{key}"
        if folder.suffix in HDF5_SUFFIXES:
            path, array = folder, read_hdf5(folder, name, self.array)
        else:
            paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
            path, *others = [path for path in paths if path.exists()] or paths[:1]
            try:
                array = read_array(path, self.array)
            except DataError as error:
                raise (error.advised(f"remove it to read {others[0].name}") if others else error) from error
        if problem := array_problem(array):
            raise _fail(path, problem)
        return array

    def _width(self, folder: Path) -> int:
        names = file_keys(folder, self.prefix)
        if not names:
            raise _fail(folder, f"holds no {self.prefix}* file of features; expected {', '.join(SUFFIXES)}")
        return int(self.file(folder, names[0]).shape[1])


def _fail(path: PathLike, message: str) -> DataError:
    return DataError(Problem(str(path), None, None, message))


def make_parser() -> argparse.ArgumentParser:
    """The parser of `vmr-env encode features`."""
    parser = argparse.ArgumentParser(
        prog="vmr-env encode features",
        description="Copy feature files of the official layout into a feature store.",
    )
    parser.add_argument(
        "annotations", type=Path, nargs="+", help="json lines that name the videos and queries"
    )
    parser.add_argument(
        "--kind", choices=("video", "text"), required=True, help="files per video or per query"
    )
    parser.add_argument("--folder", type=Path, action="append", required=True, help="repeat in channel order")
    parser.add_argument("--prefix", default=None, help="of text file names (default: qid; TACoS has none)")
    parser.add_argument("--array", default=None, help=f"array name (default: {VIDEO_ARRAY} or {TEXT_ARRAY})")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new feature store")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: copy feature files of the official layout into a feature store."""
    options = make_parser().parse_args(arguments)
    rows = [row for path in options.annotations for row in read_annotations(path, past_end="keep")]
    text = options.kind == "text"
    features = OfficialFeatures(
        folders=tuple(options.folder),
        array=options.array or (TEXT_ARRAY if text else VIDEO_ARRAY),
        prefix=(options.prefix if options.prefix is not None else "qid") if text else "",
    )
    keys = list(dict.fromkeys(str(row.qid) if text else row.vid for row in rows))
    origin = {"features": [folder.name for folder in options.folder], "layout": "official"}
    bar = tqdm(keys, desc="import", unit="file")
    store = import_features(options.out, features, bar, source="real", origin=origin)
    print(f"{options.out}: {len(store)} arrays of width {store.dim}")


if __name__ == "__main__":
    run_program(main)
