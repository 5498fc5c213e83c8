"""Action features against their recomputation from timelines; masks, order of proposals."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from caches import random_batch
from refinement import environment, user_cache_in, written
from slow_timelines import slow_timeline_of

from vmr_env.agents.networks import ActionFeatures, FlatNetwork, RefinementNetwork, Standardise
from vmr_env.caches.boundary_features import CELLS, INSIDE_FEATURES, INTEGRALS, SPAN_FEATURES
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.actions import MOVES
from vmr_env.envs.vector_env import VMRVectorEnv

PAIRS = [pair for pair in product(MOVES, MOVES) if pair != (0, 0)]
STATES = 24


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    with user_cache_in(tmp_path_factory.mktemp("networks")) as folder:
        yield written(folder / "random", random_batch(12, q=4))


@pytest.fixture(scope="module")
def env(cache: DecoderStateCache) -> VMRVectorEnv:
    """Episodes after two random steps, none of them at its end."""
    env = environment(cache, n=STATES, horizon=9)
    rng = np.random.default_rng(0)
    _, infos = env.reset(seed=0)
    for _ in range(2):
        mask = infos["action_mask"].copy()
        mask[:, -1] = False
        actions = (rng.random(mask.shape) * mask).argmax(axis=1)
        _, _, _, _, infos = env.step(actions)
    return env


def observed(env: VMRVectorEnv) -> torch.Tensor:
    return torch.from_numpy(env.episodes.observe().copy())


def one_hot(index: int, n: int) -> list[float]:
    return [float(i == index) for i in range(n)]


def features_of(
    cache: DecoderStateCache, sample: int, start: float, end: float, proposal: int
) -> list[float]:
    """`SPAN_FEATURES` of a span that came from a proposal, from the points of its timeline."""
    points = np.array(slow_timeline_of(cache, sample).points)
    first, last = (points[round(float(boundary) * CELLS)] for boundary in (start, end))
    width = max(float(end) - float(start), 0.0)
    mass, whole = (last - first)[INTEGRALS], points[-1][INTEGRALS]
    clips = float(cache.durations[sample]) / cache.manifest["clip_seconds"]
    score = float(cache.scores[sample, proposal])
    return [
        *first[: INTEGRALS.start],
        *last[: INTEGRALS.start],
        *np.clip(mass / max(width, 1 / CELLS), -1, 1),
        *np.clip(mass[:3] / np.maximum(whole[:3], 1e-3), -1, 1),
        *(start, end, width, np.log(width * clips + 1) / np.log(1501)),
        *(score, np.log((score + 1e-3) / (1 - score + 1e-3)) / 7, proposal / 10),
    ]


def expected(env: VMRVectorEnv, i: int, action: int) -> list[float]:
    cache, episodes = env.cache, env.episodes
    sample, source = int(episodes.samples[i]), int(episodes.sources[i])
    span, kind = episodes.spans[i], 2
    if action < len(PAIRS):
        clip = np.float32(cache.manifest["clip_seconds"]) / cache.durations[sample]
        span = np.clip(span + np.array(PAIRS[action], np.float32) * clip, 0, 1)
        kind = 0
    elif action < len(PAIRS) + 4:
        source, kind = action - len(PAIRS), 1
        span = cache.spans[sample, source]
    features = features_of(cache, sample, span[0], span[1], source)
    change = (span - episodes.spans[i]).tolist()
    return [*features, *change, *one_hot(kind, 3), *one_hot(int(cache.models[sample, source]), 2)]


def test_features_are_those_of_the_span_that_the_action_leads_to(env: VMRVectorEnv) -> None:
    features, _ = ActionFeatures(env.observer)(observed(env))
    mask = env.episodes.mask
    assert features.shape[:2] == mask.shape == (STATES, len(PAIRS) + 4 + 1)
    assert mask[:, : len(PAIRS)].sum() > 10 * STATES
    assert mask[:, len(PAIRS) : -1].sum() > STATES
    for i, action in np.argwhere(mask).tolist():
        np.testing.assert_allclose(
            features[i, action], expected(env, i, action), atol=1e-5, err_msg=f"state {i}, action {action}"
        )


def test_features_of_a_move_are_those_that_the_next_observation_shows(cache: DecoderStateCache) -> None:
    """To the last bit: both come from the environments' compiled code."""
    env = environment(cache, n=STATES, horizon=9)
    env.reset(seed=1)
    rng = np.random.default_rng(1)
    moves = env.episodes.mask.copy()
    moves[:, len(PAIRS) :] = False
    actions = (rng.random(moves.shape) * moves).argmax(axis=1)
    assert moves[range(STATES), actions].all()
    features = ActionFeatures(env.observer)
    foreseen = features(observed(env))[0][range(STATES), torch.from_numpy(actions)].numpy()
    env.step(actions)
    after = observed(env).numpy()
    score = SPAN_FEATURES.index("score")
    for name, feature in {"inside": INSIDE_FEATURES[0], "span": "start"}.items():
        first = SPAN_FEATURES.index(feature)
        shown = after[:, env.observer.slices[name]]
        exact = 3 if name == "span" else shown.shape[1]  # the length in clips comes from a logarithm
        np.testing.assert_array_equal(foreseen[:, first : first + exact], shown[:, :exact])
        np.testing.assert_allclose(foreseen[:, first : first + shown.shape[1]], shown, atol=1e-6)
    stays = features(observed(env))[0][:, -1].numpy()
    np.testing.assert_array_equal(stays[:, :score], foreseen[:, :score])


def test_borrowed_boundaries_lead_to_the_spans_of_two_proposals(cache: DecoderStateCache) -> None:
    """Of the mode "candidates": starts of the first proposals with ends of others, or with an offset."""
    env = environment(cache, n=STATES, actions="candidates", horizon=9)
    env.reset(seed=0)
    features, _ = ActionFeatures(env.observer)(observed(env))
    every = range(len(MOVES) + 3)
    pairs = [(start, end) for start in every for end in every if (start, end) != (3, 3)]
    checked = 0
    assert env.episodes.mask.shape[1] == features.shape[1] == len(pairs) + 4 + 1
    for i, action in np.argwhere(env.episodes.mask[:, : len(pairs)]).tolist():
        numbers = pairs[action]
        if max(numbers) < len(MOVES):
            continue
        sample = int(env.episodes.samples[i])
        clip = np.float32(cache.manifest["clip_seconds"]) / cache.durations[sample]
        start, end = (
            cache.spans[sample, number - len(MOVES), side]
            if number >= len(MOVES)
            else np.clip(env.episodes.spans[i, side] + np.float32(MOVES[number]) * clip, 0, 1)
            for side, number in enumerate(numbers)
        )
        wanted = features_of(cache, sample, start, end, int(env.episodes.sources[i]))
        np.testing.assert_allclose(features[i, action, : len(wanted)], wanted, atol=1e-5)
        checked += 1
    assert checked > 5 * STATES


def test_context_is_what_all_actions_share(env: VMRVectorEnv) -> None:
    episodes, cache = env.episodes, env.cache
    _, context = ActionFeatures(env.observer)(observed(env))
    for i, row in enumerate(context.numpy()):
        sample = int(episodes.samples[i])
        assert row[0] == pytest.approx(7 / 9)
        assert row[1] == pytest.approx(np.log1p(cache.durations[sample]) / np.log(1501), rel=1e-5)
        np.testing.assert_array_equal(row[2:6], cache.scores[sample])
        (start, end), spans = episodes.spans[i], cache.spans[sample]
        common = np.maximum(np.minimum(end, spans[:, 1]) - np.maximum(start, spans[:, 0]), 0)
        union = (end - start) + (spans[:, 1] - spans[:, 0]) - common
        np.testing.assert_allclose(row[6:], common / union, atol=1e-5)


def test_renumbered_proposals_renumber_the_switches_alone(env: VMRVectorEnv) -> None:
    order = torch.tensor([2, 0, 3, 1])
    observations = observed(env)
    renumbered = observations.clone()
    for name in ("proposals", "source", "overlaps", "models"):
        part = env.observer.slices[name]
        by_proposal = observations[:, part].reshape(STATES, 4, -1)
        renumbered[:, part] = by_proposal[:, order].flatten(1)
    features = ActionFeatures(env.observer)
    (before, context), (after, context_after) = features(observations), features(renumbered)
    moves = len(PAIRS)
    torch.testing.assert_close(after[:, :moves], before[:, :moves])
    torch.testing.assert_close(after[:, -1], before[:, -1])
    torch.testing.assert_close(after[:, moves:-1], before[:, moves:-1][:, order])
    torch.testing.assert_close(context_after[:, :2], context[:, :2])
    torch.testing.assert_close(context_after[:, 2:6], context[:, 2:6][:, order])


@pytest.mark.parametrize("kind", ["refinement", "flat"])
def test_impossible_actions_have_probability_zero(env: VMRVectorEnv, kind: str) -> None:
    torch.manual_seed(0)
    masks = torch.from_numpy(env.episodes.mask.copy())
    network = (
        RefinementNetwork(env.observer, 16)
        if kind == "refinement"
        else FlatNetwork(env.observer, masks.shape[1], 16)
    )
    network.fit(observed(env))
    logits, values = network(observed(env), masks)
    assert torch.equal(logits == -torch.inf, ~masks)
    assert torch.isfinite(logits[masks]).all()
    assert torch.isfinite(values).all()
    assert values.shape == (STATES,)
    assert torch.equal(logits.softmax(-1) > 0, masks)
    masks[:, :-1] = False
    assert torch.equal(network(observed(env), masks).logits.argmax(1), torch.full((STATES,), len(PAIRS) + 4))


def test_actions_that_nobody_can_take_are_not_scored(env: VMRVectorEnv) -> None:
    """The others are scored as if all were possible."""
    torch.manual_seed(0)
    network = RefinementNetwork(env.observer, 16)
    network.fit(observed(env))
    rows: list[int] = []
    network.hidden.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[1]))
    masks = torch.ones(env.episodes.mask.shape, dtype=torch.bool)
    everything = network(observed(env), masks).logits
    masks[:, : len(PAIRS)] = False
    masks[::2, len(PAIRS)] = False
    logits = network(observed(env), masks).logits
    assert rows == [len(PAIRS) + 5, 5]
    torch.testing.assert_close(logits, everything.masked_fill(~masks, -torch.inf))


def test_the_value_looks_at_possible_actions_alone(env: VMRVectorEnv) -> None:
    """It is of the mean hidden layer over them, that of stopping, and the context."""
    torch.manual_seed(0)
    network = RefinementNetwork(env.observer, 16)
    seen: list[torch.Tensor] = []
    network.hidden.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network.value.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    masks = torch.from_numpy(env.episodes.mask.copy())
    network(observed(env), masks)
    hidden, pooled = seen
    for i, possible in enumerate(masks):
        torch.testing.assert_close(pooled[i, :16], hidden[i][possible].mean(0))
        torch.testing.assert_close(pooled[i, 16:32], hidden[i, -1])


def test_standardised_features_have_mean_zero_and_deviation_one() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(3, 5, (10, 20, 4))).float()
    rows[..., 3] = 2.0  # constant: only shifted
    standardise = Standardise(4)
    standardise.fit(rows)
    done = standardise(rows).reshape(-1, 4)
    torch.testing.assert_close(done.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(done.std(0, correction=0), torch.tensor([1.0, 1, 1, 0]), atol=1e-5, rtol=0)
