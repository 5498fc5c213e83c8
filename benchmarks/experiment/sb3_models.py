"""Gains of saved models of Stable-Baselines3 or RL Baselines3 Zoo on samples that they were not trained on.

    python -m vmr_env.benchmarks.experiment.sb3_models ppo runs/zoo/ppo/*/VMR-Charades-v0.zip

prints, in percent points, by how much each model raises the mean tIoU of the detector's first moments, every
sample of the split once, and the mean over the models (seeds of one training) with its 95 % interval.
"""

import argparse
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from scipy import stats
from stable_baselines3.common.base_class import BaseAlgorithm

from vmr_env.agents.evaluation import refine
from vmr_env.arrays import Array, Bools, Floats
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.profiles import PROFILES
from vmr_env.envs.sources import open_source
from vmr_env.errors import MissingExtra
from vmr_env.programs import run_program

ALGORITHMS: Mapping[str, tuple[str, str]] = {
    "a2c": ("stable_baselines3", "A2C"),
    "dqn": ("stable_baselines3", "DQN"),
    "maskable_ppo": ("sb3_contrib", "MaskablePPO"),
    "ppo": ("stable_baselines3", "PPO"),
    "sac": ("stable_baselines3", "SAC"),
}
"""Module and class of each algorithm."""


class Mean(NamedTuple):
    """A mean over seeds, and half the width of its 95 % interval (Student's t); nan for a single seed."""

    value: float
    half: float


def load_algorithm(name: str) -> type[BaseAlgorithm]:
    """The class of one of `ALGORITHMS`.

    Raises:
        MissingExtra: its package is not installed.
    """
    module, attribute = ALGORITHMS[name]
    try:
        found: type[BaseAlgorithm] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{name} needs {module}: pip install 'vmr-env[contrib]'") from error
    return found


def gain(model: BaseAlgorithm, cache: DecoderStateCache, rows: NDArray[np.integer] | None = None) -> float:
    """Mean gain in tIoU over samples of a cache, in percent points, by the most probable actions.

    Args:
        model: of environments with the action space that it has.
        cache: where the samples are.
        rows: which of them; None for all.
    """

    def act(observations: Floats, masks: Bools) -> Array:
        possible: dict[str, Any] = {"action_masks": masks} if masked else {}
        actions: Array = model.predict(observations, deterministic=True, **possible)[0]
        return actions

    masked = "action_masks" in inspect.signature(model.predict).parameters
    options = {
        "observation": "dict" if isinstance(model.observation_space, spaces.Dict) else "flat",
        "actions": "continuous" if isinstance(model.action_space, spaces.Box) else "discrete",
    }
    refined = refine(act, cache, np.arange(len(cache)) if rows is None else rows, options)
    return float(100 * np.mean(refined.after - refined.before))


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Mean of a figure that each seed gave."""
    error = stats.sem(values) if len(values) > 1 else np.nan
    return Mean(float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * error))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: judge saved models."""
    parser = argparse.ArgumentParser(
        prog="python -m vmr_env.benchmarks.experiment.sb3_models", description=main.__doc__
    )
    parser.add_argument("algorithm", choices=ALGORITHMS)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.zip", help="seeds of one training")
    parser.add_argument("--dataset", choices=PROFILES, default="charades")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    parser.add_argument("--source", help="a cache; default: that of the environments")
    given = parser.parse_args(arguments)
    cache = open_source(given.dataset, given.split, given.source)
    gains = []
    for path in given.models:
        gains.append(gain(load_algorithm(given.algorithm).load(path, device="cpu"), cache))
        print(f"{gains[-1]:+.2f}  {path}", flush=True)
    mean = mean_over_seeds(gains)
    print(f"{mean.value:+.2f} ± {mean.half:.2f}  mean of {len(gains)}")
    return 0


if __name__ == "__main__":
    run_program(main)
