"""Training on small simulated data: deterministic, resumable to the bit, honest about bad input."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmr_env.backbones import cache, predict, train
from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint, read_manifest
from vmr_env.backbones.girl_detr.weights import state_sha256
from vmr_env.backbones.recipes import RECIPES, Recipe, get_recipe
from vmr_env.backbones.simulated.features import write_simulated
from vmr_env.backbones.train import (
    Trainer,
    parse_options,
    selection_score,
    split_for_selection,
    update_average,
)
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import read_annotations
from vmr_env.data.predictions import read_predictions
from vmr_env.data.profiles import get_profile
from vmr_env.errors import DataError
from vmr_env.metrics.moments import evaluate

TINY = get_recipe("charades-simulated").with_options(
    {
        "hidden_dim": 16,
        "nheads": 2,
        "dim_feedforward": 16,
        "enc_layers": 1,
        "dec_layers": 2,
        "num_queries": 4,
        "epochs": 3,
        "eval_every": 1,
        "batch_size": 16,
    }
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "simulated"
    write_simulated(folder, get_profile("charades"), samples=60, seed=1)
    return folder


def datasets(folder: Path, recipe: Recipe) -> tuple[MomentDataset, MomentDataset]:
    clips, text = FeatureStore(folder / "clips"), FeatureStore(folder / "text")
    parts = split_for_selection(read_annotations(folder / "annotations.jsonl"), get_profile("charades"))
    train_part, select_part = (MomentDataset(rows, clips, text, recipe.data) for rows in parts)
    return train_part, select_part


def trainer(folder: Path, out: Path, recipe: Recipe = TINY, **options: object) -> Trainer:
    return Trainer(recipe, *datasets(folder, recipe), out, source="simulated", **options)  # type: ignore[arg-type]


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.shadow.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_a_killed_run_ends_like_an_undisturbed_one(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: weights, moving average, history and the weights that were kept."""
    whole = trainer(simulated, tmp_path / "whole")
    whole.run(progress=False)

    killed = trainer(simulated, tmp_path / "killed")
    steps = iter(range(8))  # stops in the middle of the second epoch
    step = Trainer._step

    def interrupted(self: Trainer, *args: object) -> dict[str, torch.Tensor]:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        killed.run(progress=False)
    monkeypatch.undo()
    torch.manual_seed(99)  # whatever else draws from the global generator changes nothing
    resumed = trainer(simulated, tmp_path / "killed")
    assert 0 < resumed.epoch < TINY.epochs
    resumed.run(progress=False)

    assert_equal(weights(resumed), weights(whole))
    assert_equal(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    histories = [(tmp_path / name / "history.jsonl").read_text() for name in ("whole", "killed")]
    assert histories[0] == histories[1]
    manifests = [read_manifest(tmp_path / name / "best") for name in ("whole", "killed")]
    assert manifests[0] == manifests[1]


def test_training_leaves_global_random_state_alone_and_depends_on_the_seed(
    simulated: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    random.seed(5)
    before = torch.random.get_rng_state(), random.getstate()
    recipe = replace(TINY, epochs=1)
    run = trainer(simulated, tmp_path / "a", recipe)
    run.run(progress=False)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    other = trainer(simulated, tmp_path / "b", replace(recipe, seed=recipe.seed + 1))
    other.run(progress=False)
    assert not torch.equal(run.model.head.class_embed.weight, other.model.head.class_embed.weight)


def test_the_loss_falls(simulated: Path, tmp_path: Path) -> None:
    run = trainer(simulated, tmp_path, replace(TINY, epochs=5, lr=5e-3))
    run.run(progress=False)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]


def test_a_gradient_that_is_not_finite_stops_training_with_its_epoch(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite: only its gradient, the root's at 0, is none."""
    run = trainer(simulated, tmp_path, TINY)
    before = state_sha256(run.model.state_dict())
    real = run._criterion

    def criterion(output: Any, targets: Any, epoch: int) -> dict[str, torch.Tensor]:
        losses = real(output, targets, epoch)
        return {**losses, "total": losses["total"] + (output.pred_spans.sum() * 0).sqrt()}

    monkeypatch.setattr(run, "_criterion", criterion)
    with pytest.raises(FloatingPointError, match="gradient norm is nan in epoch 1, expected a finite number"):
        run.run(progress=False)
    assert state_sha256(run.model.state_dict()) == before


def test_bfloat16_training_stays_close(simulated: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, epochs=1)
    losses = []
    for name, amp in (("full", False), ("half", True)):
        run = trainer(simulated, tmp_path / name, recipe, amp=amp)
        losses.append(run.train_epoch()["loss"])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_another_recipe_is_not_continued(simulated: Path, tmp_path: Path) -> None:
    trainer(simulated, tmp_path, replace(TINY, epochs=1)).run(progress=False)
    with pytest.raises(DataError, match="other values of lr; expected the same"):
        trainer(simulated, tmp_path, replace(TINY, epochs=1, lr=1.0))
    (tmp_path / "last.pt").write_bytes(b"no state")
    with pytest.raises(DataError, match=r"last\.pt: does not have the sha256.*to train anew"):
        trainer(simulated, tmp_path)


def test_a_run_that_ended_before_its_first_epoch_was_saved_begins_anew(
    simulated: Path, tmp_path: Path
) -> None:
    (tmp_path / "history.jsonl").write_text('{"epoch": 1}\n')
    recipe = replace(TINY, epochs=2)
    trainer(simulated, tmp_path, recipe).run(progress=False)
    trainer(simulated, tmp_path, recipe).run(progress=False)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_bad_features_stop_a_run_before_it_starts(simulated: Path, tmp_path: Path) -> None:
    good, select = datasets(simulated, TINY)
    rows = [replace(row, vid=f"unknown {i}") if i < 3 else row for i, row in enumerate(good.annotations)]
    bad = MomentDataset(rows, FeatureStore(simulated / "clips"), FeatureStore(simulated / "text"), TINY.data)
    with pytest.raises(DataError) as caught:
        Trainer(TINY, bad, select, tmp_path / "out", source="simulated")
    assert len(caught.value.problems) == 3
    assert not (tmp_path / "out").exists()


def test_the_moving_average_is_the_specified_one() -> None:
    model, average = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -2.0]])
    average.weight.data = torch.tensor([[0.0, 2.0]])
    update_average(average, model, 0.9)
    torch.testing.assert_close(average.weight.data, torch.tensor([[0.1, 1.6]]))


def test_selection_scores_of_the_specification() -> None:
    brief = {f"MR-full-R1@{t}": v for t, v in ((0.3, 70.0), (0.5, 50.0), (0.7, 30.0))}
    brief |= {"MR-full-mIoU": 45.0, "MR-full-mAP": 30.0, "MR-full-mAP@0.5": 52.0, "MR-full-mAP@0.75": 28.0}
    brief |= {"MR-short-mAP": 4.0, "MR-middle-mAP": 32.0, "MR-long-mAP": 40.0}
    assert selection_score(brief, rated=False) == pytest.approx((21 + 25 + 21 + 22.5) / 2)
    assert selection_score(brief, rated=True) == pytest.approx((21 + 25 + 21 + 26 + 21 + 26.5) / 3.75)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        *((f"{name}=0", f"{name} is 0, expected") for name in ("lr", "epochs", "batch_size", "clip_norm")),
        *((f"{name}=0", f"{name} is 0, expected") for name in ("eval_every", "eval_batch_size", "lr_drop")),
        *((f"{name}=-1", f"{name} is -1, expected") for name in ("warmup_epochs", "weight_decay", "seed")),
        ("ema_decay=1", "ema_decay is 1, expected a number from 0, below 1"),
        ("lr=NaN", "lr is nan, expected a number above 0"),
        ("lr=fast", "lr is 'fast', expected a number above 0"),
        ("scheduler=linear", "scheduler is 'linear', expected one of 'step', 'cosine'"),
        ("max_clips=0", "max_clips is 0, expected a whole number of at least 1"),
        ("paraphrase_share=2", "paraphrase_share is 2, expected a number from 0 to 1"),
        ("dropout=high", "dropout: 'high'; expected a number"),
        ("nheads=2.5", "nheads: 2.5; expected a whole number"),
        ("aux_loss=1", "aux_loss: 1; expected true or false"),
        ("span_loss_coef=-1.0", "span_loss_coef: -1.0; expected a finite number of at least 0"),
        ("temperature=0", "temperature: 0; expected a positive number"),
    ],
)
def test_settings_are_checked_before_anything_is_read(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(
            ["charades-simulated", "--annotations", "none", "--out", str(tmp_path / "out"), "--set", option]
        )
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not any(tmp_path.iterdir())


def test_a_recipe_of_a_file_is_checked_too() -> None:
    values = RECIPES["charades-simulated"].to_dict()
    for wrong, message in (({"lr": -1}, "lr is -1, expected"), ({"model": {"dropout": 2.0}}, "dropout")):
        with pytest.raises(DataError, match=message):
            Recipe.from_dict({**values, **wrong}, "recipe.json")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    recipe = get_recipe(name)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_unknown_names_are_met_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'charades'"):
        get_recipe("charade")
    with pytest.raises(ValueError, match="Did you mean 'epochs'"):
        TINY.with_options({"epoch": 3})
    with pytest.raises(ValueError, match="is no NAME=VALUE"):
        parse_options(["epochs"])
    with pytest.raises(DataError, match="surprise: unknown option"):
        Recipe.from_dict({**TINY.to_dict(), "surprise": 1})


def test_from_command_line_to_cache(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train, cache in shares with an interruption, open: states and head give the cache's proposals."""
    sources = ["--clips", str(simulated / "clips"), "--text", str(simulated / "text")]
    sources += ["--annotations", str(simulated / "annotations.jsonl")]
    tiny = [f"--set={name}={value}" for name, value in (("hidden_dim", 16), ("nheads", 2), ("epochs", 1))]
    run = tmp_path / "run"
    train.main(["charades-simulated", "--out", str(run), *sources, *tiny])
    assert "1 epochs" in capsys.readouterr().out

    monkeypatch.setattr(cache, "PART_SAMPLES", 8)
    command = [str(run / "best"), *sources, "--split", "val", "--memory", "refined", "--dtype", "float32"]
    cache.main([*command, "--out", str(tmp_path / "val"), "--shard", "1/2"])
    assert not (tmp_path / "val").exists()
    cache.main([*command, "--out", str(tmp_path / "val")])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".val")] == []
    opened = DecoderStateCache.open(tmp_path / "val", checksums=True)
    model = load_checkpoint(run / "best")
    rows = read_annotations(simulated / "annotations.jsonl")
    assert opened.manifest["source"] == "simulated"
    assert opened.manifest["backbone"]["sha256"] == read_manifest(run / "best")["sha256"]
    assert opened.qids() == [row.qid for row in rows]
    assert opened.states is not None
    assert opened.references is not None
    with torch.no_grad():
        found = model.head(torch.tensor(opened.states), torch.tensor(opened.references))
    np.testing.assert_allclose(found.scores.numpy(), opened.scores, atol=1e-6)
    centre, width = found.spans.unbind(-1)
    spans = torch.stack([centre - width / 2, centre + width / 2], -1).clamp(0, 1)
    np.testing.assert_allclose(spans.numpy(), opened.spans, atol=1e-6)


def test_blind_model_from_the_official_layout_to_a_submission(
    goldens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = goldens / "dataset" / "charadesSTA"
    sources = ["--annotations", str(folder / "val.jsonl"), "--features", str(folder / "features")]
    options = {"blind": True, "max_clips": 20, "epochs": 1, "hidden_dim": 8, "nheads": 2, "batch_size": 2}
    changes = [f"--set={name}={json.dumps(value)}" for name, value in options.items()]
    select = ["--select-annotations", str(folder / "val.jsonl")]
    train.main(["charades", "--out", str(tmp_path / "run"), *sources, *select, *changes])
    capsys.readouterr()
    best = str(tmp_path / "run" / "best")
    predict.main([best, *sources, "--out", str(tmp_path / "preds.jsonl")])
    brief = json.loads(capsys.readouterr().out)
    truth = folder / "val.jsonl"
    assert brief == evaluate(tmp_path / "preds.jsonl", truth)["brief"]
    assert load_checkpoint(best).config.v_feat_dim == 2
    assert len(read_predictions(tmp_path / "preds.jsonl")) == 4


@pytest.mark.parametrize("missing", ["--text", "--clips"])
def test_missing_sources_are_named(simulated: Path, tmp_path: Path, missing: str) -> None:
    given = {"--text": str(simulated / "text"), "--clips": str(simulated / "clips")}
    del given[missing]
    words = [word for pair in given.items() for word in pair]
    annotations = str(simulated / "annotations.jsonl")
    with pytest.raises(DataError, match=f"{missing} or --features: is missing"):
        train.main(["charades-simulated", "--out", str(tmp_path), "--annotations", annotations, *words])


def test_selection_videos_are_a_tenth_and_the_same_for_every_seed(simulated: Path) -> None:
    rows = read_annotations(simulated / "annotations.jsonl")
    part, select = split_for_selection(rows, get_profile("charades"))
    assert not {row.vid for row in part} & {row.vid for row in select}
    assert len(part) + len(select) == len(rows)
    assert 0.05 < len(select) / len(rows) < 0.2
    assert [row.qid for row in split_for_selection(rows, get_profile("charades"))[1]] == [
        row.qid for row in select
    ]


def test_a_run_whose_evaluations_are_all_misses_still_keeps_weights(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A score of 0 is the first one."""
    monkeypatch.setattr(train, "selection_score", lambda brief, rated: 0.0)
    trainer(simulated, tmp_path / "run").run(progress=False)
    assert read_manifest(tmp_path / "run" / "best")["notes"]["epoch"] == 1
