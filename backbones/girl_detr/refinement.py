"""Feature refinement: each clip is mixed with what the sentence says about it."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.layers import Dropout, cosine

# The official model adds log(mask + 1e-45) to the similarity; in float32, 1e-45 is the smallest subnormal
# number, so padded clips get this. Written out, it does not depend on how the machine treats subnormals (Q5).
LOG_OF_PADDING = -103.27893


class FeatureRefinement(nn.Module):
    """Mixes four blocks: the clip, its similarity to the sentence, the sentence, word-clip attention."""

    def __init__(self, config: GirlDetrConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.dropout = Dropout(0.1)
        self.shared_dropout = config.repaired("shared_dropout")
        self.sentence_pool = nn.Parameter(torch.empty(width, 1))
        self.similarity = nn.Parameter(torch.empty(width, 1))
        self.mask_similarity = config.repaired("padded_similarity")
        self.correlation = (
            WordClipAttention() if config.repaired("word_clip_attention") else ConstantCorrelation(width)
        )
        self.mixer = nn.Linear(4 * width, width)
        for weight in (self.sentence_pool, self.similarity):
            nn.init.xavier_uniform_(weight)

    def forward(
        self, video: Tensor, video_mask: Tensor, texts: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, ...]:
        """Refine ``video (B, Lv, d)`` with ``video_mask (B, Lv)``, 1 = valid, by each of several texts.

        Texts are tokens ``(N, Lt, d)`` and their mask ``(N, Lt)`` for the first N videos. What does not
        depend on them is computed once.
        """
        mixed = F.linear(self.dropout(video), self._mixer_weights()[0], self.mixer.bias)
        refined = []
        for text, text_mask in texts:
            n = len(text)
            refined.append(self._refine(mixed[:n], video[:n], video_mask[:n], text, text_mask))
        return tuple(refined)

    def _mixer_weights(self) -> tuple[Tensor, ...]:
        """Weights of the mixer for each of its four blocks."""
        return self.mixer.weight.chunk(4, dim=1)

    def _refine(
        self, mixed: Tensor, video: Tensor, video_mask: Tensor, text: Tensor, text_mask: Tensor
    ) -> Tensor:
        sentence = self._sentence(text, text_mask)  # (B, d)
        similarity = self._similarity(video, video_mask, sentence)  # (B, Lv)
        blocks = (
            Block(self.similarity.t()[None], similarity[..., None]),
            Block(sentence[:, None], torch.ones_like(similarity)[..., None]),
            cast(Block, self.correlation(video, text, text_mask)),
        )
        return cast(Tensor, self.dropout(torch.relu(self._mix(mixed, blocks))))

    def _sentence(self, text: Tensor, text_mask: Tensor) -> Tensor:
        scores = (text @ self.sentence_pool).squeeze(-1) + (1 - text_mask) * -1e30
        return (scores.softmax(-1)[:, None] @ text).squeeze(1)

    def _similarity(self, video: Tensor, video_mask: Tensor, sentence: Tensor) -> Tensor:
        similarity = cosine(video, sentence)
        if self.mask_similarity:
            return similarity * video_mask
        return similarity + (1 - video_mask) * LOG_OF_PADDING

    def _mix(self, mixed: Tensor, blocks: Sequence["Block"]) -> Tensor:
        """The mixer on the concatenated blocks, applied to their rows before the clips take their shares.

        So dropout is drawn once for a sentence or token, not again for each clip that takes it, unless it is
        as published.
        """
        if self.training and not self.shared_dropout:
            for block, weight in zip(blocks, self._mixer_weights()[1:], strict=True):
                mixed = mixed + F.linear(self.dropout(block.shares @ block.rows), weight)
            return mixed
        rows = [
            F.linear(self.dropout(block.rows), weight).expand(len(mixed), -1, -1)
            for block, weight in zip(blocks, self._mixer_weights()[1:], strict=True)
        ]
        return torch.baddbmm(mixed, torch.cat([block.shares for block in blocks], 2), torch.cat(rows, 1))


class Block(NamedTuple):
    """A part of the mixer's input: rows, and for each clip how much of each row it takes."""

    rows: Tensor  # (B or 1, k, d)
    shares: Tensor  # (B, Lv, k)


class ConstantCorrelation(nn.Module):
    """The official word-clip correlation: weights that sum to one over equal rows, a constant vector (Q6)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.clip_weight = nn.Parameter(torch.empty(1, width))
        self.word_weight = nn.Parameter(torch.empty(1, 1))
        nn.init.xavier_uniform_(self.clip_weight)
        nn.init.xavier_uniform_(self.word_weight)

    def forward(self, video: Tensor, text: Tensor, text_mask: Tensor) -> Block:
        """The constant, one row."""
        return Block((self.clip_weight * self.word_weight)[None], torch.ones_like(video[..., :1]))


class WordClipAttention(nn.Module):
    """The text that each clip attends to, by scaled dot product (repair of Q6)."""

    def forward(self, video: Tensor, text: Tensor, text_mask: Tensor) -> Block:
        """The tokens as rows, shared among the clips."""
        scores = video @ text.transpose(1, 2) / text.shape[-1] ** 0.5
        return Block(text, scores.masked_fill(text_mask[:, None] == 0, -torch.inf).softmax(-1))
