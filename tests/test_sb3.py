"""SB3's vector environment over the native one, against SB3's own over single environments."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import random_batch
from refinement import environment, user_cache_in, written
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from vmr_env.agents.sb3.vec_env import SB3A2C, SB3PPO, NativeVecEnv, native
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.env import VMREnv
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.seeding import slot_seeds

N = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    with user_cache_in(tmp_path_factory.mktemp("sb3")) as folder:
        yield written(folder / "random", random_batch(20, q=4))


def equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    else:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("options", [{}, {"observation": "dict"}, {"actions": "continuous"}])
def test_equals_a_list_of_single_environments(cache: DecoderStateCache, options: dict[str, Any]) -> None:
    native = NativeVecEnv(environment(cache, n=N, **options))
    dummy = DummyVecEnv([lambda: Monitor(VMREnv("charades", source=cache, **options))] * N)
    assert native.observation_space == dummy.observation_space
    assert native.action_space == dummy.action_space
    native.seed(11)
    dummy._seeds = list(slot_seeds(11, N))  # SB3 itself adds the number of the slot
    equal(native.reset(), dummy.reset())
    native.action_space.seed(0)
    ended = 0
    for _ in range(9):
        actions = np.array([native.action_space.sample() for _ in range(N)])
        ours, theirs = native.step(actions), dummy.step(actions)
        equal(ours[0], theirs[0])
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-7)
        assert ours[1].dtype == theirs[1].dtype == np.float32
        np.testing.assert_array_equal(ours[2], theirs[2])
        for done, info, wanted in zip(ours[2], ours[3], theirs[3], strict=True):
            for key in ("sample", "qid", "vid", "proposal"):
                assert info[key] == wanted[key]
                assert type(info[key]) is type(wanted[key])
            assert info["tiou"] == pytest.approx(wanted["tiou"], abs=1e-7)
            np.testing.assert_array_equal(info["action_mask"], wanted["action_mask"])
            assert ("episode" in info) == bool(done)
            if done:
                ended += 1
                equal(info["terminal_observation"], wanted["terminal_observation"])
                assert info["TimeLimit.truncated"] == wanted["TimeLimit.truncated"]
                assert info["episode"]["l"] == wanted["episode"]["l"]
                assert info["episode"]["r"] == pytest.approx(wanted["episode"]["r"], abs=2e-6)  # rounded
        for info, wanted in zip(native.reset_infos, dummy.reset_infos, strict=True):
            assert info["qid"] == wanted["qid"]
    assert ended >= N


def test_monitors_over_native_environments_find_their_keywords(cache: DecoderStateCache) -> None:
    keys = ("qid", "vid", "tiou", "proposal")
    with pytest.warns(
        UserWarning, match="already wrapped"
    ):  # the native environment keeps its own statistics
        env = VecMonitor(NativeVecEnv(environment(cache, n=N, horizon=1)), info_keywords=keys)
    env.reset()
    _, _, ends, infos = env.step(np.array([env.action_space.sample() for _ in range(N)]))
    assert ends.all()
    assert all(info["episode"][key] == info[key] for info in infos for key in keys)


def test_native_takes_the_place_of_single_environments_made_alike(cache: DecoderStateCache) -> None:
    made = make_vec_env("VMR-Charades-Stage2-v0", N, env_kwargs={"source": str(cache.path), "horizon": 2})
    env = native(made)
    assert (env.num_envs, env.observation_space) == (N, made.observation_space)
    assert env.action_space == made.action_space
    assert env.get_attr("stage") == [2] * N
    env.seed(5)
    made._seeds = list(slot_seeds(5, N))
    equal(env.reset(), made.reset())
    stay = np.zeros(N, np.int64)
    assert [env.step(stay)[2].all() for _ in range(2)] == [False, True]


def test_options_reach_the_next_reset_only(cache: DecoderStateCache) -> None:
    env = NativeVecEnv(environment(cache, n=N))
    env.seed(0)
    env.set_options([{"sample": i + 2} for i in range(N)])
    env.reset()
    np.testing.assert_array_equal(env.env.episodes.samples, [2, 3, 4, 5])
    drawn = set()
    for _ in range(5):
        env.reset()
        drawn.update(env.env.episodes.samples.tolist())
    assert len(drawn) > N


def test_methods_and_attributes_are_those_of_single_environments(cache: DecoderStateCache) -> None:
    env = NativeVecEnv(environment(cache, n=N))
    env.seed(0)
    env.reset()
    assert env.get_attr("stage") == [3] * N
    assert env.env_method("set_stage", 1) == [None] * N
    env.reset()
    assert env.get_attr("stage", [0, 2]) == [1, 1]
    assert env.get_attr("action_space", 0) == [env.action_space]
    assert env.get_attr("observation_space", 0) == [env.observation_space]
    masks = env.env_method("action_masks")
    np.testing.assert_array_equal(masks, env.env.episodes.mask)
    np.testing.assert_array_equal(env.action_masks(), masks)
    np.testing.assert_array_equal(env.env_method("action_masks", indices=[2])[0], masks[2])
    np.testing.assert_array_equal(env.get_attr("action_masks")[1](), masks[1])
    assert not masks[0][48:52].any()  # stage 1 does not switch
    assert env.has_attr("action_masks")
    assert not env.has_attr("no_such_thing")
    assert env.env_is_wrapped(Monitor) == [True] * N
    with pytest.raises(ValueError, match=r"indices is \[0\] for 'set_stage', expected None"):
        env.env_method("set_stage", 2, indices=[0])
    env.set_attr("stage", 2)
    assert env.get_attr("stage") == [2] * N
    with pytest.raises(AttributeError):
        env.get_attr("no_such_thing")
    with pytest.raises(ValueError, match="stage must be one of"):
        env.env_method("set_stage", 4)


def test_other_autoreset_modes_are_refused(cache: DecoderStateCache) -> None:
    with pytest.raises(ValueError, match="autoreset_mode is 'NextStep', expected 'SameStep'"):
        NativeVecEnv(VMRVectorEnv(2, "charades", source=cache))


@pytest.mark.parametrize(
    "options", [{"observation": "dict"}, {"actions": "multidiscrete"}, {"actions": "continuous"}]
)
def test_learns_with_every_kind_of_space(cache: DecoderStateCache, options: dict[str, Any]) -> None:
    agent = SB3PPO(environment(cache, n=N, **options), 0, {"batch_size": 16, "n_epochs": 1})
    weights = {name: value.clone() for name, value in agent.model.policy.state_dict().items()}
    metrics = agent.update()
    assert metrics["charts/steps"] == 4 * N == agent.model.num_timesteps
    assert any((agent.model.policy.state_dict()[name] != value).any() for name, value in weights.items())
    observations, infos = agent.env.reset(seed=0)
    actions = agent.act(observations, infos["action_mask"])
    assert agent.env.action_space.contains(actions)


def test_sb3_programs_run_on_it(cache: DecoderStateCache, tmp_path: Path) -> None:
    env = NativeVecEnv(environment(cache, n=N))
    env.seed(0)
    agent = SB3PPO(environment(cache, n=N), 0, {"batch_size": 16})
    mean, deviation = evaluate_policy(agent.model, env, n_eval_episodes=8)
    assert -1 <= mean <= 1
    assert deviation >= 0
    agent.model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", env=env, device="cpu")
    observations, _ = agent.env.reset(seed=3)
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0],
        agent.model.predict(observations, deterministic=True)[0],
    )


def test_only_spaces_that_can_be_listed_have_masks(cache: DecoderStateCache) -> None:
    """sb3-contrib's MaskablePPO asks whether there are masks before it takes an environment."""
    for actions, has in (("discrete", True), ("multidiscrete", True), ("continuous", False)):
        assert hasattr(VMREnv("charades", source=cache, actions=actions), "action_masks") is has
        assert NativeVecEnv(environment(cache, n=N, actions=actions)).has_attr("action_masks") is has


@pytest.mark.parametrize("agent", [SB3PPO, SB3A2C])
def test_what_is_not_finite_stops_training_with_one_error(
    cache: DecoderStateCache, agent: type[SB3PPO | SB3A2C], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(cache, n=N, horizon=1)
    made = agent(env, 0, {"batch_size": 16} if agent is SB3PPO else None)
    made.update()
    step = env.step

    def broken(actions: Any) -> Any:
        observations, rewards, *rest = step(actions)
        return observations, rewards * np.nan, *rest

    monkeypatch.setattr(env, "step", broken)
    with pytest.raises(
        FloatingPointError, match=f"^{agent.__name__}, round 2: gradient norm is nan, expected"
    ):
        made.update()
    assert all(bool(weight.isfinite().all()) for weight in made.model.policy.parameters())


def test_a_rate_that_ruins_the_weights_is_told(cache: DecoderStateCache) -> None:
    made = SB3A2C(environment(cache, n=N, horizon=1), 0, {"learning_rate": 1e38, "max_grad_norm": 1e38})
    with pytest.raises(FloatingPointError, match=r"^SB3A2C, round 1: (weight|gradient) norm is (nan|inf)"):
        made.update()
