"""Environments in which every span of a video is an action; importing this module registers them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import gymnasium
import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Floats
from vmr_env.data.annotations import Annotation, PastEnd, annotations_from, read_annotations
from vmr_env.data.predictions import Prediction, by_score, predictions_from, read_predictions
from vmr_env.data.profiles import get_profile
from vmr_env.data.timelines import (
    CHANNELS,
    ClipFeatures,
    Grid,
    NoEvidence,
    PaintedTimelines,
    check_features,
)
from vmr_env.data.validation import check_windows
from vmr_env.envs.specification import Specified
from vmr_env.errors import DataError, Problem, check_count, shorten
from vmr_env.files.text import PathLike
from vmr_env.metrics.spans import best_tiou

Info = dict[str, Any]
Observation: TypeAlias = NDArray[np.float32] | dict[str, NDArray[Any]]
ObservationKind: TypeAlias = Literal["timeline", "dict"]
AnnotationRows: TypeAlias = PathLike | Sequence[Annotation | Mapping[str, Any]]
"""A file, or its rows as objects or dicts."""

PredictionRows: TypeAlias = PathLike | Sequence[Prediction | Mapping[str, Any]]
"""Likewise, of one model."""


class VMRSpanEnv(Specified, gymnasium.Env[Observation, np.int64]):
    """Answer a query with any span of its video, seeing what is frozen about each clip.

    ## Description
    An episode is one query and one step: the agent sees the timeline and names a span. It is the task of a
    dense policy, which values all spans at once; `VMREnv` moves one span step by step instead.

    ## Action space
    `Discrete(S)`: all spans of a grid of L clips, by their starts, then ends; S = L (L + 1) / 2, 2,850 for
    75 clips. `info["action_mask"]` tells which lie in the video, and the attribute `spans` (S, 2) their first
    clip and the clip after their last. A span that leaves the video is worth nothing.

    ## Observation space
    `Box((L, 2 D + 10))` float32, zero beyond the video: of each clip its feature vector (D), its product with
    the query's vector (D), and `vmr_env.data.timelines.CHANNELS`: cosine, position, and the proposals of the
    detector, or of a pool, painted. Without clip features D is 0.

    With `observation="dict"` a `Dict` of that as `timeline`; `query` (D,), its vector; `windows` (K, 4) of
    all models, see `PaintedTimelines.pooled_windows`, zeros below the last; and `action_mask` (S,).

    ## Rewards
    The tIoU of the span, the best over the query's moments.

    ## Infos
    The same keys after a reset and after the step: `sample` (row of the annotations), `qid` (as text), `vid`,
    `query`, `duration` in seconds, `span` (2,) in seconds and its `tiou`, and `action_mask` (S,) int8. After
    a reset the span is the first window of the first detector.

    ## Starting state
    A random query, or the one that `reset(options={"qid": ...})` or `{"sample": row}` names.

    ## Episode end
    `terminated` after the step. Never `truncated`.

    ## Arguments
    dataset: name of the data set, which gives the length of a clip.
    annotations: annotation file or its rows.
    predictions: of each model its prediction file or rows; several are a pool. A single file may stand alone.
    clips: clip features by vid: a mapping to (T, D), or a feature store, which `spec.to_json()` refuses.
    queries: by qid as text the query's vector (1, D); with `clips`, and without them neither.
    grid_clips: L.
    past_end: rule for moments that do not lie within their video, see
        `vmr_env.data.annotations.read_annotations`.
    sort: bring the windows of each row by falling score first; the first counts as the detector's answer.
    observation: "timeline" or "dict".

    ## Version history
    v0: first version.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        dataset: str = "qvhighlights",
        *,
        annotations: AnnotationRows | None = None,
        predictions: PathLike | Sequence[PredictionRows] | None = None,
        clips: ClipFeatures | Mapping[str, Any] | None = None,
        queries: Mapping[str, Any] | None = None,
        grid_clips: int = 75,
        past_end: PastEnd = "error",
        sort: bool = False,
        observation: ObservationKind = "timeline",
    ) -> None:
        if observation not in get_args(ObservationKind):
            kinds = ", ".join(map(repr, get_args(ObservationKind)))
            raise ValueError(f"observation is {shorten(observation)}, expected one of {kinds}")
        if (clips is None) != (queries is None):
            raise ValueError("clips and queries are given together or not at all; one of them is None")
        check_count("grid_clips", grid_clips)
        if annotations is None or predictions is None:
            missing = "annotations" if annotations is None else "predictions"
            message = "is missing; there are no default data: pass annotations=FILE and predictions=[FILE, …]"
            raise DataError(Problem(missing, None, None, message))
        rows = _annotations(annotations, past_end)
        if clips is None:
            features: ClipFeatures = NoEvidence(0)
        else:
            features = FeatureArrays("clips", clips) if isinstance(clips, Mapping) else clips
        if queries is None:
            vectors = {str(row.qid): np.zeros((1, 0), np.float32) for row in rows}
        else:
            vectors = {str(qid): np.asarray(vector, np.float32) for qid, vector in queries.items()}
        profile = get_profile(dataset)
        grid = Grid(grid_clips, profile.clip_seconds)
        self._rows = rows
        models = _models(predictions, sort)
        self._timelines = PaintedTimelines(models, rows, features, vectors, grid)
        for number, model in enumerate(self._timelines.models):
            check_windows(f"predictions[{number}]", model, rows, profile)
        if clips is not None:
            check_features("clips", features, rows, grid.seconds)
        starts, last = np.triu_indices(grid.clips)
        self.spans = np.column_stack([starts, last + 1])
        self.action_space = gymnasium.spaces.Discrete(len(self.spans))
        self._kind = observation
        self._shape = (grid.clips, 2 * features.dim + len(CHANNELS))
        longest = max(sum(map(len, proposals)) for proposals in self._timelines.proposals)
        timeline = gymnasium.spaces.Box(-np.inf, np.inf, self._shape, np.float32)
        parts: dict[str, gymnasium.Space[Any]] = {
            "timeline": timeline,
            "query": gymnasium.spaces.Box(-np.inf, np.inf, (features.dim,), np.float32),
            "windows": gymnasium.spaces.Box(0, grid.clips, (longest, 4), np.float32),
            "action_mask": gymnasium.spaces.Box(0, 1, (len(self.spans),), np.int8),
        }
        self.observation_space = timeline if observation == "timeline" else gymnasium.spaces.Dict(parts)  # type: ignore[assignment]
        self._sample: int | None = None
        self._over = True

    @property
    def horizon(self) -> int:
        """An episode is one step."""
        return 1

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        """Begin an episode; see the class for `options`.

        Raises:
            DataError: there is no such query.
            ValueError: there is another option.
        """
        super().reset(seed=seed)
        self._sample = self._chosen(options or {})
        self._over = False
        first = self._timelines.models[0][self._sample].windows[0, :2]
        return self._observation(), self._info(first)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Answer with a span.

        Raises:
            ValueError: the action is not in the action space.
            gymnasium.error.ResetNeeded: the episode is over.
        """
        if self._over or self._sample is None:
            raise gymnasium.error.ResetNeeded("step called on a finished episode, expected reset first")
        if isinstance(action, (bool, np.bool_)) or not self.action_space.contains(action):
            raise ValueError(f"action is {shorten(action)}, expected a whole number in {self.action_space}")
        self._over = True
        seconds = self.spans[int(action)] * self._timelines.seconds[self._sample]
        info = self._info(np.minimum(seconds, self._rows[self._sample].duration))
        if not info["action_mask"][action]:
            info["tiou"] = 0.0
        return self._observation(), info["tiou"], True, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which spans lie in the video of the current query: (S,) bool.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        if self._sample is None:
            raise gymnasium.error.ResetNeeded("action_masks called before the first reset")
        mask: NDArray[np.bool_] = self.spans[:, 1] <= self._timelines.clips[self._sample]
        return mask

    def render(self) -> None:
        """None, with a warning: there is nothing to be seen, but some trainers always ask."""
        gymnasium.logger.warn("render called on an environment of all spans, which has no render modes")

    def _chosen(self, options: Info) -> int:
        if set(options) - {"qid", "sample"} or len(options) > 1:
            raise ValueError(f"options has {sorted(options)}, expected 'qid' or 'sample', or neither")
        if "qid" in options:
            for row, annotation in enumerate(self._rows):
                if str(annotation.qid) == str(options["qid"]):
                    return row
            raise _fail("qid", f"is {shorten(options['qid'])}; expected a qid of the annotations")
        if "sample" in options:
            row, count = options["sample"], len(self._rows)
            whole = isinstance(row, int | np.integer) and not isinstance(row, bool)
            if not whole or not 0 <= row < count:
                raise _fail("sample", f"is {shorten(row)}; expected a row from 0 to {count - 1}")
            return int(row)
        return int(self.np_random.integers(len(self._rows)))

    def _observation(self) -> Observation:
        assert self._sample is not None
        timelines, row = self._timelines, self._sample
        shown = range(len(timelines.models))
        clips, query = timelines.clip_vectors(row), timelines.query_vectors(row)[0]
        channels = timelines.channels(row, clips, query, shown)
        timeline = np.zeros(self._shape, np.float32)
        timeline[: len(clips)] = np.concatenate([clips, clips * query, channels], axis=1)
        if self._kind == "timeline":
            return timeline
        space = self.observation_space["windows"]  # type: ignore[index]
        windows = np.zeros(space.shape, np.float32)
        pooled = timelines.pooled_windows(row, shown)
        windows[: len(pooled)] = pooled
        mask = self.action_masks().astype(np.int8)
        return {"timeline": timeline, "query": query.copy(), "windows": windows, "action_mask": mask}

    def _info(self, span: NDArray[Any]) -> Info:
        assert self._sample is not None
        annotation = self._rows[self._sample]
        return {
            "sample": self._sample,
            "qid": str(annotation.qid),
            "vid": annotation.vid,
            "query": annotation.query,
            "duration": annotation.duration,
            "span": np.array(span, np.float64),
            "tiou": float(best_tiou(span, annotation.moments)),
            "action_mask": self.action_masks().astype(np.int8),
        }


class FeatureArrays:
    """Clip features of a mapping.

    Attributes:
        dim: width D.
    """

    def __init__(self, where: str, arrays: Mapping[str, Any]) -> None:
        """Look at all of them.

        Args:
            where: what the mapping is called in messages.
            arrays: vid -> (T, D), arrays or lists.

        Raises:
            DataError: there is none, one is not of that form, or their widths differ.
        """
        self._where = where
        self._arrays = {str(vid): np.asarray(rows, np.float32) for vid, rows in arrays.items()}
        shapes = {vid: rows.shape for vid, rows in self._arrays.items()}
        self.dim = next((shape[-1] for shape in shapes.values() if shape), 0)
        problems = [
            Problem(where, None, shorten(vid), f"has shape {shape}; expected (1 or more, {self.dim})")
            for vid, shape in shapes.items()
            if len(shape) != 2 or not shape[0] or shape[1] != self.dim
        ]
        if not shapes:
            problems.append(Problem(where, None, None, "is empty; expected features of each video"))
        if problems:
            raise DataError(problems)

    def read(self, key: str) -> Floats:
        """Features of one video: (T, D)."""
        if key not in self._arrays:
            raise DataError(Problem(self._where, None, None, f"lacks {shorten(key)}; expected the video"))
        return self._arrays[key]


def _annotations(given: AnnotationRows, past_end: PastEnd) -> list[Annotation]:
    if isinstance(given, (str, os.PathLike)):
        return read_annotations(given, past_end=past_end)
    return annotations_from(given, "annotations", past_end=past_end)


def _models(given: PathLike | Sequence[PredictionRows], sort: bool) -> list[list[Prediction]]:
    """Rows of each model; what leaves a video is moved to its borders later, as in every cache."""
    if isinstance(given, (str, os.PathLike)):
        return _models([given], sort)
    models: list[list[Prediction]] = []
    for number, model in enumerate(given):
        where = f"predictions[{number}]"
        if isinstance(model, (str, os.PathLike)):
            models.append(read_predictions(model, before_start="keep"))
        elif isinstance(model, (Prediction, Mapping)):
            message = f"is {shorten(model)}; expected a prediction file, or the rows of one model"
            raise DataError(Problem(where, None, None, message))
        else:
            models.append(predictions_from(model, where, before_start="keep"))
    return [[by_score(row) for row in rows] for rows in models] if sort else models


def _fail(option: str, message: str) -> DataError:
    return DataError(Problem("options", None, option, message))
