"""Refining given samples, against single environments; submissions, against published figures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from caches import random_batch
from refinement import environment, user_cache_in, written

from vmr_env.agents import evaluation
from vmr_env.agents.evaluation import KINDS, USES, Refined, refine, shares_of_uses, submission, trace
from vmr_env.agents.references import StopAtOnce
from vmr_env.caches.from_predictions import build_prediction_cache
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import Annotation, read_annotations
from vmr_env.data.predictions import Prediction, read_predictions, write_predictions
from vmr_env.data.profiles import get_profile
from vmr_env.envs.env import VMREnv
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.metrics.moments import evaluate

# R1@0.3, R1@0.5, R1@0.7, mIoU, mAP@0.5, mAP@0.75, mAP, published for the detector's prediction file.
FIGURES = {"qvhighlights_val.moment_detr": (67.48, 53.94, 34.84, 49.21, 54.96, 31.01, 32.2)}
KEYS = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "mAP@0.5", "mAP@0.75", "mAP")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with user_cache_in(tmp_path_factory.mktemp("evaluation")) as path:
        yield path


@pytest.fixture(scope="module")
def cache(folder: Path) -> DecoderStateCache:
    return written(folder / "random", random_batch(13, q=4))


class Scrambled:
    """A deterministic policy without sense: an action depends on the observation in an arbitrary way."""

    def __init__(self, width: int, actions: int) -> None:
        self.weights = np.random.default_rng(0).normal(size=(width, actions))

    def __call__(self, observations: np.ndarray, masks: np.ndarray) -> np.ndarray:
        mixed = np.sin(1000 * (observations.astype(np.float64) @ self.weights))
        mixed[:, -5:-1] += 1  # few actions switch, yet some shall be taken
        return np.where(masks, mixed, -np.inf).argmax(axis=1)


@pytest.mark.parametrize("stage", [2, 3])
def test_refine_equals_single_environments(
    cache: DecoderStateCache, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    monkeypatch.setattr(evaluation, "_BATCH", 4)
    samples, options = np.array([5, 0, 12, 3, 7, 1, 1, 9, 2]), {"horizon": 4, "stage": stage}
    env = VMREnv("charades", source=cache, **options)
    act = Scrambled(env.observer.width, env.action_mode.size)
    refined, steps = trace(act, cache, samples, options)
    assert all(map(np.array_equal, refined, refine(act, cache, samples, options)))
    np.testing.assert_array_equal(refined.samples, samples)
    starts = np.flatnonzero(steps.kinds == KINDS.index("start"))
    episodes = zip(*(np.split(column, starts[1:]) for column in steps), strict=True)
    for i, sample in enumerate(samples.tolist()):
        observation, info = env.reset(seed=0, options={"sample": sample, "start": 0})
        assert refined.before[i] == info["tiou"]
        walked = [(sample, "start", env.episodes.seconds()[0], 0)]
        over = False
        while not over:
            action = act(observation[None], info["action_mask"][None])
            observation, _, over, _, info = env.step(action[0])
            name = env.action_mode.names()[action[0]].split()[0].replace("start", "move")
            walked.append((sample, name, env.episodes.seconds()[0], env.episodes.sources[0]))
        rows, kinds, windows, proposals = next(episodes)
        assert [(row, KINDS[kind]) for row, kind in zip(rows, kinds, strict=True)] == [w[:2] for w in walked]
        np.testing.assert_allclose(windows, [span for _, _, span, _ in walked], atol=5.1e-5)
        assert proposals.tolist() == [source for *_, source in walked]
        np.testing.assert_array_equal(refined.windows[i], info["span"])
        assert refined.proposals[i] == info["proposal"]
        assert refined.after[i] == info["tiou"]
    assert next(episodes, None) is None
    assert (refined.proposals > 0).any() == (stage == 3)  # stage 2 does not switch


@pytest.mark.parametrize("actions", ["multidiscrete", "continuous"])
def test_actions_without_a_stop_are_all_moves(cache: DecoderStateCache, actions: str) -> None:
    env = VMRVectorEnv(1, "charades", source=cache, actions=actions)
    _, steps = trace(
        lambda _, masks: np.zeros((len(masks), 2), env.single_action_space.dtype),
        cache,
        np.arange(3),
        {"actions": actions},
    )
    episode = ["start"] + ["move"] * env.action_mode.horizon
    assert [KINDS[kind] for kind in steps.kinds] == 3 * episode


def test_shares_of_what_became_of_moments() -> None:
    before = np.array([[0.0, 10.0]] * 8)
    shifts = [[0, 0], [0.4, -0.4], [0.5, 0], [0, 3], [0, -0.5], [1, 1], [0, 0], [9, 9]]
    after = before + np.array(shifts)
    switched = np.array([False] * 6 + [True] * 2)
    shares = dict(zip(USES, shares_of_uses(before, after, switched, 0.5), strict=True))
    assert shares == {
        "kept": 2 / 8,
        "start moved": 1 / 8,
        "end moved": 2 / 8,
        "both moved": 1 / 8,
        "another proposal": 2 / 8,
    }


def test_environments_are_told_before_acting(
    cache: DecoderStateCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_BATCH", 4)
    told: list[VMRVectorEnv] = []

    def act(observations: np.ndarray, masks: np.ndarray) -> np.ndarray:
        np.testing.assert_array_equal(told[-1].episodes.mask, masks)
        return np.full(len(masks), masks.shape[1] - 1)

    refine(act, cache, np.arange(6), enter=told.append)
    assert [env.num_envs for env in told] == [4, 2]


def test_submission_puts_the_refined_moment_in_place_of_its_proposal(cache: DecoderStateCache) -> None:
    samples = np.argsort(-np.asarray(cache.counts))[:3]
    assert cache.counts[samples].min() >= 3
    windows, proposals = np.array([[1.23456, 4.0], [0.5, 2.0], [2.0, 3.0]]), np.array([0, 2, 1])
    rows = submission(cache, Refined(samples, windows, proposals, np.zeros(3), np.zeros(3)))
    for row, i, window, proposal in zip(rows, samples.tolist(), windows, proposals.tolist(), strict=True):
        sample, count = cache.sample(i), int(cache.counts[i])
        assert (row.qid, row.vid, row.query) == (sample.qid, sample.vid, sample.query)
        rest = [k for k in range(count) if k != proposal]
        assert row.windows.shape == (count, 3)
        np.testing.assert_allclose(row.windows[0, :2], window, atol=5.1e-5)
        np.testing.assert_allclose(row.windows[1:, :2], cache.spans[i, rest] * sample.duration, atol=1e-4)
        np.testing.assert_array_equal(row.windows[1:, 2].astype(np.float32), cache.scores[i, rest])
        expected = cache.scores[i, 0] if proposal == 0 else cache.scores[i].max()
        assert np.float32(row.windows[0, 2]) == expected
        np.testing.assert_array_equal(row.windows[:, :2], np.round(row.windows[:, :2], 4))
        assert cache.saliency is not None
        np.testing.assert_array_equal(row.saliency, cache.saliency[i])


@pytest.mark.parametrize("name", FIGURES)
def test_stopping_at_once_is_the_published_detector(data: Path, folder: Path, name: str) -> None:
    truth = data / "qvhighlights" / "highlight_val_release.jsonl"
    file = data / "predictions" / f"{name}.jsonl.gz"
    path = build_prediction_cache(folder / name, file, truth, get_profile("qvhighlights"), "val")
    cache = DecoderStateCache.open(path)
    stop = StopAtOnce(VMRVectorEnv(1, "qvhighlights", source=cache), 0)
    refined = refine(stop.act, cache, np.arange(len(cache)))
    np.testing.assert_array_equal(refined.before, refined.after)

    write_predictions(folder / "submission.jsonl.gz", submission(cache, refined))
    brief = evaluate(read_predictions(folder / "submission.jsonl.gz"), read_annotations(truth))["brief"]
    found = [brief[f"MR-full-{key}"] for key in KEYS]
    np.testing.assert_allclose(found, FIGURES[name], atol=1e-9)


def test_submission_of_stopping_at_once_keeps_every_window(cache: DecoderStateCache) -> None:
    stop = StopAtOnce(environment(cache, n=1), 0)
    for i, row in enumerate(submission(cache, refine(stop.act, cache, np.arange(len(cache))))):
        own = cache.spans[i, : cache.counts[i]] * np.float64(cache.sample(i).duration)
        np.testing.assert_allclose(row.windows[:, :2], own, atol=1e-4)


def test_stopping_at_once_on_an_unsorted_file_gives_its_own_figures(tmp_path: Path) -> None:
    """Windows in decoder order, with scores that differ beyond the fourth decimal."""
    rng = np.random.default_rng(0)
    truth, given = [], []
    for qid in range(30):
        start, length = rng.integers(0, 20), rng.integers(1, 10)
        moments = np.array([[start, start + length]], np.float64)
        truth.append(Annotation(qid, f"v{qid}", "what happens", 30.0, moments))
        windows = np.sort(rng.integers(0, 61, (6, 2)), axis=1) / 2.0
        scores = 0.5 + rng.permutation(6)[:, None] * 1e-5
        given.append(Prediction(qid, f"v{qid}", "what happens", np.concatenate([windows, scores], axis=1)))
    write_predictions(tmp_path / "file.jsonl", given)
    with pytest.warns(UserWarning, match="30 of 30 rows are not by falling score"):
        path = build_prediction_cache(
            tmp_path / "cache", tmp_path / "file.jsonl", truth, get_profile("charades"), "test"
        )
    cache = DecoderStateCache.open(path)
    stop = StopAtOnce(VMRVectorEnv(1, "charades", source=cache), 0)
    answers = submission(cache, refine(stop.act, cache, np.arange(len(cache))))
    assert evaluate(answers, truth)["brief"] == evaluate(given, truth)["brief"]
