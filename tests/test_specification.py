"""What Gymnasium writes down of an environment, limits of steps, stages, and the warning of simulation."""

import json
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from caches import ARGUMENTS, random_batch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeAwareObservation, TimeLimit

from vmr_env.caches.reader import DecoderStateCache, write_cache
from vmr_env.envs.env import VMREnv
from vmr_env.envs.sources import open_source
from vmr_env.envs.vector_env import VMRVectorEnv


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> DecoderStateCache:
    path = tmp_path_factory.mktemp("caches") / "cache"
    return DecoderStateCache.open(write_cache(path, random_batch(12, q=4), **ARGUMENTS))


@pytest.mark.parametrize(
    "arguments",
    [
        {"samples": range(2, 7)},
        {"samples": np.array([3, 5]), "horizon": 2},
        {"samples": (1, 2), "components": ("span", "remaining"), "free": ("move",)},
        {"proposals": 2, "stage": 1},
    ],
)
@pytest.mark.parametrize("form", [Path, str, DecoderStateCache])
def test_a_specification_in_json_makes_the_same_environment(
    cache: DecoderStateCache, arguments: dict[str, Any], form: Any
) -> None:
    source = cache if form is DecoderStateCache else form(cache.path)
    env = gymnasium.make("VMR-Charades-v0", source=source, **arguments)
    assert env.spec is not None
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    np.testing.assert_equal(again.reset(seed=1), env.reset(seed=1))
    vector = gymnasium.make_vec(
        "VMR-Charades-v0", num_envs=2, source=source, autoreset_mode=AutoresetMode.SAME_STEP, **arguments
    )
    assert vector.spec is not None
    told = json.loads(vector.spec.to_json())["kwargs"]
    assert (told["source"], told["num_envs"], told["autoreset_mode"]) == (str(cache.path), 2, "SameStep")


@pytest.mark.parametrize(
    ("arguments", "steps"), [({}, 3), ({"horizon": 7}, 7), ({"actions": "continuous"}, 6)]
)
def test_the_horizon_is_in_the_specification(
    cache: DecoderStateCache, arguments: dict[str, Any], steps: int
) -> None:
    env = gymnasium.make("VMR-Charades-v0", source=cache, **arguments)
    assert env.spec is not None
    assert env.spec.max_episode_steps == steps
    aware = TimeAwareObservation(env, flatten=False, normalize_time=True)
    assert aware.reset(seed=0)[0]["time"] == 0
    assert aware.step(aware.action_space.sample() * 0)[0]["time"] == pytest.approx(1 / steps)
    limited = gymnasium.make("VMR-Charades-v0", source=cache, max_episode_steps=2, **arguments)
    assert limited.spec is not None
    assert limited.spec.max_episode_steps == 2


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_limit_of_steps_is_that_of_gymnasium(
    cache: DecoderStateCache, mode: AutoresetMode, limit: int
) -> None:
    def make() -> Any:
        return TimeLimit(VMREnv(source=cache), limit)

    native: Any = gymnasium.make_vec(
        "VMR-Charades-v0", num_envs=3, source=cache, autoreset_mode=mode, max_episode_steps=limit
    )
    loop = SyncVectorEnv([make] * 3, autoreset_mode=mode)
    native.reset(seed=[0, 1, 2])
    loop.reset(seed=[0, 1, 2])
    rng, cut = np.random.default_rng(0), 0
    for _ in range(20):
        actions = np.where(rng.random(3) < 0.3, native.single_action_space.n - 1, 0)
        ours, theirs = native.step(actions), loop.step(actions)
        for got, want in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_allclose(got, want, atol=1e-6)
        cut += int((ours[3] & ~ours[2]).sum())
        assert ("final_obs" in ours[4]) == ("final_obs" in theirs[4])
    assert (cut > 0) == (limit < 3)


def test_a_limit_of_no_steps_is_refused(cache: DecoderStateCache) -> None:
    with pytest.raises(ValueError, match="max_episode_steps is 0"):
        VMRVectorEnv(2, source=cache, max_episode_steps=0)


def potential(name: str, span: Any, moments: Any) -> float:
    """The highest tIoU or generalised IoU of a span with a moment, from boundaries in seconds."""
    values = []
    for low, high in moments:
        common = max(0.0, min(span[1], high) - max(span[0], low))
        union = span[1] - span[0] + high - low - common
        hull = max(span[1], high) - min(span[0], low)
        values.append(common / union - ((hull - union) / hull if name == "giou" else 0))
    return float(max(values))


@pytest.mark.parametrize(("first", "then"), [(1, 3), (3, 1)])
@pytest.mark.parametrize("kind", ["single", "NextStep", "SameStep"])
def test_rewards_of_an_episode_add_up_in_one_potential_when_the_stage_changes(
    cache: DecoderStateCache, first: int, then: int, kind: str
) -> None:
    """Stage 1 rewards generalised IoU, stage 3 tIoU; what runs when the stage changes ends as it began."""
    if kind == "single":
        env: Any = SyncVectorEnv([partial(VMREnv, source=cache, stage=first)] * 4)
    else:
        env = VMRVectorEnv(4, source=cache, stage=first, autoreset_mode=kind)
    infos = env.reset(seed=3)[1]
    names, rng, now, judged = {1: "giou", 3: "tiou"}, np.random.default_rng(0), first, 0
    stages, sums, over = np.full(4, first), np.zeros(4), np.zeros(4, bool)
    samples, begun = infos["sample"].copy(), infos["span"].copy()
    for step in range(14):
        if step in (2, 7):
            now = then if now == first else first
            env.call("set_stage", now)
        masks = infos["action_mask"].astype(bool)
        assert not masks[stages == 1][:, 48:-1].any()  # switches, which stage 1 does not free
        actions = np.array([rng.choice(np.flatnonzero(mask[:-1])) for mask in masks])
        actions[rng.random(4) < 0.2] = masks.shape[1] - 1
        _, rewards, terminated, _, infos = env.step(actions)
        sums += rewards
        last = infos["final_info"]["span"] if "final_info" in infos else infos["span"]
        for i in np.flatnonzero(terminated):
            moments = cache.sample(int(samples[i])).moments
            before, after = (potential(names[stages[i]], span[i], moments) for span in (begun, last))
            assert sums[i] == pytest.approx(after - before, abs=1e-4)
            judged += 1
        begins = terminated if kind == "SameStep" else over
        stages[begins], begun[begins], samples[begins] = now, infos["span"][begins], infos["sample"][begins]
        sums[begins] = 0
        over = terminated & (kind != "SameStep")
    assert judged > 8


def test_simulated_data_are_told_of_once_in_a_tree_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMR_ENV_TOLD", raising=False)
    monkeypatch.delenv("VMR_ENV_DATA", raising=False)
    with pytest.warns(UserWarning, match="no cache given for Charades test: using simulated data"):
        open_source("charades", "test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_source("charades", "test")
    with pytest.warns(UserWarning, match="no cache given for Charades val"):
        open_source("charades", "val")
    code = "from vmr_env.envs.sources import open_source; open_source('charades', 'test')"
    child = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=False
    )
    assert (child.returncode, child.stderr) == (0, "")
