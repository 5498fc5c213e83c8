"""The detector itself, chance, the greedy ceiling, and constant windows."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from caches import random_batch
from refinement import environment, short_cache, user_cache_in, written

from vmr_env.agents.checkpoint import load_run, save_run
from vmr_env.agents.evaluation import refine, submission
from vmr_env.agents.references import GreedyOracle, RandomAgent, StopAtOnce, constant_window
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import Annotation
from vmr_env.envs.env import VMREnv
from vmr_env.errors import DataError
from vmr_env.metrics import baselines
from vmr_env.metrics.moments import evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with user_cache_in(tmp_path_factory.mktemp("references")) as path:
        yield path


@pytest.fixture(scope="module")
def cache(folder: Path) -> DecoderStateCache:
    return written(folder / "random", random_batch(40, q=4))


def test_stopping_at_once_changes_nothing(cache: DecoderStateCache) -> None:
    refined = refine(StopAtOnce(environment(cache), 0).act, cache, np.arange(40))
    np.testing.assert_array_equal(refined.after, refined.before)
    np.testing.assert_array_equal(refined.proposals, 0)
    np.testing.assert_allclose(refined.windows, cache.spans[:, 0] * cache.durations[:, None], rtol=1e-6)


def test_oracle_is_never_below_the_detector_and_knows_the_best_move(
    cache: DecoderStateCache, folder: Path
) -> None:
    oracle = GreedyOracle(environment(cache), 0)
    refined = refine(oracle.act, cache, np.arange(40), enter=oracle.enter)
    assert (refined.after >= refined.before).all()
    assert (refined.after > refined.before).mean() > 0.5

    short = short_cache(folder / "short")
    refined = refine(oracle.act, short, np.arange(len(short)), {"horizon": 1}, enter=oracle.enter)
    np.testing.assert_allclose(refined.after, 1, atol=1e-5)


def test_oracle_takes_the_best_of_all_actions_tried(cache: DecoderStateCache) -> None:
    env = environment(cache, n=6)
    oracle = GreedyOracle(env, 0)
    observations, infos = env.reset(seed=0)
    taken = oracle.act(observations, infos["action_mask"])
    single = VMREnv("charades", source=cache)
    for i in range(6):
        start = {"sample": int(env.episodes.samples[i])}
        _, info = single.reset(seed=0, options=start)
        outcomes = []
        for action in np.flatnonzero(info["action_mask"]).tolist():
            tried = copy.deepcopy(single)
            outcomes.append(tried.step(action)[4]["tiou"])
        single.reset(seed=0, options=start)
        assert single.step(int(taken[i]))[4]["tiou"] == max(outcomes)


def test_oracle_refuses_an_environment_that_it_was_not_told_of(cache: DecoderStateCache) -> None:
    oracle = GreedyOracle(environment(cache), 0)
    with pytest.raises(ValueError, match=r"expected enter\(env\) before acting"):
        refine(oracle.act, cache, np.arange(40))


def test_random_agent_takes_every_possible_action_equally_often(cache: DecoderStateCache) -> None:
    agent = RandomAgent(environment(cache), 3)
    masks = np.zeros((6000, 53), bool)
    masks[:, [4, 9, 52]] = True
    times = np.bincount(agent.act(np.zeros((6000, 1), np.float32), masks), minlength=53)
    assert times.sum() == times[[4, 9, 52]].sum()
    # 2000 each, with a deviation of 37.
    np.testing.assert_allclose(times[[4, 9, 52]], 2000, atol=150)


def test_random_agent_is_fixed_by_its_seed_and_resumes(cache: DecoderStateCache, tmp_path: Path) -> None:
    masks, nothing = np.ones((50, 53), bool), np.zeros((50, 1), np.float32)
    one, same, other = (RandomAgent(environment(cache), seed) for seed in (1, 1, 2))
    first = one.act(nothing, masks)
    np.testing.assert_array_equal(first, same.act(nothing, masks))
    assert (first != other.act(nothing, masks)).any()
    save_run(tmp_path / "random.pt", "agent", {}, one.state_dict())
    other.load_state_dict(load_run(tmp_path / "random.pt", "agent", {}))
    np.testing.assert_array_equal(other.act(nothing, masks), one.act(nothing, masks))


@pytest.mark.parametrize("kind", [StopAtOnce, RandomAgent, GreedyOracle])
@pytest.mark.parametrize("actions", ["multidiscrete", "continuous"])
def test_other_actions_are_refused(cache: DecoderStateCache, kind: type[StopAtOnce], actions: str) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} got actions .*, expected actions='discrete'"):
        kind(environment(cache, actions=actions), 0)


@pytest.mark.parametrize("objective", baselines.OBJECTIVES)
def test_constant_window_has_the_figures_of_the_baselines(cache: DecoderStateCache, objective: str) -> None:
    samples = [cache.sample(i) for i in range(40)]
    annotations = [Annotation(s.qid, s.vid, s.query, s.duration, s.moments) for s in samples]
    train, test = np.arange(25), np.arange(25, 40)
    refined = constant_window(cache, train, cache, test, objective)

    window = baselines.fit_constant_window(annotations[:25], objective)
    answers = baselines.constant_window(annotations[25:], window)
    np.testing.assert_allclose(refined.windows, [answer.windows[0, :2] for answer in answers])
    found, wanted = (
        evaluate(rows, annotations[25:])["brief"] for rows in (submission(cache, refined), answers)
    )
    for key in ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU"):
        assert found[f"MR-full-{key}"] == wanted[f"MR-full-{key}"]
    stop = refine(StopAtOnce(environment(cache), 0).act, cache, test)
    np.testing.assert_allclose(refined.before, stop.before, atol=1e-6)
    assert refined.after.mean() > 0.05


def test_constant_window_names_an_unknown_objective(cache: DecoderStateCache) -> None:
    with pytest.raises(DataError, match="objective"):
        constant_window(cache, np.arange(3), cache, np.arange(3), "R1@0.6")
