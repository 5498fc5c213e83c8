"""Broken caches, broken batches and bad arguments: one clear error each, nothing left behind."""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from caches import ARGUMENTS, make_cache, random_batch

from vmr_env.caches.reader import (
    CacheBatch,
    CacheWriter,
    DecoderStateCache,
    Ragged,
    split_by_video,
    video_folds,
    write_cache,
)
from vmr_env.errors import DataError

Break = Callable[[Path], object]


def sign(path: Path) -> None:
    """Make the manifest agree with the files as they are, as a forger would."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name in manifest["files"]:
        raw = (path / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (path / "manifest.json").write_text(json.dumps(manifest))


def put(name: str, array: Any, **options: Any) -> Break:
    """Replace one array by another; the manifest is signed again."""

    def apply(path: Path) -> None:
        np.save(path / f"{name}.npy", array, **options)
        sign(path)

    return apply


def change(name: str, edit: Callable[[Any], object]) -> Break:
    """Edit one array in place; the manifest is signed again."""

    def apply(path: Path) -> None:
        array = np.load(path / f"{name}.npy")
        edit(array)
        np.save(path / f"{name}.npy", array)
        sign(path)

    return apply


def table(edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Break:
    """Edit the table; the manifest is signed again."""

    def apply(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = pq.read_table(path / "samples.parquet")
        edited = edit(rows.to_pandas())
        fields = [field for field in rows.schema if field.name in edited]
        pq.write_table(pa.Table.from_pandas(edited, pa.schema(fields)), path / "samples.parquet")
        sign(path)

    return apply


def manifest(**changes: Any) -> Break:
    """Change keys of the manifest; None removes one."""

    def apply(path: Path) -> None:
        raw = json.loads((path / "manifest.json").read_text()) | changes
        kept = {key: value for key, value in raw.items() if value is not None or key == "d"}
        (path / "manifest.json").write_text(json.dumps(kept))

    return apply


def listed(name: str) -> Break:
    """Add a file name to the manifest, with a valid entry."""

    def apply(path: Path) -> None:
        raw = json.loads((path / "manifest.json").read_text())
        raw["files"][name] = {"sha256": "0" * 64, "bytes": 4}
        (path / "manifest.json").write_text(json.dumps(raw))

    return apply


def write(name: str, content: bytes, signed: bool = True) -> Break:
    def apply(path: Path) -> None:
        (path / name).write_bytes(content)
        if signed:
            sign(path)

    return apply


def remove(name: str) -> Break:
    return lambda path: (path / name).unlink()


def cut(name: str, keep: float) -> Break:
    def apply(path: Path) -> None:
        raw = (path / name).read_bytes()
        (path / name).write_bytes(raw[: int(len(raw) * keep)])

    return apply


def instead(name: str, make: Callable[[Path], object]) -> Break:
    """Put something that is no file where a file was."""

    def apply(path: Path) -> None:
        (path / name).unlink()
        make(path / name)

    return apply


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("spans.npy", npy("{}"))
    return buffer.getvalue()


def set_item(index: Any, value: Any) -> Callable[[Any], object]:
    return lambda array: array.__setitem__(index, value)


ON_OPENING: dict[str, tuple[Break, str, str]] = {
    # what is broken: (how, file named by the error, words of the error)
    "manifest missing": (remove("manifest.json"), "manifest.json", "is missing"),
    "manifest is a folder": (instead("manifest.json", Path.mkdir), "manifest.json", "not a regular file"),
    "manifest is a pipe": (instead("manifest.json", os.mkfifo), "manifest.json", "not a regular file"),
    "manifest empty": (write("manifest.json", b"", False), "manifest.json", "empty"),
    "manifest binary": (write("manifest.json", b"\xff\x00\x80", False), "manifest.json", "UTF-8"),
    "manifest cut": (cut("manifest.json", 0.5), "manifest.json", "not JSON"),
    "manifest with NaN": (write("manifest.json", b'{"version": NaN}', False), "manifest.json", "not JSON"),
    "manifest nested": (write("manifest.json", b"[" * 99999, False), "manifest.json", "not JSON"),
    "manifest a list": (write("manifest.json", b"[1]", False), "manifest.json", "JSON object"),
    "other format": (manifest(format="zarr"), "manifest.json", "format: 'zarr', expected 'vmr-env-cache'"),
    "newer version": (manifest(version=2), "manifest.json", "version: 2, expected version 1"),
    "version true": (manifest(version=True), "manifest.json", "version: True"),
    "unknown source": (
        manifest(source="guessed"),
        "manifest.json",
        "source: 'guessed', expected one of real",
    ),
    "source a list": (manifest(source=["real"]), "manifest.json", "source"),
    "unknown dataset": (
        manifest(dataset="tvsum"),
        "manifest.json",
        "dataset: 'tvsum', expected one of charades",
    ),
    "no models": (manifest(models=[]), "manifest.json", "models"),
    "two models of one name": (manifest(models=["a", "a"]), "manifest.json", "models"),
    "257 models": (manifest(models=list(map(str, range(257)))), "manifest.json", "models"),
    "control characters in a model": (manifest(models=["a\x1b[2J", "b"]), "manifest.json", "models"),
    "half a character in a feature": (manifest(features=["\ud800"]), "manifest.json", "features"),
    "control characters in the split": (
        manifest(split="a\x07"),
        "manifest.json",
        "split: 'a.*x07'",
    ),
    "key missing": (manifest(split=None), "manifest.json", "split: is missing"),
    "key unknown": (manifest(extra=1), "manifest.json", "extra: is no known key"),
    "no samples": (manifest(samples=0), "manifest.json", "samples: 0"),
    "samples a float": (manifest(samples=7.0), "manifest.json", "samples: 7.0"),
    "endless clips": (
        manifest(clip_seconds=1e300),
        "manifest.json",
        "clip_seconds: 1e.300, expected seconds",
    ),
    "negative clip length": (manifest(clip_seconds=-1), "manifest.json", "clip_seconds: -1"),
    "clip length a text": (manifest(clip_seconds="1"), "manifest.json", "clip_seconds: '1'"),
    "other type": (manifest(dtype="float16"), "clips.values.npy", "holds <f4 .* expected <f2"),
    "object type": (manifest(dtype="object"), "manifest.json", "dtype: 'object'"),
    "short checksum": (manifest(backbone={"kind": "x", "sha256": "abc"}), "manifest.json", "backbone"),
    "files a list": (manifest(files=[]), "manifest.json", "files"),
    "file outside": (listed("../../etc/passwd"), "manifest.json", "no file of such a cache"),
    "file by full path": (listed("/etc/passwd"), "manifest.json", "no file of such a cache"),
    "file unknown": (listed("extra.npy"), "manifest.json", "no file of such a cache"),
    "file list wants spans": (manifest(files={}), "manifest.json", "files.spans.npy: is missing"),
    "clips without width": (manifest(dims={}), "manifest.json", "no file of such a cache"),
    "states without width": (manifest(d=None), "manifest.json", "files.'states.npy': is no file"),
    "array missing": (remove("spans.npy"), "spans.npy", "is missing"),
    "table missing": (remove("samples.parquet"), "samples.parquet", "is missing"),
    "array a folder": (instead("scores.npy", Path.mkdir), "scores.npy", "not a regular file"),
    "array a pipe": (instead("scores.npy", os.mkfifo), "scores.npy", "not a regular file"),
    "array a dead link": (instead("scores.npy", lambda p: p.symlink_to("gone")), "scores.npy", "missing"),
    "array a link to itself": (
        instead("scores.npy", lambda p: p.symlink_to(p)),
        "scores.npy",
        "cannot be read",
    ),
    "array cut": (cut("spans.npy", 0.9), "spans.npy", "bytes, expected"),
    "array cut in header": (cut("spans.npy", 0.1), "spans.npy", "bytes, expected"),
    "array cut and signed": (
        lambda p: (cut("spans.npy", 0.5)(p), sign(p)),
        "spans.npy",
        "has 176 bytes, expected 352",
    ),
    "array too long": (
        lambda p: write("counts.npy", (p / "counts.npy").read_bytes() + b"1")(p),
        "counts.npy",
        "bytes",
    ),
    "table cut": (cut("samples.parquet", 0.5), "samples.parquet", "bytes, expected"),
    "no array at all": (write("text.npy", b"hello"), "text.npy", "does not begin like"),
    "zip for npy": (write("spans.npy", zipped()), "spans.npy", "does not begin like"),
    "pickle for npy": (
        put("scores", np.array([{}], object), allow_pickle=True),
        "scores.npy",
        r"holds \|O \(1\), expected <f4",
    ),
    "header is code": (write("text.npy", npy("__import__('os').abort()")), "text.npy", "does not begin like"),
    "header nested": (write("text.npy", npy("(" * 116)), "text.npy", "does not begin like"),
    "huge shape": (
        write(
            "text.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (7, 461168601842738790), }")
        ),
        "text.npy",
        "holds <f4",
    ),
    "negative shape": (
        write("text.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-7, 3)}", b"0" * 84)),
        "text.npy",
        "does not begin like",
    ),
    "float64": (
        put("scores", np.zeros((7, 4))),
        "scores.npy",
        r"<f8 \(7, 4\), expected <f4 \(7, 4\)",
    ),
    "big endian": (put("scores", np.zeros((7, 4), ">f4")), "scores.npy", "expected <f4"),
    "structured": (put("scores", np.zeros((7, 4), "f4,f4")), "scores.npy", "does not begin like"),
    "one sample less": (
        put("counts", np.ones(6, np.int32)),
        "counts.npy",
        r"<i4 \(6\), expected <i4 \(7\)",
    ),
    "one axis less": (
        put("spans", np.zeros((7, 8), np.float32)),
        "spans.npy",
        r"expected <f4 \(7, 4, 2\)",
    ),
    "other width": (put("text", np.zeros((7, 9), np.float32)), "text.npy", r"expected <f4 \(7, 3\)"),
    "half the width of states": (manifest(d=3), "states.npy", r"expected <f4 \(7, 4, 3\)"),
    "Fortran order": (
        put("spans", np.asfortranarray(np.zeros((7, 4, 2), np.float32))),
        "spans.npy",
        "Fortran order",
    ),
    "offsets start late": (change("moments.offsets", set_item(0, 1)), "moments.offsets.npy", "runs from 1"),
    "offsets end late": (change("clips.offsets", set_item(-1, 10**6)), "clips.offsets.npy", "to 1000000"),
    "values missing": (
        put("saliency.values", np.zeros(3, np.float32)),
        "saliency.offsets.npy",
        "expected 0 to 3",
    ),
}

WHEN_VERIFIED: dict[str, tuple[Break, str, str]] = {
    "offsets fall": (change("moments.offsets", set_item(2, 99)), "moments.offsets.npy", "falls"),
    "NaN in spans": (change("spans", set_item((3, 0), np.nan)), "", "row 4, spans"),
    "infinite span": (change("spans", set_item((3, 0, 1), np.inf)), "", "row 4, spans"),
    "reversed span": (change("spans", set_item((3, 0), (0.9, 0.1))), "", "row 4, spans"),
    "span past the end": (change("spans", set_item((3, 0), (0.9, 1.1))), "", "row 4, spans"),
    "NaN in scores": (change("scores", set_item((2, 0), np.nan)), "", "row 3, scores"),
    "score of 2": (change("scores", set_item((2, 0), 2)), "", "row 3, scores"),
    "no proposal": (change("counts", set_item(1, 0)), "", "row 2, counts: 0, expected 1 to 4 proposals"),
    "too many proposals": (change("counts", set_item(1, 5)), "", "row 2, counts: 5"),
    "padding not zero": (change("counts", set_item(slice(None), 1)), "", "zeros after the last proposal"),
    "model out of range": (change("models", set_item((0, 0), 2)), "", "row 1, models"),
    "NaN in states": (change("states", set_item((6, 0, 5), np.nan)), "", "row 7, states"),
    "NaN in clips": (change("clips.values", set_item((-1, 0), np.nan)), "", "row 7, clips"),
    "NaN in saliency": (change("saliency.values", set_item(0, np.nan)), "", "row 1, saliency"),
    "infinite text": (change("text", set_item((0, 0), np.inf)), "", "row 1, text"),
    "other duration": (change("durations", set_item(0, 1)), "durations.npy", "differs from samples.parquet"),
    "other moments": (change("moments.values", set_item(0, (0, 1))), "moments.values.npy", "differs"),
    "table with fewer rows": (table(lambda t: t[:-1]), "samples.parquet", "6 rows, expected 7"),
    "table without a column": (table(lambda t: t.drop(columns="vid")), "samples.parquet", "has columns qid"),
    "no table": (write("samples.parquet", b"PAR1" * 9), "samples.parquet", "no readable table"),
    "qid twice": (
        table(lambda t: t.assign(qid="same", qid_is_int=False)),
        "samples.parquet",
        "row 2, qid: 'same' appears twice",
    ),
    "null duration": (table(lambda t: t.assign(duration=None)), "", "durations: nan, expected seconds from"),
    "null vid": (table(lambda t: t.assign(vid=None)), "", "row 1, vids: None"),
    "moment past the end": (table(lambda t: t.assign(duration=0.5)), "", "moments"),
    "moment of three": (
        table(lambda t: t.assign(moments=[[[1.0, 2.0, 3.0]]] * 7)),
        "samples.parquet",
        "no readable table",
    ),
    "qid no int": (table(lambda t: t.assign(qid_is_int=True)), "samples.parquet", "no readable table"),
    "clips not counted": (table(lambda t: t.assign(n_clips=3)), "", "one value per clip"),
}


def assert_refused(path: Path, file: str, words: str, use: Callable[[DecoderStateCache], object]) -> None:
    with pytest.raises(DataError, match=words) as caught:
        use(DecoderStateCache.open(path))
    assert {problem.where for problem in caught.value.problems} >= {str(path / file)}


@pytest.mark.parametrize("name", ON_OPENING)
def test_a_broken_cache_is_refused_on_opening(tmp_path: Path, name: str) -> None:
    path = make_cache(tmp_path / "c", full=True)
    apply, file, words = ON_OPENING[name]
    apply(path)
    assert_refused(path, file, words, lambda cache: pytest.fail("opened"))


@pytest.mark.parametrize("name", WHEN_VERIFIED)
def test_a_forged_cache_is_refused_when_verified(tmp_path: Path, name: str) -> None:
    path = make_cache(tmp_path / "c", full=True)
    apply, file, words = WHEN_VERIFIED[name]
    apply(path)
    assert_refused(path, file, words, DecoderStateCache.verify)


@pytest.mark.parametrize("place", ["missing", "file", "empty", "gone/missing", "a\0b", "x" * 999])
def test_a_path_that_is_no_cache_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("{}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"does not exist|is a file|manifest\.json: is missing|is no path"):
        DecoderStateCache.open(tmp_path / place)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user whom the rights of files bind: root gives its own up for the test."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        user = os.geteuid()
        folder.chmod(0o777)
        os.seteuid(user or 65534)
        yield folder
        os.seteuid(user)


@pytest.mark.parametrize("name", ["manifest.json", "spans.npy", "."])
def test_a_cache_without_permission_is_refused(unprivileged: Path, name: str) -> None:
    path = make_cache(unprivileged / "c")
    (path / name).chmod(0)
    with pytest.raises(DataError, match=r"cannot be read.*denied"):
        DecoderStateCache.open(path)


def test_a_folder_that_cannot_be_written_is_refused(unprivileged: Path) -> None:
    closed = unprivileged / "closed"
    closed.mkdir(mode=0o555)
    with pytest.raises(DataError, match=r"cannot be written.*denied"):
        make_cache(closed / "c")


def batch(**changes: Any) -> CacheBatch:
    return replace(random_batch(4, full=True), **changes)


def edited(name: str, index: Any, value: Any) -> CacheBatch:
    array = np.array(getattr(random_batch(4, full=True), name), dtype=np.float64)
    array[index] = value
    return batch(**{name: array})


GOOD = random_batch(4, full=True)
MOMENTS = [GOOD.moments[i] for i in range(4)]


def moment(start: float, end: float) -> CacheBatch:
    return batch(moments=Ragged.from_rows([*MOMENTS[:3], [[start, end]]]))


BATCHES: dict[str, tuple[CacheBatch, str]] = {
    "no samples": (replace(GOOD, qids=[]), "holds no samples"),
    "fewer vids": (batch(vids=["v"]), "vids: has 1 entries, expected 4"),
    "fewer spans": (
        batch(spans=GOOD.spans[:3]),
        r"spans: has shape \(3, 4, 2\), expected float32 \(4, any, 2\)",
    ),
    "no proposals": (batch(spans=GOOD.spans[:, :0]), "spans: has shape"),
    "spans of three": (batch(spans=np.zeros((4, 4, 3))), "spans: has shape"),
    "spans of texts": (batch(spans=np.full((4, 4, 2), "x")), "spans: holds <U1"),
    "complex scores": (batch(scores=np.zeros((4, 4), complex)), "scores: holds complex128"),
    "boolean scores": (batch(scores=np.zeros((4, 4), bool)), "scores: holds bool"),
    "pickled states": (batch(states=np.full((4, 4, 6), None)), "states: holds object"),
    "float counts": (batch(counts=np.ones(4)), "counts: holds float64"),
    "counts beyond int32": (batch(counts=np.full(4, 2**32 + 1)), "counts: 4294967297 does not fit int32"),
    "model 256": (batch(models=np.full((4, 4), 256)), "models: 256 does not fit uint8"),
    "NaN span": (edited("spans", (2, 0, 0), np.nan), "row 3, spans"),
    "reversed span": (
        edited("spans", (2, 0), (0.5, 0.25)),
        r"row 3, spans: .*expected 0 <= start <= end <= 1",
    ),
    "score above 1": (edited("scores", (1, 0), 1.5), "row 2, scores"),
    "negative score": (edited("scores", (1, 0), -0.5), "row 2, scores"),
    "padding used": (edited("scores", (slice(None), 3), 0.5), "zeros after the last proposal"),
    "overflow": (edited("states", (0, 0, 0), 1e300), "row 1, states: .*expected finite float32"),
    "infinite duration": (edited("durations", 0, np.inf), "row 1, durations: inf"),
    "zero duration": (edited("durations", 0, 0), "row 1, durations: 0.0"),
    "negative moment": (moment(-1, 2), "row 4, moments: .*in seconds"),
    "empty moment": (moment(2, 2), "row 4, moments"),
    "reversed moment": (moment(3, 2), "row 4, moments"),
    "moment past the end": (moment(1, 1000), "row 4, moments"),
    "NaN moment": (moment(1, np.nan), "row 4, moments"),
    "sample without moment": (
        batch(moments=Ragged.from_rows([*MOMENTS[:3], np.zeros((0, 2))])),
        "row 4, moments: 0, expected at least 1 moment",
    ),
    "offsets that fall": (
        batch(moments=Ragged(np.ones((4, 2)), np.array([0, 3, 1, 2, 4]))),
        "moments.offsets: .*expected a rise from 0 to 4",
    ),
    "saliency too short": (
        batch(saliency=Ragged.from_rows([np.ones(2)] * 4)),
        r"row 1, saliency: 2, expected one value per clip \(n_clips\) \(3 more samples likewise\)",
    ),
    "qid None": (batch(qids=[1, None, 2, 3]), "row 2, qids: None, expected an int or a non-empty text"),
    "qid bool": (batch(qids=[1, True, 2, 3]), "row 2, qids: True"),
    "qid twice by text": (batch(qids=[1, 2, "2", 3]), "row 3, qids: '2' appears twice"),
    "vid empty": (batch(vids=["a", "", "b", "c"]), "row 2, vids: ''"),
    "query half a character": (batch(queries=["a", "\ud800", "b", "c"]), "row 2, queries"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_broken_batch_is_refused_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    broken, words = BATCHES[name]
    with pytest.raises(DataError, match=words):
        write_cache(tmp_path / "c", broken, **ARGUMENTS)
    assert list(tmp_path.iterdir()) == []


ARGUMENT_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "dataset": ({"dataset": "tvsum"}, "argument, dataset: 'tvsum', expected one of charades"),
    "split": ({"split": ""}, "argument, split"),
    "source": ({"source": "magic"}, "argument, source: 'magic'"),
    "models": ({"models": []}, "argument, models"),
    "too many models": ({"models": [str(i) for i in range(300)]}, "argument, models"),
    "clip length": ({"clip_seconds": float("nan")}, "argument, clip_seconds: nan"),
    "dtype": ({"dtype": "int8"}, "argument, dtype: 'int8'"),
    "hash": ({"backbone_sha256": "0x12"}, "argument, backbone"),
    "notes": ({"notes": {"x": float("nan")}}, "argument, notes: are not JSON"),
    "notes of objects": ({"notes": {"x": object()}}, "argument, notes: are not JSON"),
}


@pytest.mark.parametrize("name", ARGUMENT_CHANGES)
def test_a_bad_argument_is_refused_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    changes, words = ARGUMENT_CHANGES[name]
    with pytest.raises(DataError, match=words):
        write_cache(tmp_path / "c", GOOD, **(ARGUMENTS | changes))
    assert list(tmp_path.iterdir()) == []


def test_batches_of_another_layout_or_with_known_qids_are_refused(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c", **ARGUMENTS) as writer:
        with pytest.raises(DataError, match="nothing was appended"):
            writer.finish()
        writer.append(random_batch(4))
        with pytest.raises(DataError, match=r"proposals=5.*expected.*proposals=4"):
            writer.append(random_batch(4, q=5, first=10))
        with pytest.raises(DataError, match="saliency=False"):
            writer.append(random_batch(4, saliency=False, first=10))
        with pytest.raises(DataError, match="row 5, qids: 'q2' appears twice"):
            writer.append(random_batch(4, first=2))
    with pytest.raises(RuntimeError, match="outside of its `with` block"):
        writer.append(random_batch(4))


def test_only_a_cache_is_ever_overwritten(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "manifest.json").write_text("[]")
    (tmp_path / "file").write_text("text")
    make_cache(tmp_path / "c")
    (tmp_path / "link").symlink_to(tmp_path / "c")
    for name in ("home", "json", "file", "link"):
        with pytest.raises(DataError, match="no decoder-state cache"):
            write_cache(tmp_path / name, GOOD, overwrite=True, **ARGUMENTS)
    with pytest.raises(DataError, match=r"--overwrite replaces it \(in Python: overwrite=True\)"):
        write_cache(tmp_path / "c", GOOD, **ARGUMENTS)
    with pytest.raises(DataError, match="cannot be written"):
        write_cache(tmp_path / "file" / "c", GOOD, **ARGUMENTS)
    assert len(DecoderStateCache.open(write_cache(tmp_path / "new" / "folders" / "c", GOOD, **ARGUMENTS)))
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_bad_folds_and_fractions_are_refused() -> None:
    vids = ["a", "b", "c"]
    for k, words in ((1, "at least 2 folds"), (4, "3 different videos, expected at least 4")):
        with pytest.raises(DataError, match=words):
            video_folds(vids, k, seed=0)
    for fractions in ({}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": float("nan"), "b": 0.5}):
        with pytest.raises(DataError, match="positive shares that add up to 1"):
            split_by_video(vids, fractions, seed=0)
    with pytest.raises(DataError, match="different videos"):
        split_by_video(["a"] * 9, {"train": 0.5, "test": 0.5}, seed=0)
