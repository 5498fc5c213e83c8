"""Extra clip channels: how similar each clip is to the query, where both were encoded into the same space."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Floats

# The model normalises each clip over all channels; these make differences count about as much as in the
# standardised channels.
COSINE_SCALE = 2
EXTENT_SCALE = 6


@dataclass(frozen=True)
class SimilarityChannels:
    """Cosines of clip features with sentence vectors: plain, smoothed over time, and as extents.

    1. For the query, and for the mean of its paraphrases where there are any: the cosine, and the cosine
       standardised over the video.
    2. For each width in `sigmas`, the sum of these cosines, smoothed by a Gaussian and standardised.
    3. For each of `thresholds`, the centre and width (in units of the video) of the run of clips around this
       one whose smoothed and standardised sum is above the threshold; the clip's own centre and width where
       it is not above. A detector that attends to a clip so finds how far what it sees extends.

    Attributes:
        paraphrased: whether the sentences include paraphrases.
        sigmas: standard deviations of the Gaussians in clips.
        extent_sigma: standard deviation of the Gaussian before the thresholds.
        thresholds: in standard deviations above the mean.
    """

    paraphrased: bool = True
    sigmas: tuple[float, ...] = (1.5, 4.0)
    extent_sigma: float = 2.0
    thresholds: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)

    @property
    def count(self) -> int:
        """Number of channels."""
        return 2 * (1 + self.paraphrased) + len(self.sigmas) + 2 * len(self.thresholds)

    def __call__(self, clips: Floats, sentences: Floats) -> Floats:
        """Channels ``(T, count)`` for clips ``(T, D)`` and sentence vectors ``(K, D)``, the query's first."""
        sentences = sentences / np.linalg.norm(sentences, axis=1, keepdims=True)
        vectors = [sentences[0]]
        if self.paraphrased:
            vectors.append(sentences[1:].mean(0))
        lengths = np.maximum(np.linalg.norm(clips, axis=1, keepdims=True), 1e-6)
        cosines = (clips / lengths) @ np.stack(vectors, axis=1)  # (T, 1 or 2)
        total = cosines.sum(1)
        smooth = [smoothed(total, sigma) for sigma in (*self.sigmas, self.extent_sigma)]
        scaled = standardised(np.column_stack([cosines, *smooth]))
        runs = [extents(scaled[:, -1] > threshold) for threshold in self.thresholds]
        channels = [scaled[:, :-1], COSINE_SCALE * cosines, *(EXTENT_SCALE * run for run in runs)]
        return np.concatenate(channels, axis=1, dtype=np.float32)


def smoothed(values: Floats, sigma: float) -> Floats:
    """Values ``(T,)`` averaged with Gaussian weights; near the ends over what is there."""
    steps = np.arange(len(values), dtype=np.float32)
    weights = np.exp(-0.5 * np.square((steps[:, None] - steps) / np.float32(sigma)))
    averages: Floats = (weights @ values) / weights.sum(1)
    return averages


def standardised(values: Floats) -> Floats:
    """Each column of ``(T, C)`` minus its mean, divided by its standard deviation plus 1e-3."""
    centred = values - values.mean(0)
    scaled: Floats = centred / (centred.std(0) + np.float32(1e-3))
    return scaled


def extents(inside: NDArray[np.bool_]) -> Floats:
    """Centre and width ``(T, 2)`` of the run of true clips around each clip, in units of the video.

    A clip that is not true is a run of its own.
    """
    length = len(inside)
    joined = inside[1:] & inside[:-1]  # clip i + 1 goes on with the run of clip i
    starts = np.concatenate([[0], np.flatnonzero(~joined) + 1])
    counts = np.diff(starts, append=length)
    centres = np.repeat(starts + counts / 2, counts)
    return np.stack([centres, np.repeat(counts, counts)], axis=1, dtype=np.float32) / np.float32(length)
