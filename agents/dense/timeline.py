"""Inputs of the policy over all spans, batch by batch."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmr_env.agents.dense.spans import Windows, all_spans, span_mask, span_numbers
from vmr_env.arrays import Floats
from vmr_env.data.annotations import Annotation
from vmr_env.data.timelines import CHANNELS, PaintedTimelines
from vmr_env.errors import DataError, Problem, shorten

KEPT = 16_384
"""Numbers of so many pairs of query and model are kept, 34 KB each on 75 clips: half a gigabyte."""

STEPS = 65_535
"""Numbers from 0 to 1 are kept in so many steps, as whole numbers of two bytes."""


class TimelineBatch(NamedTuple):
    """Inputs of B queries on a grid of L clips and S spans."""

    clips: Tensor
    """(B, L, D), zero beyond the video."""
    query: Tensor
    """(B, D)."""
    channels: Tensor
    """(B, L, `CHANNELS`), zero beyond the video."""
    numbers: Tensor
    """(B, S, `spans.NUMBERS`)."""
    states: Tensor
    """(B, L, E), painted decoder states; E is 0 where there are none."""
    clip_mask: Tensor
    """bool (B, L), which clips are in the video."""
    span_mask: Tensor
    """bool (B, S), which spans are in the video."""

    def to(self, device: torch.device) -> "TimelineBatch":
        """The same batch on a device."""
        return TimelineBatch(*(part.to(device) for part in self))


class Timelines(PaintedTimelines):
    """Timelines as tensors, with all spans of the grid."""

    @cached_property
    def spans(self) -> Tensor:
        """int64 (S, 2), `spans.all_spans` of the grid."""
        return all_spans(self.grid.clips)

    def batch(
        self, rows: Sequence[int], draw: "Draw | None" = None, wordings: Sequence[int] | None = None
    ) -> TimelineBatch:
        """Inputs of some queries.

        Args:
            rows: which.
            draw: what is random in training; without it every query is shown as it is, with all models.
            wordings: without `draw`, which of its `query_vectors` stands for each query; its own by default.
        """
        length = self.grid.clips
        clips = np.zeros((len(rows), length, self.dim), np.float32)
        query = np.zeros((len(rows), self.dim), np.float32)
        channels = np.zeros((len(rows), length, len(CHANNELS)), np.float32)
        states = np.zeros((len(rows), length, self.state_dim), np.float32)
        shown = [range(len(self.models)) if draw is None else draw.models(len(self.models)) for _ in rows]
        wordings = [0] * len(rows) if wordings is None else wordings
        for i, row in enumerate(rows):
            count = int(self.clips[row])
            if draw is None or draw.evidence():
                vectors = self.query_vectors(row)
                clips[i, :count] = self._clips_of(row if draw is None else draw.video(row, len(self)), count)
                query[i] = vectors[wordings[i]] if draw is None else draw.query(vectors)
            channels[i, :count] = self.channels(row, clips[i, :count], query[i], shown[i])
            states[i, :count] = self.state_vectors(row)
        counts = torch.from_numpy(self.clips[list(rows)])
        return TimelineBatch(
            torch.from_numpy(clips),
            torch.from_numpy(query),
            torch.from_numpy(channels),
            self.numbers(rows, shown),
            torch.from_numpy(states),
            torch.arange(length) < counts[:, None],
            span_mask(self.spans, counts),
        )

    def _clips_of(self, row: int, count: int) -> Floats:
        """So many clips of a query's video; of a shorter one the last clip goes on."""
        vectors = self.clip_vectors(row)
        result: Floats = vectors[np.arange(count).clip(max=len(vectors) - 1)]
        return result

    def numbers(self, rows: Sequence[int], shown: Sequence[Sequence[int]]) -> Tensor:
        """What the shown models say of each span, in the mean: (B, S, `spans.NUMBERS`).

        Those of a model are worked out once and kept, as many as `KEPT`: training asks for them many times.
        """
        means = [
            np.mean([self._kept(row, m) for m in models], axis=0, dtype=np.float32) / STEPS
            for row, models in zip(rows, shown, strict=True)
        ]
        return torch.from_numpy(np.stack(means))

    def _kept(self, row: int, m: int) -> NDArray[np.uint16]:
        found = self._numbers.get((row, m))
        if found is None:
            numbers = span_numbers(self.spans, self.windows([row], [[m]]))[0]
            found = (numbers * STEPS).round().numpy().astype(np.uint16)
            if len(self._numbers) < KEPT:
                self._numbers[row, m] = found
        return found

    @cached_property
    def _numbers(self) -> dict[tuple[int, int], NDArray[np.uint16]]:
        return {}

    def windows(self, rows: Sequence[int], shown: Sequence[Sequence[int]] | None = None) -> Windows:
        """Windows in clips of the grid.

        Args:
            rows: of which queries.
            shown: of which models, for each query; of all by default.
        """
        shown = [range(len(self.models))] * len(rows) if shown is None else shown
        pooled = [self.pooled_windows(row, models) for row, models in zip(rows, shown, strict=True)]
        padded = np.zeros((len(rows), max(map(len, pooled)), 4), np.float32)
        for i, windows in enumerate(pooled):
            padded[i, : len(windows)] = windows
        return Windows.of(torch.from_numpy(padded))

    def moments(self, rows: Sequence[int]) -> Tensor:
        """Moments of the ground truth in clips, padded by repeating the first: float32 (B, M, 2).

        Raises:
            DataError: a query has no ground truth.
        """
        moments = [self._moments(row) / self.seconds[row] for row in rows]
        most = max(map(len, moments))
        padded = [np.concatenate([one, np.repeat(one[:1], most - len(one), axis=0)]) for one in moments]
        return torch.from_numpy(np.stack(padded)).float()

    def _moments(self, row: int) -> Floats:
        annotation = self.annotations[row]
        if not isinstance(annotation, Annotation):
            message = f"has no moments for qid {shorten(annotation.qid)}; expected its ground truth"
            raise DataError(Problem("annotations", None, None, message))
        return annotation.moments.astype(np.float32)


class Draw:
    """Random choices of a training sample: wording of the query, models shown, what evidence there is."""

    def __init__(
        self,
        rng: np.random.Generator,
        models_shown: int,
        evidence_dropout: float,
        foreign_evidence: float = 0.0,
    ) -> None:
        """Settings as of `trainer.DenseConfig`."""
        self._rng, self._models_shown = rng, models_shown
        self._dropout, self._foreign = evidence_dropout, foreign_evidence

    def models(self, count: int) -> list[int]:
        """All of so many models, or a random few."""
        if not self._models_shown:
            return list(range(count))
        shown = int(self._rng.integers(1, min(self._models_shown, count) + 1))
        return sorted(self._rng.permutation(count)[:shown].tolist())

    def evidence(self) -> bool:
        """Whether clips and query are shown."""
        return bool(self._rng.random() >= self._dropout)

    def video(self, row: int, count: int) -> int:
        """The query, of so many, whose video's clips are shown: its own, or any."""
        if self._foreign and self._rng.random() < self._foreign:
            return int(self._rng.integers(count))
        return row

    def query(self, vectors: Floats) -> Floats:
        """The query, or as often a random mixture with its paraphrases, as long: (1 + P, D) -> (D,)."""
        if len(vectors) == 1 or self._rng.random() < 0.5:
            first: Floats = vectors[0]
            return first
        mixed = self._rng.dirichlet(np.ones(len(vectors))).astype(np.float32) @ vectors
        length = np.linalg.norm(vectors[0]) / max(float(np.linalg.norm(mixed)), 1e-6)
        result: Floats = mixed * length
        return result
