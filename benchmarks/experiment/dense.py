"""The policy over all spans, learnt on some prediction files and judged on others.

    python -m vmr_env.benchmarks.experiment.dense --train val.jsonl cg_val.jsonl --test test.jsonl
    cg_test.jsonl --clips features/val features/test --seeds 3

takes for `--train` and `--test` an annotation file and then the prediction files of one detector, or of
the models of a pool. A frozen backbone's `--cache` is one more of them; with `--states` its decoder
states are seen where their references lie. Without `--test`, the training file is judged out of fold. Clip
features are feature stores of vectors in the same space as the queries' sentence vectors: captions
(`vmr_env.backbones.features.captions`). It prints official figures and differences from the detector (of a
pool, its best model where the policy learns) and from the vote, with 95 % intervals over videos; and, of each
of several networks by itself, the mean, with an interval over videos and seeds.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from vmr_env.agents.dense.cached import cached_predictions, cached_states
from vmr_env.agents.dense.decoding import answers
from vmr_env.agents.dense.network import DenseNetwork
from vmr_env.agents.dense.policy import DensePolicy, check_policy_place, save_policy
from vmr_env.agents.dense.references import SpanRanker, evidence_alone, vote_answers
from vmr_env.agents.dense.timeline import Timelines
from vmr_env.agents.dense.trainer import Beliefs, DenseConfig, believe, train, vote_distribution
from vmr_env.agents.ensemble.cross_fitting import quality
from vmr_env.arrays import Floats
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.backbones.features.text import SentenceCache, SentenceEncoder, read_sentences
from vmr_env.benchmarks.experiment.parsers import CONFIGURED, dense_parser
from vmr_env.benchmarks.experiment.results import differences, figures, query_scores, table
from vmr_env.benchmarks.report.comparison import rounded
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import Annotation, read_annotations
from vmr_env.data.predictions import Prediction, by_score, read_predictions, write_predictions
from vmr_env.data.profiles import DatasetProfile, get_profile
from vmr_env.data.splits import video_folds
from vmr_env.data.timelines import Asked, ClipFeatures, Grid, NoEvidence, check_features
from vmr_env.data.validation import check_windows
from vmr_env.errors import DataError, DataWarning, Problem, shorten
from vmr_env.files.writing import check_place
from vmr_env.metrics.moments import evaluate
from vmr_env.metrics.spans import best_tiou
from vmr_env.programs import run_program
from vmr_env.seeding import derived


class Stores:
    """Several feature stores as one; a video is read from the first that has it."""

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        """Join them.

        Raises:
            DataError: their widths differ.
        """
        self._stores = list(stores)
        if len({store.dim for store in stores}) != 1:
            widths = [store.dim for store in stores]
            raise DataError(Problem("clips", None, None, f"has widths {widths}; expected one width"))
        self.dim = stores[0].dim

    def read(self, key: str) -> Floats:
        """Features of one video: (T, D)."""
        for store in self._stores:
            if key in store:
                return store.read(key)
        raise DataError(
            Problem("clips", None, None, f"has no features for {shorten(key)}; expected the video")
        )


def encode_queries(
    annotations: Sequence[Asked], paraphrases: Sequence[Path], model: str | None = None
) -> dict[str, Floats]:
    """Sentence vectors by qid as text, those of paraphrases below the query's: (1 + P, D).

    Args:
        annotations: the queries.
        paraphrases: json lines with ``qid``, ``query`` and ``rephrased_query``; they belong to the query of
            the same words, whatever its qid.
        model: sentence-transformers model; the offline MiniLM by default.
    """
    wordings = {annotation.query: [annotation.query] for annotation in annotations}
    for path in paraphrases:
        read = read_sentences(path)
        for key, text in read.items():
            qid, mark, _ = key.rpartition("#")
            if mark and read[qid] in wordings:
                wordings[read[qid]].append(text)
    sentences = {str(annotation.qid): wordings[annotation.query] for annotation in annotations}
    known = SentenceCache(None, SentenceEncoder(model), "sentence")
    known.fill(text for texts in sentences.values() for text in texts)
    return {qid: np.concatenate([known[text] for text in texts]) for qid, texts in sentences.items()}


POLICY, ONE_NETWORK, DETECTOR = "dense policy", "one network", "detector"


def report(
    lists: Mapping[str, Sequence[Prediction]],
    annotations: Sequence[Annotation],
    profile: DatasetProfile,
    alone: Sequence[Sequence[Prediction]] = (),
) -> str:
    """Official figures of each, and their differences, as Markdown tables.

    Args:
        lists: answers by name, those of `DETECTOR`, references, and those of `POLICY`. Each reference is
            compared with the detector, the policy with all.
        annotations: the ground truth.
        profile: of the data set.
        alone: answers of each of the policy's networks by itself: their mean figures are `ONE_NETWORK`, and
            the interval of their difference from the detector is over videos and seeds.
    """
    scores = {name: query_scores(rows, annotations, profile) for name, rows in lists.items()}
    shown = {name: _figures(rows, annotations) for name, rows in lists.items()}
    pairs = [(name, DETECTOR) for name in lists if name not in (DETECTOR, POLICY)]
    pairs += [(POLICY, name) for name in lists if name != POLICY]
    gains = {f"{one} - {other}": differences([scores[one]], scores[other]) for one, other in pairs}
    if alone:
        each = [_figures(rows, annotations) for rows in alone]
        shown[ONE_NETWORK] = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
        seeds = [query_scores(rows, annotations, profile) for rows in alone]
        gains[f"{ONE_NETWORK} - {DETECTOR}"] = differences(seeds, scores[DETECTOR])
    return f"{table(shown)}\n\n{table(gains)}"


def _figures(rows: Sequence[Prediction], annotations: Sequence[Annotation]) -> dict[str, float]:
    """Official figures, those of highlights where the data have them."""
    brief = evaluate(rows, annotations, past_end="keep")["brief"]
    names = {"HL mAP": "HL-min-VeryGood-mAP", "HIT@1": "HL-min-VeryGood-Hit1"}
    highlights = {name: brief[official] for name, official in names.items() if official in brief}
    return figures(rows, annotations) | highlights


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train the policy over all spans, and judge it."""
    parser = dense_parser()
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; expected 1 or more")
    if options.save is not None and options.test is None:
        parser.error("--save keeps a policy learnt on all of --train; expected --test beside it")
    if options.test is None and options.test_cache is not None:
        parser.error("--test-cache is of the queries of --test; expected --test beside it")
    if options.test is not None and (options.cache is None) != (options.test_cache is None):
        parser.error("only one of --cache and --test-cache is given; expected both or neither with --test")
    if options.states and options.cache is None:
        parser.error("--states reads decoder states from --cache; expected --cache beside it")
    if options.states and options.save is not None:
        parser.error("--save keeps a policy for prediction files, which have no states; expected no --states")
    for name, cache in (("train", options.cache), ("test", options.test_cache)):
        if getattr(options, name) is not None and len(getattr(options, name)) < 2 and cache is None:
            parser.error(f"--{name} names one file; expected an annotation file and prediction files")
    try:
        chosen = {name: getattr(options, name) for name in CONFIGURED if getattr(options, name) is not None}
        config = DenseConfig(**chosen)
    except ValueError as error:
        parser.error(str(error))
    if options.folds < 2:
        parser.error(f"--folds is {options.folds}; expected 2 or more")
    if options.out is not None:
        check_place(options.out)
    if options.save is not None:
        check_policy_place(options.save)
    torch.set_num_threads(1)
    clips = Stores([FeatureStore(path) for path in options.clips])
    profile = get_profile(options.dataset)
    read = partial(
        read_timelines,
        clips=clips,
        profile=profile,
        blind=options.no_evidence,
        sort=options.sort,
        states=options.states,
    )
    learn = read(options.train, paraphrases=options.paraphrases, cache=options.cache)
    if options.test is None:
        judge, parts = learn, _folds(learn, profile, options.folds)
    else:
        judge = read(options.test, paraphrases=options.paraphrases, cache=options.test_cache)
        if shared := len(set(_sources(learn, profile)) & set(_sources(judge, profile))):
            message = (
                f"--test shares {shared} source videos with --train: it is judged on what it learnt from"
            )
            warnings.warn(message, DataWarning, stacklevel=2)
        parts = [(range(len(learn)), range(len(judge)))]
    models = list(judge.models)
    if options.cache is not None:
        models[-1] = rounded(models[-1], profile)  # the windows of files are rounded already
    names = [str(path) for path in (*options.train[1:], options.cache) if path is not None]
    lists: dict[str, Sequence[Prediction]] = {
        DETECTOR: detectors(learn, models, parts, names),
        "vote over candidates": vote_answers(judge),
    }
    if not options.no_evidence:
        lists["evidence alone"] = _ranked(judge, evidence_alone(judge))
    if options.ranker:
        ranked = torch.zeros(len(judge), len(judge.spans))
        for rows, held_out in parts:
            ranked[list(held_out)] = SpanRanker(learn, rows).gains(judge, held_out).softmax(dim=1)
        lists["gradient boosting"] = _ranked(judge, ranked)
    lists["untrained policy"] = _ranked(judge, vote_distribution(judge))
    each = [
        Beliefs(torch.zeros(len(judge), len(judge.spans)), torch.zeros(len(judge), judge.grid.clips))
        for _ in range(options.seeds)
    ]
    for fold, (rows, held_out) in enumerate(parts):
        seeds: Sequence[int] = range(options.seeds)
        if options.test is None:
            seeds = [derived(seed, "fold", fold) for seed in seeds]
        networks = tuple(_train(learn, seed, config, rows, options.device) for seed in seeds)
        for network, beliefs in zip(networks, each, strict=True):
            for whole, part in zip(beliefs, believe([network], judge, held_out), strict=True):
                whole[list(held_out)] = part
    if options.save is not None:
        notes = {"train": [path.name for path in options.train], "config": asdict(config)}
        save_policy(options.save, DensePolicy(networks, learn.grid, config.channels), notes)

    def answered(beliefs: Sequence[Beliefs]) -> list[Prediction]:
        relevance = None if options.no_evidence else torch.stack([one.relevance for one in beliefs]).mean(0)
        probabilities = torch.stack([one.probabilities for one in beliefs]).mean(0)
        return answers(judge, probabilities, relevance=relevance)

    lists[POLICY] = answered(each)
    alone = [answered([beliefs]) for beliefs in each] if options.seeds > 1 else []
    truth = read_annotations((options.test or options.train)[0], past_end="keep")
    print(report(lists, truth, profile, alone))
    if options.out is not None:
        write_predictions(options.out, lists[POLICY])


Parts: TypeAlias = Sequence[tuple[Sequence[int], Sequence[int]]]
"""Rows to learn from, and rows to be judged on."""


def read_timelines(
    paths: Sequence[Path],
    clips: ClipFeatures,
    profile: DatasetProfile,
    paraphrases: Sequence[Path] = (),
    blind: bool = False,
    sort: bool = False,
    cache: Path | None = None,
    states: bool = False,
) -> Timelines:
    """Queries as detectors, clips and sentences show them.

    Args:
        paths: an annotation file and the prediction files of the models.
        clips: features by vid.
        profile: the data set, which says how long a clip is.
        paraphrases: as of `encode_queries`.
        blind: without features.
        sort: bring the windows of each row of the files by falling score first.
        cache: of a backbone, one more model.
        states: show the cache's decoder states.

    Raises:
        DataError: files cannot be read, or features are missing or not of the whole video.
    """
    annotations = read_annotations(paths[0], past_end="keep")
    models = [read_predictions(path, before_start="keep") for path in paths[1:]]
    if sort:
        models = [[by_score(row) for row in rows] for rows in models]
    known = {str(annotation.qid) for annotation in annotations}
    for path, rows in zip(paths[1:], models, strict=True):
        asked = [row for row in rows if str(row.qid) in known]
        check_windows(str(path), asked, annotations, profile)
    grid, seen = Grid(seconds=profile.clip_seconds), None
    if cache is not None:
        opened = DecoderStateCache.open(cache)
        models.append(cached_predictions(opened))
        seen = cached_states(opened) if states else None
    if blind:
        zeros = {str(annotation.qid): np.zeros((1, clips.dim), np.float32) for annotation in annotations}
        return Timelines(models, annotations, NoEvidence(clips.dim), zeros, grid, states=seen)
    check_features("--clips", clips, annotations, profile.clip_seconds)
    queries = encode_queries(annotations, paraphrases)
    return Timelines(models, annotations, clips, queries, grid, states=seen)


def detectors(
    learn: Timelines, models: Sequence[Sequence[Prediction]], parts: Parts, names: Sequence[str]
) -> list[Prediction]:
    """What the policy is compared with: answers of the detector, or of the best model of a pool.

    That one is chosen where the policy learns, by the mean `quality` of first windows, and does not depend on
    the order of the files: of equally good ones it is the first by name. A policy that is judged on other
    models than it learnt from, of another number, is compared with the first of them.

    Args:
        learn: queries that are learnt from.
        models: of each model its answers to the queries to be judged on.
        parts: rows of both.
        names: of the models of `learn`.
    """
    result = list(models[0])
    if len(models) != len(names):
        return result
    gains = np.array([_qualities(model, learn.annotations) for model in learn.models])
    for rows, held_out in parts:
        means = gains[:, list(rows)].mean(axis=1)
        best = min(range(len(names)), key=lambda model: (-means[model], names[model]))
        for row in held_out:
            result[row] = models[best][row]
    return result


def _qualities(answers: Sequence[Prediction], annotations: Sequence[Asked]) -> Floats:
    """Of each first window: (n,)."""
    tious = [
        best_tiou(answer.windows[0, :2], annotation.moments)
        for answer, annotation in zip(answers, annotations, strict=True)
        if isinstance(annotation, Annotation)
    ]
    return quality(np.array(tious))


def _folds(timelines: Timelines, profile: DatasetProfile, folds: int) -> Parts:
    """Rows to learn from and rows held out, by source video."""
    parts = video_folds(_sources(timelines, profile), folds, seed=0)
    return [
        (np.flatnonzero(parts != fold).tolist(), np.flatnonzero(parts == fold).tolist())
        for fold in range(folds)
    ]


def _sources(timelines: Timelines, profile: DatasetProfile) -> list[str]:
    """Source video of each query."""
    return [profile.source_video(annotation.vid) for annotation in timelines.annotations]


def _ranked(timelines: Timelines, distribution: Tensor) -> list[Prediction]:
    return answers(timelines, distribution, first="mode")


def _train(
    timelines: Timelines, seed: int, config: DenseConfig, rows: Sequence[int], device: str
) -> DenseNetwork:
    begun = perf_counter()
    network = train(timelines, seed, config, rows, device)
    print(f"seed {seed}: {perf_counter() - begun:.0f} s", flush=True)
    return network


if __name__ == "__main__":
    run_program(main)
