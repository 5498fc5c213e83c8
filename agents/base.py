"""The agent interface: what the trainer and the benchmarks ask of an agent.

An own algorithm subclasses `Agent`, or has the same attributes and methods; `benchmarks/run_tprl.py` takes it
by name:

    python benchmarks/run_tprl.py --agent my_package.my_module:MyAgent
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from numpy.typing import NDArray

from vmr_env.arrays import Bools, Floats
from vmr_env.envs.curriculum import Progression
from vmr_env.envs.vector_env import VMRVectorEnv

Metrics = dict[str, float]


def curriculum_state(env: Any) -> dict[str, Any] | None:
    """State of the curriculum in an environment's wrapper; None without a curriculum."""
    progression: Progression | None = getattr(env, "progression", None)
    return None if progression is None else progression.state_dict()


def resume_curriculum(env: Any, state: Mapping[str, Any] | None) -> None:
    """Let an environment's curriculum go on, from the next reset, where `curriculum_state` was asked.

    Raises:
        ValueError: the environment has a curriculum and the state is of one without, or the other way round.
    """
    progression: Progression | None = getattr(env, "progression", None)
    if (progression is None) is not (state is None):
        has, expected = ("no", "one") if progression is None else ("a", "none")
        raise ValueError(f"the environment has {has} curriculum, expected {expected} as when it was saved")
    if progression is not None and state is not None:
        progression.load_state_dict(state)


class Agent(ABC):
    """Base of all agents.

    Attributes:
        rounds: how many times the trainer calls `update`; 0 for an agent that does not learn.
        num_envs: episodes that run side by side in training.
        env_options: arguments of `VMRVectorEnv` that this agent wants, in training and evaluation alike.
        config_class: dataclass of the settings that it takes as its third argument, if any, and keeps as
            `config`; for `run_tprl.py --set` and for ensembles that are opened again.

    Args:
        env: where it learns; its samples are training samples only, and finished episodes restart in the same
        step.
        seed: fixes everything random in the agent.
    """

    rounds: int = 0
    num_envs: ClassVar[int] = 256
    env_options: ClassVar[Mapping[str, Any]] = {}
    config_class: ClassVar[type | None] = None

    def __init__(self, env: VMRVectorEnv, seed: int) -> None:
        self.env = env
        self.seed = seed

    @abstractmethod
    def act(self, observations: Floats, masks: Bools) -> NDArray[Any]:
        """The best actions, without exploration: (N, width) observations, (N, A) possible actions ->
        (N, …)."""

    def to(self, device: str) -> None:  # noqa: B027 - most that are not ours have nothing to move
        """Move networks to a torch device, where they learn and act from now on; here, of an agent without
        any, nothing. States go from one device to another."""

    def update(self) -> Metrics:
        """One round of learning; returns figures to log, named `charts/…`, `losses/…`, or `health/…`."""
        raise NotImplementedError(f"{type(self).__name__} has rounds > 0 but no update")

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors, arrays, numbers, strings, and dicts and
        lists of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; an agent without a state takes an empty one."""
        if state:
            raise NotImplementedError(f"{type(self).__name__} has a state but no load_state_dict")


_PROTOCOL = ("rounds", "update", "act", "state_dict", "load_state_dict")
"""What an agent's class has."""


def agent_class(name: str) -> type[Agent]:
    """The class of an agent, imported by its name.

    Args:
        name: `module:Class`.

    Raises:
        ValueError: there is no such module or class, or it is no agent.
    """
    module, _, qualified = name.partition(":")
    try:
        made: Any = importlib.import_module(module)
        for part in qualified.split("."):
            made = getattr(made, part)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name!r} cannot be imported ({error})") from error
    lacking = [part for part in _PROTOCOL if not hasattr(made, part)]
    if not isinstance(made, type) or lacking:
        raise ValueError(f"{name!r} is no agent (it lacks {', '.join(lacking) or 'a class'})")
    return made
