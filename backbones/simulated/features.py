"""Simulated videos with clip and token features, at the published statistics of a dataset profile.

Nothing has to be downloaded for them; they are meant to be learnable and not trivial. Durations, moments and
the number of queries come from the same draws as the detector simulator's (`vmr_env.simulation.videos`). On
top of them:

* A world of verbs and objects, each a direction in a concept space. An activity is a verb with an object; its
  vector is their sum. Clips and words see concepts through two different fixed random maps, so a model has to
  learn to align them.
* A video shows the activities that are asked for and others; half of all activities share their verb or their
  object with another one of the video.
* A clip: the activities that go on at its time, each with its own strength and with a visibility that comes
  and goes, a vector for the scene that stays the same through the video, and noise. Activities fade in and
  out over about a clip.
* An annotator, who misses the true boundaries by a random amount.
* A query: ``person VERB the OBJECT``, one feature vector per word, with some noise.

Features made here are always labelled ``simulated``.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Floats
from vmr_env.backbones.features.store import FeatureStoreWriter
from vmr_env.data.annotations import Annotation
from vmr_env.data.profiles import DatasetProfile
from vmr_env.files.text import PathLike, write_text
from vmr_env.simulation.config import CONFIGS
from vmr_env.simulation.videos import draw_samples, statistics_of

Times = NDArray[Any]

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
class SimulatedFeatures:
    """Simulated samples with their features."""

    annotations: list[Annotation]
    clips: dict[str, Floats]
    """By vid ``(T, clip_dim)``."""
    tokens: list[Floats]
    """Per annotation ``(words, token_dim)``."""


class Simulator:
    """Draws videos of one world and profile."""

    def __init__(self, profile: DatasetProfile, world: World | None = None) -> None:
        self.profile = profile
        self.world = world or World()
        self._vectors = self.world.vectors()
        self._step = CONFIGS[profile.name].annotation_step

    def draw(self, samples: int, seed: int) -> SimulatedFeatures:
        """Draw samples, those of one video together; video names hold the seed."""
        rng = np.random.default_rng(seed)
        drawn = draw_samples(statistics_of(self.profile), CONFIGS[self.profile.name], samples, rng)
        result = SimulatedFeatures([], {}, [])
        for video in range(int(drawn.videos[-1]) + 1):
            rows = np.flatnonzero(drawn.videos == video)
            asked, first = np.unique(drawn.events[rows], return_index=True)
            moments = [drawn.moments[row, : drawn.counts[row]] for row in rows[first]]
            moments += [other[None] for other in drawn.distractors[rows[0]]]
            activities = self._activities(len(moments), rng)
            name, duration = f"sim-{seed}-{video:05d}", float(drawn.durations[rows[0]])
            presence = self._presence(moments, duration, rng)
            result.clips[name] = self._clips(activities, presence, rng)
            for row in rows:
                which = int(np.flatnonzero(asked == drawn.events[row])[0])
                verb, thing = activities[which]
                noted, ids, ratings = self._annotated(moments[which], presence[which], duration, rng)
                sentence = f"person {VERBS[verb]} the {OBJECTS[thing]}."
                result.annotations.append(Annotation(int(row), name, sentence, duration, noted, ids, ratings))
                result.tokens.append(self._tokens(verb, thing, rng))
        return result

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

    def _presence(self, moments: list[Times], duration: float, rng: np.random.Generator) -> Floats:
        """Visibility of each activity in each clip: ``(activities, T)``."""
        world, seconds = self.world, self.profile.clip_seconds
        length = int(np.ceil(duration / seconds))
        times = np.arange(length) + 0.5
        presence = np.empty((len(moments), length), np.float32)
        for row, bounds in zip(presence, (rows / seconds for rows in moments), strict=True):
            begun = np.tanh((times - bounds[:, :1]) / world.fade)
            ended = np.tanh((times - bounds[:, 1:]) / world.fade)
            slow = np.convolve(rng.standard_normal(length + 4), np.ones(5) / np.sqrt(5), "valid")
            visible = np.where(slow < NormalDist().inv_cdf(world.visibility), 1.0, 0.25)
            row[:] = np.exp(0.25 * rng.standard_normal()) * visible * ((1 + begun) * (1 - ended) / 4).sum(0)
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
        return np.asarray(rows + self.world.word_noise * rng.standard_normal(rows.shape), np.float32)

    def _annotated(
        self, moments: Times, presence: Floats, duration: float, rng: np.random.Generator
    ) -> tuple[Times, NDArray[np.int64] | None, NDArray[np.int64] | None]:
        """Labels of an activity by an annotator: moments, rated clips, ratings."""
        shortest = self.profile.clip_seconds
        error = self.world.boundary_seconds * rng.standard_normal(moments.shape)
        noted = np.sort(moments + error, axis=1)
        starts = self._on_grid(noted[:, 0].clip(0, duration - shortest))
        ends = self._on_grid(np.maximum(noted[:, 1], starts + shortest))
        noted = np.stack([starts, ends.clip(max=duration)], axis=1)
        if not self.profile.has_saliency:
            return noted, None, None
        middles = (np.arange(len(presence)) + 0.5) * self.profile.clip_seconds
        inside = ((middles[:, None] > noted[:, 0]) & (middles[:, None] < noted[:, 1])).any(1)
        ids = np.flatnonzero(inside & (middles + self.profile.clip_seconds / 2 <= duration))
        ratings = 3 * presence[ids, None] + rng.normal(0, 0.7, (len(ids), 3))
        return noted, ids, ratings.round().clip(0, 4).astype(np.int64)

    def _on_grid(self, seconds: Times) -> Times:
        """Times rounded to multiples of the annotation step, without a tail of binary digits."""
        return np.round(np.round(seconds / self._step) * self._step, 6)


def write_simulated(
    folder: PathLike, profile: DatasetProfile, samples: int, seed: int, world: World | None = None
) -> None:
    """Draw samples; write ``annotations.jsonl`` and the feature stores ``clips`` and ``text`` into `folder`.

    Args:
        folder: made by this function; must not exist.
        profile: statistics.
        samples: number of queries.
        seed: of the videos; different seeds give different videos of the same world.
        world: None for the default one.
    """
    folder = Path(folder)
    simulator = Simulator(profile, world)
    drawn = simulator.draw(samples, seed)
    origin: dict[str, Any] = {"profile": profile.name, "seed": seed, "world": asdict(simulator.world)}
    folder.mkdir(parents=True)
    options: dict[str, Any] = {"source": "simulated", "origin": {"features": "simulated", **origin}}
    with FeatureStoreWriter(folder / "clips", **options) as clips:
        for vid, rows in drawn.clips.items():
            clips.add(vid, rows)
    with FeatureStoreWriter(folder / "text", **options) as text:
        for row, tokens in zip(drawn.annotations, drawn.tokens, strict=True):
            text.add(str(row.qid), tokens)
    write_annotations(folder / "annotations.jsonl", drawn.annotations)


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
