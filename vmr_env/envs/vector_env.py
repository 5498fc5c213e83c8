"""The native vector environment: N episodes led on by one compiled loop (Gymnasium 1.1 and later)."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from vmr_env.arrays import Array, Bools, Floats, Ints
from vmr_env.envs import kernel
from vmr_env.envs.config import Source, Task, configured
from vmr_env.envs.episodes import Episodes
from vmr_env.envs.gymnasium_vector import AutoresetMode, autoreset
from vmr_env.envs.specification import Specified
from vmr_env.errors import check_count
from vmr_env.seeding import slot_seeds

Info = dict[str, Any]

_FOR_ALL = ("_sample", "_qid", "_vid", "_tiou", "_span", "_proposal", "_action_mask")


class VMRVectorEnv(Specified, VectorEnv[Any, Any, Any]):
    """N environments like `VMREnv` that step together, with nothing per episode in Python.

    Arguments are those of `VMREnv`, and:
        num_envs: N.
        autoreset_mode: what happens when an episode ends, as in Gymnasium 1.x. "NextStep" (default): the next
            step begins a new episode, ignores its action and earns nothing. "SameStep": the same step does,
            and `infos["final_obs"]` and `infos["final_info"]` hold the end of the old one. "Disabled": the
            caller resets, with `reset(options={"reset_mask": …})`.
        copy: whether every call returns a fresh observation array. False reuses one, whose contents change at
            the next call.
        threads: how many threads lead the episodes on; results do not depend on it.
        max_episode_steps: steps after which episodes are `truncated`, as by Gymnasium's `TimeLimit`; None for
            no limit.

    Infos of every reset and step: `sample` (N,), rows of the cache (`env.cache.sample(row)` has texts), `qid`
    (N,), `vid` (N,), `tiou` (N,), `span` (N, 2) in seconds, `proposal` (N,), and `action_mask` (N, A) int8.
    Entries beginning with `_` say which episodes an entry is for, as in Gymnasium.

    Resets accept `options` as `VMREnv` does, with one value for all or a sequence of N.
    """

    def __init__(
        self,
        num_envs: int,
        dataset: str = "charades",
        split: str | None = None,
        source: Source = None,
        *,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        threads: int = 1,
        max_episode_steps: int | None = None,
        **options: Any,
    ) -> None:
        check_count("num_envs", num_envs)
        check_count("threads", threads)
        if render_mode is not None:
            raise ValueError(
                f"render_mode is {render_mode!r}, expected None: only single environments render"
            )
        if max_episode_steps is not None:
            check_count("max_episode_steps", max_episode_steps)
        self._limit = max_episode_steps
        self._task = Task(configured(dataset, split, source, options))
        self.num_envs = num_envs
        self.render_mode = None
        self.autoreset_mode = autoreset(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self._task.observation_space
        self.single_action_space = self._task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.action_mode = self._task.mode
        self.observer = self._task.observer
        self.curriculum = self._task.curriculum
        self.cache = self._task.cache
        self.episodes = Episodes(self._task, num_envs, threads)
        self._out = None if copy else self.episodes.observe()
        self._ended = np.ones(num_envs, bool)
        self._drawn = False

    @property
    def horizon(self) -> int:
        """Steps after which an episode ends at the latest."""
        return self.action_mode.horizon

    @property
    def stage(self) -> int:
        """Number of the curriculum's stage."""
        return self.episodes.stage

    @stage.setter
    def stage(self, stage: int) -> None:
        self.set_stage(stage)

    def set_stage(self, stage: int) -> None:
        """Change the stage of all environments, for episodes that begin from now on.

        Raises:
            ValueError: there is no such stage.
        """
        self.episodes.set_stage(stage)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The attribute or the method's result of that name, once for each environment (all are alike)."""
        value = getattr(self, name)
        return (value(*args, **kwargs) if callable(value) else value,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute of that name, once for each environment."""
        return (getattr(self, name),) * self.num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None
    ) -> tuple[Any, Info]:
        """Begin episodes in all environments, or in those that `options["reset_mask"]` (N,) bool names.

        A sequence of seeds has one for each environment; of a single one, slot i gets
        `vmr_env.seeding.slot_seeds(seed, N)[i]`.

        Raises:
            ValueError: an option or the seed is not as expected.
            DataError: the cache has no such query.
        """
        options = dict(options or {})
        begins = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        if begins.shape != (self.num_envs,) or begins.dtype != bool or not begins.any():
            raise ValueError(
                f"options['reset_mask'] is {begins!r}, expected ({self.num_envs},) bool, some True"
            )
        self._begin_streams(seed, np.flatnonzero(begins))
        orders = self._orders(kernel.LOOK, begins)
        if options:
            self.episodes.choose(np.flatnonzero(begins), options)
        flat = self.episodes.advance(orders, self._out).observations
        self._ended = self._ended & ~begins
        return self._task.formed(flat), self._infos()

    def _begin_streams(self, seed: int | Sequence[int | None] | None, rows: Ints) -> None:
        """Begin the random streams of `rows` anew where there is a seed for them; all at the first reset."""
        streams = self.episodes.streams
        if not self._drawn:
            streams[:] = self.np_random.integers(2**63, size=self.num_envs)
            self._drawn = True
        if seed is None:
            return
        seeds = slot_seeds(seed, self.num_envs) if isinstance(seed, int) else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries, expected one or {self.num_envs}")
        generators = {i: seeding.np_random(seeds[i]) for i in rows.tolist() if seeds[i] is not None}
        for i, (generator, _) in generators.items():
            streams[i] = generator.integers(2**63)
        if 0 in generators:
            self._np_random, self._np_random_seed = generators[0]

    def _orders(self, others: int, begins: Bools) -> NDArray[np.uint8]:
        """Orders that begin some episodes, which are drawn, and the same order to all others."""
        orders = np.full(self.num_envs, others, np.uint8)
        if np.count_nonzero(begins):
            np.putmask(orders, begins, kernel.BEGIN)
            self.episodes.draw(orders)
        return orders

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Array, Array, Info]:
        """Take one action in every environment.

        Raises:
            ValueError: the actions have the wrong shape or are outside of the action space.
            gymnasium.error.ResetNeeded: an episode is over and autoreset is disabled, or none ever began.
        """
        numbers = self.episodes.checked(np.asarray(actions))
        over, mode = np.count_nonzero(self._ended), self.autoreset_mode
        if over and (mode is AutoresetMode.DISABLED or not self._drawn):
            raise gymnasium.error.ResetNeeded(
                f"step called on {over} finished episodes, expected reset first"
            )
        # NextStep: episodes that ended begin, whatever their actions are.
        orders = self._orders(kernel.STEP, self._ended)
        flat, rewards, terminated = self.episodes.act(orders, numbers, self._out)
        truncated = (
            np.zeros(self.num_envs, bool) if self._limit is None else self.episodes.steps >= self._limit
        )
        ended = terminated | truncated
        infos = self._infos()
        self._ended = ended
        if mode is AutoresetMode.SAME_STEP:
            self._ended = np.zeros(self.num_envs, bool)
            if np.count_nonzero(ended):
                final = self._final(ended, flat, infos)
                self.episodes.advance(self._orders(kernel.SKIP, ended), flat)
                infos = self._infos() | final
        return self._task.formed(flat), rewards, terminated, truncated, infos

    def render(self) -> None:
        """None, with a warning: only single environments render, but some trainers always ask."""
        gymnasium.logger.warn("render called on a vector environment, expected a single one")

    def get_action_meanings(self) -> list[str]:
        """What each entry of the action mask does, in words; of `Box` what each number of an action does."""
        return self.action_mode.names()

    def _infos(self) -> Info:
        """What every reset and step tells of every episode, under the same keys."""
        samples, sources, tiou, seconds = self.episodes.told()
        qids, vids = self.cache.names
        told: Info = {
            "sample": samples,
            "qid": qids.take(samples),
            "vid": vids.take(samples),
            "tiou": tiou,
            "span": seconds,
            "proposal": sources,
            "action_mask": self.episodes.mask.view(np.int8).copy(),
        }
        return told | dict.fromkeys(_FOR_ALL, np.ones(self.num_envs, bool))

    def _final(self, ended: Bools, flat: Floats, infos: Info) -> Info:
        """The last observations and infos of episodes that restart in the same step, as in Gymnasium."""
        observations = np.full(self.num_envs, None, object)
        for i in np.flatnonzero(ended):
            observations[i] = self._task.formed(flat[i].copy())
        final = {key: ended.copy() if key.startswith("_") else told for key, told in infos.items()}
        return {
            "final_obs": observations,
            "_final_obs": ended.copy(),
            "final_info": final,
            "_final_info": ended.copy(),
        }
