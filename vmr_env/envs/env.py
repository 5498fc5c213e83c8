"""The moment-refinement environment; the dynamics are in `vmr_env.envs.episodes`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Array, Bools
from vmr_env.envs.actions import FREE
from vmr_env.envs.config import PROPOSALS, Setting, Source
from vmr_env.envs.episodes import Draws, Starts
from vmr_env.rendering.ansi import Scene, render_ansi

if TYPE_CHECKING:
    from vmr_env.rendering.window import Window

Info = dict[str, Any]

RENDER_MODES = ("human", "rgb_array", "ansi")

_METADATA: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 1}


class VMREnv(gymnasium.Env[Any, Any]):
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
    `info["action_mask"]` tells which actions are possible (for `MultiDiscrete` and `Box`: which of the 7 + 7
    moves of one boundary); an impossible one changes nothing but takes its step.

    ## Observation space
    A flat float32 `Box` of the components that `vmr_env.envs.observations` lists, or with
    `observation="dict"` a `Dict` of them. It shows what is known of every span that an action leads to.

    ## Rewards
    potential(new span) - potential(old span); the potential is the stage's (tIoU in stages 2 and 3,
    generalised IoU in stage 1) unless `reward` names another of `vmr_env.envs.rewards.POTENTIALS`.
    `info["tiou"]` is always the plain tIoU.

    ## Infos
    The same keys after a reset and after every step: `tiou` (float), `span` (2,) in seconds, `proposal` (the
    number from 0 of the proposal that it came from), `action_mask` (A,) bool, `sample` (row of the cache),
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
    stage: 1, 2 or 3, see `vmr_env.envs.curriculum`; `set_stage` changes it, the spaces stay.
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
    ) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(
                f"render_mode is {render_mode!r}, expected None or one of {', '.join(RENDER_MODES)}"
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
        self.render_mode = render_mode
        self.observation_space = self._setting.observation_space
        self.action_space = self._setting.action_space
        self.action_mode = self._setting.mode
        self.observer = self._setting.observer
        self.cache = self._setting.cache
        self.episode = self._setting.episode()
        self._draws: Draws | None = None
        self._over = True
        self._about: Info = {}
        self._window: Window | None = None
        self._no_desktop = False

    @property
    def stage(self) -> int:
        """Number of the curriculum's stage."""
        return self.episode.stage.number

    @stage.setter
    def stage(self, stage: int) -> None:
        self.set_stage(stage)

    def set_stage(self, stage: int) -> None:
        """Change the stage; a running episode goes on under the new rules.

        Raises:
            ValueError: there is no such stage.
        """
        self.episode.set_stage(stage)

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
        mask: Bools = self.episode.mask.copy()
        return mask

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        """Begin an episode; see the class for `options`."""
        super().reset(seed=seed)
        if seed is not None or self._draws is None:
            self._draws = Draws([int(self.np_random.integers(2**63))])
        row, proposal = self._setting.start_of_one(self._draws, self.episode.stage.start_k)
        if options:
            drawn = Starts(slice(None), np.array([row]), np.array([proposal]))
            _, (row,), (proposal,) = self._setting.chosen(drawn, options, 1)
        self.episode.start(int(row), int(proposal))
        self._over = False
        sample = self.cache.sample(row)
        self._about = {
            "source": self.cache.manifest["source"],
            "sample": int(row),
            "qid": str(sample.qid),
            "vid": sample.vid,
            "query": sample.query,
            "duration": sample.duration,
        }
        self._show()
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Info]:
        """Take one action.

        Raises:
            ValueError: the action is not in the action space.
            gymnasium.error.ResetNeeded: the episode is over.
        """
        if self._over:
            raise gymnasium.error.ResetNeeded("step called on a finished episode, expected reset first")
        reward, self._over = self.episode.step(self.action_mode.checked_one(action))
        self._show()
        return self._observation(), float(reward), self._over, False, self._info()

    def _info(self) -> Info:
        """The same keys after a reset and after every step: recorders and collectors rely on it."""
        return {
            **self._about,
            "tiou": float(self.episode.tiou),
            "span": self.episode.seconds(),
            "proposal": int(self.episode.source),
            "action_mask": self.episode.mask.copy(),
        }

    def _observation(self) -> Any:
        return self._setting.formed(self.episode.observe())

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
        if not self.episode.trail:
            raise gymnasium.error.ResetNeeded("render called before the first reset, expected reset first")
        if self.render_mode == "human":
            return self._show()
        if self.render_mode == "ansi":
            return render_ansi(self._scene())
        return self._image()

    def _scene(self) -> Scene:
        return Scene.of(self.episode, self.cache)

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
