"""Pools of several detectors: which of them is the reference, chosen on training videos alone.

Everything that asks for a pool's detector takes proposal 0: where episodes start, what the gate compares
with, what an ensemble falls back to, what tables and the page name. So the reference's proposals are put
first.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmr_env.agents.ensemble.cross_fitting import quality
from vmr_env.benchmarks.experiment.methods import Fold
from vmr_env.caches.reader import CacheBatch, DecoderStateCache, Ragged, write_cache
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.metrics.spans import best_tiou


def reference_model(cache: DecoderStateCache, samples: NDArray[np.intp]) -> str:
    """The model whose first windows have the best `quality` on samples of a pool.

    It does not depend on the order of the models: of equally good ones the first by name is taken. Where a
    model has no window its quality is 0.

    Args:
        cache: the pool.
        samples: (n,), rows of training samples.
    """
    names, spans = cache.manifest["models"], cache.spans[samples].astype(np.float64)
    moments = [cache.moments[int(row)].astype(np.float64) for row in samples]
    present = np.arange(spans.shape[1]) < cache.counts[samples, None]
    figures = {}
    for model, name in enumerate(names):
        own = present & (cache.models[samples] == model)  # (n, Q)
        first = spans[np.arange(len(samples)), own.argmax(axis=1)]  # (n, 2)
        tious = [best_tiou(span[None], truth)[0] for span, truth in zip(first, moments, strict=True)]
        figures[name] = float(np.where(own.any(axis=1), quality(np.array(tious)), 0.0).mean())
    return min(names, key=lambda name: (-figures[name], name))


def with_references(folds: Sequence[Fold], folder: Path) -> list[Fold]:
    """Folds whose caches have the proposals of the fold's reference first; without pools, the folds.

    Args:
        folds: the data.
        folder: where such caches are written, one for each reference.

    Raises:
        DataError: training and test caches are pools of models with different names.
    """
    made: dict[tuple[Path, str], DecoderStateCache] = {}

    def ordered(role: str, cache: DecoderStateCache, model: str) -> DecoderStateCache:
        key = cache.path, model
        if key not in made:
            number = sorted(cache.manifest["models"]).index(model)
            made[key] = reference_first(cache, model, folder / f"cache-{role}-reference{number}")
        return made[key]

    result = []
    for fold in folds:
        names = fold.train.manifest["models"]
        if len(names) == 1:
            result.append(fold)
            continue
        for cache in (fold.test, fold.select):
            if cache is not None and sorted(cache.manifest["models"]) != sorted(names):
                message = f"are {shorten(cache.manifest['models'])}, expected {shorten(names)} as learnt from"
                raise DataError(Problem(str(cache.path), None, "models", message))
        model = reference_model(fold.train, fold.train_samples)
        select = None if fold.select is None else ordered("select", fold.select, model)
        train, test = ordered("train", fold.train, model), ordered("test", fold.test, model)
        result.append(replace(fold, train=train, test=test, select=select))
    return result


def reference_first(cache: DecoderStateCache, model: str, path: Path) -> DecoderStateCache:
    """A pool's cache with the models in another order, written anew: the reference, then the others by name.

    Proposals alternate by rank, as in `build_prediction_cache`.

    Args:
        cache: the pool.
        model: name of the reference.
        path: folder to write; what is there is replaced.
    """
    manifest = cache.manifest
    names = [model, *sorted(name for name in manifest["models"] if name != model)]
    place = np.array([names.index(name) for name in manifest["models"]])
    models = place[np.asarray(cache.models)]  # (N, Q)
    present = np.arange(models.shape[1]) < np.asarray(cache.counts)[:, None]
    ranks = np.zeros(models.shape, np.int64)
    for number in range(len(names)):
        own = present & (models == number)
        ranks[own] = (own.cumsum(axis=1) - 1)[own]
    keys = np.where(present, ranks * len(names) + models, np.iinfo(np.int64).max)
    order = keys.argsort(axis=1, kind="stable")
    rows = [cache.sample(row) for row in range(len(cache))]

    def moved(array: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        return None if array is None else np.take_along_axis(array, order[..., None], axis=1)

    batch = CacheBatch(
        qids=[row.qid for row in rows],
        vids=[row.vid for row in rows],
        queries=[row.query for row in rows],
        durations=np.array([row.duration for row in rows]),
        n_clips=cache.n_clips,
        moments=Ragged.from_rows([np.asarray(row.moments, np.float64) for row in rows]),
        spans=np.take_along_axis(cache.spans, order[..., None], axis=1),
        scores=np.take_along_axis(cache.scores, order, axis=1),
        counts=cache.counts,
        models=np.where(present, np.take_along_axis(models, order, axis=1), 0).astype(np.uint8),
        states=moved(cache.states),
        references=moved(cache.references),
        saliency=cache.saliency,
        clips=cache.clips,
        text=cache.text,
    )
    written = write_cache(
        path,
        batch,
        dataset=manifest["dataset"],
        split=manifest["split"],
        source=manifest["source"],
        models=names,
        clip_seconds=manifest["clip_seconds"],
        backbone_kind=manifest["backbone"]["kind"],
        backbone_sha256=manifest["backbone"]["sha256"],
        overwrite=True,
        kept_moments=cache.kept_moments,
        notes={"reference": model},
    )
    return DecoderStateCache.open(written)
