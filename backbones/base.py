"""The interface through which the cache builder uses a detector; other models implement it too.

Any model of the Moment-DETR family can: wrap it in a class with the three members of `Detector` and pass
that to `vmr_env.backbones.cache.build_cache`. `states` are what the model's own class and span layers read,
and should be given together with the `references` that its span layers add to (a model without references
gives its spans there).
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from vmr_env.backbones.dataset import FeatureBatch
from vmr_env.backbones.girl_detr.inference import WindowSettings, proposal_scores
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.girl_detr.weights import state_sha256


@dataclass(frozen=True)
class DetectorOutput:
    """Proposals for B samples: Q queries, D-wide decoder states, Lv padded clips. On any device, any
    precision."""

    states: Tensor
    """Last decoder layer's output ``(B, Q, D)``, as the class and span layers read it."""
    references: Tensor
    """What the last span layer refines ``(B, Q, 2)``: (centre, width) in units of the video."""
    logits: Tensor
    """Class logits ``(B, Q, 2)``: foreground, background."""
    spans: Tensor
    """``(B, Q, 2)``: (centre, width) in units of the video, neither necessarily inside it."""
    saliency: Tensor | None = None
    """One value per clip ``(B, Lv)``, any scale."""
    clips: Tensor | None = None
    """Clip features to keep ``(B, Lv, C)``."""
    text: Tensor | None = None
    """One vector per query to keep ``(B, X)``."""
    span_scores: Tensor | None = None
    """Logits of the spans from clip to clip ``(B, Lv, Lv)``, both included; -inf where there is none."""
    scores: Tensor | None = None
    """What ranks the proposals ``(B, Q)``, in [0, 1]; None for the foreground probability."""


class Detector(Protocol):
    """A frozen detector."""

    @property
    def kind(self) -> str:
        """Its kind, in a word."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of its weights."""
        ...

    @property
    def fingerprint(self) -> str:
        """Text that changes whenever its output might: an interrupted build goes on only if it is the
        same."""
        ...

    def detect(self, batch: FeatureBatch) -> DetectorOutput:
        """Proposals for a batch on the CPU, in evaluation mode and without gradients."""
        ...


ClipMemory = Literal["none", "refined", "encoded"]


@dataclass(frozen=True)
class GirlDetrDetector:
    """GIRL-DETR as a detector.

    Attributes:
        model: the model, on any device.
        memory: clip features to keep: none, before the transformer (`refined`, what the official step-wise
            agent looks at), or after its encoder (`encoded`). With either, the mean token is kept as text.
        ranking: how proposals are scored; None for the foreground probability.
    """

    model: GirlDetr
    memory: ClipMemory = "none"
    kind: str = "girl-detr"
    ranking: WindowSettings | None = None

    @property
    def sha256(self) -> str:
        """Hash of all weights."""
        return state_sha256(self.model.state_dict())

    @property
    def fingerprint(self) -> str:
        """Weights, behaviour, memory and scores."""
        return f"{self.sha256} {self.model.config} {self.memory} {self.ranking}"

    @torch.no_grad()
    def detect(self, batch: FeatureBatch) -> DetectorOutput:
        """Proposals for a batch."""
        output = self.model.eval()(*batch.to(next(self.model.parameters()).device).inputs)
        clips = text = None
        if self.memory != "none":
            clips = output.src_vid if self.memory == "refined" else output.memory_local
            mask = output.text_mask[..., None]
            text = (output.src_txt * mask).sum(1) / mask.sum(1)
        return DetectorOutput(
            states=output.hs[-1],
            references=output.references[-1],
            logits=output.pred_logits,
            spans=output.pred_spans,
            saliency=output.saliency_scores,
            clips=clips,
            text=text,
            span_scores=output.selection_logits,
            scores=None if self.ranking is None else proposal_scores(output, self.ranking),
        )
