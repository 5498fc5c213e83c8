"""The supervised losses of GIRL-DETR."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.head import FOREGROUND, Detections
from vmr_env.backbones.girl_detr.matcher import Matches, match
from vmr_env.backbones.girl_detr.model import GirlDetrOutput
from vmr_env.backbones.girl_detr.query_selection import selection_loss
from vmr_env.backbones.girl_detr.saliency_losses import alignment_term, saliency_terms
from vmr_env.backbones.girl_detr.spans import cxw_to_span, overlaps
from vmr_env.backbones.girl_detr.targets import Targets


class SupervisedCriterion:
    """All losses of one batch, and their weighted total."""

    def __init__(self, config: GirlDetrConfig) -> None:
        self.config = config

    def weight(self, name: str) -> float:
        """Weight of a loss in the total; 0 for values that are only logged."""
        c = self.config
        weights = {
            "loss_span": c.span_loss_coef,
            "loss_giou": c.giou_loss_coef,
            "loss_label": c.label_loss_coef,
            "loss_iou": c.iou_loss_coef,
            "loss_contrastive_align": c.contrastive_align_loss_coef,
            "loss_saliency": c.lw_saliency,
            "loss_selection": c.selection_loss_coef,
        }
        stem = name.rstrip("0123456789").rstrip("_")
        return float(weights.get(stem, 0.0))

    def __call__(self, output: GirlDetrOutput, targets: Targets, epoch: int) -> dict[str, Tensor]:
        """Losses by name, each a scalar, and ``total``.

        Args:
            output: of the model with its training branches.
            targets: labels on the same device.
            epoch: counted from 0; the official weight of the hard terms grows with it.

        Returns:
            ``loss_span``, ``loss_giou``, ``loss_label``, ``loss_contrastive_align``, with ``use_iou_head``
            ``loss_iou``, and the same of earlier decoder layers with suffixes ``_0``, ``_1``, ...;
            ``loss_saliency``; with query selection ``loss_selection``; ``total``; and for the log
            ``class_error`` (percent), the parts of the saliency loss, ``saliency/...``, and of the
            contrastive one, ``contrastive/align``.
        """
        layers = len(output.detections.logits)
        used = slice(None) if self.config.aux_loss else slice(layers - 1, None)
        detections = Detections(*(field[used].float() for field in output.detections))
        matches = match(detections, targets.spans, self.config)
        per_layer = self._detection_terms(detections, matches, targets)
        losses: dict[str, Tensor] = {}
        if output.proj_layers is not None:
            queries = output.proj_layers[used].float()
            per_layer["loss_contrastive_align"] = self._query_text_contrast(queries, output, matches)
        for name, values in per_layer.items():
            losses[name] = values[-1]
            losses |= {f"{name}_{i}": value for i, value in enumerate(values[:-1])}
        if output.proj_layers is not None:
            losses["contrastive/align"] = alignment_term(output, targets, self.config)
            losses["loss_contrastive_align"] = losses["loss_contrastive_align"] + losses["contrastive/align"]
        if output.selection_logits is not None:
            losses["loss_selection"] = selection_loss(
                output.selection_logits.float(), output.video_mask, targets, self.config.selection_temperature
            )
        parts = saliency_terms(output, targets, epoch, self.config)
        losses["loss_saliency"] = torch.stack(list(parts.values())).sum()
        losses["total"] = torch.stack([self.weight(name) * loss for name, loss in losses.items()]).sum()
        return losses | {f"saliency/{name}": value for name, value in parts.items()}

    def _detection_terms(
        self, detections: Detections, matches: Matches, targets: Targets
    ) -> dict[str, Tensor]:
        """Terms of matched pairs and of classes, each ``(layers,)``."""
        moments = pad_sequence(list(targets.spans), batch_first=True)[matches.sample, matches.target]
        layer = torch.arange(len(matches.query), device=matches.query.device)[:, None]
        found = (layer, matches.sample, matches.query)
        spans = detections.spans[found]  # (layers, P, 2), as are the moments
        iou, giou = overlaps(cxw_to_span(spans), cxw_to_span(moments))
        classes = torch.full(detections.logits.shape[:-1], 1 - FOREGROUND, device=spans.device)
        classes[found] = FOREGROUND
        class_weights = spans.new_tensor([1.0, self.config.eos_coef])[classes]
        entropy = F.cross_entropy(detections.logits.movedim(-1, 1), classes, reduction="none")
        right = detections.logits[found].argmax(-1) == FOREGROUND
        terms = {
            "loss_span": (spans - moments).abs().mean((1, 2)),
            "loss_giou": (1 - giou).mean(1),
            "loss_label": (entropy * class_weights).mean((1, 2)),
            "class_error": 100 - 100 * right.float().mean(1),
        }
        if self.config.use_iou_head:
            # Officially the target is the generalised IoU clipped at 0 (Q20); for intervals that is the IoU.
            terms["loss_iou"] = (detections.iou[found] - iou.detach()).abs().mean(1)
        return terms

    def _query_text_contrast(self, queries: Tensor, output: GirlDetrOutput, matches: Matches) -> Tensor:
        """Matched queries against all queries of the sample, by likeness to its tokens, ``(layers,)``."""
        if output.proj_txt_mem is None:
            raise ValueError("the output lacks the contrastive branch")
        tokens = output.proj_txt_mem.float()
        if self.config.repaired("loss_padding"):
            tokens = tokens * output.text_mask[..., None]
        logits = (queries @ tokens.sum(1)[..., None]).squeeze(-1) / self.config.temperature  # (layers, B, Q)
        layer = torch.arange(len(logits), device=logits.device)[:, None]
        found = torch.zeros_like(logits)
        found[layer, matches.sample, matches.query] = 1
        matched = (logits * found).sum(-1) / found.sum(-1)
        return (logits.logsumexp(-1) - matched).mean(-1)
