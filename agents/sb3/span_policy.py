"""The policy over all spans for Stable-Baselines3, over `VMR-<data set>-Spans-v0` with `observation="dict"`.

    env = gymnasium.make("vmr_env:VMR-QVHighlights-Spans-v0", observation="dict", ...)
    model = PPO(SpanPolicy, env, gamma=1.0)
    model.policy.network.load_state_dict(network.state_dict())  # to begin at one trained by imitation

It begins as the detector's vote.
"""

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.optim import AdamW

from vmr_env.agents.dense.network import DenseNetwork
from vmr_env.agents.dense.spans import Windows, all_spans, span_numbers
from vmr_env.agents.dense.timeline import TimelineBatch
from vmr_env.agents.networks import PolicyValue
from vmr_env.agents.sb3.policy import NetworkPolicy, checked_spaces, possible_logits


class SpanPolicy(NetworkPolicy):
    """`vmr_env.agents.dense.network.DenseNetwork` for PPO and A2C of SB3; arguments as SB3 gives them, and:

    Args:
        channels: width of the network.
        dropout: probability. PPO compares probabilities before and after a step, so by default there is none.

    Raises:
        ValueError: observations are not such a `Dict`, or actions are not discrete.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        channels: int = 64,
        dropout: float = 0.0,
        **given: Any,
    ) -> None:
        components, discrete = checked_spaces(observation_space, action_space)
        missing = {"timeline", "query", "windows", "action_mask"} - set(components.spaces)
        if missing:
            raise ValueError(f"observations lack {', '.join(sorted(missing))}; expected those of VMRSpanEnv")
        self.channels, self.dropout = channels, dropout
        ours: dict[str, Any] = {"optimizer_class": AdamW, "optimizer_kwargs": {"weight_decay": 0.05}}
        super().__init__(components, discrete, lr_schedule, **{**ours, **given})

    def _build(self, lr_schedule: Schedule) -> None:
        assert isinstance(self.observation_space, spaces.Dict)
        timeline, query = (self.observation_space[name].shape for name in ("timeline", "query"))
        assert timeline is not None
        assert query is not None
        self.network = DenseNetwork(query[0], timeline[0], self.channels, self.dropout)
        self.value = nn.Linear(4, 1)
        self._optimise(lr_schedule)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        ours = {"channels": self.channels, "dropout": self.dropout}
        return super()._get_constructor_parameters() | ours

    def _say(self, obs: PyTorchObs) -> PolicyValue:
        assert isinstance(obs, dict)
        batch = timeline_batch(obs)
        logits = self.network(batch).logits
        surest = logits.detach().softmax(dim=1).amax(dim=1, keepdim=True)
        best = batch.numbers[..., :3].masked_fill(~batch.span_mask[..., None], 0).amax(dim=1)
        values = self.value(torch.cat([surest, best], dim=1)).squeeze(1)
        return PolicyValue(possible_logits(logits), values)


def timeline_batch(observations: dict[str, Tensor]) -> TimelineBatch:
    """What `VMRSpanEnv` shows of B queries, as the network takes it.

    Args:
        observations: `timeline` (B, L, 2 D + 10), `query` (B, D), `windows` (B, K, 4), `action_mask` (B, S).
    """
    timeline, query = observations["timeline"].float(), observations["query"].float()
    width, length = query.shape[1], timeline.shape[1]
    spans, mask = all_spans(length).to(query.device), observations["action_mask"] > 0
    single = spans[:, 1] - spans[:, 0] == 1  # a clip is in the video where it is a possible span
    return TimelineBatch(
        timeline[..., :width],
        query,
        timeline[..., 2 * width :],
        span_numbers(spans, Windows.of(observations["windows"].float())),
        timeline[..., :0],  # no decoder states
        mask[:, single],
        mask,
    )
