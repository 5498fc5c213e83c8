"""Judging saved models of SB3, on a cache on which the best move is known."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refinement import MISSING_CLIPS, environment, short_cache, user_cache_in
from stable_baselines3 import PPO

from vmr_env.agents.sb3.vec_env import NativeVecEnv
from vmr_env.benchmarks.experiment.sb3_models import gain, main, mean_over_seeds
from vmr_env.caches.reader import DecoderStateCache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    with user_cache_in(tmp_path_factory.mktemp("models")) as folder:
        yield short_cache(folder / "short")


class Takes:
    """Stands for a model: takes the given actions, the last of them again and again."""

    def __init__(self, *actions: int) -> None:
        self.actions = list(actions)
        self.observation_space = self.action_space = None  # flat, discrete

    def predict(self, observations: Any, deterministic: bool) -> tuple[Any, None]:
        assert deterministic
        action = self.actions.pop(0) if len(self.actions) > 1 else self.actions[0]
        return np.full(len(observations), action), None


def test_gain_is_in_percent_points_of_the_mean_tiou(cache: DecoderStateCache) -> None:
    names = environment(cache, n=1).action_mode.names()
    stop, best = len(names) - 1, names.index(f"start +0, end +{MISSING_CLIPS} clips")
    assert gain(Takes(stop), cache) == 0  # type: ignore[arg-type]
    assert gain(Takes(best, stop), cache) == pytest.approx(30, abs=1e-3)  # type: ignore[arg-type]


def test_interval_is_students() -> None:
    mean = mean_over_seeds([1, 2, 3])
    assert mean == pytest.approx((2, 4.3027 / np.sqrt(3)), abs=1e-3)  # t of 2 degrees of freedom, sd 1
    assert np.isnan(mean_over_seeds([1]).half)


def test_tells_each_model_and_their_mean(
    cache: DecoderStateCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [tmp_path / "one.zip", tmp_path / "two.zip"]
    for seed, path in enumerate(models):
        env = NativeVecEnv(environment(cache, n=2))
        PPO("MlpPolicy", env, n_steps=8, batch_size=16, seed=seed, device="cpu").save(path)
    assert main(["ppo", *map(str, models), "--source", str(cache.path), "--split", "test"]) == 0
    *each, mean = capsys.readouterr().out.splitlines()
    gains = [gain(PPO.load(path, device="cpu"), cache) for path in models]
    wanted = [[f"{one:+.2f}", str(path)] for one, path in zip(gains, models, strict=True)]
    assert [line.split() for line in each] == wanted
    assert mean.startswith(f"{np.mean(gains):+.2f} ± ")
