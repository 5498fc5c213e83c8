"""The detection head as a stochastic policy, trained by REINFORCE, PPO or GRPO through the three stages.

An episode is one decision on one sample: which proposal, by a softmax of the class layer's log-odds, and
where its boundaries go, by a Gaussian around the span layers' own output. The curriculum's table
(`vmr_env.envs.curriculum`) says where an episode starts, whether the choice is free, and which potential is
rewarded: the reward is the potential of the span drawn less that of the detector's span at the start, as in
the environments. Without noise the policy is the detector itself, so the trained head goes back into it.

The three algorithms are one update, and differ in numbers: how many refinements of a sample are drawn, how
often they are used, and what they are compared with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vmr_env.agents.devices import on_device
from vmr_env.agents.policy_gradient import clipped_gain, standardised
from vmr_env.agents.tprl.data import StateBatch
from vmr_env.agents.tprl.head import Head
from vmr_env.agents.tprl.head_config import HeadConfig
from vmr_env.agents.tprl.head_training import HeadTrainer
from vmr_env.agents.tprl.losses import Moments, log_odds
from vmr_env.envs.curriculum import CURRICULA, Stage
from vmr_env.envs.rewards import potentials as potentials_of
from vmr_env.settings import Range

LEAST_SCALE = 1e-3
"""Least unit of the noise on boundaries, as a share of the video."""

Baseline = Literal["value", "group"]

_LEAST_STD = 1e-4  # of a group's rewards: a group without differences teaches nothing


LENGTHS = Range(
    lambda value: (
        isinstance(value, tuple)
        and all(type(length) is int and length >= 0 for length in value)
        and any(value)
    ),
    "whole numbers of at least 0, not all 0",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPolicyConfig(HeadConfig):
    """Settings of `HeadPolicyTrainer`."""

    ranges: ClassVar[Mapping[str, Range]] = {"epochs": LENGTHS}

    curriculum: str = "tprl"
    """The stages, by a name of `vmr_env.envs.curriculum.CURRICULA` or as "module:name"."""
    epochs: tuple[int, ...] = (2, 4, 34)
    """Epochs of each stage; 0 leaves a stage out."""
    group: int = 1
    """Refinements that are drawn of each sample."""
    passes: int = 1
    """Gradient steps on the refinements of a batch; with 1 the ratio of probabilities is 1 throughout."""
    ratio_clip: float = 0.2
    """How far the ratio of probabilities may leave 1."""
    baseline: Baseline = "value"
    """What a reward is compared with: "value" is a learnt linear function of the sample's mean decoder state,
    "group" the mean of the sample's other rewards, in units of their deviation."""
    kl: float = 0.0
    """Coefficient of the Kullback-Leibler divergence from the head as it came."""
    std: float = 0.1
    """Deviation of each boundary at the start, in lengths of the proposal; it is learnt."""
    std_lr: float = 1e-2
    """Learning rate of the deviations and of the value."""

    def __post_init__(self) -> None:
        HeadConfig.__post_init__(self)
        if self.baseline == "group" and self.group < 2:
            raise ValueError(f"group is {self.group}, expected at least 2 to be compared with each other")
        check_lengths(self.epochs, self.curriculum)


def head_policy_config(algorithm: str) -> HeadPolicyConfig:
    """Settings of "reinforce" (Williams, 1992), "ppo" (Schulman et al., 2017) or "grpo" (Shao et al., 2024).

    Raises:
        ValueError: There is no such algorithm.
    """
    common: dict[str, Any] = {
        "batch_size": 128,
        "lr": 2e-4,
        "weight_decay": 0.0,
        "clip": 1.0,
        "ema": 0.99,
        "target_length": "duration",
        "evaluate_every": 1,
        "selection": "quality",
        "start_is_candidate": True,
    }
    algorithms: dict[str, dict[str, Any]] = {
        "reinforce": {},
        "ppo": {"passes": 4},
        "grpo": {"passes": 2, "group": 8, "baseline": "group", "kl": 0.02},
    }
    if algorithm not in algorithms:
        raise ValueError(f"algorithm must be one of {sorted(algorithms)}, got {algorithm!r}")
    return HeadPolicyConfig(**common, **algorithms[algorithm])


class Said(NamedTuple):
    """What the policy says of B samples."""

    log_pi: Tensor
    """(B, Q), log-probabilities of choosing each proposal."""
    bounds: Tensor
    """(B, Q, 2), means of (start, end)."""
    values: Tensor
    """(B,), expected reward."""
    scores: Tensor
    """(B, Q), foreground probabilities."""


class Drawn(NamedTuple):
    """G refinements of each of B samples, and what became of them."""

    choice: Tensor
    """(B, G) int64, the proposal moved."""
    bounds: Tensor
    """(B, G, 2), the boundaries drawn, before they are put in order and cut to the video."""
    scale: Tensor
    """(B, G), lengths of the proposals, in whose units the noise is."""
    log_probs: Tensor
    """(B, G), under the policy that drew them."""
    advantages: Tensor
    """(B, G)."""
    rewards: Tensor
    """(B, G)."""


class HeadPolicy(nn.Module):
    """A detection head, the deviation of its boundaries, and a value.

    Args:
        head: As for `HeadTrainer`.
        std: Deviation at the start, in lengths of the proposal.
    """

    def __init__(self, head: Head, std: float) -> None:
        super().__init__()
        self.head = head
        self.log_std = nn.Parameter(torch.full((2,), math.log(std)))
        self.value = nn.Linear(head.width, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, states: Tensor, references: Tensor) -> Said:
        """``(B, Q, D)`` decoder states, ``(B, Q, 2)`` references."""
        values: Tensor = self.value(states.mean(1))[:, 0]
        odds = log_odds(self.head.score(states))
        bounds = bounds_of(self.head.locate(states, references))
        return Said(torch.log_softmax(odds, -1), bounds, values, odds.sigmoid())

    def log_prob(self, said: Said, drawn: Drawn, *, chooses: bool) -> Tensor:
        """Log-probability of refinements, ``(B, G)``; of their choice too where the policy makes it."""
        std = self.log_std.exp() * drawn.scale[..., None]
        away = (drawn.bounds - take(said.bounds, drawn.choice)) / std
        moves = -(0.5 * away.square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
        return moves + said.log_pi.gather(1, drawn.choice) if chooses else moves


class HeadPolicyTrainer(HeadTrainer[HeadPolicyConfig, Stage]):
    """Trains the policy; arguments as for `HeadTrainer`.

    Attributes:
        policy: What learns; its head is `head`.
    """

    kind = "head-policy"
    figures = ("reward", "policy", "value", "kl", "std")

    def __init__(self, head: Head, config: HeadPolicyConfig, seed: int = 0) -> None:
        super().__init__(head, config, seed)
        self._stages = CURRICULA.get(config.curriculum).stages
        self._first = HeadPolicy(self.came, config.std).to(self.device)
        self.policy = HeadPolicy(self.head, config.std).to(self.device)
        beside = [self.policy.log_std, *self.policy.value.parameters()]
        self._optimizer.add_param_group({"params": beside, "lr": config.std_lr, "weight_decay": 0.0})

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(self.config.epochs)

    def start_epoch(self, epoch: int) -> Stage:
        """The stage of an epoch (from 0); seeds the draws of its steps."""
        self._seed_draws(epoch)
        return stage_at(self._stages, self.config.epochs, epoch)

    def stage_of(self, now: Stage) -> int:
        """Number of the stage."""
        return self._stages.index(now) + 1

    def _extra(self) -> nn.Module:
        return self.policy

    def step(self, batch: StateBatch, now: Stage) -> list[Tensor]:
        """Draw refinements of a batch of samples and learn from them."""
        config, chooses = self.config, "switch" in now.free
        drawn = self.draw(batch, now)
        came = None
        if config.kl:
            with torch.no_grad():
                came = self._first(batch.states, batch.references)
        for _ in range(config.passes):
            said: Said = self.policy(batch.states, batch.references)
            ratio = (self.policy.log_prob(said, drawn, chooses=chooses) - drawn.log_probs).exp()
            gain = clipped_gain(ratio, drawn.advantages, config.ratio_clip)
            value = (said.values[:, None] - drawn.rewards).square().mean()
            kl = value.new_zeros(()) if came is None else self._divergence(said, came, drawn, chooses)
            self._descend(config.kl * kl + value - gain)
        std = self.policy.log_std.exp().mean()
        return [figure.detach() for figure in (drawn.rewards.mean(), -gain, value, kl, std)]

    @torch.no_grad()
    def draw(self, batch: StateBatch, stage: Stage) -> Drawn:
        """Refinements of each sample under the current policy, and how much better than expected they are."""
        config = self.config
        said: Said = self.policy(batch.states, batch.references)
        came: Said = self._first(batch.states, batch.references)
        start = self._starts(came.log_pi, stage)
        if "switch" in stage.free:
            choice = self._drawn_from(said.log_pi, config.group)
        else:
            choice = start[:, None].expand(-1, config.group)
        mean = take(said.bounds, choice)
        scale = (mean[..., 1] - mean[..., 0]).clamp(min=LEAST_SCALE)
        noise = torch.randn(mean.shape, generator=self._generator).to(mean.device)
        bounds = mean + self.policy.log_std.exp() * scale[..., None] * noise
        rewards = potentials(stage.reward, bounds, batch.moments)
        rewards -= potentials(stage.reward, take(came.bounds, start[:, None]), batch.moments)
        if config.baseline == "group":
            spread = rewards.std(1, keepdim=True).clamp(min=_LEAST_STD)
            advantages = (rewards - rewards.mean(1, keepdim=True)) / spread
        else:
            advantages = standardised(rewards - said.values[:, None])
        drawn = Drawn(choice, bounds, scale, torch.empty(0), advantages, rewards)
        return drawn._replace(log_probs=self.policy.log_prob(said, drawn, chooses="switch" in stage.free))

    def _starts(self, log_pi: Tensor, stage: Stage) -> Tensor:
        """The proposal at which each episode starts, ``(B,)``: any of the best few by ``log_pi (B, Q)``."""
        best = log_pi.topk(min(stage.start_k, log_pi.shape[1])).indices
        at = torch.randint(best.shape[1], (len(best), 1), generator=self._generator)
        return best.gather(1, at.to(best.device))[:, 0]

    def _drawn_from(self, log_pi: Tensor, count: int) -> Tensor:
        policy = log_pi.exp().cpu()
        drawn = torch.multinomial(policy, count, replacement=True, generator=self._generator)
        return drawn.to(log_pi.device)

    def _divergence(self, said: Said, came: Said, drawn: Drawn, chooses: bool) -> Tensor:
        """Divergence of the policy from the one that came, whose deviation is taken as the current one's."""
        std = self.policy.log_std.detach().exp() * drawn.scale[..., None]
        shift = (take(said.bounds, drawn.choice) - take(came.bounds, drawn.choice)) / std
        kl = 0.5 * shift.square().sum(-1).mean()
        if chooses:
            kl = kl + (said.log_pi.exp() * (said.log_pi - came.log_pi)).sum(-1).mean()
        return kl


def stage_at(stages: Sequence[Stage], epochs: Sequence[int], epoch: int) -> Stage:
    """The stage of an epoch (from 0), of stages of these lengths."""
    return stages[int(np.searchsorted(np.cumsum(epochs), epoch, side="right"))]


def check_lengths(epochs: Sequence[int], curriculum: str) -> None:
    """Refuse other than a length for each stage of a curriculum.

    Raises:
        ValueError: saying how many there are.
    """
    if len(epochs) != (stages := len(CURRICULA.get(curriculum))):
        raise ValueError(f"epochs is {epochs}, expected {stages}, one of each stage")


def bounds_of(spans: Tensor) -> Tensor:
    """(centre, width) ``(..., 2)`` -> (start, end)."""
    centre, half = spans[..., 0], spans[..., 1] / 2
    return torch.stack([centre - half, centre + half], -1)


def take(values: Tensor, choice: Tensor) -> Tensor:
    """``(B, Q, 2)`` at ``(B, G)`` -> ``(B, G, 2)``."""
    return values.gather(1, choice[..., None].expand(-1, -1, 2))


def potentials(name: str, bounds: Tensor, moments: Moments) -> Tensor:
    """The environments' potential of that name of spans ``(B, G, 2)``: ``(B, G)``.

    Boundaries are put in order and cut to the video first.
    """
    b, g, _ = bounds.shape
    ordered = bounds.clamp(0, 1).sort(-1).values.reshape(b * g, 2)
    of_sample = bounds_of(moments.spans)
    # Padding repeats a moment and so leaves maxima alone (`tprl_batches.padded_moments`).
    repeated = of_sample.repeat_interleave(g, 0)  # (B * G, M, 2)
    of_spans = potentials_of(name, ordered.cpu().numpy(), repeated.cpu().numpy())
    return on_device(of_spans, bounds.device).reshape(b, g)
