"""Cross-fitted training: a committee whose members check each other, so that no training video is wasted on selection.

The training videos are cut into K parts. Member k learns on all parts but k and is judged on part k, which it has not
seen. Together the members judge every training sample once, out of fold. That tells after how many rounds to
stop, and whether the agent improves on the detector at all; if it does not, the committee leaves the detector's moments alone.
Test samples take no part.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.evaluation import refine
from agents.protocol import Agent, Floats, Masks, Metrics
from vmr_env.cache import DecoderStateCache, video_folds
from vmr_env.vector_env import VMRVectorEnv

Array = NDArray[Any]


@dataclass(frozen=True)
class Progress:
    """How far a training is; given to whoever watches it."""

    member: int
    round: int
    rounds: int
    steps: int
    """Environment steps so far, of all members."""
    metrics: Metrics
    gain: float | None
    """Mean gain in tIoU on the samples held out, when it was just measured."""


@dataclass(frozen=True)
class Selection:
    """What the out-of-fold judgement said."""

    rounds: tuple[int, ...]
    """Rounds after which the members were judged."""
    gains: tuple[float, ...]
    """Mean gain in tIoU over all training samples, out of fold, after each of them."""
    chosen: int
    """Rounds of learning that the committee keeps; 0 if it leaves the detector's moments alone."""
    steps: int
    """Environment steps of all members together."""


class Committee:
    """Agents that act together: by their mean policy where they tell probabilities, else by plurality.

    Args:
        members: the agents; none at all stops at once, as the detector itself.
        options: environment arguments under which they act.
    """

    def __init__(self, members: Sequence[Agent], options: Mapping[str, Any]) -> None:
        self.members, self.options = list(members), dict(options)

    def act(self, observations: Floats, masks: Masks) -> Array:
        """(N, width) observations, (N, A) possible actions -> (N,) or (N, …) actions."""
        if not self.members:
            return np.full(len(masks), masks.shape[1] - 1)  # the last discrete action stops
        policies = [getattr(member, "probabilities", None) for member in self.members]
        if all(policies):
            return sum(policy(observations, masks) for policy in policies if policy).argmax(axis=1)  # type: ignore[union-attr]
        return _plurality(np.stack([member.act(observations, masks) for member in self.members]))


def _plurality(votes: Array) -> Array:
    """What most of (K, N, …) actions say; of equally many the first member's side."""
    if votes.dtype.kind not in "iu":
        mean: Array = votes.mean(axis=0).astype(votes.dtype)
        return mean
    flat = votes.reshape(len(votes), votes.shape[1], -1)
    same = (flat[:, None] == flat[None]).all(-1).sum(0)  # (K, N): how many agree with each member
    chosen: Array = votes[same.argmax(axis=0), np.arange(votes.shape[1])]
    return chosen


def cross_fit(
    make: Callable[[VMRVectorEnv, int], Agent],
    cache: DecoderStateCache,
    samples: Array,
    *,
    members: int,
    evaluations: int,
    seed: int,
    options: Mapping[str, Any],
    rounds: int | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Committee, Selection]:
    """Train a committee on samples of a cache.

    Args:
        make: makes an agent for an environment and a seed.
        cache: where the samples are.
        samples: (n,), training samples.
        members: K, at least 2.
        evaluations: how often a member is judged.
        seed: fixes everything.
        options: environment arguments.
        rounds: of learning; None for the agent's own number.
        watch: called after every round.

    Raises:
        ValueError: fewer than two members, or fewer training videos than members.
    """
    if members < 2:
        raise ValueError(
            f"members is {members}, expected at least 2: each is judged on what the others learn from"
        )
    vids = cache.vids()
    part_of = video_folds([vids[i] for i in samples], members, seed)
    agents, snapshots, gains, steps = [], [], [], 0
    judged_after: tuple[int, ...] = ()
    for member in range(members):
        learn, judge = samples[part_of != member], samples[part_of == member]
        agent_seed = seed * members + member
        env = _environment(make, cache, learn, options)
        agent = make(env, agent_seed)
        if rounds is not None:
            agent.rounds = rounds
        judged_after = _evaluation_rounds(agent.rounds, evaluations)
        kept, judged = [], []
        for number in range(1, agent.rounds + 1):
            metrics = agent.update()
            gain = None
            if number in judged_after:
                refined = refine(agent.act, cache, judge, options)
                kept.append(copy.deepcopy(agent.state_dict()))
                judged.append(refined.after - refined.before)
                gain = float(judged[-1].mean())
            taken = int(metrics.get("charts/steps", 0))
            steps += taken
            watch(Progress(member, number, agent.rounds, steps, metrics, gain))
        agents.append(agent)
        snapshots.append(kept)
        gains.append(judged)
    judged_all = np.concatenate([np.stack(member) for member in gains], axis=1)  # (evaluations, n)
    chosen = _choose(judged_all)
    selection = Selection(
        judged_after,
        tuple(judged_all.mean(axis=1).tolist()),
        0 if chosen is None else judged_after[chosen],
        steps,
    )
    if chosen is None:
        return Committee([], options), selection
    for agent, kept in zip(agents, snapshots, strict=True):
        agent.load_state_dict(kept[chosen])
    return Committee(agents, options), selection


def _environment(
    make: Callable[[VMRVectorEnv, int], Agent],
    cache: DecoderStateCache,
    samples: Array,
    options: Mapping[str, Any],
) -> VMRVectorEnv:
    return VMRVectorEnv(
        getattr(make, "num_envs", Agent.num_envs),
        cache.manifest["dataset"],
        source=cache,
        samples=samples,
        autoreset_mode="SameStep",
        **options,
    )


def _evaluation_rounds(rounds: int, evaluations: int) -> tuple[int, ...]:
    """Evenly spread rounds, the last one among them; none for an agent that does not learn."""
    return (
        tuple(sorted({round(rounds * (i + 1) / evaluations) for i in range(evaluations)} - {0}))
        if rounds
        else ()
    )


def _choose(gains: Array) -> int | None:
    """Which evaluation to keep, from out-of-fold gains (evaluations, n); None to leave everything alone.

    The best mean wins, if it is at least one standard error above 0.
    """
    means = gains.mean(axis=1)
    best = int(means.argmax())
    error = gains[best].std() / np.sqrt(gains.shape[1])
    return best if means[best] > error else None
