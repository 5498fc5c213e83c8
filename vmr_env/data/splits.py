"""Splitting samples by video, so that both parts never share a video.

The data set defines what counts as one video: `DatasetProfile.source_video` maps a vid to it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vmr_env.errors import DataError, Problem, shorten


def video_folds(vids: Sequence[str], k: int, seed: int) -> NDArray[np.int64]:
    """Fold of each sample for k-fold cross-validation; all samples of a video share one fold.

    The folds differ in their number of samples by as little as the videos allow. The same videos, k and seed
    give the same folds, in whatever order the samples stand.

    Args:
        vids: source video of each sample.
        k: number of folds, 2 to the number of videos.
        seed: seed of the shuffle.

    Returns:
        int64 (N,), 0 to k - 1.

    Raises:
        DataError: k does not fit.
    """
    if k < 2:
        raise DataError(Problem("k", None, None, f"{k}, expected at least 2 folds"))
    return _assign(vids, [1 / k] * k, seed)


def split_by_video(
    vids: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Rows of each named split; all samples of a video go to one split.

    Args:
        vids: source video of each sample.
        fractions: share of the samples for each split, positive, together 1.
        seed: seed of the shuffle.

    Returns:
        name -> int64 (n,), rows in rising order.

    Raises:
        DataError: the fractions are no shares, or there are fewer videos than splits.
    """
    shares = list(fractions.values())
    if not shares or not all(share > 0 for share in shares) or not np.isclose(sum(shares), 1.0):
        message = f"{shorten(dict(fractions))}, expected positive shares that add up to 1"
        raise DataError(Problem("fractions", None, None, message))
    parts = _assign(vids, shares, seed)
    return {name: np.flatnonzero(parts == part) for part, name in enumerate(fractions)}


def _assign(vids: Sequence[str], shares: Sequence[float], seed: int) -> NDArray[np.int64]:
    """Part of each sample. Videos go, in falling size, to the part that is least full for its share."""
    videos, video_of_sample, sizes = np.unique(np.asarray(vids), return_inverse=True, return_counts=True)
    if len(videos) < len(shares):
        message = f"{len(videos)} different videos, expected at least {len(shares)}, one for each part"
        raise DataError(Problem("vids", None, None, message))
    shuffled = np.random.default_rng(seed).permutation(len(videos))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    loads = [0] * len(shares)
    part_of_video = np.empty(len(videos), np.int64)
    for video in order.tolist():
        part = min(range(len(shares)), key=lambda part: (loads[part] / shares[part], -shares[part]))
        part_of_video[video] = part
        loads[part] += int(sizes[video])
    result: NDArray[np.int64] = part_of_video[video_of_sample]
    return result
