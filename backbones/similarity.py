"""Extra clip channels: how similar each clip is to the query, where both were encoded into the same space."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SimilarityChannels:
    """Cosines of clip features with sentence vectors, plain and smoothed over time.

    For the query itself and for the mean of its paraphrases (where there are any), one channel with the
    cosine and one with the cosine standardised over the video; then, per width in `sigmas`, one channel with
    their sum smoothed by a Gaussian and standardised.

    Attributes:
        sigmas: standard deviations of the Gaussians in clips.
        paraphrased: whether the sentences include paraphrases.
        scale: factor on all channels; the model's input norm divides by the spread over all channels.
    """

    sigmas: tuple[float, ...] = (1.5, 4.0)
    paraphrased: bool = True
    scale: float = 1.0

    @property
    def count(self) -> int:
        """Number of channels."""
        return 2 * (1 + self.paraphrased) + len(self.sigmas)

    def __call__(self, clips: Floats, sentences: Floats) -> Floats:
        """Channels ``(T, count)`` for clips ``(T, D)`` and sentence vectors ``(K, D)``, the query's first."""
        sentences = sentences / np.linalg.norm(sentences, axis=1, keepdims=True)
        vectors = [sentences[0]]
        if self.paraphrased:
            vectors.append(sentences[1:].mean(0))
        lengths = np.maximum(np.linalg.norm(clips, axis=1, keepdims=True), 1e-6)
        cosines = (clips / lengths) @ np.stack(vectors, axis=1)  # (T, 1 or 2)
        total = cosines.sum(1)
        smooth = [smoothed(total, sigma)[:, None] for sigma in self.sigmas]
        channels = np.concatenate([standardised(np.concatenate([cosines, *smooth], 1)), 2 * cosines], 1)
        return (self.scale * channels).astype(np.float32)


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
