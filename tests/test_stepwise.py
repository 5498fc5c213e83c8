"""The step-wise agent against recorded trajectories and updates, and its training."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from girl_detr_cases import model_of
from head_goldens import load_moments
from safetensors.torch import load_file
from torch import Tensor

from vmr_env.agents.stepwise.data import DetectedBatches
from vmr_env.agents.stepwise.objectives import gae, inside_tiou, match_proposals, oracle_loss, step_rewards
from vmr_env.agents.stepwise.policy import (
    MAX_ACTION,
    DetectedSamples,
    DiscretePolicy,
    Trajectories,
    boundaries,
    moved,
    observe,
)
from vmr_env.agents.stepwise.trainer import StepwiseConfig, StepwiseTrainer, new_policy, walk
from vmr_env.agents.tprl.losses import Moments
from vmr_env.backbones.base import GirlDetrDetector
from vmr_env.backbones.cache import build_cache
from vmr_env.backbones.dataset import DatasetSettings, MomentDataset
from vmr_env.caches.reader import CacheBatch, DecoderStateCache, Ragged, write_cache
from vmr_env.data.annotations import Annotation
from vmr_env.errors import DataError

ALL = {"gate": True, "memory": True, "iou_head": True}
CONFIGS = {  # name of the record -> settings
    "discrete_plain": StepwiseConfig(max_clips=20),
    "discrete_all": StepwiseConfig(max_clips=20, **ALL),
    "continuous": StepwiseConfig(actions="continuous", warm_up_epochs=0),
}
DISCRETE = ["discrete_plain", "discrete_all"]


@pytest.fixture(scope="module")
def detected(goldens: Path) -> DetectedSamples:
    outputs, inputs = np.load(goldens / "tiny" / "outputs.npz"), np.load(goldens / "tiny" / "inputs.npz")
    text, mask = (torch.from_numpy(a) for a in (outputs["src_txt"], inputs["src_txt_mask"][..., None]))
    return DetectedSamples(
        clips=torch.from_numpy(outputs["src_vid"]),
        mask=torch.from_numpy(outputs["video_mask"]),
        text=(text * mask).sum(1) / mask.sum(1),
        spans=torch.from_numpy(outputs["pred_spans"]),
        scores=torch.from_numpy(outputs["pred_logits"]).softmax(-1)[..., 0],
    )


@pytest.fixture(scope="module")
def recorded(goldens: Path) -> dict[str, np.ndarray]:
    return dict(np.load(goldens / "agent" / "trajectories.npz"))


def recorded_trainer(goldens: Path, name: str, **changes: Any) -> StepwiseTrainer:
    trainer = StepwiseTrainer(replace(CONFIGS[name], **changes), d=32)
    trainer.policy.load_state_dict(load_file(goldens / "agent" / f"{name}.safetensors"))
    return trainer


def close(got: Tensor, want: np.ndarray, what: str) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-4, atol=1e-5, err_msg=what)


@pytest.mark.parametrize("name", CONFIGS)
def test_trajectories_equal_the_recorded_ones(
    goldens: Path, detected: DetectedSamples, recorded: dict[str, np.ndarray], name: str
) -> None:
    policy = recorded_trainer(goldens, name).policy
    rollout = policy.roll_out(detected, 3)
    judged = policy.judge(rollout)
    close(policy.gated(rollout.states[0]), recorded[f"{name}.state0"], "state0")
    for step in range(3):
        close(rollout.actions[step], recorded[f"{name}.action{step}"], f"action{step}")
        close(judged.log_probs[step], recorded[f"{name}.log_prob{step}"], f"log_prob{step}")
        close(judged.entropies[step], recorded[f"{name}.entropy{step}"], f"entropy{step}")
        close(judged.values[step], recorded[f"{name}.value{step}"], f"value{step}")
        if judged.tious is not None:
            close(judged.tious[step], recorded[f"{name}.iou_pred{step}"], f"iou_pred{step}")
    for step in range(4):
        close(rollout.spans[step], recorded[f"{name}.spans{step}"], f"spans{step}")


@pytest.mark.parametrize("name", CONFIGS)
def test_matching_rewards_and_advantages_equal_the_recorded_ones(
    goldens: Path, detected: DetectedSamples, recorded: dict[str, np.ndarray], name: str
) -> None:
    matched = match_proposals(detected.spans, load_moments(goldens, "single"))
    assert matched.rows.tolist() == recorded[f"{name}.matched_flat_index"].tolist()
    close(matched.moments, recorded[f"{name}.matched_gt"], "moments")
    policy = recorded_trainer(goldens, name).policy
    rollout = policy.roll_out(detected, 3).of(matched.rows)
    rewards = step_rewards(rollout.spans, matched.moments)
    close(rewards, recorded[f"{name}.rewards"], "rewards")
    advantages, returns = gae(rewards, policy.judge(rollout).values.detach(), 0.99, 0.95)
    close(advantages, recorded[f"{name}.gae_advantages"], "advantages")
    close(returns, recorded[f"{name}.gae_returns"], "returns")
    close(inside_tiou(rollout.spans[0], matched.moments), recorded[f"{name}.iou_before"], "before")
    close(inside_tiou(rollout.spans[-1], matched.moments), recorded[f"{name}.iou_after"], "after")


@pytest.mark.parametrize("name", DISCRETE)
def test_oracle_equals_the_recorded_one(
    goldens: Path, detected: DetectedSamples, recorded: dict[str, np.ndarray], name: str
) -> None:
    policy = recorded_trainer(goldens, name).policy
    assert isinstance(policy, DiscretePolicy)
    matched = match_proposals(detected.spans, load_moments(goldens, "single"))
    start = detected.spans.flatten(0, 1)[matched.rows]
    for step in range(3):  # recorded at the initial spans, with each step's moves
        want = recorded[f"{name}.oracle_step{step}"].tolist()
        assert policy.oracle(start, matched.moments, step).tolist() == want
    states = observe(detected, detected.spans).flatten(0, 1)[matched.rows]
    loss = oracle_loss(policy, policy.features(policy.gated(states)), start, matched.moments, 0, 0.5)
    updates = json.loads((goldens / "agent" / "updates.json").read_text())[name]
    assert loss.item() == pytest.approx(updates["supervised_loss_step0"], rel=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_updates_report_the_recorded_losses(goldens: Path, detected: DetectedSamples, name: str) -> None:
    updates = json.loads((goldens / "agent" / "updates.json").read_text())[name]
    matched = match_proposals(detected.spans, load_moments(goldens, "single"))

    trainer = recorded_trainer(goldens, name)
    rollout = trainer.policy.roll_out(detected, 3).of(matched.rows)
    trainer.baseline = 0.2
    got = trainer.reinforce(rollout, matched.moments)
    want = updates["reinforce_update (baseline starts at 0.2)"]
    assert trainer.baseline == pytest.approx(want["baseline"], rel=1e-4)
    assert got["losses/policy"] == pytest.approx(want["policy_loss"], rel=1e-4)
    assert -got["losses/entropy"] == pytest.approx(want["entropy_loss"], rel=1e-4)
    assert ("losses/iou" in got) == ("iou_aux_loss" in want)
    assert got.get("losses/iou", 0.0) == pytest.approx(want.get("iou_aux_loss", 0.0), rel=1e-4)

    trainer = recorded_trainer(goldens, name, algorithm="ppo")
    got = trainer.ppo(rollout, matched.moments)
    want = updates["ppo_update (4 inner epochs, means)"]
    assert got["losses/policy"] == pytest.approx(want["policy_loss"], rel=1e-4, abs=1e-6)
    assert got["losses/value"] == pytest.approx(want["value_loss"], rel=1e-4)
    assert -got["losses/entropy"] == pytest.approx(want["entropy_loss"], rel=1e-4)
    assert ("losses/iou" in got) == ("iou_aux_loss" in want)
    assert got.get("losses/iou", 0.0) == pytest.approx(want.get("iou_aux_loss", 0.0), rel=1e-4)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (StepwiseConfig(), 373_803),
        (StepwiseConfig(**ALL), 867_372),
        (StepwiseConfig(actions="continuous", warm_up_epochs=0), 363_525),
    ],
)
def test_policies_have_the_published_sizes(config: StepwiseConfig, parameters: int) -> None:
    policy = new_policy(config, d=256)
    assert sum(parameter.numel() for parameter in policy.parameters()) == parameters
    detected = random_scene(0, d=256)
    assert observe(detected, detected.spans).shape == (3, 4, 1027)


def random_scene(seed: int, d: int = 8) -> DetectedSamples:
    generator = torch.Generator().manual_seed(seed)
    spans = torch.rand(3, 4, 2, generator=generator)
    mask = (torch.arange(9) < torch.tensor([9, 5, 7])[:, None]).float()
    return DetectedSamples(
        clips=torch.randn(3, 9, d, generator=generator),
        mask=mask,
        text=torch.randn(3, d, generator=generator),
        spans=spans,
        scores=torch.rand(3, 4, generator=generator),
    )


def test_padded_clips_are_not_seen() -> None:
    detected = random_scene(1)
    noisy = detected._replace(clips=detected.clips + 99 * (1 - detected.mask[..., None]))
    torch.testing.assert_close(observe(detected, detected.spans), observe(noisy, detected.spans))


def test_spans_stay_inside_their_bounds() -> None:
    spans = moved(torch.tensor([[0.1, 0.05], [0.95, 0.9]]), torch.tensor([[-0.5, -0.2], [0.5, 0.6]]))
    torch.testing.assert_close(spans, torch.tensor([[0.0, 0.01], [1.0, 1.0]]))


def test_continuous_actions_are_bounded_and_follow_their_generator() -> None:
    policy = new_policy(CONFIGS["continuous"], d=8)
    detected = random_scene(2)
    rolls = [policy.roll_out(detected, 3, torch.Generator().manual_seed(seed)).actions for seed in (1, 1, 2)]
    assert torch.equal(rolls[0], rolls[1])
    assert not torch.equal(rolls[0], rolls[2])
    assert rolls[0].abs().max() <= MAX_ACTION


def test_oracle_moves_bring_spans_nearer() -> None:
    policy = new_policy(StepwiseConfig(max_clips=20), d=8)
    assert isinstance(policy, DiscretePolicy)
    generator = torch.Generator().manual_seed(3)
    moments = torch.rand(50, 2, generator=generator) * 0.3 + 0.35
    spans = moments + (torch.rand(50, 2, generator=generator) - 0.5) * 0.2
    before = inside_tiou(spans, moments)
    for step in range(3):
        spans = moved(spans, policy.change(policy.oracle(spans, moments, step), step))
    assert inside_tiou(spans, moments).min() > before.min()
    assert inside_tiou(spans, moments).mean() > 0.9


def test_matching_weighs_distance_ten_times_the_overlap() -> None:
    """By hand: 10 * 0.08 - 0.2 = 0.6 costs less than 10 * 0.12 - 0.1 / 0.22 = 0.75, which overlaps more."""
    spans = torch.tensor([[[0.5, 0.22], [0.5, 0.02]]])
    moments = Moments(torch.tensor([[[0.5, 0.1]]]), torch.ones(1, 1, dtype=torch.bool))
    assert match_proposals(spans, moments).rows.tolist() == [1]


def test_gae_by_hand() -> None:
    rewards, values = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [0.25]])
    advantages, returns = gae(rewards, values, gamma=0.9, lam=0.8)
    last = 2.0 - 0.25
    first = 1.0 + 0.9 * 0.25 - 0.5 + 0.9 * 0.8 * last
    assert advantages.flatten().tolist() == pytest.approx([first, last])
    assert returns.flatten().tolist() == pytest.approx([first + 0.5, last + 0.25])


def test_gate_learns_by_reinforce_but_not_by_ppo() -> None:
    detected = random_scene(4)
    moments = torch.rand(12, 2, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    for algorithm, learns in (("reinforce", True), ("ppo", False)):
        config = StepwiseConfig(algorithm=algorithm, **ALL)
        trainer = StepwiseTrainer(config, d=8)
        before = trainer.policy.state_dict()["gate_proj.weight"].clone()
        rollout: Trajectories = trainer.policy.roll_out(detected, 3, torch.Generator().manual_seed(1))
        trainer.reinforce(rollout, moments) if learns else trainer.ppo(rollout, moments)
        assert bool((trainer.policy.state_dict()["gate_proj.weight"] != before).any()) == learns


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo"])
def test_the_bonus_opens_the_policy(algorithm: Any) -> None:
    """It begins with a preference for no change."""
    detected = random_scene(6)
    moments = torch.rand(12, 2, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    config = StepwiseConfig(algorithm=algorithm, entropy_coef=20.0, lr=1e-3)
    trainer = StepwiseTrainer(config, d=8)
    rollout = trainer.policy.roll_out(detected, 3, torch.Generator().manual_seed(1))
    update = trainer.reinforce if algorithm == "reinforce" else trainer.ppo
    seen = [update(rollout, moments)["losses/entropy"] for _ in range(8)]
    assert all(later > earlier for earlier, later in pairwise(seen))


def write_clips(path: Path, seed: int, samples: int = 40, *, clips: bool = True) -> DecoderStateCache:
    """A cache whose proposals come late, and whose clips show the moment: a channel is 1 inside it."""
    rng = np.random.default_rng(seed)
    n_clips = rng.integers(16, 21, samples)
    durations = n_clips * 1.0
    start = rng.uniform(0.1, 0.5, samples)
    moments = np.stack([start, start + rng.uniform(0.2, 0.4, samples)], 1)
    spans = np.sort(np.clip(moments[:, None] + rng.normal(0.15, 0.03, (samples, 3, 2)), 0, 1), -1)
    features = []
    for count, (low, high) in zip(n_clips, moments, strict=True):
        centres = (np.arange(count) + 0.5) / count
        rows = rng.normal(0, 0.05, (count, 8))
        rows[:, 0] += (centres > low) & (centres < high)
        features.append(rows.astype(np.float32))
    batch = CacheBatch(
        qids=list(range(samples)),
        vids=[f"v{i}" for i in range(samples)],
        queries=["q"] * samples,
        durations=durations,
        n_clips=n_clips.astype(np.int32),
        moments=Ragged.from_rows(list(moments[:, None] * durations[:, None, None])),
        spans=spans.astype(np.float32),
        scores=rng.uniform(0, 1, (samples, 3)).astype(np.float32),
        counts=np.full(samples, 3, np.int32),
        models=np.zeros((samples, 3), np.uint8),
        clips=Ragged.from_rows(features) if clips else None,
        text=np.zeros((samples, 8), np.float32) if clips else None,
    )
    write_cache(
        path,
        batch,
        dataset="charades",
        split="train",
        source="simulated",
        models=["m"],
        clip_seconds=1.0,
        backbone_kind="test",
    )
    return DecoderStateCache.open(path)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[DecoderStateCache, DecoderStateCache]:
    folder = tmp_path_factory.mktemp("clips")
    return write_clips(folder / "train", 0), write_clips(folder / "val", 1)


def small_config(**changes: Any) -> StepwiseConfig:
    settings = {"max_clips": 20, "warm_up_epochs": 4, "epochs": 4, "evaluate_every": 2, "batch_size": 8}
    return StepwiseConfig(**{**settings, **changes})


def test_scenes_hold_the_cache_s_samples(caches: tuple[DecoderStateCache, DecoderStateCache]) -> None:
    cache = caches[0]
    assert cache.clips is not None
    detected, moments = DetectedBatches(cache).take(np.array([5, 2]))
    assert isinstance(moments, Moments)
    for b, row in enumerate((5, 2)):
        count = int(cache.n_clips[row])
        assert detected.mask[b].sum() == count
        np.testing.assert_array_equal(detected.clips[b, :count], cache.clips[row])
        assert not detected.clips[b, count:].any()
        start, end = cache.spans[row].T
        np.testing.assert_allclose(
            detected.spans[b], np.stack([(start + end) / 2, end - start], 1), atol=1e-6
        )


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo"])
def test_training_gains_on_held_out_samples(
    caches: tuple[DecoderStateCache, DecoderStateCache], algorithm: Any
) -> None:
    config = small_config(algorithm=algorithm, warm_up_epochs=10, warm_up_lr=1e-2)
    result = StepwiseTrainer(config, d=8).fit(*caches, progress=False)
    assert result.gain == max(row["matched/gain"] for row in result.history)
    assert result.gain > 5
    policy = new_policy(config, d=8)
    policy.load_state_dict(result.policy)
    spans = walk(policy, caches[1])
    assert spans.shape == (*caches[1].scores.shape, 4, 2)
    np.testing.assert_allclose(spans[:, :, 0], caches[1].spans, atol=1e-6)
    assert (spans[:, :, -1] != spans[:, :, 0]).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": True, "iou_head": True},
        {"warm_up_epochs": 1, "epochs": 4},  # interrupted where the baseline has moved
        {"actions": "continuous", "warm_up_epochs": 0, "algorithm": "ppo"},
    ],
)
def test_resuming_equals_an_uninterrupted_run_bit_for_bit(
    caches: tuple[DecoderStateCache, DecoderStateCache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    config = small_config(**changes)
    whole = StepwiseTrainer(config, d=8, seed=3)
    expected = whole.fit(*caches, progress=False)

    path = tmp_path / "stepwise.pt"
    broken = StepwiseTrainer(config, d=8, seed=3)
    run_epoch = broken.run_epoch

    def interrupted(batches: DetectedBatches, epoch: int) -> list[dict[str, float]]:
        if epoch == 3:
            raise KeyboardInterrupt
        return run_epoch(batches, epoch)

    monkeypatch.setattr(broken, "run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(*caches, checkpoint=path, progress=False)

    resumed = StepwiseTrainer(config, d=8, seed=3)
    got = resumed.fit(*caches, checkpoint=path, resume=True, progress=False)
    assert got.history == expected.history
    assert resumed.baseline == whole.baseline
    for name, tensor in whole.policy.state_dict().items():
        assert torch.equal(tensor, resumed.policy.state_dict()[name]), name


def test_hard_matches_alone_are_trained() -> None:
    detected = random_scene(5)
    moments = Moments(detected.spans[:, :2].clone() + 0.01, torch.ones(3, 2, dtype=torch.bool))
    every = StepwiseTrainer(StepwiseConfig(), d=8).matches(detected, moments)
    limit = inside_tiou(detected.spans.flatten(0, 1)[every.rows], every.moments).median().item()
    hard = StepwiseTrainer(StepwiseConfig(hard_below=limit), d=8).matches(detected, moments)
    assert 0 < len(hard.rows) < len(every.rows)
    assert (inside_tiou(detected.spans.flatten(0, 1)[hard.rows], hard.moments) < limit).all()


def test_cache_without_clips_is_refused(tmp_path: Path) -> None:
    cache = write_clips(tmp_path / "bare", 2, clips=False)
    with pytest.raises(DataError, match="no clip features and text"):
        DetectedBatches(cache)


@pytest.mark.parametrize(
    ("changes", "epoch"), [({}, 0), ({"warm_up_epochs": 0}, 0), ({"algorithm": "ppo"}, 4)]
)
def test_what_is_not_finite_stops_training_with_its_epoch(
    caches: tuple[DecoderStateCache, DecoderStateCache],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    epoch: int,
) -> None:
    trainer = StepwiseTrainer(small_config(**changes), d=8)
    run_epoch = trainer.run_epoch

    def broken(batches: DetectedBatches, now: int) -> Any:
        if now == epoch:
            with torch.no_grad():
                trainer.policy.critic[0].weight.fill_(torch.nan)
                trainer.policy.shared[0].weight[0, 0] = torch.inf if now == 0 else 1.0
        return run_epoch(batches, now)

    monkeypatch.setattr(trainer, "run_epoch", broken)
    monkeypatch.setattr(DiscretePolicy, "act", lambda self, f, step, g: torch.full((len(f), 2), 3))
    with pytest.raises(
        FloatingPointError, match=rf"^stepwise, epoch {epoch}: [\w ]+ is nan, expected a finite"
    ):
        trainer.fit(*caches, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": "both"}, "actions is 'both', expected one of 'discrete', 'continuous'"),
        ({"algorithm": "a2c"}, "algorithm is 'a2c', expected one of 'reinforce', 'ppo'"),
        ({"actions": "continuous"}, "continuous actions need warm_up_epochs=0, got 10"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepwiseConfig(**changes)


class InMemory(dict[str, np.ndarray]):
    """Features in memory."""

    dim = 0

    def read(self, key: str) -> np.ndarray:
        return self[key]


def golden_cache(goldens: Path, path: Path) -> DecoderStateCache:
    """The tiny model's cache of the three golden samples, each video 0.4 s longer than its clips."""
    moments = load_moments(goldens, "single")
    inputs = np.load(goldens / "tiny" / "inputs.npz")
    rows, clips, tokens = [], InMemory(), InMemory()
    for b, mask in enumerate(inputs["src_vid_mask"]):
        count, words = int(mask.sum()), int(inputs["src_txt_mask"][b].sum())
        seconds = boundaries(moments.spans[b][moments.mask[b]]).double().numpy() * count
        rows.append(Annotation(b, f"v{b}", "q", count + 0.4, seconds.clip(0)))
        clips[f"v{b}"], tokens[str(b)] = inputs["src_vid"][b, :count], inputs["src_txt"][b, :words]
    settings = DatasetSettings(clip_seconds=1, max_clips=20, official=True, endpoints=False)
    built = build_cache(
        path,
        GirlDetrDetector(model_of(goldens / "tiny"), "refined"),
        MomentDataset(rows, clips, tokens, settings),
        split="val",
        source="real",
        profile="charades",
        dtype="float32",
        progress=False,
    )
    assert built is not None
    return DecoderStateCache.open(built)


@pytest.mark.parametrize("name", CONFIGS)
def test_through_a_cache_it_walks_as_published(
    goldens: Path, detected: DetectedSamples, recorded: dict[str, np.ndarray], tmp_path: Path, name: str
) -> None:
    """Spans beyond the video's ends and moments in units of the clips, up to the order of proposals."""
    cache = golden_cache(goldens, tmp_path / "cache")
    cache.verify()
    found, moments = DetectedBatches(cache).take(np.arange(3))
    order = detected.scores.argsort(dim=1, descending=True, stable=True)
    raw = boundaries(detected.spans)
    assert ((raw < 0) | (raw > 1)).any()  # otherwise this would show nothing
    flat = (order + torch.arange(3)[:, None] * order.shape[1]).flatten()
    rollout = recorded_trainer(goldens, name).policy.roll_out(found, 3)
    for step in range(4):
        want = recorded[f"{name}.spans{step}"].reshape(-1, 2)[flat]
        np.testing.assert_allclose(rollout.spans[step], want, rtol=1e-4, atol=3e-5)
    matched = match_proposals(found.spans, moments)
    pairs = sorted(zip(flat[matched.rows].tolist(), matched.moments.tolist(), strict=True))
    assert [row for row, _ in pairs] == recorded[f"{name}.matched_flat_index"].tolist()
    np.testing.assert_allclose([m for _, m in pairs], recorded[f"{name}.matched_gt"], atol=1e-5)
