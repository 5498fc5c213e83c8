"""Advancing through the stages: the rules, the wrappers, and the callback of Stable-Baselines3."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from tests.caches import ARGUMENTS, random_batch
from vmr_env.agents.checkpoint import load_run, save_run
from vmr_env.agents.grpo import GRPO, GRPOConfig
from vmr_env.agents.ppo import PPO as PPOAgent
from vmr_env.agents.ppo import PPOConfig
from vmr_env.agents.sb3.curriculum import CurriculumCallback
from vmr_env.agents.sb3.vec_env import SB3PPO, NativeVecEnv
from vmr_env.caches.reader import DecoderStateCache, write_cache
from vmr_env.envs.curriculum import Curriculum, Plateau, Progression, Stage, StepSchedule
from vmr_env.envs.env import VMREnv
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.envs.vector_wrappers import VectorCurriculumWrapper
from vmr_env.envs.wrappers import CurriculumWrapper


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> DecoderStateCache:
    path = tmp_path_factory.mktemp("caches") / "cache"
    return DecoderStateCache.open(write_cache(path, random_batch(12), **ARGUMENTS))


def test_a_schedule_advances_when_its_steps_are_done() -> None:
    progression = Progression(StepSchedule((10, 25)))
    stages = []
    for _ in range(10):
        progression.observe(4)
        stages.append(progression.stage)
    assert stages == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3]  # after 4, 8, 12, … 24, 28


def test_a_schedule_may_leave_stages_out() -> None:
    progression = Progression(StepSchedule((5, 5)))
    assert progression.observe(5)
    assert progression.stage == 3


def test_a_plateau_by_hand() -> None:
    progression = Progression(Plateau(window=2, patience=2, least_gain=0.1))
    # Means of windows: 0.1 (best), 0.15 and 0.12 (no gain of 0.1) end stage 1; then 0.0 is the first of stage
    # 2, 0.5 a new best, 0.5 and 0.6 are none.
    returns = [0.0, 0.2, 0.1, 0.2, 0.12, 0.12, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6]
    advanced = [progression.observe(1, [value]) for value in returns]
    assert [i for i, new in enumerate(advanced) if new] == [5, 13]
    assert progression.stage == 3


@given(st.lists(st.floats(-1, 1), max_size=200), st.integers(1, 5), st.integers(1, 3))
def test_a_plateau_only_ever_goes_on_and_not_past_the_last_stage(
    returns: list[float], window: int, patience: int
) -> None:
    together, apart = (Progression(Plateau(window, patience)) for _ in range(2))
    stages = [together.stage]
    for value in returns:
        together.observe(1, [value])
        stages.append(together.stage)
    apart.observe(len(returns), returns)
    assert apart.stage == together.stage  # how returns arrive does not matter
    assert all(b - a in (0, 1) for a, b in pairwise(stages))
    assert stages[-1] <= 1 + len(returns) // (window * (patience + 1))  # the first window is always a best
    assert stages[-1] <= 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Progression(StepSchedule((1,))), "2 rising numbers of steps for 3 stages"),
        (lambda: Progression(StepSchedule((1, 2)), 2), "1 rising numbers of steps for 2 stages"),
        (lambda: StepSchedule((3, 2)), "rising numbers"),
        (lambda: StepSchedule((-1, 2)), "rising numbers"),
        (lambda: Stage("a", start_k=0), "start_k is 0, expected a whole number from 1"),
        (
            lambda: Stage("a", actions="move"),
            "actions of stage 'a' have 'move', expected some of move, switch",
        ),
        (lambda: Stage("a", actions=("jump",)), "actions of stage 'a' have 'jump', expected some of move"),
        (lambda: Curriculum(()), "expected at least one"),
        (lambda: Curriculum((Stage("a"), Stage("a", "giou"))), "a name for each"),
        (lambda: Plateau(window=0), "at least 1, got 0"),
        (lambda: Plateau(patience=0), "at least 1"),
    ],
)
def test_bad_rules_and_stages_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


MISSPELT = Curriculum((Stage("good"), Stage("bad", reward="tiuo")))
CHOICE = Curriculum((Stage("good"), Stage("choice", actions=("switch",))))


def test_a_fault_of_a_later_stage_is_told_at_once(cache: DecoderStateCache) -> None:
    with pytest.raises(ValueError, match=r"No reward 'tiuo'. Did you mean 'tiou'?"):
        VMREnv(source=cache, stage=1, curriculum=f"{__name__}:MISSPELT")
    with pytest.raises(ValueError, match=r"stage 2, 'choice', frees .*, expected some of move"):
        VMREnv(source=cache, stage=1, curriculum=f"{__name__}:CHOICE", actions="multidiscrete")
    with pytest.raises(ValueError, match=r"stage must be one of \[1, 2\], got 3"):
        VMREnv(source=cache, curriculum=f"{__name__}:CHOICE").set_stage(3)


def test_the_last_stage_is_the_default(cache: DecoderStateCache) -> None:
    assert VMREnv(source=cache).stage == 3
    assert VMRVectorEnv(2, source=cache, curriculum=f"{__name__}:FIVE").stage == 5


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_the_wrapped_environment_is_a_sound_one(cache: DecoderStateCache) -> None:
    env = CurriculumWrapper(VMREnv(source=cache), StepSchedule((10, 20)))
    assert env.observation_space == env.unwrapped.observation_space
    check_env(env, skip_render_check=True)


def test_a_new_stage_begins_with_the_next_episode(cache: DecoderStateCache) -> None:
    env = CurriculumWrapper(VMREnv(source=cache, horizon=2), StepSchedule((3, 8)))
    spaces = env.observation_space, env.action_space
    seen = []
    for seed in range(5):
        _, info = env.reset(seed=seed)
        stage = info["stage"]
        for _ in range(2):
            *_, info = env.step(0)
            assert info["stage"] == stage == env.unwrapped.stage  # type: ignore[attr-defined]
        seen.append(stage)
    assert seen == [1, 1, 2, 2, 3]  # episodes of 2 steps: after 2, 4, 6, 8
    assert (env.observation_space, env.action_space) == spaces


def test_returns_decide_for_a_single_environment(cache: DecoderStateCache) -> None:
    env = CurriculumWrapper(VMREnv(source=cache, horizon=1), Plateau(window=1, patience=1))
    stop = env.action_space.n - 1  # type: ignore[attr-defined]
    stages = []
    for _ in range(5):
        _, info = env.reset(seed=0)
        stages.append(info["stage"])
        env.step(stop)  # gains nothing: the first return of a stage is its best, the second no better
    assert stages == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_native_and_looped_vector_environments_advance_alike(
    cache: DecoderStateCache, mode: AutoresetMode
) -> None:
    def make() -> VMREnv:
        return VMREnv(source=cache, horizon=2)

    native: Any = VMRVectorEnv(3, source=cache, horizon=2, autoreset_mode=mode)
    looped: Any = SyncVectorEnv([make] * 3, autoreset_mode=mode)
    rule = Plateau(window=6, patience=1)
    wrapped = [VectorCurriculumWrapper(env, rule) for env in (native, looped)]
    stop = native.single_action_space.n - 1
    stages: list[list[int]] = [[], []]
    for env, seen in zip(wrapped, stages, strict=True):
        env.reset(seed=[0, 1, 2])
        for step in range(24):
            *_, infos = env.step(np.full(3, 0 if step % 2 else stop))
            seen.append(infos["stage"])
            inner: Any = env.unwrapped
            assert set(inner.get_attr("stage")) == {env.progression.stage}
    assert stages[0] == stages[1]
    assert stages[0][0] == 1
    assert stages[0][-1] > 1


def test_steps_that_only_reset_are_no_steps(cache: DecoderStateCache) -> None:
    env = VectorCurriculumWrapper(
        VMRVectorEnv(2, source=cache, horizon=1, autoreset_mode=AutoresetMode.NEXT_STEP),
        StepSchedule((4, 8)),
    )
    env.reset(seed=0)
    stages = [env.step(np.zeros(2, int))[-1]["stage"] for _ in range(8)]
    # Every other step begins episodes; two environments do 2, 2, 4, 4, 6, 6, 8 steps.
    assert stages == [1, 1, 1, 2, 2, 2, 2, 3]


def _stages(env: VecEnv) -> list[int]:
    return [int(stage) for stage in env.get_attr("stage")]


@pytest.mark.parametrize("kind", ["native", "dummy"])
def test_stable_baselines_goes_through_the_stages(cache: DecoderStateCache, kind: str) -> None:
    if kind == "native":
        env: VecEnv = NativeVecEnv(VMRVectorEnv(2, source=cache, autoreset_mode="SameStep"))
    else:
        env = make_vec_env(lambda: VMREnv(source=cache), n_envs=2)
    callback = CurriculumCallback(StepSchedule((16, 40)))
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
    model.learn(16, callback=callback)
    assert (callback.progression.stage, _stages(env)) == (2, [2, 2])
    model.learn(32, callback=callback, reset_num_timesteps=False)
    assert (callback.progression.stage, _stages(env)) == (3, [3, 3])


def test_the_callback_reads_returns(cache: DecoderStateCache, capsys: pytest.CaptureFixture[str]) -> None:
    env = NativeVecEnv(VMRVectorEnv(4, source=cache, horizon=1, autoreset_mode="SameStep"))
    callback = CurriculumCallback(Plateau(window=4, patience=1, least_gain=2.0), verbose=1)
    PPO("MlpPolicy", env, n_steps=4, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(16, callback)
    # Four returns a step; no window's mean is 2 above the first one's, so every other step ends a stage.
    assert callback.progression.stage == 3
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage")] == [
        "stage 1 begins after 0 steps",
        "stage 2 begins after 8 steps",
        "stage 3 begins after 16 steps",
    ]


def test_the_wrapper_reaches_through_other_wrappers(cache: DecoderStateCache) -> None:
    inner = gymnasium.wrappers.FlattenObservation(VMREnv(source=cache, horizon=1))
    env = CurriculumWrapper(inner, StepSchedule((1, 2)))
    for stage in (1, 2, 3):
        env.reset(seed=0)
        assert env.unwrapped.stage == stage  # type: ignore[attr-defined]
        env.step(0)


@pytest.mark.parametrize("rule", [StepSchedule((10, 25)), Plateau(window=2, patience=2, least_gain=0.1)])
def test_a_progression_goes_on_from_its_state(rule: StepSchedule | Plateau) -> None:
    returns = np.random.default_rng(0).normal(size=60).tolist()
    whole, cut = Progression(rule), Progression(rule)
    stages = []
    for i, value in enumerate(returns):
        whole.observe(1, [value])
        cut.observe(1, [value])
        state = json.loads(json.dumps(cut.state_dict()))
        cut = Progression(rule)
        cut.load_state_dict(state)
        stages.append(cut.stage)
        assert cut.stage == whole.stage, i
    assert stages[-1] == 3


def test_a_return_that_is_no_number_is_refused_and_counts_for_nothing() -> None:
    progression = Progression(Plateau(window=1, patience=1))
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"a return is (nan|inf), expected a finite number"):
            progression.observe(1, [0.5, wrong])
    assert progression.state_dict() == Progression(Plateau()).state_dict()


AGENTS: dict[str, Any] = {
    "ppo": lambda env: PPOAgent(env, 3, PPOConfig(hidden=8, minibatch=16)),
    "grpo": lambda env: GRPO(env, 3, GRPOConfig(hidden=8, group=2, minibatch=16, batches=2)),
    "sb3": lambda env: SB3PPO(env, 3, {"batch_size": 16, "policy_kwargs": {"net_arch": [8]}}),
}


FIVE = Curriculum(
    (
        Stage("near", "giou", actions=("move",)),
        Stage("within", actions=("move",)),
        Stage("choice", actions=("switch",), start_k=2),
        Stage("all"),
        Stage("thresholds", "step"),
    )
)


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(
    ("curriculum", "rule"),
    [
        ("tprl", StepSchedule((90, 150))),
        ("tprl", Plateau(window=10, patience=1)),
        (f"{__name__}:FIVE", StepSchedule((30, 60, 90, 150))),
        (f"{__name__}:FIVE", Plateau(window=4, patience=1)),
    ],
)
def test_a_resumed_agent_goes_on_in_its_stage(
    cache: DecoderStateCache, tmp_path: Path, name: str, curriculum: str, rule: StepSchedule | Plateau
) -> None:
    """Bit for bit as one that was not interrupted, through a file."""

    def make() -> Any:
        inner: Any = VMRVectorEnv(
            4, source=cache, horizon=2, autoreset_mode="SameStep", curriculum=curriculum
        )
        return AGENTS[name](VectorCurriculumWrapper(inner, rule))

    whole = make()
    stages, figures = [], []
    for _ in range(12):
        if len(stages) == 6:
            save_run(tmp_path / "agent.pt", "test", {}, whole.state_dict())
        figures.append(whole.update())
        stages.append(whole.env.progression.stage)
    resumed = make()
    resumed.load_state_dict(load_run(tmp_path / "agent.pt", "test", {}))
    for at in range(6, 12):
        assert resumed.update() == figures[at]
        assert resumed.env.progression.stage == stages[at] == resumed.env.stage
    assert stages[5] > 1  # otherwise this shows nothing
    assert stages[-1] == len(whole.env.curriculum) or isinstance(rule, Plateau)
    assert resumed.env.progression.state_dict() == whole.env.progression.state_dict()


def test_what_an_agent_visits_before_it_learns_is_no_step_of_the_curriculum(
    cache: DecoderStateCache,
) -> None:
    """Otherwise a short first stage would be over before anything is learnt in it."""
    env = VMRVectorEnv(16, source=cache, autoreset_mode="SameStep")
    staged: Any = VectorCurriculumWrapper(env, StepSchedule((100, 200)))
    agent = PPOAgent(staged, 0, PPOConfig(steps=4))
    assert staged.progression.state_dict() == Progression(StepSchedule((100, 200))).state_dict()
    stages = []
    for _ in range(4):  # of 64 steps
        agent.collector.reset(0)
        stages.append(env.stage)
        agent.update()
    assert stages == [1, 1, 2, 2]


def test_a_state_with_a_curriculum_needs_an_environment_with_one(cache: DecoderStateCache) -> None:
    inner: Any = VMRVectorEnv(4, source=cache, horizon=2, autoreset_mode="SameStep")
    state = AGENTS["ppo"](VectorCurriculumWrapper(inner, StepSchedule())).state_dict()
    with pytest.raises(ValueError, match="the environment has no curriculum, expected one"):
        AGENTS["ppo"](inner).load_state_dict(state)


def test_a_saved_model_of_stable_baselines_goes_on_in_its_stage(
    cache: DecoderStateCache, tmp_path: Path
) -> None:
    def env() -> NativeVecEnv:
        return NativeVecEnv(VMRVectorEnv(2, source=cache, autoreset_mode="SameStep"))

    rule = StepSchedule((16, 40))
    model = PPO("MlpPolicy", env(), n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
    model.learn(32, callback=CurriculumCallback(rule))
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", env=env(), device="cpu")
    callback = CurriculumCallback(rule)
    loaded.learn(16, callback=callback, reset_num_timesteps=False)
    assert callback.progression.state_dict()["steps"] == 48
    assert (callback.progression.stage, _stages(loaded.get_env())) == (3, [3, 3])
    anew = CurriculumCallback(rule)
    loaded.learn(8, callback=anew)  # SB3's own steps begin anew, and so do the stages
    assert anew.progression.state_dict()["steps"] == loaded.num_timesteps == 16


def test_a_plateau_needs_a_finite_gain() -> None:
    with pytest.raises(ValueError, match="least_gain is nan, expected a finite number"):
        Plateau(least_gain=math.nan)
