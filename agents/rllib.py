"""A policy that RLlib trained, as an agent: judged by our metrics, in the same table as others.

    vmr-env tprl --agents expected_gain --agent vmr_env.agents.rllib:RLlibPolicy \\
        --set 'vmr_env.agents.rllib:RLlibPolicy.path="runs/rllib/policy"'

The folder is what `algorithm.get_module().save_to_path(folder)` writes. The policy answers as it is: nothing
is learnt here, so train it on other videos than those that it is judged on. Like every agent it leaves the
detector's moments where it does not improve those of the training videos. Needs the extra `[rllib]`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vmr_env.agents.base import Agent
from vmr_env.agents.devices import device_of, on_device
from vmr_env.arrays import Bools, Floats
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.errors import MissingExtra


@dataclass(frozen=True)
class RLlibPolicyConfig:
    """Settings of `RLlibPolicy`."""

    path: str = ""
    """Folder of the exported module."""


class RLlibPolicy(Agent):
    """The most probable of the possible actions, by an exported RLModule with discrete actions.

    Args:
        env: where it acts.
        seed: nothing depends on it.
        config: see `RLlibPolicyConfig`.

    Raises:
        MissingExtra: RLlib is not installed.
        ValueError: the folder has no module, or one of other observations or actions.
    """

    config_class = RLlibPolicyConfig

    def __init__(self, env: VMRVectorEnv, seed: int, config: RLlibPolicyConfig | None = None) -> None:
        super().__init__(env, seed)
        try:
            from ray.rllib.core.rl_module.rl_module import RLModule
        except ImportError as error:
            raise MissingExtra(
                f"{error}; {type(self).__name__} needs `pip install vmr-env[rllib]`"
            ) from error
        self.config = config or RLlibPolicyConfig()
        path = Path(self.config.path)
        if not (path / "module_state.pkl").exists():
            raise ValueError(f"path is {self.config.path!r}, expected a folder that save_to_path wrote")
        self._module: Any = RLModule.from_checkpoint(path.absolute())
        found = _sizes(self._module.observation_space, self._module.action_space)
        expected = _sizes(env.single_observation_space, env.single_action_space)
        if found != expected:
            message = (
                f"shape of observations and number of actions are {found} in {path}, expected {expected}"
            )
            raise ValueError(f"{message}: train in environments with the same options, such as proposals")

    def to(self, device: str) -> None:
        """See `Agent.to`."""
        self._module.to(device)

    @torch.no_grad()
    def act(self, observations: Floats, masks: Bools) -> NDArray[Any]:
        """See `Agent.act`."""
        seen = on_device(observations, device_of(self._module))
        logits = self._module.forward_inference({"obs": seen})["action_dist_inputs"].cpu().numpy()
        best: NDArray[Any] = np.where(masks, logits, -np.inf).argmax(axis=1)
        return best


def _sizes(observations: Any, actions: Any) -> tuple[Any, Any]:
    """Shape of observations, and number of actions; None where they are not discrete."""
    return observations.shape, getattr(actions, "n", None)
