"""Frozen inputs of a query, clip by clip: a grid of clips, and the proposals of detectors painted on it.

Videos lie on a grid of at most `Grid.clips` clips. A longer one is put on a coarser grid, each of its clips a
whole number of feature clips, so that memory is bounded by the grid whatever the length of a video: 1,000
clips become 72 of 14.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Floats
from vmr_env.data.annotations import Annotation
from vmr_env.data.durations import covers
from vmr_env.data.predictions import Prediction
from vmr_env.data.queries import Query
from vmr_env.data.records import pair_by_qid
from vmr_env.errors import DataError, Problem, shorten

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
    """Placeholder for missing features: every clip of every video is zero."""

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
        """Number of feature clips in one clip of the grid, for a video of so many seconds."""
        return max(1, int(np.ceil(duration / self.seconds / self.clips - 1e-9)))

    def count(self, duration: float) -> int:
        """Number of clips of the grid in the video."""
        return max(1, int(np.ceil(duration / (self.seconds * self.merged(duration)) - 1e-9)))


class States(NamedTuple):
    """Decoder states of one query's proposals, K of them."""

    spans: Floats
    """(K, 2), start and end of each proposal's reference as shares of the duration; any numbers."""
    shares: NDArray[np.float64]
    """(K,), `score_shares` of the proposals."""
    vectors: Floats
    """(K, E)."""


Asked: TypeAlias = Annotation | Query
"""A query, with ground truth or without."""


def check_features(where: str, features: ClipFeatures, queries: Sequence[Asked], clip_seconds: float) -> None:
    """Read the features of every video once, and compare their length with the video's.

    Args:
        where: what the features are called in messages.
        features: clip features by vid.
        queries: what is asked of which videos.
        clip_seconds: length of a clip.

    Raises:
        DataError: features that are missing or damaged, and those of more or fewer seconds than their video
            (see `vmr_env.data.durations.covers`); all of them.
    """
    problems: list[Problem] = []
    for vid, duration in {query.vid: query.duration for query in queries}.items():
        try:
            rows = len(features.read(vid))
        except DataError as error:
            problems += error.problems
            continue
        if not covers(rows, clip_seconds, duration):
            found = (
                f"of {shorten(vid)} are {rows} rows, {rows * clip_seconds:g} s at {clip_seconds:g} s a row"
            )
            problems.append(Problem(where, None, None, f"{found}; expected {duration:g} s, the whole video"))
    if problems:
        raise DataError(problems)


class PaintedTimelines:
    """Queries with the proposals of one detector, or of several, and the features of their videos.

    Features are read by video when they are needed, so queries share them.

    Attributes:
        grid: how videos are cut.
        annotations: the N queries.
        models: of each of M models its predictions, in the order of the queries.
        seconds: float64 (N,), length of a grid clip.
        clips: int64 (N,), number of grid clips.
        proposals: of each query the windows of each model, (K, 3) float64: start and end in clips, share of
            the model's scores.
        painted: float32 (N, M, L, `PAINTED`), zero beyond the video.
    """

    def __init__(
        self,
        models: Sequence[Sequence[Prediction]],
        annotations: Sequence[Asked],
        features: ClipFeatures,
        queries: Mapping[str, Floats],
        grid: Grid | None = None,
        states: Mapping[str, States] | None = None,
    ) -> None:
        """Join predictions, queries and features.

        Args:
            models: of each model its predictions; for every query one.
            annotations: the queries.
            features: clip features by vid.
            queries: by qid as text the query's vector, and below it those of its paraphrases, if any:
                (1 + P, D).
            grid: how videos are cut.
            states: decoder states by qid as text, for every query and all of one width; None: there are none.

        Raises:
            DataError: no model or query, a query without a prediction, a vector or states, or vectors of
                another width than the clips'.
        """
        self.grid = grid or Grid()
        self.annotations = list(annotations)
        if not models or not self.annotations:
            raise _fail(
                "models", f"has {len(models)} models for {len(self.annotations)} queries; expected both"
            )
        self.models = [
            pair_by_qid("models", model, self.annotations, of="the timelines", more=True) for model in models
        ]
        self._features, self._queries = features, dict(queries)
        for annotation in self.annotations:
            found = self._queries.get(str(annotation.qid))
            if found is None or found.ndim != 2 or not len(found) or found.shape[1] != features.dim:
                shape = "missing" if found is None else f"of shape {found.shape}"
                qid = shorten(annotation.qid)
                raise _fail("queries", f"is {shape} for qid {qid}; expected (1 or more, {features.dim})")
        if missing := [row.qid for row in self.annotations if str(row.qid) not in (states or {str(row.qid)})]:
            raise _fail("states", f"is missing for qid {shorten(missing[0])}; expected every query's")
        self._states = states
        durations = [annotation.duration for annotation in self.annotations]
        self.seconds = np.array([self.grid.seconds * self.grid.merged(d) for d in durations])
        self.clips = np.array([self.grid.count(d) for d in durations])
        self.painted = np.zeros((len(durations), len(self.models), self.grid.clips, len(PAINTED)), np.float32)
        self.proposals = [
            [self._on_grid(model[row], row) for model in self.models] for row in range(len(self))
        ]
        for row, windows in enumerate(self.proposals):
            count = int(self.clips[row])
            for m, model in enumerate(self.models):
                self.painted[row, m, :count] = paint(windows[m], model[row].saliency, count)

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def dim(self) -> int:
        """Width D of clip and query vectors."""
        return self._features.dim

    @property
    def state_dim(self) -> int:
        """Width E of the decoder states; 0 where there are none."""
        return next(iter(self._states.values())).vectors.shape[1] if self._states else 0

    def state_vectors(self, row: int) -> Floats:
        """Decoder states painted on the grid (`paint_states`): (clips, E)."""
        count = int(self.clips[row])
        if self._states is None:
            return np.zeros((count, 0), np.float32)
        annotation = self.annotations[row]
        spans, shares, vectors = self._states[str(annotation.qid)]
        return paint_states(spans * (annotation.duration / self.seconds[row]), shares, vectors, count)

    def clip_vectors(self, row: int) -> Floats:
        """Features of a video on its grid: (clips, D). Where they end early, the last one goes on."""
        merged = self.grid.merged(self.annotations[row].duration)
        read = self._features.read(self.annotations[row].vid)
        indices = np.arange(int(self.clips[row]) * merged).clip(max=len(read) - 1)
        mean: Floats = read[indices].reshape(int(self.clips[row]), merged, self.dim).mean(axis=1)
        return mean

    def query_vectors(self, row: int) -> Floats:
        """Vector of the query, and below it those of its paraphrases: (1 + P, D)."""
        return self._queries[str(self.annotations[row].qid)]

    def channels(self, row: int, clips: Floats, query: Floats, shown: Sequence[int]) -> Floats:
        """Channels of each clip beside its features: `CHANNELS`, (clips, 10).

        Args:
            row: which query.
            clips: (clips, D), `clip_vectors` of the row.
            query: (D,).
            shown: the models whose proposals are painted, in the mean.
        """
        count = len(clips)
        position = (np.arange(count, dtype=np.float32) + 0.5) / count
        painted = self.painted[row, list(shown), :count].mean(axis=0)
        return np.column_stack([cosine_channels(clips, query), position, painted])

    def pooled_windows(self, row: int, shown: Sequence[int]) -> Floats:
        """Windows of some models one below the other: float32 (K, 4).

        Start and end in clips, share of the model's scores divided by the number of models, and one divided
        by that number for each model's first window, else 0.
        """
        each = [self.proposals[row][m] for m in shown]
        first = np.concatenate([np.arange(len(windows)) == 0 for windows in each])
        pooled = np.column_stack([np.concatenate(each), first]).astype(np.float32)
        pooled[:, 2:] /= len(each)
        return pooled

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
    inside = _inside(windows, clips)
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


def paint_states(
    spans: NDArray[Any], shares: NDArray[np.float64], vectors: NDArray[Any], clips: int
) -> Floats:
    """Decoder states on the timeline, each where its reference lies: (clips, E).

    A clip has the sum of the states, brought to length 1, times the share of their score and the part of the
    clip that they cover. (Large vectors are learnt by heart.)

    Args:
        spans: (K, 2), start and end in clips.
        shares: (K,), shares of the score.
        vectors: (K, E).
        clips: length of the video.
    """
    wide = vectors.astype(np.float64)
    units = wide / np.linalg.norm(wide, axis=1, keepdims=True).clip(min=1e-6)
    painted: Floats = (_inside(spans, clips) @ (shares[:, None] * units)).astype(np.float32)
    return painted


def _inside(windows: NDArray[Any], clips: int) -> NDArray[np.float64]:
    """The part of each clip that each window covers: (K, 2 or more), start and end in clips -> (clips, K)."""
    cells = np.arange(clips)[:, None]
    covered: NDArray[np.float64] = (
        np.minimum(windows[:, 1], cells + 1) - np.maximum(windows[:, 0], cells)
    ).clip(0, 1)
    return covered


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


def _fail(where: str, message: str) -> DataError:
    return DataError(Problem(where, None, None, message))
