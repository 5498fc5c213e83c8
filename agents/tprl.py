"""TPRL on cached decoder states: progressive reinforcement learning of a frozen detector's detection head.

The backbone is frozen, so nothing but the head runs: batches come straight from a memory-mapped cache, and
the policy is the head itself. Three stages (`vmr_env.curriculum`) refine the best-scored proposal, then
regress several proposals weighted by their quality, then add the policy gradient over the choice among
proposals (`agents.tprl_losses`). The trained head goes back into its backbone with `load_state_dict`:

    trainer = TprlTrainer(head, paper_config("qvhighlights"), seed=0)
    result = trainer.fit(DecoderStateCache.open("cache/train"), DecoderStateCache.open("cache/val"))
    head.load_state_dict(result.head)
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from agents.run_state import load_run, save_run
from agents.tprl_batches import Batch, StateBatches
from agents.tprl_config import TprlConfig
from agents.tprl_losses import (
    SAMPLED,
    Matches,
    Moments,
    log_odds,
    log_policy,
    match,
    rank_loss,
    rewards,
    score_loss,
    span_loss,
    top1_loss,
)
from agents.tprl_validation import Validator, propose
from vmr_env.cache import DecoderStateCache
from vmr_env.curriculum import STAGES, Coefficients, coefficients

KIND = "tprl"  # of checkpoints

TRAINED = tuple(dict.fromkeys(name for stage in STAGES.values() for name in stage.trains))
"""Modules of the head that TPRL changes; the IoU layers stay as they are."""


class StepLosses(NamedTuple):
    """Losses of one step, scalars; those that the stage leaves out are 0."""

    total: Tensor
    top1: Tensor
    span: Tensor
    score: Tensor
    rank: Tensor
    tiou: Tensor  # no loss: mean tIoU of the best-scored proposals


@dataclass(slots=True)
class TprlResult:
    """What training gave; while it runs, what it has so far."""

    head: dict[str, Tensor]
    """Weights of the chosen head, under the names of the head that was passed in."""
    epoch: int = -1
    """Epoch (from 0) after which it was chosen; -1 for the head as it came."""
    selection: float = 0.0
    """Its selection score."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per evaluation: epoch, stage (0 for schedules without), mean losses since the last evaluation,
    validation metrics. The first row, epoch -1, is the head as it came."""


class TprlTrainer:
    """Trains a detection head on cached decoder states.

    Args:
        head: Module whose ``forward(states (..., D), references (..., 2))`` gives `.logits (..., 2)` and
            `.spans (..., 2)` as (centre, width), with submodules "iou_embed" and those of `TRAINED`. It is
            copied, and itself left alone.
        config: Settings.
        seed: Seed of the order of samples, of draws and of dropout.

    Attributes:
        head: The copy in training.
        averaged: Its running average, which is evaluated and returned.
    """

    def __init__(self, head: nn.Module, config: TprlConfig, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.head = copy.deepcopy(head)
        self.averaged = copy.deepcopy(head).requires_grad_(False)
        self._class_embed = self.head.get_submodule("class_embed")
        self._span_layers = _spans_only(self.head)
        self._weights, self._averages = _parameters(self.head, TRAINED), _parameters(self.averaged, TRAINED)
        self._average = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]  # torch leaves it so
        # Parameters that share a learning rate share the bound of their gradient.
        self._optimizer = torch.optim.AdamW(
            [{"params": self._weights}]
            if config.class_lr is None
            else [{"params": _parameters(self.head, [name])} for name in ("span_embed", "class_embed")],
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._at_rest = [
            (parameter, torch.zeros_like(parameter))
            for parameter in self._class_embed.parameters()
            if config.class_lr is None
        ]
        self._generator = torch.Generator()

    def fit(
        self,
        train: DecoderStateCache,
        validation: DecoderStateCache,
        *,
        checkpoint: Path | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> TprlResult:
        """Train through the whole schedule and choose the averaged head that does best on validation samples.

        Args:
            train: Samples to learn from.
            validation: Samples to choose by.
            checkpoint: File to write after every evaluation, in one step; None for none.
            resume: Continue from `checkpoint` if it exists; the result equals that of an uninterrupted run.
            progress: Show a progress bar.

        Raises:
            DataError: A cache has no decoder states, or the checkpoint is damaged or of another run.
            FloatingPointError: A loss is not finite.
        """
        config = self.config
        batches = StateBatches(train, config.target_length)
        held_out = StateBatches(validation)
        validate = Validator(validation, config.selection)
        run = {
            "config": asdict(config),
            "seed": self.seed,
            "train": train.manifest["files"]["states.npy"]["sha256"],
            "validation": validation.manifest["files"]["states.npy"]["sha256"],
        }
        if resume and checkpoint is not None and checkpoint.exists():
            first, result = self._load(checkpoint, run)
        else:
            first, result = 0, self._start(validate(*propose(self.head, held_out)))

        epochs, steps = config.schedule.epochs, -(-len(batches) // config.batch_size)
        sums, count = torch.zeros(len(StepLosses._fields)), 0
        with tqdm(
            total=epochs * steps, initial=first * steps, desc="TPRL", unit="step", disable=not progress
        ) as bar:
            for epoch in range(first, epochs):
                now = self.start_epoch(epoch)
                for batch in batches.shuffled(config.batch_size, np.random.default_rng((self.seed, epoch))):
                    sums += torch.stack(self.step(batch, now))
                    bar.update()
                count += steps
                if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == epochs:
                    means = dict(zip(StepLosses._fields, (sums / count).tolist(), strict=True))
                    if not np.isfinite(list(means.values())).all():
                        raise FloatingPointError(f"losses up to epoch {epoch} are not all finite: {means}")
                    sums, count = torch.zeros_like(sums), 0
                    self._record(result, epoch, now, means, validate(*propose(self.averaged, held_out)))
                    bar.set_postfix(stage=now.stage, selection=result.history[-1]["selection"])
                    if checkpoint is not None:
                        self._save(checkpoint, run, epoch + 1, result)
        return result

    def start_epoch(self, epoch: int) -> Coefficients:
        """Coefficients of an epoch (from 0); seeds the draws and sets the learning rates of its steps."""
        now = coefficients(self.config.schedule, epoch)
        self._generator.manual_seed(int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0]))
        if self.config.class_lr is not None:
            ramp = now.score / self.config.schedule.rl_coef
            self._optimizer.param_groups[1]["lr"] = self.config.class_lr * ramp
        return now

    def step(self, batch: Batch, now: Coefficients, draws: Tensor | None = None) -> StepLosses:
        """One step of optimiser and average; arguments as for `losses`.

        Returns:
            The losses before the step, detached.
        """
        out = self.losses(batch, now, draws)
        for weight in self._weights:
            weight.grad = None
        out.total.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        # The published code computes L_score times 0 in stages 1 and 2. AdamW sees a gradient of zero there,
        # not none, and counts the step, which makes the first steps of stage 3 larger.
        for weight, zeros in self._at_rest:
            if weight.grad is None:
                weight.grad = zeros
        for group in self._optimizer.param_groups:
            clip_grad_norm_(group["params"], self.config.clip)
        self._optimizer.step()
        self._average(self._averages, self._weights, 0)
        return StepLosses(*(loss.detach() for loss in out))

    def losses(self, batch: Batch, now: Coefficients, draws: Tensor | None = None) -> StepLosses:
        """Losses of a batch, differentiable.

        Args:
            batch: Samples.
            now: Stage and coefficients.
            draws: Proposals drawn for the sampled estimators, ``(B, S)`` int64; None to draw them from the
                policy.
        """
        config, moments = self.config, batch.moments
        states = self._with_dropout(batch.states)
        logits = self._class_embed(states)
        log_pi = log_policy(logits, on=config.policy_input, temperature=config.temperature)
        if draws is None and now.score and config.estimator in SAMPLED:
            policy = log_pi.detach().exp()
            draws = torch.multinomial(policy, config.samples, replacement=True, generator=self._generator)

        proposals = states.shape[1]
        regressed = min(config.top_k or proposals, proposals) if now.span else 1
        everything = config.rank_coef > 0 or (now.score > 0 and config.estimator != "score_greedy")
        # Proposals by falling score. Only the first few need gradients, and some need no spans at all.
        order = log_odds(logits.detach()).topk(proposals if everything else regressed).indices
        spans = self._spans(states, batch.references, order[:, :regressed])
        with torch.no_grad():
            columns, known = order[:, :regressed], spans.detach()
            others = order[:, regressed:] if everything else draws if now.score else None
            if others is not None and others.shape[1]:
                columns = torch.cat([columns, others], 1)
                known = torch.cat([known, self._spans(states, batch.references, others)], 1)
            matches = match(known, moments)

        top1 = top1_loss(spans[:, 0], matches.moment[:, 0])
        span = score = rank = torch.zeros(())
        if now.span:
            span = self._span_loss(spans, matches.top(regressed), log_pi.gather(1, columns[:, :regressed]))
        if now.score:
            # What nobody reads stays 0: with "score_greedy" all but the best-scored and the drawn proposals.
            reward = torch.zeros_like(log_pi).scatter(1, columns, self._rewards(known, moments, matches))
            score = score_loss(
                log_pi,
                reward,
                estimator=config.estimator,
                draws=draws,
                clip_advantage=config.clip_advantage,
            )
        if config.rank_coef:
            scores = log_odds(logits).sigmoid().gather(1, columns)
            rank = rank_loss(scores, matches.tiou, margin=config.rank_margin, threshold=config.rank_threshold)
        # With a learning rate of its own, the class layer follows the schedule by that rate.
        score_coef = now.score if config.class_lr is None else 1.0
        total = config.top1_coef * top1 + now.span * span + score_coef * score + config.rank_coef * rank
        return StepLosses(total, top1, span, score, rank, matches.tiou[:, 0].mean())

    def _spans(self, states: Tensor, references: Tensor, columns: Tensor) -> Tensor:
        """Spans ``(B, k, 2)`` of each sample's proposals at ``columns (B, k)``."""
        batch, proposals = states.shape[:2]
        rows = (columns + torch.arange(0, batch * proposals, proposals)[:, None]).reshape(-1)
        spans: Tensor = self._span_layers(
            states.flatten(0, 1).index_select(0, rows), references.flatten(0, 1).index_select(0, rows)
        ).spans
        return spans.view(*columns.shape, 2)

    def _span_loss(self, spans: Tensor, matches: Matches, log_pi: Tensor) -> Tensor:
        config = self.config
        return span_loss(
            spans,
            matches,
            weighting=config.weighting,
            policy=log_pi.exp() if config.weighting == "policy" else None,
            threshold_aware=config.threshold_aware,
            distance=config.distance,
            giou=config.giou,
        )

    def _rewards(self, spans: Tensor, moments: Moments, matches: Matches) -> Tensor:
        config = self.config
        return rewards(
            spans,
            moments,
            matches,
            mode=config.reward,
            boundary_bonus=config.boundary_bonus,
            threshold_steps=config.threshold_steps,
            ic_weight=config.ic_weight,
            centre_weight=config.centre_weight,
        )

    def _with_dropout(self, states: Tensor) -> Tensor:
        keep = 1 - self.config.state_dropout
        if keep == 1:
            return states
        return states * torch.empty_like(states).bernoulli_(keep, generator=self._generator).div_(keep)

    def _start(self, metrics: dict[str, float]) -> TprlResult:
        """The head as it came, which training must beat if it is a candidate itself."""
        result = TprlResult(_copy(self.head.state_dict()), history=[{"epoch": -1.0, **metrics}])
        if self.config.start_is_candidate:
            result.selection = metrics["selection"]
        return result

    def _record(
        self,
        result: TprlResult,
        epoch: int,
        now: Coefficients,
        means: dict[str, float],
        metrics: dict[str, float],
    ) -> None:
        """Add an evaluation to the history, and keep the averaged head if it is the best so far."""
        row = {"epoch": float(epoch), "stage": float(now.stage or 0)}
        result.history.append(
            {**row, **{f"losses/{name}": value for name, value in means.items()}, **metrics}
        )
        if metrics["selection"] > result.selection:
            result.head, result.epoch = _copy(self.averaged.state_dict()), epoch
            result.selection = metrics["selection"]

    def _save(self, path: Path, run: dict[str, Any], epochs: int, result: TprlResult) -> None:
        """Write a checkpoint after `epochs` epochs."""
        state = {
            "epochs": epochs,
            "head": self.head.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "result": {field.name: getattr(result, field.name) for field in fields(result)},
        }
        save_run(path, KIND, run, state)

    def _load(self, path: Path, run: dict[str, Any]) -> tuple[int, TprlResult]:
        """Continue from a checkpoint: epochs done, and the result so far."""
        state = load_run(path, KIND, run)
        self.head.load_state_dict(state["head"])
        self.averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        return state["epochs"], TprlResult(**state["result"])


class _FirstChannel(nn.Module):
    """Stands for layers whose output nobody reads."""

    def forward(self, states: Tensor) -> Tensor:
        """One channel of ``states (..., D)``."""
        return states[..., :1]


def _spans_only(head: nn.Module) -> nn.Module:
    """The same head, parameters shared, less its class and IoU layers; those of IoU cost as much as spans."""
    spans_only = copy.copy(head)
    spans_only._modules = {**head._modules, "class_embed": _FirstChannel(), "iou_embed": _FirstChannel()}
    return spans_only


def _parameters(head: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    return [parameter for name in names for parameter in head.get_submodule(name).parameters()]


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}
