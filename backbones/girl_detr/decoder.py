"""Decoder with anchor references: each query is an anchor (centre, width), moved by every layer."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.layers import (
    MLP,
    Dropout,
    FeedForward,
    attend,
    inverse_sigmoid,
    residual,
    split_heads,
)
from vmr_env.backbones.girl_detr.positions import span_positions
from vmr_env.backbones.girl_detr.tgg import TextGuidedGating

ANCHOR_WIDTH_FLOOR = 0.01


class DecoderStates(NamedTuple):
    """Output of the decoder for its queries, one entry per layer."""

    states: Tensor  # (layers, B, Q, d)
    references: Tensor  # (layers, B, Q, 2): the anchor (centre, width) that each layer started from


class AnchorSelfAttention(nn.Module):
    """Self-attention among queries; projections of content and of anchor position are added."""

    def __init__(self, config: GirlDetrConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.heads, self.p = config.nheads, config.dropout
        self.shared_dropout = config.repaired("shared_dropout")
        self.query_content, self.query_position = nn.Linear(width, width), nn.Linear(width, width)
        self.key_content, self.key_position = nn.Linear(width, width), nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map content ``x (B, Q, d)`` of queries at ``position (B, Q, d)`` to the same shape."""
        query = self.query_content(x) + self.query_position(position)
        key = self.key_content(x) + self.key_position(position)
        q, k, v = (split_heads(y, self.heads) for y in (query, key, self.value(x)))
        p = self.p if self.training else 0.0
        return cast(Tensor, self.out(attend(q, k, v, None, p, self.shared_dropout)))


class AnchorCrossAttention(nn.Module):
    """Attention from queries to clips; in each head, content and position stand side by side.

    Only the first layer also adds the positions to the contents: ``adds_position``.

    There are far fewer queries than clips, so keys and values are not projected clip by clip: the projection
    of the keys is moved to the queries, <q, W m> = <W^T q, m>, that of the values behind the weighted sum.
    """

    def __init__(self, config: GirlDetrConfig, adds_position: bool) -> None:
        super().__init__()
        width = config.hidden_dim
        self.heads, self.p = config.nheads, config.dropout
        self.query_content, self.query_sine = nn.Linear(width, width), nn.Linear(width, width)
        self.key_content, self.key_position = nn.Linear(width, width), nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.query_position = nn.Linear(width, width) if adds_position else None
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(config.dropout)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        sine: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        visible: Tensor,
    ) -> Tensor:
        """Read ``memory (B, Lv, d)``; content ``x``, ``position``, modulated ``sine`` are ``(B, Q, d)``."""
        query, place = self.query_content(x), self.query_sine(sine)
        if self.query_position is not None:
            query = query + self.query_position(position)
            place = place + query  # the key's content is its own plus its position, so the query meets both
        content_scores = self._scores(query, self.key_content, memory)
        position_scores = self._scores(place, self.key_position, memory_positions)
        scale = (2 * x.shape[-1] / self.heads) ** -0.5
        scores = ((content_scores + position_scores) * scale).masked_fill(~visible, -torch.inf)
        return cast(Tensor, self.out(self._values(self.dropout(scores.softmax(-1)), memory)))

    def _scores(self, query: Tensor, key: nn.Linear, memory: Tensor) -> Tensor:
        """Products ``(B, H, Q, Lv)`` of ``query (B, Q, d)`` and the keys that ``key`` makes of ``memory``."""
        parts = query.view(*query.shape[:2], self.heads, -1)
        weight, bias = self._by_head(key)
        moved = torch.einsum("bqhe,hed->bhqd", parts, weight)
        scores = moved.flatten(1, 2) @ memory.transpose(1, 2)
        return scores.view(*moved.shape[:3], -1) + torch.einsum("bqhe,he->bhq", parts, bias)[..., None]

    def _values(self, weights: Tensor, memory: Tensor) -> Tensor:
        """Sums ``(B, Q, d)`` of the values of ``memory``, by ``weights (B, H, Q, Lv)``."""
        read = (weights.flatten(1, 2) @ memory).view(*weights.shape[:3], -1)
        weight, bias = self._by_head(self.value)
        values = torch.einsum("bhqd,hed->bqhe", read, weight)
        return (values + torch.einsum("bhq,he->bqhe", weights.sum(-1), bias)).flatten(2)

    def _by_head(self, projection: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight ``(H, d / H, d)`` and bias ``(H, d / H)`` of a projection."""
        weight, bias = projection.weight, projection.bias
        return weight.view(self.heads, -1, weight.shape[1]), bias.view(self.heads, -1)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each with residual and norm."""

    def __init__(self, config: GirlDetrConfig, first: bool) -> None:
        super().__init__()
        width, p = config.hidden_dim, config.dropout
        self.pre_norm = config.pre_norm
        self.self_attention = AnchorSelfAttention(config)
        self.cross_attention = AnchorCrossAttention(config, adds_position=first)
        self.feed_forward = FeedForward(width, config.dim_feedforward, p, config.repaired("shared_dropout"))
        self.dropout = Dropout(p)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        sine: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        visible: Tensor,
    ) -> Tensor:
        """Map content ``x (B, Q, d)`` to the same shape; other arguments as in `AnchorCrossAttention`."""

        def read_queries(y: Tensor) -> Tensor:
            return cast(Tensor, self.self_attention(y, position))

        def read_memory(y: Tensor) -> Tensor:
            return cast(Tensor, self.cross_attention(y, position, sine, memory, memory_positions, visible))

        x = residual(x, read_queries, self.norm1, self.pre_norm, self.dropout)
        x = residual(x, read_memory, self.norm2, self.pre_norm, self.dropout)
        return residual(x, self.feed_forward, self.norm3, self.pre_norm, self.dropout)


class Decoder(nn.Module):
    """Decoder layers around anchors that are learned (or selected) at first and then moved layer by layer."""

    def __init__(self, config: GirlDetrConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.queries = config.num_queries
        # logits of (centre, width)
        self.anchors = None if config.query_selection else nn.Parameter(torch.randn(self.queries, 2))
        learns_content = config.repaired("query_content")
        self.content = nn.Parameter(torch.randn(config.num_queries, width)) if learns_content else None
        self.width_floor = ANCHOR_WIDTH_FLOOR if config.repaired("anchor_width_floor") else 0.0
        self.tgg = TextGuidedGating(config) if config.decoder_sent_gate else None
        self.layers = nn.ModuleList(DecoderLayer(config, first=i == 0) for i in range(config.dec_layers))
        self.norm = nn.LayerNorm(width)
        self.position_head = MLP(width, width, width, 2)
        self.sine_scale = MLP(width, width, width, 2)
        self.width_head = MLP(width, width, 1, 2)
        self.anchor_update = MLP(width, width, 2, 3)

    def forward(
        self,
        memory: Tensor,
        memory_positions: Tensor,
        video_mask: Tensor,
        text: Tensor,
        text_mask: Tensor,
        selected: Tensor | None = None,
    ) -> DecoderStates:
        """Decode the encoded clips.

        Args:
            memory: encoded clips ``(B, Lv, d)``.
            memory_positions: their positions ``(B, Lv, d)``.
            video_mask: ``(B, Lv)``, 1 = valid.
            text: tokens ``(B, Lt, d)`` that guide the gate.
            text_mask: ``(B, Lt)``, 1 = valid.
            selected: anchors ``(B, Q, 2)`` of `QuerySelection`, in a decoder without learned ones.
        """
        visible = video_mask.bool()[:, None, None]
        reference = self._first_anchors(memory, selected)
        x = self._initial_content(memory)
        states, references = [], [reference]
        for i, layer in enumerate(self.layers):
            anchor = (
                reference if i == 0 else reference.detach()
            )  # the loss of a layer moves its own anchors only
            sine = span_positions(anchor, x.shape[-1])
            position = self.position_head(sine)
            if i > 0:
                sine = sine * self.sine_scale(x)
            sine = sine * self._modulation(x, anchor)
            if i == 0 and self.tgg is not None:
                x = self.tgg(x, text, text_mask)
            x = layer(x, position, sine, memory, memory_positions, visible)
            states.append(self.norm(x))
            if i + 1 < len(self.layers):
                reference = torch.sigmoid(self.anchor_update(x) + inverse_sigmoid(anchor))
                references.append(reference)
        return DecoderStates(torch.stack(states), torch.stack(references))

    def _modulation(self, x: Tensor, anchor: Tensor) -> Tensor:
        """Expected width over anchor width, ``(B, Q, 1)``."""
        return cast(Tensor, self.width_head(x).sigmoid()) / anchor[..., 1:].clamp(min=self.width_floor)

    def _first_anchors(self, memory: Tensor, selected: Tensor | None) -> Tensor:
        """Anchors of the first layer, ``(B, Q, 2)``."""
        if self.anchors is not None:
            return self.anchors.sigmoid().expand(len(memory), -1, -1)
        if selected is None:
            raise ValueError("the decoder has no anchors of its own; expected selected ones")
        return selected

    def _initial_content(self, memory: Tensor) -> Tensor:
        """What the queries start from, ``(B, Q, d)``: learned content, officially zeros."""
        if self.content is None:
            return memory.new_zeros(len(memory), self.queries, memory.shape[-1])
        return self.content.expand(len(memory), -1, -1)
