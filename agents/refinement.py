"""Answers for new queries: a detector's predictions in, a trained agent's refined predictions out.

No ground truth is needed. Predictions are refined in batches, each by episodes over a cache of its own that
is gone afterwards, so that memory does not grow with their number but for the rows themselves.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from vmr_env.agents.ensemble.files import ensemble_run, load_ensemble
from vmr_env.agents.evaluation import refine as run_episodes
from vmr_env.agents.evaluation import submission

import vmr_env
from vmr_env.arrays import Bools, Floats
from vmr_env.caches.from_predictions import build_prediction_cache, without_moments
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.caches.writer import sha256_of
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction, predictions_from, read_predictions, write_predictions
from vmr_env.data.profiles import get_profile
from vmr_env.data.queries import read_queries
from vmr_env.data.records import Rows, name_rows
from vmr_env.envs.config import PROPOSALS
from vmr_env.errors import DataError, DataWarning, Problem, shorten
from vmr_env.files.text import PathLike, write_text

BATCH = 1024
"""Queries that are refined side by side."""


def refine(
    predictions: PathLike | Iterable[Prediction | Mapping[str, Any]],
    queries: Rows,
    *,
    agent: PathLike,
    out: PathLike | None = None,
) -> list[Prediction]:
    """Refined predictions of a detector for queries without ground truth.

    The refined moment comes first, the others follow in their order; see `agents.evaluation.submission`.
    Windows that leave the video are moved to its borders, as in every cache.

    Args:
        predictions: prediction file, or its rows.
        queries: file or rows with `qid`, `vid`, `query` and `duration` (seconds); annotation files will do,
        and
            their moments are not looked at.
        agent: file of a trained ensemble; it knows its class, its settings and its data set.
        out: file that the result is written to, with its provenance beside it (`<out>.provenance.json`:
        hashes of
            agent, predictions and queries, how the agent was trained, version, numbers).

    Returns:
        As many rows as given, in their order.

    Raises:
        DataError: a file is broken, a prediction belongs to no query, or the agent does not fit the
        predictions.
    """
    where = os.fspath(predictions) if isinstance(predictions, str | os.PathLike) else "predictions"
    rows = (
        read_predictions(predictions, before_start="keep")
        if isinstance(predictions, str | os.PathLike)
        else predictions_from(predictions, where, before_start="keep")
    )
    asked = _asked(rows, where, queries)
    run = ensemble_run(agent)
    refined = list(_refined(rows, asked, Path(agent), run))
    if out is not None:
        write_predictions(out, refined)
        provenance = {
            "version": vmr_env.__version__,
            "agent": {"file": Path(agent).name, "sha256": sha256_of(Path(agent)), "run": run},
            "predictions": _source(predictions),
            "queries": _source(queries),
            "refined": len(refined),
            "moved": sum(
                not np.array_equal(new.windows[0], old.windows[0])
                for new, old in zip(refined, rows, strict=True)
            ),
        }
        write_text(f"{os.fspath(out)}.provenance.json", json.dumps(provenance, indent=1) + "\n")
    return refined


def _source(rows: object) -> dict[str, str] | None:
    """Name and hash of a file; None of rows from memory."""
    if not isinstance(rows, str | os.PathLike):
        return None
    return {"file": Path(rows).name, "sha256": sha256_of(Path(rows))}


def _asked(rows: Sequence[Prediction], where: str, queries: Rows) -> list[Annotation]:
    """The query of each prediction."""
    known = {str(query.qid): query for query in read_queries(queries)}
    problems = []
    for row in rows:
        query = known.get(str(row.qid))
        if query is None:
            message = f"is {shorten(row.qid)}; expected a query of {name_rows(queries, 'queries')}"
            problems.append(Problem(where, None, "qid", message))
        elif query.vid != row.vid:
            message = f"is {shorten(row.vid)}; expected {shorten(query.vid)} for qid {shorten(row.qid)}"
            problems.append(Problem(where, None, "vid", message))
    if problems:
        raise DataError(problems)
    if len(rows) < len(known):
        message = f"{where} answers {len(rows)} of {len(known)} queries; only these are refined"
        warnings.warn(message, DataWarning, stacklevel=3)
    return [without_moments(known[str(row.qid)]) for row in rows]


def _refined(
    rows: Sequence[Prediction], asked: Sequence[Annotation], agent: Path, run: Mapping[str, Any]
) -> Iterator[Prediction]:
    """Refined rows, batch by batch."""
    # All batches have observations of one width: as many proposals, and saliency in all of them or in none.
    proposals = max(PROPOSALS, *(len(row.windows) for row in rows))
    curves = all(row.saliency is not None for row in rows)
    options = run["options"]
    act: Callable[[Floats, Bools], Any] | None = None
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        bare = [row if curves else replace(row, saliency=None) for row in part]
        with tempfile.TemporaryDirectory(prefix="vmr-env-refine-") as folder:
            file = Path(folder) / "predictions.jsonl"
            write_predictions(file, bare)
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # of single batches; the whole file was read with its warnings
                cache = DecoderStateCache.open(
                    build_prediction_cache(
                        Path(folder) / "cache",
                        file,
                        asked[first : first + BATCH],
                        get_profile(run["dataset"]),
                        "new",
                        max_proposals=proposals,
                        labelled=False,
                    )
                )
            if act is None:
                act = load_ensemble(agent, cache).act
            episodes = run_episodes(act, cache, np.arange(len(cache)), options)
            answers = submission(cache, episodes)
        for given, answer in zip(part, answers, strict=True):
            yield replace(answer, qid=given.qid, saliency=given.saliency)
