"""Data of the main job: a backbone trained for it, caches of prediction files, folds and settings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vmr_env.backbones.recipes import get_recipe
from vmr_env.backbones.simulated.embedded import Sizes, build_embedded
from vmr_env.benchmarks.experiment.experiment import cross_validation, train_test
from vmr_env.benchmarks.experiment.methods import Fold, Settings
from vmr_env.benchmarks.experiment.options import BESIDE, Options, rule_of
from vmr_env.benchmarks.experiment.pools import with_references
from vmr_env.caches.from_predictions import build_prediction_cache, model_name
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.profiles import get_profile
from vmr_env.envs.actions import FREE
from vmr_env.envs.sources import simulated_source
from vmr_env.errors import DataError, Problem
from vmr_env.files.objects import read_state, write_state

POOL_PROPOSALS = 10


def train_backbone(options: Options) -> Options:
    """Train the backbone that `--backbone` names, or go on with it; returns options that name its caches."""
    work, made = options.out / "backbone-work", options.out / "backbone"
    recipe = replace(get_recipe(str(options.backbone)), seed=options.backbone_seed)
    finished, identity = made / "made.json", {"recipe": options.backbone, "seed": options.backbone_seed}
    if not finished.exists():
        build_embedded(made, work, recipe, Sizes())
        write_state(finished, identity)
    elif read_state(finished, f"remove {made} to train it again") != identity:
        message = f"is of another backbone; expected {identity}, or another --out"
        raise DataError(Problem(str(finished), None, None, message))
    return replace(
        options,
        weights=made / BESIDE,
        dataset=recipe.dataset,
        cache=made / "train",
        test_cache=made / "test",
        select_cache=made / "val",
        features=(work / "train", work / "test"),
    )


def open_data(options: Options) -> list[Fold]:
    """Caches and folds that the options name.

    Raises:
        DataError: the data are broken or do not go together.
    """
    train = _cache(options, "train", options.predictions, options.annotations, options.cache)
    test = _cache(options, "test", options.test_predictions, options.test_annotations, options.test_cache)
    if train is None:
        train = DecoderStateCache.open(simulated_source(options.dataset, "train"))
        test = DecoderStateCache.open(simulated_source(options.dataset, "test"))
    select = DecoderStateCache.open(options.select_cache, checksums=True) if options.select_cache else None
    for cache in (train, test, select):
        if cache is not None and cache.manifest["dataset"] != options.dataset:
            message = f"is {options.dataset}, expected {cache.manifest['dataset']} as in {cache.path}"
            raise DataError(Problem("--dataset", None, None, message))
    folds = cross_validation(train, options.folds) if test is None else train_test(train, test, select)
    return with_references(folds, options.out)


def _cache(
    options: Options, split: str, predictions: Sequence[Path], annotations: Path | None, cache: Path | None
) -> DecoderStateCache | None:
    """The cache that is named, or is built from the prediction files that are named."""
    if cache:
        return DecoderStateCache.open(cache, checksums=True)  # quick beside what is learnt from it
    if not predictions or annotations is None:
        return None
    path = options.out / f"cache-{split}"
    predictions = sorted(predictions, key=model_name)  # the order of a pool says nothing
    profile = get_profile(options.dataset)
    return DecoderStateCache.open(
        build_prediction_cache(
            path,
            predictions,
            annotations,
            profile,
            split,
            sort=options.sort,
            past_end=options.past_end,
            overwrite=True,
        )
    )


def settings_of(options: Options, folds: Sequence[Fold]) -> Settings:
    """How to train on these data.

    Raises:
        DataError: the data have fewer proposals, or fewer videos, than asked for.
    """
    available = min(folds[0].train.manifest["proposals"], folds[0].test.manifest["proposals"])
    # Choosing among one detector's own proposals does not help; among several detectors' it does.
    pooled = len(folds[0].train.manifest["models"]) > 1
    proposals = options.proposals or (min(POOL_PROPOSALS, available) if pooled else 1)
    if proposals > available:
        message = f"is {proposals}, expected at most the {available} that each sample has"
        raise DataError(Problem("--proposals", None, None, message))
    names = folds[0].train.source_videos()
    videos = min(len({names[row] for row in fold.train_samples}) for fold in folds)
    if options.members > videos:
        message = f"is {options.members}, expected at most the {videos} videos to learn from"
        raise DataError(Problem("--members", None, None, message))
    has_states = all(fold.train.states is not None and fold.test.states is not None for fold in folds)
    times = options.times or ("submission" if has_states else "exact")
    free = tuple(group for group in FREE if group in options.free)
    return Settings(
        options.members,
        options.evaluations,
        proposals,
        options.rounds,
        free,
        rule_of(options),
        options.stages,
        times == "submission",
        options.components,
        options.actions,
        options.device,
    )
