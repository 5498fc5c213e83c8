"""Training of a detection head on cached decoder states: the loop that TPRL and the head's policy share.

The backbone is frozen, so nothing but the head runs: batches come straight from a memory-mapped cache. The
averaged head that does best on samples held out is the result (`HeadTrainer.fit`). Where no samples can be
spared for that, `cross_fit_head` holds out each part of the training videos in turn.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from vmr_env.agents.checkpoint import load_run, save_run
from vmr_env.agents.evaluation import USES, shares_of_uses
from vmr_env.agents.tprl.data import StateBatch, StateBatches
from vmr_env.agents.tprl.head import Head, check_head, learning
from vmr_env.agents.tprl.head_config import HeadConfig
from vmr_env.agents.tprl.validation import Validator, propose
from vmr_env.caches.reader import DecoderStateCache, video_folds
from vmr_env.seeding import derived

Rows = NDArray[np.intp]
Weights = dict[str, Tensor]
Figures = dict[str, float]
Proposals = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Result of `vmr_env.agents.tprl.validation.propose`."""
Config = TypeVar("Config", bound=HeadConfig)
Epoch = TypeVar("Epoch")


@dataclass(slots=True)
class HeadResult:
    """What training gave; while it runs, what it has so far."""

    head: Weights
    """Weights of the chosen head, under the names of the head that was passed in, on the processor."""
    epoch: int = -1
    """Epoch (from 0) after which it was chosen; -1 for the head as it came."""
    selection: float = 0.0
    """Its selection score."""
    history: list[Figures] = field(default_factory=list)
    """One row per evaluation: epoch, stage (0 for schedules without), mean losses since the last evaluation,
    validation metrics, and what is made of the detector's moments (`uses`). The first row, epoch -1, is the
    head as it came."""


class HeadTrainer(ABC, Generic[Config, Epoch]):
    """Trains a detection head on cached decoder states.

    Subclasses give the steps; `Epoch` is what holds for all steps of an epoch, its stage and coefficients.

    Args:
        head: See `Head`. It is copied, and itself left alone. Training runs on its device.
        config: Settings.
        seed: Seed of the order of samples and of all draws.

    Attributes:
        kind: Of checkpoints, in a word.
        figures: Names of what `step` returns.
        head: The copy in training.
        averaged: Its running average, which is evaluated and returned.
        came: The head as it came.
    """

    kind: ClassVar[str]
    figures: ClassVar[tuple[str, ...]]

    def __init__(self, head: Head, config: Config, seed: int = 0) -> None:
        check_head(head)
        self.config, self.seed = config, seed
        self.head = copy.deepcopy(head)
        self.averaged, self.came = copy.deepcopy(head), copy.deepcopy(head)
        for resting in (self.averaged, self.came):
            resting.requires_grad_(False)
        self._weights: list[Tensor] = [*learning(self.head)]
        self._averages: list[Tensor] = [*learning(self.averaged)]
        self._start: list[Tensor] = [*learning(self.came)]
        self._average = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]  # torch leaves it so
        self._optimizer = torch.optim.AdamW(
            self._groups(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self._generator = torch.Generator()
        self._epoch = 0

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return self._weights[0].device

    @property
    @abstractmethod
    def epochs(self) -> int:
        """Epochs of the whole training."""

    @abstractmethod
    def start_epoch(self, epoch: int) -> Epoch:
        """What holds for the steps of an epoch (from 0)."""

    @abstractmethod
    def stage_of(self, now: Epoch) -> int:
        """Stage of the curriculum; 0 for schedules without."""

    def step(self, batch: StateBatch, now: Epoch) -> Sequence[Tensor]:
        """Learn from a batch; returns detached scalars, one for each of `figures`."""
        raise NotImplementedError(f"{type(self).__name__} has neither step nor learn")

    def learn(self, batches: StateBatches, epoch: int, now: Epoch) -> Iterator[Sequence[Tensor]]:
        """Learn for an epoch; yields what `step` returns, for each step."""
        order = np.random.default_rng(derived(self.seed, "order", epoch))
        for batch in batches.shuffled(self.config.batch_size, order):
            yield self.step(batch, now)

    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups, each with a learning rate and a bound of its gradient."""
        return [{"params": self._weights}]

    def _extra(self) -> nn.Module | None:
        """Parts that are trained beside the head and saved in checkpoints."""
        return None

    def fit(
        self,
        train: DecoderStateCache,
        validation: DecoderStateCache,
        *,
        train_rows: Rows | None = None,
        validation_rows: Rows | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
        progress: bool = True,
        watch: Callable[[Figures], None] = lambda row: None,
    ) -> HeadResult:
        """Train to the last epoch and choose the averaged head that does best on validation samples.

        Args:
            train: Samples to learn from.
            validation: Samples to choose by.
            train_rows: Rows of `train` that take part; None for all.
            validation_rows: Rows of `validation` that take part; None for all.
            checkpoint: File to write after every evaluation, in one step; None for none.
            resume: Continue from `checkpoint` if it exists; the result equals that of an uninterrupted run.
            progress: Show a progress bar.
            watch: Told each row of the history, and the "gain" in quality since the start, in points.

        Raises:
            DataError: A cache has no decoder states, or the checkpoint is damaged or of another run.
            FloatingPointError: A loss is not finite.
        """
        batches = StateBatches(train, self.config.target_length, train_rows, self.device)
        held_out = StateBatches(validation, rows=validation_rows, device=self.device)
        validate = Validator(validation, self.config.selection, validation_rows)
        run = {
            "config": asdict(self.config),
            "seed": self.seed,
            "train": train.manifest["files"]["states.npy"]["sha256"],
            "validation": validation.manifest["files"]["states.npy"]["sha256"],
        }
        if resume and checkpoint is not None and checkpoint.exists():
            first, result = self._load(checkpoint, run)
            before = propose(self.came, held_out)
        else:
            before = propose(self.head, held_out)
            first, result = 0, self._begin(validate(*before))
        for row in self.train(batches, first, progress=progress):
            after = propose(self.averaged, held_out)
            row |= validate(*after) | uses(before, after, validation, validation_rows)
            self._record(result, row)
            watch({**row, "gain": row["quality"] - result.history[0]["quality"]})
            if checkpoint is not None:
                self._save(checkpoint, run, int(row["epoch"]) + 1, result)
        return result

    def train(self, batches: StateBatches, first: int = 0, *, progress: bool = False) -> Iterator[Figures]:
        """Train from epoch `first` on; after every epoch that is to be evaluated, yields its figures.

        Yields:
            epoch, stage, and under "losses/…" the mean figures of the steps since the last time.

        Raises:
            FloatingPointError: A figure is not finite.
        """
        config = self.config
        epochs, steps = self.epochs, -(-len(batches) // config.batch_size)
        sums, count = torch.zeros(len(self.figures), device=self.device), 0
        with tqdm(
            total=epochs * steps, initial=first * steps, desc=self.kind, unit="step", disable=not progress
        ) as bar:
            for epoch in range(first, epochs):
                now = self.start_epoch(epoch)
                for figures in self.learn(batches, epoch, now):
                    sums += torch.stack(list(figures))
                    count += 1
                    bar.update()
                if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == epochs:
                    means = dict(zip(self.figures, (sums / count).tolist(), strict=True))
                    if not np.isfinite(list(means.values())).all():
                        raise FloatingPointError(f"losses up to epoch {epoch} are not all finite: {means}")
                    sums, count = torch.zeros_like(sums), 0
                    losses = {f"losses/{name}": value for name, value in means.items()}
                    yield {"epoch": float(epoch), "stage": float(self.stage_of(now)), **losses}

    def also_train(self, weights: Sequence[nn.Parameter], averages: Sequence[nn.Parameter]) -> None:
        """Let parameters beyond the head learn at the head's rate, and keep their running averages.

        Args:
            weights: What the losses depend on through the states that they are given.
            averages: As many, of equal values; they follow.
        """
        self._optimizer.add_param_group({"params": list(weights)})
        self._start += [weight.detach().clone() for weight in weights]
        self._weights += weights
        self._averages += averages

    def trained(self) -> Weights:
        """A copy of the averaged head's weights, on the processor."""
        return _copy(self.averaged.state_dict())

    def _seed_draws(self, epoch: int) -> None:
        """Make the draws of an epoch follow from the seed and its number alone."""
        self._epoch = epoch
        self._generator.manual_seed(derived(self.seed, "draws", epoch))

    def _descend(self, loss: Tensor) -> None:
        """One step of optimiser and average."""
        for group in self._optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = None
        where = f"{self.kind}, epoch {self._epoch}"
        if not loss.isfinite():
            raise FloatingPointError(f"{where}: loss is {loss.item()}, expected a finite number")
        torch.autograd.backward(loss)
        self._before_step()
        for group in self._optimizer.param_groups:
            norm = clip_grad_norm_(group["params"], self.config.clip)
            if not norm.isfinite():
                raise FloatingPointError(f"{where}: gradient norm is {norm.item()}, expected a finite number")
        self._optimizer.step()
        self._after_step()

    def _after_step(self) -> None:
        """Pull the weights towards the start, and let their average follow."""
        if self.config.pull:
            with torch.no_grad():
                torch._foreach_lerp_(self._weights, self._start, self.config.lr * self.config.pull)
        self._average(self._averages, self._weights, 0)

    def _before_step(self) -> None:
        """Called when gradients are there and not yet clipped."""

    def _begin(self, metrics: Figures) -> HeadResult:
        """The head as it came, which training must beat if it is a candidate itself."""
        result = HeadResult(_copy(self.head.state_dict()), history=[{"epoch": -1.0, **metrics}])
        if self.config.start_is_candidate:
            result.selection = metrics["selection"]
        return result

    def _record(self, result: HeadResult, row: Figures) -> None:
        """Add an evaluation to the history, and keep the averaged head if it is the best so far."""
        result.history.append(row)
        if row["selection"] > result.selection:
            result.head, result.epoch = self.trained(), int(row["epoch"])
            result.selection = row["selection"]

    def _save(self, path: Path, run: dict[str, Any], epochs: int, result: HeadResult) -> None:
        """Write a checkpoint after `epochs` epochs."""
        extra = self._extra()
        state = {
            "epochs": epochs,
            "head": self.head.state_dict(),
            "averaged": self.averaged.state_dict(),
            "came": self.came.state_dict(),
            "extra": {} if extra is None else extra.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "result": {field.name: getattr(result, field.name) for field in fields(result)},
        }
        save_run(path, self.kind, run, state)

    def _load(self, path: Path, run: dict[str, Any]) -> tuple[int, HeadResult]:
        """Continue from a checkpoint: epochs done, and the result so far."""
        state = load_run(path, self.kind, run)
        self.head.load_state_dict(state["head"])
        self.averaged.load_state_dict(state["averaged"])
        self.came.load_state_dict(state["came"])
        if (extra := self._extra()) is not None:
            extra.load_state_dict(state["extra"])
        self._optimizer.load_state_dict(state["optimizer"])
        return state["epochs"], HeadResult(**state["result"])


@dataclass(frozen=True)
class TrainedHead:
    """What one member of a cross-fitted head learnt, with an entry for the head as it came and one for each
    evaluation; pickles."""

    config: HeadConfig
    held_out: Rows
    """(n,), rows that it has not learnt from."""
    proposals: list[Proposals]
    """For them."""
    weights: list[Weights]
    history: list[Figures]


def train_head(
    make: Callable[[int], HeadTrainer[Any, Any]],
    cache: DecoderStateCache,
    rows: Rows,
    member: int,
    *,
    members: int,
    seed: int,
    watch: Callable[[Figures], None] = lambda row: None,
) -> TrainedHead:
    """Train one member of a cross-fitted head, which depends on no other; see `cross_fit_head`.

    Args:
        member: From 0.
        watch: Told its figures after each evaluation.
    """
    videos = cache.source_videos()
    part_of = video_folds([videos[row] for row in rows], members, seed)
    trainer = make(derived(seed, "member", member))
    batches = StateBatches(cache, trainer.config.target_length, rows[part_of != member], trainer.device)
    held_out = StateBatches(cache, rows=rows[part_of == member], device=trainer.device)
    trained = TrainedHead(trainer.config, rows[part_of == member], [], [], [])
    came: Figures = {"epoch": -1.0}
    for row in _and_then(came, trainer.train(batches)):
        trained.proposals.append(propose(trainer.averaged, held_out))
        trained.weights.append(trainer.trained())
        trained.history.append(row)
        if row is not came:
            watch(row)
    return trained


def join_heads(cache: DecoderStateCache, trained: Sequence[TrainedHead]) -> HeadResult:
    """One head of all members, as it is after the epoch that did best on what they had not learnt from."""
    config, order = trained[0].config, np.concatenate([member.held_out for member in trained])
    validate = Validator(cache, config.selection, order)
    weights = list(zip(*(member.weights for member in trained), strict=True))
    result = HeadResult(weights[0][0])
    chosen, before = 0, _joined([member.proposals[0] for member in trained])
    for number, figures in enumerate(zip(*(member.history for member in trained), strict=True)):
        after = _joined([member.proposals[number] for member in trained])
        row = _mean_figures(figures) | validate(*after) | uses(before, after, cache, order)
        result.history.append(row)
        candidate = number > 0 or config.start_is_candidate
        if candidate and row["selection"] > result.selection:
            chosen, result.epoch, result.selection = number, int(row["epoch"]), row["selection"]
    result.head = _mean_weights(weights[chosen])
    return result


def cross_fit_head(
    make: Callable[[int], HeadTrainer[Any, Any]],
    cache: DecoderStateCache,
    rows: Rows,
    *,
    members: int,
    seed: int,
    watch: Callable[[int, Figures], None] = lambda member, row: None,
) -> HeadResult:
    """Train a head on all given samples and still choose the epoch by samples that were not learnt from.

    The videos are cut into K parts; member k learns on all parts but k. Together the members propose for
    every sample once, out of part, which tells the best epoch. The result is the mean of the members' weights
    at that epoch: they start from one head and stay near it, where the mean of weights does as well as the
    mean of predictions (Wortsman et al., 2022, "Model soups").

    Args:
        make: Makes a trainer for a seed.
        cache: Where the samples are.
        rows: Samples to learn from.
        members: K, at least 2.
        seed: Of the parts; each member is made with one derived from it.
        watch: Told the member and its figures after each evaluation.

    Raises:
        DataError: The cache has no decoder states, or fewer videos than members.
        FloatingPointError: A loss is not finite.
    """
    trained = [
        train_head(make, cache, rows, member, members=members, seed=seed, watch=partial(watch, member))
        for member in range(members)
    ]
    return join_heads(cache, trained)


def uses(before: Proposals, after: Proposals, cache: DecoderStateCache, rows: Rows | None) -> Figures:
    """What training made of the detector's moments: "uses/…" for each of `vmr_env.agents.evaluation.USES`.

    A boundary counts as moved from half a clip on.

    Args:
        before: The proposals of the head as it came.
        after: The same proposals by the trained head.
        cache: Where the samples are.
        rows: Samples of the cache; None for all.
    """
    durations = (
        cache.durations.astype(np.float64) if rows is None else cache.durations[rows].astype(np.float64)
    )
    first = [scores.argmax(axis=1) for _, scores in (before, after)]
    at = np.arange(len(durations))
    start, end = (
        spans[at, best] * durations[:, None] for (spans, _), best in zip((before, after), first, strict=True)
    )
    shares = shares_of_uses(start, end, first[0] != first[1], cache.manifest["clip_seconds"] / 2)
    return {f"uses/{name}": share for name, share in zip(USES, shares, strict=True)}


def _joined(parts: Sequence[Proposals]) -> Proposals:
    spans, scores = zip(*parts, strict=True)
    return np.concatenate(spans), np.concatenate(scores)


def _and_then(first: Figures, rows: Iterator[Figures]) -> Iterator[Figures]:
    yield first
    yield from rows


def _mean_figures(rows: Sequence[Figures]) -> Figures:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _mean_weights(members: Sequence[Weights]) -> Weights:
    """Mean of the members' weights; what all share stays as it is, bit for bit."""
    means = {}
    for name, first in members[0].items():
        same = all(torch.equal(first, other[name]) for other in members[1:])
        means[name] = first if same else torch.stack([member[name] for member in members]).mean(0)
    return means


def _copy(weights: Weights) -> Weights:
    return {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}
