"""Our network as a policy of Stable-Baselines3, against the network itself; it learns a known move."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caches import random_batch
from gymnasium import spaces
from refinement import environment, short_cache, user_cache_in, written
from stable_baselines3 import A2C, PPO

from vmr_env.agents.networks import RefinementNetwork
from vmr_env.agents.sb3.policy import ENOUGH, RefinementPolicy
from vmr_env.agents.sb3.vec_env import NativeVecEnv
from vmr_env.benchmarks.experiment.sb3_models import gain
from vmr_env.caches.reader import DecoderStateCache

N = 8


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    with user_cache_in(tmp_path_factory.mktemp("policy")) as folder:
        yield written(folder / "random", random_batch(20, q=4))


def ppo(cache: DecoderStateCache, n: int = N, **settings: Any) -> PPO:
    env = NativeVecEnv(environment(cache, n=n, observation="dict", horizon=1))
    return PPO(RefinementPolicy, env, gamma=1.0, seed=0, device="cpu", **settings)


def tensors(observations: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(part) for name, part in observations.items()}


def test_says_what_the_network_says_of_flat_observations(cache: DecoderStateCache) -> None:
    """A `Dict` has its components in another order than the flat observation."""
    flat, components = environment(cache, n=N), environment(cache, n=N, observation="dict")
    policy = RefinementPolicy(
        components.single_observation_space, components.single_action_space, lambda _: 1e-3
    )
    network = RefinementNetwork(flat.observer)
    network.load_state_dict(policy.network.state_dict())
    observations, infos = flat.reset(seed=1)
    wanted = network(torch.from_numpy(observations), torch.ones_like(torch.from_numpy(infos["action_mask"])))
    given = tensors(components.reset(seed=1)[0])
    actions = torch.arange(N)
    values, log_probs, entropies = policy.evaluate_actions(given, actions)
    log_policy = wanted.logits.log_softmax(-1)
    torch.testing.assert_close(values[:, 0], wanted.values)
    torch.testing.assert_close(policy.predict_values(given), values)
    torch.testing.assert_close(log_probs, log_policy[torch.arange(N), actions])
    torch.testing.assert_close(entropies, -(log_policy.exp() * log_policy).sum(-1))
    best = policy.predict(components.reset(seed=1)[0], deterministic=True)[0]
    np.testing.assert_array_equal(best, wanted.logits.argmax(-1))


def test_impossible_actions_are_never_taken_where_the_mask_is_observed(cache: DecoderStateCache) -> None:
    env = environment(cache, n=N, observation="dict")
    observations, infos = env.reset(seed=0)
    possible = infos["action_mask"]
    mask = spaces.Box(0, 1, possible.shape[1:], np.float32)
    space = spaces.Dict({**env.single_observation_space.spaces, "action_mask": mask})
    policy = RefinementPolicy(space, env.single_action_space, lambda _: 1e-3)
    given = tensors({**observations, "action_mask": possible.astype(np.float32)})
    torch.manual_seed(0)
    taken = np.stack([policy(given)[0].numpy() for _ in range(300)])
    assert possible[np.arange(N), taken].all()
    assert len(np.unique(taken)) > 10
    values, log_probs, entropies = policy.evaluate_actions(given, torch.from_numpy(taken[0]))
    assert entropies is not None
    (values.sum() + log_probs.sum() + entropies.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)
    most = np.log(possible.sum(1))  # entropy of the uniform policy over what is possible
    assert (entropies.detach().numpy() <= most + 1e-5).all()


def test_features_are_standardised_by_the_first_observations(cache: DecoderStateCache) -> None:
    model = ppo(cache, n_steps=8, batch_size=32, n_epochs=1)
    model.learn(ENOUGH)
    policy = model.policy
    assert isinstance(policy, RefinementPolicy)
    mean = policy.network.standardise.mean.clone()
    assert (policy.seen, mean.abs().max() > 0) == (ENOUGH, True)
    model.learn(2 * N * 8, reset_num_timesteps=False)
    torch.testing.assert_close(policy.network.standardise.mean, mean, rtol=0, atol=0)


def test_saved_and_loaded_it_acts_the_same(cache: DecoderStateCache, tmp_path: Path) -> None:
    model = ppo(cache, n_steps=8, batch_size=32, n_epochs=1, policy_kwargs={"hidden": 16})
    model.learn(128)
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    observations, _ = environment(cache, n=N, observation="dict").reset(seed=3)
    for deterministic in (True, False):
        torch.manual_seed(0)
        wanted = model.predict(observations, deterministic=deterministic)[0]
        torch.manual_seed(0)
        np.testing.assert_array_equal(loaded.predict(observations, deterministic=deterministic)[0], wanted)


def test_a2c_takes_it_too(cache: DecoderStateCache) -> None:
    env = NativeVecEnv(environment(cache, n=N, observation="dict"))
    A2C(RefinementPolicy, env, n_steps=4, gamma=1.0, device="cpu").learn(4 * N * 2)


def test_other_spaces_are_refused(cache: DecoderStateCache) -> None:
    flat = NativeVecEnv(environment(cache, n=N))
    with pytest.raises(ValueError, match="observation space is a Box, expected a Dict: observation='dict'"):
        PPO(RefinementPolicy, flat, device="cpu")
    pairs = NativeVecEnv(environment(cache, n=N, observation="dict", actions="multidiscrete"))
    with pytest.raises(ValueError, match=r"action space is MultiDiscrete.*, expected actions='discrete'"):
        PPO(RefinementPolicy, pairs, device="cpu")


def test_learns_the_move_that_every_sample_wants(tmp_path: Path) -> None:
    with user_cache_in(tmp_path / "user"):
        short = short_cache(tmp_path / "short")
        env = NativeVecEnv(environment(short, observation="dict"))
        settings = {"n_steps": 8, "batch_size": 64, "n_epochs": 4, "learning_rate": 1e-3, "gamma": 1.0}
        model = PPO(RefinementPolicy, env, seed=0, device="cpu", **settings)
        model.learn(32 * 8 * 20)
        assert gain(model, short) > 20  # of 30
