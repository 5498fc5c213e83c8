"""The published step-wise agent in the main job: every proposal is walked, scores and order stay."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_env.agents.ensemble.cross_fitting import Progress, Selection
from vmr_env.agents.evaluation import KINDS, Trajectories
from vmr_env.agents.stepwise.data import DetectedBatches
from vmr_env.agents.stepwise.trainer import (
    StepwiseConfig,
    StepwiseResult,
    StepwiseTrainer,
    new_policy,
    walk,
)
from vmr_env.agents.tensors import write_tensors
from vmr_env.agents.tprl.validation import Validator
from vmr_env.benchmarks.experiment.methods import Fold, Method, MethodResult, Settings, Watch, ranking
from vmr_env.benchmarks.experiment.names import STEPWISE_AGENTS
from vmr_env.caches.reader import DecoderStateCache, video_folds
from vmr_env.data.profiles import get_profile


def stepwise_config(name: str, dataset: str) -> StepwiseConfig:
    """Published settings of one of `STEPWISE_AGENTS` for a data set."""
    return StepwiseConfig(algorithm=STEPWISE_AGENTS[name], max_clips=get_profile(dataset).max_clips)


@dataclass(frozen=True)
class StepwiseMethod(Method):
    """The step-wise agent on the frozen clip features of a cache, kept as `.safetensors`.

    One part of the training videos in `Settings.members` is held out to choose the epoch, as published by
    the gain of the proposals that match a moment.
    """

    config: StepwiseConfig

    def describe(self) -> dict[str, Any]:
        """See `Method`."""
        return asdict(self.config)

    def train(self, fold: Fold, seed: int, settings: Settings, member: int, watch: Watch) -> StepwiseResult:
        """See `Method`."""
        train, cache, select = _split(fold, seed, settings)
        epochs = self.config.warm_up_epochs + self.config.epochs

        def told(row: dict[str, float]) -> None:
            losses = {name: value for name, value in row.items() if name.startswith("losses/")}
            done = int(row["epoch"]) + 1
            watch(Progress(0, done, epochs, done * len(train), losses, None))

        return StepwiseTrainer(self.config, DetectedBatches(fold.train).d, seed, settings.device).fit(
            fold.train, cache, train_rows=train, validation_rows=select, progress=False, watch=told
        )

    def answer(
        self,
        learnt: Sequence[StepwiseResult],
        fold: Fold,
        seed: int,
        settings: Settings,
        keep: Path,
        about: Mapping[str, Any],
    ) -> MethodResult:
        """See `Method`."""
        (result,) = learnt
        train, cache, select = _split(fold, seed, settings)
        policy = new_policy(self.config, DetectedBatches(fold.train).d).to(settings.device)
        policy.load_state_dict(result.policy)
        write_tensors(keep.with_name(f"{keep.name}.safetensors"), result.policy)
        spans = walk(policy, fold.test, self.config.steps, fold.test_samples)
        scores = fold.test.scores[fold.test_samples]
        answers = ranking(fold.test, fold.test_samples, spans[:, :, -1], scores)
        rows = DetectedBatches(cache, select).rows
        before = Validator(cache, "quality", rows)(cache.spans[rows], cache.scores[rows])["quality"]
        trajectories = _trajectories(
            fold.test, fold.test_samples, spans[np.arange(len(spans)), scores.argmax(1)]
        )
        steps = (self.config.warm_up_epochs + self.config.epochs) * len(train)
        return MethodResult(answers, _selection(result, before, steps), trajectories=trajectories)


def _split(
    fold: Fold, seed: int, settings: Settings
) -> tuple[NDArray[np.intp], DecoderStateCache, NDArray[np.intp] | None]:
    """Rows of the training cache to learn from; a cache to choose the epoch by, and its rows, None for
    all."""
    if fold.select is not None:
        return fold.train_samples, fold.select, None
    videos = fold.train.source_videos()
    parts = video_folds([videos[row] for row in fold.train_samples], settings.members, seed)
    return fold.train_samples[parts != 0], fold.train, fold.train_samples[parts == 0]


def _trajectories(
    cache: DecoderStateCache, samples: NDArray[np.intp], spans: NDArray[np.float32]
) -> Trajectories:
    """The walks ``(K, T + 1, 2)`` of the proposals that answer for samples ``(K,)``."""
    count = spans.shape[1]
    kinds = [KINDS.index("start")] + [KINDS.index("move")] * (count - 1)
    seconds = spans.clip(0, 1) * cache.durations[samples].astype(np.float64)[:, None, None]
    proposals = cache.scores[samples].argmax(1)
    return Trajectories(
        np.repeat(samples, count),
        np.tile(np.array(kinds), len(samples)),
        seconds.reshape(-1, 2).round(4),
        np.repeat(proposals, count),
    )


def _selection(result: StepwiseResult, before: float, steps: int) -> Selection:
    """Report on the training, in the terms of ensembles."""
    return Selection(
        tuple(int(row["epoch"]) + 1 for row in result.history),
        tuple((row["quality"] - before) / 100 for row in result.history),
        result.epoch + 1,
        steps,
    )
