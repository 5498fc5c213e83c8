"""Video moment retrieval as Gymnasium environments.

Everything that most users need can be imported from here; the parts are loaded when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vmr_env.envs.registration import register_all, register_dataset
from vmr_env.plugins import load_plugins

if TYPE_CHECKING:
    from vmr_env.caches.from_predictions import build_prediction_cache
    from vmr_env.caches.reader import DecoderStateCache
    from vmr_env.data.profiles import DatasetProfile, VideoStatistics, get_profile
    from vmr_env.envs.actions import register_action_mode
    from vmr_env.envs.curriculum import register_curriculum
    from vmr_env.envs.env import VMREnv
    from vmr_env.envs.observations import register_component
    from vmr_env.envs.rewards import register_reward
    from vmr_env.envs.sources import open_cache
    from vmr_env.envs.vector_env import VMRVectorEnv
    from vmr_env.errors import DataError
    from vmr_env.metrics.moments import evaluate
    from vmr_env.metrics.registry import register_metric
    from vmr_env.metrics.text_rewards import rewards_for_text

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "DatasetProfile",
    "DecoderStateCache",
    "VMREnv",
    "VMRVectorEnv",
    "VideoStatistics",
    "build_prediction_cache",
    "evaluate",
    "get_profile",
    "open_cache",
    "refine",
    "register_action_mode",
    "register_backbone",
    "register_component",
    "register_curriculum",
    "register_dataset",
    "register_metric",
    "register_reward",
    "rewards_for_text",
]

_MODULES = {
    "DataError": "vmr_env.errors",
    "DatasetProfile": "vmr_env.data.profiles",
    "DecoderStateCache": "vmr_env.caches.reader",
    "VMREnv": "vmr_env.envs.env",
    "VMRVectorEnv": "vmr_env.envs.vector_env",
    "VideoStatistics": "vmr_env.data.profiles",
    "build_prediction_cache": "vmr_env.caches.from_predictions",
    "evaluate": "vmr_env.metrics.moments",
    "get_profile": "vmr_env.data.profiles",
    "open_cache": "vmr_env.envs.sources",
    "register_action_mode": "vmr_env.envs.actions",
    "register_backbone": "vmr_env.backbones.base",
    "register_component": "vmr_env.envs.observations",
    "register_curriculum": "vmr_env.envs.curriculum",
    "register_reward": "vmr_env.envs.rewards",
    "refine": "vmr_env.agents.refinement",
    "register_metric": "vmr_env.metrics.registry",
    "rewards_for_text": "vmr_env.metrics.text_rewards",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_all()
load_plugins()
