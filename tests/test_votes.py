"""What each model thinks of the span that each action leads to."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from caches import random_batch
from refinement import environment, user_cache_in, written

from vmr_env.agents.networks import RefinementNetwork
from vmr_env.caches.reader import DecoderStateCache

N = 12


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    """Two models, some without proposals in some samples, some with scores of 0 only."""
    with user_cache_in(tmp_path_factory.mktemp("votes")) as folder:
        batch = random_batch(N, q=6)
        batch.scores[3] = 0
        yield written(folder / "cache", batch)


def tiou(a: np.ndarray, b: np.ndarray) -> float:
    common = max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
    return float(common / ((a[1] - a[0]) + (b[1] - b[0]) - common))


def expected(cache: DecoderStateCache, sample: int, span: np.ndarray) -> list[float]:
    """Votes by their definition, in double precision; a clip is a second."""
    count, votes = int(cache.counts[sample]), list[float]()
    for model in range(2):
        its = [p for p in range(count) if cache.models[sample, p] == model]
        scores = np.array([float(cache.scores[sample, p]) for p in its])
        shares = scores / scores.sum() if scores.sum() > 0 else np.ones(len(its)) / max(len(its), 1)
        overlaps = np.array([tiou(span, cache.spans[sample, p].astype(float)) for p in its])
        hits = [float((shares * (overlaps >= threshold)).sum()) for threshold in (0.5, 0.7)]
        votes += [float(overlaps[0]) if its else 0.0, float((shares * overlaps).sum()), *hits]
        windows, seconds = cache.spans[sample, its].astype(float), float(cache.durations[sample])
        for side in (0, 1):
            distances = (windows[:, side] - span[side]) * seconds
            votes.append(float(sum(shares * np.exp(-(distances**2) / 2))))
    return votes


@pytest.mark.parametrize("actions", ["discrete", "multidiscrete"])
def test_votes_are_of_the_span_that_each_action_leads_to(cache: DecoderStateCache, actions: str) -> None:
    env = environment(cache, n=N, actions=actions, components=["votes"], proposals=3)
    env.reset(seed=0, options={"sample": np.arange(N)})
    episodes, mode, checked = env.episodes, env.action_mode, 0
    votes = env.observer.split(episodes.observe())["votes"]
    assert votes.shape == (*episodes.mask.shape, 12)
    for i, action in np.ndindex(*episodes.mask.shape):
        if not episodes.mask[i, action]:
            assert not votes[i, action].any()
            continue
        kind, first, second = mode.choices[action].tolist()
        span = episodes.spans[i].astype(float)
        if kind == 0:
            clip = 1 / float(cache.durations[i])
            span = np.clip(span + mode.offsets[0][[first, second]] * clip, 0, 1)
        elif kind == 1:
            span = cache.spans[i, first].astype(float)
        np.testing.assert_allclose(votes[i, action], expected(cache, i, span), atol=1e-5)
        checked += 1
    assert checked > 5 * N


def test_votes_are_shown_where_they_are_named_and_our_network_reads_them(cache: DecoderStateCache) -> None:
    default = list(environment(cache).observer.shapes)
    assert "votes" not in default
    torch.manual_seed(0)
    env = environment(cache, n=N, components=[*default, "votes"])
    env.reset(seed=0)
    observations, masks = (torch.from_numpy(of.copy()) for of in (env.episodes.observe(), env.episodes.mask))
    network = RefinementNetwork(env.observer, 16)
    network.fit(observations)
    before = network(observations, masks).logits
    observations[:, env.observer.slices["votes"]] += 1
    assert ((network(observations, masks).logits != before) == masks).all()


def test_a_component_that_the_network_needs_is_named(cache: DecoderStateCache) -> None:
    with pytest.raises(ValueError, match="observations have no 'points', expected remaining, video"):
        RefinementNetwork(
            environment(
                cache, components=["remaining", "video", "span", "source", "overlaps", "positions", "votes"]
            ).observer
        )
