"""The environment whose actions are all spans of a video."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.envs.span_env import VMRSpanEnv
from vmr_env.errors import DataError

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
    Prediction("x", "b", "two", np.array([[2.0, 4.0, 1.0]])),
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


def test_what_is_asked_wrongly_is_told() -> None:
    env = VMRSpanEnv(annotations=ANNOTATIONS, predictions=[DETECTOR], grid_clips=5)
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset first"):
        env.step(0)
    with pytest.raises(DataError, match=r"qid.*is 9; expected a qid of the annotations"):
        env.reset(options={"qid": 9})
    with pytest.raises(DataError, match=r"sample.*is 2; expected a row from 0 to 1"):
        env.reset(options={"sample": 2})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action is 15"):
        env.step(15)
    with pytest.raises(ValueError, match="clips and queries are given together"):
        VMRSpanEnv(annotations=ANNOTATIONS, predictions=[DETECTOR], clips=Clips())
    with pytest.raises(DataError, match=r"models, qid: lacks 1 queries of the timelines, \['x'\]"):
        VMRSpanEnv(annotations=ANNOTATIONS, predictions=[DETECTOR[:1]])
