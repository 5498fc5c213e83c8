"""A simulated detector: proposals with scores, and a saliency curve, for simulated samples.

It makes the errors that published detectors make. It sees each region (the query's moments, and other events
of the video) with boundaries of its own, aims several proposals at each, some of which cover a part or run on
into a neighbour, and ranks them by the appeal of the region and by how well they fit it, not by the truth.
Only the best of near-duplicates keeps its rank, and the first score is far too sure of itself.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import AnyFloats, Ints64
from vmr_env.caches.format import Ragged
from vmr_env.metrics import spans
from vmr_env.simulation.config import SimulatorConfig
from vmr_env.simulation.videos import SimulatedSamples

_GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, stay evenly spread


@dataclass(frozen=True, slots=True)
class _Regions:
    """Regions that the detector may take for the answer: K = M + D a sample, of which some are padding.

    Attributes:
        spans: float64 (N, K, 2), true boundaries in seconds.
        real: bool (N, K), False for padding.
        targets: M, the first M regions are moments of the query.
        appeal: float64 (N, K), how much the region looks like the answer: deviation 1, and mean 0 for
            distractors.
    """

    spans: AnyFloats
    real: NDArray[np.bool_]
    targets: int
    appeal: AnyFloats


def simulated_regions(
    samples: SimulatedSamples, config: SimulatorConfig, rng: np.random.Generator
) -> _Regions:
    """The regions of each sample, with the appeal that proposals and saliency share."""
    targets = samples.moments.shape[1]
    boundaries = np.concatenate([samples.moments, samples.distractors], axis=1)
    is_target = np.arange(boundaries.shape[1]) < targets
    real = ~is_target | (np.arange(boundaries.shape[1]) < samples.counts[:, None])
    appeal = rng.normal(size=real.shape) + config.separation * is_target
    return _Regions(boundaries, real, targets, appeal)


def simulated_proposals(
    samples: SimulatedSamples, regions: _Regions, config: SimulatorConfig, rng: np.random.Generator
) -> tuple[AnyFloats, AnyFloats]:
    """Proposals (N, Q, 2) in seconds and their scores (N, Q), by falling score."""
    n, q = len(samples.durations), config.proposals
    aim = _aims(samples, regions, config, rng)
    anywhere = aim < 0
    rows = np.arange(n)[:, None]
    room = samples.durations[:, None, None]

    # A few videos are much harder than the rest: one factor scales all their noise.
    hardness = np.exp(config.noise_spread * rng.normal(size=(n, 1, 1)))
    perceived = _blurred(
        _pulled(regions.spans, config), config.region_noise * hardness, config.noise_floor, rng
    )
    wanted = perceived[rows, aim]
    part = rng.random((n, q)) < config.part_share
    merged = ~part & (rng.random((n, q)) < config.merged_share)
    wanted = np.where(part[..., None], _part(wanted, rng), wanted)
    wanted = np.where(merged[..., None], _merged(wanted, perceived, regions, rng), wanted)
    wanted = np.where(anywhere[..., None], _anywhere(regions, room, (n, q), rng), wanted)
    proposals = _blurred(wanted, config.proposal_noise * hardness, config.noise_floor, rng)
    proposals = spans.clip(np.round(proposals / config.submission_step) * config.submission_step, 0.0, room)

    fit = spans.tiou(proposals, regions.spans[rows, aim])
    value = np.where(
        anywhere, -config.anywhere_penalty, regions.appeal[rows, aim] + config.quality_weight * fit
    )
    value += config.rank_noise * rng.normal(size=(n, q))
    value -= config.duplicate_penalty * _better_siblings(aim, value)
    order = np.argsort(-value, axis=1, kind="stable")
    scores = _scores(np.take_along_axis(value, order, axis=1), config, rng)
    return np.take_along_axis(proposals, order[..., None], axis=1), scores


def _scores(value: AnyFloats, config: SimulatorConfig, rng: np.random.Generator) -> AnyFloats:
    """Scores of proposals (N, Q) by falling rank value, rounded to four decimals as in prediction files."""
    top = (
        config.top_logit
        + config.top_trust * value[:, :1]
        + config.top_spread * rng.normal(size=(len(value), 1))
    )
    rank = np.arange(value.shape[1])
    loss = (
        config.score_lead * (rank > 0) + config.score_rank * rank + config.score_lag * (value[:, :1] - value)
    )
    return np.round(1 / (1 + np.exp(loss - top)), 4)


def _aims(
    samples: SimulatedSamples, regions: _Regions, config: SimulatorConfig, rng: np.random.Generator
) -> Ints64:
    """The region at which each proposal aims: (N, Q), -1 for none.

    Evenly spread rather than independent: a detector's queries share the video out among themselves.
    """
    n, q = len(samples.counts), config.proposals
    kind = (np.arange(q) + rng.random((n, 1))) / q
    which = (np.arange(q) * _GOLDEN + rng.random((n, 1))) % 1
    target = (which * samples.counts[:, None]).astype(np.int64)
    distractor = regions.targets + (which * config.distractors).astype(np.int64)
    limit = config.target_share + config.distractor_share
    return np.where(kind < config.target_share, target, np.where(kind < limit, distractor, -1))


def _pulled(boundaries: AnyFloats, config: SimulatorConfig) -> AnyFloats:
    """Spans (N, K, 2) around the same centres, with lengths drawn to the typical one."""
    cxw = spans.to_cxw(boundaries)
    cxw[..., 1] = cxw[..., 1] ** (1 - config.length_pull) * config.typical_length**config.length_pull
    return spans.from_cxw(cxw)


def _blurred(boundaries: AnyFloats, noise: AnyFloats, floor: float, rng: np.random.Generator) -> AnyFloats:
    """Boundaries (N, K, 2) moved by noise relative to the length, of at least `floor` seconds."""
    deviation = np.hypot(noise * spans.lengths(boundaries)[..., None], floor)
    return np.sort(boundaries + deviation * rng.normal(size=boundaries.shape), axis=-1)


def _part(wanted: AnyFloats, rng: np.random.Generator) -> AnyFloats:
    """A part of 30 to 80 % of each span."""
    share = rng.uniform(0.3, 0.8, wanted.shape[:-1])
    length = spans.lengths(wanted)
    start = wanted[..., 0] + rng.random(share.shape) * (1 - share) * length
    return np.stack([start, start + share * length], axis=-1)


def _merged(
    wanted: AnyFloats, perceived: AnyFloats, regions: _Regions, rng: np.random.Generator
) -> AnyFloats:
    """Each span drawn out over another region, where that makes it less than three times as long."""
    n, q = wanted.shape[:2]
    other = rng.integers(regions.real.shape[1], size=(n, q))
    rows = np.arange(n)[:, None]
    start = np.minimum(wanted[..., 0], perceived[rows, other, 0])
    end = np.maximum(wanted[..., 1], perceived[rows, other, 1])
    near = regions.real[rows, other] & (end - start < 3 * spans.lengths(wanted))
    drawn = np.stack([start, end], axis=-1)
    return np.where(near[..., None], drawn, wanted)


def _anywhere(
    regions: _Regions, room: AnyFloats, shape: tuple[int, int], rng: np.random.Generator
) -> AnyFloats:
    """Spans as long as some region of another sample, anywhere in the video."""
    n, k = regions.real.shape
    lengths = spans.lengths(regions.spans)[
        rng.integers(n, size=shape), rng.integers(regions.targets, k, shape)
    ]
    lengths = np.minimum(lengths, room[..., 0])
    start = rng.random(shape) * (room[..., 0] - lengths)
    return np.stack([start, start + lengths], axis=-1)


def _better_siblings(aim: Ints64, value: AnyFloats) -> Ints64:
    """How many proposals of the same region have a higher value: (N, Q), 0 for proposals without a region."""
    order = np.lexsort((-value, aim), axis=-1)
    sorted_aim = np.take_along_axis(aim, order, axis=1)
    places = np.broadcast_to(np.arange(aim.shape[1]), aim.shape)
    begins = np.concatenate([np.ones_like(sorted_aim[:, :1]), np.diff(sorted_aim, axis=1)], axis=1) != 0
    rank = places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    better = np.empty_like(aim)
    np.put_along_axis(better, order, np.where(sorted_aim < 0, 0, rank), axis=1)
    return better


def simulated_saliency(
    samples: SimulatedSamples,
    regions: _Regions,
    n_clips: NDArray[np.int32],
    clip_seconds: float,
    config: SimulatorConfig,
    rng: np.random.Generator,
) -> Ragged:
    """One value per clip: raised over the regions by their appeal, with blurred, jittered edges and noise."""
    offsets = np.concatenate([[0], np.cumsum(n_clips)]).astype(np.int64)
    is_target = np.arange(regions.real.shape[1]) < regions.targets
    height = config.saliency_target * is_target + config.saliency_appeal * (
        regions.appeal - config.separation * is_target
    )
    height = (height + config.saliency_spread * rng.normal(size=height.shape)) * regions.real
    jittered = _blurred(regions.spans, np.full((1, 1, 1), config.saliency_jitter), 0.0, rng)
    edges = np.clip(jittered / clip_seconds, 0, n_clips[:, None, None])

    # Each edge adds its height from its place on: steps, shared between the two clips around them, summed up
    # from left to right. A spare clip behind each video takes the edges at its end.
    place = np.floor(edges).astype(np.int64)
    late = edges - place
    step = height[..., None] * np.array([1.0, -1.0])
    videos = np.arange(len(n_clips))
    at = ((offsets[:-1] + videos)[:, None, None] + place).ravel()
    steps = np.bincount(at, (step * (1 - late)).ravel(), offsets[-1] + len(videos) + 1)
    steps += np.bincount(at + 1, (step * late).ravel(), len(steps))
    raised = np.cumsum(steps)[np.arange(offsets[-1]) + np.repeat(videos, n_clips)]

    curve = _averaged(_averaged(raised, offsets, config.saliency_blur), offsets, config.saliency_blur)
    drift = _averaged(rng.normal(size=len(curve)), offsets, 8) * np.sqrt(8)
    curve += config.saliency_drift * drift + config.saliency_noise * rng.normal(size=len(curve))
    return Ragged(curve.astype(np.float32), offsets)


def _averaged(values: AnyFloats, offsets: Ints64, width: int) -> AnyFloats:
    """Moving average over `width` clips that stays within each sample."""
    lengths = np.diff(offsets)
    place = np.arange(len(values))
    low = np.maximum(place - (width - 1) // 2, np.repeat(offsets[:-1], lengths))
    high = np.minimum(place + width // 2 + 1, np.repeat(offsets[1:], lengths))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    result: AnyFloats = (sums[high] - sums[low]) / (high - low)
    return result
