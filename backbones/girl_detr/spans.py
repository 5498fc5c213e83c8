"""Spans as tensors: conversion and overlap, broadcasting over all axes but the last."""

import torch
from torch import Tensor


def cxw_to_span(cxw: Tensor) -> Tensor:
    """(centre, width) to (start, end), ``(..., 2)``; nothing is clamped."""
    centre, width = cxw.unbind(-1)
    return torch.stack((centre - width / 2, centre + width / 2), -1)


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of spans ``a`` and ``b (..., 2)`` as (start, end), each ``(...)``."""
    intersection = (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - intersection
    hull = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
    iou = intersection / union
    return iou, iou - (hull - union) / hull
