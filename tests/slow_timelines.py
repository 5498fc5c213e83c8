"""A timeline as `vmr_env.caches.boundary_features` tells it: plain Python in float64, number by number."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from vmr_env.caches.reader import DecoderStateCache

CELLS = 128


class SlowTimeline(NamedTuple):
    """The points of the video, and the proposals, each with its features by name."""

    points: list[list[float]]
    proposals: list[list[float]]


def shares(weights: Sequence[float]) -> list[float]:
    """Each by the sum of all; 0 where that is 0."""
    total = sum(weights)
    return [weight / total if total else 0.0 for weight in weights]


def squashed(curve: Sequence[float]) -> list[float]:
    """tanh(z / 2) of a curve at the middles of the cells."""
    mean = sum(curve) / len(curve)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in curve) / len(curve))
    clips = [math.tanh((value - mean) / deviation / 2) if deviation else 0.0 for value in curve]

    def at(position: float) -> float:
        left = math.floor(position - 0.5)
        share = position - 0.5 - left
        near = [clips[min(max(i, 0), len(clips) - 1)] for i in (left, left + 1)]
        return (1 - share) * near[0] + share * near[1]

    return [at((cell + 0.5) / CELLS * len(curve)) for cell in range(CELLS)]


def slow_timeline(
    spans: Sequence[tuple[float, float]],
    scores: Sequence[float],
    models: Sequence[int],
    clip: float,
    saliency: Sequence[float] | None,
) -> SlowTimeline:
    """The timeline of one sample; `clip` is the length of a clip as a share of the video."""
    numbers = range(len(spans))
    by_score, by_root = shares(scores), shares([math.sqrt(score) for score in scores])
    by_model = shares([float(models[q] not in models[:q]) for q in numbers])

    def density(point: int, side: int, clips: float, weights: Sequence[float]) -> float:
        deviation = max(clips * clip, 0.5 / CELLS)
        distances = [(point / CELLS - span[side]) / deviation for span in spans]
        return sum(weights[q] * math.exp(-0.5 * distances[q] ** 2) for q in numbers)

    def covered(cell: int, weights: Sequence[float]) -> float:
        middle = (cell + 0.5) / CELLS
        return sum(weights[q] for q in numbers if spans[q][0] <= middle < spans[q][1])

    curves = [[covered(cell, weights) for cell in range(CELLS)] for weights in (by_score, by_root, by_model)]
    curves.append([0.0] * CELLS if saliency is None else squashed(saliency))
    reach = max(1, round(3 * clip * CELLS))

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values) if values else 0.0

    points = []
    for point in range(CELLS + 1):
        densities = [
            density(point, side, clips, weights)
            for side in (0, 1)
            for clips in (1.0, 2.5)
            for weights in (by_score, by_root)
        ]
        edges = [mean(curves[3][max(point - reach, 0) : point]), mean(curves[3][point : point + reach])]
        points.append([*densities, *edges, *(sum(curve[:point]) / CELLS for curve in curves)])

    def proposal(q: int) -> list[float]:
        start, end = spans[q]
        first, last = (points[round(boundary * CELLS)] for boundary in (start, end))
        mass = [b - a for a, b in zip(first[10:], last[10:], strict=True)]
        inside = [value / max(end - start, 1 / CELLS) for value in mass]
        inside += [value / max(whole, 1e-3) for value, whole in zip(mass[:3], points[-1][10:13], strict=True)]
        logit = math.log((scores[q] + 1e-3) / (1 - scores[q] + 1e-3)) / 7
        length = math.log((end - start) / clip + 1) / math.log(1501)
        found = [*first[:10], *last[:10], *inside, start, end, end - start, length, scores[q], logit]
        return [min(max(value, -1.0), 1.0) for value in [*found, min(q / 10, 1.0)]]

    return SlowTimeline(points, [proposal(q) for q in numbers])


@lru_cache
def slow_timeline_of(cache: DecoderStateCache, sample: int) -> SlowTimeline:
    """The timeline of a sample of a cache."""
    count = int(cache.counts[sample])
    return slow_timeline(
        [(float(start), float(end)) for start, end in cache.spans[sample, :count]],
        cache.scores[sample, :count].tolist(),
        cache.models[sample, :count].tolist(),
        cache.manifest["clip_seconds"] / float(cache.durations[sample]),
        None if cache.saliency is None else cache.saliency[sample].tolist(),
    )
