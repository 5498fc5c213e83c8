"""Base of our learning agents: members that learn independently and act by their mean policy."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vmr_env.agents.base import Agent, Metrics, curriculum_state, resume_curriculum
from vmr_env.agents.devices import device_of, on_device, seeded
from vmr_env.agents.networks import NetworkKind, make_network
from vmr_env.agents.rollout import Collector
from vmr_env.arrays import Bools, Floats
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.seeding import derived
from vmr_env.settings import INSIDE, Range, Settings

_VISITS = 8  # random steps of every environment on whose states the features are standardised


class Member(nn.Module):
    """One network with its optimiser, which is made when it is first needed.

    Making one loads torch's compiler, which takes seconds that an agent that only acts can save.
    """

    def __init__(self, network: nn.Module, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.network = network
        self._lr, self._weight_decay = lr, weight_decay
        self._loaded: Mapping[str, Any] | None = None

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """AdamW of the network's parameters, in the state that was loaded last."""
        parameters = self.network.parameters()
        made = torch.optim.AdamW(parameters, self._lr, weight_decay=self._weight_decay, fused=True)
        if self._loaded is not None:
            made.load_state_dict(dict(self._loaded))
            self._loaded = None
        return made

    def optimiser_state(self) -> Mapping[str, Any]:
        """State of the optimiser."""
        return self.optimiser.state_dict() if self._loaded is None else self._loaded

    def load_optimiser(self, state: Mapping[str, Any]) -> None:
        """Take over what `optimiser_state` gave.

        Raises:
            ValueError: it is that of other parameters.
        """
        (group,) = state["param_groups"]
        expected = sum(1 for _ in self.network.parameters())
        if len(group["params"]) != expected:
            raise ValueError(f"optimiser has {len(group['params'])} parameters, expected {expected}")
        self.__dict__.pop("optimiser", None)
        self._loaded = state


def descend(loss: Tensor, optimiser: torch.optim.Optimizer, max_norm: float, **figures: Tensor) -> Tensor:
    """One step down a loss's gradient, scaled down where its norm is above `max_norm`: the norm before.

    Args:
        loss: scalar.
        optimiser: of the parameters.
        max_norm: see above.
        figures: scalars that the loss is the sum of, by name, for the error.

    Raises:
        FloatingPointError: a figure, the loss or its gradient is not finite; the parameters stay.
    """
    if not loss.isfinite():
        for name, figure in {**figures, "loss": loss}.items():
            if not figure.isfinite():
                raise FloatingPointError(f"{name} is {figure.item()}, expected a finite number")
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    if not norm.isfinite():
        raise FloatingPointError(f"gradient norm is {norm.item()}, expected a finite number")
    optimiser.step()
    return norm


@dataclass(frozen=True)
class PolicyConfig(Settings):
    """Settings that all policies have."""

    members: int = 1
    """Networks that learn independently; the agent acts by their mean policy."""
    lr: float = 1e-3
    """Learning rate at the start; it falls to 0 over the rounds along half a cosine."""
    weight_decay: float = 1e-2
    """Of AdamW."""
    max_norm: float = 0.5
    """Gradient norm from which gradients are scaled down."""
    hidden: int = 64
    """Width of the networks."""
    network: NetworkKind = "refinement"
    """Kind of the networks, see `vmr_env.agents.networks.make_network`."""

    ranges: ClassVar[Mapping[str, Range]] = {"clip": INSIDE}


ConfigT = TypeVar("ConfigT", bound=PolicyConfig)


class PolicyAgent(Agent, Generic[ConfigT]):
    """Networks that learn from their own experience, one after the other in each round.

    A single policy fits the noise of a thousand queries; the mean of a few that start from different weights
    and see different episodes does so less (Breiman, 1996).

    Args:
        env: see `Agent`.
        seed: see `Agent`.
        config: of `config_class`; its defaults where none is given.
    """

    config_class: ClassVar[type[PolicyConfig]]

    def __init__(self, env: VMRVectorEnv, seed: int, config: ConfigT | None = None) -> None:
        super().__init__(env, seed)
        self.config = config or cast(ConfigT, self.config_class())
        self.generator = torch.Generator().manual_seed(derived(seed, "actions"))
        self.collector = Collector(env, self.generator)
        begin = curriculum_state(env)
        self.collector.reset(derived(seed, "visits"))
        visited = self.collector.visit(_VISITS)
        resume_curriculum(env, begin)  # nothing has been learnt yet
        self.members = nn.ModuleList()
        with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
            torch.manual_seed(derived(seed, "weights"))
            for _ in range(self.config.members):
                made = make_network(
                    self.config.network, env.observer, env.action_mode.size, self.config.hidden
                )
                made.fit(visited)
                member = Member(made, self.config.lr, self.config.weight_decay)
                self.members.append(member.eval())
        self.round = 0

    @abstractmethod
    def learn(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> Metrics:
        """Let one network gather experience and learn from it."""

    def _members(self) -> list[Member]:
        return [member for member in self.members if isinstance(member, Member)]

    def update(self) -> Metrics:
        """One round of every member.

        Raises:
            FloatingPointError: a loss, a gradient or the policy is not finite.
        """
        lr = self.config.lr * 0.5 * (1 + math.cos(math.pi * self.round / self.rounds))
        before = self.collector.steps
        every: list[Metrics] = []
        seen: set[int] = set()
        for number, member in enumerate(self._members()):
            # New episodes from a seed of their own: a resumed run sees what an uninterrupted one does.
            self.collector.reset(derived(self.seed, "episodes", self.round, number))
            for group in member.optimiser.param_groups:
                group["lr"] = lr
            member.network.train()
            try:
                with seeded(derived(self.seed, "dropout", self.round, number), device_of(member)):
                    every.append(self.learn(member.network, member.optimiser))
            except FloatingPointError as error:
                where = f"{type(self).__name__}, round {self.round + 1}"
                raise FloatingPointError(f"{where}: {error}") from None
            finally:
                member.network.eval()
            seen |= self.collector.seen
        self.round += 1
        means = {name: float(np.mean([metrics[name] for metrics in every])) for name in every[0]}
        return {
            **means,
            "charts/steps": float(self.collector.steps - before),
            "charts/distinct_samples": float(len(seen)),
        }

    @torch.no_grad()
    def probabilities(self, observations: Floats, masks: Bools) -> NDArray[np.float32]:
        """The mean policy of the members: (N, A)."""
        device = device_of(self.members)
        inputs = on_device(observations, device), on_device(np.asarray(masks, bool), device)
        policies = [member.network(*inputs).logits.softmax(-1) for member in self._members()]
        mean: NDArray[np.float32] = torch.stack(policies).mean(0).cpu().numpy()
        return mean

    def to(self, device: str) -> None:
        """See `Agent.to`."""
        self.members.to(device)

    def act(self, observations: Floats, masks: Bools) -> NDArray[Any]:
        """The most probable actions (N,) of the mean policy."""
        best: NDArray[Any] = self.probabilities(observations, masks).argmax(axis=1)
        return best

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimisers, random numbers, and the stage of the environment's curriculum."""
        return {
            "round": self.round,
            "members": self.members.state_dict(),
            "optimisers": [member.optimiser_state() for member in self._members()],
            "generator": self.generator.get_state(),
            "curriculum": curriculum_state(self.env),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. Running episodes are given up: a round begins with new ones."""
        self.round = state["round"]
        self.members.load_state_dict(state["members"])
        for member, optimiser in zip(self._members(), state["optimisers"], strict=True):
            member.load_optimiser(optimiser)
        self.generator.set_state(state["generator"])
        resume_curriculum(self.env, state["curriculum"])
