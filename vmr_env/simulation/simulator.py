"""The detector simulator: caches without any data at hand.

Videos, events and queries are drawn to the statistics of a `DatasetProfile`; a simulated detector
(`vmr_env.simulation.detector`) makes proposals and a saliency curve for them, with parameters
(`vmr_env.simulation.config`) chosen so that its figures are near those of a published model.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from vmr_env.caches.reader import CacheBatch, DecoderStateCache, Ragged, write_cache
from vmr_env.data.profiles import DatasetProfile
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import PathLike
from vmr_env.files.user_cache import VARIABLE, user_cache_folder
from vmr_env.files.writing import remove
from vmr_env.simulation.config import CONFIGS, SimulatorConfig
from vmr_env.simulation.detector import simulated_proposals, simulated_regions, simulated_saliency
from vmr_env.simulation.videos import draw_samples, statistics_of

_VERSION = 1  # a new number for every change of what the same parameters give

DEFAULT_SAMPLES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "charades": {"train": 4000, "val": 1000, "test": 1000},
        "qvhighlights": {"train": 4000, "val": 1000, "test": 1000},
        # Some 130 queries share a video: fewer samples would be a handful of videos.
        "tacos": {"train": 8000, "val": 4000, "test": 4000},
    }
)
"""Samples of each split of `simulated_cache`, by data set."""


def simulate(
    path: PathLike,
    profile: DatasetProfile,
    split: str,
    *,
    samples: int,
    seed: int = 0,
    config: SimulatorConfig | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a simulated cache.

    The same arguments give the same cache. Splits of different names share no video.

    Args:
        path: folder of the new cache.
        profile: the data set.
        split: name of the split.
        samples: N, number of samples.
        seed: seed of everything random, from 0.
        config: parameters of the simulation; None takes the calibrated ones of the data set.
        overwrite: replace a cache that is already there.

    Returns:
        The cache's path.

    Raises:
        DataError: an argument breaks a rule, or the folder cannot be written.
    """
    config = config or _config_of(profile)
    identity = _identity(profile, split, samples, seed, config)
    return write_cache(
        path,
        simulated_batch(profile, split, samples=samples, seed=seed, config=config),
        dataset=profile.name,
        split=split,
        source="simulated",
        models=["simulated"],
        clip_seconds=profile.clip_seconds,
        backbone_kind="simulated detector",
        backbone_sha256=_hash(identity["config"]),
        overwrite=overwrite,
        notes=identity,
    )


def simulated_cache(profile: DatasetProfile, split: str) -> Path:
    """The simulated cache of a data set's split, in the user's cache folder.

    It has the samples of `DEFAULT_SAMPLES` and seed 0, and is written on first use, or where it is damaged.
    Processes that ask for it at the same time end with one cache. Deleting it is always safe.

    Raises:
        DataError: there is no such split or data set, or the user's cache folder cannot be written.
    """
    sizes = DEFAULT_SAMPLES.get(profile.name, {})
    if split not in sizes:
        expected = (
            f"expected one of {', '.join(sizes)}" if sizes else f"{profile.name} has no simulated samples"
        )
        raise DataError(Problem("split", None, None, f"is {shorten(split)}; {expected}"))
    identity = _identity(profile, split, sizes[split], 0, _config_of(profile))
    path = user_cache_folder() / "simulated" / f"{profile.name}-{split}-{_hash(identity)[:16]}"
    try:
        if path.exists() and not _is_sound(path):
            remove(path)
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        return simulate(path, profile, split, samples=sizes[split])
    except OSError as error:
        message = f"cannot be written ({error}); set {VARIABLE} to choose another folder"
        raise DataError(Problem(str(path.parent), None, None, message)) from error
    except DataError:
        if path.exists():  # another process was first
            return path
        raise


def _is_sound(path: Path) -> bool:
    try:
        DecoderStateCache.open(path, checksums=True)
    except DataError:
        return False
    return True


def simulated_batch(
    profile: DatasetProfile, split: str, *, samples: int, seed: int, config: SimulatorConfig
) -> CacheBatch:
    """The samples that `simulate` writes."""
    for name, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            message = f"is {shorten(value)}; expected an int from {least}"
            raise DataError(Problem(name, None, None, message))
    # The name of the split is part of the seed: splits are independent draws.
    rng = np.random.default_rng([seed, *split.encode()])
    drawn = draw_samples(statistics_of(profile), config, samples, rng)
    regions = simulated_regions(drawn, config, rng)
    proposals, scores = simulated_proposals(drawn, regions, config, rng)
    n_clips = np.ceil(drawn.durations / profile.clip_seconds).astype(np.int32)
    vids = [f"sim-{split}-{video}" for video in drawn.videos.tolist()]
    real = np.arange(drawn.moments.shape[1]) < drawn.counts[:, None]
    return CacheBatch(
        qids=[f"sim-{split}-{index}" for index in range(samples)],
        vids=vids,
        queries=[f"event {event} of {vid}" for event, vid in zip(drawn.events.tolist(), vids, strict=True)],
        durations=drawn.durations,
        n_clips=n_clips,
        moments=Ragged(drawn.moments[real], np.concatenate([[0], np.cumsum(drawn.counts)])),
        spans=(proposals / drawn.durations[:, None, None]).astype(np.float32),
        scores=scores.astype(np.float32),
        counts=np.full(samples, config.proposals, np.int32),
        models=np.zeros(scores.shape, np.uint8),
        saliency=simulated_saliency(drawn, regions, n_clips, profile.clip_seconds, config, rng),
    )


def _config_of(profile: DatasetProfile) -> SimulatorConfig:
    if profile.name not in CONFIGS:
        message = f"is {profile.name!r}; expected one of {', '.join(CONFIGS)}, or a config of its own"
        raise DataError(Problem("profile", None, None, message))
    return CONFIGS[profile.name]


def _identity(
    profile: DatasetProfile, split: str, samples: int, seed: int, config: SimulatorConfig
) -> dict[str, Any]:
    """Everything that a simulated cache depends on, as JSON values."""
    return {
        "version": _VERSION,
        "profile": {
            "name": profile.name,
            "clip_seconds": profile.clip_seconds,
            **asdict(statistics_of(profile)),
        },
        "split": split,
        "samples": samples,
        "seed": seed,
        "config": asdict(config),
    }


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
