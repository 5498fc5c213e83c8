"""REINFORCE with a learned baseline (Williams, 1992): the return that followed, less what the network
expected."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from vmr_env.agents.base import Metrics
from vmr_env.agents.devices import permutation
from vmr_env.agents.health import UpdateHealth, explained_variance
from vmr_env.agents.networks import PolicyValue
from vmr_env.agents.policy_agent import PolicyAgent, PolicyConfig, descend
from vmr_env.agents.policy_gradient import entropy, gae, standardised
from vmr_env.agents.rollout import mean_episode_return


@dataclass(frozen=True)
class ReinforceConfig(PolicyConfig):
    """Settings of REINFORCE."""

    steps: int = 4
    """Steps of every environment in a rollout."""
    minibatch: int = 256
    """Transitions per gradient step; each is used once."""
    lr: float = 2e-3
    entropy: float = 3e-3
    """Coefficient of the entropy bonus."""
    value: float = 1.0
    """Coefficient of the baseline's loss."""


class Reinforce(PolicyAgent[ReinforceConfig]):
    """REINFORCE; arguments as in `Agent`, and `config`."""

    rounds = 120
    env_options: ClassVar[Mapping[str, Any]] = {"horizon": 1}
    config_class = ReinforceConfig

    def learn(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> Metrics:
        """Gather a rollout, then one policy-gradient step on every minibatch of it."""
        config = self.config
        rollout = self.collector.collect(network, config.steps)
        # lam = 1 and gamma = 1: the undiscounted return, less the baseline. An episode that the rollout cuts
        # off is continued by the value of the state it stands in.
        advantages = gae(rollout.rewards, rollout.values, rollout.ends, 1.0, 1.0, rollout.cut_values)
        returns = (advantages + rollout.values[:-1]).flatten()
        advantages = standardised(advantages).flatten()
        observations, masks, actions = (column.flatten(0, 1) for column in rollout[:3])
        policy = value = spread = torch.zeros(())
        health = UpdateHealth()
        order = permutation(len(actions), self.generator, actions.device)
        for rows in torch.split(order, config.minibatch):
            said: PolicyValue = network(observations[rows], masks[rows])
            log_policy = said.logits.log_softmax(-1)
            taken = log_policy.gather(1, actions[rows, None])[:, 0]
            policy = -(taken * advantages[rows]).mean()
            value = (said.values - returns[rows]).square().mean()
            spread = entropy(log_policy)
            loss = policy + config.value * value - config.entropy * spread
            norm = descend(loss, optimiser, config.max_norm, policy=policy, value=value, entropy=spread)
            health.add(gradient_norm=norm)
        return {
            "charts/episode_return": mean_episode_return(rollout),
            "losses/policy": policy.item(),
            "losses/value": value.item(),
            "losses/entropy": spread.item(),
            "health/explained_variance": explained_variance(rollout.values[:-1].flatten(), returns),
            **health.metrics(),
        }
