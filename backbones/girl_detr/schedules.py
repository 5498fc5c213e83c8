"""Learning rate by epoch."""

import math
from typing import Literal

COSINE_FLOOR = 0.01
WARMUP_START = 0.01


def learning_rate(
    epoch: int,
    base: float,
    *,
    scheduler: Literal["step", "cosine"] = "step",
    lr_drop: int = 400,
    n_epoch: int = 200,
    warmup_epochs: int = 0,
) -> float:
    """Learning rate in use during ``epoch``, counted from 0.

    Args:
        epoch: the epoch.
        base: the full learning rate.
        scheduler: ``step`` divides by 10 every ``lr_drop`` epochs; ``cosine`` falls to a hundredth of
            ``base`` over the epochs after the warm-up.
        lr_drop: see ``scheduler``.
        n_epoch: length of the training.
        warmup_epochs: epochs over which the rate rises linearly from a hundredth of ``base``; the scheduler
            starts counting after them.
    """
    if epoch < warmup_epochs:
        return base * (WARMUP_START + (1 - WARMUP_START) * epoch / warmup_epochs)
    since = epoch - warmup_epochs
    if scheduler == "step":
        return base * 0.1 ** (since // lr_drop)
    angle = math.pi * since / max(n_epoch - warmup_epochs, 1)
    return base * (COSINE_FLOOR + (1 - COSINE_FLOOR) * (1 + math.cos(angle)) / 2)
