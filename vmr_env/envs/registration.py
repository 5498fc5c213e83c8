"""Environment ids."""

from typing import Any

from gymnasium.envs.registration import register, registry

from vmr_env.data.profiles import PROFILES

_VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "-Continuous": {"actions": "continuous"},
    "-MultiDiscrete": {"actions": "multidiscrete"},
    "-Stage1": {"stage": 1},
    "-Stage2": {"stage": 2},
    "-Stage3": {"stage": 3},
}


def register_all() -> None:
    """Register `VMR-<data set>-v0` and its variants; ids that are there already stay as they are."""
    for profile in PROFILES.values():
        for suffix, kwargs in _VARIANTS.items():
            name = f"VMR-{profile.env_name}{suffix}-v0"
            if name not in registry:
                register(
                    id=name,
                    entry_point="vmr_env.envs.env:VMREnv",
                    vector_entry_point="vmr_env.envs.vector_env:VMRVectorEnv",
                    kwargs={"dataset": profile.name, **kwargs},
                )
