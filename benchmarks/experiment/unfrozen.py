"""TPRL from features, for comparison: more than the head unfrozen, or the frozen part with its dropout on."""

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from vmr_env.agents.devices import device_of, seeded
from vmr_env.agents.ensemble.cross_fitting import Progress
from vmr_env.agents.tprl.config import TprlConfig
from vmr_env.agents.tprl.data import StateBatch, padded_moments
from vmr_env.agents.tprl.head_training import HeadResult, Rows, uses
from vmr_env.agents.tprl.trainer import TprlTrainer
from vmr_env.agents.tprl.validation import Validator
from vmr_env.arrays import Floats
from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.backbones.frozen import recipe_of
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint, save_checkpoint
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.benchmarks.experiment.methods import (
    Fold,
    Method,
    MethodResult,
    Ranked,
    Settings,
    Watch,
    frozen_sha256,
    ranking,
    selection_of,
)
from vmr_env.caches.reader import DecoderStateCache, video_folds
from vmr_env.data.annotations import read_annotations
from vmr_env.errors import DataError, Problem
from vmr_env.metrics.spans import from_cxw
from vmr_env.seeding import derived

Unfrozen = Literal["nothing", "last decoder layer", "everything"]
UNFROZEN: tuple[Unfrozen, ...] = ("last decoder layer", "everything")
"""Parts that can be trained beside the head."""


@dataclass(frozen=True)
class Features:
    """Samples of a cache with their features, in folders as `vmr_env.backbones.simulated.features` writes
    them.

    Attributes:
        train: folder with `annotations.jsonl`, `clips` and `text` of the training cache's samples.
        test: the same of the test cache's.
    """

    train: Path
    test: Path


@dataclass(frozen=True)
class UnfrozenMethod(Method):
    """TPRL through the whole model, kept as a checkpoint folder.

    One part of the training videos in `Settings.members` is held out to choose the epoch.
    """

    config: TprlConfig
    weights: Path
    """Folder of the backbone's weights."""
    features: Features
    unfrozen: Unfrozen
    """Parts that are trained beside the head."""
    dropout: bool = False
    """Whether the whole model is in training mode while it learns, with the dropout of its frozen part, as
    published: every step sees states of its own."""

    def describe(self) -> dict[str, Any]:
        """Settings of the training, and what is unfrozen."""
        return {**asdict(self.config), "unfrozen": self.unfrozen, "dropout": self.dropout}

    def train(
        self, fold: Fold, seed: int, settings: Settings, member: int, watch: Watch
    ) -> tuple[HeadResult, GirlDetr]:
        """See `Method`: the history, and the averaged model that did best."""
        model = load_checkpoint(self.weights).to(settings.device)
        samples = _Samples(self.weights, self.features.train, fold.train)
        train, select = _split(fold, seed, settings)
        return self._fit(model, samples, train, select, seed, watch)

    def answer(
        self,
        learnt: Sequence[tuple[HeadResult, GirlDetr]],
        fold: Fold,
        seed: int,
        settings: Settings,
        keep: Path,
        about: Mapping[str, Any],
    ) -> MethodResult:
        """See `Method`."""
        ((result, chosen),) = learnt
        save_checkpoint(keep, chosen, {"unfrozen": self.unfrozen, **about})
        test = _Samples(self.weights, self.features.test, fold.test)
        answers = test.answers(chosen, fold.test_samples)
        frozen = {"before": frozen_sha256(load_checkpoint(self.weights)), "after": frozen_sha256(chosen)}
        train, _ = _split(fold, seed, settings)
        return MethodResult(answers, selection_of(result, self.config.schedule.epochs * len(train)), frozen)

    def _fit(
        self, model: GirlDetr, samples: "_Samples", train: Rows, select: Rows, seed: int, watch: Watch
    ) -> tuple[HeadResult, GirlDetr]:
        """The history of a training, and the averaged model that did best."""
        trainer = TprlTrainer(model.head, self.config, seed)
        average = copy.deepcopy(model).requires_grad_(False)
        model.head, average.head = trainer.head, trainer.averaged  # type: ignore[assignment]
        if learns := _parameters(model, self.unfrozen):
            trainer.also_train(learns, _parameters(average, self.unfrozen))
        validate = Validator(samples.cache, self.config.selection, select)
        before = samples.proposals(average, select)
        result = HeadResult({}, history=[{"epoch": -1.0, **validate(*before)}])
        best = copy.deepcopy(average)
        if self.config.start_is_candidate:
            result.selection = result.history[0]["selection"]
        for epoch in range(trainer.epochs):
            now = trainer.start_epoch(epoch)
            order = np.random.default_rng(derived(seed, "order", epoch)).permutation(train)
            with seeded(derived(seed, "dropout", epoch), trainer.device):
                for first in range(0, len(order), self.config.batch_size):
                    rows = order[first : first + self.config.batch_size]
                    trainer.step(self._batch(samples, model, rows), now)
            done = epoch + 1
            if done % self.config.evaluate_every == 0 or done == trainer.epochs:
                after = samples.proposals(average, select)
                row = {
                    "epoch": float(epoch),
                    **validate(*after),
                    **uses(before, after, samples.cache, select),
                }
                result.history.append(row)
                if row["selection"] > result.selection:
                    result.epoch, result.selection = epoch, row["selection"]
                    best = copy.deepcopy(average)
            watch(Progress(0, done, trainer.epochs, done * len(train), {}, None))
        return result, best

    def _batch(self, samples: "_Samples", model: GirlDetr, rows: Rows) -> StateBatch:
        """Samples as the model sees them now, with gradients where it learns."""
        with torch.set_grad_enabled(self.unfrozen != "nothing"):
            return samples.batch(model.train(self.dropout), rows, self.config)


def _split(fold: Fold, seed: int, settings: Settings) -> tuple[Rows, Rows]:
    """Rows to learn from, and rows to choose the epoch by."""
    videos = fold.train.source_videos()
    parts = video_folds([videos[row] for row in fold.train_samples], settings.members, seed)
    return fold.train_samples[parts != 0], fold.train_samples[parts == 0]


class _Samples:
    """The samples of a cache with their features."""

    def __init__(self, weights: Path, folder: Path, cache: DecoderStateCache) -> None:
        annotations = read_annotations(folder / "annotations.jsonl", past_end="clip")
        self.cache = cache
        self._data = MomentDataset(
            annotations,
            FeatureStore(folder / "clips"),
            FeatureStore(folder / "text"),
            recipe_of(weights).data,
        )
        at = {str(row.qid): i for i, row in enumerate(annotations)}
        missing = [qid for qid in cache.qids() if str(qid) not in at]
        if missing:
            message = f"lacks {len(missing)} samples of {cache.path}, {missing[0]!r} among them"
            raise DataError(Problem(str(folder), None, "qid", message))
        self._row_of = np.array([at[str(qid)] for qid in cache.qids()], np.intp)

    def batch(self, model: GirlDetr, rows: Rows, config: TprlConfig) -> StateBatch:
        """Decoder states of samples as the model gives them now, in the mode that it is in."""
        batch = self._data.batch(self._row_of[rows].tolist(), random.Random(0))  # no labels are drawn
        device = device_of(model)
        output = model(*batch.to(device).inputs)
        moments = padded_moments(self.cache, rows, config.target_length, device)
        return StateBatch(output.hs[-1], output.references[-1], moments)

    @torch.no_grad()
    def proposals(self, model: GirlDetr, rows: Rows) -> tuple[Floats, Floats]:
        """Spans ``(K, Q, 2)`` as (start, end) and scores ``(K, Q)`` of samples."""
        spans, scores = [], []
        for first in range(0, len(rows), 100):
            batch = self._data.batch(self._row_of[rows[first : first + 100]].tolist(), random.Random(0))
            output = model.eval()(*batch.to(device_of(model)).inputs)
            spans.append(from_cxw(output.pred_spans.cpu().numpy()))
            scores.append(output.detections.scores[-1].cpu().numpy())
        return np.concatenate(spans), np.concatenate(scores)

    def answers(self, model: GirlDetr, rows: Rows) -> Ranked:
        """The model's proposals for samples of the cache."""
        return ranking(self.cache, rows, *self.proposals(model, rows))


def _parameters(model: GirlDetr, unfrozen: Unfrozen) -> list[nn.Parameter]:
    """Parts that are trained beside the head's class and span layers."""
    if unfrozen == "nothing":
        return []
    part: nn.Module = model.decoder.layers[-1] if unfrozen == "last decoder layer" else model
    of_head = {id(parameter) for parameter in model.head.parameters()}
    return [parameter for parameter in part.parameters() if id(parameter) not in of_head]
