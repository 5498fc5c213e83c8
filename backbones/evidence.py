"""Evidence for caches of prediction files: what the features of the same videos say about the queries.

find = cosine_evidence(FeatureStore("clips"), FeatureStore("text"), ["captions"], clip_seconds=2.0)
build_prediction_cache("cache", "my_model.jsonl", "val.jsonl", profile, "val", evidence=find)
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vmr_env.arrays import Array
from vmr_env.backbones.base import Detector, GirlDetrDetector
from vmr_env.backbones.cross_fitted import is_cross_fitted, open_cross_fitted
from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.features.store import Features
from vmr_env.backbones.frozen import recipe_of
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint
from vmr_env.backbones.recipes import Recipe
from vmr_env.caches.evidence import Evidence, FindEvidence
from vmr_env.caches.format import Ragged, cells_of, merged
from vmr_env.data.annotations import Annotation
from vmr_env.data.timelines import check_features
from vmr_env.errors import DataError, Problem


def cosine_evidence(
    clips: Features, text: Features, features: Sequence[str], clip_seconds: float
) -> FindEvidence:
    """Evidence without training: the cosine of each clip's vector and the query's, the mean of its tokens'.

    Args:
        clips: clip features by vid.
        text: token features by qid, in the same space as the clips'.
        features: names of the clip features.
        clip_seconds: length of a clip.

    Raises:
        DataError: the widths differ; while it finds evidence, features are missing.
    """
    if clips.dim != text.dim:
        message = f"has width {text.dim}; expected {clips.dim} as the clips, for cosines"
        raise DataError(Problem("--text", None, None, message))

    def find(rows: Sequence[Annotation]) -> Evidence:
        check_features("--clips", clips, rows, clip_seconds)
        curves = []
        for row in rows:
            read, query = clips.read(row.vid), text.read(str(row.qid)).mean(axis=0)
            lengths = np.linalg.norm(read, axis=1) * np.linalg.norm(query)
            cosines = read @ query / np.maximum(lengths, 1e-6)
            curves.append(cosines[_nearest(len(cosines), _count(row, clip_seconds))])
        return Evidence("cosine", None, tuple(features), Ragged.from_rows(curves))

    return find


def open_backbone(folder: Path) -> tuple[Recipe, Detector]:
    """The recipe and the frozen backbone in a folder of weights, or of cross-fitted ones.

    Raises:
        DataError: there are none, or they are damaged.
    """
    if is_cross_fitted(folder):
        return open_cross_fitted(folder, "refined", "one")
    recipe = recipe_of(folder)
    return recipe, GirlDetrDetector(load_checkpoint(folder), "refined", ranking=recipe.windows)


def backbone_evidence(
    recipe: Recipe, detector: Detector, clips: Features, text: Features, features: Sequence[str]
) -> FindEvidence:
    """Evidence of a frozen backbone: its saliency as relevance, its scores of spans where it has query
    selection, and the clips and the sentence vector that it keeps.

    Args:
        recipe: how it reads features.
        detector: the backbone.
        clips: clip features by vid.
        text: token features by qid.
        features: names of the clip features.

    Raises:
        DataError: while it finds evidence: features are missing or do not fit, or there is no saliency.
    """

    def find(rows: Sequence[Annotation]) -> Evidence:
        dataset = MomentDataset(rows, clips, text, recipe.data)
        if problems := dataset.problems():
            raise DataError(problems)
        curves, scores, kept, sentences = [], [], [], []
        for low in range(0, len(rows), recipe.eval_batch_size):
            part = range(low, min(low + recipe.eval_batch_size, len(rows)))
            batch = dataset.batch(part, random.Random(0))  # the labels are not used
            output = detector.detect(batch)
            if output.saliency is None:
                message = "has no saliency; expected a backbone with it"
                raise DataError(Problem("--evidence", None, None, message))
            lengths = batch.src_vid_mask.sum(1).long().tolist()
            for index, (row, length) in enumerate(zip(part, lengths, strict=True)):
                count = _count(rows[row], recipe.data.clip_seconds)
                nearest = _nearest(length, count)
                curves.append(output.saliency[index].float().numpy(force=True)[nearest])
                if output.clips is not None:
                    kept.append(output.clips[index].float().numpy(force=True)[nearest])
                if output.span_scores is not None:
                    scores.append(on_grid(output.span_scores[index], nearest))
            if output.text is not None:
                sentences.append(output.text.float().numpy(force=True))
        return Evidence(
            detector.kind,
            detector.sha256,
            tuple(features),
            Ragged.from_rows(curves),
            Ragged.from_rows(scores) if scores else None,
            Ragged.from_rows(kept) if kept else None,
            np.concatenate(sentences) if sentences else None,
        )

    return find


def on_grid(logits: torch.Tensor, clips: Array) -> Array:
    """Scores of the spans of a cache's grid (`vmr_env.caches.evidence`): (spans,) float32.

    Args:
        logits: ``(Lv, Lv)`` of the spans from one clip to another, both included.
        clips: (n,), which of the Lv clips each clip of the video is.
    """
    cell = int(merged(np.array(len(clips))))
    first, last = np.triu_indices(int(cells_of(np.array(len(clips)))))
    ends = np.minimum((last + 1) * cell, len(clips)) - 1
    scores: Array = logits.float().numpy(force=True)[clips[first * cell], clips[ends]]
    return scores


def _count(row: Annotation, clip_seconds: float) -> int:
    """Clips of a video, as in caches of prediction files."""
    return int(np.ceil(row.duration / clip_seconds))


def _nearest(length: int, count: int) -> Array:
    """Which of so many rows of features each of `count` clips is: (count,).

    A row more or less than the video has clips is cut off or repeated; a backbone that has seen fewer, longer
    clips gives each to those that it is made of.
    """
    if abs(length - count) <= 1:
        return np.minimum(np.arange(count), length - 1)
    return (np.arange(count) * length) // count
