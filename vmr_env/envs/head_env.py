"""The environment whose actions are the outputs of a detection head."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Array, Floats
from vmr_env.envs.config import Source, opened, sample_rows
from vmr_env.envs.curriculum import CURRICULA
from vmr_env.envs.observations import STATE_BOUND
from vmr_env.envs.rewards import potentials
from vmr_env.envs.specification import Specified
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.metrics.spans import from_cxw, to_cxw

Info = dict[str, Any]
Observation = dict[str, NDArray[np.float32]]


class VMRHeadEnv(Specified, gymnasium.Env[Observation, NDArray[np.float32]]):
    """Say what a detection head says about the decoder states of one query: TPRL for any algorithm.

    ## Description
    An episode is one query and one step. The agent sees the Q decoder states of a frozen detector and answers
    as the detector's head does, with a span and a foreground probability for each of them. The answer is the
    span of the most probable proposal. A head that learns here goes back into its detector.

    ## Action space
    `Box(0, 1, (Q, 3))`: of each proposal the centre and the width of its span, in units of the duration, and
    its foreground probability. What lies beyond is clipped; a span is cut to the video.

    ## Observation space
    A `Dict` of float32 arrays: `decoder_states` (Q, D); `references` (Q, 2), centre and width that the head
    adds to; `proposals` (Q, 3), what the frozen head says, best first, in the form of an action; `choosable`
    (Q,), 1 for the proposals among which the most probable one is sought.

    ## Rewards
    potential(answer) - potential(the detector's own span where the episode starts); the potential is the
    stage's, unless `reward` names another one of `vmr_env.envs.rewards.BUILT_IN`. The action that repeats
    `proposals` earns 0 in stages 1 and 3.

    ## Infos
    The same keys after a reset and after the step: `sample` (row of the cache), `qid` (as text), `vid`,
    `query`, `duration` in seconds, `proposal` (number from 0 of the one that answers), its `span` (2,) in
    seconds, and the `tiou` of that. After a reset they are those of the detector's own span.

    ## Starting state
    A random query, or the one that `reset(options={"qid": ...})` or `{"sample": row}` names. It starts at the
    detector's best proposal, or in stage 2 at a random one of its best three; `options={"start": i}` chooses.
    Where the stage does not free the choice (1 and 2), the start alone is choosable.

    ## Episode end
    `terminated` after the step. Never `truncated`.

    ## Arguments
    dataset: name of the data set.
    split: name of the split; None is that of the source, and "train" where there is none.
    source: a decoder-state cache that a backbone has written; see `vmr_env.envs.sources.open_source`.
    samples: rows of the cache to draw from; None for all.
    stage: number of the curriculum's stage, from 1; None for its last. `set_stage` changes it.
    curriculum: its stages, by a name of `vmr_env.envs.curriculum.CURRICULA` or as `"module:name"`.
    reward: name of a potential; None for the stage's.
    render_mode: "rgb_array" and "ansi" let `render` return the timeline, as an image (540, 960, 3) uint8 or
        as text; None for none.

    ## Version history
    v0: first version.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self,
        dataset: str = "charades",
        split: str | None = None,
        source: Source = None,
        *,
        samples: Sequence[int] | Array | None = None,
        stage: int | None = None,
        curriculum: str = "tprl",
        reward: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}, expected None, 'rgb_array' or 'ansi'")
        self.render_mode = render_mode
        cache = opened(dataset, split, source)
        if source is None and cache.states is None and cache.manifest["source"] == "simulated":
            message = f"is missing; simulated data of {dataset!r} have no decoder states, expected a cache"
            raise DataError(Problem("source", None, None, f"{message} that `vmr-env cache checkpoint` wrote"))
        states, references = cache.require_states()
        self.cache = cache
        self._states, self._references = states, references
        self._rows = np.arange(len(cache)) if samples is None else sample_rows(samples, len(cache))
        self._reward = reward
        self.curriculum = CURRICULA.get(curriculum)
        self.set_stage(len(self.curriculum) if stage is None else stage)
        self._rules = self.curriculum[self.stage]
        self._sample, self._start, self._over = 0, 0, True
        self._answers, self._trajectory = 0, list[tuple[float, float]]()
        for rules in self.curriculum.stages:  # refuses unknown rewards
            self._potential(np.zeros(2, np.float32), reward or rules.reward)
        count = states.shape[1]
        unit, state = (0.0, 1.0), (-STATE_BOUND, STATE_BOUND)
        shapes = {
            "decoder_states": (state, states.shape[1:]),
            "references": (unit, (count, 2)),
            "proposals": (unit, (count, 3)),
            "choosable": (unit, (count,)),
        }
        space: Any = gymnasium.spaces.Dict(
            {
                name: gymnasium.spaces.Box(*bounds, shape, np.float32)
                for name, (bounds, shape) in shapes.items()
            }
        )
        self.observation_space = space  # of arrays by name, which Gymnasium's types do not say
        self.action_space = gymnasium.spaces.Box(0, 1, (count, 3), np.float32)

    @property
    def horizon(self) -> int:
        """An episode is one step."""
        return 1

    @property
    def stage(self) -> int:
        """Number of the curriculum's stage."""
        return self._stage

    def set_stage(self, stage: int) -> None:
        """Change the stage, from the next episode on.

        Raises:
            ValueError: there is no such stage.
        """
        self.curriculum[stage]
        self._stage = stage

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        """Begin an episode; see the class for `options`.

        Raises:
            DataError: there is no such query.
            ValueError: an option is not as expected.
        """
        super().reset(seed=seed)
        options = options or {}
        if set(options) - {"qid", "sample", "start"} or {"qid", "sample"} <= set(options):
            raise ValueError(
                f"options has {sorted(options)}, expected some of 'qid' or 'sample', and 'start'"
            )
        self._rules = self.curriculum[self._stage]
        sample, start = self.np_random.choice(self._rows), self.np_random.integers(self._rules.start_k)
        if "qid" in options:
            sample = self.cache.index_of(options["qid"])
        sample = _below("sample", options.get("sample", sample), len(self.cache))
        count = self._states.shape[1]
        self._start = _below("start", options.get("start", min(start, count - 1)), count)
        self._sample, self._over = sample, False
        self._trajectory.clear()
        return self._observation(), self._info(self._start, self.cache.spans[sample, self._start])

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Answer as a head does.

        Raises:
            ValueError: the action is not (Q, 3) finite numbers.
            gymnasium.error.ResetNeeded: the episode is over.
        """
        if self._over:
            raise gymnasium.error.ResetNeeded("step called on a finished episode, expected reset first")
        said = np.asarray(action)
        if (
            said.shape != self.action_space.shape
            or said.dtype.kind not in "fiu"
            or not np.isfinite(said).all()
        ):
            raise ValueError(f"action is {shorten(action)}, expected finite numbers in {self.action_space}")
        self._over = True
        said = np.clip(said, 0, 1).astype(np.float32)
        chosen = int(np.where(self._choosable() > 0, said[:, 2], -1).argmax())
        before = self.cache.spans[self._sample]
        moved = np.clip(from_cxw(said[chosen, :2]), 0, 1)
        answer = moved if "move" in self._rules.free else before[chosen]
        reward = self._potential(answer) - self._potential(before[self._start])
        return self._observation(), reward, True, False, self._info(chosen, answer)

    def render(self) -> Any:
        """The timeline as `render_mode` says; None, with a warning, where there is none.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        if self.render_mode is None:
            gymnasium.logger.warn("render called on an environment without render_mode")
            return None
        if not self._trajectory:
            raise gymnasium.error.ResetNeeded("render called before the first reset, expected reset first")
        from vmr_env.rendering.ansi import Scene, render_ansi

        scene = Scene.of_sample(
            self.cache,
            self._sample,
            self._trajectory,
            source=self._answers,
            proposals=self._states.shape[1],
            horizon=1,
        )
        if self.render_mode == "ansi":
            return render_ansi(scene)
        from vmr_env.rendering.rgb import render_rgb

        return render_rgb(scene)

    def _choosable(self) -> NDArray[np.float32]:
        choosable = np.zeros(self._states.shape[1], np.float32)
        choosable[slice(None) if "switch" in self._rules.free else self._start] = 1
        return choosable

    def _observation(self) -> Observation:
        row, cache = self._sample, self.cache
        proposals = np.concatenate([to_cxw(cache.spans[row]), cache.scores[row][:, None]], axis=1)
        return {
            "decoder_states": np.array(self._states[row], np.float32),
            "references": np.array(self._references[row], np.float32),
            "proposals": proposals.astype(np.float32),
            "choosable": self._choosable(),
        }

    def _potential(self, span: Floats, name: str | None = None) -> float:
        """A potential of a span (2,) of the current sample; by default the one that is rewarded."""
        first, last = self.cache.moments.offsets[self._sample : self._sample + 2]
        moments = self.cache.moments.values[first:last]
        return float(potentials(name or self._reward or self._rules.reward, span[None], moments[None])[0])

    def _info(self, proposal: int, span: Floats) -> Info:
        """What is told of the answer, which is taken note of."""
        self._answers = proposal
        self._trajectory.append((float(span[0]), float(span[1])))
        sample = self.cache.sample(self._sample)
        return {
            "sample": self._sample,
            "qid": str(sample.qid),
            "vid": sample.vid,
            "query": sample.query,
            "duration": sample.duration,
            "proposal": proposal,
            "span": span.astype(np.float64) * sample.duration,
            "tiou": self._potential(span, "tiou"),
        }


def _below(name: str, value: Any, count: int) -> int:
    """An option as a whole number from 0 to `count` - 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < count:
        raise ValueError(
            f"options[{name!r}] is {shorten(value)}, expected a whole number from 0 to {count - 1}"
        )
    return int(value)
