"""TPRL on cached decoder states: progressive reinforcement learning of a frozen detector's detection head.

The backbone is frozen, so nothing but the head runs: batches come straight from a memory-mapped cache, and
the policy is the head itself. Three stages (`vmr_env.envs.curriculum`) refine the best-scored proposal, then
regress several proposals weighted by their quality, then add the policy gradient over the choice among
proposals (`vmr_env.agents.tprl.losses`). The trained head goes back into its backbone with `load_state_dict`:

    trainer = TprlTrainer(head, paper_config("qvhighlights"), seed=0)
    result = trainer.fit(DecoderStateCache.open("cache/train"), DecoderStateCache.open("cache/val"))
    head.load_state_dict(result.head)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmr_env.agents.tprl.config import TprlConfig
from vmr_env.agents.tprl.data import StateBatch
from vmr_env.agents.tprl.head import Head, learning
from vmr_env.agents.tprl.head_training import HeadTrainer
from vmr_env.agents.tprl.losses import (
    SAMPLED,
    BestMoments,
    Moments,
    best_moments,
    log_odds,
    log_policy,
    rank_loss,
    rewards,
    score_loss,
    span_loss,
    top1_loss,
)
from vmr_env.envs.curriculum import Coefficients, coefficients


class StepLosses(NamedTuple):
    """Losses of one step, scalars; those that the stage leaves out are 0."""

    total: Tensor
    top1: Tensor
    span: Tensor
    score: Tensor
    rank: Tensor
    tiou: Tensor  # no loss: mean tIoU of the best-scored proposals


class TprlTrainer(HeadTrainer[TprlConfig, Coefficients]):
    """Trains a detection head on cached decoder states; arguments as for `HeadTrainer`."""

    kind = "tprl"
    figures = StepLosses._fields

    def __init__(self, head: Head, config: TprlConfig, seed: int = 0) -> None:
        super().__init__(head, config, seed)
        self._at_rest = [
            (parameter, torch.zeros_like(parameter))
            for parameter in learning(self.head, self.head.score_layers)
            if config.class_lr is None
        ]

    def _groups(self) -> list[dict[str, Any]]:
        if self.config.class_lr is None:
            return super()._groups()
        spans = learning(self.head, self.head.span_layers)
        return [{"params": spans}, {"params": learning(self.head)[len(spans) :]}]

    @property
    def epochs(self) -> int:
        """Epochs of the schedule."""
        return self.config.schedule.epochs

    def stage_of(self, now: Coefficients) -> int:
        """Stage of the curriculum; 0 for schedules without."""
        return now.stage or 0

    def start_epoch(self, epoch: int) -> Coefficients:
        """Coefficients of an epoch (from 0); seeds the draws and sets the learning rates of its steps."""
        now = coefficients(self.config.schedule, epoch)
        self._seed_draws(epoch)
        if self.config.class_lr is not None:
            full = self.config.schedule.rl_coef
            ramp = now.score / full if full else 0.0
            self._optimizer.param_groups[1]["lr"] = self.config.class_lr * ramp
        return now

    def step(self, batch: StateBatch, now: Coefficients, draws: Tensor | None = None) -> StepLosses:
        """One step of optimiser and average; arguments as for `losses`.

        Returns:
            The losses before the step, detached.
        """
        out = self.losses(batch, now, draws)
        self._descend(out.total)
        return StepLosses(*(loss.detach() for loss in out))

    def _before_step(self) -> None:
        # The published code computes L_score times 0 in stages 1 and 2. AdamW sees a gradient of zero there,
        # not none, and counts the step, which makes the first steps of stage 3 larger.
        for weight, zeros in self._at_rest:
            if weight.grad is None:
                weight.grad = zeros

    def losses(self, batch: StateBatch, now: Coefficients, draws: Tensor | None = None) -> StepLosses:
        """Losses of a batch, differentiable.

        Args:
            batch: Samples.
            now: Stage and coefficients.
            draws: Proposals drawn for the sampled estimators, ``(B, S)`` int64; None to draw them from the
                policy.
        """
        config, moments = self.config, batch.moments
        states = self._with_dropout(batch.states)
        logits = self.head.score(states)
        log_pi = log_policy(logits, on=config.policy_input, temperature=config.temperature)
        if draws is None and now.score and config.estimator in SAMPLED:
            policy = log_pi.detach().exp()
            draws = torch.multinomial(
                policy.cpu(), config.samples, replacement=True, generator=self._generator
            ).to(policy.device)

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
            matches = best_moments(known, moments)

        top1 = top1_loss(spans[:, 0], matches.moment[:, 0])
        span = score = rank = top1.new_zeros(())
        if now.span:
            span = self._span_loss(spans, matches.top(regressed), log_pi.gather(1, columns[:, :regressed]))
        if now.score:
            # Unused entries stay 0: with "score_greedy" all but the best-scored and the drawn proposals.
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
        first = torch.arange(0, batch * proposals, proposals, device=columns.device)
        rows = (columns + first[:, None]).reshape(-1)
        spans = self.head.locate(
            states.flatten(0, 1).index_select(0, rows), references.flatten(0, 1).index_select(0, rows)
        )
        return spans.view(*columns.shape, 2)

    def _span_loss(self, spans: Tensor, matches: BestMoments, log_pi: Tensor) -> Tensor:
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

    def _rewards(self, spans: Tensor, moments: Moments, matches: BestMoments) -> Tensor:
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
        kept = torch.empty(states.shape).bernoulli_(keep, generator=self._generator).div_(keep)
        return states * kept.to(states.device)
