"""Does learning through the stages of a curriculum pay? The same budget in all, in the last, in each alone.

    python -m vmr_env.benchmarks.experiment.stages --steps 30000 --seeds 3

On simulated Charades: for numbers of proposals, kinds of actions and horizons. Agents are judged on the
validation split in the stage that they end in. Discrete actions are learnt by our PPO, others by that of
Stable-Baselines3.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from stable_baselines3 import PPO as SB3PPO

from vmr_env.agents.evaluation import refine
from vmr_env.agents.ppo import PPO
from vmr_env.agents.sb3.curriculum import CurriculumCallback
from vmr_env.agents.sb3.vec_env import NativeVecEnv
from vmr_env.arrays import Array, Bools, Floats
from vmr_env.benchmarks.experiment.sb3_models import mean_over_seeds
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.curriculum import CURRICULA, STAGES, Curriculum, StepSchedule
from vmr_env.envs.sources import open_source
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.envs.vector_wrappers import VectorCurriculumWrapper
from vmr_env.metrics.spans import reaches
from vmr_env.programs import run_program

Act = Callable[[Floats, Bools], Array]

SPARSE = "stages_then_thresholds"
"""A curriculum whose last stage earns nothing but a tIoU over 0.5, and over 0.7."""

THROUGH = "1, 2, 3"
"""The regime of all stages; the others name the one stage that is trained in."""

LAST = "3"
"""The regime of the last stage alone."""

REGIMES = (LAST, THROUGH, "1", "2")
BEGIN = (0.2, 0.4)
"""Shares of the steps after which stages 2 and 3 begin."""


@dataclass(frozen=True)
class Setting:
    """What the environments of a comparison have in common."""

    name: str
    options: Mapping[str, Any]


SETTINGS = (
    Setting("1 proposal, discrete, 1 step", {"proposals": 1, "horizon": 1}),
    Setting("10 proposals, discrete, 1 step", {"horizon": 1}),
    Setting("10 proposals, discrete, 3 steps", {}),
    Setting("10 proposals, discrete, 6 steps", {"horizon": 6}),
    Setting("10 proposals, discrete, 3 steps, thresholds", {"curriculum": SPARSE}),
    Setting("10 proposals, multi-discrete, 3 steps", {"actions": "multidiscrete"}),
    Setting("10 proposals, continuous, 6 steps", {"actions": "continuous"}),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: compare, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m vmr_env.benchmarks.experiment.stages", description=main.__doc__
    )
    parser.add_argument("--steps", type=int, default=30_000, help="of each training; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each; default: %(default)s")
    numbers = range(len(SETTINGS))
    parser.add_argument(
        "--settings", type=int, nargs="+", choices=numbers, default=numbers, help="some of them"
    )
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=REGIMES, help="which, beside 3")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if SPARSE not in CURRICULA:
        first, second, last = STAGES.stages
        CURRICULA.add(SPARSE, Curriculum((first, second, replace(last, reward="step"))))
    train, held_out = (open_source("charades", split) for split in ("train", "val"))
    print("| environment | stages | Δ mIoU | Δ R1@0.7 | Δ mIoU less that of 3 |\n|---|---|---|---|---|")
    for setting in (SETTINGS[number] for number in given.settings):
        alone: Array = np.empty(0)
        for regime in dict.fromkeys((LAST, *given.regimes)):
            gains = [gain(setting, regime, seed, given.steps, train, held_out) for seed in range(given.seeds)]
            miou, recall = np.array(gains).T
            alone = miou if regime == LAST else alone
            columns = [interval(miou), interval(recall), interval(miou - alone) if regime == THROUGH else ""]
            print(f"| {setting.name} | {regime} | {' | '.join(columns)} |", flush=True)
    return 0


def interval(values: Array) -> str:
    """Mean over seeds, with half its 95 % interval."""
    mean = mean_over_seeds(values.tolist())
    return f"{mean.value:+.2f} ± {mean.half:.2f}"


def gain(
    setting: Setting,
    regime: str,
    seed: int,
    steps: int,
    train: DecoderStateCache,
    held_out: DecoderStateCache,
) -> tuple[float, float]:
    """What one training gains in mIoU and R1@0.7 on held-out samples, in percent points."""
    stage = 3 if regime == THROUGH else int(regime)
    rule = StepSchedule(tuple(int(share * steps) for share in BEGIN)) if regime == THROUGH else None
    options = {**setting.options, "stage": stage}
    learn = learn_ours if "actions" not in options else learn_by_sb3
    refined = refine(learn(train, options, rule, seed, steps), held_out, np.arange(len(held_out)), options)
    recalls = reaches(refined.after, 0.7).mean() - reaches(refined.before, 0.7).mean()
    return 100 * float(np.mean(refined.after - refined.before)), 100 * float(recalls)


def environment(train: DecoderStateCache, options: Mapping[str, Any], n: int) -> VMRVectorEnv:
    """N training episodes."""
    return VMRVectorEnv(n, "charades", source=train, autoreset_mode="SameStep", **options)


def learn_ours(
    train: DecoderStateCache, options: Mapping[str, Any], rule: StepSchedule | None, seed: int, steps: int
) -> Act:
    """Our PPO."""
    env = environment(train, options, PPO.num_envs)
    if rule is not None:
        env = cast(VMRVectorEnv, VectorCurriculumWrapper(env, rule))
    agent = PPO(env, seed)
    agent.rounds = max(steps // (PPO.num_envs * agent.config.steps), 1)
    for _ in range(agent.rounds):
        agent.update()
    return agent.act


def learn_by_sb3(
    train: DecoderStateCache, options: Mapping[str, Any], rule: StepSchedule | None, seed: int, steps: int
) -> Act:
    """PPO of Stable-Baselines3."""
    model = SB3PPO(
        "MlpPolicy",
        NativeVecEnv(environment(train, options, 64)),
        n_steps=16,
        batch_size=256,
        n_epochs=5,
        learning_rate=1e-3,
        gamma=1.0,
        seed=seed,
        device="cpu",
    )
    model.learn(steps, callback=None if rule is None else CurriculumCallback(rule))
    return lambda observations, masks: model.predict(observations, deterministic=True)[0]


if __name__ == "__main__":
    run_program(main)
