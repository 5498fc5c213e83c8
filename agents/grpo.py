"""Group-relative policy optimisation (Shao et al., 2024, "DeepSeekMath") of the moment's refinement.

Several episodes start from the same sample; each is compared with the others of its group, so there is no
value to learn: the advantage of every action of an episode is its return, less the group's mean, in units of
the group's deviation. The update is PPO's clipped one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vmr_env.agents.base import Metrics
from vmr_env.agents.devices import device_of, on_device, permutation
from vmr_env.agents.health import UpdateHealth, approximate_kl, clip_fraction
from vmr_env.agents.networks import PolicyValue
from vmr_env.agents.policy_agent import PolicyAgent, PolicyConfig, descend
from vmr_env.agents.policy_gradient import clipped_gain, entropy
from vmr_env.agents.rollout import acting, drawn
from vmr_env.envs.vector_env import VMRVectorEnv

_LEAST_STD = 1e-4  # a group whose returns are alike teaches nothing


@dataclass(frozen=True)
class GRPOConfig(PolicyConfig):
    """Settings of GRPO."""

    group: int = 8
    """Episodes that start from one sample; divides the number of environments."""
    batches: int = 4
    """Times that all environments begin episodes in a round."""
    epochs: int = 4
    """Passes over what they experienced."""
    minibatch: int = 256
    """Transitions per gradient step."""
    clip: float = 0.2
    """How far the probability ratio may leave 1."""
    entropy: float = 3e-3
    """Coefficient of the entropy bonus."""


class Experience(NamedTuple):
    """K transitions of whole episodes."""

    observations: Tensor
    """(K, width)."""
    masks: Tensor
    """(K, A), possible actions."""
    actions: Tensor
    """(K,), int64."""
    log_probs: Tensor
    """(K,), of the actions, under the policy that took them."""
    advantages: Tensor
    """(K,), of the episodes that they belong to."""


class GRPO(PolicyAgent[GRPOConfig]):
    """GRPO; arguments as in `Agent`, and `config`.

    Raises:
        ValueError: the environments cannot be put into groups of that size.
    """

    rounds = 50
    env_options: ClassVar[Mapping[str, Any]] = {"horizon": 1}
    config_class = GRPOConfig

    def __init__(self, env: VMRVectorEnv, seed: int, config: GRPOConfig | None = None) -> None:
        config = config or GRPOConfig()
        if config.group < 2 or env.num_envs % config.group:
            expected = f"expected at least 2, and a divisor of the {env.num_envs} environments"
            raise ValueError(f"group is {config.group}, {expected}")
        super().__init__(env, seed, config)

    def learn(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> Metrics:
        """Let groups of episodes run to their end, then several passes of clipped steps over them."""
        config = self.config
        gathered = [self.collect(network) for _ in range(config.batches)]
        batch = Experience(*(torch.cat(column) for column in zip(*(one for one, _ in gathered), strict=True)))
        policy = spread = torch.zeros(())
        health = UpdateHealth()
        for _ in range(config.epochs):
            order = permutation(len(batch.actions), self.generator, batch.actions.device)
            for rows in torch.split(order, config.minibatch):
                part = Experience(*(column[rows] for column in batch))
                said: PolicyValue = network(part.observations, part.masks)
                log_policy = said.logits.log_softmax(-1)
                log_ratio = log_policy.gather(1, part.actions[:, None])[:, 0] - part.log_probs
                policy = -clipped_gain(log_ratio.exp(), part.advantages, config.clip)
                spread = entropy(log_policy)
                loss = policy - config.entropy * spread
                norm = descend(loss, optimiser, config.max_norm, policy=policy, entropy=spread)
                health.add(
                    gradient_norm=norm,
                    approximate_kl=approximate_kl(log_ratio),
                    clip_fraction=clip_fraction(log_ratio, config.clip),
                )
        return {
            "charts/episode_return": float(np.mean([returns.mean() for _, returns in gathered])),
            "health/groups_without_spread": float(
                np.mean([without_spread(returns, config.group) for _, returns in gathered])
            ),
            **health.metrics(),
            "losses/policy": policy.item(),
            "losses/entropy": spread.item(),
        }

    def collect(self, network: nn.Module) -> tuple[Experience, Tensor]:
        """Run an episode in every environment, those of a group from the same start; and their returns
        (N,)."""
        env, group, device = self.env, self.config.group, device_of(network)
        _, infos = env.reset()
        samples, starts = (np.repeat(of[::group], group) for of in (infos["sample"], env.episodes.sources))
        self.collector.seen.update(samples.tolist())
        observations, infos = env.reset(options={"sample": samples, "start": starts})
        returns, runs = torch.zeros(env.num_envs), torch.ones(env.num_envs, dtype=torch.bool)
        steps: list[tuple[Tensor, ...]] = []
        with acting(network):
            while runs.any():
                seen = on_device(observations, device)
                masks = on_device(infos["action_mask"].astype(bool), device)
                said: PolicyValue = network(seen, masks)
                log_policy = said.logits.log_softmax(-1)
                actions = drawn(log_policy.exp(), self.generator)
                log_probs = log_policy.gather(1, actions.to(device))[:, 0]
                step = (runs, seen, masks, actions[:, 0], log_probs)
                steps.append(tuple(column.to(device) for column in step))
                observations, rewards, terminated, truncated, infos = env.step(actions[:, 0].numpy())
                self.collector.steps += int(runs.sum())
                returns += torch.from_numpy(rewards).float() * runs  # episodes that began anew do not count
                # What a time limit cuts off counts so far.
                runs = runs & ~torch.from_numpy(terminated | truncated)
        grouped = returns.view(-1, group)
        spread = grouped.std(1, keepdim=True).clamp_min(_LEAST_STD)
        advantages = ((grouped - grouped.mean(1, keepdim=True)) / spread).flatten().to(device)
        parts = [(*(column[ran] for column in rest), advantages[ran]) for ran, *rest in steps]
        return Experience(*(torch.cat(column) for column in zip(*parts, strict=True))), returns


def without_spread(returns: Tensor, group: int) -> float:
    """Share of groups (N / group) whose episodes all have one return (N,), so that nothing is learnt from
    them."""
    grouped = returns.view(-1, group)
    return float((grouped.std(1) < _LEAST_STD).float().mean())
