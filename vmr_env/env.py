"""The moment-refinement environment, single and vectorised, over one set of dynamics (`vmr_env.episodes`)."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from vmr_env.actions import ActionMode, get_action_mode
from vmr_env.cache import DecoderStateCache
from vmr_env.episodes import Draws, Episodes
from vmr_env.errors import DataError, Problem
from vmr_env.observations import Observer
from vmr_env.sources import open_source
from vmr_env.timeline_files import timelines_of

Array = NDArray[Any]
Info = dict[str, Any]

PROPOSALS = 10
"""Proposals of a sample that take part, by default."""

RENDER_MODES = ("ansi", "rgb_array")


class _Setting:
    """What both environments are made of: the checked arguments."""

    def __init__(
        self,
        dataset: str,
        split: str,
        source: str | os.PathLike[str] | DecoderStateCache | None,
        samples: Sequence[int] | Array | None,
        stage: int,
        actions: str,
        components: Sequence[str] | None,
        observation: str,
        proposals: int,
        horizon: int | None,
        reward: str | None,
    ) -> None:
        cache = source if isinstance(source, DecoderStateCache) else open_source(dataset, split, source)
        if observation not in ("flat", "dict"):
            raise ValueError(f"observation is {observation!r}, expected 'flat' or 'dict'")
        if not isinstance(proposals, int) or proposals < 1:
            raise ValueError(f"proposals is {proposals!r}, expected a whole number from 1")
        self.proposals = min(proposals, cache.manifest["proposals"])
        self.cache = cache
        self.samples = _sample_rows(samples, len(cache))
        self.mode: ActionMode = get_action_mode(actions, self.proposals, horizon)
        self.observer = Observer(cache, timelines_of(cache), self.proposals, components)
        self.flat = observation == "flat"
        self.stage, self.reward = stage, reward
        self.observation_space = self.observer.space(self.flat)
        self.action_space = self.mode.space

    def episodes(self, n: int) -> Episodes:
        """N episodes under this setting, not started yet."""
        return Episodes(n, self.cache, self.mode, self.observer, self.proposals, self.stage, self.reward)

    def choose(
        self, draws: Draws, rows: Array, stage_k: int, options: dict[str, Any] | None
    ) -> tuple[Array, Array]:
        """Samples and first proposals (K,), (K,) of new episodes: those that `options` name, else random ones."""
        options = options or {}
        unknown = set(options) - {"qid", "sample", "start", "reset_mask"}
        if unknown:
            raise ValueError(f"options has {sorted(unknown)}, expected some of 'qid', 'sample', 'start'")
        samples = self.samples[draws.below(rows, len(self.samples))]
        if "qid" in options:
            qids = options["qid"] if isinstance(options["qid"], (list, tuple)) else [options["qid"]]
            samples = _fitting("qid", [self.cache.index_of(qid) for qid in qids], len(rows), len(self.cache))
        elif "sample" in options:
            samples = _fitting("sample", options["sample"], len(rows), len(self.cache))
        counts = np.minimum(self.cache.counts[samples], self.proposals)
        starts = draws.below(rows, np.minimum(counts, stage_k))
        if "start" in options:
            starts = _fitting("start", options["start"], len(rows), counts)
        return samples, starts


class VMREnv(gymnasium.Env[Any, Any]):
    """Refine the moment that a sentence describes in a video, starting from a frozen detector's proposals.

    ## Description
    One episode is one sample: a video, a query, and the proposals that a frozen detector made for them. The agent
    starts at a proposal, moves its boundaries, may switch to another proposal, and stops. It is rewarded by what
    detectors are judged by, the temporal IoU (tIoU) with the ground truth.

    ## Action space
    `actions="discrete"` (default): `Discrete(48 + P + 1)`. 0 to 47 move start and end together, each by -8, -3,
    -1, 0, 1, 3 or 8 clips (not both 0), the next P switch to proposal 1 to P, the last stops. `"multidiscrete"`: `MultiDiscrete([7, 7])`, one
    move of the start and one of the end, coarse to fine over three steps. `"continuous"`: `Box(-1, 1, (2,))`, shifts
    of start and end in units of 8 clips. `info["action_mask"]` tells which moves are possible (for
    `MultiDiscrete` and `Box`: which of the 7 + 7 candidates); an impossible one changes nothing but takes its step.

    ## Observation space
    A flat float32 `Box` of the components that `vmr_env.observations` lists, or with `observation="dict"` a `Dict`
    of them. It shows what is known of every span that an action leads to.

    ## Rewards
    potential(new span) - potential(old span); the potential is the stage's (tIoU in stages 2 and 3, generalised IoU in
    stage 1) unless `reward` names another of `vmr_env.rewards.POTENTIALS`. `info["tiou"]` is always the plain tIoU.

    ## Starting state
    A random sample, or the one that `reset(options={"qid": …})` or `{"sample": row}` names. The first span is the
    detector's first proposal, or in stage 2 a random one of its first three; `options={"start": i}` chooses.

    ## Episode end
    `terminated` on stop and after the last step of the horizon, which is part of the task and observed. Never
    `truncated`.

    ## Arguments
    dataset: "charades", "qvhighlights" or "tacos".
    split: name of the split.
    source: folder of a decoder-state cache; see `vmr_env.sources.open_source` for the default.
    samples: rows of the cache to draw from; None for all.
    stage: 1, 2 or 3, see `vmr_env.curriculum`; `set_stage` changes it, the spaces stay.
    actions, components, observation: see above.
    proposals: P, at most; a cache with fewer has fewer.
    horizon: steps of an episode; None for the action mode's own (3; 6 for "continuous").
    reward: name of a potential; None for the stage's.
    render_mode: "ansi" or "rgb_array".

    ## Vectorised environment
    `gymnasium.make_vec(id, num_envs=N)` gives `VMRVectorEnv`. Slot i, seeded alike, sees the same episodes as a
    single environment with seed + i.

    ## Version history
    v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": list(RENDER_MODES), "render_fps": 2}

    def __init__(
        self,
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
    ) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(
                f"render_mode is {render_mode!r}, expected None or one of {', '.join(RENDER_MODES)}"
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
        self.render_mode = render_mode
        self.observation_space = self._setting.observation_space
        self.action_space = self._setting.action_space
        self.action_mode = self._setting.mode
        self.observer = self._setting.observer
        self.cache = self._setting.cache
        self.episode = self._setting.episodes(1)
        self._draws: Draws | None = None
        self._over = True

    @property
    def stage(self) -> int:
        """Number of the curriculum's stage."""
        return self.episode.stage.number

    def set_stage(self, stage: int) -> None:
        """Change the stage; a running episode goes on under the new rules.

        Raises:
            ValueError: there is no such stage.
        """
        self.episode.set_stage(stage)

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are possible now: (A,), as sb3-contrib asks for it."""
        return self.episode.mask[0].copy()

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        """Begin an episode; see the class for `options`."""
        super().reset(seed=seed)
        if seed is not None or self._draws is None:
            self._draws = Draws([_key(self.np_random)])
        samples, starts = self._setting.choose(self._draws, _FIRST, self.episode.stage.start_k, options)
        self.episode.start(_FIRST, samples, starts)
        self._over = False
        sample = self.cache.sample(int(samples[0]))
        info = {
            **self._info(),
            "source": self.cache.manifest["source"],
            "sample": int(samples[0]),
            "qid": sample.qid,
            "vid": sample.vid,
            "query": sample.query,
            "duration": sample.duration,
        }
        return self._observation(), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Info]:
        """Take one action.

        Raises:
            ValueError: the action is not in the action space.
            gymnasium.error.ResetNeeded: the episode is over.
        """
        if self._over:
            raise gymnasium.error.ResetNeeded("step called on a finished episode, expected reset first")
        if not self.action_space.contains(action) and not self.action_space.contains(np.asarray(action)):
            raise ValueError(f"action is {action!r}, expected a member of {self.action_space}")
        rewards, terminated = self.episode.step(np.asarray(action)[None])
        self._over = bool(terminated[0])
        info = self._info()
        if self._over:
            info["span"] = self.episode.seconds()[0]
            info["proposal"] = int(self.episode.sources[0])
        return self._observation(), float(rewards[0]), self._over, False, info

    def _info(self) -> Info:
        return {"tiou": float(self.episode.tiou[0]), "action_mask": self.episode.mask[0].copy()}

    def _observation(self) -> Any:
        flat = np.empty((1, self.observer.width), np.float32)
        self.episode.observe(flat)
        return flat[0] if self._setting.flat else self.observer.split(flat[0])

    def render(self) -> Any:
        """The timeline of the current episode, as text or as an RGB image (height, width, 3)."""
        if self.render_mode is None:
            raise gymnasium.error.UnsupportedMode(
                "render called on an environment without render_mode, expected 'ansi' or 'rgb_array' at make"
            )
        from vmr_env.rendering import Scene, render_ansi, render_rgb

        scene = Scene.of(self.episode, self.cache)
        return render_ansi(scene) if self.render_mode == "ansi" else render_rgb(scene)


_FIRST = np.zeros(1, np.intp)


def _key(generator: np.random.Generator) -> int:
    return int(generator.integers(2**63))


def _sample_rows(samples: Sequence[int] | Array | None, count: int) -> NDArray[np.intp]:
    if samples is None:
        return np.arange(count)
    rows = np.asarray(samples)
    if rows.ndim != 1 or len(rows) == 0 or rows.dtype.kind not in "iu":
        raise DataError(
            Problem("samples", None, None, f"has shape {rows.shape} and type {rows.dtype}, expected rows")
        )
    outside = np.flatnonzero((rows < 0) | (rows >= count))
    if len(outside):
        at = int(outside[0])
        raise DataError(Problem("samples", at + 1, None, f"is {rows[at]}, expected 0 to {count - 1}"))
    return rows.astype(np.intp)


def _fitting(name: str, values: Any, n: int, bound: int | Array) -> NDArray[np.intp]:
    """The option's values as (n,) row numbers below the bound; one value serves all."""
    rows = np.asarray(values)
    if rows.dtype.kind not in "iu" or rows.size not in (1, n):
        raise ValueError(f"options[{name!r}] is {values!r}, expected one whole number or {n} of them")
    rows = np.broadcast_to(rows.reshape(-1), (n,)).astype(np.intp)
    if ((rows < 0) | (rows >= bound)).any():
        raise ValueError(f"options[{name!r}] is {values!r}, expected numbers from 0 to below {np.min(bound)}")
    return rows
