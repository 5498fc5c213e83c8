"""Clip features of the observation against means that are taken clip by clip."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from caches import random_batch
from hypothesis import given
from hypothesis import strategies as st
from refinement import environment, user_cache_in, written

from vmr_env.agents.networks import ActionClips, RefinementNetwork
from vmr_env.caches.boundary_features import CELLS
from vmr_env.caches.clip_sums import EDGE_CLIPS, ClipSums, clip_sums_of
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.actions import MOVES

PAIRS = [(start, end) for start in MOVES for end in MOVES if (start, end) != (0, 0)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    with user_cache_in(tmp_path_factory.mktemp("clips")) as folder:
        yield written(folder / "random", random_batch(12, q=4, full=True))


@pytest.fixture(scope="module")
def sums(cache: DecoderStateCache) -> ClipSums:
    found = clip_sums_of(cache)
    assert found is not None
    return found


def mean_of(clips: np.ndarray, low: int, high: int) -> np.ndarray:
    rows = clips[max(low, 0) : high]
    return rows.mean(0) if len(rows) else np.zeros(clips.shape[1])


def point_parts(clips: np.ndarray, cell: int) -> list[np.ndarray]:
    at = round(cell / CELLS * len(clips))  # ties cannot be told apart from rounding, and do not occur below
    before, after = mean_of(clips, at - EDGE_CLIPS, at), mean_of(clips, at, at + EDGE_CLIPS)
    return [before, after, clips[:at].sum(0) / len(clips)]


@given(sample=st.integers(0, 11), cell=st.integers(0, CELLS))
def test_points(cache: DecoderStateCache, sums: ClipSums, sample: int, cell: int) -> None:
    assert cache.clips is not None
    clips = cache.clips[sample].astype(np.float64)
    parts = sums.at(sample, np.array(cell))
    np.testing.assert_allclose(parts, point_parts(clips, cell), atol=1e-5)
    assert parts.dtype == np.float32


@given(sample=st.integers(0, 11), cells=st.tuples(st.integers(0, CELLS), st.integers(0, CELLS)))
def test_spans(cache: DecoderStateCache, sums: ClipSums, sample: int, cells: tuple[int, int]) -> None:
    assert cache.clips is not None
    clips = cache.clips[sample].astype(np.float64)
    start, end = sorted(cells)
    (*of_start, low), (*of_end, high) = point_parts(clips, start), point_parts(clips, end)
    inside = (high - low) / (max(end - start, 1) / CELLS)
    parts = sums.of_spans(sample, np.array(start), np.array(end))
    np.testing.assert_allclose(parts, [*of_start, *of_end, inside], atol=1e-4)


def test_many_samples_at_once_are_as_each_alone(sums: ClipSums) -> None:
    rng = np.random.default_rng(0)
    samples, cells = rng.integers(0, 12, (5, 1)), rng.integers(0, CELLS + 1, (5, 3))
    together = sums.at(samples, cells)
    for i in range(5):
        np.testing.assert_array_equal(together[i], sums.at(int(samples[i, 0]), cells[i]))


def test_the_observation_shows_them_at_probes_and_proposals(cache: DecoderStateCache) -> None:
    env = environment(cache, n=24, observation="dict")
    observations, infos = env.reset(seed=0)
    assert cache.clips is not None
    for i, sample in enumerate(infos["sample"]):
        clips = cache.clips[int(sample)].astype(np.float64)
        for probe, position in enumerate(observations["positions"][i]):
            expected = point_parts(clips, int(np.rint(position * np.float32(CELLS))))
            np.testing.assert_allclose(observations["point_clips"][i, probe], expected, atol=1e-5)
        for p in range(4):
            shown = observations["proposal_clips"][i, p]
            if p >= cache.counts[sample]:
                assert not shown.any()
                continue
            start, end = (int(np.rint(x * np.float32(CELLS))) for x in cache.spans[sample, p])
            (*of_start, low), (*of_end, high) = point_parts(clips, start), point_parts(clips, end)
            inside = (high - low) / (max(end - start, 1) / CELLS)
            np.testing.assert_allclose(shown, [*of_start, *of_end, inside], atol=1e-4)


def test_a_cache_without_clips_shows_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    with user_cache_in(tmp_path_factory.mktemp("bare")) as folder:
        bare = written(folder / "random", random_batch(6))
        assert clip_sums_of(bare) is None
        env = environment(bare, n=2)
        assert not {"point_clips", "proposal_clips"} & set(env.observer.shapes)
        with pytest.raises(ValueError, match="No observation component 'point_clips'"):
            environment(bare, n=2, components=["point_clips"])


def test_actions_are_mapped_by_the_clips_of_the_span_that_they_lead_to(cache: DecoderStateCache) -> None:
    env = environment(cache, n=16, horizon=9)
    _, infos = env.reset(seed=1)
    flat = env.episodes.observe().copy()
    torch.manual_seed(0)
    layer = ActionClips(env.observer, 7)
    mapped = layer(torch.from_numpy(flat)).detach().numpy()
    sums = clip_sums_of(cache)
    assert sums is not None
    weights = [w.detach().numpy() for w in (layer.at_start.weight, layer.at_end.weight, layer.inside.weight)]
    for i, sample in enumerate(infos["sample"]):
        clip = np.float32(cache.manifest["clip_seconds"]) / cache.durations[sample]
        for action in np.flatnonzero(infos["action_mask"][i]):
            span = env.episodes.spans[i]
            if action < len(PAIRS):
                span = np.clip(span + np.array(PAIRS[action], np.float32) * clip, 0, 1)
            elif action < len(PAIRS) + 4:
                span = cache.spans[sample, action - len(PAIRS)]
            start, end = np.rint(span * np.float32(CELLS)).astype(int)
            of_start, of_end = sums.at(int(sample), np.array([start, end])).astype(np.float64)
            switch = len(PAIRS) <= action < len(PAIRS) + 4
            width = (end - start) / CELLS if switch else span[1] - span[0]  # of a probe as it is
            inside = (of_end[2] - of_start[2]) / max(width, 1 / CELLS)
            expected = (
                weights[0] @ of_start[:2].ravel() + weights[1] @ of_end[:2].ravel() + weights[2] @ inside
            )
            expected /= np.sqrt(len(inside))
            np.testing.assert_allclose(mapped[i, action], expected, rtol=1e-3, atol=1e-3)


def test_the_policy_looks_at_clips(cache: DecoderStateCache) -> None:
    env = environment(cache, n=16)
    env.reset(seed=1)
    flat = env.episodes.observe().copy()
    network = RefinementNetwork(env.observer)
    observations, masks = torch.from_numpy(flat), torch.from_numpy(env.episodes.mask.copy())
    before = network(observations, masks).logits
    observations[:, env.observer.slices["point_clips"]] += 1
    assert not torch.equal(network(observations, masks).logits[masks], before[masks])
