"""The interfaces through which caches are built and heads are trained; any detector can implement them.

A model of the Moment-DETR family does so in a class with the members of `Detector`, which is passed to
`vmr_env.backbones.cache.build_cache`. `states` are what the model's own class and span layers read; with them
belong the `references` that its span layers add to (a model without references gives its spans there). With
the members of `TrainableDetector` besides, its head can be trained on such a cache: the cache names the
detector's kind, and `register_backbone` tells how to open weights of a kind.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from vmr_env.backbones.dataset import FeatureBatch
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint, read_manifest, save_checkpoint
from vmr_env.backbones.girl_detr.inference import WindowSettings, proposal_scores
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.girl_detr.weights import state_sha256
from vmr_env.envs.lookup import Registry
from vmr_env.errors import DataError, Problem


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


class TrainableDetector(Detector, Protocol):
    """A detector whose head can be trained on its cached decoder states, and put back."""

    @property
    def head(self) -> Any:
        """Its detection head, a `vmr_env.agents.tprl.head.Head`: what loads other weights changes the
        detector."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """All its tensors by name, those of the head too; no copies."""
        ...

    def save(self, path: Path, notes: Mapping[str, Any]) -> str:
        """Write the detector as it is now, so that it opens again; returns the hash of its weights."""
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
        notes: of its checkpoint.
    """

    model: GirlDetr
    memory: ClipMemory = "none"
    kind: str = "girl-detr"
    ranking: WindowSettings | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def head(self) -> Any:
        """The detection head."""
        return self.model.head

    def state_dict(self) -> Mapping[str, Tensor]:
        """All tensors of the model."""
        tensors: Mapping[str, Tensor] = self.model.state_dict()
        return tensors

    def save(self, path: Path, notes: Mapping[str, Any]) -> str:
        """Write a checkpoint, with further notes."""
        return save_checkpoint(path, self.model, {**self.notes, **notes})

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


OpenDetector: TypeAlias = Callable[[Path], TrainableDetector]
"""Opens the weights of a detector, in evaluation mode on the CPU."""


def _open_girl_detr(weights: Path) -> TrainableDetector:
    return GirlDetrDetector(load_checkpoint(weights), notes=read_manifest(weights)["notes"])


BACKBONES: Registry[OpenDetector] = Registry("kind of backbone", {"girl-detr": _open_girl_detr}, Callable)  # type: ignore[arg-type]  # mypy knows no type of callables
"""How to open detectors, by the kind that caches name."""


def register_backbone(kind: str, opens: OpenDetector) -> None:
    """Let the heads of detectors of a kind be trained.

    A kind `"module:name"` of such a function needs no registration.

    Raises:
        ValueError: another kind has that name.
    """
    BACKBONES.add(kind, opens)


def open_detector(kind: str, weights: Path) -> TrainableDetector:
    """Open the weights of a detector.

    Raises:
        DataError: they cannot be opened, or nothing is known of such detectors.
    """
    try:
        return BACKBONES.get(kind)(weights)
    except DataError:
        raise
    except Exception as error:  # whatever a foreign detector raises
        message = f"cannot be opened as weights of a {kind} backbone ({error})"
        raise DataError(Problem(str(weights), None, None, message)) from error
