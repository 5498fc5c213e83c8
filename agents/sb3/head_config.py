"""Settings of Stable-Baselines3's PPO over a detection head, in a module that does not load it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vmr_env.agents.tprl.data import VideoLength
from vmr_env.agents.tprl.head_config import HeadConfig
from vmr_env.agents.tprl.head_policy import LENGTHS, check_lengths
from vmr_env.agents.tprl.validation import SelectionScore
from vmr_env.settings import Range


@dataclass(frozen=True, slots=True, kw_only=True)
class SB3HeadConfig(HeadConfig):
    """Settings of `SB3HeadTrainer`; those of `head_ppo`, as far as SB3 has them."""

    ranges: ClassVar[Mapping[str, Range]] = {"epochs": LENGTHS}

    curriculum: str = "tprl"
    """The stages, by a name of `vmr_env.envs.curriculum.CURRICULA` or as "module:name"."""
    epochs: tuple[int, ...] = (2, 4, 34)
    """Epochs of each stage, each of as many episodes as there are samples; 0 leaves a stage out."""
    passes: int = 4
    """Gradient steps on the episodes of a rollout; `batch_size` is their number."""
    ratio_clip: float = 0.2
    """How far the ratio of probabilities may leave 1."""
    std: float = 0.1
    """Deviation of each boundary at the start, in lengths of the proposal; it is learnt."""
    batch_size: int = 128
    lr: float = 2e-4
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.99
    target_length: VideoLength = "duration"
    evaluate_every: int = 1
    selection: SelectionScore = "quality"
    start_is_candidate: bool = True

    def __post_init__(self) -> None:
        HeadConfig.__post_init__(self)
        check_lengths(self.epochs, self.curriculum)
        if self.target_length != "duration":
            raise ValueError(
                f"target_length is {self.target_length!r}, expected 'duration', as rewards have it"
            )
