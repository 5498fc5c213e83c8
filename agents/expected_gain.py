"""Expected gain: the policy gradient summed over all actions instead of sampled (Sutton et al., 2000; Ciosek
and Whiteson, 2018, "expected policy gradients").

The environment is a simulator, so the tIoU of every span that an action leads to can be computed while
training. The loss of a state is - sum_a pi(a) * (tIoU after a - tIoU now): its gradient is the exact policy
gradient of a one-step episode, without sampling noise. Longer episodes repeat that step; each one is greedy
in its expected gain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from vmr_env.agents.base import Metrics
from vmr_env.agents.devices import permutation
from vmr_env.agents.health import UpdateHealth
from vmr_env.agents.networks import PolicyValue
from vmr_env.agents.policy_agent import PolicyAgent, PolicyConfig, descend
from vmr_env.agents.policy_gradient import entropy


@dataclass(frozen=True)
class ExpectedGainConfig(PolicyConfig):
    """Settings of the expected-gain agent."""

    steps: int = 6
    """Steps of every environment in a round."""
    minibatch: int = 64
    """States per gradient step; each is used once."""
    lr: float = 2e-3
    max_norm: float = 1.0


class ExpectedGain(PolicyAgent[ExpectedGainConfig]):
    """The expected-gain agent; arguments as in `Agent`, and `config`."""

    rounds = 30
    env_options: ClassVar[Mapping[str, Any]] = {"horizon": 2}
    config_class = ExpectedGainConfig

    def learn(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> Metrics:
        """Visit states under the policy, then one step on the expected gain of every minibatch of them."""
        config = self.config
        observations, masks, gains = self.collector.collect_gains(network, config.steps)
        expected = spread = torch.zeros(())
        health = UpdateHealth()
        order = permutation(len(gains), self.generator, gains.device)
        for rows in torch.split(order, config.minibatch):
            said: PolicyValue = network(observations[rows], masks[rows])
            log_policy = said.logits.log_softmax(-1)
            expected = (log_policy.exp() * gains[rows]).sum(-1).mean()
            spread = entropy(log_policy)
            health.add(gradient_norm=descend(-expected, optimiser, config.max_norm))
        figures = {"charts/expected_gain": expected.item(), "losses/entropy": spread.item()}
        return figures | health.metrics()
