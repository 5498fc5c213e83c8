"""Samples, labels and batches for training and running GIRL-DETR.

Labels follow section 1.4 of the GIRL-DETR specification. Where that is odd, `DatasetSettings.official`
chooses between the official behaviour and ours:

* Videos longer than `max_clips` are cut, and spans divided by the length of the kept rows, so
  they can lie beyond 1 and are scaled otherwise than at inference (Q3, Q32). Ours: rows are averaged down to
  `max_clips`, so they cover the whole video, and spans are divided by its duration.
* A rated clip beyond the last feature row makes the label array longer than the features (Q4). Ours: each
  rated clip is labelled at the feature row that shows it.
"""

import hashlib
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmr_env.arrays import Floats, Ints64
from vmr_env.backbones.augment import Augmentation, Timeline
from vmr_env.backbones.features.official import l2_normalised
from vmr_env.backbones.features.similarity import SimilarityChannels
from vmr_env.backbones.features.store import Features, array_problem
from vmr_env.backbones.girl_detr.targets import Targets
from vmr_env.data.annotations import Annotation
from vmr_env.data.durations import covers
from vmr_env.errors import DataError, DataWarning, Problem
from vmr_env.settings import ABOVE_0, COUNT_OR_0, SHARE, Range, Settings


@dataclass(frozen=True)
class DatasetSettings(Settings):
    """How annotations and features become samples.

    Attributes:
        clip_seconds: length of one clip.
        max_clips: clips of a sample at most.
        max_tokens: text tokens of a sample at most; further ones are cut off.
        max_windows: moments of a sample used as span labels, drawn at random where there are more.
        rated: saliency labels come from the annotators' ratings; otherwise from the first moment.
        official: the official oddities named above.
        normalise_text: L2-normalise each token; for feature stores of raw hidden states (official files are
            normalised when they are read).
        paraphrases: paraphrases ``<qid>#1`` … in the text features, one of which may stand in for the query.
        paraphrase_share: how often one does in training.
        similarity: extra clip channels, None for none.
        augmentation: changes to training samples, None for none.
        endpoints: add the temporal endpoint features.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "clip_seconds": ABOVE_0,
        "paraphrases": COUNT_OR_0,
        "paraphrase_share": SHARE,
    }

    clip_seconds: float
    max_clips: int
    max_tokens: int = 32
    max_windows: int = 5
    rated: bool = False
    official: bool = False
    normalise_text: bool = False
    paraphrases: int = 0
    paraphrase_share: float = 0.0
    similarity: SimilarityChannels | None = None
    augmentation: Augmentation | None = None
    endpoints: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.official and self.augmentation is not None:
            message = (
                "is set together with `official`; expected None, as official labels are those of the file"
            )
            raise DataError(Problem("DatasetSettings", None, "augmentation", message))


@dataclass(frozen=True)
class Item:
    """One sample, unpadded: L clips, Lt tokens, n moments, P pairs."""

    vid: str
    video: Floats
    """``(L, Dv + 2)``: features and the temporal endpoint features [i / L, (i + 1) / L], if they are asked
    for."""
    text: Floats
    """``(Lt, Dt)``."""
    spans: Floats
    """``(n, 2)``: (centre, width) in units of the video length."""
    saliency: Floats
    """``(L,)``; ``(L + 1,)`` in the official case Q4."""
    positive: Ints64
    """``(P,)`` clips that must score higher than those in `negative`."""
    negative: Ints64
    """``(P,)``."""


@dataclass(frozen=True)
class FeatureBatch:
    """B samples, zero-padded to the longest: Lv clips, Lt tokens."""

    src_vid: Tensor
    """``(B, Lv, Dv + 2)`` float32."""
    src_vid_mask: Tensor
    """``(B, Lv)`` float32, 1 = valid."""
    src_txt: Tensor
    """``(B, Lt, Dt)`` float32."""
    src_txt_mask: Tensor
    """``(B, Lt)`` float32."""
    targets: Targets
    vids: tuple[str, ...]
    """Video of each sample."""

    def to(self, device: torch.device | str) -> "FeatureBatch":
        """The same batch on `device`."""
        video, video_mask, text, text_mask = (tensor.to(device) for tensor in self.inputs)
        return FeatureBatch(video, video_mask, text, text_mask, self.targets.to(device), self.vids)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Arguments of the model."""
        return self.src_vid, self.src_vid_mask, self.src_txt, self.src_txt_mask


@dataclass(frozen=True)
class EmptyClips:
    """Clips without features, for blind models: `read` gives ``(T, 0)``, T by the duration of the video."""

    durations: Mapping[str, float]
    clip_seconds: float
    dim: int = 0

    def read(self, key: str) -> Floats:
        """As many empty rows as the video has clips."""
        return np.zeros((int(np.ceil(self.durations[key] / self.clip_seconds)), 0), np.float32)


class MomentDataset:
    """Annotations with their features.

    Attributes:
        annotations: the samples, in order.
        settings: how they are read.
        video_width: channels of `Item.video`.
        text_width: channels of `Item.text`.
    """

    def __init__(
        self, annotations: Sequence[Annotation], clips: Features, tokens: Features, settings: DatasetSettings
    ) -> None:
        self.annotations = list(annotations)
        self.settings = settings
        self._clips, self._tokens = clips, tokens
        channels = settings.similarity.count if settings.similarity else 0
        self.video_width = clips.dim + channels + 2 * settings.endpoints
        self.text_width = tokens.dim

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the samples, the settings and the names of the features."""
        rows = [(row.qid, row.vid, row.query, row.duration, row.moments.tolist()) for row in self.annotations]
        facts = (rows, self.settings, self._clips, self._tokens)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def problems(self) -> list[Problem]:
        """Everything wrong with the features of these samples, each video and query read once.

        Missing and damaged files, wrong shapes and widths, numbers that are not finite, and videos whose
        rows do not cover their duration to within a tenth (or two clips), or end before a rated clip.
        """
        problems: list[Problem] = []
        durations = {row.vid: row.duration for row in self.annotations}
        keys = [key for row in self.annotations for key in self._text_keys(row)]
        of_video: dict[str, list[Annotation]] = {}
        for row in self.annotations:
            of_video.setdefault(row.vid, []).append(row)
        for features, names in ((self._clips, list(durations)), (self._tokens, keys)):
            for name in names if features.dim else []:
                try:
                    rows = features.read(name)
                except DataError as error:
                    problems.extend(error.problems)
                    continue
                message = None
                if features is self._clips:
                    message = self._transposed_problem(rows.shape, durations[name])
                message = message or array_problem(rows, features.dim)
                if message is None and features is self._clips:
                    message = self._coverage_problem(len(rows), durations[name])
                if message is None and features is self._clips:
                    found = (self._rating_problem(row, len(rows)) for row in of_video.get(name, ()))
                    message = next(filter(None, found), None)
                if message is not None:
                    problems.append(Problem(repr(features), None, name, message))
        return problems

    def covered(self) -> "MomentDataset":
        """Only the samples whose rows cover their video, as `problems` asks; a `DataWarning` counts the rest.

        Raises:
            DataError: features are missing or damaged, or no sample is left.
        """
        durations = {row.vid: row.duration for row in self.annotations}
        whole = {vid for vid, length in durations.items() if self._covers(len(self._clips.read(vid)), length)}
        rows = [row for row in self.annotations if row.vid in whole]
        if not rows:
            message = f"cover none of {len(durations)} videos; expected features of whole videos"
            raise DataError(Problem(repr(self._clips), None, None, message))
        if len(rows) < len(self.annotations):
            message = (
                f"{self._clips!r} do not cover {len(durations) - len(whole)} of {len(durations)} videos; "
                f"{len(self.annotations) - len(rows)} of {len(self.annotations)} samples are left out"
            )
            warnings.warn(message, DataWarning, stacklevel=2)
        return MomentDataset(rows, self._clips, self._tokens, self.settings)

    def item(self, index: int, draw: random.Random, training: bool = False) -> Item:
        """One sample.

        Args:
            index: position in `annotations`.
            draw: source of all random choices: moments beyond `max_windows`, saliency pairs, paraphrases.
            training: whether a paraphrase may stand in for the query, and the sample may be augmented.

        Raises:
            DataError: features are missing or damaged.
        """
        row, settings = self.annotations[index], self.settings
        text = self._tokens.read(self._text_key(row, draw, training))[: settings.max_tokens]
        video = self._timeline(row)
        if training and settings.augmentation is not None:
            other = self._clips.read(draw.choice(self.annotations).vid)
            video = settings.augmentation(video, other, draw)
        parts = [video.clips]
        if settings.similarity is not None:
            sentences = np.stack([self._tokens.read(key).mean(0) for key in self._text_keys(row)])
            parts.append(settings.similarity(video.clips, sentences))
        if settings.endpoints:
            parts.append(endpoint_features(len(video)))
        if settings.official:
            seconds = len(video) * settings.clip_seconds
            spans = span_labels(row.moments, seconds, settings.max_windows, draw)
        else:
            spans = span_labels(video.moments, len(video), settings.max_windows, draw)
        if video.rated is not None and video.scores is not None:
            labels = rated_saliency(video.rated, video.scores, len(video), draw)
        else:
            labels = moment_saliency(video.moments[0], len(video), draw)
        text = l2_normalised(text) if settings.normalise_text else text
        return Item(row.vid, np.concatenate(parts, axis=1), text, spans, *labels)

    def batch(self, indices: Sequence[int], draw: random.Random, training: bool = False) -> FeatureBatch:
        """The samples at `indices`, in that order, as one batch."""
        return collate([self.item(index, draw, training) for index in indices])

    def _text_keys(self, row: Annotation) -> list[str]:
        return [str(row.qid), *(f"{row.qid}#{k + 1}" for k in range(self.settings.paraphrases))]

    def _text_key(self, row: Annotation, draw: random.Random, training: bool) -> str:
        settings = self.settings
        if not training or not settings.paraphrases or draw.random() >= settings.paraphrase_share:
            return str(row.qid)
        return f"{row.qid}#{draw.randint(1, settings.paraphrases)}"

    def _covers(self, rows: int, duration: float) -> bool:
        return covers(rows, self.settings.clip_seconds, duration)

    def _coverage_problem(self, rows: int, duration: float) -> str | None:
        if self._covers(rows, duration):
            return None
        seconds = rows * self.settings.clip_seconds
        return (
            f"has {rows} rows, {seconds:g} s; the annotation says {duration:g} s: encode the whole video at "
            f"{self.settings.clip_seconds:g} s a row, or leave it out (--short-features drop)"
        )

    def _rating_problem(self, row: Annotation, rows: int) -> str | None:
        """Officially a rated clip may be at most one past the last row (Q4); the labels hold no other."""
        settings = self.settings
        if not (settings.rated and settings.official) or row.clip_ids is None or not len(row.clip_ids):
            return None
        kept, last = min(rows, settings.max_clips), int(row.clip_ids.max())
        if last <= kept:
            return None
        return f"has {rows} rows, {kept} read; qid {row.qid} rates clip {last}, expected at most {kept}"

    def _transposed_problem(self, shape: tuple[int, ...], duration: float) -> str | None:
        """A problem where the columns fit the video's length and the rows do not."""
        rows, columns = shape
        if self._covers(rows, duration) or not self._covers(columns, duration):
            return None
        return f"has shape {shape} for {duration:g} s, which looks like (D, T); expected (T, D)"

    def _timeline(self, row: Annotation) -> Timeline:
        settings = self.settings
        rows = self._clips.read(row.vid)
        if message := self._rating_problem(row, len(rows)):
            raise DataError(Problem(repr(self._clips), None, row.vid, message))
        clips = fit_rows(rows, settings.max_clips, cut=settings.official)
        moments = row.moments / (row.duration / len(clips))
        if not settings.rated:
            return Timeline(clips, moments)
        if row.clip_ids is None or row.saliency is None:
            message = f"of qid {row.qid} is missing; expected ratings, as the settings say `rated`"
            raise DataError(Problem("annotations", None, "saliency_scores", message))
        rated = row.clip_ids
        if not settings.official:
            middle = (rated + 0.5) * settings.clip_seconds / row.duration
            rated = np.minimum((middle * len(clips)).astype(np.int64), len(clips) - 1)
        return Timeline(clips, moments, rated, row.saliency.sum(1))


def fit_rows(rows: Floats, limit: int, cut: bool) -> Floats:
    """At most `limit` rows: the first ones (`cut`), or averages over equal shares of all of them."""
    if len(rows) <= limit:
        return rows
    if cut:
        return rows[:limit]
    starts = np.arange(limit) * len(rows) // limit
    counts = np.diff(starts, append=len(rows))
    sums: Floats = np.add.reduceat(rows, starts, axis=0)
    return np.divide(sums, counts[:, None], dtype=np.float32)


def endpoint_features(length: int) -> Floats:
    """Temporal endpoint features ``(length, 2)``: where each clip starts and ends, in units of the video."""
    starts = np.arange(length, dtype=np.float32) / np.float32(length)
    return np.stack([starts, starts + np.float32(1 / length)], axis=1)


def span_labels(moments: NDArray[np.float64], unit: float, limit: int, draw: random.Random) -> Floats:
    """Moments ``(n, 2)`` as (centre, width) in units of `unit`, at most `limit` of them."""
    windows = moments.tolist()
    if len(windows) > limit:
        draw.shuffle(windows)
    spans = np.array(windows[:limit], np.float32) / np.float32(unit)
    return np.stack([spans.sum(1) * np.float32(0.5), spans[:, 1] - spans[:, 0]], axis=1)


def moment_saliency(
    moment: NDArray[np.float64], length: int, draw: random.Random
) -> tuple[Floats, Ints64, Ints64]:
    """Saliency labels from one moment in units of rows: 1 on its rows, a pair from inside, one from outside.

    Returns:
        labels ``(length,)``, positive and negative rows ``(2,)``.
    """
    first = int(moment[0])
    last = max(0, min(int(moment[1]), length) - 1)
    first = min(first, last)
    labels = np.zeros(length, np.float32)
    labels[first : last + 1] = 1
    inside = range(first, last + 1)
    outside = [*range(first), *range(last + 1, length)]
    positive = draw.sample(inside, 2) if first != last else [first, first]
    negative = draw.sample(outside, 2) if len(outside) >= 2 else positive
    return labels, np.array(positive, np.int64), np.array(negative, np.int64)


def rated_saliency(
    ids: Ints64, scores: Ints64, length: int, draw: random.Random
) -> tuple[Floats, Ints64, Ints64]:
    """Saliency labels from rated clips: the highest against the lowest, and any against one not relevant.

    Args:
        ids: rated clips ``(K,)``.
        scores: their summed ratings ``(K,)``, 0 to 12.
        length: number of feature rows.
        draw: source of the random pair.

    Returns:
        labels ``(length,)`` (one longer if an id is past the last row, Q4), positive and negative clips
        ``(2,)``.
    """
    if not len(ids):  # nothing is rated higher than anything else
        return np.zeros(length, np.float32), np.zeros(2, np.int64), np.zeros(2, np.int64)
    labels = np.zeros(length + int(ids.max() >= length), np.float32)
    np.maximum.at(labels, ids, scores.astype(np.float32))
    order = np.argsort(scores)
    hard = [min(int(ids[order[-1]]), length - 1), min(int(ids[order[0]]), length - 1)]
    easy = hard
    if others := list(set(range(length)) - set(ids.tolist())):
        easy = [draw.sample(ids.tolist(), 1)[0], draw.sample(others, 1)[0]]
    return labels, np.array([hard[0], easy[0]], np.int64), np.array([hard[1], easy[1]], np.int64)


def collate(items: Sequence[Item]) -> FeatureBatch:
    """Pad samples to the longest and stack them.

    Raises:
        DataError: a label array is longer than the longest video of the batch (the official case Q4).
    """
    video, video_mask = _pad([item.video for item in items])
    text, text_mask = _pad([item.text for item in items])
    labels = torch.zeros_like(video_mask)
    for row, item in enumerate(items):
        if len(item.saliency) > labels.shape[1]:
            message = (
                f"reach clip {len(item.saliency)}, past the {labels.shape[1]} clips of the longest video"
            )
            raise DataError(Problem("batch", row + 1, "saliency labels", message))
        labels[row, : len(item.saliency)] = torch.from_numpy(item.saliency)
    targets = Targets(
        spans=[torch.from_numpy(item.spans) for item in items],
        saliency_all_labels=labels,
        saliency_pos_labels=_stack([item.positive for item in items]),
        saliency_neg_labels=_stack([item.negative for item in items]),
    )
    return FeatureBatch(video, video_mask, text, text_mask, targets, tuple(item.vid for item in items))


def _pad(rows: Sequence[Floats]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    padded = np.zeros((len(rows), longest, rows[0].shape[1]), np.float32)
    mask = np.zeros((len(rows), longest), np.float32)
    for index, array in enumerate(rows):
        padded[index, : len(array)] = array
        mask[index, : len(array)] = 1
    return torch.from_numpy(padded), torch.from_numpy(mask)


def _stack(rows: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(rows))
