"""Other people's libraries run on the environments as they are. Each is skipped where it is not installed.

`docs/clients.md` has the commands that a person would type, and what was seen; its code runs here too.
"""

import importlib
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from caches import ARGUMENTS, random_batch

from vmr_env.caches.reader import write_cache

pytestmark = pytest.mark.filterwarnings("default")  # what other libraries warn about is theirs

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
ENV_ID = "vmr_env:VMR-Charades-v0"
CONTINUOUS_ID = "vmr_env:VMR-Charades-Continuous-v0"
MODERN = tuple(map(int, gymnasium.__version__.split(".")[:2])) >= (1, 1)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `VMR_ENV_DATA` may name: a folder with a small cache."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "charades").mkdir()
    write_cache(folder / "charades" / "train", random_batch(20, q=4), **ARGUMENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "user"))
        yield folder


@pytest.fixture(scope="module")
def options(data_folder: Path) -> dict[str, Any]:
    """Arguments of environments over the small cache."""
    return {"source": str(data_folder / "charades" / "train")}


def episodes(env: Any, count: int = 3) -> Iterator[tuple[Any, float, bool, bool, dict[str, Any]]]:
    """Steps of some episodes of random actions."""
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(count):
        over = False
        while not over:
            step = env.step(env.action_space.sample())
            over = step[2] or step[3]
            yield step
        env.reset()


# Gymnasium, also 0.29.1.


def test_an_id_with_the_module_needs_no_import(options: dict[str, Any]) -> None:
    """In an interpreter that has imported nothing of ours; Gymnasium 1 finds no plugins by itself."""
    code = f"""
import gymnasium
try:
    gymnasium.make({ENV_ID.partition(":")[2]!r}, **{options!r})
except gymnasium.error.NameNotFound:
    print("not found")
for name in {ENV_ID!r}, {ENV_ID.partition(":")[2]!r}:
    print(gymnasium.make(name, **{options!r}).spec.id)
"""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert told.stdout.split("\n") == ["not found", *[ENV_ID.partition(":")[2]] * 2, ""]


def test_gymnasium_wrappers(options: dict[str, Any]) -> None:
    made = gymnasium.make(ENV_ID, observation="dict", **options)
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.wrappers.FlattenObservation(made))
    told, earned, total = list[float](), list[float](), 0.0
    for observation, reward, terminated, truncated, info in episodes(env):
        assert env.observation_space.contains(observation)
        total += reward
        assert not truncated
        if terminated:
            told.append(float(np.squeeze(info["episode"]["r"])))
            earned.append(total)
            total = 0.0
    assert len(told) == 3
    np.testing.assert_allclose(told, earned, atol=1e-5)
    normal = gymnasium.wrappers.NormalizeObservation(gymnasium.make(ENV_ID, **options))
    assert all(np.isfinite(step[0]).all() for step in episodes(normal))


def test_gymnasium_time_limit_truncates(options: dict[str, Any]) -> None:
    env = gymnasium.make(ENV_ID, max_episode_steps=2, **options)
    env.reset(seed=0)
    steps = [env.step(0)[2:4] for _ in range(2)]
    assert steps == [(False, False), (False, True)]


def test_gymnasium_flat_is_the_dict_flattened(options: dict[str, Any]) -> None:
    flat = gymnasium.make(ENV_ID, **options)
    named = gymnasium.make(ENV_ID, observation="dict", **options)
    seen, parts = flat.reset(seed=3)[0], named.reset(seed=3)[0]
    joined = np.concatenate([parts[name].ravel() for name in named.unwrapped.observer.shapes])  # type: ignore[attr-defined]  # VMREnv's
    np.testing.assert_array_equal(seen, joined)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_gymnasium_make_vec(mode: str, options: dict[str, Any]) -> None:
    envs = gymnasium.make_vec(ENV_ID, num_envs=2, vectorization_mode=mode, **options)
    try:
        observations, _ = envs.reset(seed=0)
        single = gymnasium.make(ENV_ID, **options)
        for i, observation in enumerate(observations):
            np.testing.assert_array_equal(observation, single.reset(seed=i)[0])
    finally:
        envs.close()


@pytest.mark.parametrize("kind", ["SyncVectorEnv", "AsyncVectorEnv"])
def test_gymnasium_vector_environments(kind: str, options: dict[str, Any]) -> None:
    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(ENV_ID, **options))

    envs = getattr(gymnasium.vector, kind)([make] * 2)
    try:
        observations, _ = envs.reset(seed=0)
        assert observations.shape == (2, *envs.single_observation_space.shape)
        ended = 0
        for _ in range(8):  # as CleanRL's scripts, which want Gymnasium 0.29.1, go on
            observations, _, terminations, truncations, _ = envs.step(np.zeros(2, np.int64))
            assert observations.dtype == np.float32
            assert not truncations.any()
            ended += int(terminations.sum())
        assert ended >= 2
    finally:
        envs.close()


@pytest.mark.skipif(MODERN, reason="this Gymnasium has what the native environment needs")
def test_older_gymnasium_makes_single_environments_and_is_told_what_the_native_one_needs(
    options: dict[str, Any],
) -> None:
    envs = gymnasium.make_vec(ENV_ID, num_envs=2, vectorization_mode="sync", **options)
    observations, _ = envs.reset(seed=0)
    assert len(observations) == 2
    envs.close()
    with pytest.raises(ImportError, match=r"needs gymnasium 1\.1 or later, found [01]\.\d+"):
        importlib.import_module("vmr_env.envs.vector_env")


@pytest.mark.skipif(not MODERN, reason="make_vec with autoreset modes came with Gymnasium 1.1")
def test_gymnasium_vector_wrappers_on_the_native_environment(options: dict[str, Any]) -> None:
    from gymnasium.wrappers import vector

    envs: Any = gymnasium.make_vec(ENV_ID, 4, vectorization_mode="vector_entry_point", **options)
    for wrapper in (vector.RecordEpisodeStatistics, vector.NormalizeObservation, vector.NormalizeReward):
        envs = wrapper(envs)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    lengths = []
    for _ in range(8):
        observations, rewards, *_, infos = envs.step(envs.action_space.sample())
        assert np.isfinite(observations).all()
        assert np.isfinite(rewards).all()
        if "episode" in infos:
            lengths += infos["episode"]["l"][infos["_episode"]].tolist()
    assert lengths
    assert set(lengths) <= {1, 2, 3}


@pytest.mark.skipif(not MODERN, reason="the native environment needs Gymnasium 1.1")
def test_gymnasium_of_any_version_lets_our_agents_learn_and_the_main_job_start(
    options: dict[str, Any],
) -> None:
    """Ray pins an older Gymnasium than the current one."""
    importlib.import_module("vmr_env.benchmarks.experiment.main")
    from vmr_env.agents.expected_gain import ExpectedGain
    from vmr_env.envs.curriculum import StepSchedule
    from vmr_env.envs.vector_env import VMRVectorEnv
    from vmr_env.envs.vector_wrappers import VectorCurriculumWrapper

    env: Any = VMRVectorEnv(4, "charades", autoreset_mode="SameStep", **options)
    figures = ExpectedGain(VectorCurriculumWrapper(env, StepSchedule((8, 16))), 0).update()
    assert figures["charts/steps"] > 0


# Stable-Baselines3.


@pytest.mark.parametrize("name", ["PPO", "A2C", "DQN"])
def test_sb3_discrete(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env_util = pytest.importorskip("stable_baselines3.common.env_util")
    env = env_util.make_vec_env(ENV_ID, 2, seed=0, env_kwargs=options)
    settings: dict[str, Any] = {
        "PPO": {"n_steps": 16, "batch_size": 16, "n_epochs": 1},
        "A2C": {},
        "DQN": {"learning_starts": 16, "buffer_size": 100},
    }[name]
    algorithm = getattr(sb3, name)
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", **settings).learn(64)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    observations = env.reset()
    np.testing.assert_array_equal(
        model.predict(observations, deterministic=True)[0],
        loaded.predict(observations, deterministic=True)[0],
    )


def test_sb3_continuous(options: dict[str, Any]) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = gymnasium.make(CONTINUOUS_ID, **options)
    model = sb3.SAC("MlpPolicy", env, learning_starts=16, buffer_size=100, device="cpu").learn(32)
    assert model.num_timesteps == 32


def test_sb3_dict_observations_and_evaluation(options: dict[str, Any], tmp_path: Path) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    callbacks = pytest.importorskip("stable_baselines3.common.callbacks")
    monitor = pytest.importorskip("stable_baselines3.common.monitor")
    train, judge = (monitor.Monitor(gymnasium.make(ENV_ID, observation="dict", **options)) for _ in range(2))
    evaluation = callbacks.EvalCallback(
        judge, eval_freq=16, n_eval_episodes=4, best_model_save_path=str(tmp_path), verbose=0
    )
    sb3.PPO("MultiInputPolicy", train, n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(
        32, callback=evaluation
    )
    assert -1 <= evaluation.last_mean_reward <= 1
    assert (tmp_path / "best_model.zip").exists()


def test_sb3_contrib_maskable_ppo_takes_possible_actions_only(options: dict[str, Any]) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    env = gymnasium.make(ENV_ID, stage=1, **options)
    model = contrib.MaskablePPO("MlpPolicy", env, n_steps=32, batch_size=16, n_epochs=1, seed=0, device="cpu")
    model.learn(32)
    taken = 0
    for _ in range(10):
        observation, info = env.reset()
        over = False
        while not over:
            action, _ = model.predict(observation, action_masks=info["action_mask"])
            assert info["action_mask"][action]
            observation, _, over, _, info = env.step(int(action))
            taken += 1
    assert taken >= 10


@pytest.mark.skipif(not MODERN, reason="the native environment needs Gymnasium 1.1")
def test_sb3_contrib_maskable_ppo_learns_from_the_native_environment(options: dict[str, Any]) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    from vmr_env.agents.sb3.vec_env import NativeVecEnv
    from vmr_env.envs.vector_env import VMRVectorEnv

    env = NativeVecEnv(VMRVectorEnv(4, stage=1, autoreset_mode="SameStep", **options))
    model = contrib.MaskablePPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
    model.learn(32)
    buffer = model.rollout_buffer  # flattened by learning: (steps, actions)
    masks, actions = buffer.action_masks.astype(bool), buffer.actions.astype(int).ravel()
    assert not masks.all()
    assert masks[np.arange(len(actions)), actions].all()


# RL Baselines3 Zoo.


ZOO = ROOT / "benchmarks" / "zoo"


def zoo(
    algorithm: str, options: dict[str, Any], folder: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    arguments = [
        "--gym-packages",
        "vmr_env",
        "--env",
        "VMR-Charades-v0",
        "--algo",
        algorithm,
        "-f",
        str(folder),
    ]
    arguments += [
        "--conf-file",
        str(ZOO / f"{algorithm}.yml"),
        "--env-kwargs",
        f"source:'{options['source']}'",
    ]
    command = [sys.executable, "-W", "ignore", "-m", "rl_zoo3.train", *arguments, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "dqn"])
def test_zoo_trains_with_the_shipped_settings(
    algorithm: str, options: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("rl_zoo3")
    done = zoo(algorithm, options, tmp_path, "-n", "256", "--eval-freq", "-1")
    assert done.returncode == 0, done.stderr[-2000:]
    (model,) = (tmp_path / algorithm).rglob("VMR-Charades-v0.zip")
    assert model.stat().st_size > 1000


def test_zoo_searches_settings(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3")
    search = ["-optimize", "--n-trials", "1", "--n-jobs", "1", "--n-evaluations", "1", "--eval-episodes", "2"]
    judged = f"source:'{options['source']}'", "samples:range(15,20)"
    fast = "--hyperparams", "n_envs:2", "vec_env_wrapper:'vmr_env.agents.sb3.vec_env.native'"
    done = zoo("ppo", options, tmp_path, "-n", "64", *search, "--eval-env-kwargs", *judged, *fast)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Number of finished trials:  1" in done.stdout


# CleanRL.


@pytest.mark.skipif("VMR_CLEANRL" not in os.environ, reason="VMR_CLEANRL names no checkout of CleanRL")
@pytest.mark.parametrize(
    ("script", "name", "settings"),
    [
        ("ppo", ENV_ID, ["--num-steps", "16"]),
        ("dqn", ENV_ID, ["--buffer-size", "64", "--learning-starts", "64", "--batch-size", "16"]),
        ("ppo_continuous_action", CONTINUOUS_ID, ["--num-steps", "32", "--num-minibatches", "2"]),
    ],
)
def test_cleanrl(script: str, name: str, settings: list[str], data_folder: Path, tmp_path: Path) -> None:
    checkout = Path(os.environ["VMR_CLEANRL"]).absolute()
    path = os.pathsep.join([str(ROOT), str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", str(checkout / "cleanrl" / f"{script}.py")),
            *("--env-id", name, "--total-timesteps", "128", *settings),
        ],
        cwd=tmp_path,  # it writes `runs` there
        env={**os.environ, "PYTHONPATH": path, "VMR_ENV_DATA": str(data_folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    returns = re.findall(r"episodic_return=\[?([-.\d]+)", done.stdout)
    assert len(returns) >= 128 // 6 // 4  # episodes have six steps at most; not every one is told
    assert all(-1 <= float(one) <= 1 for one in returns)
    assert list((tmp_path / "runs").rglob("events.out.tfevents.*"))


# TorchRL, RLlib, Tianshou, skrl.


@pytest.mark.parametrize(
    ("name", "more"),
    [
        (ENV_ID, {}),
        (ENV_ID, {"observation": "dict"}),
        (CONTINUOUS_ID, {}),
        ("vmr_env:VMR-Charades-MultiDiscrete-v0", {}),
    ],
)
def test_torchrl(name: str, more: dict[str, Any], options: dict[str, Any]) -> None:
    envs = pytest.importorskip("torchrl.envs")
    env = envs.GymEnv(name, **more, **options)
    envs.check_env_specs(env)
    rollout = env.rollout(6, break_when_any_done=False)
    assert rollout["next", "reward"].shape == (6, 1)
    assert rollout["next", "done"].any()


@pytest.mark.parametrize("native", [False, True])
def test_rllib(native: bool, options: dict[str, Any]) -> None:
    ppo = pytest.importorskip("ray.rllib.algorithms.ppo")
    runners: dict[str, Any] = {
        "num_env_runners": 0,
        "num_envs_per_env_runner": 4,
        "rollout_fragment_length": 8,
    }
    if native:
        runners["gym_env_vectorize_mode"] = "vector_entry_point"
    config = (
        ppo.PPOConfig()
        .environment(ENV_ID, env_config=options)
        .env_runners(**runners)
        .training(train_batch_size_per_learner=32, minibatch_size=16, num_epochs=1)
        .learners(num_learners=0)
    )
    algorithm = config.build_algo()
    try:
        result = algorithm.train()["env_runners"]
        assert result["num_env_steps_sampled"] >= 32
        assert -1 <= result["episode_return_mean"] <= 1
    finally:
        algorithm.stop()


def test_tianshou(options: dict[str, Any]) -> None:
    algorithms = pytest.importorskip("tianshou.algorithm")
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.utils.net.common import Net

    envs = DummyVectorEnv([lambda: gymnasium.make(ENV_ID, **options)] * 4)
    space, actions = envs.observation_space[0], envs.action_space[0]
    net = Net(state_shape=space.shape, action_shape=actions.n, hidden_sizes=[16])
    policy = DiscreteQLearningPolicy(model=net, action_space=actions, eps_training=0.5)
    algorithm = algorithms.DQN(
        policy=policy, optim=AdamOptimizerFactory(lr=1e-3), gamma=1.0, target_update_freq=10
    )
    collector = Collector(algorithm, envs, VectorReplayBuffer(200, 4), exploration_noise=True)
    collector.reset()
    found = collector.collect(n_episode=8)
    assert found.n_collected_episodes == 8
    assert np.abs(found.returns).max() <= 1


@pytest.mark.parametrize("native", [False, True])
def test_skrl(native: bool, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    wrappers = pytest.importorskip("skrl.envs.wrappers.torch")
    made: Any = (
        gymnasium.make_vec(ENV_ID, 4, vectorization_mode="vector_entry_point", **options)
        if native
        else gymnasium.make(ENV_ID, **options)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = wrappers.wrap_env(made)
    n = 4 if native else 1
    observations, _ = env.reset()
    assert observations.shape == (n, *env.observation_space.shape)
    _, rewards, terminated, truncated, _ = env.step(torch.zeros(n, 1, dtype=torch.long))
    assert rewards.shape == terminated.shape == truncated.shape == (n, 1)


# The code on the page that no other test runs.


@pytest.mark.parametrize(
    ("section", "library"),
    [
        ("sb3-contrib", "sb3_contrib"),
        ("TorchRL", "torchrl"),
        ("Ray RLlib", "ray.rllib.algorithms.ppo"),
        ("skrl", "skrl"),
        ("Tianshou", "tianshou"),
    ],
)
def test_code_on_the_page(
    section: str, library: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library)
    monkeypatch.setenv("VMR_ENV_DATA", str(data_folder))
    monkeypatch.chdir(tmp_path)  # skrl writes `runs` there
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert text
    code = re.findall(r"^```py\n(.*?)^```$", text[1], re.DOTALL | re.MULTILINE)
    assert code
    for block in code:
        exec(compile(block, f"clients.md, {section}", "exec"), {"__name__": "docs"})
