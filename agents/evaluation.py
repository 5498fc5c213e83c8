"""What an agent makes of given samples: refined moments, and the submission that the field's metrics read."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.protocol import Floats, Masks
from vmr_env.cache import DecoderStateCache
from vmr_env.predictions import Prediction
from vmr_env.vector_env import VMRVectorEnv

Array = NDArray[Any]

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


def refine(
    act: Callable[[Floats, Masks], Array],
    cache: DecoderStateCache,
    samples: Array,
    env_options: Mapping[str, Any] | None = None,
    *,
    enter: Callable[[VMRVectorEnv], None] = lambda env: None,
) -> Refined:
    """Run one episode for each sample, from the detector's first proposal.

    Args:
        act: observations (N, width) and possible actions (N, A) -> actions (N, …).
        cache: where the samples are.
        samples: (K,), rows of the cache.
        env_options: arguments of `VMRVectorEnv`.
        enter: told each environment before `act` is asked there, for what looks behind the observations.
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
        parts.append(_refine_batch(act, env, part))
    return Refined(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _refine_batch(act: Callable[[Floats, Masks], Array], env: VMRVectorEnv, samples: Array) -> Refined:
    n = len(samples)
    observations, infos = env.reset(seed=0, options={"sample": samples, "start": 0})
    before = infos["tiou"]
    windows, proposals, after = np.zeros((n, 2)), np.zeros(n, np.intp), np.zeros(n)
    running = np.ones(n, bool)
    while running.any():  # an episode restarts when it ends; only its first end counts
        observations, _, _, _, infos = env.step(act(observations, infos["action_mask"]))
        if "final_info" not in infos:
            continue
        final, ended = infos["final_info"], infos["_final_info"] & running
        windows[ended], proposals[ended], after[ended] = (
            final[key][ended] for key in ("span", "proposal", "tiou")
        )
        running &= ~ended
    return Refined(samples, windows, proposals, before, after)


def submission(cache: DecoderStateCache, refined: Refined) -> list[Prediction]:
    """Predictions in which the refined moment stands first, in place of the proposal it came from.

    The other proposals follow in their order. The refined moment gets the highest of the sample's scores, so
    that sorting by score leaves it first.
    """
    rows = []
    for i, window, proposal in zip(refined.samples, refined.windows, refined.proposals, strict=True):
        sample = cache.sample(int(i))
        count = int(cache.counts[i])
        scores = cache.scores[i, :count].astype(np.float64)
        others = np.delete(np.arange(count), proposal)
        windows = np.empty((count, 3))
        windows[0, :2], windows[0, 2] = window, scores.max()
        windows[1:, :2] = cache.spans[i, others].astype(np.float64) * sample.duration
        windows[1:, 2] = scores[others]
        saliency = None if cache.saliency is None else np.array(cache.saliency[int(i)], np.float32)
        rows.append(Prediction(sample.qid, sample.vid, sample.query, np.round(windows, _DECIMALS), saliency))
    return rows
