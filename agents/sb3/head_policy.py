"""A detection head as the policy of Stable-Baselines3 in `VMR-<data set>-Head-v0`.

    network = HeadPolicy(load_checkpoint("backbone").head, std=0.1)
    model = PPO(HeadActorCriticPolicy, env, gamma=1.0, policy_kwargs={"network": network})

Without exploration it answers as the head does, so untrained as the frozen detector. It explores as
`vmr_env.agents.tprl.head_policy` does: it chooses a proposal by the softmax of its log-odds, and moves the
boundaries of that one by Gaussian noise, in units of the frozen proposal's length. What the action says about
all others does not matter.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from vmr_env.agents.tprl.head import learning
from vmr_env.agents.tprl.head_policy import LEAST_SCALE, Drawn, HeadPolicy, Said, take

Self = TypeVar("Self", bound="HeadDistribution")


class HeadDistribution(Distribution):
    """Actions ``(B, Q, 3)`` of the head: a proposal among the choosable ones, and noise on its boundaries.

    Args:
        network: gives what `proba_distribution` is told, and the deviation of the noise.
    """

    def __init__(self, network: HeadPolicy) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # SB3 leaves it so
        self.network = network
        self._said: Said
        self._log_pi: Tensor
        self._scales: Tensor

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The network."""
        return self.network

    def proba_distribution(self: Self, said: Said, observed: Mapping[str, Tensor]) -> Self:
        """Become the distribution for what the network says about B observations."""
        choosable, lengths = observed["choosable"], observed["proposals"][..., 1]
        self._said, self._scales = said, lengths.clamp_min(LEAST_SCALE)
        self._log_pi = said.log_pi.masked_fill(choosable <= 0, -torch.inf).log_softmax(-1)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability of the choice and of the chosen span, ``(B,)``."""
        choice = actions[..., 2].masked_fill(self._log_pi.isneginf(), -1).argmax(-1, keepdim=True)
        centre, half = (take(actions[..., :2], choice) / torch.tensor([1.0, 2.0])).unbind(-1)
        bounds = torch.stack([centre - half, centre + half], -1)
        nothing = torch.empty(0)
        drawn = Drawn(choice, bounds, self._scales.gather(1, choice), nothing, nothing, nothing)
        moves = self.network.log_prob(self._said, drawn, chooses=False)
        return (moves + self._log_pi.gather(1, choice))[:, 0]

    def entropy(self) -> Tensor:
        """Of the choice, and the mean of the noise's over the choices: ``(B,)``, in nats."""
        noise = self.network.log_std.sum() + 2 * self._scales.log() + _NORMAL
        return (self._log_pi.exp() * (noise - self._log_pi.clamp_min(-80))).sum(-1)

    def sample(self) -> Tensor:
        """Actions whose last column is 1 for the choice and 0 for all others."""
        choice = torch.multinomial(self._log_pi.exp(), 1)
        mean = take(self._said.bounds, choice)
        std = self.network.log_std.exp() * self._scales.gather(1, choice)[..., None]
        start, end = (mean + std * torch.randn_like(mean)).unbind(-1)
        actions = torch.cat([self._spans(), torch.zeros_like(self._log_pi)[..., None]], -1)
        chosen = torch.stack([(start + end) / 2, end - start, torch.ones_like(start)], -1)
        return actions.scatter(1, choice[..., None].expand(-1, -1, 3), chosen)

    def mode(self) -> Tensor:
        """What the head says: of each proposal centre, width and foreground probability."""
        return torch.cat([self._spans(), self._said.scores[..., None]], -1)

    def actions_from_params(
        self, said: Said, observed: Mapping[str, Tensor], deterministic: bool = False
    ) -> Tensor:
        """Actions for what the network says."""
        return self.proba_distribution(said, observed).get_actions(deterministic)

    def log_prob_from_params(self, said: Said, observed: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Drawn actions for what the network says, and their log-probabilities."""
        actions = self.actions_from_params(said, observed)
        return actions, self.log_prob(actions)

    def _spans(self) -> Tensor:
        start, end = self._said.bounds.unbind(-1)
        return torch.stack([(start + end) / 2, end - start], -1)


_NORMAL = 1 + torch.log(torch.tensor(2 * torch.pi)).item()  # entropy of two standard normal numbers


class HeadActorCriticPolicy(MultiInputActorCriticPolicy):
    """`HeadPolicy` for PPO and A2C of SB3; arguments as SB3 gives them, and:

    Args:
        network: what learns; its class and span layers are trained in place, all else of its head is frozen.

    Raises:
        ValueError: the environment is no `VMR-<data set>-Head-v0`.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        network: HeadPolicy,
        **given: Any,
    ) -> None:
        needed = {"decoder_states", "references", "proposals", "choosable"}
        shown = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        if missing := sorted(needed - set(shown)):
            raise ValueError(f"observations lack {missing[0]!r}, expected those of a VMR-*-Head-v0")
        assert isinstance(observation_space, spaces.Dict)
        self._given = (network,)  # not yet a module's part: PyTorch takes none before the next line
        super().__init__(observation_space, action_space, lr_schedule, **given)

    def _build(self, lr_schedule: Schedule) -> None:
        (self.network,) = self._given
        self.network.requires_grad_(False)
        beside = [self.network.log_std, *self.network.value.parameters()]
        weights = [*beside, *learning(self.network.head)]
        for weight in weights:
            weight.requires_grad_(True)
        settings: dict[str, Any] = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(weights, **settings)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"network": self.network}

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (B, Q, 3), values (B, 1) and log-probabilities (B,) of a rollout's step."""
        distribution, values = self._say(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values (B, 1), log-probabilities (B,) and entropies (B,) of actions that were taken."""
        distribution, values = self._say(obs)
        taken = actions.reshape(len(actions), -1, 3)
        return values, distribution.log_prob(taken), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The policy for B observations."""
        return self._say(obs)[0]

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Expected returns (B, 1)."""
        return self._say(obs)[1]

    def _say(self, obs: PyTorchObs) -> tuple[HeadDistribution, Tensor]:
        assert isinstance(obs, dict)
        said: Said = self.network(obs["decoder_states"], obs["references"])
        return HeadDistribution(self.network).proba_distribution(said, obs), said.values[:, None]
