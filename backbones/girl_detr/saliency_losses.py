"""Losses on one score per clip: the saliency loss and the alignment of clips with the text."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.layers import cosine
from vmr_env.backbones.girl_detr.model import GirlDetrOutput
from vmr_env.backbones.girl_detr.targets import Targets

RANKS = 12  # labels run from 0 to 12, the sum of three annotators' 0 to 4
RANK_TEMPERATURE = 0.5
PADDED_SCORE = -1000.0


def saliency_terms(
    output: GirlDetrOutput, targets: Targets, epoch: int, config: GirlDetrConfig
) -> dict[str, Tensor]:
    """The parts of the saliency loss, scalars; the loss is their plain sum."""
    mask, labels = output.video_mask.float(), targets.saliency_all_labels
    scores = output.saliency_scores.float()
    negative = None if output.saliency_scores_neg is None else output.saliency_scores_neg.float()
    truth = curve(labels, None, config)
    shape = curve(scores, mask, config)
    terms = {
        "rank_contrastive": _rank_contrastive(scores, negative, labels, mask),
        "margin": _margin(scores, targets, config.saliency_margin),
        "cos": config.cos_sim_loss_coef * _over_batch(1 - (truth * shape).sum(1), config),
    }
    if negative is not None:
        terms["neg_pair"] = (F.softplus(negative) * mask[: len(negative)]).sum(1).mean()
    if output.saliency_scores_mr is not None:
        by_moment = curve(output.saliency_scores_mr.float(), mask, config)
        terms["mr_to_hd_cos"] = config.mr_to_hd_loss_coef * _over_batch(
            1 - (truth * by_moment).sum(1), config
        )
    if config.hard_pos_neg_loss:
        growth = 1 if config.repaired("constant_hard_weight") else epoch + 1
        error = growth * config.hard_pos_neg_loss_coef * (truth - shape) ** 2
        terms["hard_neg"] = _over_clips(error * (labels <= 0), mask, config)
        terms["hard_pos"] = _over_clips(error * (labels > 0), mask, config)
    return terms


def alignment_term(output: GirlDetrOutput, targets: Targets, config: GirlDetrConfig) -> Tensor:
    """One minus the likeness of two curves over time: the clips' cosine with the mean token, and labels."""
    text, tokens = output.src_txt.float(), output.text_mask.float()[..., None]
    if not config.repaired("loss_padding"):
        tokens = torch.ones_like(tokens)
    mean_token = (text * tokens).sum(1) / tokens.sum(1)
    shape = curve(cosine(output.src_vid.float(), mean_token), output.video_mask.float(), config)
    return _over_batch(1 - (curve(targets.saliency_all_labels, None, config) * shape).sum(1), config)


def curve(scores: Tensor, mask: Tensor | None, config: GirlDetrConfig) -> Tensor:
    """Scores ``(B, Lv)`` raised by their minimum, which labels (no mask) do not need, and scaled to length 1.

    Officially the minimum is that of the whole batch with its padding, and padded clips belong to the curve.
    The official division by the range of the labels is left out: the length becomes 1 in any case.
    """
    if mask is None:
        return F.normalize(scores, dim=1)
    if config.repaired("loss_padding"):
        lowest = scores.masked_fill(mask == 0, torch.inf).amin(1, keepdim=True)
        return F.normalize((scores - lowest) * mask, dim=1)
    return F.normalize(scores - scores.min(), dim=1)


def _over_batch(values: Tensor, config: GirlDetrConfig) -> Tensor:
    return values.mean() if config.repaired("loss_means") else values.sum()


def _over_clips(values: Tensor, mask: Tensor, config: GirlDetrConfig) -> Tensor:
    if config.repaired("loss_padding"):
        return ((values * mask).sum(1) / mask.sum(1)).mean()
    return values.mean()


def _rank_contrastive(scores: Tensor, negative: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """For each rank, clips labelled at least so high against all others, also those with the wrong text."""
    if negative is not None:  # of the first samples
        absent = (0, 0, 0, len(scores) - len(negative))
        scores = torch.cat((scores, F.pad(negative, absent)), 1)
        mask = torch.cat((mask, F.pad(mask[: len(negative)], absent)), 1)
        labels = torch.cat((labels, torch.zeros_like(labels)), 1)
    logits = scores.masked_fill(mask == 0, PADDED_SCORE) / RANK_TEMPERATURE
    logits = logits - logits.amax(1, keepdim=True).detach()
    log_probabilities = logits - torch.log(logits.exp().sum(1, keepdim=True) + 1e-6)
    ranks = torch.arange(1, RANKS, device=labels.device)[:, None, None]
    positives = (labels >= ranks) * mask  # (ranks, B, clips)
    loss = -(positives * log_probabilities).sum(-1) / (positives.sum(-1) + 1e-6)
    return loss.mean(1).sum() / RANKS


def _margin(scores: Tensor, targets: Targets, margin: float) -> Tensor:
    high = scores.gather(1, targets.saliency_pos_labels)
    low = scores.gather(1, targets.saliency_neg_labels)
    return (margin + low - high).clamp(min=0).sum() / high.numel() * 2
