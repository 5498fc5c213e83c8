"""Timelines: against plain Python, shared or of an episode's own, and what environments refuse."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
from caches import make_cache, random_batch
from refinement import environment, user_cache_in, written
from slow_timelines import slow_timeline_of
from walks import recorded

from vmr_env.caches.boundary_features import INSIDE_FEATURES, INTEGRALS, POINT_FEATURES, SPAN_FEATURES
from vmr_env.caches.reader import CacheBatch, DecoderStateCache, Ragged
from vmr_env.caches.writer import sha256_of
from vmr_env.envs import memory
from vmr_env.envs.config import EnvConfig, Task
from vmr_env.envs.env import VMREnv
from vmr_env.envs.timelines import empty_timelines, exponential, timeline_bytes
from vmr_env.errors import DataError

ROUNDING = 1e-6
INSIDE = slice(2 * INTEGRALS.start, 2 * INTEGRALS.start + len(INSIDE_FEATURES))
"""Columns of a proposal: differences of two integrals over a width that may be 1/128."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of the test's, with the user's cache folder in it."""
    with user_cache_in(tmp_path) as folder:
        yield folder


def extreme_batch() -> CacheBatch:
    """Samples with videos of one clip to 1,402, scores of 0 and 1, spans without width and as long as the
    video, one proposal, one model, and curves without spread or of a huge scale."""
    batch = random_batch(60, q=12, seed=5)
    rng = np.random.default_rng(5)
    clips = np.concatenate([[1, 2, 3, 256, 768, 1402], rng.integers(1, 400, 54)]).astype(np.int32)
    curves = [rng.normal(size=n).astype(np.float32) for n in clips]
    curves[6][:] = 0.1
    curves[7] *= np.float32(1e30)
    batch.spans[8, 0], batch.spans[9, 0], batch.spans[10, 0] = (0, 0), (0, 1), (1, 1)
    batch.spans[11, 0] = (0.5 / 128, 100.5 / 128)
    batch.scores[12], batch.scores[13, 0], batch.counts[14:17] = 0, 1, 1
    batch.models[17] = 0
    for values in (batch.spans, batch.scores, batch.models):
        values[np.arange(12) >= batch.counts[:, None]] = 0
    durations = clips.astype(np.float64)
    moments = Ragged(np.stack([0 * durations, durations], axis=1), np.arange(61))
    curves = Ragged.from_rows(curves)
    return replace(batch, durations=durations, n_clips=clips, moments=moments, saliency=curves)


@pytest.mark.parametrize("saliency", [True, False])
def test_timelines_are_those_of_plain_python(folder: Path, saliency: bool) -> None:
    batch = extreme_batch() if saliency else replace(extreme_batch(), saliency=None)
    cache = written(folder / "cache", batch)
    timelines = Task(EnvConfig(source=cache)).timelines(1)
    timelines.hold(np.zeros(len(cache), int), np.arange(len(cache)))
    assert timelines.shared
    found = timelines.rows
    for sample in range(len(cache)):
        slow = slow_timeline_of(cache, sample)
        points, padding = np.split(found.points[sample], [len(POINT_FEATURES)], axis=1)
        assert not padding.any()
        np.testing.assert_allclose(points, slow.points, atol=ROUNDING, err_msg=f"{sample}")
        proposals = found.proposals[sample][: 12 * len(SPAN_FEATURES)].reshape(12, -1).copy()
        assert not proposals[len(slow.proposals) :].any()
        of_slow = np.array(slow.proposals)
        inside = proposals[: len(of_slow), INSIDE]
        np.testing.assert_allclose(inside, of_slow[:, INSIDE], atol=128 * ROUNDING, err_msg=f"{sample}")
        proposals[:, INSIDE] = of_slow[:, INSIDE] = 0
        np.testing.assert_allclose(proposals[: len(of_slow)], of_slow, atol=ROUNDING, err_msg=f"{sample}")


def test_rows_begin_where_the_processor_fetches() -> None:
    memory = empty_timelines(3, 7, shared=True)
    for rows in (memory.points, memory.proposals):
        for row in rows.reshape(-1, rows.shape[-1]):
            assert row.ctypes.data % 64 == 0
    sizes = [rows[0].nbytes for rows in (memory.points, memory.proposals)]
    assert timeline_bytes(7) == sum(sizes)


def test_the_exponential_function_is_that_of_the_library() -> None:
    compiled = numba.njit(lambda x: exponential(x))  # Python cannot call parts of compiled code itself
    for x in np.concatenate([np.linspace(-87, 0, 2001), -np.logspace(-9, 1, 200)]).astype(np.float32):
        assert compiled(x) == pytest.approx(math.exp(x), rel=3e-7)
    assert 0 < compiled(np.float32(-1e30)) < 1e-37


@pytest.mark.parametrize("threads", [1, 2])
def test_an_episodes_own_timeline_is_the_shared_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    source = str(make_cache(folder / "cache", 40, full=True))
    shared = recorded(source, threads=threads)
    monkeypatch.setattr(memory, "SHARED_BYTES", 40 * timeline_bytes(4) - 1)
    assert not Task(EnvConfig(source=source)).timelines(1).shared
    for name, values in recorded(source, threads=threads).items():
        np.testing.assert_array_equal(values, shared[name], err_msg=name)


def test_environments_of_a_cache_share_its_timelines_and_keep_nothing_on_disk(folder: Path) -> None:
    cache = DecoderStateCache.open(make_cache(folder / "cache", 10))
    first, second = environment(cache), environment(cache, n=3)
    firsts, seconds = (env.episodes.task.timelines(1) for env in (first, second))
    assert firsts.shared
    assert firsts.rows is seconds.rows
    assert {path.parent for path in folder.rglob("*.npy")} == {cache.path}


def damaged(path: Path, name: str, change: Callable[[np.ndarray], None], *, hashed: bool) -> None:
    """Change an array of a cache, and its hash in the manifest where somebody means it."""
    file = path / f"{name}.npy"
    array = np.load(file)
    change(array)
    np.save(file, array)
    if hashed:
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"][file.name]["sha256"] = sha256_of(file)
        (path / "manifest.json").write_text(json.dumps(manifest))


def _set(value: float) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array.reshape(-1)[1] = value

    return change


def _flip(array: np.ndarray) -> None:
    array.view(np.uint8).reshape(-1)[-1] ^= 1


FILES = (
    *("spans", "scores", "counts", "models", "durations", "n_clips", "moments.values", "moments.offsets"),
    *("saliency.values", "saliency.offsets", "clips.offsets"),
)


@pytest.mark.parametrize("name", FILES)
def test_an_environment_refuses_a_damaged_copy_but_not_the_cache(folder: Path, name: str) -> None:
    good = make_cache(folder / "good", full=True)
    shutil.copytree(good, folder / "damaged")
    change = _set(2) if "offsets" in name else _flip  # the ends of offsets are checked at every opening
    damaged(folder / "damaged", name, change, hashed=False)
    with pytest.raises(DataError, match=rf"{name}\.npy: has sha256"):
        VMREnv(source=folder / "damaged")
    VMREnv(source=good)


HOSTILE = {
    "spans": (np.nan, "spans: .*expected 0 <= start <= end <= 1"),
    "scores": (1.5, r"scores: .*expected scores within \[0, 1\]"),
    "counts": (1000, "counts: 1000, expected 1 to 4 proposals"),
    "durations": (0, "durations: .*expected"),
    "n_clips": (10**9, r"saliency: \d+, expected one value per clip"),
    "moments.values": (np.inf, "moments: .*expected 0 <= start < end <= 1"),
    "moments.offsets": (10**15, r"moments\.offsets\.npy: falls somewhere"),
    "saliency.offsets": (-(10**15), r"saliency\.offsets\.npy: falls somewhere"),
    "clips.offsets": (10**15, r"clips\.offsets\.npy: falls somewhere"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_environment_refuses_contents_that_would_lead_out_of_its_memory(folder: Path, name: str) -> None:
    value, says = HOSTILE[name]
    path = make_cache(folder / "hostile", full=True)
    damaged(path, name, _set(value), hashed=True)
    with pytest.raises(DataError, match=says):
        VMREnv(source=path)
