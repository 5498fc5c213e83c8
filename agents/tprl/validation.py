"""A detection head's proposals over a whole cache, and the figure by which training chooses among results."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vmr_env.agents.tprl.data import StateBatches
from vmr_env.agents.tprl.head import Head
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.data.profiles import DatasetProfile, get_profile
from vmr_env.metrics.moments import evaluate
from vmr_env.metrics.spans import from_cxw

SelectionScore = Literal["official", "miou", "quality"]

_BATCH = 1024
_METRICS = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "mAP")


@torch.inference_mode()
def propose(head: Head, batches: StateBatches) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Proposals of a head for every sample, in the order of the batches' rows; both are on one device.

    Returns:
        Spans ``(N, Q, 2)`` as (start, end) in units of the duration, not clipped to it, and foreground
        probabilities ``(N, Q)``.
    """
    proposals = batches.cache.manifest["proposals"]
    spans = np.empty((len(batches), proposals, 2), np.float32)
    scores = np.empty((len(batches), proposals), np.float32)
    first = 0
    for batch in batches.ordered(_BATCH):
        logits = head.score(batch.states)
        part = slice(first, first + len(batch.states))
        spans[part] = from_cxw(head.locate(batch.states, batch.references).cpu().numpy())
        scores[part] = torch.sigmoid(logits[..., 0] - logits[..., 1]).cpu().numpy()
        first = part.stop
    return spans, scores


class Validator:
    """Scores proposals for samples of one cache with the official metrics.

    Args:
        cache: Where the validation samples are.
        selection: "official" is the published weighted score of R1, mIoU and mAP, over windows rounded as in
            published submissions; "miou" is the mean tIoU of the first windows, as they are; "quality" is the
            mean of that and of R1@0.5 and R1@0.7, as ensembles in the environments are judged.
        rows: Samples of the cache; None for all.
    """

    def __init__(
        self, cache: DecoderStateCache, selection: SelectionScore, rows: NDArray[np.integer] | None = None
    ) -> None:
        self._selection = selection
        self._profile = get_profile(cache.manifest["dataset"])
        self._annotations = [
            Annotation(sample.qid, sample.vid, sample.query, sample.duration, sample.moments)
            for sample in map(cache.sample, range(len(cache)) if rows is None else rows.tolist())
        ]

    def __call__(self, spans: NDArray[np.float32], scores: NDArray[np.float32]) -> dict[str, float]:
        """Metrics in percent, "quality" among them, and under "selection" the figure to be made large.

        Args:
            spans: ``(N, Q, 2)``, (start, end) in units of the duration.
            scores: ``(N, Q)``.
        """
        order = np.argsort(-scores, axis=1, kind="stable")
        scores = np.take_along_axis(scores, order, 1)
        spans = np.take_along_axis(spans, order[..., None], 1)
        durations = np.array([annotation.duration for annotation in self._annotations])
        seconds = spans * durations[:, None, None]
        if self._selection == "official":
            seconds = submission_times(seconds, self._profile)
        windows = np.concatenate([seconds, scores[..., None]], axis=-1)
        brief = evaluate(
            [
                Prediction(annotation.qid, annotation.vid, annotation.query, rows)
                for annotation, rows in zip(self._annotations, windows, strict=True)
            ],
            self._annotations,
            past_end="keep",
        )["brief"]
        chosen = {name: float(brief[f"MR-full-{name}"]) for name in _METRICS}
        chosen["quality"] = (chosen["mIoU"] + chosen["R1@0.5"] + chosen["R1@0.7"]) / 3
        if self._selection == "official":
            chosen["selection"] = official_score(brief, self._profile.name)
        else:
            chosen["selection"] = chosen["mIoU" if self._selection == "miou" else "quality"]
        return chosen


def submission_times(seconds: NDArray[np.float64], profile: DatasetProfile) -> NDArray[np.float64]:
    """Window boundaries in seconds, moved as in published submissions.

    Rounded to 4 decimals, moved into the profile's limits, then rounded to its steps (half to even).
    """
    seconds = np.round(seconds, 4)
    if profile.submission_limit is not None:
        seconds = np.clip(seconds, 0.0, profile.submission_limit)
    return np.round(seconds / profile.submission_step) * profile.submission_step


def official_score(brief: dict[str, float], dataset: str) -> float:
    """GIRL-DETR's model-selection score from the official metrics in percent."""
    recall = 0.3 * brief["MR-full-R1@0.3"] + 0.5 * brief["MR-full-R1@0.5"] + 0.7 * brief["MR-full-R1@0.7"]
    if dataset != "qvhighlights":
        return (recall + 0.5 * brief["MR-full-mIoU"]) / 2.0
    lengths = sum(brief[f"MR-{name}-mAP"] for name in ("full", "long", "middle", "short"))
    precision = 0.5 * brief["MR-full-mAP@0.5"] + 0.75 * brief["MR-full-mAP@0.75"] + 0.25 * lengths
    return (recall + precision) / 3.75
