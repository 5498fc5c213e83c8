"""TPRL with more than the head unfrozen: what changes, and that the head's part is the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone import Backbone, make_backbone
from vmr_env.agents.tprl.config import default_config, with_stages
from vmr_env.agents.tprl.data import StateBatches
from vmr_env.agents.tprl.trainer import TprlTrainer
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint
from vmr_env.benchmarks.experiment.experiment import train_test
from vmr_env.benchmarks.experiment.head_methods import ablations
from vmr_env.benchmarks.experiment.methods import Settings, ranked
from vmr_env.benchmarks.experiment.unfrozen import Features, Unfrozen, UnfrozenMethod, _parameters, _Samples

from vmr_env.caches.reader import DecoderStateCache
from vmr_env.errors import DataError

CONFIG = replace(with_stages(default_config("charades"), (0, 0, 1)), ema=0.0, start_is_candidate=False)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def features(backbone: Backbone) -> Features:
    return Features(backbone.features / "train", backbone.features / "test")


@pytest.mark.parametrize(
    ("unfrozen", "changed"), [("last decoder layer", {"decoder.layers.1"}), ("everything", None)]
)
def test_what_is_unfrozen_changes_and_nothing_else(
    backbone: Backbone, features: Features, tmp_path: Path, unfrozen: Unfrozen, changed: set[str] | None
) -> None:
    folds = train_test(*(DecoderStateCache.open(backbone.caches / split) for split in ("train", "test")))
    method = UnfrozenMethod(CONFIG, backbone.weights, features, unfrozen)
    outcome = method.run(folds[0], 0, Settings(2, 1, 1, None), tmp_path / "unit", {}, lambda now: None)
    before, after = outcome.frozen["before"], outcome.frozen["after"]
    differing = {name for name in before if before[name] != after[name]}
    assert differing
    if changed is not None:
        assert {".".join(name.split(".")[:3]) for name in differing} == changed
    else:
        assert {name.split(".")[0] for name in differing} >= {"decoder", "encoder", "cmi", "video_projection"}
    kept = load_checkpoint(tmp_path / "unit")
    answers = _Samples(backbone.weights, features.test, folds[0].test).answers(kept, folds[0].test_samples)
    np.testing.assert_allclose(outcome.answers.windows, answers.windows, atol=1e-6)


def test_features_and_cache_give_the_same_answers(backbone: Backbone, features: Features) -> None:
    cache = DecoderStateCache.open(backbone.caches / "test")
    model, rows = load_checkpoint(backbone.weights), np.array([4, 0, 17])
    of_features = _Samples(backbone.weights, features.test, cache).answers(model, rows)
    of_cache = ranked(cache, rows, model)
    np.testing.assert_array_equal(of_features.samples, of_cache.samples)
    np.testing.assert_allclose(of_features.windows, of_cache.windows, atol=2e-4)


def test_the_first_step_moves_the_head_as_without_the_rest(backbone: Backbone, features: Features) -> None:
    cache = DecoderStateCache.open(backbone.caches / "train")
    rows = np.arange(12)
    model = load_checkpoint(backbone.weights)
    # Adam's first step is the rate whatever the gradient's size, so rounding shows in proportion to it.
    config = replace(CONFIG, class_lr=1e-4)
    alone = TprlTrainer(model.head, config, seed=1)
    alone.step(StateBatches(cache).take(rows), alone.start_epoch(0))
    together = TprlTrainer(model.head, config, seed=1)
    model.head = together.head  # type: ignore[assignment]
    others = _parameters(model, "everything")
    together.also_train(others, [torch.nn.Parameter(other.detach().clone()) for other in others])
    samples = _Samples(backbone.weights, features.train, cache)
    together.step(samples.batch(model, rows, config), together.start_epoch(0))
    for a, b in zip(alone.head.parameters(), together.head.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)
    assert any(other.grad is not None and other.grad.any() for other in others)


def test_features_of_other_samples_are_refused(backbone: Backbone, features: Features) -> None:
    cache = DecoderStateCache.open(backbone.caches / "train")
    with pytest.raises(DataError, match=r"lacks .* samples of"):
        _Samples(backbone.weights, features.test, cache)


def test_ablations_unfreeze_only_where_there_are_features(features: Features) -> None:
    without = ablations("charades", Path("weights"))
    assert set(ablations("charades", Path("weights"), features)) - set(without) == {
        "head + last decoder layer",
        "head + everything",
    }
