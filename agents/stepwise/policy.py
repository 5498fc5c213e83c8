"""Policies of the step-wise refinement agent: what it sees of a proposal, and how it moves its boundaries.

The published agent (GIRL-DETR's `rl_agent`) walks every proposal of a frozen detector through three moves.
Its state is the span, the detector's score, and features of video and sentence pooled around the span. Spans
are (centre, width) in units of the video length. Module and buffer names are those of the published
checkpoints.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

ActionType = Literal["discrete", "continuous"]

MIN_WIDTH = 0.01
MAX_ACTION = 0.1  # largest continuous move of centre or width
DELTAS = (  # moves of a boundary in clips, by step; later steps use the last row
    (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0),
    (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0),
    (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0),
)
STAY = 3  # index of "no change"


class DetectedSamples(NamedTuple):
    """Output of a frozen detector for B samples."""

    clips: Tensor  # (B, L, d) clip features, padded
    mask: Tensor  # (B, L) 1 for a clip, 0 for padding
    text: Tensor  # (B, d) mean token feature
    spans: Tensor  # (B, Q, 2) proposals
    scores: Tensor  # (B, Q) their foreground probabilities


class Judgement(NamedTuple):
    """Output of a policy for N proposals at each of T steps, given the actions taken."""

    log_probs: Tensor  # (T, N)
    entropies: Tensor  # (T, N)
    values: Tensor  # (T, N)
    tious: Tensor | None  # (T, N) estimated tIoU, with the IoU head


class Trajectories(NamedTuple):
    """T moves of N proposals; carries no gradient."""

    states: Tensor  # (T, N, S)
    actions: Tensor  # (T, N, 2): int64 choices for start and end, or moves of centre and width
    spans: Tensor  # (T + 1, N, 2)

    def of(self, index: Tensor) -> "Trajectories":
        """The proposals at ``index (M,)``."""
        return Trajectories(self.states[:, index], self.actions[:, index], self.spans[:, index])


def observe(detected: DetectedSamples, spans: Tensor) -> Tensor:
    """State of each proposal, ``(B, Q, 3 + 4d)``.

    Centre, width and score; features at the span, at its start and at its end; text. Features are averages
    of the clips under Gaussians. Their time grid runs over the padded length while spans are relative to the
    real one, as published.
    """
    centre, width = spans[..., 0], spans[..., 1].clamp(min=MIN_WIDTH)
    length = detected.clips.shape[1]
    means = torch.stack([centre, (centre - width / 2).clamp(0, 1), (centre + width / 2).clamp(0, 1)], -1)
    edge = torch.full_like(width, 2 / length)
    deviations = torch.stack([width / 2, edge, edge], -1) + 1e-6  # (B, Q, 3)
    times = torch.linspace(0, 1, length, device=spans.device)
    weights = torch.exp(-0.5 * ((times - means[..., None]) / deviations[..., None]) ** 2)
    weights = weights * detected.mask[:, None, None]
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-8)  # (B, Q, 3, L)
    pooled = torch.einsum("bqkl,bld->bqkd", weights, detected.clips).flatten(2)
    text = detected.text[:, None].expand(-1, spans.shape[1], -1)
    return torch.cat([spans, detected.scores[..., None], pooled, text], -1)


def moved(spans: Tensor, change: Tensor) -> Tensor:
    """Spans after a change of (centre, width), kept within the video's length."""
    centre, width = (spans + change).unbind(-1)
    return torch.stack([centre.clamp(0, 1), width.clamp(MIN_WIDTH, 1)], -1)


class StepwisePolicy(nn.Module):
    """Trunk, critic and options that both kinds of policy share.

    Args:
        d: Width of the features.
        gate: Weigh the features at the span by a gate computed from the text.
        memory: Carry a GRU state from step to step.
        iou_head: Estimate the tIoU as an auxiliary task.
    """

    def __init__(self, d: int, *, gate: bool = False, memory: bool = False, iou_head: bool = False) -> None:
        super().__init__()
        self.d = d
        self.shared = nn.Sequential(
            nn.Linear(3 + 4 * d, d), nn.LayerNorm(d), nn.ReLU(), nn.Linear(d, d), nn.LayerNorm(d), nn.ReLU()
        )
        self.critic = _two_layers(d)
        self.gate_proj = nn.Linear(d, d) if gate else None
        self.gru = nn.GRUCell(d, d) if memory else None
        self.iou_head = _two_layers(d) if iou_head else None

    def gated(self, states: Tensor) -> Tensor:
        """States ``(..., S)`` with the gate applied."""
        if self.gate_proj is None:
            return states
        head, local, rest = states[..., :3], states[..., 3 : 3 + self.d], states[..., 3 + self.d :]
        gate = torch.sigmoid(self.gate_proj(states[..., -self.d :]))
        return torch.cat([head, local * gate, rest], -1)

    def features(self, gated: Tensor, memory: Tensor | None = None) -> Tensor:
        """Features ``(N, d)`` of gated states ``(N, S)``; with a GRU, those of the step before go in."""
        features: Tensor = self.shared(gated)
        if self.gru is not None and memory is not None:
            features = self.gru(features, memory)
        return features

    def judge(self, rollout: Trajectories, *, gate_learns: bool = True) -> Judgement:
        """Judge actions taken; memory runs from the first step.

        Args:
            rollout: States and actions.
            gate_learns: Whether gradients reach the gate.
        """
        features: list[Tensor] = []
        likelihoods = []
        with torch.set_grad_enabled(gate_learns and torch.is_grad_enabled()):
            gated = self.gated(rollout.states)
        for step, (states, actions) in enumerate(zip(gated, rollout.actions, strict=True)):
            features.append(self.features(states, features[-1] if features else None))
            likelihoods.append(self.log_prob_and_entropy(features[-1], step, actions))
        log_probs, entropies = (torch.stack(values) for values in zip(*likelihoods, strict=True))
        seen = torch.stack(features)
        return Judgement(log_probs, entropies, self.critic(seen).squeeze(-1), self.tiou(seen))

    @torch.no_grad()
    def roll_out(
        self, detected: DetectedSamples, steps: int, generator: torch.Generator | None = None
    ) -> Trajectories:
        """Walk all proposals through `steps` moves: sampled with a generator, the likeliest without one."""
        shape = detected.spans.shape
        states, actions, spans = [], [], [detected.spans]
        memory = None
        for step in range(steps):
            states.append(observe(detected, spans[-1]).flatten(0, 1))
            memory = self.features(self.gated(states[-1]), memory)
            actions.append(self.act(memory, step, generator))
            spans.append(moved(spans[-1], self.change(actions[-1], step).view(shape)))
        return Trajectories(torch.stack(states), torch.stack(actions), torch.stack(spans).flatten(1, 2))

    def tiou(self, features: Tensor) -> Tensor | None:
        """Estimated tIoU ``(...)`` from features ``(..., d)``, or None without the IoU head."""
        return None if self.iou_head is None else torch.sigmoid(self.iou_head(features)).squeeze(-1)

    def act(self, features: Tensor, step: int, generator: torch.Generator | None) -> Tensor:
        """Actions ``(N, 2)`` at a step."""
        raise NotImplementedError

    def log_prob_and_entropy(self, features: Tensor, step: int, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of actions and entropies of the policy, each ``(N,)``."""
        raise NotImplementedError

    def change(self, actions: Tensor, step: int) -> Tensor:
        """Change of (centre, width) that actions make, ``(N, 2)``."""
        raise NotImplementedError


class DiscretePolicy(StepwisePolicy):
    """Chooses one of seven moves for the start and one for the end; heads and scale change with the step.

    Args:
        d: Width of the features.
        steps: Moves per episode.
        max_clips: Clips in which moves are counted: one is 1 / max_clips of the video, whatever its length.
        options: As for `StepwisePolicy`.
    """

    def __init__(self, d: int, *, steps: int = 3, max_clips: int = 75, **options: bool) -> None:
        super().__init__(d, **options)
        self.max_clips = max_clips
        self.start_heads = nn.ModuleList(_choice_head(d) for _ in range(steps))
        self.end_heads = nn.ModuleList(_choice_head(d) for _ in range(steps))
        for step in range(steps):
            self.register_buffer(f"boundary_deltas_{step}", torch.tensor(DELTAS[min(step, len(DELTAS) - 1)]))
        self.register_buffer("boundary_deltas", torch.tensor(DELTAS[-1]))

    def deltas(self, step: int) -> Tensor:
        """Moves of a boundary at a step, in clips, ``(7,)``."""
        return self.get_buffer(f"boundary_deltas_{step}")

    def logits(self, features: Tensor, step: int) -> Tensor:
        """Choices for start and end, ``(N, 2, 7)``."""
        return torch.stack([self.start_heads[step](features), self.end_heads[step](features)], 1)

    def act(self, features: Tensor, step: int, generator: torch.Generator | None) -> Tensor:
        """Choices ``(N, 2)`` int64."""
        logits = self.logits(features, step)
        if generator is None:
            return logits.argmax(-1)
        flat = torch.multinomial(logits.softmax(-1).flatten(0, 1).cpu(), 1, generator=generator)
        return flat.view(-1, 2).to(logits.device)

    def log_prob_and_entropy(self, features: Tensor, step: int, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over start and end."""
        log_probs = self.logits(features, step).log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum((-1, -2))
        return log_probs.gather(-1, actions[..., None]).sum((-1, -2)), entropy

    def change(self, actions: Tensor, step: int) -> Tensor:
        """Moves of start and end, as a change of centre and width."""
        start, end = (self.deltas(step)[actions] / self.max_clips).unbind(-1)
        return torch.stack([(start + end) / 2, end - start], -1)

    def oracle(self, spans: Tensor, moments: Tensor, step: int) -> Tensor:
        """Choices ``(N, 2)`` that come nearest to the moments ``(N, 2)``; the first of equal ones."""
        wanted = (boundaries(moments) - boundaries(spans)) * self.max_clips
        return (wanted[..., None] - self.deltas(step)).abs().argmin(-1)


class ContinuousPolicy(StepwisePolicy):
    """Moves centre and width by a Gaussian with one learnt deviation for each, clamped to `MAX_ACTION`.

    Args:
        d: Width of the features.
        options: As for `StepwisePolicy`.
    """

    def __init__(self, d: int, **options: bool) -> None:
        super().__init__(d, **options)
        self.actor_mean = nn.Linear(d, 2)
        self.actor_log_std = nn.Parameter(torch.full((2,), -3.0))

    def mean(self, features: Tensor) -> Tensor:
        """Mean move ``(N, 2)``."""
        return torch.tanh(self.actor_mean(features)) * MAX_ACTION

    def act(self, features: Tensor, step: int, generator: torch.Generator | None) -> Tensor:
        """Moves ``(N, 2)`` of centre and width, clamped."""
        mean = self.mean(features)
        if generator is None:
            return mean
        noise = torch.empty(mean.shape).normal_(generator=generator).to(mean.device)
        return (mean + noise * self.actor_log_std.exp()).clamp(-MAX_ACTION, MAX_ACTION)

    def log_prob_and_entropy(self, features: Tensor, step: int, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over centre and width; a clamped action has the Gaussian's density there, as published."""
        gaussian = torch.distributions.Normal(
            self.mean(features), self.actor_log_std.exp(), validate_args=False
        )
        return gaussian.log_prob(actions).sum(-1), gaussian.entropy().sum(-1)  # type: ignore[no-untyped-call]

    def change(self, actions: Tensor, step: int) -> Tensor:
        """The moves themselves."""
        return actions


def boundaries(spans: Tensor) -> Tensor:
    """(centre, width) to (start, end), ``(..., 2)``."""
    centre, width = spans.unbind(-1)
    return torch.stack([centre - width / 2, centre + width / 2], -1)


def _two_layers(d: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d, d // 2), nn.ReLU(), nn.Linear(d // 2, 1))


def _choice_head(d: int) -> nn.Linear:
    """Starts near uniform, with a preference for no change."""
    head = nn.Linear(d, len(DELTAS[0]))
    nn.init.xavier_uniform_(head.weight, gain=0.01)
    nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[STAY] = 0.5
    return head
