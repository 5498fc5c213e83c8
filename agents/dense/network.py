"""The network over a timeline, and its logits of all spans."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vmr_env.agents.dense.spans import NUMBERS, all_spans
from vmr_env.agents.dense.timeline import TimelineBatch
from vmr_env.data.timelines import CHANNELS

HEADS = 4


class Outputs(NamedTuple):
    """What the network says about B queries."""

    logits: Tensor
    """(B, S), -inf for spans beyond the video."""
    relevance: Tensor
    """(B, L), logit of each clip being part of a moment."""


class DenseNetwork(nn.Module):
    """Policy over all spans of the grid.

    Maps of clip vector, query, their product, the channels and, if there are any, decoder states; residual
    convolutions and one transformer layer; of each span the score of its start, of its end, a bilinear form
    of both, the mean of a score inside, and one of its length. This counts half at first (a learnt factor),
    beside a linear map of the detector's six numbers that begins at ones and a small network of them. What
    is learnt begins at zero: with initial weights the logits are the detector's vote.
    """

    def __init__(
        self, dim: int, clips: int, channels: int = 64, dropout: float = 0.2, state_dim: int = 0
    ) -> None:
        """Build it.

        Args:
            dim: D, width of clip and query vectors.
            clips: L, clips of the grid.
            channels: width of the network.
            dropout: probability.
            state_dim: E, width of painted decoder states, if any.
        """
        super().__init__()
        self.dim, self.state_dim = dim, state_dim
        self.clip_map = nn.Linear(dim, channels)
        self.query_map = nn.Linear(dim, channels, bias=False)
        self.product_map = nn.Linear(dim, channels, bias=False)
        self.channel_map = nn.Linear(len(CHANNELS), channels, bias=False)
        self.state_map = nn.Linear(state_dim, channels, bias=False) if state_dim else None
        self.convolutions = nn.ModuleList(nn.Conv1d(channels, channels, 5, padding=2) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.transformer = nn.TransformerEncoderLayer(
            channels, HEADS, 2 * channels, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer.self_attn.dropout = 0.0
        self.clip_scores = nn.Linear(channels, 3)  # as a start, as an end, inside
        self.bilinear_start = nn.Linear(channels, channels)
        self.bilinear_end = nn.Linear(channels, channels)
        self.length = nn.Parameter(torch.zeros(clips))
        self.relevance = nn.Linear(channels, 1)
        self.factor = nn.Parameter(torch.tensor(0.5))
        self.vote = nn.Parameter(torch.ones(len(NUMBERS)))
        self.number_network = nn.Sequential(nn.Linear(len(NUMBERS), 8), nn.ReLU(), nn.Linear(8, 1))
        for layer in (self.clip_scores, self.bilinear_end, self.number_network[-1]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        spans = all_spans(clips)
        self.register_buffer("_spans", spans, persistent=False)
        self._spans: Tensor

    def forward(self, batch: TimelineBatch) -> Outputs:
        """Logits of all spans and of all clips."""
        states = self._states(batch)
        starts, ends = self._spans[:, 0], self._spans[:, 1]
        start, end, inside = self.clip_scores(states).unbind(dim=2)
        sums = nn.functional.pad(inside.cumsum(dim=1), (1, 0))
        pairs = self.bilinear_start(states) @ self.bilinear_end(states).transpose(1, 2)
        learnt = (
            start[:, starts]
            + end[:, ends - 1]
            + (sums[:, ends] - sums[:, starts]) / (ends - starts)
            + pairs[:, starts, ends - 1] / math.sqrt(states.shape[2])
            + self.length[ends - starts - 1]
        )
        detector = batch.numbers @ self.vote + self.number_network(batch.numbers).squeeze(2)
        logits = self.factor * learnt + detector
        return Outputs(logits.masked_fill(~batch.span_mask, -torch.inf), self.relevance(states).squeeze(2))

    def _states(self, batch: TimelineBatch) -> Tensor:
        """(B, L, channels), zero beyond the video."""
        inside = batch.clip_mask.unsqueeze(2)
        query = batch.query.unsqueeze(1)
        states = self.clip_map(batch.clips) + self.query_map(query) + self.product_map(batch.clips * query)
        if self.state_map is not None:
            states = states + self.state_map(batch.states)
        states = self.dropout(states + self.channel_map(batch.channels)) * inside
        for convolution, norm in zip(self.convolutions, self.norms, strict=False):
            change = convolution((norm(states) * inside).transpose(1, 2)).transpose(1, 2)
            states = (states + self.dropout(nn.functional.gelu(change))) * inside
        states = self.transformer(states, src_key_padding_mask=~batch.clip_mask)
        normed: Tensor = self.norms[2](states) * inside
        return normed
