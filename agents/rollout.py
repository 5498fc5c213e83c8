"""Collecting experience on the vector environment."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmr_env.agents.devices import device_of, on_device
from vmr_env.agents.networks import PolicyValue
from vmr_env.arrays import Bools, Floats
from vmr_env.envs.gymnasium_vector import AutoresetMode
from vmr_env.envs.vector_env import VMRVectorEnv


class Rollout(NamedTuple):
    """T steps of N environments, where the network is."""

    observations: Tensor
    """(T, N, width)."""
    masks: Tensor
    """(T, N, A), possible actions."""
    actions: Tensor
    """(T, N), int64."""
    log_probs: Tensor
    """(T, N), of the actions, under the policy that took them."""
    rewards: Tensor
    """(T, N)."""
    ends: Tensor
    """(T, N), 1.0 where the episode ended with this step, or was cut off."""
    values: Tensor
    """(T + 1, N), the network's values; the last row is of the state after the rollout."""
    cut_values: Tensor
    """(T, N), the value of the state in which a time limit cut the episode off with this step; else 0."""


class Stepped(NamedTuple):
    """What a step of N environments told."""

    rewards: Tensor
    """(N,), float32."""
    ends: Tensor
    """(N,), 1.0 where the episode ended or was cut off."""
    cut: NDArray[np.intp]
    """Which episodes were cut off by a time limit."""
    infos: dict[str, Any]


@contextmanager
def acting(network: torch.nn.Module) -> Iterator[None]:
    """A network as it acts, without dropout and gradients; afterwards in the mode that it was in."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


class Collector:
    """Steps an environment with a stochastic policy, one rollout after the other.

    Args:
        env: finished episodes restart in the same step.
        generator: draws the actions.

    Raises:
        ValueError: finished episodes restart otherwise; then steps are no transitions, or none are possible.
    """

    def __init__(self, env: VMRVectorEnv, generator: torch.Generator) -> None:
        if env.autoreset_mode is not AutoresetMode.SAME_STEP:
            mode = env.autoreset_mode.value
            raise ValueError(f"autoreset_mode is {mode!r}, expected 'SameStep': agents learn from each step")
        self.env, self._generator = env, generator
        self.steps = 0
        """Environment steps taken so far."""
        self.seen: set[int] = set()
        """Samples met since the last reset, rows of the cache."""
        self._observations: Floats
        self._masks: Bools

    def reset(self, seed: int) -> None:
        """Begin new episodes in all environments."""
        self._observations, infos = self.env.reset(seed=seed)
        self.seen = set(infos["sample"].tolist())
        self._masks = infos["action_mask"].astype(bool)

    def _seen(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Observations (N, width) and possible actions (N, A) at this step."""
        return on_device(self._observations, device), on_device(self._masks, device)

    def _step(self, actions: Tensor) -> Stepped:
        """Take actions (N,)."""
        self._observations, rewards, terminated, truncated, infos = self.env.step(actions.numpy())
        self._masks = infos["action_mask"].astype(bool)
        self.steps += len(rewards)
        self.seen.update(infos["sample"].tolist())
        return Stepped(
            torch.from_numpy(rewards).float(),
            torch.from_numpy(terminated | truncated).float(),
            np.flatnonzero(truncated & ~terminated),
            infos,
        )

    def _cut_values(self, network: torch.nn.Module, stepped: Stepped) -> Tensor:
        """Values of the states in which episodes were cut off, 0 for others: (N,)."""
        values = torch.zeros_like(stepped.rewards)
        if len(stepped.cut):
            observations = np.stack(list(stepped.infos["final_obs"][stepped.cut]))
            masks = stepped.infos["final_info"]["action_mask"][stepped.cut].astype(bool)
            device = device_of(network)
            said: PolicyValue = network(on_device(observations, device), on_device(masks, device))
            values[stepped.cut] = said.values.cpu()
        return values

    @torch.no_grad()
    def visit(self, steps: int) -> Tensor:
        """States met by uniformly random actions: (steps * N, width)."""
        states = []
        for _ in range(steps):
            states.append(torch.from_numpy(self._observations))
            uniform = torch.from_numpy(self._masks).float()
            actions = torch.multinomial(uniform, 1, generator=self._generator)[:, 0]
            self._step(actions)
        return torch.cat(states)

    def collect(self, network: torch.nn.Module, steps: int) -> Rollout:
        """A rollout of T = `steps` steps under the network's policy."""
        columns: list[list[Tensor]] = [[] for _ in Rollout._fields]
        device = device_of(network)
        with acting(network):
            for _ in range(steps):
                observations, masks = self._seen(device)
                said: PolicyValue = network(observations, masks)
                log_policy = said.logits.log_softmax(-1)
                actions = drawn(log_policy.exp(), self._generator)
                log_probs = log_policy.gather(1, actions.to(device))[:, 0]
                stepped = self._step(actions[:, 0])
                learnt = (stepped.rewards, stepped.ends, said.values, self._cut_values(network, stepped))
                step = (observations, masks, actions[:, 0], log_probs, *learnt)
                for column, value in zip(columns, step, strict=True):
                    column.append(value)
            columns[Rollout._fields.index("values")].append(network(*self._seen(device)).values)
        return Rollout(*(torch.stack(column).to(device) for column in columns))

    def collect_gains(self, network: torch.nn.Module, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """States under the network's policy with the gain of every action in each.

        Returns:
            observations (steps * N, width), masks (steps * N, A), gains (steps * N, A), where the network is.
        """
        columns: list[list[Tensor]] = [[], [], []]
        device = device_of(network)
        with acting(network):
            for _ in range(steps):
                state = (*self._seen(device), on_device(self.env.episodes.gains(), device))
                for column, value in zip(columns, state, strict=True):
                    column.append(value)
                policy = network(columns[0][-1], columns[1][-1]).logits.softmax(-1)
                actions = drawn(policy, self._generator)[:, 0]
                self._step(actions)
        observations, masks, gains = (torch.cat(column) for column in columns)
        return observations, masks, gains


def drawn(policy: Tensor, generator: torch.Generator) -> Tensor:
    """Actions (N, 1) of a policy (N, A), on the processor, where the environment is.

    Raises:
        FloatingPointError: a probability is not finite.
    """
    policy = policy.cpu()
    if not policy.isfinite().all():
        raise FloatingPointError("the policy has probabilities that are not finite")
    return torch.multinomial(policy, 1, generator=generator)


def mean_episode_return(rollout: Rollout) -> float:
    """Summed rewards for each episode that ended; the gain of the sampled policy."""
    ended = max(float(rollout.ends.sum()), 1.0)
    return float(np.float64(rollout.rewards.sum().item()) / ended)
