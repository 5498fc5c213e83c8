"""Speed, as ratios measured in one run on one machine, one thread.

    python benchmarks/throughput.py [--json FILE]

Prints the native vector environment against Gymnasium's `SyncVectorEnv` over the same single environments and
against only gathering as many observation rows, the single environment's steps per second, and our PPO
against Stable-Baselines3's at the same network sizes and rollout. Times are processor time, the best of a few
repetitions.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor

from agents.networks import FlatNetwork
from agents.rollout import Collector, gae
from agents.sb3 import NativeVecEnv
from vmr_env.actions import DiscreteActions
from vmr_env.cache import DecoderStateCache
from vmr_env.env import VMREnv
from vmr_env.files import write_text
from vmr_env.setting import PROPOSALS
from vmr_env.sources import simulated_source
from vmr_env.vector_env import VMRVectorEnv

ENVS, STEPS, EPOCHS, MINIBATCH, HIDDEN = 64, 128, 4, 2048, 256
ACTIONS = DiscreteActions(PROPOSALS).size


def seconds(work: Callable[[], None], repetitions: int) -> float:
    """Processor time of the quickest repetition."""
    times = []
    for _ in range(repetitions):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def native_step(cache: DecoderStateCache, n: int, steps: int = 50) -> float:
    """Seconds of one step of N native environments."""
    env = VMRVectorEnv(n, cache.manifest["dataset"], source=cache)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(ACTIONS, size=(steps, n))

    def work() -> None:
        for row in actions:
            env.step(row)

    return seconds(work, 5) / steps


def sync_step(cache: DecoderStateCache, n: int, steps: int = 5) -> float:
    """Seconds of one step of N single environments under `SyncVectorEnv`."""
    env = SyncVectorEnv([partial(VMREnv, cache.manifest["dataset"], source=cache)] * n)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(ACTIONS, size=(steps, n))

    def work() -> None:
        for row in actions:
            env.step(row)

    return seconds(work, 2) / steps


def gather_rows(cache: DecoderStateCache, n: int, steps: int = 50) -> float:
    """Seconds of gathering N observation rows out of a table with one for each sample and step."""
    env = VMRVectorEnv(1, cache.manifest["dataset"], source=cache)
    table = np.random.default_rng(0).random(
        (len(cache) * env.action_mode.horizon, env.observer.width), np.float32
    )
    rows = np.random.default_rng(0).integers(len(table), size=(steps, n))

    def work() -> None:
        for row in rows:
            table[row]

    return seconds(work, 5) / steps


def single_step(cache: DecoderStateCache, steps: int = 20_000) -> float:
    """Seconds of one step of a single environment, resets included."""
    env = VMREnv(cache.manifest["dataset"], source=cache)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(ACTIONS, size=steps)

    def work() -> None:
        for action in actions:
            if env.step(action)[2]:
                env.reset()

    return seconds(work, 3) / steps


def our_ppo(cache: DecoderStateCache) -> float:
    """Seconds of one iteration of PPO with a flat network: rollout and updates."""
    env = VMRVectorEnv(ENVS, cache.manifest["dataset"], source=cache, autoreset_mode="SameStep")
    generator = torch.Generator().manual_seed(0)
    collector = Collector(env, generator)
    collector.reset(0)
    network = FlatNetwork(env.observer, env.action_mode.size, HIDDEN)
    optimiser = torch.optim.Adam(network.parameters(), 3e-4)

    def work() -> None:
        rollout = collector.collect(network, STEPS)
        advantages = gae(rollout.rewards, rollout.values, rollout.ends, 0.99, 0.95)
        returns = (advantages + rollout.values[:-1]).flatten()
        observations, masks, actions, old = (column.flatten(0, 1) for column in rollout[:4])
        for _ in range(EPOCHS):
            for rows in torch.split(torch.randperm(len(actions), generator=generator), MINIBATCH):
                said = network(observations[rows], masks[rows])
                log_policy = said.logits.log_softmax(-1)
                ratio = (log_policy.gather(1, actions[rows, None])[:, 0] - old[rows]).exp()
                gain: Tensor = advantages.flatten()[rows]
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                policy = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
                loss = policy + 0.5 * (said.values - returns[rows]).square().mean()
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
                optimiser.step()

    return seconds(work, 3)


def sb3_ppo(cache: DecoderStateCache) -> float:
    """Seconds of one iteration of Stable-Baselines3's PPO at the same sizes, on our native environment."""
    from stable_baselines3 import PPO

    env = NativeVecEnv(VMRVectorEnv(ENVS, cache.manifest["dataset"], source=cache, autoreset_mode="SameStep"))
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=STEPS,
        n_epochs=EPOCHS,
        batch_size=MINIBATCH,
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN]},
        device="cpu",
        seed=0,
    )
    return seconds(lambda: (model.learn(ENVS * STEPS), None)[1], 3)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cache = DecoderStateCache.open(simulated_source("qvhighlights", "test"))
    figures: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in (1024, 4096):
            step = native_step(cache, n)
            figures[f"native steps/s at N={n}"] = n / step
            figures[f"SyncVectorEnv / native at N={n}"] = sync_step(cache, n) / step
            figures[f"native / gathering rows at N={n}"] = step / gather_rows(cache, n)
        figures["single environment steps/s"] = 1 / single_step(cache)
        ours, theirs = our_ppo(cache), sb3_ppo(cache)
        figures["our PPO frames/s"] = ENVS * STEPS / ours
        figures["our PPO / SB3's PPO"] = theirs / ours
    for name, figure in figures.items():
        print(f"{name:38} {figure:14,.1f}")
    if args.json:
        write_text(args.json, json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
