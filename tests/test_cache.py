import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from caches import ARGUMENTS, make_cache, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmr_env.caches import table as cache_table
from vmr_env.caches import writer as cache_writer
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


def part(batch: CacheBatch, start: int, stop: int) -> CacheBatch:
    """Samples start to stop of a batch, cut field by field."""
    cut: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Ragged):
            cut[field.name] = Ragged.from_rows([value[i] for i in range(start, stop)])
        else:
            cut[field.name] = None if value is None else value[start:stop]
    return CacheBatch(**cut)


def assert_holds(cache: DecoderStateCache, batch: CacheBatch) -> None:
    """Every array and every row of the cache is the batch's."""
    for name in ("spans", "scores", "counts", "models", "n_clips", "states", "references", "text"):
        expected = getattr(batch, name)
        if expected is None:
            assert getattr(cache, name) is None
        else:
            np.testing.assert_array_equal(getattr(cache, name), expected)
    np.testing.assert_array_equal(cache.durations, batch.durations.astype(np.float32))
    for i in range(len(batch)):
        row = cache.sample(i)
        assert (row.qid, row.vid, row.query) == (batch.qids[i], batch.vids[i], batch.queries[i])
        assert type(row.qid) is type(batch.qids[i])
        assert (row.duration, row.n_clips) == (batch.durations[i], batch.n_clips[i])
        np.testing.assert_array_equal(row.moments, batch.moments[i])
        np.testing.assert_allclose(cache.moments[i] * batch.durations[i], batch.moments[i], rtol=1e-6)
        for name in ("saliency", "clips"):
            if getattr(batch, name) is not None:
                np.testing.assert_array_equal(getattr(cache, name)[i], getattr(batch, name)[i])


@pytest.mark.parametrize("full", [False, True])
def test_a_cache_gives_back_what_was_written(tmp_path: Path, full: bool) -> None:
    batch = random_batch(9, full=full)
    cache = DecoderStateCache.open(write_cache(tmp_path / "c", batch, notes={"cut": 3}, **ARGUMENTS))
    assert_holds(cache, batch)
    cache.verify()
    assert len(cache) == 9
    assert cache.manifest["notes"] == {"cut": 3}
    assert cache.manifest["d"] == (6 if full else None)
    assert cache.manifest["dims"] == ({"clips": 5, "text": 3} if full else {})
    assert cache.qids() == list(batch.qids)
    assert cache.vids() == list(batch.vids)
    assert "charades test" in repr(cache)


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 11), max_size=6), seed=st.integers(0, 99))
def test_batches_of_any_size_make_the_same_cache(
    tmp_path_factory: pytest.TempPathFactory, cuts: set[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("streamed")
    batch = random_batch(12, seed=seed, full=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_table, "ROWS_PER_GROUP", 5)
        with CacheWriter(folder / "parts", **ARGUMENTS) as writer:
            for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 12], strict=True):
                writer.append(part(batch, start, stop))
            writer.finish()
    cache = DecoderStateCache.open(folder / "parts")
    assert_holds(cache, batch)
    whole = write_cache(folder / "whole", batch, **ARGUMENTS)
    for path in whole.glob("*.npy"):
        assert path.read_bytes() == (folder / "parts" / path.name).read_bytes()


def test_samples_in_any_order_whatever_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_table, "ROWS_PER_GROUP", 3)
    monkeypatch.setattr(cache_table, "_GROUPS_KEPT", 2)
    batch = random_batch(14)
    with CacheWriter(tmp_path / "c", **ARGUMENTS) as writer:
        writer.append(batch)
        writer.finish()
    cache = DecoderStateCache.open(tmp_path / "c")
    for row in np.random.default_rng(0).integers(14, size=60).tolist():
        sample = cache.sample(row)
        assert (sample.qid, sample.vid, sample.query) == (
            batch.qids[row],
            batch.vids[row],
            batch.queries[row],
        )
        assert (sample.duration, sample.n_clips) == (batch.durations[row], batch.n_clips[row])
        np.testing.assert_array_equal(sample.moments, batch.moments[row])


def test_files_are_plain_numpy_and_parquet(tmp_path: Path) -> None:
    batch = random_batch(6, full=True)
    path = write_cache(tmp_path / "c", batch, dtype="float16", **ARGUMENTS)
    states = np.load(path / "states.npy")
    assert states.dtype == np.float16
    np.testing.assert_array_equal(states, np.asarray(batch.states, np.float16))
    np.save(tmp_path / "spans.npy", batch.spans)
    assert (path / "spans.npy").read_bytes() == (tmp_path / "spans.npy").read_bytes()
    table = pd.read_parquet(path / "samples.parquet")
    assert table["qid"].tolist() == [str(qid) for qid in batch.qids]
    assert [np.stack(rows).tolist() for rows in table["moments"]] == [
        batch.moments[i].tolist() for i in range(6)
    ]
    DecoderStateCache.open(path).verify()


def test_equal_input_gives_equal_arrays_and_checksums(tmp_path: Path) -> None:
    first, second = (make_cache(tmp_path / name) for name in "ab")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


def _root(array: Any) -> Any:
    """Whose memory an array shows."""
    return array if isinstance(array, np.memmap) else _root(array.base)


def test_arrays_are_read_only_memory_maps_shared_by_all_who_open_the_folder(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c")
    (tmp_path / "link").symlink_to(path)
    cache = DecoderStateCache.open(path)
    assert DecoderStateCache.open(tmp_path / "link") is cache
    assert DecoderStateCache.open(str(tmp_path / "x" / ".." / "c")) is cache
    assert isinstance(_root(cache.spans), np.memmap)
    assert type(cache.spans) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        cache.spans[0] = 0


def test_copies_share_the_maps_and_pickles_hold_only_the_path(tmp_path: Path) -> None:
    cache = DecoderStateCache.open(make_cache(tmp_path / "c", n=500))
    assert copy.copy(cache) is cache
    assert copy.deepcopy({"a": cache})["a"] is cache
    raw = pickle.dumps(cache)
    assert len(raw) < 1000
    assert pickle.loads(raw) is cache


def _sum_in_worker(raw: bytes) -> tuple[float, str]:
    cache = pickle.loads(raw)
    return float(cache.spans.sum()), cache.sample(2).query


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12 and later
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_worker_processes_open_the_cache_themselves(tmp_path: Path, method: str) -> None:
    cache = DecoderStateCache.open(make_cache(tmp_path / "c"))
    query = cache.sample(2).query
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_sum_in_worker, (pickle.dumps(cache),)) == (float(cache.spans.sum()), query)


def test_a_rewritten_cache_is_opened_anew_and_old_pickles_refuse_it(tmp_path: Path) -> None:
    old = DecoderStateCache.open(make_cache(tmp_path / "c", seed=1))
    before, raw = old.spans.copy(), pickle.dumps(old)
    write_cache(tmp_path / "c", random_batch(5, seed=2), overwrite=True, **ARGUMENTS)
    new = DecoderStateCache.open(tmp_path / "c")
    assert (len(old), len(new)) == (7, 5)
    np.testing.assert_array_equal(old.spans, before)  # its pages outlive the folder
    with pytest.raises(DataError, match="replaced by another cache"):
        pickle.loads(raw)


def test_opening_reads_neither_the_table_nor_the_arrays(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c", n=300)
    for name in ("samples.parquet", "scores.npy"):
        raw = bytearray((path / name).read_bytes())
        raw[len(raw) // 2 :] = bytes(len(raw) - len(raw) // 2)
        (path / name).write_bytes(raw)
    cache = DecoderStateCache.open(path)
    with pytest.raises(DataError, match=r"samples\.parquet: is no readable table"):
        cache.sample(0)
    with pytest.raises(DataError, match="sha256") as caught:
        cache.verify()
    assert {Path(problem.where).name for problem in caught.value.problems} == {
        "samples.parquet",
        "scores.npy",
    }
    with pytest.raises(DataError, match="sha256"):
        DecoderStateCache.open(path, checksums=True)


def test_samples_are_found_by_row_and_by_qid_text(tmp_path: Path) -> None:
    cache = DecoderStateCache.open(make_cache(tmp_path / "c"))
    assert cache.index_of(3) == cache.index_of("3") == 3
    assert cache.index_of("q2") == 2
    with pytest.raises(DataError, match="'q99' is none of the 7 query ids"):
        cache.index_of("q99")
    for row in (-1, 7):
        with pytest.raises(IndexError, match="0 to 6"):
            cache.sample(row)
    assert cache.sample(np.int64(6)).qid == "q6"  # type: ignore[arg-type]  # any integer will do


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_is_left_early_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with CacheWriter(tmp_path / "c", **ARGUMENTS) as writer:
            writer.append(random_batch(3))
            assert len(leftovers(tmp_path)) == 1
            raise error

    with pytest.raises(error):
        interrupted()
    assert leftovers(tmp_path) == []
    with CacheWriter(tmp_path / "c", **ARGUMENTS) as writer:
        writer.append(random_batch(3))
    assert leftovers(tmp_path) == []


def test_a_refused_batch_can_be_mended_and_appended(tmp_path: Path) -> None:
    good = random_batch(4)
    with CacheWriter(tmp_path / "c", **ARGUMENTS) as writer:
        with pytest.raises(DataError, match="n_clips"):
            writer.append(replace(random_batch(4, q=9), n_clips=np.zeros(4, int)))
        writer.append(good)
        writer.finish()
    assert_holds(DecoderStateCache.open(tmp_path / "c"), good)


def test_an_existing_cache_survives_a_failed_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_cache(tmp_path / "c", seed=1)
    before = (path / "manifest.json").read_bytes()
    rename = Path.rename

    def fail_on_publish(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(cache_writer.Path, "rename", fail_on_publish)
    with pytest.raises(DataError, match="disk on fire"):
        write_cache(path, random_batch(3), overwrite=True, **ARGUMENTS)
    assert leftovers(tmp_path) == ["c"]
    assert (path / "manifest.json").read_bytes() == before
    DecoderStateCache.open(path).verify()


def test_a_cache_that_appears_while_another_is_written_is_kept(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c", **ARGUMENTS) as writer:
        writer.append(random_batch(3))
        make_cache(tmp_path / "c", n=5)
        with pytest.raises(DataError, match="exists already"):
            writer.finish()
    assert len(DecoderStateCache.open(tmp_path / "c")) == 5
    assert leftovers(tmp_path) == ["c"]


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    path = make_cache(tmp_path / "c")
    assert path.stat().st_mode == plain.stat().st_mode
    (plain / "file").touch()
    assert {file.stat().st_mode for file in path.iterdir()} == {(plain / "file").stat().st_mode}


def test_the_manifest_carries_what_the_writer_was_told(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "c", random_batch(4, full=True), features=["clip", "blip"], **ARGUMENTS)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["backbone"] == {"kind": "girl-detr", "sha256": "a" * 64}
    assert (manifest["samples"], manifest["proposals"], manifest["features"]) == (4, 4, ["clip", "blip"])
    assert set(manifest["files"]) == {file for file in os.listdir(path) if file != "manifest.json"}


vid_lists = st.lists(st.integers(0, 30), min_size=8, max_size=200).filter(lambda x: len(set(x)) >= 5)


@given(numbers=vid_lists, k=st.integers(2, 5), seed=st.integers(0, 9))
def test_folds_never_share_a_video_and_are_balanced(numbers: list[int], k: int, seed: int) -> None:
    vids = [f"v{number}" for number in numbers]
    folds = video_folds(vids, k, seed)
    assert {len({fold for v, fold in zip(vids, folds, strict=True) if v == vid}) for vid in vids} == {1}
    sizes = np.bincount(folds, minlength=k)
    assert sizes.min() > 0
    # Largest first, each to the emptiest fold: folds differ by one video at most.
    assert sizes.max() - sizes.min() <= max(Counter(vids).values())
    order = np.random.default_rng(seed).permutation(len(vids))
    np.testing.assert_array_equal(video_folds([vids[i] for i in order], k, seed), folds[order])


def test_other_seeds_give_other_folds() -> None:
    vids = [f"v{i}" for i in range(50)]
    assert len({tuple(video_folds(vids, 5, seed).tolist()) for seed in range(10)}) == 10


@given(numbers=vid_lists, seed=st.integers(0, 9))
def test_splits_partition_the_samples_by_video(numbers: list[int], seed: int) -> None:
    vids = np.array([f"v{number}" for number in numbers])
    parts = split_by_video(vids.tolist(), {"train": 0.7, "val": 0.1, "test": 0.2}, seed)
    assert list(parts) == ["train", "val", "test"]
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(vids)))
    for a in parts:
        assert not any(set(vids[parts[a]]) & set(vids[parts[b]]) for b in parts if b != a)


def test_splits_have_their_shares_and_the_same_kind_of_videos() -> None:
    vids = [f"v{video}" for video in range(600) for _ in range(1 + video % 3)]
    parts = split_by_video(vids, {"train": 0.8, "test": 0.2}, seed=0)
    assert len(parts["test"]) == pytest.approx(0.2 * len(vids), abs=3)
    queries = Counter(Counter(vids[row] for row in parts["test"]).values())
    assert queries == pytest.approx({1: 40, 2: 40, 3: 40}, abs=2)


def test_a_folder_that_is_replaced_all_the_time_opens_as_one_cache(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c", n=5, seed=0)
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from caches import ARGUMENTS, random_batch
from vmr_env.caches.reader import write_cache
for i in range(1, 80):
    batch = random_batch(5 + i % 3, seed=i % 3, first=100 * (i % 3))
    write_cache({str(path)!r}, batch, overwrite=True, **ARGUMENTS)
"""
    opened = 0
    with subprocess.Popen([sys.executable, "-c", code]) as writer:
        while writer.poll() is None:
            cache = DecoderStateCache.open(path)
            seed = len(cache) - 5
            expected = random_batch(5 + seed, seed=seed, first=100 * seed)
            np.testing.assert_array_equal(cache.spans, expected.spans)
            assert cache.qids() == expected.qids  # the table, which is read later, is of the same cache
            opened += 1
            del cache
    assert writer.returncode == 0
    assert opened > 20


def test_a_folder_that_never_holds_still_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_cache(tmp_path / "c")
    moments = iter(range(999))
    monkeypatch.setattr("vmr_env.caches.reader._stamp", lambda folder: next(moments))
    with pytest.raises(DataError, match="was replaced 50 times while it was opened; open it again"):
        DecoderStateCache.open(path)
