"""Changes to training samples that keep their meaning: reversed time, cut-outs, foreign surroundings."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Floats, Ints64
from vmr_env.settings import SHARE, Range, Settings


@dataclass(frozen=True)
class Timeline:
    """Events in a video, in units of its T feature rows: time t lies in row floor(t)."""

    clips: Floats
    """``(T, D)``."""
    moments: NDArray[np.float64]
    """``(n, 2)``: start and end, n >= 1."""
    rated: Ints64 | None = None
    """``(K,)`` rows that annotators rated, or None."""
    scores: Ints64 | None = None
    """``(K,)`` their ratings."""

    def __len__(self) -> int:
        return len(self.clips)


@dataclass(frozen=True)
class Augmentation(Settings):
    """How often, and how far, training samples are changed. Suits features that each describe one clip alone.

    Attributes:
        reverse: share of samples played backwards.
        crop: share of samples cut to a random part of the video that holds at least one whole moment.
        shortest: least part of the rows that is kept by a cut.
        surround: share of samples whose ends, outside a random part that holds all moments, are replaced by
            rows of another video.
    """

    ranges: ClassVar[Mapping[str, Range]] = dict.fromkeys(("reverse", "crop", "shortest", "surround"), SHARE)

    reverse: float = 0.0
    crop: float = 0.0
    shortest: float = 0.5
    surround: float = 0.0

    def __call__(self, video: Timeline, other: Floats, draw: random.Random) -> Timeline:
        """A changed video.

        Args:
            video: the sample.
            other: features of another video ``(T2, D)``.
            draw: source of all random choices.
        """
        if draw.random() < self.surround:
            video = surrounded(video, other, draw)
        if draw.random() < self.crop:
            video = cropped(video, self.shortest, draw)
        if draw.random() < self.reverse:
            video = reversed_in_time(video)
        return video


def reversed_in_time(video: Timeline) -> Timeline:
    """The video backwards."""
    last = len(video) - 1
    rated = None if video.rated is None else last - video.rated
    moments = len(video) - video.moments[::-1, ::-1]
    return replace(video, clips=video.clips[::-1], moments=moments, rated=rated)


def cropped(video: Timeline, shortest: float, draw: random.Random) -> Timeline:
    """A random part around one moment; other moments are cut to it, or left out if under one row remains."""
    length = len(video)
    start, end = video.moments[draw.randrange(len(video.moments))]
    first, stop = int(start), min(int(np.ceil(end)), length)
    keep = draw.randint(max(int(np.ceil(shortest * length)), stop - first), length)
    offset = draw.randint(max(0, stop - keep), min(first, length - keep))
    moments = (video.moments - offset).clip(0, keep)
    moments = moments[moments[:, 1] - moments[:, 0] >= min(1.0, end - start)]
    part = replace(video, clips=video.clips[offset : offset + keep], moments=moments)
    if video.rated is None or video.scores is None:
        return part
    inside = (video.rated >= offset) & (video.rated < offset + keep)
    return replace(part, rated=video.rated[inside] - offset, scores=video.scores[inside])


def surrounded(video: Timeline, other: Floats, draw: random.Random) -> Timeline:
    """The same moments, with rows of another video before and after a random part that holds them all."""
    length = len(video)
    start = draw.randint(0, int(video.moments.min()))
    stop = draw.randint(min(int(np.ceil(video.moments.max())), length), length)
    clips = np.resize(other, video.clips.shape)
    clips[start:stop] = video.clips[start:stop]
    return replace(video, clips=clips)
