"""Results of an agent on given samples: moments, the steps to them, and the submission that metrics read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Array, Bools, Floats
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.predictions import Prediction
from vmr_env.envs.actions import ActionMode
from vmr_env.envs.vector_env import VMRVectorEnv

_BATCH = 1024
_DECIMALS = 4  # of seconds in submissions, as detectors write them


class Refined(NamedTuple):
    """Refined moments of K samples."""

    samples: NDArray[np.intp]
    """(K,), rows of the cache."""
    windows: NDArray[np.float64]
    """(K, 2), seconds."""
    proposals: NDArray[np.intp]
    """(K,), which proposal each came from."""
    before: NDArray[np.float64]
    """(K,), tIoU of the first span of the episode."""
    after: NDArray[np.float64]
    """(K,), tIoU of the last."""


KINDS = ("start", "move", "switch", "stop")
"""Kinds of rows of `Trajectories`."""


class Trajectories(NamedTuple):
    """Every step of the episodes of K samples: a row each, episode after episode, its start first."""

    samples: NDArray[np.intp]
    """(S,), rows of the cache."""
    kinds: NDArray[np.intp]
    """(S,), numbers in `KINDS`."""
    windows: NDArray[np.float64]
    """(S, 2), seconds, the moment after the step."""
    proposals: NDArray[np.intp]
    """(S,), which proposal it came from."""


def refine(
    act: Callable[[Floats, Bools], Array],
    cache: DecoderStateCache,
    samples: Array,
    env_options: Mapping[str, Any] | None = None,
    *,
    enter: Callable[[VMRVectorEnv], None] = lambda env: None,
) -> Refined:
    """Where the episodes of `trace` end."""
    return trace(act, cache, samples, env_options, enter=enter)[0]


def trace(
    act: Callable[[Floats, Bools], Array],
    cache: DecoderStateCache,
    samples: Array,
    env_options: Mapping[str, Any] | None = None,
    *,
    enter: Callable[[VMRVectorEnv], None] = lambda env: None,
) -> tuple[Refined, Trajectories]:
    """Run one episode for each sample, from the detector's first proposal.

    Args:
        act: observations (N, width) and possible actions (N, A) -> actions (N, …).
        cache: where the samples are.
        samples: (K,), rows of the cache.
        env_options: arguments of `VMRVectorEnv`.
        enter: told each environment before `act` is asked there, for what looks behind the observations.

    Returns:
        Where the episodes end, and every step to there.
    """
    samples = np.asarray(samples, np.intp)
    parts = []
    for low in range(0, len(samples), _BATCH):
        part = samples[low : low + _BATCH]
        env = VMRVectorEnv(
            len(part),
            cache.manifest["dataset"],
            source=cache,
            autoreset_mode="SameStep",
            **(env_options or {}),
        )
        enter(env)
        parts.append(_trace_batch(act, env, part))
    refined, steps = zip(*parts, strict=True)
    return Refined(*_joined(refined)), Trajectories(*_joined(steps))


def _joined(parts: Sequence[Sequence[Array]]) -> list[Array]:
    """Tables with the same columns as one."""
    return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


def _trace_batch(
    act: Callable[[Floats, Bools], Array], env: VMRVectorEnv, samples: Array
) -> tuple[Refined, Trajectories]:
    n, episodes = len(samples), env.episodes
    observations, infos = env.reset(seed=0, options={"sample": samples, "start": 0})
    before = infos["tiou"]
    windows, proposals, after = episodes.seconds(), episodes.sources.copy(), before.copy()
    running = np.ones(n, bool)
    rows = [(np.arange(n), np.zeros(n, np.intp), windows.copy(), proposals.copy())]
    while running.any():
        actions = act(observations, infos["action_mask"].astype(bool))
        observations, _, _, _, infos = env.step(actions)
        among = np.flatnonzero(running)
        windows[among], proposals[among] = episodes.seconds()[among], episodes.sources[among]
        after[among] = infos["tiou"][among]
        if "final_info" in infos:  # an episode restarts when it ends; only its first end counts
            final, ended = infos["final_info"], infos["_final_info"] & running
            windows[ended], proposals[ended], after[ended] = (
                final[key][ended] for key in ("span", "proposal", "tiou")
            )
            running &= ~ended
        rows.append((among, _kinds(env.action_mode, actions)[among], windows[among], proposals[among]))
    numbers, *columns = _joined(rows)
    order = np.argsort(numbers, kind="stable")
    kinds, spans, sources = (column[order] for column in columns)
    steps = Trajectories(samples[numbers[order]], kinds, spans.round(_DECIMALS), sources)
    return Refined(samples, windows, proposals, before, after), steps


def _kinds(mode: ActionMode, actions: Array) -> NDArray[np.intp]:
    """What actions (N,) or (N, 2) are, as numbers of `KINDS`."""
    if actions.ndim > 1:  # pairs of moves
        return np.full(len(actions), KINDS.index("move"))
    kinds = [KINDS.index(group) for group, part in mode.groups.items() for _ in range(part.stop - part.start)]
    return np.array(kinds)[actions]


USES = ("kept", "start moved", "end moved", "both moved", "another proposal")
"""Fates of the detector's moment."""


def shares_of_uses(before: Array, after: Array, switched: Array, least: float) -> tuple[float, ...]:
    """How often each of `USES` was made of K moments.

    Args:
        before: (K, 2), the detector's moments.
        after: (K, 2), the refined ones.
        switched: (K,) bool, which came from another proposal.
        least: how far a boundary must lie from where it was to count as moved, in the same unit.
    """
    start, end = (np.abs(after - before) >= least).T
    kinds = np.where(switched, USES.index("another proposal"), start + 2 * end)
    return tuple((np.bincount(kinds, minlength=len(USES)) / len(kinds)).tolist())


def submission(cache: DecoderStateCache, refined: Refined) -> list[Prediction]:
    """Predictions that begin with the refined moment, which replaces the proposal it came from.

    The other proposals follow in their order. A moment that came from the first proposal keeps that one's
    score, so that doing nothing gives back the detector's own windows, scores and order; one that came from
    another gets the highest of the sample's scores, so that sorting by score leaves it first. Scores are the
    cache's 32-bit ones in full: rounding them would make ties, which mAP is sensitive to.
    """
    rows = []
    for i, window, proposal in zip(refined.samples, refined.windows, refined.proposals, strict=True):
        sample = cache.sample(int(i))
        count = int(cache.counts[i])
        scores = np.array([float(str(score)) for score in cache.scores[i, :count]])
        others = np.delete(np.arange(count), proposal)
        windows = np.empty((count, 3))
        windows[0, :2], windows[0, 2] = window, scores[0] if proposal == 0 else scores.max()
        windows[1:, :2] = cache.spans[i, others].astype(np.float64) * sample.duration
        windows[1:, 2] = scores[others]
        windows[:, :2] = windows[:, :2].round(_DECIMALS)
        saliency = None if cache.saliency is None else np.array(cache.saliency[int(i)], np.float32)
        rows.append(Prediction(sample.qid, sample.vid, sample.query, windows, saliency))
    return rows
