"""Walks through environments, for tests of what they give."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_env.envs.env import VMREnv
from vmr_env.envs.vector_env import VMRVectorEnv


def walk(env: VMREnv, seed: int, steps: int) -> Iterator[tuple[Any, ...]]:
    """What resets (observation, info) and steps (five values) give under random actions of that seed."""
    env.action_space.seed(seed)
    yield env.reset(seed=seed)
    for _ in range(steps):
        result = env.step(env.action_space.sample())
        yield result
        if result[2]:
            yield env.reset()


def trajectory_hash(source: str, seed: int = 3, steps: int = 120) -> str:
    """Digest of all that a walk of so many steps gives."""
    digest = hashlib.sha256()
    for result in walk(VMREnv("charades", source=source), seed, steps):
        digest.update(np.ascontiguousarray(result[0]).tobytes())
        info = {key: np.asarray(value).tolist() for key, value in result[-1].items()}
        digest.update(repr((result[1:-1], sorted(info.items()))).encode())
    return digest.hexdigest()


def varied_actions(env: Any, rng: np.random.Generator) -> NDArray[Any]:
    """Random actions of a vector environment, of which every group is taken often."""
    actions = np.asarray(env.action_space.sample())
    size = getattr(env.single_action_space, "n", None)
    if size is not None:  # moves are many, switches and stopping few
        few = rng.integers(48, size, len(actions))
        actions = np.where(rng.random(len(actions)) < 0.5, few, actions)
    return actions


def recorded(source: str, n: int = 5, steps: int = 6, threads: int = 1) -> dict[str, NDArray[Any]]:
    """All that a random walk of N environments gives in each action mode and stage: (steps, N, ...)."""
    found: dict[str, NDArray[Any]] = {}
    for number, actions in enumerate(("discrete", "multidiscrete", "continuous")):
        stage = number + 1
        envs = VMRVectorEnv(n, source=source, actions=actions, stage=stage, threads=threads)
        rng = np.random.default_rng(stage)
        envs.action_space.seed(stage)
        envs.reset(seed=stage)
        rows = []
        for _ in range(steps):
            taken = varied_actions(envs, rng)
            observations, rewards, ended, _, infos = envs.step(taken)
            rows.append((observations, rewards, ended, infos["tiou"], infos["action_mask"]))
        for name, values in zip(
            ("observations", "rewards", "ended", "tiou", "mask"), zip(*rows, strict=True), strict=True
        ):
            found[f"{actions} {name}"] = np.stack(values)
    return found
