"""What the step-wise agent is trained towards: its matching, rewards, advantages and oracle.

Spans and moments are (centre, width) in units of the video length; T moves, M matched proposals.
"""

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from vmr_env.agents import policy_gradient
from vmr_env.agents.devices import on_device
from vmr_env.agents.spans import tiou
from vmr_env.agents.stepwise.policy import DiscretePolicy, boundaries
from vmr_env.agents.tprl.losses import Moments, overlap


class MatchedProposals(NamedTuple):
    """Proposals matched to moments."""

    rows: Tensor  # (M,) int64 into the B * Q proposals, ascending
    moments: Tensor  # (M, 2) centre, width


def match_proposals(spans: Tensor, moments: Moments) -> MatchedProposals:
    """Assign proposals ``(B, Q, 2)`` to moments one to one, at the least cost 10 L1 - GIoU."""
    costs = 10 * torch.cdist(spans, moments.spans, p=1)  # (B, Q, M)
    costs -= overlap(spans[:, :, None], moments.spans[:, None]).giou
    on_processor = costs.cpu().numpy()
    rows, found = [], []
    for b, count in enumerate(moments.mask.sum(1).tolist()):
        proposal, moment = (
            on_device(side, spans.device) for side in linear_sum_assignment(on_processor[b, :, :count])
        )
        rows.append(proposal + b * spans.shape[1])
        found.append(moments.spans[b, moment])
    return MatchedProposals(torch.cat(rows), torch.cat(found))


def inside_tiou(spans: Tensor, moments: Tensor) -> Tensor:
    """TIoU of ``spans (..., 2)`` with ``moments (..., 2)``, both cut to the video."""
    return tiou(_inside(spans), _inside(moments))


def step_rewards(spans: Tensor, moments: Tensor) -> Tensor:
    """PPO's reward of each move, ``(T, M)``, of ``spans (T + 1, M, 2)``.

    10 times the gain in tIoU, 5 times the decrease of the boundaries' two errors, and with the last move 5
    times the gain in tIoU since the start, if it is one.
    """
    overlaps = inside_tiou(spans, moments)
    errors = (_inside(spans) - _inside(moments)).abs().sum(-1)
    rewards = 10 * overlaps.diff(dim=0) - 5 * errors.diff(dim=0)
    rewards[-1] += 5 * (overlaps[-1] - overlaps[0]).clamp(min=0)
    return rewards


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns ``(T, M)`` of whole episodes: nothing follows the last step."""
    nothing = torch.zeros_like(rewards)
    advantages = policy_gradient.gae(rewards, torch.cat([values, nothing[:1]]), nothing, gamma, lam)
    return advantages, advantages + values


def oracle_loss(
    policy: DiscretePolicy, features: Tensor, spans: Tensor, moments: Tensor, step: int, iou_coef: float
) -> Tensor:
    """Cross-entropy of the oracle's choices for start and end, plus the error of the IoU head.

    Args:
        policy: Policy with discrete moves.
        features: Its features ``(M, d)`` at the spans.
        spans: ``(M, 2)``.
        moments: Their moments ``(M, 2)``.
        step: Which move it is.
        iou_coef: Coefficient of the squared error.
    """
    logits = policy.logits(features, step)
    choices = policy.oracle(spans, moments, step)
    loss = F.cross_entropy(logits[:, 0], choices[:, 0]) + F.cross_entropy(logits[:, 1], choices[:, 1])
    estimate = policy.tiou(features)
    if estimate is not None:
        loss = loss + iou_coef * F.mse_loss(estimate, inside_tiou(spans, moments))
    return loss


def _inside(spans: Tensor) -> Tensor:
    """(centre, width) to (start, end), cut to the video."""
    return boundaries(spans).clamp(0, 1)
