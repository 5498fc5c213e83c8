"""Proximal policy optimisation (Schulman et al., 2017) of the moment's refinement.

Details that matter, with their source: advantages normalised per minibatch, value loss without clipping,
gradient norm clipped at 0.5, learning rate annealed (Huang et al., 2022, "The 37 implementation details of
PPO"). Nothing is discounted: an episode is a few steps long, and its rewards add up to the gain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vmr_env.agents.base import Metrics
from vmr_env.agents.devices import permutation
from vmr_env.agents.health import UpdateHealth, approximate_kl, clip_fraction, explained_variance
from vmr_env.agents.networks import PolicyValue
from vmr_env.agents.policy_agent import PolicyAgent, PolicyConfig, descend
from vmr_env.agents.policy_gradient import clipped_gain, entropy, gae, standardised
from vmr_env.agents.rollout import Rollout, mean_episode_return


@dataclass(frozen=True)
class PPOConfig(PolicyConfig):
    """Settings of PPO."""

    steps: int = 4
    """Steps of every environment in a rollout."""
    epochs: int = 4
    """Passes over a rollout."""
    minibatch: int = 256
    """Transitions per gradient step."""
    clip: float = 0.2
    """How far the probability ratio may leave 1."""
    gamma: float = 1.0
    """Discount."""
    lam: float = 0.95
    """Of the advantage estimates."""
    entropy: float = 3e-3
    """Coefficient of the entropy bonus."""
    value: float = 1.0
    """Coefficient of the value loss."""


class PPO(PolicyAgent[PPOConfig]):
    """PPO; arguments as in `Agent`, and `config`."""

    rounds = 50
    env_options: ClassVar[Mapping[str, Any]] = {"horizon": 1}
    config_class = PPOConfig

    def learn(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> Metrics:
        """Gather a rollout, then several passes of clipped policy-gradient steps over it."""
        config = self.config
        rollout = self.collector.collect(network, config.steps)
        advantages = gae(
            rollout.rewards, rollout.values, rollout.ends, config.gamma, config.lam, rollout.cut_values
        )
        returns = advantages + rollout.values[:-1]
        columns = (*(column.flatten(0, 1) for column in rollout[:4]), advantages.flatten(), returns.flatten())
        losses: tuple[Tensor, ...] = ()
        health = UpdateHealth()
        for _ in range(config.epochs):
            order = permutation(len(columns[0]), self.generator, columns[0].device)
            minibatches = (torch.split(column[order], config.minibatch) for column in columns)
            for minibatch in zip(*minibatches, strict=True):
                policy, value, spread, log_ratio = losses = self._losses(network, *minibatch)
                loss = policy + config.value * value - config.entropy * spread
                norm = descend(loss, optimiser, config.max_norm, policy=policy, value=value, entropy=spread)
                health.add(
                    gradient_norm=norm,
                    approximate_kl=approximate_kl(log_ratio),
                    clip_fraction=clip_fraction(log_ratio, config.clip),
                )
        explained = explained_variance(rollout.values[:-1], returns)
        return _metrics(rollout, losses) | health.metrics() | {"health/explained_variance": explained}

    def _losses(
        self,
        network: nn.Module,
        observations: Tensor,
        masks: Tensor,
        actions: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        returns: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Policy loss, value loss and entropy of a minibatch, scalars; and the actions' log-ratios (B,)."""
        said: PolicyValue = network(observations, masks)
        log_policy = said.logits.log_softmax(-1)
        log_ratio = log_policy.gather(1, actions[:, None])[:, 0] - old_log_probs
        policy = -clipped_gain(log_ratio.exp(), standardised(advantages), self.config.clip)
        return policy, (said.values - returns).square().mean(), entropy(log_policy), log_ratio.detach()


def _metrics(rollout: Rollout, losses: tuple[Tensor, ...]) -> Metrics:
    policy, value, entropy_ = (loss.item() for loss in losses[:3])
    return {
        "charts/episode_return": mean_episode_return(rollout),
        "losses/policy": policy,
        "losses/value": value,
        "losses/entropy": entropy_,
    }
