"""Speed of environments, of our PPO and of metrics, as ratios; see `options.Throughput`."""

import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from scipy import stats

from vmr_env.agents.base import Agent
from vmr_env.agents.ppo import PPO, PPOConfig
from vmr_env.agents.sb3.vec_env import SB3PPO
from vmr_env.benchmarks.speed.options import Throughput
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.profiles import get_profile
from vmr_env.envs.actions import get_action_mode
from vmr_env.envs.config import PROPOSALS
from vmr_env.envs.env import VMREnv
from vmr_env.envs.sources import simulated_source
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.files.text import write_text
from vmr_env.metrics.moments import evaluate
from vmr_env.options import parse_in_range
from vmr_env.programs import run_program

Work = Callable[[], object]

ACTIONS = get_action_mode("discrete", PROPOSALS, None).size
STEPS = {
    "native": 40,
    "native, copy=False": 40,
    "gathering rows": 40,
    "observations": 40,
    "SyncVectorEnv": 1,
}
"""Steps of a turn."""

SEEDS = 3
ROUNDS, LAST = 40, 10
"""Rounds of training, and how many of the last ones count for the return."""

SB3_DEFAULTS = {"batch_size": 64, "n_epochs": 10, "learning_rate": 3e-4}

PPOS: dict[str, Callable[[VMRVectorEnv, int], Agent]] = {
    "our PPO": lambda env, seed: PPO(env, seed, PPOConfig(network="flat", epochs=8)),
    "SB3's PPO by default": lambda env, seed: SB3PPO(env, seed, SB3_DEFAULTS),
    "our PPO, all alike": lambda env, seed: PPO(env, seed, PPOConfig(network="flat")),
    "SB3's PPO, all alike": SB3PPO,
}
"""Models that are trained; ours and the official ones in pairs."""


def seconds(work: Work) -> float:
    """Processor time of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def in_turns(works: Mapping[str, Work], turns: int) -> dict[str, list[float]]:
    """Seconds of each work in each of several turns, after one turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            took = seconds(work)
            if turn:
                times[name].append(took)
    return times


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the turns of what one takes as a multiple of the other."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def steps_of(env: VMRVectorEnv | SyncVectorEnv, actions: np.ndarray) -> None:
    """Take a row of actions after the other."""
    for row in actions:
        env.step(row)


def observe(env: VMRVectorEnv, times: int) -> None:
    """Complete the observations, as at the end of a step."""
    for _ in range(times):
        env.episodes.observe()


def gather(table: np.ndarray, numbers: np.ndarray) -> None:
    """Gather rows of the table, a batch of numbers after the other."""
    for rows in numbers:
        table[rows]


def vector_figures(cache: DecoderStateCache, n: int, turns: int) -> dict[str, float]:
    """The native vector environment, Gymnasium's loop, and gathering rows."""
    random = np.random.default_rng(0)
    dataset = cache.manifest["dataset"]
    native = VMRVectorEnv(n, dataset, source=cache)
    reusing = VMRVectorEnv(n, dataset, source=cache, copy=False)
    loop = SyncVectorEnv([partial(VMREnv, dataset, source=cache)] * n)
    rows = len(cache) * native.action_mode.horizon
    table = random.random((rows, native.observer.width), np.float32)
    for env in (native, reusing, loop):
        env.reset(seed=0)
    actions = {name: random.integers(ACTIONS, size=(steps, n)) for name, steps in STEPS.items()}
    works: dict[str, Work] = {
        "native": partial(steps_of, native, actions["native"]),
        "native, copy=False": partial(steps_of, reusing, actions["native, copy=False"]),
        "gathering rows": partial(gather, table, random.integers(rows, size=(STEPS["gathering rows"], n))),
        "observations": partial(observe, native, STEPS["observations"]),
        "SyncVectorEnv": partial(steps_of, loop, actions["SyncVectorEnv"]),
    }
    times = in_turns(works, turns)
    step = {name: [took / STEPS[name] for took in times[name]] for name in times}
    return {
        f"native steps/s at N={n}": n / statistics.median(step["native"]),
        f"SyncVectorEnv / native at N={n}": median_ratio(step["SyncVectorEnv"], step["native"]),
        f"native / gathering rows at N={n}": median_ratio(step["native"], step["gathering rows"]),
        f"native, copy=False / gathering rows at N={n}": median_ratio(
            step["native, copy=False"], step["gathering rows"]
        ),
        f"native / observations alone at N={n}": median_ratio(step["native"], step["observations"]),
    }


def single_figures(cache: DecoderStateCache, turns: int, steps: int = 10_000) -> dict[str, float]:
    """A single environment under random actions."""
    profile = get_profile(cache.manifest["dataset"])
    env = gymnasium.make(f"VMR-{profile.env_name}-v0", source=cache)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(ACTIONS, size=steps)

    def work() -> None:
        for action in actions:
            if env.step(action)[2]:
                env.reset()

    took = in_turns({"single": work}, turns)["single"]
    return {"single environment steps/s": steps / statistics.median(took)}


def thread_figures(cache: DecoderStateCache, n: int, turns: int) -> dict[str, float]:
    """Two threads against one, by the clock on the wall: the only figure that is not of processor time."""
    dataset = cache.manifest["dataset"]
    actions = np.random.default_rng(0).integers(ACTIONS, size=(40, n))
    took: dict[int, list[float]] = {1: [], 2: []}
    envs = {threads: VMRVectorEnv(n, dataset, source=cache, threads=threads) for threads in took}
    for env in envs.values():
        env.reset(seed=0)
    for _ in range(turns):
        for threads, env in envs.items():
            began = time.perf_counter()
            steps_of(env, actions)
            took[threads].append(time.perf_counter() - began)
    return {f"one thread / two at N={n}, seconds": median_ratio(took[1], took[2])}


def ppo_figures(cache: DecoderStateCache, seeds: int = SEEDS, rounds: int = ROUNDS) -> dict[str, float]:
    """Our PPO and SB3's in training, round by round in turns."""
    dataset = cache.manifest["dataset"]
    times: dict[str, list[float]] = {name: [] for name in PPOS}
    returns: dict[str, list[float]] = {name: [] for name in PPOS}

    def train(agent: Agent, reached: list[float]) -> None:
        reached.append(agent.update()["charts/episode_return"])

    for seed in range(seeds):
        works: dict[str, Work] = {}
        reached: dict[str, list[float]] = {name: [] for name in PPOS}
        for name, make in PPOS.items():
            env = VMRVectorEnv(Agent.num_envs, dataset, source=cache, autoreset_mode="SameStep")
            works[name] = partial(train, make(env, seed), reached[name])
        for name, took in in_turns(works, rounds).items():
            times[name] += took
            returns[name].append(statistics.fmean(reached[name][-LAST:]))

    frames = Agent.num_envs * PPOConfig().steps
    figures = {}
    names = iter(PPOS)
    for ours, theirs in zip(names, names, strict=True):
        figures[f"{ours} / {theirs}, frames/s"] = median_ratio(times[theirs], times[ours])
        for name in (ours, theirs):
            figures[f"{name}, frames/s"] = frames / statistics.median(times[name])
            figures[f"{name}, return"] = statistics.fmean(returns[name])
            figures[f"{name}, 95 % interval of the return, +-"] = interval(returns[name])
    return figures


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean, by Student's t."""
    n = len(values)
    half: float = stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5
    return half


def evaluate_figures(predictions: Path, ground_truth: Path, turns: int) -> dict[str, float]:
    """Scoring a prediction file."""
    name = f"seconds of evaluate, {predictions.name}"
    took = in_turns({name: partial(evaluate, predictions, ground_truth)}, turns)
    return {name: statistics.median(took[name])}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_in_range(Throughput, arguments, "vmr-env bench throughput")
    torch.set_num_threads(1)
    cache = DecoderStateCache.open(simulated_source("qvhighlights", "test"))
    figures: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in (64, 1024, 4096):
            figures |= vector_figures(cache, n, options.repeats)
            figures |= thread_figures(cache, n, options.repeats)
        figures |= single_figures(cache, options.repeats)
        figures |= ppo_figures(cache)
        for predictions, ground_truth in options.evaluate:
            figures |= evaluate_figures(predictions, ground_truth, options.repeats)
    for name, figure in figures.items():
        print(f"{name:70} {figure:12,.3f}" if abs(figure) < 10 else f"{name:70} {figure:12,.0f}")
    if options.json:
        write_text(options.json, json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    run_program(main)
