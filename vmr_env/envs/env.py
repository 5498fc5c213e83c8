"""The moment-refinement environment; what happens in an episode is in `vmr_env.envs.kernel`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Array, Bools
from vmr_env.envs import kernel
from vmr_env.envs.config import Source, Task, configured
from vmr_env.envs.episodes import Episodes
from vmr_env.envs.specification import Specified
from vmr_env.rendering.ansi import Scene, render_ansi

if TYPE_CHECKING:
    from vmr_env.rendering.window import Window

Info = dict[str, Any]

RENDER_MODES = ("human", "rgb_array", "ansi")

_METADATA: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 1}

_BEGIN, _STEP = (np.array([order], np.uint8) for order in (kernel.BEGIN, kernel.STEP))


class VMREnv(Specified, gymnasium.Env[Any, Any]):
    """Refine the moment that a sentence describes in a video, starting from a frozen detector's proposals.

    ## Description
    One episode is one sample: a video, a query, and the proposals that a frozen detector made for them. The
    agent starts at a proposal, moves its boundaries, may switch to another proposal, and stops. It is
    rewarded by what detectors are judged by, the temporal IoU (tIoU) with the ground truth.

    ## Action space
    `actions="discrete"` (default): `Discrete(48 + P + 1)`. 0 to 47 move start and end together, each by -8,
    -3, -1, 0, 1, 3 or 8 clips (not both 0), the next P switch to proposal 1 to P, the last stops.
    `"multidiscrete"`: `MultiDiscrete([7, 7])`, one move of the start and one of the end, coarse to fine over
    three steps. `"continuous"`: `Box(-1, 1, (2,))`, shifts of start and end in units of 8 clips.
    `"candidates"`: as `"discrete"`, in one step, and a boundary can also go to the start or end of one of the
    first three proposals.
    `info["action_mask"]` tells which actions are possible (for `MultiDiscrete` and `Box`: which of the 7 + 7
    moves of one boundary); an impossible one changes nothing but takes its step.

    ## Observation space
    A flat float32 `Box` of the components that `vmr_env.envs.observations` lists, or with
    `observation="dict"` a `Dict` of them. It shows what is known of every span that an action leads to.

    ## Rewards
    potential(new span) - potential(old span); the potential is the stage's (tIoU in TPRL's stages 2
    and 3, generalised IoU in stage 1) unless `reward` names another of `vmr_env.envs.rewards.POTENTIALS`.
    `info["tiou"]` is always the plain tIoU.

    ## Infos
    The same keys after a reset and after every step: `tiou` (float), `span` (2,) in seconds, `proposal` (the
    number from 0 of the proposal that it came from), `action_mask` (A,) int8, 1 for possible
    actions, as `action_space.sample(mask)` takes it, `sample` (row of the cache),
    `qid` (always as text, whatever the annotations have: 7 and "7" are one query), `vid`, `query`, `duration`
    in seconds, and `source` of the cache. Vector environments tell all but the last three.

    ## Starting state
    A random sample, or the one that `reset(options={"qid": …})` or `{"sample": row}` names. The first span is
    the detector's first proposal, or in stage 2 a random one of its first three; `options={"start": i}`
    chooses.

    ## Episode end
    `terminated` on stop and after the last step of the horizon, which is part of the task and observed. Never
    `truncated`.

    ## Arguments
    dataset: "charades", "qvhighlights" or "tacos".
    split: name of the split; None is that of the source, and "train" where there is none.
    source: folder of a decoder-state cache; see `vmr_env.envs.sources.open_source` for the default.
    samples: rows of the cache to draw from; None for all.
    stage: number of the curriculum's stage, from 1; None for its last. `set_stage` changes it, the spaces
        stay.
    curriculum: its stages, by a name of `vmr_env.envs.curriculum.CURRICULA` or as `"module:name"`.
    actions, components, observation: see above.
    proposals: P, at most; a cache with fewer has fewer.
    horizon: steps of an episode; None for the action mode's own (3; 6 for "continuous").
    reward: name of a potential; None for the stage's.
    free: groups of actions that may be free at all, "move" and "switch"; the stage may free fewer. With
        ("switch",) an episode is a choice among proposals.
    render_mode: "human" shows the timeline in a window at every step; "rgb_array" and "ansi" return it from
        `render`, as an image (540, 960, 3) uint8 or as text; None for none.

    ## Vectorised environment
    `gymnasium.make_vec(id, num_envs=N)` gives `VMRVectorEnv`. Slot i, seeded alike, sees the same episodes as
    a single environment with the seed `vmr_env.seeding.slot_seeds(seed, N)[i]`.

    ## Version history
    v0: first version.
    """

    metadata = _METADATA

    def __init__(
        self,
        dataset: str = "charades",
        split: str | None = None,
        source: Source = None,
        *,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(
                f"render_mode is {render_mode!r}, expected None or one of {', '.join(RENDER_MODES)}"
            )
        self._task = Task(configured(dataset, split, source, options))
        self.render_mode = render_mode
        self.observation_space = self._task.observation_space
        self.action_space = self._task.action_space
        self.action_mode = self._task.mode
        self.observer = self._task.observer
        self.curriculum = self._task.curriculum
        self.cache = self._task.cache
        self.episodes = Episodes(self._task, 1)
        self.trajectory: list[tuple[float, float]] = []
        self._drawn = False
        self._over = True
        self._about: Info = {}
        self._duration = 0.0
        self._window: Window | None = None
        self._no_desktop = False

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
        """Change the stage, from the next episode on.

        Raises:
            ValueError: there is no such stage.
        """
        self.episodes.set_stage(stage)

    @property
    def action_masks(self) -> Callable[[], Bools]:
        """Call it for the actions that are possible now: (A,) bool, as sb3-contrib does.

        Raises:
            AttributeError: actions are continuous, so that there is nothing to mask.
        """
        if isinstance(self.action_space, gymnasium.spaces.Box):
            raise AttributeError("action_masks: continuous actions have no masks")
        return self._masks

    def _masks(self) -> Bools:
        mask: Bools = self.episodes.mask[0].copy()
        return mask

    def get_action_meanings(self) -> list[str]:
        """What each entry of the action mask does, in words; of `Box` what each number of an action does."""
        return self.action_mode.names()

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        """Begin an episode; see the class for `options`."""
        super().reset(seed=seed)
        episodes = self.episodes
        if seed is not None or not self._drawn:
            episodes.streams[0] = self.np_random.integers(2**63)
            self._drawn = True
        episodes.draw(_BEGIN)
        if options:
            episodes.choose(np.zeros(1, np.intp), options)
        flat = episodes.advance(_BEGIN).observations
        self._over = False
        self.trajectory = []
        row = int(episodes.samples[0])
        sample = self.cache.sample(row)
        self._duration = float(self.cache.durations[row])
        self._about = {
            "source": self.cache.manifest["source"],
            "sample": row,
            "qid": str(sample.qid),
            "vid": sample.vid,
            "query": sample.query,
            "duration": sample.duration,
        }
        return self._seen(flat)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Info]:
        """Take one action.

        Raises:
            ValueError: the action is not in the action space.
            gymnasium.error.ResetNeeded: the episode is over.
        """
        if self._over:
            raise gymnasium.error.ResetNeeded("step called on a finished episode, expected reset first")
        flat, rewards, ended = self.episodes.act(_STEP, self._checked(action))
        self._over = bool(ended[0])
        observation, info = self._seen(flat)
        return observation, float(rewards[0]), self._over, False, info

    def _checked(self, action: Any) -> Array:
        mode = self.action_mode
        if mode.moves.form == "listed" and type(action) in (int, np.int64) and 0 <= action < mode.size:
            return np.array([[action]])  # quicker
        return self.episodes.checked(np.asarray(action)[None])

    def _seen(self, flat: NDArray[np.float32]) -> tuple[Any, Info]:
        """Observation and info after a reset or a step.

        Infos have the same keys at all times: recorders and collectors rely on it.
        """
        _, source, _, start, end, _, tiou, _ = self.episodes.state.item(0)  # quicker than one by one
        self.trajectory.append((start, end))
        if self.render_mode == "human":
            self._show()
        info = {
            **self._about,
            "tiou": tiou,
            "span": np.array((start * self._duration, end * self._duration)),
            "proposal": source,
            "action_mask": self.episodes.mask[0].astype(np.int8),
        }
        return self._task.formed(flat[0]), info

    def render(self) -> Any:
        """The timeline of the current episode: text, or an RGB image (540, 960, 3) uint8; None in a window.

        Without a `render_mode` this is None with a warning, as in Gymnasium's environments: some trainers
        always ask.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        if self.render_mode is None:
            gymnasium.logger.warn(
                "render called on an environment without render_mode, "
                f"expected one of {', '.join(RENDER_MODES)} at make"
            )
            return None
        if not self.trajectory:
            raise gymnasium.error.ResetNeeded("render called before the first reset, expected reset first")
        if self.render_mode == "human":
            return self._show()
        if self.render_mode == "ansi":
            return render_ansi(self._scene())
        return self._image()

    def _scene(self) -> Scene:
        return Scene.of(self.episodes, self.trajectory)

    def _image(self) -> NDArray[np.uint8]:
        from vmr_env.rendering.rgb import render_rgb

        return render_rgb(self._scene())

    def _show(self) -> None:
        """Show the timeline in the window, where there is to be one and a desktop; one warning without."""
        if self.render_mode != "human" or self._no_desktop:
            return
        from vmr_env.rendering.window import Window

        if self._window is None:
            try:
                self._window = Window(self.metadata["render_fps"])
            except RuntimeError as error:  # checkers and clusters make environments of every declared mode
                self._no_desktop = True
                gymnasium.logger.warn(f"nothing is shown: {error}")
                return
        self._window.show(self._image())

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
        super().close()
