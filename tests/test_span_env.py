"""The environment whose actions are all spans of a video."""

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeAwareObservation

from vmr_env.data.annotations import Annotation, annotation_row, write_annotations
from vmr_env.data.predictions import Prediction, submission_row, write_predictions
from vmr_env.envs.span_env import VMRSpanEnv
from vmr_env.errors import DataError, DataWarning

D = 3


class Clips:
    dim = D

    def read(self, key: str) -> np.ndarray:
        return np.arange(5 * D, dtype=np.float32).reshape(5, D) + (100 if key == "b" else 0)


ANNOTATIONS = [
    Annotation(7, "a", "one", 10.0, np.array([[2.0, 6.0], [8.0, 10.0]])),
    Annotation("x", "b", "two", 8.0, np.array([[0.0, 8.0]])),
]
DETECTOR = [
    Prediction(7, "a", "one", np.array([[0.0, 4.0, 0.6], [4.0, 10.0, 0.2]]), np.arange(5, dtype=np.float32)),
    Prediction("x", "b", "two", np.array([[2.0, 4.0, 1.0]]), np.zeros(4, np.float32)),
]
QUERIES = {"7": np.array([[1.0, 0.0, -1.0]], np.float32), "x": np.ones((1, D), np.float32)}


def make(**changes: object) -> gymnasium.Env:
    options = {
        "annotations": ANNOTATIONS,
        "predictions": [DETECTOR],
        "clips": Clips(),
        "queries": QUERIES,
        "grid_clips": 5,
    }
    return gymnasium.make("VMR-QVHighlights-Spans-v0", **{**options, **changes})


@pytest.mark.filterwarnings("ignore:.*Box observation space m..imum value")
@pytest.mark.parametrize("observation", ["timeline", "dict"])
def test_gymnasium_checks_it(observation: str) -> None:
    check_env(make(observation=observation).unwrapped, skip_render_check=True)


def test_components_are_query_windows_and_mask_beside_the_timeline() -> None:
    other = [
        Prediction(7, "a", "one", np.array([[2.0, 6.0, 1.0]])),
        Prediction("x", "b", "two", np.array([[0.0, 8.0, 0.3], [0.0, 2.0, 0.1]])),
    ]
    env = make(predictions=[DETECTOR, other], observation="dict")
    observation, info = env.reset(options={"qid": 7})
    assert env.observation_space.contains(observation)
    timeline, _ = make(predictions=[DETECTOR, other]).reset(options={"qid": 7})
    np.testing.assert_array_equal(observation["timeline"], timeline)
    np.testing.assert_array_equal(observation["query"], QUERIES["7"][0])
    np.testing.assert_array_equal(observation["action_mask"], info["action_mask"])
    expected = [[0, 2, 0.375, 0.5], [2, 5, 0.125, 0], [1, 3, 0.5, 0.5]]
    np.testing.assert_allclose(observation["windows"], expected, rtol=1e-6)
    # The other query has one window of the first model, two of the second.
    assert env.reset(options={"qid": "x"})[0]["windows"][:, 3].tolist() == [0.5, 0.5, 0]


def test_every_span_is_worth_its_tiou() -> None:
    env = make()
    for row, annotation in enumerate(ANNOTATIONS):
        values = {}
        for action, (start, end) in enumerate(env.unwrapped.spans.tolist()):
            _, info = env.reset(options={"sample": row})
            inside = 2 * end <= annotation.duration
            assert info["action_mask"][action] == inside
            _, reward, terminated, truncated, info = env.step(action)
            assert (terminated, truncated) == (True, False)
            cut = min(2 * end, annotation.duration)
            if inside:
                overlaps = []
                for low, high in annotation.moments.tolist():
                    common = max(0.0, min(cut, high) - max(2 * start, low))
                    overlaps.append(common / (cut - 2 * start + high - low - common))
                assert reward == info["tiou"] == pytest.approx(max(overlaps))
                values[2 * start, cut] = reward
                assert info["span"].tolist() == [2 * start, cut]
        assert all(values[tuple(moment)] == 1 for moment in annotation.moments.tolist())
    assert len(env.unwrapped.spans) == 15


def test_a_span_beyond_the_video_is_worth_nothing() -> None:
    env = make()
    spans = env.unwrapped.spans.tolist()
    for span in ([0, 5], [4, 5]):
        env.reset(options={"qid": "x"})
        assert env.step(spans.index(span))[1] == 0


def test_the_timeline_shows_features_products_and_painted_proposals() -> None:
    observation, info = make().reset(options={"qid": 7})
    clips = np.arange(15, dtype=np.float32).reshape(5, D)
    np.testing.assert_allclose(observation[:, :D], clips)
    np.testing.assert_allclose(observation[:, D : 2 * D], clips * [1, 0, -1])
    channels = observation[:, 2 * D :]
    saliency = np.arange(5)
    np.testing.assert_allclose(channels[:, 3], [0.1, 0.3, 0.5, 0.7, 0.9], rtol=1e-6)
    np.testing.assert_allclose(channels[:, 4], (saliency - 2) / saliency.std(), rtol=1e-5)
    shares = np.array([0.75, 0.25]) ** 2 / (0.75**2 + 0.25**2)
    np.testing.assert_allclose(channels[:, 5], np.repeat(shares, [2, 3]), rtol=1e-5)
    np.testing.assert_allclose(channels[:, 8], [1, 1, 0, 0, 0])
    assert info["span"].tolist() == [0, 4]
    # The other video has four clips; nothing is shown beyond it.
    observation, info = make().reset(options={"qid": "x"})
    assert not observation[4:].any()
    assert observation[3].any()
    assert int(info["action_mask"].sum()) == 10


def test_without_features_the_proposals_are_left() -> None:
    blind, seeing = make(clips=None, queries=None), make()
    assert blind.observation_space.shape == (5, 10)
    observation, _ = blind.reset(options={"sample": 0})
    full, _ = seeing.reset(options={"sample": 0})
    np.testing.assert_array_equal(observation[:, 3:], full[:, 2 * D + 3 :])
    assert not observation[:, :3].any()


def test_vector_environments_see_the_same_episodes() -> None:
    single = make()
    envs = gymnasium.vector.SyncVectorEnv([make] * 2)
    observations, infos = envs.reset(seed=[3, 4])
    for slot, seed in enumerate((3, 4)):
        observation, info = single.reset(seed=seed)
        np.testing.assert_array_equal(observations[slot], observation)
        assert infos["qid"][slot] == info["qid"]


@pytest.mark.parametrize("form", ["files", "one file", "rows", "dicts"])
def test_a_specification_in_json_makes_the_same_environment(form: str, tmp_path: Path) -> None:
    truth, answered = tmp_path / "truth.jsonl", tmp_path / "detector.jsonl"
    write_annotations(truth, ANNOTATIONS)
    write_predictions(answered, DETECTOR)
    annotations, predictions = {
        "files": (truth, [answered]),
        "one file": (truth, answered),
        "rows": (ANNOTATIONS, [DETECTOR]),
        "dicts": ([annotation_row(row) for row in ANNOTATIONS], [[submission_row(row) for row in DETECTOR]]),
    }[form]
    clips = {key: Clips().read(key) for key in "ab"}
    env = make(annotations=annotations, predictions=predictions, clips=clips)
    assert env.spec is not None
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    plain = make()
    for row in range(2):
        begun = [one.reset(options={"sample": row}) for one in (plain, env, again)]
        np.testing.assert_equal(begun[1:], begun[:1] * 2)
        seen, *earned, _, info = zip(*(one.step(3) for one in (plain, env, again)), strict=True)
        np.testing.assert_equal([seen[1:], info[1:]], [seen[:1] * 2, info[:1] * 2])
        assert [set(value) for value in earned] == [{earned[0][0]}, {True}]


def test_the_horizon_is_in_the_specification() -> None:
    env = make()
    assert env.spec is not None
    assert env.spec.max_episode_steps == 1
    aware = TimeAwareObservation(env, flatten=False, normalize_time=True)
    assert aware.reset(seed=0)[0]["time"] == 0
    assert aware.step(0)[0]["time"] == 1
    vector = gymnasium.make_vec(
        env.spec.id,
        num_envs=2,
        max_episode_steps=1,
        annotations=ANNOTATIONS,
        predictions=[DETECTOR],
        grid_clips=5,
    )
    vector.reset(seed=0)
    assert vector.step(np.zeros(2, np.int64))[2].all()


def test_trainers_that_always_render_get_a_warning() -> None:
    with pytest.warns(UserWarning, match="no render modes"):
        assert make().unwrapped.render() is None


def test_moments_beyond_their_video_follow_the_rule() -> None:
    rows = [{**annotation_row(row), "relevant_windows": [[1.0, 20.0]]} for row in ANNOTATIONS]
    with pytest.raises(DataError, match="past_end"):
        make(annotations=rows)
    with pytest.warns(DataWarning, match="2 moments that leave their video were cut"):
        env = make(annotations=rows, past_end="clip")
    env.reset(options={"qid": "x"})
    spans = env.unwrapped.spans.tolist()
    assert env.step(spans.index([0, 4]))[1] == pytest.approx(7 / 8)


def test_predictions_and_features_are_judged_as_everywhere() -> None:
    turned = [replace(DETECTOR[0], windows=DETECTOR[0].windows[::-1]), DETECTOR[1]]
    with pytest.warns(DataWarning, match=r"predictions\[0\]: .* of 1 of 2 rows are not by falling score"):
        make(predictions=[turned])
    expected = make().reset(options={"qid": 7})
    np.testing.assert_equal(make(predictions=[turned], sort=True).reset(options={"qid": 7}), expected)
    logits = [replace(row, windows=row.windows * [1, 1, 9]) for row in DETECTOR]
    with pytest.raises(DataError, match=r"expected a score within \[0, 1\]"):
        make(predictions=[logits])
    with pytest.raises(DataError, match=r"clips: of 'a' are 5 rows, 5 s at 1 s a row; expected 10 s"):
        gymnasium.make(
            "VMR-Charades-Spans-v0",
            annotations=ANNOTATIONS,
            predictions=[DETECTOR],
            clips=Clips(),
            queries=QUERIES,
        )


def test_what_is_asked_wrongly_is_told() -> None:
    env = VMRSpanEnv(annotations=ANNOTATIONS, predictions=[DETECTOR], grid_clips=5)
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset first"):
        env.step(0)
    with pytest.raises(DataError, match=r"qid.*is 9; expected a qid of the annotations"):
        env.reset(options={"qid": 9})
    with pytest.raises(DataError, match=r"sample.*is 2; expected a row from 0 to 1"):
        env.reset(options={"sample": 2})
    for options in ({"start": 1}, {"qid": 7, "sample": 0}):
        with pytest.raises(ValueError, match="expected 'qid' or 'sample', or neither"):
            env.reset(options=options)
    env.reset(seed=0)
    for action in (15, True, 1.0, float("nan"), [3]):
        with pytest.raises(ValueError, match=r"action is .*expected a whole number in Discrete\(15\)"):
            env.step(action)
    for clips in (0, True, "x"):
        with pytest.raises(ValueError, match="grid_clips is"):
            VMRSpanEnv(annotations=ANNOTATIONS, predictions=[DETECTOR], grid_clips=clips)
    with pytest.raises(DataError, match=r"predictions\[0\]: is .*expected a prediction file, or the rows of"):
        VMRSpanEnv(annotations=ANNOTATIONS, predictions=DETECTOR)
    for features, message in (
        ({}, "clips: is empty"),
        ({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))}, r"clips, 'b': has shape \(2, 4\)"),
        ({"a": np.zeros((5, D))}, "clips: lacks 'b'"),
    ):
        with pytest.raises(DataError, match=message):
            make(clips=features).reset(options={"qid": "x"})
    with pytest.raises(ValueError, match="clips and queries are given together"):
        VMRSpanEnv(annotations=ANNOTATIONS, predictions=[DETECTOR], clips=Clips())
    with pytest.raises(DataError, match=r"models, qid: lacks 1 queries of the timelines, \['x'\]"):
        VMRSpanEnv(annotations=ANNOTATIONS, predictions=[DETECTOR[:1]])
