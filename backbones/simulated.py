"""Simulated videos with clip and token features, at the published statistics of a dataset profile.

Nothing has to be downloaded for them; they are meant to be learnable and not trivial. What is simulated:

* A world of verbs and objects, each a direction in a concept space. An activity is a verb with an object;
its vector is
  their sum. Clips and words see concepts through two different fixed random maps, so a model has to learn to
  align them.
* A video: its length, the number of its queries, and the moments of each query are drawn from the profile.
Each query has
  an activity of its own, and as many unasked activities are added; half of all activities share their verb or
  their object with another one of the video.
* A clip: the activities that go on at its time, each with its own strength and with a visibility that comes
and
  goes, a vector for the scene that stays the same through the video, and noise. Activities fade in and out
  over about a clip.
* An annotator, who misses the true boundaries by a random amount.
* A query: ``person VERB the OBJECT``, one feature vector per word, with some noise.

Features made here are always labelled ``simulated``.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backbones.feature_store import FeatureStoreWriter
from vmr_env.annotations import Annotation
from vmr_env.files import PathLike, write_text
from vmr_env.profiles import DatasetProfile

Floats = NDArray[np.float32]

VERBS = (
    *("opens", "closes", "takes", "holds", "washes", "moves"),
    *("throws", "cuts", "watches", "fixes", "carries", "drops"),
)
OBJECTS = (
    *("door", "book", "cup", "towel", "phone", "bag"),
    *("chair", "box", "window", "laptop", "blanket", "sandwich"),
)
FILLERS = ("person", "the", ".")


@dataclass(frozen=True)
class World:
    """Everything that training and test videos have in common.

    Attributes:
        seed: of all fixed vectors.
        concepts: width of the concept space.
        clip_dim: width of clip features.
        token_dim: width of token features.
        noise: standard deviation of the noise of each clip channel, beside activities of length about 1.
        scene: length of the vector that all clips of a video share.
        visibility: share of the time for which a going activity is plainly visible.
        fade: how slowly activities come and go, in clips.
        boundary_seconds: standard deviation of the annotator's error at each boundary.
        word_noise: standard deviation of the noise of each token channel, beside words of length 1.
    """

    seed: int = 7
    concepts: int = 24
    clip_dim: int = 48
    token_dim: int = 48
    noise: float = 0.12
    scene: float = 1.0
    visibility: float = 0.75
    fade: float = 0.7
    boundary_seconds: float = 0.7
    word_noise: float = 0.05

    def vectors(self) -> dict[str, Floats]:
        """Concepts of verbs and objects, and what words and clips make of them."""
        rng = np.random.default_rng(self.seed)
        words = (*VERBS, *OBJECTS)
        concepts = unit_rows(rng.standard_normal((len(words), self.concepts)))
        to_clip = unit_rows(rng.standard_normal((self.concepts, self.clip_dim)))
        to_token = unit_rows(rng.standard_normal((self.concepts, self.token_dim)))
        fillers = unit_rows(rng.standard_normal((len(FILLERS), self.token_dim)))
        return {
            "clips": unit_rows(concepts @ to_clip),
            "tokens": np.concatenate([unit_rows(concepts @ to_token), fillers]),
        }


@dataclass(frozen=True)
class SimulatedVideo:
    """One video with its queries."""

    annotations: list[Annotation]
    clips: Floats
    """``(T, clip_dim)``."""
    tokens: list[Floats]
    """Per query ``(words, token_dim)``."""


class Simulator:
    """Draws videos of one world and profile."""

    def __init__(self, profile: DatasetProfile, world: World | None = None) -> None:
        self.profile = profile
        self.world = world or World()
        self._vectors = self.world.vectors()

    def video(self, name: str, first_qid: int, rng: np.random.Generator) -> SimulatedVideo:
        """Draw one video; its queries are numbered from `first_qid`."""
        profile = self.profile
        # Rated videos and their moments lie on the grid of clips; other times are given to a tenth of a
        # second.
        grid = profile.clip_seconds if profile.has_saliency else 0.1
        duration = float(_on_grid(_draw(profile.durations, rng), grid))
        # The mean number of queries; TACoS has many on each video, of which a few are enough here.
        count = 1 + min(int(rng.poisson(max(profile.queries_per_video - 1, 0))), 7)
        activities = self._activities(2 * count, rng)
        moments = [self._moments(duration, rng) for _ in activities]
        length = int(np.ceil(duration / profile.clip_seconds))
        presence = np.stack([self._presence(rows, length, rng) for rows in moments])  # (activities, T)
        annotations = [
            self._annotation(name, first_qid + i, activities[i], moments[i], presence[i], duration, grid, rng)
            for i in range(count)
        ]
        tokens = [self._tokens(*activity, rng) for activity in activities[:count]]
        return SimulatedVideo(annotations, self._clips(activities, presence, rng), tokens)

    def _activities(self, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Different (verb, object) pairs; about half share one of the two with an earlier pair."""
        chosen: list[tuple[int, int]] = []
        while len(chosen) < count:
            verb, thing = int(rng.integers(len(VERBS))), int(rng.integers(len(OBJECTS)))
            if chosen and rng.random() < 0.5:
                like = chosen[int(rng.integers(len(chosen)))]
                verb, thing = (like[0], thing) if rng.random() < 0.5 else (verb, like[1])
            if (verb, thing) not in chosen:
                chosen.append((verb, thing))
        return chosen

    def _moments(self, duration: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """Moments of one query, in time order, apart from each other by a clip at least."""
        profile = self.profile
        count = 1 + int(rng.choice(len(profile.moments_per_query), p=_shares(profile.moments_per_query)))
        moments: list[tuple[float, float]] = []
        for _ in range(count):
            length = min(max(_draw(profile.moment_lengths, rng), profile.clip_seconds), duration)
            start = _draw(profile.moment_positions, rng) * (duration - length)
            gap = profile.clip_seconds
            if all(start > end + gap or start + length < begin - gap for begin, end in moments):
                moments.append((start, start + length))
        return np.array(sorted(moments))

    def _presence(self, moments: NDArray[np.float64], length: int, rng: np.random.Generator) -> Floats:
        """How plainly an activity is seen in each clip ``(T,)``."""
        world = self.world
        times = np.arange(length) + 0.5
        bounds = moments / self.profile.clip_seconds
        begun = np.tanh((times - bounds[:, :1]) / world.fade)
        ended = np.tanh((times - bounds[:, 1:]) / world.fade)
        inside = (1 + begun) * (1 - ended) / 4
        slow = np.convolve(rng.standard_normal(length + 4), np.ones(5) / np.sqrt(5), "valid")
        hidden = slow > _normal_quantile(world.visibility)
        strength = np.exp(0.25 * rng.standard_normal())
        presence: Floats = (strength * inside.sum(0) * np.where(hidden, 0.25, 1.0)).astype(np.float32)
        return presence

    def _clips(self, activities: list[tuple[int, int]], presence: Floats, rng: np.random.Generator) -> Floats:
        world, words = self.world, self._vectors["clips"]
        shown = np.stack([words[verb] + words[len(VERBS) + thing] for verb, thing in activities])
        scene = world.scene * unit_rows(rng.standard_normal((1, world.clip_dim)))
        noise = world.noise * rng.standard_normal((presence.shape[1], world.clip_dim))
        return np.asarray(presence.T @ shown + scene + noise, np.float32)

    def _tokens(self, verb: int, thing: int, rng: np.random.Generator) -> Floats:
        words = self._vectors["tokens"]
        person, the, stop = range(len(VERBS) + len(OBJECTS), len(words))
        rows = words[[person, verb, the, len(VERBS) + thing, stop]]
        return (rows + self.world.word_noise * rng.standard_normal(rows.shape)).astype(np.float32)

    def _annotation(
        self,
        name: str,
        qid: int,
        activity: tuple[int, int],
        moments: NDArray[np.float64],
        presence: Floats,
        duration: float,
        grid: float,
        rng: np.random.Generator,
    ) -> Annotation:
        verb, thing = activity
        profile = self.profile
        error = self.world.boundary_seconds * rng.standard_normal(moments.shape)
        noted = np.sort(moments + error, axis=1)
        shortest = profile.clip_seconds
        starts = _on_grid(noted[:, 0].clip(0, duration - shortest), grid)
        ends = _on_grid(np.maximum(noted[:, 1], starts + shortest).clip(max=duration), grid)
        noted = np.stack([starts, ends], axis=1)
        ids = scores = None
        if profile.has_saliency:
            middles = (np.arange(len(presence)) + 0.5) * profile.clip_seconds
            ids = np.flatnonzero(((middles[:, None] > noted[:, 0]) & (middles[:, None] < noted[:, 1])).any(1))
            raw = 3 * presence[ids, None] + rng.normal(0, 0.7, (len(ids), 3))
            scores = raw.round().clip(0, 4).astype(np.int64)
        return Annotation(
            qid, name, f"person {VERBS[verb]} the {OBJECTS[thing]}.", duration, noted, ids, scores
        )


def write_simulated(
    folder: PathLike, profile: DatasetProfile, videos: int, seed: int, world: World | None = None
) -> None:
    """Draw videos; write ``annotations.jsonl`` and the feature stores ``clips`` and ``text`` into `folder`.

    Args:
        folder: made by this function; must not exist.
        profile: statistics.
        videos: number of videos.
        seed: of the videos; different seeds give different videos of the same world.
        world: None for the default one.
    """
    folder = Path(folder)
    simulator = Simulator(profile, world)
    rng = np.random.default_rng(seed)
    origin: dict[str, Any] = {"profile": profile.name, "seed": seed, "world": asdict(simulator.world)}
    folder.mkdir(parents=True)
    rows: list[Annotation] = []
    with (
        FeatureStoreWriter(
            folder / "clips", source="simulated", origin={"features": "simulated", **origin}
        ) as clips,
        FeatureStoreWriter(folder / "text", source="simulated", origin=origin) as text,
    ):
        for index in range(videos):
            video = simulator.video(f"sim-{seed}-{index:05d}", len(rows), rng)
            clips.add(video.annotations[0].vid, video.clips)
            for row, tokens in zip(video.annotations, video.tokens, strict=True):
                text.add(str(row.qid), tokens)
            rows += video.annotations
    write_annotations(folder / "annotations.jsonl", rows)


def write_annotations(path: PathLike, rows: Iterable[Annotation]) -> None:
    """Write annotations in the moment-detr format."""
    lines = []
    for row in rows:
        fields: dict[str, Any] = {
            "qid": row.qid,
            "query": row.query,
            "duration": row.duration,
            "vid": row.vid,
            "relevant_windows": row.moments.tolist(),
        }
        if row.clip_ids is not None and row.saliency is not None:
            fields |= {"relevant_clip_ids": row.clip_ids.tolist(), "saliency_scores": row.saliency.tolist()}
        lines.append(json.dumps(fields))
    write_text(path, "\n".join(lines) + "\n")


def unit_rows(rows: NDArray[Any]) -> Floats:
    """Rows of ``(N, D)`` divided by their lengths."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / lengths, np.float32)


def _on_grid(seconds: Any, step: float) -> Any:
    """Times rounded to multiples of `step`, without a tail of binary digits."""
    return np.round(np.round(np.asarray(seconds) / step) * step, 6)


def _draw(quantiles: tuple[float, ...], rng: np.random.Generator) -> float:
    return float(np.interp(rng.random(), np.linspace(0, 1, len(quantiles)), quantiles))


def _shares(values: tuple[float, ...]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.asarray(values) / np.sum(values)
    return shares


def _normal_quantile(share: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(share)
