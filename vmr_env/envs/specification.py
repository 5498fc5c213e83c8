"""What Gymnasium writes down of an environment: in values that JSON holds, with the length of an episode."""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import Annotation, annotation_row
from vmr_env.data.predictions import Prediction, submission_row


class Specified(ABC):
    """Base of environments whose `spec`, which Gymnasium sets, can be written with `spec.to_json()`.

    `spec.max_episode_steps` is the horizon, where `make` was given no lower limit.
    """

    _spec: EnvSpec | None = None

    @property
    @abstractmethod
    def horizon(self) -> int:
        """Steps after which an episode ends at the latest."""

    @property
    def spec(self) -> EnvSpec | None:
        """How to make the environment again."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None:
            spec = copy.copy(spec)
            spec.kwargs = json_value(spec.kwargs)
            if spec.max_episode_steps is None:
                spec.max_episode_steps = self.horizon
        self._spec = spec


def json_value(value: Any) -> Any:
    """An argument of an environment as JSON has it: folders as text, rows as lists or objects, a cache as its
    folder. What reads features is left as it is, and JSON refuses it."""
    if isinstance(value, Annotation):
        return annotation_row(value)
    if isinstance(value, Prediction):
        return submission_row(value)
    if isinstance(value, DecoderStateCache):
        return str(value.path)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {name: json_value(part) for name, part in value.items()}
    if isinstance(value, list | tuple | range):
        return [json_value(part) for part in value]
    return value
