"""Answers for new queries: detectors' predictions in, refined predictions out.

No ground truth is needed. What refines is a trained ensemble (`vmr-env tprl` keeps them), a policy over all
spans (`agents.dense`), or the vote of a pool, which needs no training. Predictions are refined in batches,
so that memory does not grow with their number but for the rows themselves.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

import vmr_env
from vmr_env.agents.dense.policy import POLICY_FILE, Evidence, load_policy
from vmr_env.agents.dense.references import vote_answers
from vmr_env.agents.dense.timeline import Timelines
from vmr_env.agents.ensemble.files import ensemble_run, load_ensemble
from vmr_env.agents.evaluation import refine as run_episodes
from vmr_env.agents.evaluation import submission
from vmr_env.arrays import Bools, Floats
from vmr_env.caches.from_predictions import build_prediction_cache, without_moments
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.caches.writer import sha256_of
from vmr_env.data.predictions import (
    Prediction,
    by_score,
    predictions_from,
    read_predictions,
    write_predictions,
)
from vmr_env.data.profiles import get_profile
from vmr_env.data.queries import Query, read_queries
from vmr_env.data.records import Rows, name_rows, pair_by_qid
from vmr_env.data.timelines import Grid, NoEvidence
from vmr_env.data.validation import check_windows
from vmr_env.envs.config import PROPOSALS
from vmr_env.errors import DataError, DataWarning, Problem, shorten
from vmr_env.files.text import PathLike, write_text
from vmr_env.files.writing import check_place

BATCH = 1024
"""Queries that are refined side by side."""

VOTE = "vote"
"""Name of the agent that needs no training: `agents.dense.references.vote_answers`."""

Models: TypeAlias = Sequence[Sequence[Prediction]]
"""Rows of each model, in the order of the first one's queries."""


class _Refiner(NamedTuple):
    """What refines, and how its answers' provenance describes it."""

    answer: Callable[[Models, Sequence[Query]], Iterator[Prediction]]
    described: Mapping[str, Any]


def refine(
    predictions: PathLike | Sequence[PathLike] | Iterable[Prediction | Mapping[str, Any]],
    queries: Rows,
    *,
    agent: PathLike,
    evidence: Evidence | None = None,
    sort: bool = False,
    out: PathLike | None = None,
    device: str = "cpu",
) -> list[Prediction]:
    """Refined predictions of a detector, or of a pool of detectors, for queries without ground truth.

    An ensemble's refined moment comes first, the others follow in their order
    (`agents.evaluation.submission`); the other agents rank windows anew (`agents.dense.decoding`). Windows
    that leave the video are moved to its borders, as in every cache.

    Args:
        predictions: prediction file, or its rows; several files are a pool, each with a row for every query
            of the first.
        queries: file or rows with `qid`, `vid`, `query` and `duration` (seconds); annotation files will do,
            and their moments are not looked at.
        agent: file of a trained ensemble, which knows its class, its settings and its data set; folder of a
            trained policy over all spans; or `VOTE`, the training-free rule for pools.
        evidence: clip and query vectors for a policy over all spans, of the kind that it learnt with; without
            them only the predictions speak.
        sort: bring the windows of each row by falling score first; the first is taken for the answer.
        out: file that the result is written to, with its provenance beside it (`<out>.provenance.json`:
            hashes of agent, predictions and queries, how the agent was trained, version, numbers).
        device: torch device of the agent's networks.

    Returns:
        As many rows as the first file has, in their order.

    Raises:
        DataError: a file is broken, a score is not within [0, 1], a prediction belongs to no query or is
            missing, or agent, evidence and predictions do not fit together.
    """
    sources, models = _read_models(predictions)
    if sort:
        models = [[by_score(row) for row in rows] for rows in models]
    asked = _asked(models[0], sources[0].name, queries)
    for source, rows in zip(sources, models, strict=True):
        check_windows(source.name, rows, asked, None)
    if out is not None:
        check_place(Path(out))
    aligned = [
        pair_by_qid(source.name, rows, models[0], of=sources[0].name, more=True)
        for rows, source in zip(models, sources, strict=True)
    ]
    refiner = _refiner(agent, evidence, aligned, [source.name for source in sources], device)
    refined: list[Prediction] = []
    for first in range(0, len(asked), BATCH):
        part = slice(first, first + BATCH)
        refined += refiner.answer([rows[part] for rows in aligned], asked[part])
    if out is not None:
        write_predictions(out, refined)
        described = [source.described for source in sources]
        provenance = {
            "version": vmr_env.__version__,
            "agent": refiner.described,
            "predictions": described[0] if len(described) == 1 else described,
            "queries": _Source.of(queries, "queries").described,
            "refined": len(refined),
            "moved": sum(
                not np.array_equal(new.windows[0, :2], old.windows[0, :2])
                for new, old in zip(refined, models[0], strict=True)
            ),
        }
        write_text(f"{os.fspath(out)}.provenance.json", json.dumps(provenance, indent=1) + "\n")
    return refined


class _Source(NamedTuple):
    """Where rows came from."""

    name: str
    described: Mapping[str, str] | None
    """Name and hash of a file; None of rows from memory."""

    @classmethod
    def of(cls, rows: object, argument: str) -> "_Source":
        if not isinstance(rows, str | os.PathLike):
            return cls(argument, None)
        return cls(os.fspath(rows), {"file": Path(rows).name, "sha256": sha256_of(Path(rows))})


def _read_models(
    predictions: PathLike | Sequence[PathLike] | Iterable[Prediction | Mapping[str, Any]],
) -> tuple[list[_Source], list[list[Prediction]]]:
    """Sources and rows of each model."""
    if isinstance(predictions, str | os.PathLike):
        return _read_models([predictions])
    given = list(predictions)
    files = [one for one in given if isinstance(one, str | os.PathLike)]
    rows = [one for one in given if not isinstance(one, str | os.PathLike)]
    if files and rows:
        message = (
            f"holds {len(files)} files and {len(rows)} rows; expected files of a pool, or rows of one model"
        )
        raise DataError(Problem("predictions", None, None, message))
    if not files:
        return [_Source("predictions", None)], [predictions_from(rows, "predictions", before_start="keep")]
    return (
        [_Source.of(file, "predictions") for file in files],
        [read_predictions(file, before_start="keep") for file in files],
    )


def _asked(rows: Sequence[Prediction], where: str, queries: Rows) -> list[Query]:
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
    return [known[str(row.qid)] for row in rows]


def _refiner(
    agent: PathLike, evidence: Evidence | None, models: Models, names: Sequence[str], device: str
) -> _Refiner:
    """What an agent's name stands for; the models' files have names, for errors."""
    path = Path(agent)
    if (path / POLICY_FILE).exists() or path.is_dir():
        return _dense_refiner(path, evidence, device)
    if evidence is not None:
        message = f"is given, and {agent} reads none; expected a policy over all spans, or no evidence"
        raise DataError(Problem("evidence", None, None, message))
    if os.fspath(agent) == VOTE:
        return _Refiner(_voted, {"name": VOTE})
    if not path.exists():
        message = (
            "cannot be read (there is no such file); expected a kept ensemble, the folder of a policy over "
            f"all spans, or {VOTE!r}, which needs no training"
        )
        raise DataError(Problem(os.fspath(agent), None, None, message))
    run = ensemble_run(path)
    described = {"file": path.name, "sha256": sha256_of(path), "run": run}
    return _Refiner(_EnsembleAnswers(path, run, models, names, device), described)


def _dense_refiner(folder: Path, evidence: Evidence | None, device: str) -> _Refiner:
    policy = load_policy(folder, device)
    description = folder / POLICY_FILE  # it names the hash of the weights
    return _Refiner(
        lambda models, asked: iter(policy.answer(models, asked, evidence)),
        {"file": folder.name, "sha256": sha256_of(description), "evidence": evidence is not None},
    )


def _voted(models: Models, asked: Sequence[Query]) -> Iterator[Prediction]:
    zeros = {str(query.qid): np.zeros((1, 1), np.float32) for query in asked}
    return iter(vote_answers(Timelines(models, asked, NoEvidence(1), zeros, Grid())))


class _EnsembleAnswers:
    """Episodes of a trained ensemble over a cache of each batch, which is gone afterwards."""

    def __init__(
        self, path: Path, run: Mapping[str, Any], models: Models, names: Sequence[str], device: str
    ) -> None:
        self._path, self._run, self._names, self._device = path, run, names, device
        # All batches have observations of one width: as many proposals, and saliency in all or in none.
        longest = max(sum(len(row.windows) for row in rows) for rows in zip(*models, strict=True))
        self._proposals = max(PROPOSALS, longest)
        self._curves = [all(row.saliency is not None for row in rows) for rows in models]
        self._act: Callable[[Floats, Bools], Any] | None = None

    def __call__(self, models: Models, asked: Sequence[Query]) -> Iterator[Prediction]:
        """Refined rows of a batch; saliency stays as the first model gave it."""
        with tempfile.TemporaryDirectory(prefix="vmr-env-refine-") as folder:
            cache = self._cache(Path(folder), models, asked)
            if self._act is None:
                self._act = load_ensemble(self._path, cache, self._device).act
            episodes = run_episodes(self._act, cache, np.arange(len(cache)), self._run["options"])
            for given, answer in zip(models[0], submission(cache, episodes), strict=True):
                yield replace(answer, qid=given.qid, saliency=given.saliency)

    def _cache(self, folder: Path, models: Models, asked: Sequence[Query]) -> DecoderStateCache:
        files: dict[str, PathLike] = {}
        for number, (rows, curves) in enumerate(zip(models, self._curves, strict=True)):
            files[str(number)] = folder / f"{number}.jsonl"
            write_predictions(
                files[str(number)], [row if curves else replace(row, saliency=None) for row in rows]
            )
        with warnings.catch_warnings(), self._own_names(files):
            warnings.simplefilter("ignore")  # of single batches; whole files were read with their warnings
            built = build_prediction_cache(
                folder / "cache",
                files,
                [without_moments(query) for query in asked],
                get_profile(self._run["dataset"]),
                "new",
                max_proposals=self._proposals,
                labelled=False,
            )
        return DecoderStateCache.open(built)

    @contextmanager
    def _own_names(self, files: Mapping[str, PathLike]) -> Iterator[None]:
        """Problems of a batch's temporary files as those of the files that the rows came from."""
        try:
            yield
        except DataError as error:
            names = {str(file): self._names[int(number)] for number, file in files.items()}
            learnt = f"the agent learnt on {self._run['dataset']}"
            raise DataError(
                [
                    replace(
                        problem,
                        where=names.get(problem.where, problem.where),
                        row=None,
                        message=f"{problem.message}; {learnt}",
                    )
                    for problem in error.problems
                ]
            ) from None
