"""GIRL-DETR: from clip and token features to proposals, and the branches that its training needs."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vmr_env.backbones.girl_detr.branches import ContrastiveProjections, MomentSaliency, Saliency
from vmr_env.backbones.girl_detr.cmi import CrossMasks, CrossModalInteraction
from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.decoder import Decoder, DecoderStates
from vmr_env.backbones.girl_detr.encoder import Encoder, Memory
from vmr_env.backbones.girl_detr.head import DetectionHead, Detections
from vmr_env.backbones.girl_detr.layers import recomputed
from vmr_env.backbones.girl_detr.positions import TextPositions, clip_positions
from vmr_env.backbones.girl_detr.projections import InputProjection
from vmr_env.backbones.girl_detr.query_selection import QuerySelection
from vmr_env.backbones.girl_detr.refinement import FeatureRefinement


@dataclass(frozen=True)
class GirlDetrOutput:
    """What the model computes; B samples, Q queries, Lv clips, Lt tokens, width d.

    The fields that may be None belong to the branches that only training uses (see `GirlDetr.forward`).
    """

    detections: Detections
    """Per decoder layer, ``(layers, B, Q, ...)``; without the training branches of the last layer only."""
    hs: Tensor
    """Decoder states, normalised, ``(layers, B, Q, d)``."""
    references: Tensor
    """Anchors (centre, width) that each decoder layer started from, ``(layers, B, Q, 2)``."""
    memory_local: Tensor
    """Encoded clips ``(B, Lv, d)``."""
    memory_global: Tensor
    """Encoded global token ``(B, d)``."""
    src_vid: Tensor
    """Refined clips, before the transformer, ``(B, Lv, d)``."""
    src_txt: Tensor
    """Projected tokens, before the transformer, ``(B, Lt, d)``."""
    video_mask: Tensor
    """``(B, Lv)``, 1 = valid."""
    text_mask: Tensor
    """``(B, Lt)``, 1 = valid."""
    saliency_scores: Tensor
    """``(B, Lv)``; padded clips hold no meaning."""
    saliency_scores_neg: Tensor | None = None
    """The same of the first N samples with another sample's text, ``(N, Lv)``."""
    saliency_scores_mr: Tensor | None = None
    """Saliency from the predicted moment, ``(B, Lv)``."""
    proj_layers: Tensor | None = None
    """Queries as unit vectors ``(layers, B, Q, c)``."""
    proj_txt_mem: Tensor | None = None
    """Tokens as unit vectors ``(B, Lt, c)``."""
    selection_logits: Tensor | None = None
    """Logits of the spans from clip to clip, ``(B, Lv, Lv)``, with query selection."""

    @property
    def pred_logits(self) -> Tensor:
        """Class logits of the last layer ``(B, Q, 2)``: foreground, background."""
        return self.detections.logits[-1]

    @property
    def pred_spans(self) -> Tensor:
        """Spans of the last layer ``(B, Q, 2)`` as (centre, width) in units of the video length."""
        return self.detections.spans[-1]

    @property
    def pred_iou(self) -> Tensor:
        """IoU estimates of the last layer ``(B, Q)``."""
        return self.detections.iou[-1]

    @property
    def aux_outputs(self) -> list[Detections]:
        """Detections of the layers before the last."""
        return [
            Detections(*(field[i] for field in self.detections))
            for i in range(len(self.detections.logits) - 1)
        ]


class Pairing(NamedTuple):
    """The first N videos of a batch, refined by their texts, and these texts."""

    refined: Tensor  # (N, Lv, d)
    text: Tensor  # (N, Lt, d)
    text_mask: Tensor  # (N, Lt), 1 = valid


class GirlDetr(nn.Module):
    """The detector: input projections, refinement, CMI, encoder, decoder with TGG, head.

    Saliency, moment saliency and contrastive projections are branches beside it.

    Args:
        config: sizes and behaviour.
        seed: of the initial weights; the global random state is left as it was.

    Attributes:
        recompute: keep no activations of the wide layers but compute them again for the gradient: a third
            more time, a fraction of the memory; for videos of a thousand clips.
    """

    def __init__(self, config: GirlDetrConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(config)

    def _build(self, config: GirlDetrConfig) -> None:
        width, p = config.hidden_dim, config.input_dropout
        blocks, shared = config.n_input_proj, config.repaired("shared_dropout")
        self.video_projection = InputProjection(config.v_feat_dim, width, p, blocks, shared)
        self.text_projection = InputProjection(config.t_feat_dim, width, p, blocks, shared)
        self.refinement = None if config.no_feature_refinement else FeatureRefinement(config)
        self.use_txt_pos = config.use_txt_pos
        has_text_positions = config.use_txt_pos or not config.repaired("unused_parameters")
        self.text_positions = TextPositions(config.max_q_l, width, p) if has_text_positions else None
        self.cmi = CrossModalInteraction(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        for part in (self.cmi, self.encoder, self.decoder):
            _initialise(part)
        if config.repaired("anchor_init"):
            self.decoder.anchor_update.zero_last_layer()
        self.head = DetectionHead(width)
        self.saliency = Saliency(width)
        self.moment_saliency = MomentSaliency(config) if config.mr_to_hd_loss else None
        self.contrastive = ContrastiveProjections(config) if config.contrastive_align_loss else None
        self.query_selection = QuerySelection(config) if config.query_selection else None

    def forward(
        self,
        src_vid: Tensor,
        src_vid_mask: Tensor,
        src_txt: Tensor,
        src_txt_mask: Tensor,
        *,
        training_branches: bool | None = None,
        wrong_texts: tuple[Tensor, Tensor] | None = None,
    ) -> GirlDetrOutput:
        """Detect moments.

        Args:
            src_vid: clip features ``(B, Lv, v_feat_dim)``, temporal endpoint features included, zero-padded.
            src_vid_mask: ``(B, Lv)``, 1 = valid, 0 = padding.
            src_txt: token features ``(B, Lt, t_feat_dim)``, zero-padded.
            src_txt_mask: ``(B, Lt)``.
            training_branches: compute what only the losses need (a second pass with wrong texts, moment
                saliency, contrastive projections, the head on all layers); by default in training mode only.
            wrong_texts: token features ``(N, Lt, t_feat_dim)`` of other samples for the first N videos, and
                their mask ``(N, Lt)``; by default the next sample's for the first `negatives`.
        """
        self._check(src_vid, src_vid_mask, src_txt, src_txt_mask)
        video_mask, text_mask = src_vid_mask.to(src_vid.dtype), src_txt_mask.to(src_txt.dtype)
        video: Tensor = recomputed(self.video_projection, self._recompute, src_vid)
        text: Tensor = recomputed(self.text_projection, self._recompute, src_txt)
        branches = self.training if training_branches is None else training_branches
        texts = [(text, text_mask)]
        if branches and wrong_texts is not None:
            wrong_text, wrong_mask = wrong_texts
            projected = recomputed(self.text_projection, self._recompute, wrong_text)
            texts.append((projected, wrong_mask.to(wrong_text.dtype)))
        elif branches and (count := self.negatives(len(text))):
            texts.append((text.roll(-1, 0)[:count], text_mask.roll(-1, 0)[:count]))
        pairings = self._pairings(video, video_mask, texts)
        positions = clip_positions(video_mask, self.config.hidden_dim)
        memory, *wrong = self._encode(pairings, positions, video_mask)
        selection_logits = selected = None
        if self.query_selection is not None:
            selection_logits = self.query_selection(memory.clips, video_mask)
            selected = self.query_selection.anchors(selection_logits, video_mask)
        decoded: DecoderStates = self.decoder(memory.clips, positions, video_mask, text, text_mask, selected)

        layers = slice(None) if branches else slice(-1, None)
        detections: Detections = self.head(decoded.states[layers], decoded.references[layers])
        moment = proj_layers = proj_text = None
        if branches:
            if self.moment_saliency is not None:
                last = Detections(*(field[-1] for field in detections))
                moment = self.moment_saliency(video, video_mask, memory, last)
            if self.contrastive is not None:
                proj_layers, proj_text = self.contrastive(decoded.states, text)
        return GirlDetrOutput(
            detections=detections,
            hs=decoded.states,
            references=decoded.references,
            memory_local=memory.clips,
            memory_global=memory.whole,
            src_vid=pairings[0].refined,
            src_txt=text,
            video_mask=video_mask,
            text_mask=text_mask,
            saliency_scores=self.saliency(memory),
            saliency_scores_neg=self.saliency(wrong[0]) if wrong else None,
            saliency_scores_mr=moment,
            proj_layers=proj_layers,
            proj_txt_mem=proj_text,
            selection_logits=selection_logits,
        )

    @property
    def _recompute(self) -> bool:
        return self.recompute and torch.is_grad_enabled()

    def negatives(self, samples: int) -> int:
        """How many of a batch's first videos training shows with another sample's text, too.

        See the repairs ``negative_refinement`` (Q14), without which a video alone gets its own text, and
        ``half_negatives``.
        """
        if samples == 1 and self.config.repaired("negative_refinement"):
            return 0
        return (samples + 1) // 2 if self.config.repaired("half_negatives") else samples

    def _pairings(
        self, video: Tensor, video_mask: Tensor, texts: list[tuple[Tensor, Tensor]]
    ) -> list["Pairing"]:
        """The videos with each of their texts; officially, the first text refines them for the others too."""
        refining = texts if self.config.repaired("negative_refinement") else texts[:1]
        refined: tuple[Tensor, ...] = (video,)
        if self.refinement is not None:
            refined = recomputed(self.refinement, self._recompute, video, video_mask, refining)
        return [
            Pairing(refined[min(i, len(refined) - 1)][: len(text)], text, text_mask)
            for i, (text, text_mask) in enumerate(texts)
        ]

    def _encode(self, pairings: list["Pairing"], positions: Tensor, video_mask: Tensor) -> list[Memory]:
        """Encode the videos with each of their texts, all as one batch."""
        counts = [len(pairing.text) for pairing in pairings]
        video_masks = [video_mask[:count] for count in counts]
        masks = [
            self.cmi.masks(mask, pairing.text_mask)
            for mask, pairing in zip(video_masks, pairings, strict=True)
        ]
        video, text, _ = map(torch.cat, zip(*pairings, strict=True))
        positions = torch.cat([positions[:count] for count in counts])
        text_positions = None
        if self.use_txt_pos and self.text_positions is not None:
            if self.config.repaired("negative_text_positions"):
                text_positions = self.text_positions(text)
            else:
                own = self.text_positions(pairings[0].text)
                text_positions = torch.cat([own[:count] for count in counts])
        joint_masks = CrossMasks(*map(torch.cat, zip(*masks, strict=True)))
        video = self.cmi(video, positions, text, text_positions, joint_masks, self._recompute)
        memory: Memory = self.encoder(video, positions, torch.cat(video_masks), self._recompute)
        return list(map(Memory, torch.split(memory.clips, counts), torch.split(memory.whole, counts)))

    def _check(self, video: Tensor, video_mask: Tensor, text: Tensor, text_mask: Tensor) -> None:
        for name, x, mask, width in (
            ("src_vid", video, video_mask, self.config.v_feat_dim),
            ("src_txt", text, text_mask, self.config.t_feat_dim),
        ):
            if x.ndim != 3 or x.shape[-1] != width:
                raise ValueError(f"{name} has shape {tuple(x.shape)}; expected (batch, length, {width})")
            if mask.shape != x.shape[:2]:
                raise ValueError(f"{name}_mask has shape {tuple(mask.shape)}; expected {tuple(x.shape[:2])}")
        if len(video) != len(text):
            raise ValueError(f"src_vid has {len(video)} samples, src_txt {len(text)}")


def _initialise(part: nn.Module) -> None:
    """Xavier-uniform matrices, as the official model has them all through its transformer."""
    for name, parameter in part.named_parameters():
        if parameter.ndim > 1 and name not in ("anchors", "content"):
            nn.init.xavier_uniform_(parameter)
