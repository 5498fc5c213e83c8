"""N running episodes: their state, and the calls of `vmr_env.envs.kernel` that lead them on."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Array, Bools, Floats, Ints
from vmr_env.envs import kernel
from vmr_env.envs.compilation import direct, first_call
from vmr_env.envs.config import Task
from vmr_env.envs.timelines import find_timelines


class Outcome(NamedTuple):
    """What orders to N episodes gave."""

    observations: Floats
    """(N, width), flat."""
    rewards: NDArray[np.float64]
    """(N,), 0 but for steps."""
    ended: Bools
    """(N,), which a step ended."""


class Told(NamedTuple):
    """What infos tell of N episodes."""

    samples: Ints
    """(N,), rows of the cache."""
    sources: Ints
    """(N,), numbers of the proposals that the spans came from."""
    tiou: NDArray[np.float64]
    """(N,), highest tIoU of the current spans with a moment."""
    seconds: NDArray[np.float64]
    """(N, 2), the current spans."""


class Episodes:
    """N episodes of one task.

    Args:
        task: what they have in common.
        n: N.
        threads: how many threads lead them on.

    Attributes:
        task: what they have in common.
        state: (N,) `vmr_env.envs.kernel.EPISODE`.
        mask: (N, A) bool, which actions are possible.
        streams: (N,) uint64, state of each episode's random numbers, to be set before the first draw.
        stage: number of the curriculum's stage, of episodes that begin.
        rules: what holds in it.
    """

    stage: int
    rules: kernel.Rules

    def __init__(self, task: Task, n: int, threads: int = 1) -> None:
        self.task = task
        self.state = np.zeros(n, kernel.EPISODE)
        self.mask = np.zeros((n, task.mode.size), bool)
        self.streams = np.zeros(n, np.uint64)
        self._numbers, self._shares = np.zeros((n, 2), np.int64), np.zeros((n, 2), np.float32)
        self._none = np.empty((0, task.observer.width), np.float32)
        k = task.mode.probes
        self._candidates = [kernel.candidates_of_a_block(k) for _ in range(min(threads, n))]
        self._potentials: Array = np.zeros(n)
        self._older: list[tuple[kernel.Rules, Bools]] = []
        self._set_rules(len(task.curriculum) if task.config.stage is None else task.config.stage)
        self._groups = task.groups(n)
        memories = [group.memory for group in self._groups if group.memory]
        compiled = find_timelines, kernel.advance, kernel.all_below, kernel.draw, kernel.tell
        others = *(memory.computed.find for memory in memories), *(group.write for group in self._groups)
        with first_call([*compiled, *others]):
            self._find_memory()
            self.advance(np.full(n, kernel.BEGIN, np.uint8), self._none)
            self._write_groups(self.rules, np.zeros(n, np.uint8), self._none, 0, 0)
            self.draw(np.zeros(n, np.uint8))
            kernel.all_below(0, self._numbers)
            self.told()

    def _find_memory(self) -> None:
        """Find, or make, the memory of what is computed of samples."""
        self._timelines = self.task.timelines(len(self))
        memories = self._timelines, *(group.memory for group in self._groups if group.memory)
        self._memories = [memory for memory in memories if not memory.complete]

    def __getstate__(self) -> dict[str, Any]:
        """All but what is computed of the cache, as a pickle holds it."""
        computed = "_groups", "_timelines", "_memories"
        return {name: value for name, value in vars(self).items() if name not in computed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._groups = self.task.groups(len(self))
        self._find_memory()
        for memory in self._memories:
            memory.hold(np.arange(len(self)), self.samples)

    def __len__(self) -> int:
        return len(self.state)

    def set_stage(self, number: int) -> None:
        """Change the stage of episodes that begin from now on.

        Running ones end under the rules that they began under, so that their rewards add up to the gain in
        one potential.

        Raises:
            ValueError: there is no such stage.
        """
        before = self.rules
        self._set_rules(number)
        running = ~self._under_older()
        if running.any():
            self._older.append((before, running))

    def _under_older(self) -> Bools:
        """Which episodes (N,) began in a stage before the current one."""
        older = np.zeros(len(self), bool)
        for _, rows in self._older:
            older |= rows
        return older

    def _set_rules(self, number: int) -> None:
        self.rules, self._reward = self.task.rules(number), self.task.reward(number)
        self.stage = number

    def draw(self, orders: NDArray[np.uint8]) -> None:
        """Choose sample and proposal of the episodes that are ordered to BEGIN, each by its own stream."""
        draw = direct(kernel.draw)
        draw(self.task.tables.samples, self.task.samples, self.rules, self.state, orders, self.streams)

    def choose(self, rows: Ints, options: dict[str, Any]) -> None:
        """Let a reset's options choose sample and proposal of the episodes `rows` (K,), which were drawn.

        Raises:
            ValueError: an option is not as expected.
            DataError: the cache has no such query.
        """
        drawn = self.samples[rows], self.sources[rows]
        self.state["sample"][rows], self.state["source"][rows] = self.task.chosen(
            rows, *drawn, options, len(self)
        )

    def checked(self, actions: Array) -> Array:
        """Actions (N,) or (N, 2), once they are known to be in the space, as `act` takes them.

        Raises:
            ValueError: there are more or fewer than N, one has the wrong type or shape, or is outside.
        """
        mode = self.task.mode
        numbers = mode.as_numbers(actions)
        if len(numbers) != len(self.state):
            raise ValueError(f"there are {len(numbers)} actions, expected {len(self.state)}")
        if mode.moves.form != "continuous" and not direct(kernel.all_below)(mode.limit, numbers):
            raise mode.outside(actions)
        return numbers

    def act(self, orders: NDArray[np.uint8], numbers: Array, out: Floats | None = None) -> Outcome:
        """Carry out orders (N,) with the checked actions of steps."""
        if self.task.mode.moves.form == "continuous":
            self._shares = numbers
        else:
            self._numbers = numbers
        return self.advance(orders, out)

    def advance(self, orders: NDArray[np.uint8], out: Floats | None = None) -> Outcome:
        """Carry out orders (N,) other than steps.

        Args:
            orders: see `vmr_env.envs.kernel`.
            out: (N, width) float32, where observations are written; (0, width) for nowhere; None for a fresh
                array.
        """
        n, parts = len(self.state), len(self._candidates)
        observations = np.empty((n, self.task.observer.width), np.float32) if out is None else out
        outcome = Outcome(observations, np.zeros(n), np.zeros(n, bool))
        if self._memories:
            begun = np.flatnonzero(orders == kernel.BEGIN)
            for memory in self._memories:
                memory.hold(begun, self.samples[begun])
        for rules, theirs in self._by_rules(orders):
            others = [
                _pool(parts - 1, os.getpid()).submit(self._lead_on, rules, theirs, outcome, part)
                for part in range(1, parts)
            ]
            self._lead_on(rules, theirs, outcome, 0)
            for other in others:
                other.result()
        if self._reward.potential is not None:
            before, self._potentials = self._potentials, np.asarray(self._reward.potential(self), np.float64)
            steps = orders == kernel.STEP
            outcome.rewards[steps] = (self._potentials - before)[steps]
        if self._reward.term is not None:
            steps = orders == kernel.STEP
            outcome.rewards[steps] += np.asarray(self._reward.term(self, outcome.ended))[steps]
        if len(observations):
            self.task.observer.look_up(self, observations)
        return outcome

    def _by_rules(self, orders: NDArray[np.uint8]) -> list[tuple[kernel.Rules, NDArray[np.uint8]]]:
        """The orders (N,) to the episodes under each rules, SKIP to all others."""
        if not self._older:
            return [(self.rules, orders)]
        run_on = [(rules, rows & (orders != kernel.BEGIN)) for rules, rows in self._older]
        self._older = [(rules, rows) for rules, rows in run_on if rows.any()]
        each = [(rules, np.where(rows, orders, kernel.SKIP).astype(np.uint8)) for rules, rows in self._older]
        rest = np.where(self._under_older(), kernel.SKIP, orders).astype(np.uint8)
        return [*each, (self.rules, rest)]

    def _lead_on(self, rules: kernel.Rules, orders: NDArray[np.uint8], outcome: Outcome, part: int) -> None:
        """Carry out orders (N,) under one stage's rules, those to the episodes of one thread."""
        n, parts = len(self.state), len(self._candidates)
        first, last = part * n // parts, (part + 1) * n // parts
        observations = outcome.observations
        advance = direct(kernel.advance)
        advance(
            self.task.tables,
            rules,
            self._timelines.rows,
            self.state,
            self._candidates[part],
            self.mask,
            orders,
            self._numbers,
            self._shares,
            observations,
            outcome.rewards,
            outcome.ended,
            first,
            last,
        )
        if len(observations) and self._groups:
            self._write_groups(rules, orders, observations, first, last)

    def _write_groups(
        self, rules: kernel.Rules, orders: NDArray[np.uint8], observations: Floats, first: int, last: int
    ) -> None:
        """Write the components that the kernel does not, see `vmr_env.envs.components`."""
        for write, tables, _ in self._groups:
            direct(write)(
                tables, self.task.tables, rules, self.state, self.mask, orders, observations, first, last
            )

    def observe(self) -> Floats:
        """Flat observations of all episodes as they are now: (N, width), fresh."""
        return self.advance(np.full(len(self), kernel.LOOK, np.uint8)).observations

    @property
    def samples(self) -> Ints:
        """(N,), rows of the cache."""
        return self.state["sample"]

    @property
    def sources(self) -> Ints:
        """(N,), numbers of the proposals that the spans came from."""
        return self.state["source"]

    @property
    def steps(self) -> Ints:
        """(N,), steps taken."""
        return self.state["step"]

    @property
    def tiou(self) -> Floats:
        """(N,), highest tIoU of the current spans with a moment."""
        return self.state["tiou"]

    @property
    def spans(self) -> Floats:
        """(N, 2), the current spans."""
        return np.stack([self.state["start"], self.state["end"]], axis=1)

    def told(self) -> Told:
        """What infos tell of every episode, in fresh arrays."""
        n = len(self.state)
        told = Told(np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n), np.empty((n, 2)))
        direct(kernel.tell)(self.task.tables, self.state, *told)
        return told

    def seconds(self) -> NDArray[np.float64]:
        """(N, 2), the current spans in seconds."""
        return self.told().seconds

    @property
    def moments(self) -> Floats:
        """(N, M, 2), ground truth; of a sample with fewer moments than M the last is repeated."""
        offsets = self.task.cache.moments.offsets
        first, last = offsets[self.samples, None], offsets[self.samples + 1, None]
        at = np.minimum(first + np.arange((last - first).max()), last - 1)
        return self.task.cache.moments.values[at]

    def gains(self) -> Floats:
        """Change of tIoU by every action: (N, A), 0 for impossible ones. For training only.

        Raises:
            TypeError: the actions cannot be listed.
        """
        if self.task.mode.moves.form != "listed":
            raise TypeError(
                f"actions are {self.task.action_space}, expected listed ones, as 'discrete' has them"
            )
        out = np.empty(self.mask.shape, np.float32)
        kernel.gains(self.task.tables, self.rules, self.state, self.mask, out)
        return out


@lru_cache(maxsize=4)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: those of a parent do not live on in a fork."""
    return ThreadPoolExecutor(threads, "vmr_env")
