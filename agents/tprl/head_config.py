"""Settings that all trainers of a detection head share."""

from dataclasses import dataclass

from vmr_env.agents.tprl.data import VideoLength
from vmr_env.agents.tprl.validation import SelectionScore
from vmr_env.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig(Settings):
    """Settings of `vmr_env.agents.tprl.head_training.HeadTrainer`; the values given here are those published
    for TPRL."""

    batch_size: int
    """Samples of one step; the last step of an epoch may have fewer."""
    lr: float
    """Learning rate of AdamW."""
    weight_decay: float = 1e-4
    """Decoupled weight decay, towards 0."""
    pull: float = 0.0
    """The same towards the head as it came (Li et al., 2018, "L2-SP"): keeps training close to the start."""
    clip: float = 0.1
    """Bound of the gradient norm, over all that shares a learning rate."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is evaluated and returned; 0 turns averaging off."""
    target_length: VideoLength = "clips"
    """What training normalises moments by (`tprl_batches.StateBatches`); evaluation always uses the
    duration."""
    evaluate_every: int = 5
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""
    selection: SelectionScore = "official"
    """What chooses among evaluations (`tprl_validation.Validator`)."""
    start_is_candidate: bool = False
    """Whether the head as it came can be chosen, so that training never loses on validation data."""
