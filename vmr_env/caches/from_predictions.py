"""Caches from prediction files: the proposals of one published model, or of a pool of several.

There are no decoder states in such a cache; the proposals' geometry, their scores and the saliency curve are
the state. What the files hold beyond the rules of a cache is settled as `build_prediction_cache` says, and
counted in the cache's notes.
"""

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vmr_env.caches.evidence import FindEvidence
from vmr_env.caches.reader import LABELLED, CacheBatch, Ragged, write_cache
from vmr_env.caches.writer import sha256_of
from vmr_env.data.annotations import Annotation, PastEnd, annotations_from, parse_labelled
from vmr_env.data.predictions import (
    Prediction,
    Scores,
    by_score,
    is_unsorted,
    parse_predictions,
    rescaled,
)
from vmr_env.data.profiles import DatasetProfile
from vmr_env.data.queries import Query, read_queries
from vmr_env.data.validation import saliency_problems, score_problems, warn_of_suspicions
from vmr_env.errors import DataError, Problem, conclude, shorten
from vmr_env.files.text import PathLike
from vmr_env.metrics import spans


def build_prediction_cache(
    path: PathLike,
    predictions: PathLike | Sequence[PathLike] | Mapping[str, PathLike],
    annotations: PathLike | Sequence[Annotation],
    profile: DatasetProfile,
    split: str,
    *,
    max_proposals: int | None = None,
    unknown_queries: Literal["error", "drop"] = "error",
    sort: bool = False,
    scores: Scores = "keep",
    past_end: PastEnd = "error",
    labelled: bool = True,
    evidence: FindEvidence | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the cache of one prediction file, or of the pool of several of the same split.

    The samples are the annotations, in their order. Proposals keep the order of their file, so proposal 0 is
    the model's answer. In a pool they alternate by rank: the first windows of all models in the order in
    which the files are given, then the second ones, and so on; proposal 0 is the first model's answer. A
    model may lack some queries and then contributes nothing there.

    Rules, each counted in the notes of the manifest:
        - windows that leave the video are moved to its borders (`windows_clipped`); empty ones are kept;
        - rows not sorted by falling score stay as they are, as in the official evaluation (`rows_unsorted`),
          unless `sort` is set; a warning tells of them, as learning then mends the order first;
        - windows that look normalised or counted in clips are warned of, and kept;
        - a saliency curve with one value more than the video has clips loses the last one, with one value
          less it gains a zero, as in the official evaluation (`saliency_cut`, `saliency_padded`); a larger
          difference is an error;
        - where some queries have no saliency curve, the cache has none, with a warning;
        - the saliency of a pool is the mean of the curves of the models that have one, each brought to mean 0
          and deviation 1 over the video (before a zero is added); a single model's curve is as in its file.

    Args:
        path: folder of the new cache.
        predictions: one file; several, whose models are named by the last dotted part of the file names
            (`qvhighlights_val.cg_detr.jsonl.gz` is `cg_detr`); or a mapping from names to files.
        annotations: annotation file, or its rows. Rows of a file without moments, where others have some, are
            left out with their predictions; a `DataWarning` counts them.
        profile: the data set.
        split: name of the split.
        max_proposals: Q, proposals kept of a sample, counted over the pool; None keeps all of the longest.
            What is cut is counted (`proposals_cut`).
        unknown_queries: "error" reports predictions for queries that are not annotated; "drop" leaves them
            out and counts them (`predictions_dropped`).
        sort: bring the windows of each row by falling score first; those of equal score keep their order.
        scores: rescale the scores of each file, which must lie within [0, 1]; see `Scores`.
        past_end: rule for moments that do not lie within their video; see `PastEnd`. Kept ones count in
            rewards and figures as they stand, and need a length.
        labelled: False makes a cache of queries without ground truth, to be refined and no more: rewards,
            training and figures refuse it. `annotations` then are rows with `qid`, `vid`, `query` and
            `duration`, and moments in them are not looked at.
        evidence: gives what the videos themselves say (`vmr_env.backbones.evidence`); None for none.
        overwrite: replace a cache that is already there.

    Returns:
        The cache's path.

    Raises:
        DataError: a file or an argument cannot be used, with all problems found; nothing is written.
    """
    left_out: set[str] = set()
    truth = _read_truth(annotations, past_end, left_out) if labelled else _unlabelled(annotations)
    if max_proposals is not None and max_proposals < 1:
        raise DataError(Problem("max_proposals", None, None, f"is {max_proposals}; expected at least 1"))
    if unknown_queries not in ("error", "drop"):
        message = f'is {unknown_queries!r}; expected "error" or "drop"'
        raise DataError(Problem("unknown_queries", None, None, message))
    problems: list[Problem] = []
    dropped = 0
    pool = []
    for name, file in _named(predictions).items():
        found: list[Problem] = []
        model, unknown = _read_model(
            name, file, truth, found, drop=unknown_queries == "drop", left_out=left_out
        )
        rows = dict(zip(model.rows, rescaled(list(model.rows.values()), scores), strict=True))
        if sort:
            rows = {index: by_score(row) for index, row in rows.items()}
        by_line = {model.lines[index]: row for index, row in rows.items()}
        found += score_problems(file, by_line)
        found += saliency_problems(file, by_line, truth, profile.clip_seconds)
        problems += sorted(found, key=lambda problem: problem.row or 0)
        pool.append(replace(model, rows=rows))
        dropped += unknown
    n_clips = np.ceil([row.duration / profile.clip_seconds for row in truth]).astype(np.int32)
    proposals = _proposals(pool, truth, max_proposals, problems)
    curves = _pooled_saliency(pool, truth, n_clips, problems)
    conclude(problems)
    for model in pool:
        warn_of_suspicions(model.file, list(model.rows.values()), truth, profile)
    seen = None if evidence is None else evidence(truth)
    batch = CacheBatch(
        qids=[row.qid for row in truth],
        vids=[row.vid for row in truth],
        queries=[row.query for row in truth],
        durations=np.array([row.duration for row in truth]),
        n_clips=n_clips,
        moments=Ragged.from_rows([row.moments for row in truth]),
        spans=proposals.spans,
        scores=proposals.scores,
        counts=proposals.counts,
        models=proposals.models,
        saliency=curves.rows,
        relevance=None if seen is None else seen.relevance,
        span_scores=None if seen is None else seen.span_scores,
        clips=None if seen is None else seen.clips,
        text=None if seen is None else seen.text,
    )
    hashes = [model.sha256 for model in pool]
    return write_cache(
        path,
        batch,
        dataset=profile.name,
        split=split,
        source="predictions",
        models=[model.name for model in pool],
        clip_seconds=profile.clip_seconds,
        backbone_kind="prediction files" if len(pool) > 1 else "prediction file",
        # The hash of one file identifies its model; a pool is identified by its files' hashes, in order.
        backbone_sha256=hashes[0] if len(pool) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
        features=() if seen is None else seen.features,
        overwrite=overwrite,
        kept_moments=past_end == "keep",
        notes={
            "models": {model.name: model.notes() for model in pool},
            "windows_clipped": proposals.clipped,
            "proposals_cut": proposals.cut,
            "predictions_dropped": dropped,
            "rows_unsorted": sum(is_unsorted(row) for model in pool for row in model.rows.values()),
            "saliency_cut": curves.cut,
            "saliency_padded": curves.padded,
            **({} if seen is None else {"evidence": {"source": seen.source, "sha256": seen.sha256}}),
            **({} if labelled else {LABELLED: False}),
        },
    )


@dataclass(frozen=True, slots=True)
class _Model:
    """One model's predictions for annotated queries."""

    name: str
    file: str
    sha256: str
    rows: dict[int, Prediction]
    """Row of the annotations -> prediction."""
    lines: dict[int, int]
    """Row of the annotations -> line of the file."""
    refused: set[str]
    """Qids of rows that were refused, as text."""

    def notes(self) -> dict[str, Any]:
        return {"file": Path(self.file).name, "sha256": self.sha256, "queries": len(self.rows)}


def _read_truth(
    annotations: PathLike | Sequence[Annotation], past_end: PastEnd, left_out: set[str]
) -> list[Annotation]:
    """Rows of the ground truth; the qids of those that the rule "drop" leaves out go to `left_out`."""
    if not isinstance(annotations, str | os.PathLike):
        return annotations_from(annotations, "annotations", past_end=past_end, dropped=left_out)
    problems: list[Problem] = []
    rows = parse_labelled(annotations, problems, past_end=past_end, dropped=left_out)
    found = {
        problem.field for problem in problems if problem.message.startswith(("is missing", "is in none"))
    }
    if not rows and found == {"relevant_windows"}:
        advice = "labelled=False, or --unlabelled, takes queries without ground truth"
        raise DataError(problems).advised(advice)
    conclude(problems, stacklevel=4)
    return list(rows.values())


def _unlabelled(queries: PathLike | Sequence[Annotation]) -> list[Annotation]:
    """Queries in the place of ground truth: with the whole video, as each sample of a cache has some
    moment."""
    if not isinstance(queries, str | os.PathLike):
        return list(queries)
    return [without_moments(query) for query in read_queries(queries)]


def without_moments(query: Query) -> Annotation:
    """A query for a cache that is not `labelled`."""
    return Annotation(query.qid, query.vid, query.query, query.duration, np.array([[0.0, query.duration]]))


def _named(predictions: PathLike | Sequence[PathLike] | Mapping[str, PathLike]) -> dict[str, str]:
    """Files by the names of their models."""
    if isinstance(predictions, Mapping):
        named = [(name, os.fspath(file)) for name, file in predictions.items()]
    elif isinstance(predictions, str | os.PathLike):
        named = [(model_name(predictions), os.fspath(predictions))]
    else:
        named = [(model_name(file), os.fspath(file)) for file in predictions]
    if not named:
        raise DataError(Problem("predictions", None, None, "is empty; expected at least one file"))
    result: dict[str, str] = {}
    for name, file in named:
        if name in result:
            message = (
                f"{result[name]} and {file} are both named {name!r}; expected a mapping with other names"
            )
            raise DataError(Problem("predictions", None, None, message))
        result[name] = file
    return result


def model_name(file: PathLike) -> str:
    """Name of a prediction file's model: the last dotted part of the file's name."""
    return Path(file).name.removesuffix(".gz").removesuffix(".jsonl").rpartition(".")[2]


def _read_model(
    name: str,
    file: str,
    truth: Sequence[Annotation],
    problems: list[Problem],
    *,
    drop: bool,
    left_out: Collection[str],
) -> tuple[_Model, int]:
    """Predictions of a file by row of the annotations, and how many belong to no annotated query.

    Those for queries that the rule for moments left out are passed over.
    """
    known = {str(row.qid): index for index, row in enumerate(truth)}
    rows: dict[int, Prediction] = {}
    lines: dict[int, int] = {}
    refused: set[str] = set()
    unknown = 0
    # Windows before the start are clipped here like those past the end.
    for line, row in parse_predictions(file, problems, before_start="keep", refused=refused).items():
        index = known.get(str(row.qid))
        if str(row.qid) in left_out:
            continue
        if index is None:
            unknown += 1
            if not drop:
                message = (
                    f"is {shorten(row.qid)}, which is not annotated; expected unknown_queries='drop' then"
                )
                problems.append(Problem(file, line, "qid", message))
            continue
        rows[index], lines[index] = row, line
        if row.vid != truth[index].vid:
            message = f"is {shorten(row.vid)}; expected {shorten(truth[index].vid)} as in the annotations"
            problems.append(Problem(file, line, "vid", message))
    return _Model(name, file, sha256_of(Path(file)), rows, lines, refused), unknown


@dataclass(frozen=True, slots=True)
class _Proposals:
    spans: NDArray[np.float32]
    scores: NDArray[np.float32]
    counts: NDArray[np.int64]
    models: NDArray[np.uint8]
    clipped: int
    cut: int


def _proposals(
    pool: Sequence[_Model], truth: Sequence[Annotation], limit: int | None, problems: list[Problem]
) -> _Proposals:
    """Proposals of the whole pool, padded with zeros: (N, Q, 2), (N, Q), (N,), (N, Q)."""
    rows = [(index, model, row) for model, rows in enumerate(pool) for index, row in rows.rows.items()]
    lengths = np.array([len(row.windows) for _, _, row in rows], np.int64)
    samples = np.repeat(np.array([index for index, _, _ in rows], np.int64), lengths)
    models = np.repeat(np.array([model for _, model, _ in rows], np.int64), lengths)
    ranks = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    windows = np.concatenate([np.zeros((0, 3)), *(row.windows for _, _, row in rows)])

    totals = np.bincount(samples, minlength=len(truth))
    refused = set().union(*(model.refused for model in pool))
    for index in np.flatnonzero(totals == 0).tolist():
        if str(truth[index].qid) in refused:
            continue  # told already, with the reason
        message = f"{shorten(truth[index].qid)} has no prediction in any file; expected at least one window"
        problems.append(Problem("predictions", None, "qid", message))

    # By sample, then by rank, then by model; a proposal's place is its distance from its sample's first.
    order = np.lexsort((models, ranks, samples))
    samples, models, windows = samples[order], models[order], windows[order]
    places = np.arange(len(samples)) - (np.cumsum(totals) - totals)[samples]
    q = max(1, totals.max()) if limit is None else limit
    kept = places < q
    samples, models, windows, places = samples[kept], models[kept], windows[kept], places[kept]

    relative = windows[:, :2] / np.array([row.duration for row in truth])[samples, None]
    inside = spans.clip(relative, 0.0, 1.0)
    result = _Proposals(
        spans=np.zeros((len(truth), q, 2), np.float32),
        scores=np.zeros((len(truth), q), np.float32),
        counts=np.minimum(totals, q),
        models=np.zeros((len(truth), q), np.uint8),
        clipped=int((inside != relative).any(axis=1).sum()),
        cut=int(len(kept) - kept.sum()),
    )
    result.spans[samples, places] = inside
    result.scores[samples, places] = windows[:, 2]
    result.models[samples, places] = models
    return result


@dataclass(frozen=True, slots=True)
class _Curves:
    rows: Ragged | None
    cut: int
    padded: int


def _pooled_saliency(
    pool: Sequence[_Model], truth: Sequence[Annotation], n_clips: NDArray[np.int32], problems: list[Problem]
) -> _Curves:
    """One curve per sample with one value per clip; None where some samples have none."""
    rated = {index for model in pool for index, row in model.rows.items() if row.saliency is not None}
    if len(rated) < len(truth):
        if rated:
            message = f"are given for {len(rated)} of {len(truth)} queries only, so the cache has none"
            problems.append(Problem("predictions", None, "pred_saliency_scores", message, "warning"))
        return _Curves(None, 0, 0)
    pooled = []
    cut = padded = 0
    for index, wanted in enumerate(n_clips.tolist()):
        curves = []
        for model in sorted(pool, key=lambda model: model.name):  # a sum depends on the order
            row = model.rows.get(index)
            if row is None or row.saliency is None:
                continue
            missing = wanted - len(row.saliency)
            cut, padded = cut + (missing < 0), padded + (missing > 0)
            curve = row.saliency.astype(np.float64)
            if len(pool) > 1:
                curve = _standardised(curve)
            curves.append(np.concatenate([curve[:wanted], np.zeros(max(missing, 0))]))
        pooled.append(np.mean(curves, axis=0).astype(np.float32))
    return _Curves(Ragged.from_rows(pooled), cut, padded)


def _standardised(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """The curve with mean 0 and deviation 1; a flat one is all 0."""
    deviation = float(curve.std())
    result: NDArray[np.float64] = (curve - curve.mean()) / (deviation if deviation > 0 else 1.0)
    return result
