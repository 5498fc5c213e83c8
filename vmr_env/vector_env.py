"""The native vector environment: N episodes in one NumPy program (Gymnasium 1.1 and later)."""

import os
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from vmr_env.cache import DecoderStateCache
from vmr_env.env import PROPOSALS, Array, Info, _key, _Setting
from vmr_env.episodes import Draws


class VMRVectorEnv(VectorEnv[Any, Any, Any]):
    """N environments like `VMREnv` that step together, with nothing per episode in Python.

    Arguments are those of `VMREnv`, and:
        num_envs: N.
        autoreset_mode: what happens when an episode ends, as in Gymnasium 1.x. "NextStep" (default): the next step
            begins a new episode, ignores its action and earns nothing. "SameStep": the same step does, and
            `infos["final_obs"]` and `infos["final_info"]` hold the end of the old one. "Disabled": the caller resets,
            with `reset(options={"reset_mask": …})`.
        copy: whether every call returns a fresh observation array. False reuses one, whose contents change at the
            next call.

    Infos of every step: `tiou` (N,) and `action_mask` (N, A); where an episode has ended also `span` (N, 2) in seconds
    and `proposal` (N,); of a reset: `sample` (N,), rows of the cache (`env.cache.sample(row)` has names and texts).
    Entries beginning with `_` say which episodes an entry is for, as in Gymnasium.

    Resets accept `options` as `VMREnv` does, with one value for all or a sequence of N.
    """

    def __init__(
        self,
        num_envs: int,
        dataset: str = "charades",
        split: str = "train",
        source: str | os.PathLike[str] | DecoderStateCache | None = None,
        *,
        samples: Sequence[int] | Array | None = None,
        stage: int = 3,
        actions: str = "discrete",
        components: Sequence[str] | None = None,
        observation: str = "flat",
        proposals: int = PROPOSALS,
        horizon: int | None = None,
        reward: str | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
    ) -> None:
        if not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"num_envs is {num_envs!r}, expected a whole number from 1")
        if render_mode is not None:
            raise ValueError(
                f"render_mode is {render_mode!r}, expected None: only single environments render"
            )
        self._setting = _Setting(
            *(
                dataset,
                split,
                source,
                samples,
                stage,
                actions,
                components,
                observation,
                proposals,
                horizon,
                reward,
            )
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
        self._buffer = np.empty((0, 0), np.float32)
        self._all = np.arange(num_envs)
        self._ended = np.ones(num_envs, bool)
        self._draws: Draws | None = None

    @property
    def stage(self) -> int:
        """Number of the curriculum's stage."""
        return self.episodes.stage.number

    def set_stage(self, stage: int) -> None:
        """Change the stage of all environments; running episodes go on under the new rules."""
        self.episodes.set_stage(stage)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The attribute, or the result of the method, of that name, once for each environment (all are alike)."""
        value = getattr(self, name)
        return (value(*args, **kwargs) if callable(value) else value,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute of that name, once for each environment."""
        return (getattr(self, name),) * self.num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None
    ) -> tuple[Any, Info]:
        """Begin episodes in all environments, or in those that `options["reset_mask"]` (N,) bool names."""
        self._seed(seed)
        rows = self._all
        if options and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
                raise ValueError(
                    f"options['reset_mask'] is {mask!r}, expected ({self.num_envs},) bool, some True"
                )
            rows = np.flatnonzero(mask)
        self._start(rows, options)
        infos = self._infos()
        infos["sample"], infos["_sample"] = self.episodes.samples.copy(), self._among(rows)
        return self._observe(), infos

    def _seed(self, seed: int | Sequence[int | None] | None) -> None:
        if seed is None:
            if self._draws is None:
                self._draws = Draws(self.np_random.integers(2**63, size=self.num_envs))
            return
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries, expected one or {self.num_envs}")
        self._np_random, self._np_random_seed = seeding.np_random(seeds[0])
        self._draws = Draws([_key(seeding.np_random(one)[0]) for one in seeds])

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Array, Array, Info]:
        """Take one action in every environment.

        Raises:
            ValueError: the actions have the wrong shape or are outside of the action space.
            gymnasium.error.ResetNeeded: with autoreset disabled, an episode is over.
        """
        episodes, mode = self.episodes, self.autoreset_mode
        actions = np.asarray(actions)
        if not self.action_space.contains(actions):
            raise ValueError(
                f"actions are not in {self.action_space}; got shape {actions.shape}, {actions.dtype}"
            )
        fresh = np.flatnonzero(self._ended)
        if len(fresh) and (mode is AutoresetMode.DISABLED or self._draws is None):
            raise gymnasium.error.ResetNeeded(
                f"step called on {len(fresh)} finished episodes, expected reset first"
            )

        rewards, terminated = episodes.step(actions)
        rewards = rewards.astype(np.float64)
        if len(fresh):  # NextStep: what these episodes just did does not count
            self._start(fresh, None)
            rewards[fresh], terminated[fresh] = 0.0, False
        self._ended = terminated.copy()
        ended = np.flatnonzero(terminated)
        infos = self._infos()
        if len(ended):
            self._add(infos, ended, {"span": episodes.seconds(), "proposal": episodes.sources.copy()})
            if mode is AutoresetMode.SAME_STEP:
                infos = self._restart(ended, infos)
        return self._observe(), rewards, terminated, np.zeros(self.num_envs, bool), infos

    def _restart(self, ended: Array, final: Info) -> Info:
        """Begin new episodes in place of the ended ones; what they were at the end moves to `final_…`."""
        last = np.zeros((self.num_envs, self.observer.width), np.float32)
        finals = np.empty((len(ended), self.observer.width), np.float32)
        self.episodes.observe(finals, ended)
        last[ended] = finals
        self._start(ended, None)
        infos = self._infos()
        among = self._among(ended)
        infos["final_obs"], infos["_final_obs"] = self._formed(last), among
        infos["final_info"] = {key: among if key.startswith("_") else value for key, value in final.items()}
        infos["_final_info"] = among
        infos["sample"], infos["_sample"] = self.episodes.samples.copy(), among
        return infos

    def _start(self, rows: Array, options: Info | None) -> None:
        assert self._draws is not None
        samples, starts = self._setting.choose(self._draws, rows, self.episodes.stage.start_k, options)
        self.episodes.start(rows, samples, starts)
        self._ended[rows] = False

    def _infos(self) -> Info:
        everywhere = np.ones(self.num_envs, bool)
        mask = self.episodes.mask.copy()
        return {
            "tiou": self.episodes.tiou.astype(np.float64),
            "_tiou": everywhere,
            "action_mask": mask,
            "_action_mask": everywhere,
        }

    def _add(self, infos: Info, rows: Array, entries: Info) -> None:
        among = self._among(rows)
        for key, value in entries.items():
            infos[key], infos[f"_{key}"] = value, among

    def _among(self, rows: Array) -> NDArray[np.bool_]:
        mask = np.zeros(self.num_envs, bool)
        mask[rows] = True
        return mask

    def _observe(self) -> Any:
        shape = (self.num_envs, self.observer.width)
        if self._copy or self._buffer.shape != shape:
            self._buffer = np.empty(shape, np.float32)
        self.episodes.observe(self._buffer)
        return self._formed(self._buffer)

    def _formed(self, flat: Array) -> Any:
        return flat if self._setting.flat else self.observer.split(flat)
