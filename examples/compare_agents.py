"""A scale of returns: random, stop, our agents and the greedy oracle on the same held-out videos.

python examples/compare_agents.py            about two minutes on one core
python examples/compare_agents.py 5          rounds of learning, for a first look
"""

import sys
import warnings

import numpy as np

from vmr_env.agents.base import Agent
from vmr_env.agents.evaluation import refine
from vmr_env.agents.expected_gain import ExpectedGain
from vmr_env.agents.ppo import PPO
from vmr_env.agents.references import GreedyOracle, RandomAgent, StopAtOnce
from vmr_env.envs.sources import open_source
from vmr_env.envs.vector_env import VMRVectorEnv

OPTIONS = {"horizon": 1, "proposals": 1}
AGENTS: dict[str, type[Agent]] = {
    "random": RandomAgent,
    "stop": StopAtOnce,
    "PPO": PPO,
    "expected gain": ExpectedGain,
    "greedy oracle": GreedyOracle,
}


def main(rounds: int) -> dict[str, float]:
    """Print the gain of each in mean tIoU, in points of percent; returns them by name."""
    train, held_out = (open_source("charades", split) for split in ("train", "val"))
    gains = {}
    for name, kind in AGENTS.items():
        env = VMRVectorEnv(256, "charades", source=train, autoreset_mode="SameStep", **OPTIONS)
        agent = kind(env, seed=0)
        for _ in range(min(rounds, agent.rounds)):
            agent.update()
        enter = {"enter": agent.enter} if isinstance(agent, GreedyOracle) else {}
        refined = refine(agent.act, held_out, np.arange(len(held_out)), OPTIONS, **enter)
        gains[name] = 100 * float(np.mean(refined.after - refined.before))
        print(f"{name:14} {gains[name]:+6.2f}")
    return gains


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the data are simulated
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10**9)
