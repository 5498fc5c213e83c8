import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.data.profiles import PROFILES, DatasetProfile
from vmr_env.errors import DataError
from vmr_env.metrics.moments import evaluate
from vmr_env.metrics.spans import best_tiou
from vmr_env.simulation.config import CONFIGS, SimulatorConfig
from vmr_env.simulation.detector import _averaged, _better_siblings
from vmr_env.simulation.simulator import DEFAULT_SAMPLES, simulate, simulated_batch, simulated_cache
from vmr_env.simulation.videos import draw_samples, statistics_of

NAMES = sorted(PROFILES)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DecoderStateCache]:
    """4,000 samples of each profile."""
    folder = tmp_path_factory.mktemp("simulated")
    return {
        name: DecoderStateCache.open(simulate(folder / name, PROFILES[name], "train", samples=4000))
        for name in NAMES
    }


def seconds(cache: DecoderStateCache) -> np.ndarray[Any, Any]:
    """Proposals in seconds: (N, Q, 2)."""
    return cache.spans.astype(float) * cache.durations[:, None, None]


def best_overlaps(cache: DecoderStateCache) -> np.ndarray[Any, Any]:
    """Best tIoU of each proposal: (N, Q)."""
    return np.stack(
        [
            best_tiou(cache.spans[i].astype(float), cache.moments[i][None].astype(float))
            for i in range(len(cache))
        ]
    )


@pytest.mark.parametrize("name", NAMES)
def test_simulated_caches_obey_every_rule(caches: dict[str, DecoderStateCache], name: str) -> None:
    cache = caches[name]
    cache.verify()
    assert (cache.manifest["source"], cache.manifest["dataset"]) == ("simulated", name)
    assert len(cache) == 4000
    assert (np.diff(cache.scores, axis=1) <= 0).all()
    step = CONFIGS[name].submission_step
    inner = seconds(cache)
    inner = inner[inner < cache.durations[:, None, None] - 1e-3]
    np.testing.assert_allclose(inner, np.round(inner / step) * step, atol=1e-3)


# Published models (METRICS.md): R1@0.5, R1@0.7, mIoU, mAP; best of 5 and of 10 by R1@0.5, R1@0.7, mIoU.
PUBLISHED = {
    "charades": ((56.83, 35.7, 49.03, 37.94), (83.0, 55.8, 68.6), (91.9, 65.4, 74.3)),
    "qvhighlights": ((53.94, 34.84, 49.21, 32.2), (75.0, 47.7, 64.9), (83.1, 53.7, 69.5)),
    "tacos": ((36.64, 20.34, 36.0, 22.57), (55.3, 32.6, 49.5), (61.7, 36.4, 54.2)),
}


@pytest.mark.parametrize("name", NAMES)
def test_headline_metrics_are_near_a_published_detector(
    caches: dict[str, DecoderStateCache], name: str
) -> None:
    cache = caches[name]
    windows = np.concatenate([seconds(cache), cache.scores[..., None]], axis=2)
    rows = [cache.sample(i) for i in range(len(cache))]
    predictions = [Prediction(r.qid, r.vid, r.query, w) for r, w in zip(rows, windows, strict=True)]
    truth = [Annotation(r.qid, r.vid, r.query, r.duration, r.moments) for r in rows]
    brief = evaluate(predictions, truth)["brief"]
    keys = ("MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mIoU", "MR-full-mAP")
    top, best5, best10 = PUBLISHED[name]
    np.testing.assert_allclose([brief[key] for key in keys], top, atol=2.5)
    overlaps = best_overlaps(cache)
    for k, published in ((5, best5), (10, best10)):
        best = overlaps[:, :k].max(axis=1)
        figures = np.array([(best >= 0.5).mean(), (best >= 0.7).mean(), best.mean()])
        np.testing.assert_allclose(figures * 100, published, atol=4)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_far_too_sure_but_tell_something(caches: dict[str, DecoderStateCache], name: str) -> None:
    cache, overlaps = caches[name], best_overlaps(caches[name])
    assert cache.scores[:, 0].mean() > (overlaps[:, 0] >= 0.5).mean() + 0.3
    assert np.corrcoef(cache.scores.ravel(), overlaps.ravel())[0, 1] > 0.1
    assert overlaps[:, 0].mean() > overlaps[:, 1].mean() > overlaps[:, 4].mean()
    ties = (np.diff(cache.scores, axis=1) == 0).any(axis=1).mean()
    assert ties > 0.05


def assert_quantiles(values: Any, table: tuple[float, ...], tolerance: float, step: float) -> None:
    """No decile is off by more than `tolerance` in rank; values on a grid of `step` share ranks."""
    for decile in range(2, 19, 2):  # of tables that stand at every 5 %
        below = (values < table[decile] - step / 2 - 1e-6).mean()
        upto = (values <= table[decile] + step / 2 + 1e-6).mean()
        assert below - tolerance <= decile / 20 <= upto + tolerance


@pytest.mark.parametrize("name", NAMES)
def test_videos_and_moments_follow_the_statistics_of_the_profile(name: str) -> None:
    profile, config = PROFILES[name], CONFIGS[name]
    samples = draw_samples(statistics_of(profile), config, 20000, np.random.default_rng(3))
    _, first, queries = np.unique(samples.videos, return_index=True, return_counts=True)
    # TACoS has some 150 videos here, so their own quantiles are off by several percent of rank.
    many = len(first) > 1000
    assert_quantiles(
        samples.durations[first],
        statistics_of(profile).durations,
        0.02 if many else 0.15,
        config.duration_step,
    )
    assert queries.mean() == pytest.approx(
        statistics_of(profile).queries_per_video, rel=0.05 if many else 0.1
    )

    real = np.arange(samples.moments.shape[1]) < samples.counts[:, None]
    lengths = np.diff(samples.moments, axis=-1)[..., 0]
    assert_quantiles(lengths[real], statistics_of(profile).moment_lengths, 0.04, config.annotation_step)
    shares = np.bincount(samples.counts - 1, minlength=len(statistics_of(profile).moments_per_query)) / 20000
    np.testing.assert_allclose(shares, statistics_of(profile).moments_per_query, atol=0.02)
    single = samples.counts == 1
    slack = samples.durations - lengths[:, 0]
    free = single & (slack > 1)
    positions = samples.moments[free, 0, 0] / slack[free]
    assert_quantiles(
        positions,
        statistics_of(profile).moment_positions,
        0.05,
        2 * config.annotation_step / slack[free].mean(),
    )


def test_moments_of_one_query_never_meet() -> None:
    batch = simulated_batch(
        PROFILES["qvhighlights"], "x", samples=3000, seed=0, config=CONFIGS["qvhighlights"]
    )
    for i in np.flatnonzero(batch.moments.lengths > 1):
        moments = batch.moments[i]
        assert (moments[1:, 0] > moments[:-1, 1]).all()
        assert (moments % 2 == 0).all()


def quiet(config: SimulatorConfig, **changes: Any) -> SimulatorConfig:
    """The detector without any noise in saliency."""
    silent = {
        "saliency_appeal": 0.0,
        "saliency_spread": 0.0,
        "saliency_jitter": 0.0,
        "saliency_blur": 1,
        "saliency_noise": 0.0,
        "saliency_drift": 0.0,
    }
    return replace(config, **(silent | changes))


@pytest.mark.parametrize("name", NAMES)
def test_without_noise_saliency_is_the_share_of_each_clip_that_moments_cover(name: str) -> None:
    profile = PROFILES[name]
    batch = simulated_batch(
        profile, "x", samples=60, seed=1, config=quiet(CONFIGS[name], saliency_target=1.0)
    )
    assert batch.saliency is not None
    for i in range(60):
        clips = np.arange(batch.n_clips[i]) * profile.clip_seconds
        overlap = [
            np.clip(np.minimum(end, clips + profile.clip_seconds) - np.maximum(start, clips), 0, None)
            for start, end in batch.moments[i]
        ]
        np.testing.assert_allclose(
            batch.saliency[i], np.sum(overlap, axis=0) / profile.clip_seconds, atol=1e-5
        )


@pytest.mark.parametrize("name", NAMES)
def test_saliency_is_real_but_noisy_evidence(caches: dict[str, DecoderStateCache], name: str) -> None:
    cache = caches[name]
    assert cache.saliency is not None
    areas, rises = [], []
    for i in range(1000):
        curve, n = cache.saliency[i].astype(float), int(cache.n_clips[i])
        centres = (np.arange(n) + 0.5) / n
        inside = (
            (centres[:, None] > cache.moments[i][:, 0]) & (centres[:, None] < cache.moments[i][:, 1])
        ).any(1)
        if inside.all() or not inside.any():
            continue
        # Area under the ROC curve: how often a clip inside beats one outside.
        areas.append((curve[inside][:, None] > curve[~inside]).mean())
        edges = np.flatnonzero(np.diff(inside.astype(int)))
        rises.append((np.diff(curve)[edges] * np.diff(inside.astype(int))[edges]).mean() / curve.std())
    assert 0.7 < np.mean(areas) < 0.92  # real: 0.82 in qvhighlights_val.moment_detr
    assert np.mean(np.array(areas) < 0.5) > 0.03  # and plainly wrong for some
    assert np.mean(rises) > 0.1  # real: 0.41; noise alone gives 0


def test_a_detector_without_noise_is_right() -> None:
    config = replace(
        CONFIGS["tacos"],
        separation=50.0,
        length_pull=0.0,
        region_noise=0.0,
        proposal_noise=0.0,
        noise_floor=0.0,
        part_share=0.0,
        merged_share=0.0,
        target_share=0.9,
        distractor_share=0.1,
        submission_step=0.01,
    )
    batch = simulated_batch(PROFILES["tacos"], "x", samples=300, seed=0, config=config)
    moments = batch.moments.values / batch.durations[:, None]
    np.testing.assert_allclose(batch.spans[:, 0], moments, atol=1e-3)


@given(
    aim=st.lists(st.integers(-1, 2), min_size=5, max_size=5),
    value=st.lists(st.floats(-5, 5), min_size=5, max_size=5, unique=True),
)
def test_better_siblings_are_counted(aim: list[int], value: list[float]) -> None:
    expected = [
        0 if a < 0 else sum(other == a and w > v for other, w in zip(aim, value, strict=True))
        for a, v in zip(aim, value, strict=True)
    ]
    assert _better_siblings(np.array([aim]), np.array([value])).tolist() == [expected]


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    width=st.integers(1, 8),
    seed=st.integers(0, 9),
)
def test_averages_stay_within_a_video(lengths: list[int], width: int, seed: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.random.default_rng(seed).normal(size=offsets[-1])
    expected = [
        values[max(start, i - (width - 1) // 2) : min(end, i + width // 2 + 1)].mean()
        for start, end in pairwise(offsets)
        for i in range(start, end)
    ]
    np.testing.assert_allclose(_averaged(values, offsets, width), expected, atol=1e-12)


def test_equal_seeds_give_equal_caches_and_others_do_not(tmp_path: Path) -> None:
    def manifest(folder: str, **options: Any) -> dict[str, str]:
        arguments = {"split": "train", "seed": 0, "samples": 50} | options
        path = simulate(tmp_path / folder, PROFILES["charades"], **arguments)
        files = DecoderStateCache.open(path).manifest["files"]
        return {name: files[name]["sha256"] for name in ("spans.npy", "scores.npy", "saliency.values.npy")}

    state = np.random.get_state()[1].tobytes()  # noqa: NPY002  # the global generator must stay as it was
    first = manifest("a")
    assert manifest("b") == first
    for folder, options in (("c", {"seed": 1}), ("d", {"split": "test"})):
        other = manifest(folder, **options)
        assert all(other[name] != first[name] for name in first)
    assert np.random.get_state()[1].tobytes() == state  # noqa: NPY002  # see above


def test_splits_share_no_video_and_videos_have_several_queries() -> None:
    vids = {
        split: simulated_batch(
            PROFILES["charades"], split, samples=500, seed=0, config=CONFIGS["charades"]
        ).vids
        for split in ("train", "val", "test")
    }
    assert not set(vids["train"]) & set(vids["val"]) | set(vids["train"]) & set(vids["test"])
    assert not set(vids["val"]) & set(vids["test"])
    assert max(Counter(vids["train"]).values()) >= 4


def test_one_sample_is_enough() -> None:
    for name in NAMES:
        batch = simulated_batch(PROFILES[name], "x", samples=1, seed=0, config=CONFIGS[name])
        assert batch.spans.shape == (1, CONFIGS[name].proposals, 2)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache folder that is empty, and small default caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _simulated_in_worker(home: str) -> str:
    os.environ["XDG_CACHE_HOME"] = home
    return str(simulated_cache(PROFILES["qvhighlights"], "val"))


def test_the_default_cache_is_written_once_however_many_ask(home: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        paths = set(pool.map(_simulated_in_worker, [str(home)] * 2, chunksize=1))
    path = simulated_cache(PROFILES["qvhighlights"], "val")
    assert paths == {str(path)}
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.is_relative_to(home / "vmr_env")
    cache = DecoderStateCache.open(path)
    assert len(cache) == DEFAULT_SAMPLES["qvhighlights"]["val"]
    before = path.stat().st_mtime_ns
    assert simulated_cache(PROFILES["qvhighlights"], "val") == path
    assert path.stat().st_mtime_ns == before


def _spoil(path: Path) -> None:
    raw = bytearray((path / "spans.npy").read_bytes())
    raw[-5] ^= 1
    (path / "spans.npy").write_bytes(raw)


DAMAGES: list[Callable[[Path], object]] = [
    _spoil,
    lambda path: (path / "manifest.json").write_text("{}"),
    lambda path: (path / "scores.npy").unlink(),
    lambda path: (shutil.rmtree(path), path.write_text("a file")),
]


@pytest.mark.parametrize("damage", range(len(DAMAGES)))
def test_a_damaged_default_cache_is_written_again(home: Path, damage: int) -> None:
    path = simulated_cache(PROFILES["qvhighlights"], "val")
    before = DecoderStateCache.open(path).fingerprint
    DAMAGES[damage](path)
    assert simulated_cache(PROFILES["qvhighlights"], "val") == path
    cache = DecoderStateCache.open(path)
    cache.verify()
    assert cache.fingerprint == before


def test_a_folder_in_the_home_that_cannot_be_written_is_told(home: Path) -> None:
    home.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="VMR_ENV_CACHE"):
        simulated_cache(PROFILES["charades"], "test")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no samples": ({"samples": 0}, "samples: is 0; expected an int from 1"),
    "half a sample": ({"samples": 1.5}, "samples: is 1.5"),
    "negative seed": ({"seed": -1}, "seed: is -1"),
    "no seed": ({"seed": None}, "seed: is None"),
    "no split": ({"split": ""}, "split"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    changes, words = BAD[name]
    arguments = {"split": "train", "samples": 5, "seed": 0} | changes
    with pytest.raises(DataError, match=words):
        simulate(tmp_path / "c", PROFILES["charades"], **arguments)
    assert list(tmp_path.iterdir()) == []


def test_unknown_splits_and_profiles_are_refused(home: Path) -> None:
    other: DatasetProfile = replace(PROFILES["charades"], name="activitynet")
    with pytest.raises(DataError, match="split: is 'dev'; expected one of train, val, test"):
        simulated_cache(PROFILES["charades"], "dev")
    with pytest.raises(DataError, match="activitynet has no simulated samples"):
        simulated_cache(other, "train")
    with pytest.raises(DataError, match="profile: is 'activitynet'; expected one of charades"):
        simulate(home, other, "train", samples=5)
