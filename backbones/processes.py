"""Training on one process or on several that share each batch; the extra `[distributed]` is for several.

    torchrun --nproc-per-node 2 -m vmr_env.backbones.train charades-simulated …

starts two processes of one training. Each runs the model on its share of a batch's samples. What the losses
need is gathered from all, so every process has the losses of the whole batch, as one process has, to
rounding. Each has their gradients through its own share, and the gradients are added: data-parallel training
as by DDP, but exact for losses that are no means over samples. Dropout draws other numbers on several
processes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vmr_env.backbones.dataset import FeatureBatch
from vmr_env.backbones.girl_detr.head import Detections
from vmr_env.backbones.girl_detr.model import GirlDetr, GirlDetrOutput
from vmr_env.errors import MissingExtra


class Processes(Protocol):
    """The processes of a training, seen from one of them."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0; the first one writes the files."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    @property
    def device(self) -> torch.device:
        """Of this process."""
        ...

    def detect(self, model: GirlDetr, batch: FeatureBatch) -> GirlDetrOutput:
        """The model's output for a batch with its training branches, of which each process computes a share.

        Args:
            model: the same in all processes.
            batch: the same in all processes.

        Returns:
            the output for the whole batch in the fields that losses read; others may have the share's.
        """
        ...

    def add_gradients(self, model: nn.Module) -> None:
        """Give every process the sum of all gradients, each through the process's share of the output."""
        ...


@dataclass(frozen=True)
class OneProcess:
    """One process alone."""

    device: torch.device
    rank: int = 0
    count: int = 1

    def detect(self, model: GirlDetr, batch: FeatureBatch) -> GirlDetrOutput:
        """See `Processes`."""
        output: GirlDetrOutput = model(*batch.inputs)
        return output

    def add_gradients(self, model: nn.Module) -> None:
        """See `Processes`."""


class FabricProcesses:
    """The processes that `torchrun` started, connected by Lightning Fabric."""

    def __init__(self, device: str) -> None:
        """Connect to the others.

        Args:
            device: "cpu", or "cuda" for an accelerator for each process of a machine.

        Raises:
            MissingExtra: the extra `[distributed]` is not installed.
        """
        try:
            from lightning_fabric import Fabric
        except ImportError as error:
            message = f"{error}; several processes need `pip install vmr-env[distributed]`"
            raise MissingExtra(message) from error
        here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        self._fabric: Any = Fabric(
            accelerator=torch.device(device).type, devices=here, num_nodes=everywhere // here, strategy="ddp"
        )
        self._fabric.launch()

    @property
    def rank(self) -> int:
        """See `Processes`."""
        return int(self._fabric.global_rank)

    @property
    def count(self) -> int:
        """See `Processes`."""
        return int(self._fabric.world_size)

    @property
    def device(self) -> torch.device:
        """See `Processes`."""
        return torch.device(self._fabric.device)

    def detect(self, model: GirlDetr, batch: FeatureBatch) -> GirlDetrOutput:
        """See `Processes`.

        The r-th of n processes has the samples r, r + n, r + 2n, …; where they run out it takes the first one
        once more, whose output is dropped. So all have equally many.
        """
        size = len(batch.src_vid)
        negatives = model.negatives(size)
        _, video_mask, text, text_mask = batch.inputs

        def share(of: int) -> list[int]:
            """This process's share of the first `of` samples."""
            rows = (first + self.rank for first in range(0, of, self.count))
            return [row if row < of else 0 for row in rows]

        own, others = share(size), [(row + 1) % size for row in share(negatives)]
        wrong = (text[others], text_mask[others]) if negatives else None
        inputs = [tensor[own] for tensor in batch.inputs]
        output: GirlDetrOutput = model(*inputs, wrong_texts=wrong)

        def whole(tensor: Tensor, axis: int = 0, of: int = size) -> Tensor:
            """The rows of all processes in the order of the batch, those that are there twice once."""
            rows = self._gather(tensor.movedim(axis, 0))  # (processes, share, ...)
            return rows.transpose(0, 1).flatten(0, 1)[:of].movedim(0, axis)

        return replace(
            output,
            detections=Detections(*(whole(field, axis=1) for field in output.detections)),
            src_vid=whole(output.src_vid),
            src_txt=whole(output.src_txt),
            video_mask=video_mask,
            text_mask=text_mask,
            saliency_scores=whole(output.saliency_scores),
            **{
                name: whole(tensor, axis, of)
                for name, axis, of in (
                    ("saliency_scores_neg", 0, negatives),
                    ("saliency_scores_mr", 0, size),
                    ("proj_layers", 1, size),
                    ("proj_txt_mem", 0, size),
                    ("selection_logits", 0, size),
                )
                if (tensor := getattr(output, name)) is not None
            },
        )

    def _gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, stacked by rank; gradients flow back to this one's own."""
        own = tensor.detach().contiguous()
        gathered = [torch.empty_like(own) for _ in range(self.count)]
        torch.distributed.all_gather(gathered, own)
        gathered[self.rank] = tensor
        return torch.stack(gathered)

    def add_gradients(self, model: nn.Module) -> None:
        """See `Processes`."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        own = torch.cat([gradient.flatten() for gradient in gradients])
        flat: Tensor = self._fabric.all_reduce(own, reduce_op="sum")
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


@contextmanager
def open_processes(device: str) -> Iterator[Processes]:
    """The processes of this training: those of `torchrun`, or this one alone.

    Raises:
        MissingExtra: there are several, and the extra `[distributed]` is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield OneProcess(torch.device(device))
        return
    processes = FabricProcesses(device)
    try:
        yield processes
    finally:
        torch.distributed.destroy_process_group()
