"""What is frozen about each query, clip by clip: video and query vectors, and the detector's painted windows.

Videos lie on a grid of at most `Grid.clips` clips. A longer one is put on a coarser grid, each of its clips a
whole number of feature clips, so that memory is bounded by the grid whatever the length of a video: 1,000
clips become 72 of 14. Features are read by video when a batch needs them, so queries share them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vmr_env.agents.dense.spans import Windows, all_spans, span_mask, span_numbers

from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.errors import DataError, Problem, shorten

Floats = NDArray[np.float32]

PAINTED = ("saliency", "coverage", "starts", "ends", "first window", "first score")
"""The detector's channels; those of a pool are the means over its models."""

CHANNELS = ("cosine", "cosine z-score", "cosine smoothed", "position", *PAINTED)
SMOOTHED_CLIPS = 5


class ClipFeatures(Protocol):
    """Feature vectors of videos; feature stores are such."""

    @property
    def dim(self) -> int:
        """Width D."""
        ...

    def read(self, key: str) -> Floats:
        """Features of one video, a row per clip: (T, D)."""
        ...


class NoEvidence:
    """Stands for features where there are none: every clip of every video is zero."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def read(self, key: str) -> Floats:
        """One row of zeros, which holds for all clips: (1, D)."""
        return np.zeros((1, self.dim), np.float32)


@dataclass(frozen=True)
class Grid:
    """How videos are cut.

    Attributes:
        clips: L, most clips of a video.
        seconds: length of a feature clip.
    """

    clips: int = 75
    seconds: float = 2.0

    def merged(self, duration: float) -> int:
        """How many feature clips make one clip of the grid in a video of so many seconds."""
        return max(1, int(np.ceil(duration / self.seconds / self.clips - 1e-9)))

    def count(self, duration: float) -> int:
        """How many clips of the grid the video has."""
        return max(1, int(np.ceil(duration / (self.seconds * self.merged(duration)) - 1e-9)))


class Batch(NamedTuple):
    """Inputs of B queries on a grid of L clips and S spans."""

    clips: Tensor
    """(B, L, D), zero beyond the video."""
    query: Tensor
    """(B, D)."""
    channels: Tensor
    """(B, L, `CHANNELS`), zero beyond the video."""
    numbers: Tensor
    """(B, S, `spans.NUMBERS`)."""
    clip_mask: Tensor
    """bool (B, L), which clips are in the video."""
    span_mask: Tensor
    """bool (B, S), which spans are in the video."""


class Timelines:
    """Queries with the proposals of one detector, or of a pool, and the features of their videos.

    Attributes:
        grid: how videos are cut.
        annotations: of all N queries; only what is known without the ground truth is read here.
        models: of each model its predictions, in the order of the annotations.
        spans: int64 (S, 2), `spans.all_spans` of the grid.
        seconds: float64 (N,), length of a grid clip.
        clips: int64 (N,), number of grid clips.
    """

    def __init__(
        self,
        models: Sequence[Sequence[Prediction]],
        annotations: Sequence[Annotation],
        features: ClipFeatures,
        queries: Mapping[str, Floats],
        grid: Grid | None = None,
    ) -> None:
        """Join predictions, queries and features.

        Args:
            models: of each model its predictions; for every annotation one.
            annotations: the queries.
            features: clip features by vid.
            queries: by qid as text the query's vector, and below it those of its paraphrases, if any:
                (1 + P, D).
            grid: how videos are cut.

        Raises:
            DataError: no model or query, a query without a prediction or a vector, or vectors of another
                width than the clips'.
        """
        self.grid = grid or Grid()
        self.annotations = list(annotations)
        if not models or not self.annotations:
            raise _fail(
                "models", f"has {len(models)} models for {len(self.annotations)} queries; expected both"
            )
        self.models = [_aligned(model, self.annotations) for model in models]
        self._features, self._queries = features, dict(queries)
        for annotation in self.annotations:
            found = self._queries.get(str(annotation.qid))
            if found is None or found.ndim != 2 or not len(found) or found.shape[1] != features.dim:
                shape = "missing" if found is None else f"of shape {found.shape}"
                qid = shorten(annotation.qid)
                raise _fail("queries", f"is {shape} for qid {qid}; expected (1 or more, {features.dim})")
        durations = [annotation.duration for annotation in self.annotations]
        self.spans = all_spans(self.grid.clips)
        self.seconds = np.array([self.grid.seconds * self.grid.merged(d) for d in durations])
        self.clips = np.array([self.grid.count(d) for d in durations])
        self._painted = np.zeros((len(durations), self.grid.clips, len(PAINTED)), np.float32)
        self._windows: list[list[NDArray[np.float64]]] = []
        for row in range(len(durations)):
            windows = [self._on_grid(model[row], row) for model in self.models]
            count = int(self.clips[row])
            paintings = [
                paint(one, model[row].saliency, count)
                for one, model in zip(windows, self.models, strict=True)
            ]
            self._painted[row, :count] = np.mean(paintings, axis=0)
            self._windows.append(windows)

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def dim(self) -> int:
        """Width D of clip and query vectors."""
        return self._features.dim

    def batch(self, rows: Sequence[int], rng: np.random.Generator | None = None) -> Batch:
        """Inputs of some queries.

        Args:
            rows: which.
            rng: with it, half of the queries become random mixtures with their paraphrases.
        """
        length = self.grid.clips
        clips = np.zeros((len(rows), length, self.dim), np.float32)
        query = np.zeros((len(rows), self.dim), np.float32)
        channels = np.zeros((len(rows), length, len(CHANNELS)), np.float32)
        for i, row in enumerate(rows):
            count, annotation = int(self.clips[row]), self.annotations[row]
            clips[i, :count] = self._clips(row)
            vectors = self._queries[str(annotation.qid)]
            query[i] = vectors[0] if rng is None else _mixture(vectors, rng)
            channels[i, :count, :3] = cosine_channels(clips[i, :count], query[i])
            channels[i, :count, 3] = (np.arange(count) + 0.5) / count
        channels[..., 4:] = self._painted[rows]
        painted = torch.from_numpy(channels[..., 4:])
        counts = torch.from_numpy(self.clips[rows])
        starts, ends = (painted[..., PAINTED.index(name)] for name in ("starts", "ends"))
        return Batch(
            torch.from_numpy(clips),
            torch.from_numpy(query),
            torch.from_numpy(channels),
            span_numbers(self.spans, self.windows(rows), starts, ends),
            torch.arange(length) < counts[:, None],
            span_mask(self.spans, counts),
        )

    def windows(self, rows: Sequence[int]) -> Windows:
        """Windows of all models in clips of the grid."""
        most = max(sum(map(len, self._windows[row])) for row in rows)
        spans, weights = np.zeros((len(rows), most, 2)), np.zeros((len(rows), most, 2))
        for i, row in enumerate(rows):
            at = 0
            for windows in self._windows[row]:
                here = slice(at, at + len(windows))
                spans[i, here] = windows[:, :2]
                weights[i, here, 0] = windows[:, 2] / len(self.models)
                weights[i, at, 1] = 1 / len(self.models)
                at += len(windows)
        return Windows(torch.from_numpy(spans).float(), *torch.from_numpy(weights).float().unbind(2))

    def moments(self, rows: Sequence[int]) -> Tensor:
        """Moments of the ground truth in clips, padded by repeating the first: float32 (B, M, 2)."""
        moments = [self.annotations[row].moments / self.seconds[row] for row in rows]
        most = max(map(len, moments))
        padded = [np.concatenate([one, np.repeat(one[:1], most - len(one), axis=0)]) for one in moments]
        return torch.from_numpy(np.stack(padded)).float()

    def _clips(self, row: int) -> Floats:
        """Features of a video on its grid; where the features end early, the last clip goes on."""
        merged = self.grid.merged(self.annotations[row].duration)
        read = self._features.read(self.annotations[row].vid)
        indices = np.arange(int(self.clips[row]) * merged).clip(max=len(read) - 1)
        mean: Floats = read[indices].reshape(-1, merged, self.dim).mean(axis=1)
        return mean

    def _on_grid(self, prediction: Prediction, row: int) -> NDArray[np.float64]:
        windows = prediction.windows.copy()
        windows[:, :2] = (windows[:, :2] / self.seconds[row]).clip(0, int(self.clips[row]))
        windows[:, 2] = score_shares(windows[:, 2])
        return windows


def score_shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores divided by their sum, those below 0 as 0; equal shares where none is: (K,) -> (K,)."""
    positive = scores.clip(min=0)
    total = positive.sum()
    result: NDArray[np.float64] = positive / total if total > 0 else np.full(len(scores), 1 / len(scores))
    return result


def paint(windows: NDArray[np.float64], saliency: NDArray[Any] | None, clips: int) -> Floats:
    """The proposals of one model on the timeline: `PAINTED`, (clips, 6).

    Args:
        windows: (K, 3), start and end in clips, share of the score.
        saliency: (T,), one score per feature clip, or None, which paints zeros.
        clips: length of the video.
    """
    cells = np.arange(clips)[:, None]
    starts, ends, shares = windows.T
    inside = (np.minimum(ends, cells + 1) - np.maximum(starts, cells)).clip(0, 1)  # (clips, K)
    squared = shares**2
    painted = np.zeros((clips, len(PAINTED)), np.float32)
    if saliency is not None:
        # Means over grid clips, wherever the number of scores puts them.
        edges = np.linspace(0, len(saliency), clips + 1)
        sums = np.interp(edges, np.arange(len(saliency) + 1), np.append(0, np.cumsum(saliency, dtype=float)))
        painted[:, 0] = z_scores(np.diff(sums))
    painted[:, 1] = inside @ squared / squared.sum()
    painted[:, 2] = (1 - np.abs(starts - cells)).clip(0) @ shares
    painted[:, 3] = (1 - np.abs(ends - cells - 1)).clip(0) @ shares
    painted[:, 4] = inside[:, 0]
    painted[:, 5] = inside[:, 0] * shares[0]
    return painted


def cosine_channels(clips: Floats, query: Floats) -> Floats:
    """Cosine of each clip and the query: raw, as z-score, and its z-score smoothed over clips: (L, 3)."""
    norms = np.linalg.norm(clips, axis=1) * np.linalg.norm(query)
    cosine = clips @ query / np.maximum(norms, 1e-6)
    scores = z_scores(cosine)
    half = SMOOTHED_CLIPS // 2
    sums = np.append(0, np.cumsum(scores))
    low = (np.arange(len(clips)) - half).clip(0)
    high = (np.arange(len(clips)) + half + 1).clip(max=len(clips))
    return np.stack([cosine, scores, (sums[high] - sums[low]) / (high - low)], axis=1).astype(np.float32)


def z_scores(values: NDArray[Any]) -> NDArray[Any]:
    """Values less their mean, over their standard deviation; equal values give zeros: (L,) -> (L,)."""
    centred = values - values.mean()
    result: NDArray[Any] = centred / max(float(centred.std()), 1e-6)
    return result


def _mixture(vectors: Floats, rng: np.random.Generator) -> Floats:
    """The query, or as often a random mixture with its paraphrases, as long as the query: (D,)."""
    mixed = rng.dirichlet(np.ones(len(vectors))).astype(np.float32) @ vectors
    if len(vectors) == 1 or rng.random() < 0.5:
        mixed = vectors[0]
    length = np.linalg.norm(vectors[0]) / max(float(np.linalg.norm(mixed)), 1e-6)
    result: Floats = mixed * length
    return result


def _aligned(predictions: Sequence[Prediction], annotations: Sequence[Annotation]) -> list[Prediction]:
    by_qid = {str(prediction.qid): prediction for prediction in predictions}
    missing = [annotation.qid for annotation in annotations if str(annotation.qid) not in by_qid]
    if missing:
        raise _fail("models", f"has no prediction for qid {shorten(missing[0])}; expected one for each query")
    return [by_qid[str(annotation.qid)] for annotation in annotations]


def _fail(where: str, message: str) -> DataError:
    return DataError(Problem(where, None, None, message))
