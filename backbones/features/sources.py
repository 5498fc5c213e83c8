"""Opening the features that a recipe needs, from feature stores or from the official layout."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmr_env.backbones.dataset import EmptyClips, MomentDataset
from vmr_env.backbones.features.official import TEXT_ARRAY, OfficialFeatures
from vmr_env.backbones.features.store import Features, FeatureStore
from vmr_env.backbones.recipes import Recipe
from vmr_env.data.annotations import Annotation, PastEnd, read_annotations
from vmr_env.errors import DataError, Problem


@dataclass(frozen=True)
class Sources:
    """Opened features.

    Attributes:
        clips: clip features by vid.
        text: token features by qid.
        kind: where the clip features come from: "real", "annotation-derived" or "simulated".
        names: names of the clip features, for manifests.
    """

    clips: Features
    text: Features
    kind: str
    names: tuple[str, ...]


def read_samples(paths: Sequence[Path], past_end: PastEnd) -> list[Annotation]:
    """Annotations of all files, under one rule for moments that do not lie within their video."""
    return [row for path in paths for row in read_annotations(path, past_end=past_end)]


def open_sources(recipe: Recipe, options: argparse.Namespace, rows: Sequence[Annotation]) -> Sources:
    """Open what the options of `add_source_arguments` name.

    Raises:
        DataError: an option is missing, or a store cannot be opened.
    """
    normalise = recipe.normalise_features
    if not normalise and options.features is None:
        message = "is missing; the recipe reads features as they are, stores hold normalised ones"
        raise DataError(Problem("--features", None, None, message))
    if options.features is not None:
        text: Features = OfficialFeatures(
            tuple(options.features / name for name in recipe.text_folders),
            TEXT_ARRAY,
            recipe.text_prefix,
            normalise,
        )
    else:
        text = FeatureStore(_required(options.text, "--text or --features"), checksums=True)
    if recipe.blind:
        durations = {row.vid: row.duration for row in rows}
        return Sources(EmptyClips(durations, recipe.data.clip_seconds), text, "real", ())
    if options.features is not None:
        clips = OfficialFeatures(
            tuple(options.features / name for name in recipe.video_folders), normalise=normalise
        )
        return Sources(clips, text, "real", recipe.video_folders)
    store = FeatureStore(_required(options.clips, "--clips or --features"), checksums=True)
    return Sources(
        store, text, store.source, (str(store.manifest["origin"].get("features", store.path.name)),)
    )


def open_dataset(
    recipe: Recipe, sources: Sources, rows: Sequence[Annotation], short_features: str
) -> MomentDataset:
    """The samples with their features, less those that `--short-features drop` leaves out.

    Raises:
        DataError: as `MomentDataset.covered`.
    """
    dataset = MomentDataset(rows, sources.clips, sources.text, recipe.data)
    return dataset.covered() if short_features == "drop" else dataset


def _required(path: Path | None, option: str) -> Path:
    if path is None:
        raise DataError(Problem(option, None, None, "is missing; the recipe needs it"))
    return path
