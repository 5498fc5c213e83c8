"""Feature files of the official layout that are damaged or hostile: each is one `DataError` with its name."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vmr_env.backbones.features.official import OfficialFeatures, read_array
from vmr_env.errors import DataError


def _archive(path: Path, member: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("features.npy", member)
    return path


def _npy(shape: str, body: bytes) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", ["npy", "npz", "compressed"])
def test_whole_files_are_read_as_numpy_reads_them(tmp_path: Path, save: str, order: str) -> None:
    array = np.asarray(np.random.default_rng(0).normal(size=(7, 5)), dtype=np.float16, order=order)
    path = tmp_path / f"v.{'npy' if save == 'npy' else 'npz'}"
    if save == "npy":
        np.save(path, array)
    else:
        (np.savez if save == "npz" else np.savez_compressed)(path, features=array)
    read = read_array(path, "features")
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    "shape", ["(100000000, 1000000000)", "(3, 4)", "(-1, 4)", "(1, 4)", "(10**9,)", "(2,"]
)
def test_shapes_that_the_bytes_do_not_fill_are_refused(tmp_path: Path, shape: str) -> None:
    path = _archive(tmp_path / "v.npz", _npy(shape, bytes(32)))
    with pytest.raises(DataError, match=r"v\.npz"):
        read_array(path, "features")


def test_mutated_archives_are_refused_or_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, features=np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32))
    good = buffer.getvalue()
    path = tmp_path / "v.npz"
    refused = 0
    for position in range(len(good)):
        for value in (good[position] ^ 0xFF, good[position] ^ 1):
            path.write_bytes(good[:position] + bytes([value]) + good[position + 1 :])
            try:
                read_array(path, "features")
            except DataError as error:
                refused += str(path) in str(error)
    assert refused > len(good) // 2


@pytest.mark.parametrize("absolute", [False, True])
def test_keys_do_not_leave_the_folder(tmp_path: Path, absolute: bool) -> None:
    (tmp_path / "clips").mkdir()
    np.savez(tmp_path / "secret.npz", features=np.ones((2, 2), np.float32))
    np.savez(tmp_path / "clips" / "v_60.0_210.0.npz", features=np.ones((2, 2), np.float32))
    features = OfficialFeatures((tmp_path / "clips",))
    assert features.read("v_60.0_210.0").shape == (2, 2)
    with pytest.raises(DataError, match="file name"):
        features.read(str(tmp_path / "secret") if absolute else "../secret")


def test_a_damaged_archive_beside_a_good_array_says_how_to_read_that(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((2, 3), np.float32))
    (tmp_path / "v.npz").write_bytes(b"PK damaged")
    features = OfficialFeatures((tmp_path,), normalise=False)
    with pytest.raises(DataError, match=r"v\.npz: is no readable array file .*; remove it to read v\.npy"):
        features.read("v")
    (tmp_path / "v.npz").unlink()
    assert features.read("v").tolist() == [[1, 1, 1], [1, 1, 1]]
