"""Losses and rewards of TPRL as pure functions over a batch of samples.

Shapes: B samples, Q proposals, K of them (the best-scored ones), M moments per sample, padded and masked.
Spans and moments are (centre, width) in units of the video length, as the detection head gives them. Every
loss is the mean over the batch, a scalar, as every sample has a moment. Nothing here loops over samples.

The published formulas, quirks included, are those of GIRL-DETR's post-training; choices that the published
code does not have say so.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

RewardMode = Literal["iou", "step", "iou_step"]
Estimator = Literal["score_greedy", "iou_greedy", "loo_mean", "grpo", "expected"]
Weighting = Literal["improvement", "balanced", "iou", "policy"]
Distance = Literal["l1", "tiou"]
PolicyInput = Literal["probability", "logit"]

EPS = 1e-8
MIN_LENGTH = 1e-6  # floor of lengths, so that two empty spans do not divide by zero


# Threshold on tIoU -> bonus for passing it.
_STEPS: dict[RewardMode, dict[float, float]] = {
    "iou": {},
    "step": {0.5: 0.5, 0.7: 0.5},
    "iou_step": {0.3: 0.1, 0.5: 0.2, 0.7: 0.3},
}
_THRESHOLD_STEPS = {0.3: 0.05, 0.5: 0.10, 0.7: 0.15}


class Moments(NamedTuple):
    """Ground truth of a batch."""

    spans: Tensor  # (B, M, 2) centre, width; padding is arbitrary but finite
    mask: Tensor  # (B, M) bool, True for a moment; every sample has at least one

    @property
    def mean(self) -> Tensor:
        """Mean (centre, width) over a sample's moments, ``(B, 1, 2)``."""
        weights = self.mask / self.mask.sum(1, keepdim=True)
        return (weights[..., None] * self.spans).sum(1, keepdim=True)


class BestMoments(NamedTuple):
    """Best-overlapping moment of each proposal; carries no gradient."""

    tiou: Tensor  # (B, Q)
    moment: Tensor  # (B, Q, 2) centre, width

    def top(self, k: int) -> "BestMoments":
        """The first `k` proposals' matches."""
        return BestMoments(self.tiou[:, :k], self.moment[:, :k])


class Overlap(NamedTuple):
    """Overlap of two spans, all of one broadcast shape and differentiable."""

    intersection: Tensor
    union: Tensor
    hull: Tensor

    @property
    def tiou(self) -> Tensor:
        """Temporal intersection over union."""
        return self.intersection / self.union

    @property
    def giou(self) -> Tensor:
        """Generalised tIoU (Rezatofighi et al., 2019) in one dimension, tIoU - (hull - union) / hull."""
        return self.tiou + self.union / self.hull - 1


def overlap(a: Tensor, b: Tensor) -> Overlap:
    """Overlap of spans ``(..., 2)`` as (centre, width), broadcast; one of the two must be longer than 0."""
    (a_centre, a_width), (b_centre, b_width) = a.unbind(-1), b.unbind(-1)
    total = a_width + b_width
    # Length of the common part, negative for a gap: limited by the shorter one and by the centres' distance.
    common = torch.minimum(torch.minimum(a_width, b_width), 0.5 * total - (a_centre - b_centre).abs())
    intersection = common.relu()
    return Overlap(intersection, total - intersection, total - common)


@torch.no_grad()
def best_moments(spans: Tensor, moments: Moments) -> BestMoments:
    """Best-overlapping moment of each span ``(B, Q, 2)``; the first moment where nothing overlaps."""
    tiou = overlap(spans[:, :, None], moments.spans[:, None]).tiou  # (B, Q, M)
    best, index = tiou.masked_fill(~moments.mask[:, None], -1.0).max(-1)
    return BestMoments(best, moments.spans.gather(1, index[..., None].expand(-1, -1, 2)))


@torch.no_grad()
def rewards(
    spans: Tensor,
    moments: Moments,
    matches: BestMoments,
    *,
    mode: RewardMode = "iou",
    boundary_bonus: bool = False,
    threshold_steps: bool = False,
    ic_weight: float = 0.0,
    centre_weight: float = 0.0,
) -> Tensor:
    """Reward of each proposal, ``(B, Q)``.

    Args:
        spans: Proposals ``(B, Q, 2)``.
        moments: Ground truth of the batch.
        matches: `best_moments` of the two.
        mode: "iou" is the tIoU; "step" is 0.5 for each of the thresholds 0.5, 0.7 passed; "iou_step" adds
            0.1, 0.2, 0.3 for the thresholds 0.3, 0.5, 0.7 to the tIoU.
        boundary_bonus: Add up to 0.15 for start and end errors that are small against the moment's length.
        threshold_steps: Add 0.05, 0.10, 0.15 for the thresholds 0.3, 0.5, 0.7.
        ic_weight: Weight of the part of the proposal inside the moment, for tIoU of at least 0.5.
        centre_weight: Weight, in [0, 1], of the closeness of the centres, taken from the rest.

    The published code uses the mean of a sample's moments for the last two, whichever of them matches
    best; so does this.
    """
    tiou = matches.tiou
    reward = torch.zeros_like(tiou) if mode == "step" else tiou
    for threshold, bonus in _STEPS[mode].items():
        reward = reward + bonus * (tiou > threshold)
    centre, width = spans.unbind(-1)
    if boundary_bonus:
        moment_centre, moment_width = matches.moment.unbind(-1)
        shift, growth = centre - moment_centre, (width - moment_width) / 2
        scale = moment_width.clamp(min=MIN_LENGTH)
        start_error, end_error = (shift - growth) / scale, (shift + growth) / scale
        reward = reward + 0.075 * (torch.exp(-(start_error**2) / 0.08) + torch.exp(-(end_error**2) / 0.08))
    if threshold_steps:
        for threshold, bonus in _THRESHOLD_STEPS.items():
            reward = reward + bonus * (tiou > threshold)
    if ic_weight:
        mean_width = moments.mean[..., 1]
        intersection = tiou * (width + mean_width) / (1 + tiou + 1e-6)
        inside = (intersection / width.clamp(min=MIN_LENGTH)).clamp(0, 1)
        reward = reward + ic_weight * (tiou >= 0.5) * inside
    if centre_weight:
        closeness = 1 - (centre - moments.mean[..., 0]).abs().clamp(max=1)
        reward = (1 - centre_weight) * reward + centre_weight * closeness
    return reward


def top1_loss(spans: Tensor, moments: Tensor) -> Tensor:
    """L_top1: mean absolute difference of (centre, width), plus 1 - GIoU.

    Args:
        spans: The best-scored proposal of each sample, ``(B, 2)``.
        moments: Its best-overlapping moment, ``(B, 2)``.
    """
    return (spans - moments).abs().mean() + 1 - overlap(spans, moments).giou.mean()


def span_loss(
    spans: Tensor,
    matches: BestMoments,
    *,
    weighting: Weighting = "improvement",
    policy: Tensor | None = None,
    threshold_aware: bool = False,
    distance: Distance = "l1",
    giou: bool = False,
) -> Tensor:
    """L_span: regression of proposals to their moments, weighted by their quality within each sample.

    Args:
        spans: The K best-scored proposals, ``(B, K, 2)``.
        matches: Their matches.
        weighting: Weight of a proposal before normalisation. Published: "improvement" is 1 - tIoU (favours
            the worst), "balanced" is tIoU (1 - tIoU), "iou" is tIoU. Ours: "policy" is the probability
            with which the policy chooses it.
        policy: Those probabilities, ``(B, K)``; for weighting "policy" only.
        threshold_aware: Multiply weights by up to 2 near a tIoU of 0.7.
        distance: "l1" is |centre difference| + |width difference| (published), "tiou" is 1 - tIoU: with
            weighting "policy" over all proposals the loss is then 1 minus the policy's expected tIoU.
        giou: Add 1 - GIoU.
    """
    weights = _span_weights(matches.tiou, weighting, policy)
    if threshold_aware:
        weights = weights * (1 + torch.exp(-((matches.tiou - 0.7) ** 2) / (2 * 0.15**2)))
    weights = weights / (weights.sum(-1, keepdim=True) + EPS)
    if distance == "l1":
        error = (spans - matches.moment).abs().sum(-1)
    else:
        error = 1 - overlap(spans, matches.moment).tiou
    if giou:
        error = error + 1 - overlap(spans, matches.moment).giou
    return (weights * error).sum(-1).mean()


def _span_weights(tiou: Tensor, weighting: Weighting, policy: Tensor | None) -> Tensor:
    if weighting == "policy":
        if policy is None:
            raise ValueError('weighting "policy" needs the policy\'s probabilities')
        return policy.detach()
    if weighting == "improvement":
        return 1 - tiou
    if weighting == "balanced":
        return tiou * (1 - tiou)
    return tiou


def log_odds(logits: Tensor) -> Tensor:
    """Log-odds of the foreground, ``(B, Q)``, from class logits ``(B, Q, 2)``: foreground, background."""
    return logits[..., 0] - logits[..., 1]


def log_policy(logits: Tensor, *, on: PolicyInput = "probability", temperature: float = 0.5) -> Tensor:
    """Log-probabilities of choosing each proposal, ``(B, Q)``.

    Args:
        logits: Class logits ``(B, Q, 2)``: foreground, background.
        on: What the softmax over proposals is taken of. "probability" is published: the foreground
            probability, already within (0, 1), so that at temperature 0.5 no two proposals' odds exceed
            e^2. "logit" is ours: the log-odds of the foreground, which rank equally but can become
            certain.
        temperature: Divisor.
    """
    odds = log_odds(logits)
    preference = torch.sigmoid(odds) if on == "probability" else odds
    return torch.log_softmax(preference / temperature, -1)


def score_loss(
    log_pi: Tensor,
    reward: Tensor,
    *,
    estimator: Estimator = "score_greedy",
    draws: Tensor | None = None,
    clip_advantage: float = 0.0,
) -> Tensor:
    """L_score: policy gradient over the choice among proposals.

    Args:
        log_pi: `log_policy`, ``(B, Q)``.
        reward: Reward of each proposal, ``(B, Q)``.
        estimator: Published: "score_greedy", "iou_greedy" and "loo_mean" average -(R - b) log pi over the
            proposals drawn, with the baseline b the reward of the most probable proposal, the highest
            reward, or the mean reward (drawn ones included); "grpo" sums -A log pi over all proposals, A
            the reward standardised within the sample. Ours: "expected" is minus the policy's expected
            reward, whose gradient is exact.
        draws: Indices of the proposals drawn, ``(B, S)`` int64; for the sampled estimators only.
        clip_advantage: With "grpo", bound of |A|; 0 for none.
    """
    if estimator == "expected":
        return -(log_pi.exp() * reward).sum(-1).mean()
    if estimator == "grpo":
        advantage = (reward - reward.mean(-1, keepdim=True)) / reward.std(-1, keepdim=True).clamp(min=EPS)
        if clip_advantage > 0:
            advantage = advantage.clamp(-clip_advantage, clip_advantage)
        return -(advantage * log_pi).sum(-1).mean()
    if draws is None:
        raise ValueError(f"estimator {estimator!r} needs draws")
    if estimator == "score_greedy":
        baseline = reward.gather(1, log_pi.argmax(-1, keepdim=True))
    elif estimator == "iou_greedy":
        baseline = reward.amax(-1, keepdim=True)
    else:
        baseline = reward.mean(-1, keepdim=True)
    return -((reward.gather(1, draws) - baseline) * log_pi.gather(1, draws)).mean()


SAMPLED = frozenset(get_args(Estimator)) - {"grpo", "expected"}
"""Estimators that need draws."""


def rank_loss(scores: Tensor, tiou: Tensor, *, margin: float = 0.1, threshold: float = 0.1) -> Tensor:
    """L_rank: hinge on the scores of proposals whose tIoU differs.

    Args:
        scores: Foreground probabilities, ``(B, Q)``.
        tiou: Their tIoU, ``(B, Q)``.
        margin: Lead in score that the better proposal of a pair must have.
        threshold: Smallest lead in tIoU that makes a pair.

    Mean over the pairs of a sample, then over the samples that have a pair; 0 if none has.
    """
    pairs = (tiou[:, :, None] - tiou[:, None] > threshold).to(scores.dtype)  # (B, better, worse)
    hinge = (margin - (scores[:, :, None] - scores[:, None])).clamp(min=0)
    count = pairs.sum((1, 2))
    per_sample = (hinge * pairs).sum((1, 2)) / count.clamp(min=1)
    return per_sample.sum() / (count > 0).sum().clamp(min=1)
