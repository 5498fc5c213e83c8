"""Feature files in the official layout: an ``.npz`` (or ``.npy``) for each video and query.

    python -m vmr_env.backbones.features.official annotations.jsonl --kind video --folder clip --folder blip
    --out features/clips

copies such files into one feature store. Layout (GIRL-DETR specification, section 1.2):
``{folder}/{vid}.npz`` with array ``features`` or ``{folder}/{vid}.npy``; ``{folder}/qid{qid}.npz`` (TACoS:
``{folder}/{qid}.npz``) with array ``last_hidden_state``.
"""

import argparse
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from vmr_env.backbones.features.store import array_problem, import_features

from vmr_env.data.annotations import read_annotations
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import PathLike

VIDEO_ARRAY = "features"
TEXT_ARRAY = "last_hidden_state"
_NORM_FLOOR = 1e-5
_MAX_BYTES = 2**30  # of one array: a video of hours at 4,096 channels stays far below


def l2_normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row of ``(T, D)`` divided by its length plus 1e-5, as the official loader does."""
    lengths: NDArray[np.float32] = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / (lengths + np.float32(_NORM_FLOOR))


@dataclass(frozen=True)
class OfficialFeatures:
    """Features of the official layout, read by key (a vid or a qid) from one file per folder.

    The first `limit` rows of each file are L2-normalised on their own, all are cut to the shortest, and
    joined along the channels in the order of the folders.

    Attributes:
        folders: folders in channel order.
        array: name of the array in an ``.npz`` file.
        prefix: what stands before the key in file names.
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
                rows = self._file(folder, key).astype(np.float32)
                parts.append(l2_normalised(rows) if self.normalise else rows)
            except DataError as error:
                problems.extend(error.problems)
        if problems:
            raise DataError(problems)
        length = min(len(part) for part in parts)
        return np.concatenate([part[:length] for part in parts], axis=1)

    def _file(self, folder: Path, key: str) -> NDArray[Any]:
        if not key or any(character in key for character in "/\\:\0"):
            raise _fail(folder, f"key {shorten(key)} is no file name; expected one without separators")
        path = folder / f"{self.prefix}{key}.npz"
        if not path.exists() and path.with_suffix(".npy").exists():
            path = path.with_suffix(".npy")
        array = read_array(path, self.array)
        if problem := array_problem(array):
            raise _fail(path, problem)
        return array

    def _width(self, folder: Path) -> int:
        first = min(folder.glob(f"{self.prefix}*.np[yz]"), default=None)
        if first is None:
            raise _fail(folder, f"holds no {self.prefix}*.npz or .npy file")
        array = read_array(first, self.array)
        if problem := array_problem(array):
            raise _fail(first, problem)
        return int(array.shape[1])


def read_array(path: Path, name: str) -> NDArray[Any]:
    """One array of an ``.npz`` file, or the array of an ``.npy`` file; never unpickles.

    Memory is taken only for what the file holds: a shape that its bytes do not fill is refused first.

    Raises:
        DataError: the file is missing or damaged, has no array of that name, or one of more than 1 GiB.
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
    except FileNotFoundError:
        raise _fail(path, "does not exist, neither as .npz nor as .npy") from None
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


def _fail(path: PathLike, message: str) -> DataError:
    return DataError(Problem(str(path), None, None, message))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: copy feature files of the official layout into a feature store."""
    parser = argparse.ArgumentParser(
        prog="python -m vmr_env.backbones.features.official", description=main.__doc__
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
    options = parser.parse_args(arguments)
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
    main()
