"""Text-Guided Gating (TGG): the text decides how much of each query's content passes into the decoder."""

from typing import cast

import torch
from torch import Tensor, nn

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.layers import Attention, Dropout


class TextGuidedGating(nn.Module):
    """Queries read the text, a gate weighs what they then read from each other.

    In the official model the queries' content is zero at the gate and the text is a single vector.
    So the gate is the constant 1/2, the output is the same for all queries, and the query and key weights do
    nothing (Q13). The repairs ``query_content`` and ``gate_tokens`` bring all of it to life.
    """

    def __init__(self, config: GirlDetrConfig) -> None:
        super().__init__()
        width, p = config.hidden_dim, 0.1
        self.reads_tokens = config.repaired("gate_tokens")
        self.ignores_padding = config.repaired("sentence_padding")
        shared = config.repaired("shared_dropout")
        self.read_text = Attention(width, 1, p, shared)
        self.read_queries = Attention(width, 1, p, shared)
        self.linear = nn.Linear(width, width)
        self.dropout = Dropout(p)
        self.norm = nn.LayerNorm(width)

    def forward(self, content: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Gate ``content (B, Q, d)`` by ``text (B, Lt, d)`` with ``text_mask (B, Lt)``, 1 = valid."""
        sentence = self.sentence(text, text_mask)[:, None]
        visible = None
        if self.reads_tokens:
            visible = torch.cat((text_mask.new_ones(len(text), 1), text_mask), 1).bool()[:, None, None]
            sentence = torch.cat((sentence, text), 1)
        context = self.read_text(content, sentence, sentence, visible)
        gate = torch.sigmoid(content * context)
        mixed = content + context
        mixed = self.read_queries(mixed, mixed, mixed, None)
        return cast(Tensor, self.norm(self.dropout(torch.relu(self.linear(gate * mixed))) + content))

    def sentence(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Sentence vector ``(B, d)``: element-wise maximum over tokens, officially padded ones too."""
        if self.ignores_padding:
            text = text.masked_fill(text_mask[..., None] == 0, -torch.inf)
        return text.amax(1)
