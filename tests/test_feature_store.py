"""The feature store: what goes in comes out, at once, and nothing broken is accepted or left behind."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmr_env.backbones.features.store import FeatureStore, FeatureStoreWriter, import_features
from vmr_env.errors import DataError

CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])


def build(path: Path, arrays: dict[str, np.ndarray], dtype: str = "float32") -> FeatureStore:
    with FeatureStoreWriter(path, source="real", origin={"made": "here"}, dtype=dtype) as writer:
        for key, array in arrays.items():
            writer.add(key, array)
    return FeatureStore(path)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        key: rng.standard_normal((len(key), 3)).astype(np.float32) for key in ("b", "ünï", "aa", "7", "10")
    }


@settings(max_examples=30, deadline=None)
@given(keys=st.lists(st.text(CHARACTERS, min_size=1), min_size=1, unique=True))
def test_any_keys_come_back(tmp_path_factory: pytest.TempPathFactory, keys: list[str]) -> None:
    wanted = {key: np.full((1 + i % 3, 2), i, np.float32) for i, key in enumerate(keys)}
    store = build(tmp_path_factory.mktemp("store") / "s", wanted)
    assert sorted(store) == sorted(keys)
    for key, array in wanted.items():
        np.testing.assert_array_equal(store.read(key), array)
        assert key in store
    assert "\0not there" not in store


def test_arrays_are_shared_read_only_maps(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    store = build(tmp_path / "s", arrays, "float16")
    view = store["ünï"]
    assert isinstance(view, np.memmap)
    assert view.dtype == np.float16
    assert not view.flags.writeable
    np.testing.assert_array_equal(store.read("ünï"), arrays["ünï"].astype(np.float16))
    assert (store.dim, len(store), store.source) == (3, 5, "real")
    assert store.manifest["origin"] == {"made": "here"}


def test_pickles_as_its_path(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    text = pickle.dumps(build(tmp_path / "s", arrays))
    assert len(text) < 1000
    np.testing.assert_array_equal(pickle.loads(text).read("aa"), arrays["aa"])


def test_opening_only_maps_files(
    tmp_path: Path, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "s", arrays)
    modes, load = [], np.load

    def recorded(*args: Any, **kwargs: Any) -> np.ndarray:
        modes.append(kwargs.get("mmap_mode"))
        array: np.ndarray = load(*args, **kwargs)
        return array

    monkeypatch.setattr(np, "load", recorded)
    FeatureStore(tmp_path / "s")
    assert modes == ["r", "r", "r"]


def test_equal_input_gives_equal_bytes(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Whatever the order in which the arrays come."""
    first = build(tmp_path / "1", arrays)
    second = build(tmp_path / "2", dict(reversed(arrays.items())))
    assert first.manifest == second.manifest


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3, np.float32), "shape"),
        (np.zeros((0, 3), np.float32), "shape"),
        (np.zeros((2, 0), np.float32), "shape"),
        (np.zeros((2, 3, 1), np.float32), "shape"),
        (np.zeros((2, 4), np.float32), "width 4; expected 3"),
        (np.zeros((2, 3), np.int64), "int64"),
        (np.zeros((2, 3), bool), "bool"),
        (np.array([["a", "b", "c"]]), "dtype"),
        (np.array([[0, np.nan, 0]], np.float32), "nan at row 0, column 1"),
        (np.array([[0, 0, 0], [0, 0, -np.inf]], np.float32), "-inf at row 1, column 2"),
        (np.array([[1e6, 0, 0]], np.float32), "inf at row 0, column 0"),  # too large for float16
    ],
)
def test_unusable_arrays_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        build(tmp_path / "s", {"good": np.zeros((1, 3), np.float32), "bad": array}, "float16")
    assert caught.value.problems[0].field == "'bad'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", "a"])
def test_unusable_keys_are_refused(tmp_path: Path, key: str) -> None:
    with FeatureStoreWriter(tmp_path / "s", source="real", origin={}) as writer:
        writer.add("a", np.zeros((1, 1), np.float32))
        with pytest.raises(DataError, match="key"):
            writer.add(key, np.zeros((1, 1), np.float32))


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got no arrays"):
        build(tmp_path / "s", {})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    build(tmp_path / "s", arrays)
    with pytest.raises(DataError, match="exists already"):
        build(tmp_path / "s", {"other": np.zeros((1, 1), np.float32)})
    np.testing.assert_array_equal(FeatureStore(tmp_path / "s").read("b"), arrays["b"])


def test_unknown_source_and_precision_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="real, annotation-derived, simulated"):
        FeatureStoreWriter(tmp_path / "s", source="guessed", origin={})
    with pytest.raises(ValueError, match="float16, float32"):
        FeatureStoreWriter(tmp_path / "s", source="real", origin={}, dtype="int8")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def edit(name: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        manifest = json.loads(path.read_text())
        manifest[name] = value
        path.write_text(json.dumps(manifest))

    return change


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("values.npy", truncate, "bytes; the manifest says"),
        ("offsets.npy", Path.unlink, "cannot be read"),
        ("keys.npy", lambda path: path.write_bytes(bytes(path.stat().st_size)), "no readable array"),
        ("manifest.json", Path.unlink, r"manifest\.json does not exist"),
        ("manifest.json", truncate, "is not JSON"),
        ("manifest.json", lambda path: path.write_text("[]"), "expected a JSON object"),
        ("manifest.json", edit("version", 2), "does not describe a feature store"),
        ("manifest.json", edit("dim", "3"), "dim: is '3'; expected an integer from 1"),
        ("manifest.json", edit("rows", 1), r"holds <f4 \(9, 3\); expected <f4 \(1, 3\)"),
        ("manifest.json", edit("arrays", 2), r"offsets.npy: holds <i8 \(6,\)"),
        ("manifest.json", edit("files", {}), "files: is"),
    ],
)
def test_a_damaged_store_is_refused(
    tmp_path: Path,
    arrays: dict[str, np.ndarray],
    file: str,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    build(tmp_path / "s", arrays)
    damage(tmp_path / "s" / file)
    with pytest.raises(DataError, match=message):
        FeatureStore(tmp_path / "s")


def test_changed_content_is_found_on_request(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    build(tmp_path / "s", arrays)
    path = tmp_path / "s" / "values.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    FeatureStore(tmp_path / "s")
    with pytest.raises(DataError, match=r"values\.npy: does not have the sha256"):
        FeatureStore(tmp_path / "s", checksums=True)


def test_a_missing_key_is_named(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match="has no features for 'zz'"):
        build(tmp_path / "s", arrays).read("zz")


def test_import_lists_every_missing_key_and_leaves_nothing(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    store = build(tmp_path / "s", arrays)
    with pytest.raises(DataError) as caught:
        import_features(tmp_path / "t", store, ["b", "x", "y"], source="real", origin={})
    assert len(caught.value.problems) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    copy = import_features(tmp_path / "t", store, ["b", "7"], source="simulated", origin={})
    np.testing.assert_array_equal(copy.read("7"), arrays["7"].astype(np.float16))


MANIFESTS: list[tuple[str, Any]] = [
    ("arrays", True),
    ("rows", 0),
    ("dim", -1),
    ("source", "guessed"),
    ("source", []),
    ("dtype", "int64"),
    ("origin", None),
    ("files", {}),
    ("files", {"values.npy": 1, "offsets.npy": 2, "keys.npy": 3}),
    ("more", 1),
]


@pytest.mark.parametrize(("key", "value"), MANIFESTS)
def test_every_key_of_a_manifest_is_checked(tmp_path: Path, key: str, value: Any) -> None:
    with FeatureStoreWriter(tmp_path / "s", source="real", origin={}) as writer:
        writer.add("a", np.ones((2, 3), np.float32))
    path = tmp_path / "s" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DataError, match=rf"manifest\.json, {key}"):
        FeatureStore(tmp_path / "s")


def test_offsets_beyond_the_values_are_refused(tmp_path: Path) -> None:
    with FeatureStoreWriter(tmp_path / "s", source="real", origin={}) as writer:
        for key in "abc":
            writer.add(key, np.ones((2, 3), np.float32))
    path = tmp_path / "s" / "offsets.npy"
    for offsets, says in (([0, 2, 4, 7], "runs from 0 to 7; expected 0 to 6"), ([0, 9, 4, 6], "rows 0 to 9")):
        np.save(path, np.array(offsets))
        with pytest.raises(DataError, match=says):
            FeatureStore(tmp_path / "s").read("a")
