"""The embedded default: what ships, and that its builder makes it from seeds alone."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint
from vmr_env.backbones.girl_detr.weights import state_sha256
from vmr_env.backbones.recipes import get_recipe
from vmr_env.backbones.simulated.embedded import RECIPE, Sizes, build_embedded
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.sources import simulated_source
from vmr_env.metrics.spans import tiou

SHIPPED = Path(__file__).resolve().parents[1] / "vmr_env" / "assets" / RECIPE


@pytest.mark.filterwarnings("ignore:no cache given")
def test_default_environment_shows_decoder_states_of_the_shipped_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VMR_ENV_DATA", raising=False)
    env = gymnasium.make("VMR-Charades-v0", observation="dict")
    observation, info = env.reset(seed=0)
    cache = env.get_wrapper_attr("cache")
    assert info["source"] == "simulated"
    np.testing.assert_array_equal(observation["decoder_state"], cache.states[info["sample"]][0])
    weights = load_checkpoint(SHIPPED / "girl_detr").state_dict()
    assert cache.manifest["backbone"]["sha256"] == state_sha256(weights)


def test_shipped_splits_share_no_video_and_beat_the_best_constant_window() -> None:
    caches = {
        name: DecoderStateCache.open(simulated_source("charades", name)) for name in ("train", "val", "test")
    }
    videos = {name: set(cache.vids()) for name, cache in caches.items()}
    assert sum(map(len, videos.values())) == len(set.union(*videos.values()))
    test = caches["test"]
    truth = test.moments.values
    assert len(truth) == len(test)  # one moment each
    detector = (tiou(test.spans[:, 0], truth) >= 0.5).mean()
    grid = np.linspace(0, 1, 21)
    constant = max(
        (tiou(np.array([start, end]), truth) >= 0.5).mean() for start in grid for end in grid if start < end
    )
    assert detector > constant + 0.2
    assert detector < 0.8  # something is left to learn


def test_the_builder_gives_the_same_from_the_same_seeds(tmp_path: Path) -> None:
    recipe = get_recipe(RECIPE).with_options({"epochs": 1, "hidden_dim": 8, "dim_feedforward": 8})
    sizes = Sizes(backbone=20, select=10, caches=(("train", 12), ("test", 8)))
    built = []
    for name in "ab":
        caches = build_embedded(tmp_path / name, tmp_path / f"work-{name}", recipe, sizes, progress=False)
        built.append({split: DecoderStateCache.open(path) for split, path in caches.items()})
    assert {split: len(cache) for split, cache in built[0].items()} == {"train": 12, "test": 8}
    for split, cache in built[0].items():
        assert cache.manifest["files"] == built[1][split].manifest["files"]
        assert "saw neither" in cache.manifest["notes"]["samples"]
