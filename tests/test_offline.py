"""Episodes as Minari datasets: what they hold, and the environments that come back from them."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.caches import ARGUMENTS, random_batch
from vmr_env.agents.offline import export_episodes, uniform
from vmr_env.caches.reader import write_cache
from vmr_env.envs.sources import simulated_source

minari = pytest.importorskip("minari")
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:minari"),  # it misses an author and a link to the code
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),  # its temporary folder
]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return write_cache(tmp_path / "cache", random_batch(12), **ARGUMENTS)


def test_exported_episodes_are_those_of_the_recovered_environment(source: Path) -> None:
    made = export_episodes("vmr/random-v0", uniform, episodes=7, source=source, num_envs=3, seed=1)
    assert made.total_episodes == 7
    dataset = minari.load_dataset("vmr/random-v0")
    env = dataset.recover_environment()
    assert env.observation_space == dataset.observation_space
    assert env.action_space == dataset.action_space
    for episode in dataset:
        infos: Any = episode.infos
        _, info = env.reset(options={"sample": int(infos["sample"][0])})
        assert info["sample"] == infos["sample"][0]
        assert len(episode.observations) == len(episode.actions) + 1
        replay_at(env, episode)


def replay_at(env: gymnasium.Env[Any, Any], episode: Any) -> None:
    """Masks allow what was done, probabilities are theirs, rewards sum up to the change of tIoU."""
    infos = episode.infos
    masks = np.asarray(infos["action_mask"])
    assert masks[np.arange(len(episode.actions)), episode.actions].all()
    np.testing.assert_allclose(infos["behaviour_probability"][:-1], 1 / masks[:-1].sum(axis=1))
    assert np.isnan(infos["behaviour_probability"][-1])
    np.testing.assert_allclose(np.diff(infos["tiou"]), episode.rewards, atol=1e-5)
    ended = episode.terminations | episode.truncations
    assert ended[-1]
    assert not ended[:-1].any()
    for observation in episode.observations:
        assert env.observation_space.contains(observation)


def test_short_episodes_are_no_more_frequent_than_they_are(source: Path) -> None:
    """Half of the first actions stop, and so half of the episodes have one step."""

    def half_stop(observations: Any, masks: Any) -> Any:
        probabilities = np.zeros(masks.shape)
        probabilities[:, -1] = 0.5
        others = masks[:, :-1] / np.maximum(masks[:, :-1].sum(axis=1, keepdims=True), 1)
        probabilities[:, :-1] = 0.5 * others
        return probabilities

    made = export_episodes("vmr/half-v0", half_stop, episodes=400, source=source, num_envs=16)
    lengths = np.array([len(episode.rewards) for episode in made])
    assert (lengths == 1).mean() == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("variant", ["", "-Continuous", "-MultiDiscrete", "-Head", "-Spans"])
def test_minaris_collector_records_our_environments_with_their_infos(source: Path, variant: str) -> None:
    pytest.importorskip("jax")
    options: dict[str, Any] = {
        "source": simulated_source("charades", "val") if variant == "-Head" else source
    }
    if variant == "-Spans":
        row = {"qid": 1, "vid": "v", "query": "q"}
        options = {
            "annotations": [{**row, "duration": 30.0, "relevant_windows": [[2.0, 9.0]]}],
            "predictions": [[{**row, "pred_relevant_windows": [[0.0, 8.0, 0.9]]}]],
        }
    env = minari.DataCollector(gymnasium.make(f"VMR-Charades{variant}-v0", **options), record_infos=True)
    for seed in range(3):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        ended = False
        while not ended:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated
    dataset = env.create_dataset("vmr/collected-v0")
    assert dataset.total_episodes == 3
    for episode in dataset:
        assert len(episode.infos["tiou"]) == len(episode.rewards) + 1
    assert dataset.recover_environment().action_space == env.action_space


def test_actions_that_are_no_numbers_are_refused(source: Path) -> None:
    with pytest.raises(ValueError, match="expected Discrete ones"):
        export_episodes("vmr/no-v0", uniform, episodes=1, source=source, options={"actions": "continuous"})
    with pytest.raises(ValueError, match="episodes is 0"):
        export_episodes("vmr/no-v0", uniform, episodes=0, source=source)
