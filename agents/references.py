"""Reference baselines: the detector itself, chance, the best constant window, and the ceiling."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_env.agents.base import Agent
from vmr_env.agents.evaluation import Refined
from vmr_env.arrays import Array, Bools, Floats
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import Annotation
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.metrics import spans
from vmr_env.metrics.baselines import fit_constant_window


class _Reference(Agent):
    """An agent that does not learn and knows what the discrete actions are.

    Raises:
        ValueError: the actions are not discrete.
    """

    def __init__(self, env: VMRVectorEnv, seed: int) -> None:
        if env.action_mode.moves.form != "listed":
            name = type(self).__name__
            raise ValueError(f"{name} got actions {env.single_action_space}, expected actions='discrete'")
        super().__init__(env, seed)


class StopAtOnce(_Reference):
    """Leaves the detector's first proposal as it is: the detector itself."""

    def act(self, observations: Floats, masks: Bools) -> NDArray[np.intp]:
        """Stop, the last action, everywhere: (N,)."""
        return np.full(len(masks), masks.shape[1] - 1)


class RandomAgent(_Reference):
    """Takes each possible action with equal probability."""

    def __init__(self, env: VMRVectorEnv, seed: int) -> None:
        super().__init__(env, seed)
        self._generator = np.random.default_rng(seed)

    def act(self, observations: Floats, masks: Bools) -> NDArray[np.intp]:
        """One possible action for each row: (N,)."""
        # The highest of independent draws is equally often each of them.
        actions: NDArray[np.intp] = np.where(masks, self._generator.random(masks.shape), -1.0).argmax(axis=1)
        return actions

    def state_dict(self) -> dict[str, Any]:
        """Where the random numbers are."""
        return {"generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._generator.bit_generator.state = state["generator"]


class GreedyOracle(_Reference):
    """Knows the ground truth: takes the action of highest gain, and stops where none gains.

    A ceiling for agents that take the best next step; looking further ahead can gain more. It must be told in
    which environment it acts: `refine(oracle.act, …, enter=oracle.enter)`; until then that is its own.
    """

    def enter(self, env: VMRVectorEnv) -> None:
        """Act in this environment from now on."""
        self.env = env

    def act(self, observations: Floats, masks: Bools) -> NDArray[np.intp]:
        """The actions of highest gain (N,); of equal ones the last, so stopping before wandering about.

        Raises:
            ValueError: the masks are those of another environment.
        """
        episodes = self.env.episodes
        if not np.array_equal(masks, episodes.mask):
            raise ValueError(
                "masks are not those of the environment that GreedyOracle looks into, "
                "expected enter(env) before acting in another one"
            )
        gains = np.where(masks, episodes.gains(), -np.inf)
        actions: NDArray[np.intp] = gains.shape[1] - 1 - gains[:, ::-1].argmax(axis=1)
        return actions


def constant_window(
    train: DecoderStateCache,
    train_samples: Array,
    test: DecoderStateCache,
    test_samples: Array,
    objective: str,
) -> Refined:
    """The same part of each video as the moment of each test sample, fitted on training samples' moments.

    Its window replaces the first proposal.

    Args:
        train: where the training samples are.
        train_samples: (n,), rows of that cache.
        test: where the test samples are; may be the same cache.
        test_samples: (K,), rows of that cache.
        objective: what the window is best at, key of `vmr_env.metrics.baselines.OBJECTIVES`.

    Raises:
        DataError: the objective is unknown.
    """
    window = fit_constant_window([_annotation(train, row) for row in train_samples], objective)
    rows = np.asarray(test_samples, np.intp)
    samples = [test.sample(int(row)) for row in rows]
    seconds = np.array([sample.duration for sample in samples])[:, None]
    windows, first = np.array(window) * seconds, test.spans[rows, 0] * seconds

    def tiou(answers: NDArray[np.float64]) -> NDArray[np.float64]:
        each = [spans.tiou(one, sample.moments).max() for one, sample in zip(answers, samples, strict=True)]
        return np.array(each)

    return Refined(rows, windows, np.zeros(len(rows), np.intp), tiou(first), tiou(windows))


def _annotation(cache: DecoderStateCache, row: int) -> Annotation:
    sample = cache.sample(int(row))
    return Annotation(sample.qid, sample.vid, sample.query, sample.duration, sample.moments)
