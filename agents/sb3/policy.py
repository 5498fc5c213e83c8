"""Our network as a policy of Stable-Baselines3: one small network scores the span that each action leads to.

    env = NativeVecEnv(VMRVectorEnv(256, "charades", observation="dict", autoreset_mode="SameStep"))
    model = PPO(RefinementPolicy, env, gamma=1.0)

Observations must be a `Dict`, which gives the place of each component; actions must be discrete. Where the
component `action_mask` is among them, impossible actions are never taken; where it is not, they are as likely
as others and change nothing.
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor
from torch.optim import AdamW

from vmr_env.agents.networks import PolicyValue, RefinementNetwork
from vmr_env.envs.actions import MOVES

ENOUGH = 1024
"""Observations by which features are standardised; the first that a training sees."""


class DictLayout:
    """Slices of the components of a `Dict` when flattened in the order of its keys.

    Attributes:
        shapes: shape of each component.
        slices: of each component in the flat vector.
        stay: number of the candidate at which a boundary stays, that of the mode "discrete".
    """

    stay = MOVES.index(0)

    def __init__(self, space: spaces.Dict) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.slices: dict[str, slice] = {}
        end = 0
        for name, part in space.spaces.items():
            assert part.shape is not None
            start, end = end, end + math.prod(part.shape)
            self.shapes[name], self.slices[name] = part.shape, slice(start, end)


class NetworkPolicy(MultiInputActorCriticPolicy):
    """Base of policies of SB3 in which one network of ours says logits and values."""

    @abstractmethod
    def _say(self, obs: PyTorchObs) -> PolicyValue:
        """Logits of the actions (B, A), finite, and expected returns (B,), for B observations."""

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (B,), values (B, 1) and log-probabilities (B,) of a rollout's step."""
        said = self._say(obs)
        distribution = self.action_dist.proba_distribution(said.logits)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, said.values[:, None], distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values (B, 1), log-probabilities (B,) and entropies (B,) of actions that were taken."""
        said = self._say(obs)
        distribution = self.action_dist.proba_distribution(said.logits)
        return said.values[:, None], distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The policy for B observations."""
        return self.action_dist.proba_distribution(self._say(obs).logits)

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Expected returns (B, 1)."""
        return self._say(obs).values[:, None]

    def _optimise(self, lr_schedule: Schedule) -> None:
        settings: dict[str, Any] = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(self.parameters(), **settings)


def checked_spaces(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> tuple[spaces.Dict, spaces.Discrete]:
    """The spaces as what our policies need.

    Raises:
        ValueError: observations are no `Dict`, or actions are not discrete.
    """
    if not isinstance(observation_space, spaces.Dict):
        kind = type(observation_space).__name__
        raise ValueError(f"observation space is a {kind}, expected a Dict: observation='dict'")
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(f"action space is {action_space}, expected actions='discrete'")
    return observation_space, action_space


def possible_logits(logits: Tensor) -> Tensor:
    """Logits of impossible actions finite, as SB3 multiplies them by probabilities of 0."""
    return logits.clamp_min(-1e8)


class RefinementPolicy(NetworkPolicy):
    """`vmr_env.agents.networks.RefinementNetwork` for PPO and A2C of SB3; arguments as SB3 gives them, and:

    Args:
        hidden: width of the network's layers.

    Raises:
        ValueError: observations are no `Dict`, or actions are not discrete.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        hidden: int = 64,
        **given: Any,
    ) -> None:
        components, discrete = checked_spaces(observation_space, action_space)
        self.hidden, self._actions = hidden, int(discrete.n)
        self._first: list[Tensor] = []
        ours: dict[str, Any] = {"optimizer_class": AdamW, "optimizer_kwargs": {"weight_decay": 1e-2}}
        super().__init__(components, discrete, lr_schedule, **{**ours, **given})

    def _build(self, lr_schedule: Schedule) -> None:
        assert isinstance(self.observation_space, spaces.Dict)
        layout = DictLayout(self.observation_space)
        self._mask = layout.slices.get("action_mask")
        self.network = RefinementNetwork(layout, self.hidden)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.seen: Tensor
        self._optimise(lr_schedule)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"hidden": self.hidden}

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """As `NetworkPolicy.forward`; the first observations tell how features are standardised."""
        self._standardise(self._flat(obs))
        return super().forward(obs, deterministic)

    def _flat(self, obs: PyTorchObs) -> Tensor:
        flat = self.extract_features(obs)
        assert isinstance(flat, Tensor)
        return flat

    def _say(self, obs: PyTorchObs) -> PolicyValue:
        flat = self._flat(obs)
        if self._mask is None:
            masks = torch.ones(len(flat), self._actions, dtype=torch.bool, device=flat.device)
        else:
            masks = flat[:, self._mask] > 0
        said: PolicyValue = self.network(flat, masks)
        return PolicyValue(possible_logits(said.logits), said.values)

    def _standardise(self, flat: Tensor) -> None:
        """Fit the standardisation of features to the first observations of a training."""
        if self.seen >= ENOUGH:
            return
        self._first.append(flat.detach().clone())
        self.seen += len(flat)
        self.network.fit(torch.cat(self._first))
        if self.seen >= ENOUGH:
            self._first.clear()
