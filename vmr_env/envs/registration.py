"""Environment ids, and data sets from outside of the package."""

from typing import Any

import gymnasium.vector
from gymnasium.envs.registration import register, registry

from vmr_env.data.profiles import PROFILES, DatasetProfile, add_profile

_VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "-Continuous": {"actions": "continuous"},
    "-MultiDiscrete": {"actions": "multidiscrete"},
    "-Stage1": {"stage": 1},
    "-Stage2": {"stage": 2},
    "-Stage3": {"stage": 3},
}

_OTHERS = {
    "-Spans": "vmr_env.envs.span_env:VMRSpanEnv",
    "-Head": "vmr_env.envs.head_env:VMRHeadEnv",
}

# Before 1.1 Gymnasium knows no autoreset modes; there `make_vec` makes N single environments instead.
_VECTOR_ENV = "vmr_env.envs.vector_env:VMRVectorEnv" if hasattr(gymnasium.vector, "AutoresetMode") else None


def register_all() -> None:
    """Register `VMR-<data set>-v0`, its variants, `-Spans-v0` and `-Head-v0`; ids that are there stay."""
    for profile in PROFILES.values():
        _register_ids(profile)


def register_dataset(profile: DatasetProfile) -> None:
    """Add a data set: its caches can be written, and `VMR-<env_name>-v0` and its variants exist.

    Registering the same profile again changes nothing. Worker processes register it too where the call
    stands in a module that they import, or in a module that the entry-point group `vmr_env.plugins` names.

    Raises:
        ValueError: another profile has its `name` or `env_name`.
    """
    add_profile(profile)
    _register_ids(profile)


def _register_ids(profile: DatasetProfile) -> None:
    for suffix, kwargs in _VARIANTS.items():
        name = f"VMR-{profile.env_name}{suffix}-v0"
        if name not in registry:
            register(
                id=name,
                entry_point="vmr_env.envs.env:VMREnv",
                vector_entry_point=_VECTOR_ENV,
                kwargs={"dataset": profile.name, **kwargs},
            )
    for suffix, entry_point in _OTHERS.items():
        name = f"VMR-{profile.env_name}{suffix}-v0"
        if name not in registry:
            register(id=name, entry_point=entry_point, kwargs={"dataset": profile.name})
