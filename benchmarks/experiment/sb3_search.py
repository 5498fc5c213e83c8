"""A search for settings of an algorithm of Stable-Baselines3 on simulated Charades, and what they gain.

    python -m vmr_env.benchmarks.experiment.sb3_search a2c --trials 40 --steps 40000

Trials learn from four fifths of the training videos and are judged on the rest, once per query. The best
settings then learn from all training videos, with several seeds, and are judged on the validation split,
which no trial has seen. What is printed has the form of the files in benchmarks/zoo. It needs Optuna.

With `--study` trials are kept in a file: the same command goes on where it was interrupted, and the same
command in several processes at once shares the trials. `--seeds 0` leaves the best settings for later.
"""

import argparse
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from vmr_env.agents.sb3.vec_env import NativeVecEnv
from vmr_env.benchmarks.experiment.sb3_models import ALGORITHMS, gain, load_algorithm, mean_over_seeds
from vmr_env.caches.reader import DecoderStateCache, split_by_video
from vmr_env.envs.sources import open_source
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.errors import MissingExtra
from vmr_env.programs import run_program

if TYPE_CHECKING:
    import optuna

Chosen = dict[str, Any]
Draw: TypeAlias = Callable[["optuna.Trial", str], Any]

CONTINUOUS = ("sac",)
"""Algorithms for `Box` actions; the others choose among listed ones."""


def one_of(*values: Any) -> Draw:
    """One of a few values."""
    return lambda trial, name: trial.suggest_categorical(name, values)


def between(low: float, high: float) -> Draw:
    """A number on a logarithmic scale."""
    return lambda trial, name: trial.suggest_float(name, low, high, log=True)


_ON_POLICY: dict[str, Draw] = {
    "n_envs": one_of(16, 64),
    "learning_rate": between(1e-4, 1e-2),
    "gae_lambda": one_of(0.9, 0.95, 1.0),
    "ent_coef": between(1e-5, 3e-2),
    "vf_coef": one_of(0.25, 0.5, 1.0),
}
_PPO = _ON_POLICY | {
    "n_steps": one_of(16, 32, 64),
    "batch_size": one_of(64, 128, 256, 512),
    "n_epochs": one_of(3, 5, 10),
    "clip_range": one_of(0.1, 0.2, 0.3),
}
_OFF_POLICY: dict[str, Draw] = {
    "learning_rate": between(1e-4, 5e-3),
    "batch_size": one_of(64, 128, 256),
}
_REPLAY: Chosen = {"train_freq": 1, "buffer_size": 50_000, "learning_starts": 1_000}

SPACES: Mapping[str, Mapping[str, Draw]] = {
    "a2c": _ON_POLICY
    | {
        "n_steps": one_of(4, 8, 16),
        "learning_rate": between(3e-4, 5e-3),
        "ent_coef": between(1e-3, 5e-2),
        "normalize_advantage": one_of(False, True),
    },
    "dqn": _OFF_POLICY
    | {
        "gradient_steps": one_of(1, 2, 4),
        "target_update_interval": one_of(500, 2_000, 5_000),
        "exploration_fraction": one_of(0.1, 0.3, 0.6),
        "exploration_final_eps": one_of(0.02, 0.05, 0.1),
    },
    "maskable_ppo": _PPO,
    "ppo": _PPO,
    "sac": _OFF_POLICY
    | {
        "learning_rate": between(2e-4, 3e-3),
        "batch_size": one_of(64, 128),
        "gradient_steps": one_of(4, 8),
        "tau": one_of(0.005, 0.02),
        "ent_coef": between(1e-4, 1e-2),
    },
}
"""Of each algorithm the arguments that are searched, `n_envs` among them."""

FIXED: Mapping[str, Chosen] = {
    "a2c": {"use_rms_prop": False},
    "dqn": {"n_envs": 64} | _REPLAY,
    "sac": {"n_envs": 16, "policy_kwargs": {"net_arch": [64, 64]}} | _REPLAY,
}
"""Arguments that all trials of an algorithm have. All others are SB3's own, but for `gamma`, which is 1:
rewards add up to the gain."""


def trained(
    algorithm: str,
    settings: Chosen,
    cache: DecoderStateCache,
    rows: NDArray[np.integer],
    steps: int,
    seed: int,
) -> Any:
    """A model that has learnt for so many steps from some samples of a cache.

    Args:
        algorithm: a key of `SPACES`.
        settings: arguments of the algorithm, and `n_envs`.
        cache: where the samples are.
        rows: which of them.
        steps: of all episodes together.
        seed: of everything random.
    """
    # SB3 adds to `policy_kwargs`.
    arguments = copy.deepcopy(settings)
    env = VMRVectorEnv(
        arguments.pop("n_envs"),
        cache.manifest["dataset"],
        source=cache,
        samples=rows,
        actions="continuous" if algorithm in CONTINUOUS else "discrete",
        autoreset_mode="SameStep",
    )
    make: Any = load_algorithm(algorithm)
    model = make("MlpPolicy", NativeVecEnv(env), gamma=1.0, seed=seed, device="cpu", **arguments)
    return model.learn(steps)


def search(
    algorithm: str, cache: DecoderStateCache, trials: int, steps: int, seed: int, kept: Path | None = None
) -> "optuna.Study":
    """Trials on a part of the cache's videos, judged on the others.

    Args:
        algorithm: a key of `SPACES`.
        cache: training samples.
        trials: how many, with those that `kept` holds; of several processes each ends its last.
        steps: of each trial.
        seed: of the split, the draws and the trials.
        kept: file that holds the trials, so that a search that was interrupted goes on and processes share
            one; None for none.

    Raises:
        MissingExtra: the extra `[search]` is not installed.
        ValueError: the file is no study.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise MissingExtra(f"{error}; a search needs `pip install vmr-env[search]`") from error
    parts = split_by_video(cache.source_videos(), {"learn": 0.8, "judge": 0.2}, seed)

    def gained(trial: "optuna.Trial") -> float:
        # A seed for each trial, so that no two processes draw the same.
        study.sampler = optuna.samplers.TPESampler(seed=seed + trial.number)
        settings = {name: draw(trial, name) for name, draw in SPACES[algorithm].items()}
        began = time.process_time()
        model = trained(algorithm, FIXED.get(algorithm, {}) | settings, cache, parts["learn"], steps, seed)
        found = gain(model, cache, parts["judge"])
        seconds = time.process_time() - began
        print(f"# trial {trial.number + 1}: {found:+.2f}, {seconds:.0f} s of a processor", flush=True)
        return found

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = None
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(kept)))
        except ValueError as error:
            raise ValueError(f"{kept}: not a study, expected a file that --study wrote: {error}") from error
    study = optuna.create_study(
        direction="maximize",
        storage=storage,
        study_name=f"{algorithm}, {steps} steps, seed {seed}",
        load_if_exists=True,
    )
    if len(complete(study)) < trials:
        states = (optuna.trial.TrialState.COMPLETE,)
        study.optimize(gained, callbacks=[optuna.study.MaxTrialsCallback(trials, states)])
    return study


def complete(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """The trials of a study that have a value, not those that run or were interrupted."""
    return [trial for trial in study.trials if trial.value is not None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: search settings, and judge those found."""
    parser = argparse.ArgumentParser(
        prog="python -m vmr_env.benchmarks.experiment.sb3_search", description=main.__doc__
    )
    parser.add_argument("algorithm", choices=ALGORITHMS)
    for name, default, what in (
        ("--trials", 40, "trials of the search"),
        ("--steps", 40_000, "steps of a trial"),
        ("--final-steps", 200_000, "steps with the settings found"),
        ("--seeds", 3, "trainings with the settings found; 0: none"),
        ("--seed", 0, "seed of the search"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{what}; default: %(default)s")
    parser.add_argument("--study", type=Path, help="file that keeps the trials, and shares them")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train, held_out = (open_source("charades", split) for split in ("train", "val"))
    study = search(given.algorithm, train, given.trials, given.steps, given.seed, given.study)
    best = FIXED.get(given.algorithm, {}) | study.best_params
    rows = np.arange(len(train))
    print(f"# {given.algorithm}: best of {len(complete(study))} trials {study.best_value:+.2f}", flush=True)
    gains = []
    for seed in range(given.seeds):
        gains.append(gain(trained(given.algorithm, best, train, rows, given.final_steps, seed), held_out))
        print(f"# after {given.final_steps} steps, seed {seed}: {gains[-1]:+.2f}", flush=True)
    if gains:
        mean = mean_over_seeds(gains)
        print(f"# mean: {mean.value:+.2f} ± {mean.half:.2f}")
    for name, value in {
        "n_timesteps": given.final_steps,
        "policy": "MlpPolicy",
        **best,
        "gamma": 1.0,
    }.items():
        print(f"  {name}: {value}")
    return 0


if __name__ == "__main__":
    run_program(main)
