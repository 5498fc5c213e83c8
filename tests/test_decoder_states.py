"""What policies see of a backbone's decoder states and sentence vectors."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from caches import ARGUMENTS, random_batch
from refinement import environment, user_cache_in

from vmr_env.agents.expected_gain import ExpectedGain
from vmr_env.agents.grpo import GRPO
from vmr_env.agents.networks import RefinementNetwork
from vmr_env.agents.ppo import PPO
from vmr_env.caches.reader import DecoderStateCache, write_cache

VECTORS = ("decoder_state", "text", "proposal_states")
BASE = ("remaining", "video", "span", "source", "overlaps", "positions", "points", "whole", "proposals")
N, P = 20, 3


@pytest.fixture(scope="module", params=["float32", "float16"])
def cache(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    with user_cache_in(tmp_path_factory.mktemp("states")) as folder:
        arguments = {**ARGUMENTS, "dtype": request.param}
        yield DecoderStateCache.open(
            write_cache(folder / "full", random_batch(12, q=4, full=True), **arguments)
        )


def seen(cache: DecoderStateCache, *components: str) -> tuple[Any, torch.Tensor, torch.Tensor]:
    env = environment(cache, n=N, proposals=P, components=(*BASE, *components))
    env.reset(seed=0, options={"start": 0})
    return env, torch.from_numpy(env.episodes.observe().copy()), torch.from_numpy(env.episodes.mask.copy())


def test_states_of_all_proposals_are_those_of_the_cache(cache: DecoderStateCache) -> None:
    env, observations, _ = seen(cache, "proposal_states")
    assert cache.states is not None
    expected = np.asarray(cache.states, np.float32)[env.episodes.samples, :P].reshape(N, -1)
    np.testing.assert_array_equal(observations[:, env.observer.slices["proposal_states"]], expected)


def test_states_of_all_proposals_are_shown_where_they_are_named_only(cache: DecoderStateCache) -> None:
    shapes = environment(cache).observer.shapes
    assert {"decoder_state", "text"} <= set(shapes)
    assert "proposal_states" not in shapes


@pytest.mark.parametrize("name", VECTORS)
def test_noise_in_a_vector_changes_the_policy(cache: DecoderStateCache, name: str) -> None:
    torch.manual_seed(0)
    env, observations, masks = seen(cache, *VECTORS)
    network = RefinementNetwork(env.observer, 16).eval()
    network.fit(observations)
    before = network(observations, masks).logits.softmax(-1)
    part = observations[:, env.observer.slices[name]]
    part += 10 * torch.randn(part.shape)
    after = network(observations, masks).logits.softmax(-1)
    switches = masks[:, env.action_mode.groups["switch"]].any(1)
    there = switches if name == "proposal_states" else masks.sum(1) > 1
    assert there.any()
    assert ((after - before).abs().amax(1) > 1e-6)[there].all()


def test_a_switch_is_scored_by_the_state_of_its_proposal(cache: DecoderStateCache) -> None:
    """Another state of proposal 1 changes what the switch there scores, and nothing else."""
    torch.manual_seed(0)
    env, observations, masks = seen(cache, *VECTORS)
    masks[:] = True
    network = RefinementNetwork(env.observer, 16).eval()
    network.fit(observations)
    before = network(observations, masks).logits
    part = observations[:, env.observer.slices["proposal_states"]].unflatten(1, (P, -1))
    part[:, 1] += 1
    observations[:, env.observer.slices["proposal_states"]] = part.flatten(1)
    changed = (network(observations, masks).logits - before).abs() > 1e-6
    assert changed[:, env.action_mode.groups["switch"]][:, 1].all()
    assert changed.sum() == N


def test_without_them_switches_keep_the_state_of_the_source(cache: DecoderStateCache) -> None:
    env, observations, masks = seen(cache, "decoder_state")
    network = RefinementNetwork(env.observer, 16).eval()
    assert network.from_vectors is not None
    mapped = network.from_vectors(observations)
    assert mapped.shape == (N, masks.shape[1], 16)
    torch.testing.assert_close(mapped, mapped[:, :1].expand_as(mapped))


@pytest.mark.parametrize("agent", [ExpectedGain, PPO, GRPO])
def test_dropout_hides_states_in_learning_alone_and_by_the_agents_own_numbers(
    cache: DecoderStateCache, agent: type[Any]
) -> None:
    torch.manual_seed(3)
    untouched = torch.get_rng_state()
    first, second = (agent(environment(cache, horizon=1), 0) for _ in range(2))
    hidden: list[bool] = []
    network = first._members()[0].network
    network.from_vectors.states.dropout.register_forward_hook(
        lambda module, inputs, output: hidden.append(bool((output == 0).sum() > (inputs[0] == 0).sum()))
    )
    metrics = first.update()
    learnt = len(hidden)
    assert {True, False} == set(hidden)  # collecting shows all, learning does not
    torch.manual_seed(4)
    assert second.update() == metrics
    env = environment(cache, horizon=1)
    observations, infos = env.reset(seed=0)
    masks = infos["action_mask"].astype(bool)
    np.testing.assert_array_equal(
        first.probabilities(observations, masks), second.probabilities(observations, masks)
    )
    assert not any(hidden[learnt:])
    torch.manual_seed(3)
    first.update()
    assert torch.equal(torch.get_rng_state(), untouched)
