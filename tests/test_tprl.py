"""The TPRL trainer: recorded optimiser steps, resuming, selection, and what it must leave alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_goldens import load_head, load_moments, load_states
from torch import Tensor

from vmr_env.agents.tprl.config import TprlConfig, default_config, paper_config
from vmr_env.agents.tprl.data import StateBatch, StateBatches
from vmr_env.agents.tprl.losses import Moments
from vmr_env.agents.tprl.trainer import TprlTrainer
from vmr_env.agents.tprl.validation import Validator, official_score, propose, submission_times
from vmr_env.backbones.girl_detr.head import DetectionHead
from vmr_env.caches.reader import CacheBatch, DecoderStateCache, Ragged, write_cache
from vmr_env.data.profiles import get_profile
from vmr_env.envs.curriculum import Coefficients, through_stages
from vmr_env.errors import DataError

STEPS = {  # name of the record -> stage, coefficients, estimator
    "stage1": (Coefficients(1, 0.0, 0.0), "score_greedy"),
    "stage2_full": (Coefficients(2, 0.0, 0.03), "score_greedy"),
    "stage3_grpo": (Coefficients(3, 0.03, 0.03), "grpo"),
    "stage3_score_greedy_forced": (Coefficients(3, 0.03, 0.03), "score_greedy"),
}


@pytest.mark.parametrize("name", STEPS)
def test_three_steps_equal_the_recorded_ones(goldens: Path, name: str) -> None:
    now, estimator = STEPS[name]
    recorded = json.loads((goldens / "losses" / "tprl_steps.json").read_text())[name]
    forced = json.loads((goldens / "losses" / "tprl.json").read_text())["forced_sample_order"]["indices"]
    after = np.load(goldens / "losses" / f"after_3_steps_{name}.npz")
    config = TprlConfig(schedule=through_stages(0.03, (1, 1, 1)), batch_size=3, lr=5e-5, estimator=estimator)
    trainer = TprlTrainer(load_head(goldens), config)
    states, references = load_states(goldens)
    batch = StateBatch(states, references, load_moments(goldens, "single"))

    totals = []
    for _ in range(3):
        totals.append(trainer.step(batch, now, torch.tensor(forced).reshape(3, 3)).total.item())

    assert totals[0] == pytest.approx(recorded["loss_first_step"], rel=1e-4)
    assert totals[2] == pytest.approx(recorded["loss_third_step"], rel=1e-4)
    for key, tensor in trainer.head.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), after[key], rtol=5e-7, atol=2e-7, err_msg=key)
    for key, tensor in trainer.averaged.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), after[f"ema.{key}"], rtol=5e-7, atol=2e-7, err_msg=key)


def write_states(
    path: Path, seed: int, samples: int = 48, *, dataset: str = "charades", dtype: str = "float32"
) -> DecoderStateCache:
    """A cache whose decoder states know the moment: four proposals near it, the states carry their errors."""
    rng = np.random.default_rng(seed)
    duration = rng.uniform(20, 40, samples)
    counts = rng.integers(1, 4, samples)
    start = rng.uniform(0, 0.6, counts.sum())
    moments = np.stack([start, start + rng.uniform(0.1, 0.4, len(start))], 1)
    first = moments[np.concatenate([[0], counts.cumsum()[:-1]])]
    spans = np.sort(np.clip(first[:, None] + rng.normal(0, 0.1, (samples, 4, 2)), 0.01, 0.99), -1)
    states = rng.normal(0, 0.1, (samples, 4, 8))
    states[..., :2] = (first[:, None] - spans) * 5
    states[..., 2] = -np.abs(first[:, None] - spans).sum(-1) * 5
    batch = CacheBatch(
        qids=list(range(samples)),
        vids=[f"v{i}" for i in range(samples)],
        queries=["q"] * samples,
        durations=duration,
        n_clips=np.ceil(duration).astype(np.int32),
        moments=Ragged(
            moments * np.repeat(duration, counts)[:, None], np.concatenate([[0], counts.cumsum()])
        ),
        spans=spans.astype(np.float32),
        scores=rng.uniform(0, 1, (samples, 4)).astype(np.float32),
        counts=np.full(samples, 4, np.int32),
        models=np.zeros((samples, 4), np.uint8),
        states=states.astype(dtype),
        references=np.stack([spans.mean(-1), spans[..., 1] - spans[..., 0]], -1).astype(np.float32),
    )
    write_cache(
        path,
        batch,
        dataset=dataset,
        split="train",
        source="simulated",
        models=["m"],
        clip_seconds=1.0,
        backbone_kind="test",
        dtype=dtype,
    )
    return DecoderStateCache.open(path)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[DecoderStateCache, DecoderStateCache]:
    folder = tmp_path_factory.mktemp("caches")
    return write_states(folder / "train", 0), write_states(folder / "val", 1)


def new_head(seed: int = 0) -> DetectionHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DetectionHead(8)


def small_config(**changes: Any) -> TprlConfig:
    settings = {
        "schedule": through_stages(0.5, (2, 2, 4)),
        "batch_size": 20,
        "lr": 3e-3,
        "ema": 0.5,
        "evaluate_every": 2,
        "selection": "miou",
    }
    return TprlConfig(**{**settings, **changes})


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_batches_hold_the_cache_s_samples(caches: tuple[DecoderStateCache, DecoderStateCache]) -> None:
    cache = caches[0]
    rows = np.array([7, 3, 3])
    for length in ("duration", "clips"):
        batch = StateBatches(cache, length).take(rows)
        assert {batch.states.dtype, batch.references.dtype, batch.moments.spans.dtype} == {torch.float32}
        np.testing.assert_array_equal(batch.states, cache.states[rows])
        np.testing.assert_array_equal(batch.references, cache.references[rows])
        for b, row in enumerate(rows):
            sample = cache.sample(int(row))
            unit = sample.duration if length == "duration" else sample.n_clips * 1.0
            start, end = (sample.moments / unit).T
            got = batch.moments.spans[b][batch.moments.mask[b]]
            np.testing.assert_allclose(got, np.stack([(start + end) / 2, end - start], 1), atol=1e-6)


def test_an_epoch_shows_every_sample_once(caches: tuple[DecoderStateCache, DecoderStateCache]) -> None:
    batches = StateBatches(caches[0])
    shuffled = torch.cat([batch.states for batch in batches.shuffled(20, np.random.default_rng(0))])
    ordered = torch.cat([batch.states for batch in batches.ordered(20)])
    assert not torch.equal(shuffled, ordered)
    assert sorted(shuffled.flatten().tolist()) == sorted(ordered.flatten().tolist())


def test_half_precision_states_come_as_float32(tmp_path: Path) -> None:
    cache = write_states(tmp_path / "half", 2, dtype="float16")
    batch = StateBatches(cache).take(np.arange(4))
    assert batch.states.dtype == torch.float32
    np.testing.assert_array_equal(batch.states, cache.states[:4].astype(np.float32))


@pytest.mark.parametrize(
    "preset",
    [
        small_config(),
        replace(default_config("charades"), batch_size=8, lr=3e-3, class_lr=3e-3, ema=0.9),
    ],
)
def test_training_gains_on_held_out_samples(
    caches: tuple[DecoderStateCache, DecoderStateCache], preset: TprlConfig
) -> None:
    result = TprlTrainer(new_head(), preset).fit(*caches, progress=False)
    assert result.history[0]["epoch"] == -1
    assert result.selection == max(row["selection"] for row in result.history)
    assert result.selection > result.history[0]["selection"] + 2
    head = new_head()
    head.load_state_dict(result.head)
    validate = Validator(caches[1], preset.selection)
    found = validate(*propose(head, StateBatches(caches[1])))
    assert found["selection"] == result.selection
    assert found["quality"] == pytest.approx((found["mIoU"] + found["R1@0.5"] + found["R1@0.7"]) / 3)


@pytest.mark.parametrize("changes", [{}, {"class_lr": 1e-3, "state_dropout": 0.2}, {"estimator": "grpo"}])
def test_resuming_equals_an_uninterrupted_run_bit_for_bit(
    caches: tuple[DecoderStateCache, DecoderStateCache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    config = small_config(**changes)
    whole_trainer = TprlTrainer(new_head(), config, seed=5)
    whole = whole_trainer.fit(*caches, progress=False)

    path = tmp_path / "tprl.pt"
    broken = TprlTrainer(new_head(), config, seed=5)
    start_epoch = broken.start_epoch

    def interrupted(epoch: int) -> Coefficients:
        if epoch == 5:
            raise KeyboardInterrupt
        return start_epoch(epoch)

    monkeypatch.setattr(broken, "start_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(*caches, checkpoint=path, progress=False)

    trainer = TprlTrainer(new_head(seed=9), config, seed=5)
    resumed = trainer.fit(*caches, checkpoint=path, resume=True, progress=False)
    assert resumed.history == whole.history
    assert resumed.epoch == whole.epoch
    assert same(resumed.head, whole.head)
    assert same(trainer.head.state_dict(), whole_trainer.head.state_dict())


def test_same_seed_same_result_and_global_generators_untouched(
    caches: tuple[DecoderStateCache, DecoderStateCache],
) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002  only looked at
    runs = [
        TprlTrainer(new_head(), small_config(state_dropout=0.1), seed=seed).fit(*caches, progress=False)
        for seed in (1, 1, 2)
    ]
    assert same(runs[0].head, runs[1].head)
    assert not same(runs[0].head, runs[2].head)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002  only looked at


def test_only_the_trained_layers_change(caches: tuple[DecoderStateCache, DecoderStateCache]) -> None:
    head = new_head()
    result = TprlTrainer(head, small_config()).fit(*caches, progress=False)
    before = new_head().state_dict()
    assert same(head.state_dict(), before)
    changed = {
        key.split(".")[0] for key, tensor in result.head.items() if not torch.equal(tensor, before[key])
    }
    assert changed == {"span_embed", "class_embed"}


def test_class_layer_rests_until_its_stage(caches: tuple[DecoderStateCache, DecoderStateCache]) -> None:
    for class_lr in (None, 1e-2):
        config = small_config(schedule=through_stages(0.5, (1, 1, 0)), class_lr=class_lr, weight_decay=0.0)
        trainer = TprlTrainer(new_head(), config)
        trainer.fit(*caches, progress=False)
        assert torch.equal(trainer.head.class_embed.weight, new_head().class_embed.weight)
        assert not torch.equal(
            trainer.head.span_embed.layers[0].weight, new_head().span_embed.layers[0].weight
        )


def test_the_loss_is_the_weighted_sum_of_its_parts(
    caches: tuple[DecoderStateCache, DecoderStateCache],
) -> None:
    trainer = TprlTrainer(new_head(), small_config(top1_coef=0.3, rank_coef=0.7))
    out = trainer.losses(StateBatches(caches[0]).take(np.arange(20)), Coefficients(3, 0.2, 0.4))
    parts = 0.3 * out.top1 + 0.4 * out.span + 0.2 * out.score + 0.7 * out.rank
    assert min(abs(part.item()) for part in (out.top1, out.span, out.score, out.rank)) > 1e-4
    torch.testing.assert_close(out.total, parts)


def test_every_epoch_shows_all_samples_in_an_order_of_its_own(
    caches: tuple[DecoderStateCache, DecoderStateCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = TprlTrainer(new_head(), small_config(schedule=through_stages(0.5, (1, 1, 1)), evaluate_every=1))
    shown: list[list[float]] = []
    start_epoch, step = trainer.start_epoch, trainer.step

    def begun(epoch: int) -> Coefficients:
        shown.append([])
        return start_epoch(epoch)

    def watched(batch: StateBatch, now: Coefficients) -> Any:
        shown[-1] += batch.states[:, 0, 0].tolist()
        return step(batch, now)

    monkeypatch.setattr(trainer, "start_epoch", begun)
    monkeypatch.setattr(trainer, "step", watched)
    list(trainer.train(StateBatches(caches[0])))
    assert [sorted(epoch) for epoch in shown] == [sorted(caches[0].states[:, 0, 0].tolist())] * 3
    assert len({tuple(epoch) for epoch in shown}) == 3


def test_own_learning_rate_makes_the_schedule_matter() -> None:
    """Adam cancels a coefficient on the loss; a rate that follows the schedule scales the step."""

    def movement(class_lr: float | None, coefficient: float) -> float:
        config = small_config(schedule=through_stages(1.0, (0, 0, 20)), class_lr=class_lr, estimator="grpo")
        trainer = TprlTrainer(new_head(), config)
        epoch = {1.0: 9, 0.1: 0}[coefficient]
        now = trainer.start_epoch(epoch)
        assert now.score == pytest.approx(coefficient)
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(20, 4, 8, generator=generator)
        references = torch.rand(20, 4, 2, generator=generator)
        moments = Moments(torch.rand(20, 1, 2, generator=generator), torch.ones(20, 1, dtype=torch.bool))
        trainer.step(StateBatch(states, references, moments), now)
        return (trainer.head.class_embed.weight - new_head().class_embed.weight).norm().item()

    assert movement(None, 0.1) == pytest.approx(movement(None, 1.0), rel=0.02)
    assert movement(1e-3, 0.1) == pytest.approx(0.1 * movement(1e-3, 1.0), rel=0.02)


def test_start_may_be_kept(caches: tuple[DecoderStateCache, DecoderStateCache]) -> None:
    ruinous = small_config(lr=10.0, clip=1e6, ema=0.0, start_is_candidate=True)
    result = TprlTrainer(new_head(), ruinous).fit(*caches, progress=False)
    assert result.epoch == -1
    assert same(result.head, new_head().state_dict())


def test_losses_that_are_not_finite_stop_training(
    caches: tuple[DecoderStateCache, DecoderStateCache],
) -> None:
    expected = r"epoch 0: (loss|gradient norm) is (nan|inf), expected a finite number"
    with pytest.raises(FloatingPointError, match=expected):
        TprlTrainer(new_head(), small_config(lr=1e30)).fit(*caches, progress=False)


def test_checkpoint_of_another_run_is_refused(
    caches: tuple[DecoderStateCache, DecoderStateCache], tmp_path: Path
) -> None:
    path = tmp_path / "tprl.pt"
    TprlTrainer(new_head(), small_config()).fit(*caches, checkpoint=path, progress=False)
    with pytest.raises(DataError, match=r"tprl\.pt, seed: 0, expected 3 to resume"):
        TprlTrainer(new_head(), small_config(), seed=3).fit(
            *caches, checkpoint=path, resume=True, progress=False
        )
    with pytest.raises(DataError, match="config"):
        TprlTrainer(new_head(), small_config(lr=1.0)).fit(
            *caches, checkpoint=path, resume=True, progress=False
        )


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_damaged_checkpoint_is_refused(
    caches: tuple[DecoderStateCache, DecoderStateCache], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "tprl.pt"
    if content is None:
        torch.save({"kind": "other"}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"tprl\.pt: .*(no checkpoint|damaged)"):
        TprlTrainer(new_head(), small_config()).fit(*caches, checkpoint=path, resume=True, progress=False)


def test_proposals_equal_the_head_s_output(caches: tuple[DecoderStateCache, DecoderStateCache]) -> None:
    cache, head = caches[0], new_head()
    spans, scores = propose(head, StateBatches(cache))
    out = head(torch.tensor(cache.states), torch.tensor(cache.references))
    centre, width = out.spans.detach().unbind(-1)
    np.testing.assert_allclose(spans, torch.stack([centre - width / 2, centre + width / 2], -1), atol=1e-6)
    np.testing.assert_allclose(scores, out.scores.detach(), atol=1e-6)


def test_official_selection_score_by_hand() -> None:
    brief = {f"MR-full-R1@{t}": v for t, v in (("0.3", 70.0), ("0.5", 50.0), ("0.7", 30.0))}
    brief |= {"MR-full-mIoU": 48.0, "MR-full-mAP@0.5": 60.0, "MR-full-mAP@0.75": 40.0}
    brief |= {"MR-full-mAP": 44.0, "MR-short-mAP": 8.0, "MR-middle-mAP": 20.0, "MR-long-mAP": 28.0}
    assert official_score(brief, "charades") == pytest.approx((21 + 25 + 21 + 24) / 2)
    assert official_score(brief, "tacos") == pytest.approx((21 + 25 + 21 + 24) / 2)
    assert official_score(brief, "qvhighlights") == pytest.approx((21 + 25 + 21 + 30 + 30 + 25) / 3.75)


def test_submission_times_equal_the_recorded_ones(goldens: Path) -> None:
    recorded = json.loads((goldens / "dataset" / "postprocessing.json").read_text())
    windows = np.array(recorded["input"])
    names = {
        "hl (clip 2)": "qvhighlights",
        "charadesSTA (clip 1)": "charades",
        "tacos (clip 1)": "tacos",
    }
    for official, name in names.items():
        got = submission_times(windows[:, :2], get_profile(name))
        np.testing.assert_array_equal(got, np.array(recorded[official])[:, :2])


@pytest.mark.parametrize("dataset", ["charades", "qvhighlights"])
def test_official_selection_runs_on_rounded_windows(tmp_path: Path, dataset: str) -> None:
    cache = write_states(tmp_path / "cache", 4, dataset=dataset)
    metrics = Validator(cache, "official")(*propose(new_head(), StateBatches(cache)))
    assert set(metrics) == {"R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "mAP", "quality", "selection"}
    assert 0 < metrics["selection"] < 100


def test_cache_without_states_is_refused(tmp_path: Path) -> None:
    with_states = write_states(tmp_path / "states", 3)
    rows = {name: getattr(with_states, name)[:2] for name in ("spans", "scores", "counts", "models")}
    batch = CacheBatch(
        qids=[1, 2], vids=["a", "b"], queries=["q", "q"],
        durations=np.array([9.0, 9.0]), n_clips=np.array([9, 9], np.int32),
        moments=Ragged.from_rows([[[1.0, 2.0]], [[2.0, 3.0]]]), **rows,
    )  # fmt: skip
    write_cache(
        tmp_path / "bare", batch, dataset="tacos", split="val", source="predictions", models=["m"],
        clip_seconds=1.0, backbone_kind="test",
    )  # fmt: skip
    with pytest.raises(DataError, match="no decoder states and references"):
        StateBatches(DecoderStateCache.open(tmp_path / "bare"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "ppo"}, "estimator is 'ppo', expected one of 'score_greedy'"),
        ({"weighting": "best"}, "weighting is 'best', expected one of"),
        ({"batch_size": 0}, "batch_size is 0, expected a whole number of at least 1"),
        ({"lr": 0.0}, "lr is 0.0, expected a number above 0"),
        ({"class_lr": -1.0}, "class_lr is -1.0, expected a number above 0, or None"),
        ({"ema": 1.0}, "ema is 1.0, expected a number from 0, below 1"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        ({"top_k": 0}, "top_k is 0, expected a whole number of at least 1, or None"),
        ({"evaluate_every": 0}, "evaluate_every is 0, expected a whole number of at least 1"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


def test_paper_settings() -> None:
    config = paper_config("qvhighlights")
    assert (config.batch_size, config.lr, config.schedule.epochs) == (128, 2e-4, 60)
    assert (config.estimator, config.weighting, config.reward) == ("score_greedy", "improvement", "iou")
    with pytest.raises(ValueError, match="no published TPRL settings for 'activitynet'"):
        paper_config("activitynet")
