"""Settings of TPRL: the published ones, and the departures that can be measured against them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vmr_env.agents.tprl.head_config import HeadConfig
from vmr_env.agents.tprl.losses import Distance, Estimator, PolicyInput, RewardMode, Weighting
from vmr_env.data.profiles import get_profile
from vmr_env.envs.curriculum import CURRICULA, Schedule, get_schedule, through_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class TprlConfig(HeadConfig):
    """Settings of `vmr_env.agents.tprl.trainer.TprlTrainer`; the values given here are those published for
    every data set."""

    schedule: Schedule
    """Stages, their lengths and the coefficients of L_span and L_score, epoch by epoch."""
    class_lr: float | None = None
    """Learning rate of the class layer at the schedule's full coefficient of L_score; the schedule then
    scales the rate and not the loss. None trains the head with one rate, scales the loss, and so (Adam
    being invariant to the scale of a loss) hardly scales the step."""
    state_dropout: float = 0.0
    """Dropout on decoder states. Published training runs the frozen backbone with its dropout on, which a
    cache of states does not show; this is a plain regulariser."""
    top1_coef: float = 1.0
    """Coefficient of L_top1, in all stages."""
    top_k: int | None = 3
    """Best-scored proposals that L_span regresses; None for all."""
    weighting: Weighting = "improvement"
    """Weight of a proposal in L_span (`tprl_losses.span_loss`)."""
    threshold_aware: bool = False
    """Raise those weights near a tIoU of 0.7."""
    distance: Distance = "l1"
    """Objective of L_span."""
    giou: bool = False
    """Add 1 - GIoU to L_span."""
    policy_input: PolicyInput = "probability"
    """What the policy over proposals is a softmax of (`tprl_losses.log_policy`)."""
    temperature: float = 0.5
    """Temperature of that softmax."""
    estimator: Estimator = "score_greedy"
    """Baseline and gradient estimator of L_score (`tprl_losses.score_loss`)."""
    samples: int = 3
    """Proposals drawn per sample by the sampled estimators."""
    clip_advantage: float = 0.0
    """Bound of the standardised advantages of "grpo"; 0 for none."""
    reward: RewardMode = "iou"
    """Reward of a proposal (`tprl_losses.rewards`)."""
    boundary_bonus: bool = False
    """Reward small errors of start and end."""
    threshold_steps: bool = False
    """Reward passing tIoU thresholds."""
    ic_weight: float = 0.0
    """Reward for the part of the proposal inside the moment."""
    centre_weight: float = 0.0
    """Weight of the closeness of the centres in the reward."""
    rank_coef: float = 0.0
    """Coefficient of L_rank."""
    rank_margin: float = 0.1
    """Margin of L_rank."""
    rank_threshold: float = 0.1
    """Lead in tIoU that makes a pair for L_rank."""


def with_stages(config: TprlConfig, epochs: Sequence[int], curriculum: str = "tprl") -> TprlConfig:
    """The same settings with other lengths of the stages, or other stages; 0 leaves a stage out.

    Raises:
        ValueError: There is no such curriculum, or not as many lengths as stages; one is negative, or all are
            0.
    """
    cosine, stages = any(phase.cosine for phase in config.schedule.phases), CURRICULA.get(curriculum)
    schedule = through_stages(config.schedule.rl_coef, epochs, cosine=cosine, curriculum=stages)
    return replace(config, schedule=schedule)


# Batch size and learning rate of each training script.
_PAPER = {
    "charades": (128, 5e-5),
    "charades_v15c": (128, 5e-5),
    "qvhighlights": (128, 2e-4),
    "tacos": (32, 2e-5),
}


def paper_config(dataset: str) -> TprlConfig:
    """Published settings for "charades", "charades_v15c", "qvhighlights" or "tacos".

    Raises:
        ValueError: No settings were published under that name.
    """
    if dataset not in _PAPER:
        raise ValueError(f"no published TPRL settings for {dataset!r}, expected one of {sorted(_PAPER)}")
    batch_size, lr = _PAPER[dataset]
    return TprlConfig(schedule=get_schedule(dataset), batch_size=batch_size, lr=lr)


def default_config(dataset: str) -> TprlConfig:
    """Our settings: the policy gradient and the regression are exact gradients of the policy's expected tIoU.

    Departures from the published ones: softmax of the class logits, sharpened, and not of probabilities; no
    sampling; the regression weighs a proposal by the probability of its choice, not by how bad it is, and is
    not held back by L_top1; a higher rate, which for the class layer the schedule scales; weights averaged
    over tens of steps, not a thousand; moments normalised as at inference; the head as it came may be kept.
    What each is worth stands in benchmarks/RESULTS_EARLIER.md.

    Raises:
        ValueError: There is no such data set.
    """
    get_profile(dataset)
    return TprlConfig(
        schedule=through_stages(1.0, (2, 4, 42), cosine=True),
        batch_size=128,
        lr=1e-3,
        class_lr=1e-3,
        clip=1.0,
        ema=0.9,
        top1_coef=0.1,
        top_k=None,
        weighting="policy",
        distance="tiou",
        policy_input="logit",
        temperature=0.3,
        estimator="expected",
        target_length="duration",
        evaluate_every=1,
        selection="quality",
        start_is_candidate=True,
    )
