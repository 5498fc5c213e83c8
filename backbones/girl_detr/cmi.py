"""Cross-Modal Interaction (CMI): video and text read each other before the encoder."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.layers import Attention, Dropout, FeedForward, recomputed, residual


class CrossMasks(NamedTuple):
    """Which keys each query may see; bool, broadcastable to ``(B, H, Lq, Lk)``."""

    clips_to_tokens: Tensor
    tokens_to_clips: Tensor


def cross_masks(video_mask: Tensor, text_mask: Tensor, heads: int, from_other_samples: bool) -> CrossMasks:
    """Masks of the three attentions: padded keys are hidden.

    Args:
        video_mask: ``(B, Lv)``, 1 = valid.
        text_mask: ``(B, Lt)``, 1 = valid.
        heads: number of attention heads H.
        from_other_samples: also hide, in head h of sample b, what is padded in sample (b * H + h) mod B, from
            the queries that are padded there. The official code means to hide each sample's own padding, but
            orders the stack of masks by head and reads it by batch (Q9).
    """
    clips, tokens = video_mask.bool(), text_mask.bool()
    to_tokens, to_clips = tokens[:, None, None], clips[:, None, None]
    if not from_other_samples:
        return CrossMasks(to_tokens, to_clips)
    both_padded = ~(clips[:, :, None] | tokens[:, None, :])  # (B, Lv, Lt)
    batch = len(clips)
    other = torch.arange(batch * heads, device=clips.device).view(batch, heads) % batch
    stray = both_padded[other]  # (B, H, Lv, Lt)
    return CrossMasks(to_tokens & ~stray, to_clips & ~stray.transpose(-1, -2))


class CrossBranch(nn.Module):
    """Attention to the other modality, dropout, linear.

    The linear layer and the output projection of the attention, one behind the other, are multiplied into
    one. So dropout, as published between the two, comes before them with ``shared_dropout``.
    """

    def __init__(self, width: int, heads: int, p: float, shared_dropout: bool = True) -> None:
        super().__init__()
        self.shared_dropout = shared_dropout
        self.attention = Attention(width, heads, p, shared_dropout)
        self.dropout = Dropout(p)
        self.linear = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """What is added to the stream of the queries; shapes as in `Attention`."""
        if self.training and not self.shared_dropout:
            return cast(Tensor, self.linear(self.dropout(self.attention(query, key, value, visible))))
        first = self.attention.out_proj
        weight = self.linear.weight @ first.weight
        bias = self.linear(first.bias)
        return F.linear(self.dropout(self.attention.mix(query, key, value, visible)), weight, bias)


class CmiLayer(nn.Module):
    """Video reads text, text reads video, the new video reads the new text; then a feed-forward network."""

    def __init__(self, config: GirlDetrConfig) -> None:
        super().__init__()
        width, heads, p = config.hidden_dim, config.nheads, config.dropout
        self.pre_norm = config.pre_norm
        self.normalises_text = config.repaired("cmi_text_norm")
        self.adds_to_input = config.repaired("cmi_residual")
        shared = config.repaired("shared_dropout")
        self.read_text = CrossBranch(width, heads, p, shared)
        self.read_video = CrossBranch(width, heads, p, shared)
        self.fuse = CrossBranch(width, heads, p, shared)
        self.feed_forward = FeedForward(width, config.dim_feedforward, p, shared)
        self.dropout = Dropout(p)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))

    def forward(
        self,
        video: Tensor,
        video_positions: Tensor,
        text: Tensor,
        text_positions: Tensor | None,
        masks: CrossMasks,
    ) -> Tensor:
        """New video ``(B, Lv, d)``, from ``video (B, Lv, d)`` and ``text (B, Lt, d)`` and their positions."""
        placed_video = video + video_positions
        placed_text = text if text_positions is None else text + text_positions

        def read_text(x: Tensor) -> Tensor:
            return cast(Tensor, self.read_text(x + video_positions, placed_text, text, masks.clips_to_tokens))

        def read_video(x: Tensor) -> Tensor:
            query = x if text_positions is None else x + text_positions
            return cast(Tensor, self.read_video(query, placed_video, video, masks.tokens_to_clips))

        def fuse(x: Tensor) -> Tensor:
            return cast(Tensor, self.fuse(x, answer, answer, masks.clips_to_tokens))

        read = residual(video, read_text, self.norm1, self.pre_norm)
        if self.normalises_text:
            answer = residual(text, read_video, self.norm2, self.pre_norm)
        else:
            answer = text + read_video(text)
        fused = residual(read, fuse, self.norm3, self.pre_norm)
        branch = self.feed_forward(self.norm4(fused) if self.pre_norm else fused)
        kept = fused if self.adds_to_input else branch  # the official layer adds the branch to itself (Q8)
        mixed: Tensor = self.dropout(branch, kept)
        return mixed if self.pre_norm else cast(Tensor, self.norm4(mixed))


class CrossModalInteraction(nn.Module):
    """CMI layers; each new video reads the same text again."""

    def __init__(self, config: GirlDetrConfig) -> None:
        super().__init__()
        self.heads = config.nheads
        self.masks_from_other_samples = not config.repaired("cmi_masks")
        self.layers = nn.ModuleList(CmiLayer(config) for _ in range(config.cmi_layers))

    def masks(self, video_mask: Tensor, text_mask: Tensor) -> CrossMasks:
        """Masks for `forward`, of one batch; see `cross_masks`."""
        return cross_masks(video_mask, text_mask, self.heads, self.masks_from_other_samples)

    def forward(
        self,
        video: Tensor,
        video_positions: Tensor,
        text: Tensor,
        text_positions: Tensor | None,
        masks: CrossMasks,
        recompute: bool = False,
    ) -> Tensor:
        """New video ``(B, Lv, d)``; see `CmiLayer` and `recomputed`."""
        for layer in self.layers:
            video = recomputed(layer, recompute, video, video_positions, text, text_positions, masks)
        return video
