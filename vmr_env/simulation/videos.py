"""Simulated videos: durations, events and queries drawn to the statistics of a data set."""

from dataclasses import dataclass

import numpy as np

from vmr_env.arrays import AnyFloats, Ints64
from vmr_env.data.profiles import DatasetProfile, Quantiles, VideoStatistics
from vmr_env.errors import DataError, Problem
from vmr_env.simulation.config import SimulatorConfig


@dataclass(frozen=True, slots=True)
class SimulatedSamples:
    """N samples; those of one video stand together.

    Attributes:
        videos: int64 (N,), number of the video, from 0.
        events: int64 (N,), number of the event within its video that the query asks for.
        durations: float64 (N,), seconds.
        moments: float64 (N, M, 2), seconds, in the order of time; zeros after the last one.
        counts: int64 (N,), moments of each sample, from 1.
        distractors: float64 (N, D, 2), seconds: moments of other events of the same video.
    """

    videos: Ints64
    events: Ints64
    durations: AnyFloats
    moments: AnyFloats
    counts: Ints64
    distractors: AnyFloats


def statistics_of(profile: DatasetProfile) -> VideoStatistics:
    """The statistics of a profile.

    Raises:
        DataError: it has none.
    """
    if profile.statistics is None:
        message = f"data set {profile.name} has none, so nothing can be simulated; name a cache instead"
        raise DataError(Problem("statistics", None, None, message))
    return profile.statistics


def draw_samples(
    statistics: VideoStatistics, config: SimulatorConfig, n: int, rng: np.random.Generator
) -> SimulatedSamples:
    """n samples of as many videos as that takes."""
    mean = (statistics.queries_per_video - 1) * rng.gamma(config.query_spread, 1 / config.query_spread, n)
    videos = np.repeat(np.arange(n), 1 + rng.poisson(mean))[:n]
    ranks = rng.random(videos[-1] + 1)
    durations = np.round(_on_grid(_quantile(statistics.durations, ranks), config.duration_step), 2)
    moments, counts = _events(statistics, config, durations, ranks, rng)
    total = config.events_per_video
    events = rng.integers(total, size=n)
    others = (events[:, None] + rng.integers(1, total, (n, config.distractors))) % total
    return SimulatedSamples(
        videos=videos,
        events=events,
        durations=durations[videos],
        moments=moments[videos, events],
        counts=counts[videos, events],
        distractors=moments[videos[:, None], others, 0],
    )


def _quantile(table: Quantiles, ranks: AnyFloats) -> AnyFloats:
    return np.interp(ranks, np.linspace(0, 1, len(table)), table)


def _events(
    statistics: VideoStatistics,
    config: SimulatorConfig,
    durations: AnyFloats,
    ranks: AnyFloats,
    rng: np.random.Generator,
) -> tuple[AnyFloats, Ints64]:
    """Moments of every event of every video: (V, E, M, 2) seconds, and their number (V, E)."""
    shares = np.array(statistics.moments_per_query)
    most = len(shares)
    shape = (len(durations), config.events_per_video, most)
    counts = 1 + np.searchsorted(np.cumsum(shares)[:-1], rng.random(shape[:2]))
    room = durations[:, None, None]

    length_ranks = _length_ranks(shares, config.single_rank, counts, shape, rng)
    bound = rng.random(shape) < config.duration_bond
    lengths = _quantile(statistics.moment_lengths, np.where(bound, ranks[:, None, None], length_ranks))
    lengths = _on_grid(np.minimum(lengths, config.max_cover * room), config.annotation_step)
    gaps = _on_grid(_quantile(config.gaps, rng.random(shape)), config.annotation_step)
    gaps[..., 0] = 0

    # What does not fit behind the moments before it is left out; the first one always fits.
    ends = np.cumsum(lengths + gaps, axis=-1)
    counts = np.minimum(counts, (ends <= room).sum(axis=-1))
    counts = np.maximum(counts, 1)
    last = np.take_along_axis(ends, counts[..., None] - 1, axis=-1)
    positions = _quantile(statistics.moment_positions, rng.random((*shape[:2], 1)))
    ends += _on_grid(positions * np.maximum(room - last, 0), config.annotation_step)
    moments = np.stack([ends - lengths, np.minimum(ends, room)], axis=-1)
    real = np.arange(most) < counts[..., None]
    return np.round(moments, 2) * real[..., None], counts


def _length_ranks(
    shares: AnyFloats, floor: float, counts: Ints64, shape: tuple[int, ...], rng: np.random.Generator
) -> AnyFloats:
    """Uniform ranks of moment length over all moments, of which single ones take only those above `floor`."""
    single = shares[0] / (shares * np.arange(1, len(shares) + 1)).sum()
    ranks = rng.random(shape)
    # The ranks above the floor are shared; the density left there for the other moments is `above`.
    above = (1 - floor - single) / (1 - single) if single < 1 else 1.0
    low = 1 - above
    several = np.where(
        ranks < low, ranks / max(low, 1e-9) * floor, floor + (ranks - low) / above * (1 - floor)
    )
    return np.where(counts[..., None] == 1, floor + ranks * (1 - floor), several)


def _on_grid(seconds: AnyFloats, step: float) -> AnyFloats:
    result: AnyFloats = np.maximum(np.round(seconds / step), 0) * step
    return result
