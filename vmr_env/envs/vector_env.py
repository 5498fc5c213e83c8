"""The native vector environment: N episodes in one NumPy program (Gymnasium 1.1 and later)."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from vmr_env.arrays import Array, Bools, Rows
from vmr_env.envs.actions import FREE
from vmr_env.envs.config import PROPOSALS, Setting, Source
from vmr_env.envs.episodes import Draws, Starts
from vmr_env.envs.gymnasium_vector import AutoresetMode
from vmr_env.errors import check_count
from vmr_env.seeding import slot_seeds

Info = dict[str, Any]


class VMRVectorEnv(VectorEnv[Any, Any, Any]):
    """N environments like `VMREnv` that step together, with nothing per episode in Python.

    Arguments are those of `VMREnv`, and:
        num_envs: N.
        autoreset_mode: what happens when an episode ends, as in Gymnasium 1.x. "NextStep" (default): the next
            step begins a new episode, ignores its action and earns nothing. "SameStep": the same step does,
            and `infos["final_obs"]` and `infos["final_info"]` hold the end of the old one. "Disabled": the
            caller resets, with `reset(options={"reset_mask": …})`.
        copy: whether every call returns a fresh observation array. False reuses one, whose contents change at
            the next call.

    Infos of every step: `tiou` (N,) and `action_mask` (N, A); where an episode has ended also `span` (N, 2)
    in seconds and `proposal` (N,); of a reset: `sample` (N,), rows of the cache (`env.cache.sample(row)` has
    names and texts). Entries beginning with `_` say which episodes an entry is for, as in Gymnasium.

    Resets accept `options` as `VMREnv` does, with one value for all or a sequence of N.
    """

    def __init__(
        self,
        num_envs: int,
        dataset: str = "charades",
        split: str | None = None,
        source: Source = None,
        *,
        samples: Sequence[int] | Array | None = None,
        stage: int = 3,
        actions: str = "discrete",
        components: Sequence[str] | None = None,
        observation: str = "flat",
        proposals: int = PROPOSALS,
        horizon: int | None = None,
        reward: str | None = None,
        free: Sequence[str] = FREE,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
    ) -> None:
        check_count("num_envs", num_envs)
        if render_mode is not None:
            raise ValueError(
                f"render_mode is {render_mode!r}, expected None: only single environments render"
            )
        self._setting = Setting(
            dataset=dataset,
            split=split,
            source=source,
            samples=samples,
            stage=stage,
            actions=actions,
            components=components,
            observation=observation,
            proposals=proposals,
            horizon=horizon,
            reward=reward,
            free=free,
        )
        self.num_envs = num_envs
        self.render_mode = None
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self._setting.observation_space
        self.single_action_space = self._setting.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.action_mode = self._setting.mode
        self.observer = self._setting.observer
        self.cache = self._setting.cache
        self.episodes = self._setting.episodes(num_envs)
        self._copy = copy
        self._numbers = np.arange(num_envs)
        self._ended = np.ones(num_envs, bool)
        self._draws: Draws | None = None

    @property
    def stage(self) -> int:
        """Number of the curriculum's stage."""
        return self.episodes.stage.number

    @stage.setter
    def stage(self, stage: int) -> None:
        self.set_stage(stage)

    def set_stage(self, stage: int) -> None:
        """Change the stage of all environments; running episodes go on under the new rules.

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
        rows: Rows = slice(None)
        if "reset_mask" in options:
            mask = np.asarray(options.pop("reset_mask"))
            if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
                raise ValueError(
                    f"options['reset_mask'] is {mask!r}, expected ({self.num_envs},) bool, some True"
                )
            rows = np.flatnonzero(mask)
        starts = self._random_starts(self._seeded(seed, rows), rows)
        if options:
            starts = self._setting.chosen(starts, options, self.num_envs)
        self.episodes.start(starts)
        self.episodes.refresh()
        self._ended[rows] = False
        return self._observe(), self._infos()

    def _seeded(self, seed: int | Sequence[int | None] | None, rows: Rows) -> Draws:
        """The random streams, those of `rows` begun anew where there is a seed for them."""
        if self._draws is None:
            self._draws = Draws(self.np_random.integers(2**63, size=self.num_envs))
        if seed is None:
            return self._draws
        seeds = slot_seeds(seed, self.num_envs) if isinstance(seed, int) else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries, expected one or {self.num_envs}")
        generators = {
            i: seeding.np_random(seeds[i]) for i in self._numbers[rows].tolist() if seeds[i] is not None
        }
        for i, (generator, _) in generators.items():
            self._draws.restart(i, generator)
        if 0 in generators:
            self._np_random, self._np_random_seed = generators[0]
        return self._draws

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Array, Array, Info]:
        """Take one action in every environment.

        Raises:
            ValueError: the actions have the wrong shape or are outside of the action space.
            gymnasium.error.ResetNeeded: an episode is over and autoreset is disabled, or none ever began.
        """
        episodes, mode = self.episodes, self.autoreset_mode
        actions = self.action_mode.checked(np.asarray(actions))
        if len(actions) != self.num_envs:
            raise ValueError(f"there are {len(actions)} actions, expected {self.num_envs}")
        starts = None
        if np.count_nonzero(self._ended):
            if mode is AutoresetMode.DISABLED or self._draws is None:
                raise gymnasium.error.ResetNeeded(
                    f"step called on {np.count_nonzero(self._ended)} finished episodes, expected reset first"
                )
            starts = self._random_starts(self._draws, np.flatnonzero(self._ended))
        # NextStep: the actions of episodes that begin do not count.
        rewards, ended = episodes.step(actions, starts)
        infos = self._infos()
        if np.count_nonzero(ended) and mode is AutoresetMode.SAME_STEP:
            assert self._draws is not None
            starts = self._random_starts(self._draws, np.flatnonzero(ended))
            final = self._final(starts.rows, infos)
            episodes.start(starts)
            episodes.refresh()
            infos = self._infos() | final
        self._ended = ended & (mode is not AutoresetMode.SAME_STEP)
        return self._observe(), rewards.astype(np.float64), ended, np.zeros(self.num_envs, bool), infos

    def render(self) -> None:
        """None, with a warning: only single environments render, but some trainers always ask."""
        gymnasium.logger.warn("render called on a vector environment, expected a single one")

    def _random_starts(self, draws: Draws, rows: Rows) -> Starts:
        return self._setting.starts(draws, rows, self.episodes.stage.start_k)

    def _infos(self) -> Info:
        """What every reset and step tells of every episode, under the same keys."""
        episodes, (qids, vids) = self.episodes, self.cache.names
        told: Info = {
            "sample": episodes.samples.copy(),
            "qid": qids[episodes.samples],
            "vid": vids[episodes.samples],
            "tiou": episodes.tiou.astype(np.float64),
            "span": episodes.seconds(),
            "proposal": episodes.sources.copy(),
            "action_mask": episodes.mask.copy(order="K"),
        }
        return told | {f"_{key}": np.ones(self.num_envs, bool) for key in told}

    def _final(self, rows: Rows, infos: Info) -> Info:
        """The last observations and infos of episodes that restart in the same step, as in Gymnasium."""
        among = self._among(rows)
        observations = np.full(self.num_envs, None, object)
        for i, row in zip(np.flatnonzero(among), self.episodes.observe(rows), strict=True):
            observations[i] = self._setting.formed(row)
        final = {key: among.copy() if key.startswith("_") else told for key, told in infos.items()}
        return {
            "final_obs": observations,
            "_final_obs": among,
            "final_info": final,
            "_final_info": among.copy(),
        }

    def _among(self, rows: Rows) -> Bools:
        mask = np.zeros(self.num_envs, bool)
        mask[rows] = True
        return mask

    def _observe(self) -> Any:
        flat = self.episodes.observe()
        fresh = self._copy and self._setting.flat  # components are copies in any case
        return self._setting.formed(flat.copy() if fresh else flat)
