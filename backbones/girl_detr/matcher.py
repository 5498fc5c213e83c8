"""Hungarian matching of queries to moments, for all decoder layers at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.head import Detections
from vmr_env.backbones.girl_detr.spans import cxw_to_span, overlaps


class Matches(NamedTuple):
    """Matched pairs; every layer has the same number P of them, in the order of the samples."""

    sample: Tensor  # (P,) int64
    query: Tensor  # (layers, P) int64
    target: Tensor  # (layers, P) int64: index of the moment within its sample


def matching_cost(detections: Detections, moments: Tensor, config: GirlDetrConfig) -> Tensor:
    """Cost ``(layers, B, Q, M)`` of giving queries ``(layers, B, Q)`` to ``moments (B, M, 2)``, as cxw."""
    spans, moments = detections.spans[..., None, :], moments[:, None]
    distance = (spans - moments).abs().sum(-1)
    _, giou = overlaps(cxw_to_span(spans), cxw_to_span(moments))
    return (
        config.set_cost_span * distance
        - config.set_cost_giou * giou
        - config.set_cost_class * detections.scores[..., None]
    )


@torch.no_grad()
def match(detections: Detections, moments: Sequence[Tensor], config: GirlDetrConfig) -> Matches:
    """Cheapest one-to-one matching per layer and sample.

    Args:
        detections: of all layers, ``(layers, B, Q, ...)``.
        moments: per sample its moments ``(n, 2)`` as (centre, width).
        config: has the weights of the costs, ``set_cost_*``.
    """
    costs = matching_cost(detections, pad_sequence(list(moments), batch_first=True), config).cpu().numpy()
    counts = [len(spans) for spans in moments]
    pairs = [
        [linear_sum_assignment(cost[:, :n]) for cost, n in zip(layer, counts, strict=True)] for layer in costs
    ]
    device = detections.spans.device
    sizes = torch.tensor([len(queries) for queries, _ in pairs[0]], device=device)
    query, target = (
        torch.tensor([[int(i) for pair in layer for i in pair[side]] for layer in pairs], device=device)
        for side in (0, 1)
    )
    sample = torch.repeat_interleave(torch.arange(len(counts), device=device), sizes)
    return Matches(sample, query.long(), target.long())
