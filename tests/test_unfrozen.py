"""TPRL with more than the head unfrozen: what changes, and that the head's part is the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone import Backbone, make_backbone
from one_run import run_alone

from vmr_env.agents.tprl.config import TprlConfig, default_config, paper_config, with_stages
from vmr_env.agents.tprl.data import StateBatch, StateBatches
from vmr_env.agents.tprl.trainer import TprlTrainer
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.benchmarks.experiment.experiment import train_test
from vmr_env.benchmarks.experiment.head_methods import ablations
from vmr_env.benchmarks.experiment.methods import MethodResult, Settings, ranked
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
    outcome = run_alone(method, folds[0], Settings(2, 1, 1, None), tmp_path / "unit")
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
    of_cache = ranked(cache, rows, model.head)
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
    together.step(samples.batch(model.eval(), rows, config), together.start_epoch(0))
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
        "tprl_paper + dropout",
    }
    paper = ablations("charades", Path("weights"), features)["tprl_paper + dropout"]
    assert isinstance(paper, UnfrozenMethod)
    assert (paper.config, paper.unfrozen, paper.dropout) == (paper_config("charades"), "nothing", True)
    assert (paper.config.batch_size, paper.config.lr, paper.config.schedule.epochs) == (128, 5e-5, 80)


@pytest.mark.parametrize("dropout", [False, True])
def test_the_frozen_part_stays_and_its_dropout_is_on_as_published(
    backbone: Backbone,
    features: Features,
    tmp_path: Path,
    dropout: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folds = train_test(*(DecoderStateCache.open(backbone.caches / split) for split in ("train", "test")))
    config = replace(with_stages(CONFIG, (0, 0, 2)), batch_size=64)
    seen: list[dict[int, torch.Tensor]] = []
    take = _Samples.batch

    def watched(samples: _Samples, model: GirlDetr, rows: np.ndarray, config: TprlConfig) -> StateBatch:
        batch = take(samples, model, rows, config)
        assert not batch.states.requires_grad
        seen.append(dict(zip(rows.tolist(), batch.states, strict=True)))
        return batch

    monkeypatch.setattr(_Samples, "batch", watched)
    random = torch.random.get_rng_state()

    def run() -> MethodResult:
        method = UnfrozenMethod(config, backbone.weights, features, "nothing", dropout=dropout)
        return run_alone(method, folds[0], Settings(2, 1, 1, None), tmp_path / "unit")

    outcome = run()
    assert torch.equal(torch.random.get_rng_state(), random)
    assert outcome.frozen["before"] == outcome.frozen["after"]
    # Each sample once in each of the two epochs: with dropout the two are not the same states.
    first, second = ({k: v for part in half for k, v in part.items()} for half in np.array_split(seen, 2))
    assert first.keys() == second.keys()
    apart = max((first[row] - second[row]).abs().max().item() for row in first)
    assert (apart > 0.1) == dropout
    assert apart < 1e-4 or dropout
    np.testing.assert_array_equal(run().answers.windows, outcome.answers.windows)
    assert not load_checkpoint(tmp_path / "unit").training
