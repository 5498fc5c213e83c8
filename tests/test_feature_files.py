"""Feature files of other people: every kind gives the same rows, safely, and transposed ones are named."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from vmr_env.backbones.dataset import DatasetSettings, MomentDataset
from vmr_env.backbones.features.official import OfficialFeatures
from vmr_env.backbones.features.store import FeatureStore, FeatureStoreWriter
from vmr_env.benchmarks.cli import main as cli
from vmr_env.data.annotations import Annotation
from vmr_env.errors import DataError

ROWS = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


def hdf5(path: Path, arrays: dict[str, NDArray[Any]], group: str | None = None) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key if group is None else f"{key}/{group}"] = array
    return path


def save(folder: Path, kind: str, key: str, array: NDArray[Any]) -> Path:
    """The features in a file of a kind; what a reader is given for its folder."""
    if kind == "npz":
        np.savez(folder / f"{key}.npz", features=array)
    elif kind == "npy":
        np.save(folder / f"{key}.npy", array)
    elif kind == "pt":
        torch.save(torch.from_numpy(array), folder / f"{key}.pt")
    elif kind == "pt dict":
        torch.save({"features": torch.from_numpy(array), "name": "x"}, folder / f"{key}.pt")
    elif kind == "h5":
        return hdf5(folder / "all.h5", {key: array})
    else:
        return hdf5(folder / "all.h5", {key: array}, "features")
    return folder


@pytest.mark.parametrize("kind", ["npz", "npy", "pt", "pt dict", "h5", "h5 group"])
@pytest.mark.parametrize("leading", [False, True])
def test_every_kind_gives_the_same_rows(tmp_path: Path, kind: str, leading: bool) -> None:
    folder = save(tmp_path, kind, "v", ROWS[None] if leading else ROWS)
    features = OfficialFeatures((folder,), normalise=False)
    assert features.dim == 5
    np.testing.assert_array_equal(features.read("v"), ROWS)
    told = CliRunner().invoke(cli.main, ["validate", "features", str(folder)])
    assert (told.exit_code, told.output) == (0, "0 errors, 0 warnings\n")


def test_half_precision_of_torch_is_read(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(ROWS).bfloat16(), tmp_path / "v.pt")
    read = OfficialFeatures((tmp_path,), normalise=False).read("v")
    np.testing.assert_array_equal(read, torch.from_numpy(ROWS).bfloat16().float().numpy())


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder / "harm"),)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "v.pt").write_bytes(pickle.dumps(Harm(tmp_path)))
    torch.save({"features": Harm(tmp_path)}, tmp_path / "w.pt")
    for key in ("v", "w"):
        with pytest.raises(DataError, match="is no file of plain tensors"):
            OfficialFeatures((tmp_path,)).read(key)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 7, 5), np.float32), "has shape (2, 7, 5); expected (rows, width)"),
        (np.zeros(5, np.float32), "has shape (5,); expected (rows, width)"),
        (np.zeros((7, 5), np.int64), "has dtype int64; expected floating point"),
        (np.full((7, 5), np.nan, np.float32), "expected finite numbers"),
        (np.zeros((7, 6), np.float32), "which looks like (D, T); expected (T, D)"),
        (np.zeros((8, 6), np.float32), "has width 6; expected 5"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "pt"])
def test_what_is_wrong_is_named_by_validate(
    tmp_path: Path, kind: str, array: NDArray[Any], says: str
) -> None:
    save(tmp_path, kind, "a", ROWS)
    save(tmp_path, kind, "b", array)
    told = CliRunner().invoke(cli.main, ["validate", "features", str(tmp_path)])
    assert told.exit_code == 1
    assert says in told.output
    assert "array(" not in told.output


def test_damaged_and_missing_hdf5(tmp_path: Path) -> None:
    good = hdf5(tmp_path / "a.h5", {"v": ROWS})
    with pytest.raises(DataError, match="has no features for 'w'; it begins with"):
        OfficialFeatures((good,)).read("w")
    (tmp_path / "b.h5").write_text("nothing")
    with pytest.raises(DataError, match="is no readable HDF5 file"):
        OfficialFeatures((tmp_path / "b.h5",)).read("v")


def test_a_store_refuses_transposed_arrays(tmp_path: Path) -> None:
    def fill(arrays: list[NDArray[Any]]) -> FeatureStore:
        with FeatureStoreWriter(tmp_path / "store", source="real", origin={}) as writer:
            for number, array in enumerate(arrays):
                writer.add(str(number), array)
        return FeatureStore(tmp_path / "store")

    with pytest.raises(
        DataError, match=r"has shape \(512, 28\) beside \(512, 30\), which looks like \(D, T\)"
    ):
        fill([np.ones((512, 30)), np.ones((512, 28))])
    assert fill([np.ones((30, 512)), np.ones((28, 512))]).dim == 512


def test_transposed_features_are_named_by_their_video_s_length(tmp_path: Path) -> None:
    for vid, shape in {"a": (30, 64), "b": (64, 30), "c": (60, 64)}.items():
        np.save(tmp_path / f"{vid}.npy", np.ones(shape, np.float32))
    np.save(tmp_path / "qid1.npy", ROWS)
    rows = [Annotation(1, vid, "q", 30.0, np.array([[1.0, 5.0]])) for vid in "abc"]
    clips, tokens = OfficialFeatures((tmp_path,)), OfficialFeatures((tmp_path,), prefix="qid")
    dataset = MomentDataset(rows, clips, tokens, DatasetSettings(clip_seconds=1, max_clips=75))
    transposed, twice = dataset.problems()
    assert transposed.field == "b"
    assert "has shape (64, 30) for 30 s, which looks like (D, T); expected (T, D)" in transposed.message
    assert twice.field == "c"
    assert "has 60 rows, 60 s; the annotation says 30 s" in twice.message
