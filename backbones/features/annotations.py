"""Annotation-derived clip features for Charades: what a noisy action detector might have seen.

    python -m vmr_env.backbones.features.annotations Charades_v1_test.csv.gz \\
        --annotations charades_sta_test.jsonl --out features/charades-test

Charades-STA was made from the action labels of the parent data set, so features made from those labels hold
the answer, blurred by the noise below. They show what a model does with features of a stated quality; they
are no video features, are always labelled `annotation-derived`, and figures made from them are evidence
for nothing else.

The noise model, per video:

1. Each labelled action is missed with probability `miss`.
2. One that is found is taken for another class with probability `confusion`, drawn from the classes by their
   frequency in the table.
3. Its start and end move by normal errors with deviation `jitter_seconds + jitter_share * length`.
4. As many false detections as a Poisson number of mean `false_rate` are added, of classes drawn by frequency
   and with the length of a random true action at a random place.
5. A detection has a confidence, drawn from Beta(5, 2) if it is of the right class and Beta(2, 3) if not; its
   score in a clip is the confidence times the share of the clip that it covers.
6. Each clip and class gets normal noise of deviation `score_noise`.

The features of a clip are the scores of all classes (157 for Charades), the highest where detections of a
class overlap.
"""

import argparse
import csv
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vmr_env.arrays import Floats
from vmr_env.backbones.features.sources import read_samples
from vmr_env.backbones.features.store import FeatureStore, FeatureStoreWriter
from vmr_env.data.annotations import Annotation
from vmr_env.data.profiles import get_profile
from vmr_env.errors import DataError, DataWarning, Problem, shorten
from vmr_env.files.text import PathLike, read_lines
from vmr_env.programs import run_program


@dataclass(frozen=True)
class DetectorNoise:
    """Parameters of the noise model; see the module's text."""

    miss: float = 0.25
    confusion: float = 0.2
    jitter_seconds: float = 0.5
    jitter_share: float = 0.1
    false_rate: float = 2.0
    score_noise: float = 0.05


@dataclass(frozen=True)
class Action:
    """One labelled action: class number, start and end in seconds."""

    label: int
    start: float
    end: float


def read_actions(
    path: PathLike, classes: int, *, reversed_actions: Literal["error", "drop"] = "error"
) -> dict[str, list[Action]]:
    """Labelled actions of each video of an AI2 Charades table (``.csv``, ``.csv.gz``).

    Args:
        path: has the columns ``id`` and ``actions``; the latter like ``c092 11.90 21.20;c147 0.00 12.60``.
        classes: number of action classes, ``c000`` onwards.
        reversed_actions: "error" reports actions that end before they start (the train table has seven);
            "drop" leaves them out and counts them in a `DataWarning`.

    Raises:
        DataError: all broken rows.
    """
    videos: dict[str, list[Action]] = {}
    problems: list[Problem] = []
    dropped = 0
    reader = csv.DictReader(read_lines(path))
    if missing := {"id", "actions"} - set(reader.fieldnames or ()):
        raise DataError(
            Problem(str(path), 1, min(missing), f"is no column; found {shorten(reader.fieldnames)}")
        )
    for number, row in enumerate(reader, start=2):
        actions = []
        for text in filter(None, (row["actions"] or "").split(";")):
            action = _action(text, classes)
            if action is not None and action.end <= action.start and reversed_actions == "drop":
                dropped += 1
            elif action is None or action.end <= action.start:
                expected = f"a class below c{classes:03d}, start and end in seconds"
                problems.append(
                    Problem(str(path), number, "actions", f"{shorten(text)}; expected {expected}")
                )
            else:
                actions.append(action)
        if row["id"] in videos:
            problems.append(Problem(str(path), number, "id", f"is {row['id']!r}, as in an earlier row"))
        videos[row["id"]] = actions
    if problems:
        raise DataError(problems)
    if dropped:
        warnings.warn(f"{path}: {dropped} actions with end <= start were left out", DataWarning, stacklevel=2)
    return videos


def _action(text: str, classes: int) -> Action | None:
    try:
        name, start, end = text.split()
        action = Action(int(name.removeprefix("c")), float(start), float(end))
    except ValueError:
        return None
    return (
        action if action.label in range(classes) and action.start >= 0 and np.isfinite(action.end) else None
    )


def simulate_detector(
    actions: Sequence[Action],
    frequencies: NDArray[np.float64],
    lengths: NDArray[np.float64],
    duration: float,
    clip_seconds: float,
    noise: DetectorNoise,
    rng: np.random.Generator,
) -> Floats:
    """Clip features ``(T, classes)`` of one video under the noise model.

    Args:
        actions: what truly happens.
        frequencies: share of each class in the table.
        lengths: lengths of all actions of the table in seconds.
        duration: of the video in seconds.
        clip_seconds: length of a clip.
        noise: parameters.
        rng: source of all draws.
    """
    length = int(np.ceil(duration / clip_seconds))
    scores = np.zeros((length, len(frequencies)), np.float32)
    edges = np.arange(length + 1) * clip_seconds
    for label, start, end, confidence in _detections(actions, frequencies, lengths, duration, noise, rng):
        covered = (np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)).clip(0) / clip_seconds
        scores[:, label] = np.maximum(scores[:, label], confidence * covered)
    scores += rng.normal(0, noise.score_noise, scores.shape).astype(np.float32)
    return scores


def _detections(
    actions: Sequence[Action],
    frequencies: NDArray[np.float64],
    lengths: NDArray[np.float64],
    duration: float,
    noise: DetectorNoise,
    rng: np.random.Generator,
) -> Iterator[tuple[int, float, float, float]]:
    """Label, start, end and confidence of each detection."""
    for action in actions:
        if rng.random() < noise.miss:
            continue
        confused = rng.random() < noise.confusion
        label = int(rng.choice(len(frequencies), p=frequencies)) if confused else action.label
        deviation = noise.jitter_seconds + noise.jitter_share * (action.end - action.start)
        start, end = sorted(rng.normal((action.start, action.end), deviation).tolist())
        right = label == action.label
        yield label, start, end, float(rng.beta(5, 2) if right else rng.beta(2, 3))
    for _ in range(rng.poisson(noise.false_rate)):
        label = int(rng.choice(len(frequencies), p=frequencies))
        extent = min(float(rng.choice(lengths)), duration)
        start = rng.uniform(0, duration - extent)
        yield label, start, start + extent, float(rng.beta(2, 3))


def build_annotation_store(
    path: PathLike,
    rows: Sequence[Annotation],
    actions: Mapping[str, Sequence[Action]],
    *,
    classes: int,
    clip_seconds: float,
    noise: DetectorNoise,
    seed: int,
) -> FeatureStore:
    """Annotation-derived features of all videos of `rows` as a feature store.

    Each video's noise depends on the seed and its name alone.

    Raises:
        DataError: videos without an entry in the table.
    """
    durations = {row.vid: row.duration for row in rows}
    if unknown := [vid for vid in durations if vid not in actions]:
        raise DataError(Problem("actions", None, vid, "is no video of the table") for vid in unknown)
    labels = [action.label for found in actions.values() for action in found]
    frequencies = np.bincount(labels, minlength=classes) / len(labels)
    lengths = np.array([action.end - action.start for found in actions.values() for action in found]).clip(
        0.1
    )
    origin: dict[str, Any] = {"features": "noisy action labels", "noise": asdict(noise), "seed": seed}
    with FeatureStoreWriter(path, source="annotation-derived", origin=origin) as writer:
        for vid, duration in durations.items():
            key = hashlib.sha256(f"{seed} {vid}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(key[:8], "little"))
            writer.add(
                vid,
                simulate_detector(actions[vid], frequencies, lengths, duration, clip_seconds, noise, rng),
            )
    return FeatureStore(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: annotation-derived features of Charades videos."""
    parser = argparse.ArgumentParser(
        prog="python -m vmr_env.backbones.features.annotations", description=main.__doc__
    )
    parser.add_argument("table", type=Path, help="AI2 Charades table (.csv, .csv.gz)")
    parser.add_argument(
        "--annotations", type=Path, action="append", required=True, help="samples; may repeat"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the new feature store")
    parser.add_argument("--classes", type=int, default=157, help="number of action classes (default: 157)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    for name, value in asdict(DetectorNoise()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=value, help=f"default: {value}"
        )
    options = parser.parse_args(arguments)
    store = build_annotation_store(
        options.out,
        read_samples(options.annotations, past_end="clip"),
        read_actions(options.table, options.classes, reversed_actions="drop"),
        classes=options.classes,
        clip_seconds=get_profile("charades").clip_seconds,
        noise=DetectorNoise(**{name: getattr(options, name) for name in asdict(DetectorNoise())}),
        seed=options.seed,
    )
    print(f"{options.out}: {len(store)} videos, {store.manifest['rows']} clips, annotation-derived")


if __name__ == "__main__":
    run_program(main)
