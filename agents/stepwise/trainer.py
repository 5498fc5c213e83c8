"""The published step-wise refinement agent (GIRL-DETR's `rl_agent`): settings, updates and training.

Frozen proposals are walked through a few moves by a policy of `vmr_env.agents.stepwise.policy`. All of them
are moved; those that a Hungarian assignment matches to a moment are trained: first on the moves of an oracle,
then by REINFORCE or PPO.

    cache = DecoderStateCache.open("cache/train")  # written with the backbone's refined clips
    trainer = StepwiseTrainer(StepwiseConfig(), d=256, seed=0)
    result = trainer.fit(cache, DecoderStateCache.open("cache/val"))
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from vmr_env.agents.checkpoint import load_run, save_run
from vmr_env.agents.devices import device_of
from vmr_env.agents.policy_agent import descend
from vmr_env.agents.policy_gradient import clipped_gain, standardised
from vmr_env.agents.stepwise.data import DetectedBatches
from vmr_env.agents.stepwise.objectives import (
    MatchedProposals,
    gae,
    inside_tiou,
    match_proposals,
    oracle_loss,
    step_rewards,
)
from vmr_env.agents.stepwise.policy import (
    ActionType,
    ContinuousPolicy,
    DetectedSamples,
    DiscretePolicy,
    StepwisePolicy,
    Trajectories,
    boundaries,
    moved,
    observe,
)
from vmr_env.agents.tprl.losses import Moments
from vmr_env.agents.tprl.validation import Validator
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.seeding import derived
from vmr_env.settings import COUNT_OR_0, Range, Settings

Algorithm = Literal["reinforce", "ppo"]
Rows = NDArray[np.intp]

KIND = "stepwise"  # of checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class StepwiseConfig(Settings):
    """Settings of the step-wise agent.

    The values given here are the published ones, but for the kind of policy: published defaults combine a
    continuous policy with a warm-up on an oracle that knows discrete moves alone, and stop with an error.
    """

    ranges: ClassVar[Mapping[str, Range]] = {"epochs": COUNT_OR_0}

    actions: ActionType = "discrete"
    """Kind of policy."""
    algorithm: Algorithm = "reinforce"
    """Policy gradient after the warm-up."""
    steps: int = 3
    """Moves per proposal."""
    max_clips: int = 75
    """Clips in which discrete moves are counted; one is 1 / max_clips of any video."""
    gate: bool = False
    """Gate attention over the features at the span."""
    memory: bool = False
    """GRU memory over the steps."""
    iou_head: bool = False
    """Auxiliary estimate of the tIoU."""
    batch_size: int = 32
    """Samples of one update."""
    warm_up_epochs: int = 10
    """Epochs on the oracle's moves (discrete policies)."""
    warm_up_lr: float = 1e-3
    """Learning rate of Adam at the start of the warm-up; it falls to 0 by a cosine over its epochs."""
    warm_up_weight_decay: float = 1e-4
    """Weight decay of that Adam."""
    epochs: int = 50
    """Epochs of the policy gradient."""
    lr: float = 3e-4
    """Learning rate of Adam in the policy gradient."""
    clip: float = 0.5
    """Bound of the gradient norm."""
    entropy_coef: float = 0.01
    """Coefficient of the entropy bonus."""
    iou_coef: float = 0.5
    """Coefficient of the IoU head's squared error."""
    oracle_coef: float = 0.1
    """Coefficient of the oracle's loss in the extra step after REINFORCE (discrete policies)."""
    baseline_momentum: float = 0.99
    """Momentum of REINFORCE's running mean reward."""
    gamma: float = 0.99
    """Discount of PPO."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    ratio_clip: float = 0.2
    """Clip of PPO's ratio."""
    value_coef: float = 0.5
    """Coefficient of PPO's value loss."""
    passes: int = 4
    """PPO's passes over a batch."""
    hard_below: float | None = None
    """Train only matches whose tIoU is below this (published option `curriculum`: 0.9); None for all."""
    evaluate_every: int = 5
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        if self.actions == "continuous" and self.warm_up_epochs:
            raise ValueError(
                "the oracle knows discrete moves alone: continuous actions need warm_up_epochs=0, "
                f"got {self.warm_up_epochs}"
            )


def new_policy(config: StepwiseConfig, d: int, seed: int = 0) -> StepwisePolicy:
    """Untrained policy over features of width `d`; the global generators stay as they are."""
    options = {"gate": config.gate, "memory": config.memory, "iou_head": config.iou_head}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived(seed, "weights"))
        if config.actions == "discrete":
            return DiscretePolicy(d, steps=config.steps, max_clips=config.max_clips, **options)
        return ContinuousPolicy(d, **options)


@dataclass(slots=True)
class StepwiseResult:
    """What training gave; while it runs, what it has so far."""

    policy: dict[str, Tensor]
    """Weights of the chosen policy, on the processor."""
    epoch: int = -1
    """Epoch (from 0, warm-up included) after which it was chosen; -1 for the untrained policy."""
    gain: float = -math.inf
    """Its gain in tIoU of matched proposals on validation samples, in percent."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per evaluation: epoch, mean losses since the last one, tIoU of matched proposals before and
    after refinement in percent (matched by ground truth, so flattering), and official metrics of the refined
    proposals, whose scores and order stay as they were."""


class StepwiseTrainer:
    """Trains a step-wise policy on the proposals of a frozen detector.

    Args:
        config: Settings.
        d: Width of the clip features.
        seed: Seed of the policy's weights, of the order of samples and of actions.
        device: Torch device of the policy.

    Attributes:
        policy: The policy in training.
        baseline: Running mean reward of REINFORCE; None before its first update.
    """

    def __init__(self, config: StepwiseConfig, d: int, seed: int = 0, device: str = "cpu") -> None:
        self.config, self.seed = config, seed
        self.policy = new_policy(config, d, seed).to(device)
        self.baseline: float | None = None
        self._warm_up = torch.optim.Adam(
            self.policy.parameters(), lr=config.warm_up_lr, weight_decay=config.warm_up_weight_decay
        )
        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.lr)
        self._generator = torch.Generator()

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
        watch: Callable[[dict[str, float]], None] = lambda row: None,
    ) -> StepwiseResult:
        """Warm up, train, and choose the policy that gains most tIoU on validation samples.

        Args:
            train: Samples to learn from.
            validation: Samples to choose by.
            train_rows: Rows of `train` that take part; None for all.
            validation_rows: Rows of `validation` that take part; None for all.
            checkpoint: File to write after every evaluation, in one step; None for none.
            resume: Continue from `checkpoint` if it exists; the result equals that of an uninterrupted run.
            progress: Show a progress bar.
            watch: Told each row of the history.

        Raises:
            DataError: A cache lacks clip features, or the checkpoint is damaged or of another run.
            FloatingPointError: A loss or a gradient is not finite.
        """
        config = self.config
        device = device_of(self.policy)
        batches = DetectedBatches(train, train_rows, device)
        held_out = DetectedBatches(validation, validation_rows, device)
        validate = Validator(validation, "miou", held_out.rows)
        run = {
            "config": asdict(config),
            "seed": self.seed,
            "train": train.manifest["files"]["spans.npy"]["sha256"],
            "validation": validation.manifest["files"]["spans.npy"]["sha256"],
        }
        first, result = 0, StepwiseResult(self._weights())
        if resume and checkpoint is not None and checkpoint.exists():
            first, result = self._load(checkpoint, run)
        epochs = config.warm_up_epochs + config.epochs
        seen: list[dict[str, float]] = []
        for epoch in tqdm(
            range(first, epochs), initial=first, total=epochs, desc="stepwise", disable=not progress
        ):
            seen += self.run_epoch(batches, epoch)
            if (epoch + 1) % config.evaluate_every and epoch + 1 < epochs:
                continue
            metrics = self._evaluate(held_out, validate)
            result.history.append({"epoch": float(epoch), **_means(seen), **metrics})
            watch(result.history[-1])
            seen = []
            if metrics["matched/gain"] > result.gain:
                result.policy, result.epoch, result.gain = self._weights(), epoch, metrics["matched/gain"]
            if checkpoint is not None:
                self._save(checkpoint, run, epoch + 1, result)
        return result

    def run_epoch(self, batches: DetectedBatches, epoch: int) -> list[dict[str, float]]:
        """One epoch, of the warm-up or of the policy gradient; the losses of every update."""
        config = self.config
        order = np.random.default_rng(derived(self.seed, "order", epoch))
        self._generator.manual_seed(derived(self.seed, "actions", epoch))
        warm = epoch < config.warm_up_epochs
        if warm:
            fall = (1 + math.cos(math.pi * epoch / config.warm_up_epochs)) / 2
            self._warm_up.param_groups[0]["lr"] = config.warm_up_lr * fall
        losses = []
        for detected, moments in batches.shuffled(config.batch_size, order):
            matched = self.matches(detected, moments)
            if len(matched.rows):
                try:
                    losses.append(self.warm_up(detected, matched) if warm else self.update(detected, matched))
                except FloatingPointError as error:
                    raise FloatingPointError(f"{KIND}, epoch {epoch}: {error}") from None
        return losses

    def matches(self, detected: DetectedSamples, moments: Moments) -> MatchedProposals:
        """The matches that are trained."""
        matched = match_proposals(detected.spans, moments)
        if self.config.hard_below is None:
            return matched
        hard = (
            inside_tiou(detected.spans.flatten(0, 1)[matched.rows], matched.moments) < self.config.hard_below
        )
        return MatchedProposals(matched.rows[hard], matched.moments[hard])

    def warm_up(self, detected: DetectedSamples, matched: MatchedProposals) -> dict[str, float]:
        """One update on the oracle's moves, which are followed."""
        policy = self._discrete()
        spans, memory, losses = detected.spans.flatten(0, 1), None, []
        for step in range(self.config.steps):
            states = observe(detected, spans.view_as(detected.spans)).flatten(0, 1)[matched.rows]
            memory = policy.features(policy.gated(states), memory)
            here = spans[matched.rows]
            losses.append(oracle_loss(policy, memory, here, matched.moments, step, self.config.iou_coef))
            choices = policy.oracle(here, matched.moments, step)
            spans = spans.index_copy(0, matched.rows, moved(here, policy.change(choices, step)))
        loss = torch.stack(losses).mean()
        descend(loss, self._warm_up, self.config.clip)
        return {"losses/oracle": loss.item()}

    def update(self, detected: DetectedSamples, matched: MatchedProposals) -> dict[str, float]:
        """One update of the policy gradient on sampled moves."""
        rollout = self.policy.roll_out(detected, self.config.steps, self._generator).of(matched.rows)
        if self.config.algorithm == "ppo":
            return self.ppo(rollout, matched.moments)
        losses = self.reinforce(rollout, matched.moments)
        if self.config.actions == "discrete":
            losses["losses/oracle"] = self.imitate(rollout, matched.moments)
        return losses

    def reinforce(self, rollout: Trajectories, moments: Tensor) -> dict[str, float]:
        """REINFORCE on the final tIoU, with a running mean as its baseline."""
        config = self.config
        reward = inside_tiou(rollout.spans[-1], moments)
        mean = reward.mean().item()
        kept = mean if self.baseline is None else self.baseline
        self.baseline = config.baseline_momentum * kept + (1 - config.baseline_momentum) * mean
        judged = self.policy.judge(rollout)
        policy_loss = -(judged.log_probs.sum(0) * (reward - self.baseline)).mean()
        entropy = judged.entropies.mean()
        loss = policy_loss - config.entropy_coef * entropy
        losses = {"policy": policy_loss, "entropy": entropy}
        if judged.tious is not None:
            losses["iou"] = F.mse_loss(judged.tious, inside_tiou(rollout.spans[1:], moments))
            loss = loss + config.iou_coef * losses["iou"]
        descend(loss, self._optimizer, config.clip, **losses)
        return {f"losses/{name}": value.item() for name, value in losses.items()}

    def imitate(self, rollout: Trajectories, moments: Tensor) -> float:
        """A step on the oracle's loss at the states just visited, without memory."""
        policy = self._discrete()
        losses = [
            oracle_loss(
                policy, policy.features(policy.gated(states)), spans, moments, step, self.config.iou_coef
            )
            for step, (states, spans) in enumerate(zip(rollout.states, rollout.spans[:-1], strict=True))
        ]
        loss = torch.stack(losses).mean()
        descend(self.config.oracle_coef * loss, self._optimizer, self.config.clip)
        return loss.item()

    def ppo(self, rollout: Trajectories, moments: Tensor) -> dict[str, float]:
        """PPO on the rewards of single moves; the losses are means over its passes.

        The gate does not learn here: the published code gates the states once and stores them.
        """
        config = self.config
        with torch.no_grad():
            before = self.policy.judge(rollout)
            rewards = step_rewards(rollout.spans, moments)
            advantages, returns = gae(rewards, before.values, config.gamma, config.gae_lambda)
            advantages = standardised(advantages)
        reached = inside_tiou(rollout.spans[1:], moments)
        seen = []
        for _ in range(config.passes):
            judged = self.policy.judge(rollout, gate_learns=False)
            ratio = (judged.log_probs - before.log_probs).exp()
            losses = {
                "policy": -clipped_gain(ratio, advantages, config.ratio_clip),
                "value": F.mse_loss(judged.values, returns),
                "entropy": judged.entropies.mean(),
            }
            loss = losses["policy"] + config.value_coef * losses["value"]
            loss = loss - config.entropy_coef * losses["entropy"]
            if judged.tious is not None:
                losses["iou"] = F.mse_loss(judged.tious, reached)
                loss = loss + config.iou_coef * losses["iou"]
            descend(loss, self._optimizer, config.clip, **losses)
            seen.append({f"losses/{name}": value.item() for name, value in losses.items()})
        return _means(seen)

    def _discrete(self) -> DiscretePolicy:
        """The policy, known to be discrete: settings that need the oracle are refused for others."""
        return cast(DiscretePolicy, self.policy)

    @torch.no_grad()
    def _evaluate(self, batches: DetectedBatches, validate: Validator) -> dict[str, float]:
        """TIoU of matched proposals before and after the likeliest moves; metrics of all refined ones."""
        spans, before, after = [], [], []
        for detected, moments in batches.ordered(self.config.batch_size):
            rollout = self.policy.roll_out(detected, self.config.steps)
            matched = match_proposals(detected.spans, moments)
            walked = rollout.of(matched.rows).spans
            before.append(inside_tiou(walked[0], matched.moments))
            after.append(inside_tiou(walked[-1], matched.moments))
            spans.append(boundaries(rollout.spans[-1]).view_as(detected.spans))
        metrics = validate(torch.cat(spans).cpu().numpy(), batches.cache.scores[batches.rows])
        start, end = (100 * torch.cat(values).mean().item() for values in (before, after))
        return {"matched/before": start, "matched/after": end, "matched/gain": end - start, **metrics}

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.policy.state_dict().items()}

    def _save(self, path: Path, run: dict[str, Any], epochs: int, result: StepwiseResult) -> None:
        state = {
            "epochs": epochs,
            "policy": self.policy.state_dict(),
            "baseline": self.baseline,
            "warm_up": self._warm_up.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "result": {field.name: getattr(result, field.name) for field in fields(result)},
        }
        save_run(path, KIND, run, state)

    def _load(self, path: Path, run: dict[str, Any]) -> tuple[int, StepwiseResult]:
        """Continue from a checkpoint: epochs done, and the result so far."""
        state = load_run(path, KIND, run)
        self.policy.load_state_dict(state["policy"])
        self.baseline = state["baseline"]
        self._warm_up.load_state_dict(state["warm_up"])
        self._optimizer.load_state_dict(state["optimizer"])
        return state["epochs"], StepwiseResult(**state["result"])


@torch.no_grad()
def walk(
    policy: StepwisePolicy, cache: DecoderStateCache, steps: int = 3, rows: Rows | None = None
) -> NDArray[np.float32]:
    """Every proposal of samples of a cache before and after each of the policy's likeliest moves.

    Args:
        policy: Makes the moves.
        cache: Where the samples are.
        steps: T, moves per proposal.
        rows: Samples of the cache, ``(N,)``; None for all.

    Returns:
        Spans ``(N, Q, T + 1, 2)``, (start, end) in units of the duration, the detector's first; the cache's
        scores and their order remain those of the proposals.

    Raises:
        DataError: The cache has no clip features or text.
    """
    spans = [
        boundaries(policy.roll_out(detected, steps).spans)
        .movedim(0, 1)
        .reshape(*detected.scores.shape, -1, 2)
        for detected, _ in DetectedBatches(cache, rows, device_of(policy)).ordered(256)
    ]
    walked: NDArray[np.float32] = torch.cat(spans).cpu().numpy()
    walked[:, :, 0] = (
        cache.spans if rows is None else cache.spans[rows]
    )  # cut to the video, as all others see
    return walked


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the rows that have it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: sum(column) / len(column) for name, column in values.items()}
