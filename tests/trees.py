"""A tree of states whose optimum is known, for the tests of agents.

Two roots, told apart by the observation alone. In each, one action gains at once and leads to little, and
another loses first and leads to the most: what is best depends on the state and takes two steps. Dynamic
programming (`optimum`) and looking one step ahead (`greedy`) solve it, and disagree.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from vmr_env.envs.gymnasium_vector import AutoresetMode

ROOT_A, ROOT_B, VALLEY_A, VALLEY_B, HILL = STATES = range(5)
ACTIONS, STOP = 4, 3


class Edge(NamedTuple):
    """What an action leads to."""

    reward: float
    state: int | None = None
    """None where the episode ends."""


TREE: dict[int, dict[int, Edge]] = {
    ROOT_A: {0: Edge(0.1, HILL), 1: Edge(-0.1, VALLEY_A), STOP: Edge(0.0)},
    ROOT_B: {1: Edge(0.1, HILL), 2: Edge(-0.1, VALLEY_B), STOP: Edge(0.0)},
    VALLEY_A: {0: Edge(-0.05), 1: Edge(-0.05), 2: Edge(1.0), STOP: Edge(0.0)},
    VALLEY_B: {0: Edge(1.0), 1: Edge(-0.05), 2: Edge(-0.05), STOP: Edge(0.0)},
    HILL: {0: Edge(-0.1), 1: Edge(0.1), STOP: Edge(0.0)},
}
MASKS = np.array([[action in TREE[state] for action in range(ACTIONS)] for state in STATES])


def value(state: int | None) -> float:
    """The highest sum of rewards from a state on."""
    if state is None:
        return 0.0
    return max(edge.reward + value(edge.state) for edge in TREE[state].values())


def optimum(state: int) -> int:
    """The first action on the way to it."""
    return max(TREE[state], key=lambda action: TREE[state][action].reward + value(TREE[state][action].state))


def greedy(state: int) -> int:
    """The action of the highest reward at once."""
    return max(TREE[state], key=lambda action: TREE[state][action].reward)


def observed(states: NDArray[np.intp]) -> NDArray[np.float32]:
    """Observations (N, 6): which state it is, and a column for `Tree.tickets`."""
    return np.eye(len(STATES) + 1, dtype=np.float32)[states]


class Tree:
    """N episodes in the tree, with as much of `VMRVectorEnv` as agents ask for; episodes restart at once.

    Args:
        n: N.
        roots: states in which episodes begin.
        limit: steps after which an episode is `truncated`, ended or not, as by Gymnasium's `TimeLimit`; None
            for never.
        tickets: whether observations have a number of their own in the last column.
    """

    autoreset_mode = AutoresetMode.SAME_STEP
    render_mode = None
    single_observation_space = gymnasium.spaces.Box(-1, 1, (len(STATES) + 1,))
    single_action_space = gymnasium.spaces.Discrete(ACTIONS)
    observer = SimpleNamespace(width=len(STATES) + 1)
    action_mode = SimpleNamespace(size=ACTIONS)

    def __init__(
        self,
        n: int,
        roots: tuple[int, ...] = (ROOT_A, ROOT_B),
        *,
        limit: int | None = None,
        tickets: bool = False,
    ) -> None:
        self.num_envs, self._roots, self._limit, self._tickets = n, roots, limit, tickets
        self.states = np.zeros(n, np.intp)
        self.issued = 0
        self._steps = np.zeros(n, np.intp)
        self._generator = np.random.default_rng(0)
        self.episodes = self
        self.sources = np.zeros(n, np.intp)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Possible actions (N, 4)."""
        return MASKS[self.states]

    def gains(self) -> NDArray[np.float32]:
        """The reward of every action (N, 4), 0 for impossible ones."""
        rows = [[TREE[s].get(a, Edge(0.0)).reward for a in range(ACTIONS)] for s in self.states.tolist()]
        return np.array(rows, np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin episodes everywhere; `options["sample"]` may name the roots."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        self._begin(np.ones(self.num_envs, bool))
        if options:
            self.states = np.asarray(options["sample"]).copy()
        return self._observed(), self._infos()

    def step(self, actions: NDArray[Any]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take an action everywhere; one that is impossible is as good as stopping."""
        edges = [TREE[s].get(int(a), TREE[s][STOP]) for s, a in zip(self.states, actions, strict=True)]
        self._steps += 1
        terminated = np.array([edge.state is None for edge in edges])
        truncated = self._steps == (self._limit or np.inf)
        here = zip(self.states, edges, strict=True)
        self.states = np.array([state if edge.state is None else edge.state for state, edge in here])
        infos = self._infos()
        ended = terminated | truncated
        if ended.any():
            last = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(ended):
                last[i] = observed(self.states[i])
            told = infos
            self._begin(ended)
            infos = {**self._infos(), "final_obs": last, "final_info": told}
        rewards = np.array([edge.reward for edge in edges])
        return self._observed(), rewards, terminated, truncated, infos

    def close(self) -> None:
        """Nothing is open."""

    def _begin(self, rows: NDArray[np.bool_]) -> None:
        drawn = self._generator.choice(self._roots, self.num_envs)
        self.states = np.where(rows, drawn, self.states)
        self._steps[rows] = 0

    def _observed(self) -> NDArray[np.float32]:
        observations = observed(self.states)
        if self._tickets:
            observations[:, -1] = self.issued + np.arange(self.num_envs)
            self.issued += self.num_envs
        return observations

    def _infos(self) -> dict[str, Any]:
        """What is told of every episode; of videos there are none."""
        none = np.zeros(self.num_envs)
        names = dict.fromkeys(("qid", "vid", "tiou", "span", "proposal"), none)
        return {"sample": self.states.copy(), "action_mask": self.mask.copy(), **names}
