"""Feature refinement: each clip is mixed with what the sentence says about it."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.girl_detr.config import GirlDetrConfig
from backbones.girl_detr.layers import Dropout

# The official model adds log(mask + 1e-45) to the similarity; in float32, 1e-45 is the smallest subnormal
# number, so padded clips get this. Written out, it does not depend on how the machine treats subnormals (Q5).
LOG_OF_PADDING = -103.27893


class FeatureRefinement(nn.Module):
    """Mixes four blocks: the clip, its similarity to the sentence, the sentence, word-clip attention."""

    def __init__(self, config: GirlDetrConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.dropout = Dropout(0.1)
        self.sentence_pool = nn.Parameter(torch.empty(width, 1))
        self.similarity = nn.Parameter(torch.empty(width, 1))
        self.mask_similarity = config.repaired("padded_similarity")
        self.correlation = (
            WordClipAttention() if config.repaired("word_clip_attention") else ConstantCorrelation(width)
        )
        self.mixer = nn.Linear(4 * width, width)
        for weight in (self.sentence_pool, self.similarity):
            nn.init.xavier_uniform_(weight)

    def forward(self, video: Tensor, video_mask: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Refine ``video (B, Lv, d)`` by ``text (B, Lt, d)``; masks ``(B, Lv)``, ``(B, Lt)``, 1 = valid."""
        sentence = self._sentence(text, text_mask)  # (B, 1, d)
        similarity = self._similarity(video, video_mask, sentence)  # (B, Lv)
        blocks = (
            video,
            similarity[..., None] * self.similarity[:, 0],
            sentence,
            self.correlation(video, text, text_mask),
        )
        return cast(Tensor, self.dropout(torch.relu(self._mix(blocks, video.shape))))

    def _sentence(self, text: Tensor, text_mask: Tensor) -> Tensor:
        scores = (text @ self.sentence_pool).squeeze(-1) + (1 - text_mask) * -1e30
        return scores.softmax(-1)[:, None] @ text

    def _similarity(self, video: Tensor, video_mask: Tensor, sentence: Tensor) -> Tensor:
        similarity = F.cosine_similarity(video, sentence, dim=-1, eps=1e-8)
        if self.mask_similarity:
            return similarity * video_mask
        return similarity + (1 - video_mask) * LOG_OF_PADDING

    def _mix(self, blocks: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
        """The mixer on the concatenated blocks; a block that all clips share is mixed once per sample."""
        mixed: Tensor = self.mixer.bias
        for block, weight in zip(blocks, self.mixer.weight.chunk(4, dim=1), strict=True):
            spread = block.expand(shape) if self.training else block  # each clip has its own dropout
            mixed = mixed + F.linear(self.dropout(spread), weight)
        return mixed


class ConstantCorrelation(nn.Module):
    """The official word-clip correlation: weights that sum to one over equal rows, a constant vector (Q6)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.clip_weight = nn.Parameter(torch.empty(1, width))
        self.word_weight = nn.Parameter(torch.empty(1, 1))
        nn.init.xavier_uniform_(self.clip_weight)
        nn.init.xavier_uniform_(self.word_weight)

    def forward(self, video: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """The constant, ``(1, 1, d)``."""
        return (self.clip_weight * self.word_weight)[None]


class WordClipAttention(nn.Module):
    """The text that each clip attends to, by scaled dot product (repair of Q6)."""

    def forward(self, video: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Attended text ``(B, Lv, d)``."""
        return F.scaled_dot_product_attention(video, text, text, attn_mask=text_mask.bool()[:, None])
