"""Cross-fitted training: an ensemble whose members check each other, so that no video is wasted on selection.

The training videos are cut into K parts. Member k learns on all parts but k and is judged on part k, which it
has not seen. Together the members judge every training sample once, out of fold. That tells after how many
rounds to stop, and whether the agent improves on the detector at all; if it does not, the ensemble leaves
the detector's moments alone. Test samples take no part.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from vmr_env.agents.base import Agent, Metrics
from vmr_env.agents.evaluation import Refined, refine, shares_of_uses
from vmr_env.agents.health import mean_health
from vmr_env.arrays import Array, Bools, Floats
from vmr_env.caches.reader import DecoderStateCache, video_folds
from vmr_env.envs.curriculum import Rule
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.envs.vector_wrappers import VectorCurriculumWrapper
from vmr_env.metrics.spans import reaches
from vmr_env.seeding import derived

MakeAgent = Callable[[VMRVectorEnv, int], Agent]


@dataclass(frozen=True)
class Configured:
    """Makes agents of a class with other settings than its own; a drop-in for the class."""

    agent: Callable[..., Agent]
    """The class."""
    config: Any
    """Its third argument."""

    def __call__(self, env: VMRVectorEnv, seed: int) -> Agent:
        """A new agent."""
        return self.agent(env, seed, self.config)

    @property
    def num_envs(self) -> int:
        """As the class has it."""
        return getattr(self.agent, "num_envs", Agent.num_envs)

    @property
    def env_options(self) -> Mapping[str, Any]:
        """As the class has them."""
        options: Mapping[str, Any] = getattr(self.agent, "env_options", {})
        return options


@dataclass(frozen=True)
class Progress:
    """Progress of a training, reported after every round."""

    member: int
    round: int
    rounds: int
    steps: int
    """Environment steps of this member so far."""
    metrics: Metrics
    gain: float | None
    """Mean gain in `quality` on the samples held out, when it was just measured."""
    members: int = 1
    """Members of the ensemble."""


@dataclass(frozen=True)
class Selection:
    """Result of the out-of-fold evaluation."""

    rounds: tuple[int, ...]
    """Rounds after which the members were evaluated."""
    gains: tuple[float, ...]
    """Mean gain in `quality` over all training samples, out of fold, after each of them."""
    chosen: int
    """Rounds of learning that the ensemble keeps; 0 if it leaves the detector's moments alone."""
    steps: int
    """Environment steps of all members together, as far as the agent reports them in `charts/steps`."""
    uses: tuple[tuple[float, ...], ...] = ()
    """What was made of the detector's moments then: shares of `vmr_env.agents.evaluation.USES`. Empty where
    it was not recorded."""
    health: tuple[Metrics, ...] = ()
    """What `agents.health.HEALTH_FIGURES` the rounds told that ended then, means over the members."""


class CrossFittedEnsemble:
    """Agents that act together: by their mean policy where they tell probabilities, else by plurality.

    Args:
        members: the agents; none at all stops at once, as the detector itself.
        options: environment arguments under which they act.
    """

    def __init__(self, members: Sequence[Agent], options: Mapping[str, Any]) -> None:
        self.members, self.options = list(members), dict(options)
        if not self.members:
            self.options["actions"] = "discrete"  # the one mode with an action that stops

    def act(self, observations: Floats, masks: Bools) -> Array:
        """(N, width) observations, (N, A) possible actions -> (N,) or (N, …) actions."""
        if not self.members:
            return np.full(len(masks), masks.shape[1] - 1)  # the last discrete action stops
        policies = [
            member.probabilities(observations, masks)
            for member in self.members
            if hasattr(member, "probabilities")
        ]
        if len(policies) == len(self.members):
            best: Array = np.sum(policies, axis=0).argmax(axis=1)
            return best
        return _plurality(np.stack([member.act(observations, masks) for member in self.members]))


def _plurality(votes: Array) -> Array:
    """What most of (K, N, …) actions say, of equally many the first member's side; of floats the mean."""
    if votes.dtype.kind not in "iu":
        mean: Array = votes.mean(axis=0).astype(votes.dtype)
        return mean
    flat = votes.reshape(len(votes), votes.shape[1], -1)
    same = (flat[:, None] == flat[None]).all(-1).sum(0)  # (K, N): how many agree with each member
    chosen: Array = votes[same.argmax(axis=0), np.arange(votes.shape[1])]
    return chosen


@dataclass(frozen=True)
class TrainedMember:
    """What one member learnt, and how it did on the samples held out for it; pickles."""

    rounds: tuple[int, ...]
    """Rounds after which it was judged."""
    states: list[dict[str, Any]]
    """Its state after each of them."""
    judged: list[Refined]
    """What became of the samples held out, after each of them."""
    told: list[Metrics]
    """What each of them told."""
    steps: int
    """Environment steps in all."""


@dataclass(frozen=True)
class CrossFit:
    """A cross-fitted training: members are trained each by itself, here or in another process, then joined.

    Raises:
        ValueError: fewer than two members.
        DataError: the cache has no ground truth, or there are fewer training videos than members.
    """

    make: MakeAgent
    """Makes an agent for an environment and a seed."""
    cache: DecoderStateCache
    """Where the samples are."""
    samples: Array
    """(n,), training samples."""
    members: int
    """K, at least 2."""
    evaluations: int
    """How often a member is judged; an agent that does not learn is judged once."""
    seed: int
    """Fixes everything."""
    options: Mapping[str, Any]
    """Environment arguments."""
    rounds: int | None = None
    """Of learning; None for the agent's own number."""
    curriculum: Rule | None = None
    """When each member goes on to the next stage; None to learn in stage 3 alone."""
    device: str = "cpu"
    """Torch device of the members' networks."""

    def __post_init__(self) -> None:
        """Refuse what cannot be cut into parts."""
        if self.members < 2:
            message = "expected at least 2: each is judged on what the others learn from"
            raise ValueError(f"members is {self.members}, {message}")
        self.cache.require_ground_truth()

    def fit(
        self, watch: Callable[[Progress], None] = lambda progress: None
    ) -> tuple[CrossFittedEnsemble, Selection]:
        """Train one member after the other, and join them; `watch` is called after every round."""
        return self.join([self.train(member, watch) for member in range(self.members)])

    def train(self, member: int, watch: Callable[[Progress], None] = lambda progress: None) -> TrainedMember:
        """Train one member, which depends on no other.

        Args:
            member: from 0.
            watch: called after every round.
        """
        judge = self.samples[self._part_of == member]
        agent = self._agent(member)
        learns = agent.rounds > 0
        if learns and self.rounds is not None:
            agent.rounds = self.rounds
        last = max(agent.rounds, 1)  # an agent that does not learn is judged once
        judged_after = _evaluation_rounds(last, self.evaluations if learns else 1)
        states, judged, told, steps = [], [], [], 0
        for number in range(1, last + 1):
            metrics = agent.update() if learns else {}
            gain = None
            if number in judged_after:
                judged.append(refine(agent.act, self.cache, judge, self.options))
                states.append(copy.deepcopy(agent.state_dict()))
                told.append(metrics)
                gain = float(_gains(judged[-1]).mean())
            steps += int(metrics.get("charts/steps", 0))
            watch(Progress(member, number, last, steps, metrics, gain, self.members))
        return TrainedMember(judged_after, states, judged, told, steps)

    def join(self, trained: Sequence[TrainedMember]) -> tuple[CrossFittedEnsemble, Selection]:
        """The ensemble of all trained members, as it is after the round that did best out of fold.

        Raises:
            ValueError: agents improved on the detector by learning, and have no state that tells what they
                learnt.
        """
        judged = [member.judged for member in trained]
        gains = np.concatenate([[_gains(one) for one in of_member] for of_member in judged], axis=1)
        videos, rounds = self.cache.source_videos(), trained[0].rounds
        order = np.concatenate([of_member[0].samples for of_member in judged])
        chosen = _choose(gains, [videos[i] for i in order])
        selection = Selection(
            rounds,
            tuple(gains.mean(axis=1).tolist()),
            0 if chosen is None else rounds[chosen],
            sum(member.steps for member in trained),
            tuple(_uses(self.cache, of_members) for of_members in zip(*judged, strict=True)),
            tuple(map(mean_health, zip(*(member.told for member in trained), strict=True))),
        )
        if chosen is None:
            return CrossFittedEnsemble([], self.options), selection
        agents = [self._agent(number) for number in range(self.members)]
        for agent, member in zip(agents, trained, strict=True):
            state = member.states[chosen]
            if agent.rounds > 0 and not state:
                message = "learns, and its state_dict is empty; expected all that it learnt"
                raise ValueError(f"{type(agent).__name__} {message}")
            agent.load_state_dict(state)
        return CrossFittedEnsemble(agents, self.options), selection

    @cached_property
    def _part_of(self) -> Array:
        """(n,): the member that each sample is held out for."""
        videos = self.cache.source_videos()
        return video_folds([videos[i] for i in self.samples], self.members, self.seed)

    def _agent(self, member: int) -> Agent:
        """A member that has learnt nothing yet."""
        learn = self.samples[self._part_of != member]
        env = training_environment(self.make, self.cache, learn, self.options, self.curriculum)
        agent = self.make(env, derived(self.seed, "member", member))
        agent.to(self.device)
        return agent


def _gains(refined: Refined) -> Array:
    """(n,) by how much moments are better than the detector's, in `quality`."""
    gains: Array = quality(refined.after) - quality(refined.before)
    return gains


def _uses(cache: DecoderStateCache, parts: Sequence[Refined]) -> tuple[float, ...]:
    """Shares of `vmr_env.agents.evaluation.USES`; a boundary counts as moved from half a clip on."""
    samples, windows, proposals = (np.concatenate(columns) for columns in list(zip(*parts, strict=True))[:3])
    before = cache.spans[samples, 0] * cache.durations[samples, None].astype(np.float64)
    return shares_of_uses(before, windows, proposals > 0, cache.manifest["clip_seconds"] / 2)


def quality(tiou: Array) -> Array:
    """Score of members: the mean of a moment's tIoU and of its hits at tIoU 0.5 and 0.7.

    So its mean over queries is that of mIoU, R1@0.5 and R1@0.7. By tIoU alone, moments that grow towards the
    average length count as better, also where recall pays for it.
    """
    judged: Array = (tiou + reaches(tiou, 0.5) + reaches(tiou, 0.7)) / 3
    return judged


def training_environment(
    make: MakeAgent,
    cache: DecoderStateCache,
    samples: Array,
    options: Mapping[str, Any],
    curriculum: Rule | None = None,
) -> VMRVectorEnv:
    """Where an agent that ``make`` makes learns.

    Raises:
        ValueError: an option is none of those expected.
    """
    env = VMRVectorEnv(
        getattr(make, "num_envs", Agent.num_envs),
        cache.manifest["dataset"],
        source=cache,
        samples=samples,
        autoreset_mode="SameStep",
        **options,
    )
    if curriculum is None:
        return env
    return cast(VMRVectorEnv, VectorCurriculumWrapper(env, curriculum))  # it has all that the environment has


def _evaluation_rounds(rounds: int, evaluations: int) -> tuple[int, ...]:
    """Evenly spread rounds, the last one among them."""
    return tuple(sorted({round(rounds * (i + 1) / evaluations) for i in range(evaluations)} - {0}))


def _choose(gains: Array, videos: Sequence[str]) -> int | None:
    """Which evaluation to keep, from out-of-fold gains; None to leave everything alone.

    The best mean wins, if it is at least one standard error above 0. Queries of one video are
    resampled together, so the error is that of a mean over videos, as clusters (Liang and Zeger, 1986).

    Args:
        gains: (evaluations, n).
        videos: n, which source video each sample is of.
    """
    means = gains.mean(axis=1)
    best = int(means.argmax())
    _, video = np.unique(videos, return_inverse=True)
    of_videos = np.bincount(video, weights=gains[best] - means[best])
    error = np.linalg.norm(of_videos) / gains.shape[1]
    return best if means[best] > error else None
