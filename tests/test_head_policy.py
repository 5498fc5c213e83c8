"""The head as a policy: probabilities, rewards and gradients against slow ones, and that it learns."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tprl import new_head, same, write_states

from vmr_env.agents.tprl import head_policy, head_training
from vmr_env.agents.tprl.data import StateBatch, StateBatches
from vmr_env.agents.tprl.head_policy import (
    Drawn,
    HeadPolicy,
    HeadPolicyConfig,
    HeadPolicyTrainer,
    bounds_of,
    head_policy_config,
    potentials,
)
from vmr_env.agents.tprl.head_training import cross_fit_head
from vmr_env.agents.tprl.losses import Moments
from vmr_env.agents.tprl.validation import Validator, propose
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.curriculum import STAGES, Stage
from vmr_env.metrics.spans import tiou
from vmr_env.seeding import derived

Pair = tuple[DecoderStateCache, DecoderStateCache]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("caches")
    return write_states(folder / "train", 0), write_states(folder / "val", 1)


def config(algorithm: str, **changes: object) -> HeadPolicyConfig:
    settings = {"batch_size": 16, "lr": 3e-3, "ema": 0.5, "epochs": (2, 2, 6), **changes}
    return replace(head_policy_config(algorithm), **settings)  # type: ignore[arg-type]  # checked by the class


def batch_of(caches: Pair, rows: int = 12) -> StateBatch:
    return StateBatches(caches[0]).take(np.arange(rows))


def test_rewards_are_the_environments_potentials() -> None:
    rng = np.random.default_rng(0)
    bounds = rng.uniform(-0.2, 1.2, (6, 4, 2)).astype(np.float32)
    low = rng.uniform(0, 0.5, (6, 3))
    high = low + rng.uniform(0.05, 0.5, (6, 3))
    counts = rng.integers(1, 4, 6)
    low, high = (np.where(np.arange(3) < counts[:, None], side, side[:, :1]) for side in (low, high))
    cxw = np.stack([(low + high) / 2, high - low], -1).astype(np.float32)
    moments = Moments(torch.from_numpy(cxw), torch.from_numpy(np.arange(3) < counts[:, None]))
    for name in ("tiou", "giou"):
        found = potentials(name, torch.from_numpy(bounds), moments).numpy()
        for b in range(6):
            for g in range(4):
                a, z = np.sort(np.clip(bounds[b, g], 0, 1)).tolist()
                expected = -2.0
                for m in range(counts[b]):
                    s, e = float(low[b, m]), float(high[b, m])
                    inter = max(0.0, min(z, e) - max(a, s))
                    union, hull = (z - a) + (e - s) - inter, max(z, e) - min(a, s)
                    value = inter / union - ((hull - union) / hull if name == "giou" else 0)
                    expected = max(expected, value)
                assert found[b, g] == pytest.approx(expected, abs=2e-5)


def test_log_probabilities_equal_pytorch_s_distributions(caches: Pair) -> None:
    batch = batch_of(caches)
    policy = HeadPolicy(new_head(), 0.2)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([-1.0, -2.0]))
    out, said = new_head()(batch.states, batch.references), policy(batch.states, batch.references)
    centre, width = out.spans.unbind(-1)
    means = torch.stack([centre - width / 2, centre + width / 2], -1)
    generator = torch.Generator().manual_seed(0)
    choice = torch.randint(4, (12, 5), generator=generator)
    bounds, scale = torch.rand(12, 5, 2, generator=generator), torch.rand(12, 5, generator=generator) + 0.1
    drawn = Drawn(choice, bounds, scale, torch.empty(0), torch.empty(0), torch.empty(0))
    of_choice = torch.distributions.Categorical(logits=out.logits[..., 0] - out.logits[..., 1])
    for chooses in (False, True):
        found = policy.log_prob(said, drawn, chooses=chooses)
        for b in range(12):
            for g in range(5):
                mean = means[b, choice[b, g]]
                std = scale[b, g] * torch.tensor([math.exp(-1), math.exp(-2)])
                expected = torch.distributions.Normal(mean, std).log_prob(bounds[b, g]).sum()
                if chooses:
                    expected = expected + of_choice.log_prob(choice[:, g])[b]
                assert found[b, g].item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_draws_follow_the_table_of_stages(caches: Pair, number: int) -> None:
    stage: Stage = STAGES[number]
    trainer = HeadPolicyTrainer(new_head(), config("grpo", group=200))
    batch = batch_of(caches)
    drawn = trainer.draw(batch, stage)
    said = trainer.policy(batch.states, batch.references)
    ranks = (-said.log_pi).argsort(1).argsort(1).gather(1, drawn.choice)
    if number == 1:
        assert (ranks == 0).all()
    elif number == 2:
        assert (drawn.choice == drawn.choice[:, :1]).all()  # a group shares its start
        assert set(ranks[:, 0].tolist()) == {0, 1, 2}
    else:
        shares = torch.nn.functional.one_hot(drawn.choice, 4).float().mean(1)
        assert (shares - said.log_pi.exp()).abs().max() < 0.15  # 200 draws each
    # Noise is in units of the proposal's length, and rewards are gains over the detector's own span.
    mean = said.bounds.gather(1, drawn.choice[..., None].expand(-1, -1, 2))
    lengths = mean[..., 1] - mean[..., 0]
    noise = (drawn.bounds - mean) / lengths[..., None]
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)
    if number == 3:
        row = 3
        sample = caches[0].sample(row)
        moments = sample.moments / sample.duration
        top = said.bounds[row, said.log_pi[row].argmax()].detach().numpy()

        def best(span: np.ndarray) -> float:
            return float(max(tiou(np.sort(np.clip(span, 0, 1)), moment) for moment in moments))

        expected = [best(span) - best(top) for span in drawn.bounds[row].numpy()]
        np.testing.assert_allclose(drawn.rewards[row], expected, atol=1e-4)


def test_rewards_are_gains_over_the_detector_s_span_and_not_the_policy_s(caches: Pair) -> None:
    batch = batch_of(caches)
    trainer = HeadPolicyTrainer(new_head(), config("grpo", group=2))
    came = trainer.came(batch.states, batch.references)
    with torch.no_grad():
        for weight in trainer.head.get_submodule("span_embed").parameters():
            weight.add_(0.05)
    drawn = trainer.draw(batch, STAGES[1])
    now = trainer.policy(batch.states, batch.references)
    centre, width = (part.numpy() for part in came.spans.unbind(-1))
    for row, start in enumerate(now.log_pi.argmax(1).tolist()):
        moments = caches[0].sample(row).moments / caches[0].sample(row).duration
        ends = [
            (centre[row, start] - width[row, start] / 2, centre[row, start] + width[row, start] / 2),
            drawn.bounds[row, 0].numpy(),
        ]
        before, after = (giou(np.sort(np.clip(span, 0, 1)), moments) for span in ends)
        assert drawn.rewards[row, 0].item() == pytest.approx(after - before, abs=1e-4)
    assert (now.bounds - bounds_of(came.spans)).abs().max() > 0.01  # otherwise this shows nothing


def giou(span: np.ndarray, moments: np.ndarray) -> float:
    """The highest generalised IoU with a moment, from boundaries."""
    values = []
    for low, high in moments:
        common = max(0.0, min(span[1], high) - max(span[0], low))
        union = span[1] - span[0] + high - low - common
        hull = max(span[1], high) - min(span[0], low)
        values.append(common / union - (hull - union) / hull)
    return float(max(values))


def test_divergence_of_spans_equals_pytorch_s(caches: Pair) -> None:
    """In every stage; the deviations of both policies are the current one's."""
    batch = batch_of(caches)
    trainer = HeadPolicyTrainer(new_head(), config("grpo", group=3))
    drawn = trainer.draw(batch, STAGES[3])
    came = trainer._first(batch.states, batch.references)
    with torch.no_grad():
        trainer.policy.log_std.copy_(torch.tensor([-1.0, -2.0]))
        for weight in trainer.head.get_submodule("span_embed").parameters():
            weight.add_(0.05)
    said = trainer.policy(batch.states, batch.references)
    std = torch.tensor([math.exp(-1), math.exp(-2)]) * drawn.scale[..., None]
    rows = torch.arange(12)[:, None]
    now, then = (torch.distributions.Normal(of.bounds[rows, drawn.choice], std) for of in (said, came))
    expected = torch.distributions.kl_divergence(now, then).sum(-1).mean().item()
    assert expected > 1e-3
    assert trainer._divergence(said, came, drawn, False).item() == pytest.approx(expected, rel=1e-4)
    assert trainer._divergence(said, came, drawn, True).item() == pytest.approx(expected, rel=1e-3)


def test_every_pass_is_clipped_as_set(caches: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, clips = HeadPolicyTrainer(new_head(), config("ppo", ratio_clip=0.3, passes=3)), []
    clipped = head_policy.clipped_gain

    def watched(ratio: torch.Tensor, advantages: torch.Tensor, clip: float) -> torch.Tensor:
        clips.append(clip)
        return clipped(ratio, advantages, clip)

    monkeypatch.setattr(head_policy, "clipped_gain", watched)
    trainer.step(batch_of(caches), trainer.start_epoch(9))
    assert clips == [0.3] * 3


def test_the_divergence_holds_the_policy_back(caches: Pair) -> None:
    """Of two trainings alike, the one with a high coefficient stays nearer to the head as it came."""

    def strayed(kl: float) -> float:
        trainer = HeadPolicyTrainer(new_head(), config("grpo", kl=kl, epochs=(0, 0, 4)))
        for _ in trainer.train(StateBatches(caches[0])):
            pass
        batch = batch_of(caches)
        drawn = trainer.draw(batch, STAGES[3])
        said, came = (of(batch.states, batch.references) for of in (trainer.policy, trainer._first))
        return trainer._divergence(said, came, drawn, True).item()

    assert strayed(30.0) < 0.5 * strayed(0.0)


def test_every_epoch_has_draws_of_its_own(caches: Pair) -> None:
    trainer, drawn = HeadPolicyTrainer(new_head(), config("ppo")), []
    for epoch in (8, 9, 8):
        stage = trainer.start_epoch(epoch)
        drawn.append(trainer.draw(batch_of(caches), stage).bounds)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo", "grpo"])
def test_a_batch_of_one_teaches_and_breaks_nothing(caches: Pair, algorithm: str) -> None:
    trainer = HeadPolicyTrainer(new_head(), config(algorithm))
    before = new_head().span_embed.layers[0].weight
    for row in range(3):
        trainer.start_epoch(9)
        trainer.step(StateBatches(caches[0]).take(np.array([row])), STAGES[3])
    assert all(bool(weight.isfinite().all()) for weight in trainer.policy.parameters())
    assert not torch.equal(trainer.head.get_submodule("span_embed").layers[0].weight, before)


def test_advantages_of_a_group_are_standardised_rewards(caches: Pair) -> None:
    trainer = HeadPolicyTrainer(new_head(), config("grpo", group=6))
    drawn = trainer.draw(batch_of(caches), STAGES[3])
    for rewards, advantages in zip(drawn.rewards.numpy(), drawn.advantages.numpy(), strict=True):
        expected = (rewards - rewards.mean()) / max(rewards.std(ddof=1), 1e-4)
        np.testing.assert_allclose(advantages, expected, atol=1e-4)


def test_advantages_are_what_the_value_did_not_expect(caches: Pair) -> None:
    batch, trainer = batch_of(caches), HeadPolicyTrainer(new_head(), config("reinforce"))
    with torch.no_grad():
        trainer.policy.value.weight.copy_(torch.linspace(-1, 1, 8)[None])
    values = trainer.policy(batch.states, batch.references).values.detach()
    drawn = trainer.draw(batch, STAGES[3])
    left = (drawn.rewards - values[:, None]).numpy()
    np.testing.assert_allclose(drawn.advantages, (left - left.mean()) / left.std(ddof=1), atol=1e-4)
    assert values.std() > 0.01  # otherwise this shows nothing


def test_one_pass_is_reinforce(caches: Pair) -> None:
    """The gradient of the clipped surrogate at a ratio of 1 is that of advantage times log-probability."""
    batch = batch_of(caches)
    found = HeadPolicyTrainer(new_head(), config("reinforce", clip=1e9), seed=3)
    found.start_epoch(4)
    found.step(batch, STAGES[3])
    by_hand = HeadPolicyTrainer(new_head(), config("reinforce", clip=1e9), seed=3)
    by_hand.start_epoch(4)
    drawn = by_hand.draw(batch, STAGES[3])
    said = by_hand.policy(batch.states, batch.references)
    log_probs = by_hand.policy.log_prob(said, drawn, chooses=True)
    (
        -(drawn.advantages * log_probs).mean() + (said.values[:, None] - drawn.rewards).square().mean()
    ).backward()
    for (name, a), b in zip(found.policy.named_parameters(), by_hand.policy.parameters(), strict=True):
        if a.grad is None or b.grad is None:
            assert (a.grad, b.grad) == (None, None), name
        else:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_divergence_is_zero_at_the_start_and_exact_for_one_step(caches: Pair) -> None:
    batch = batch_of(caches)
    trainer = HeadPolicyTrainer(new_head(), config("grpo"))
    drawn = trainer.draw(batch, STAGES[3])
    came = trainer._first(batch.states, batch.references)
    zero = trainer._divergence(trainer.policy(batch.states, batch.references), came, drawn, True)
    assert zero.item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        trainer.head.class_embed.bias[0] += 0.3  # type: ignore[union-attr, operator]  # moves no odds
        trainer.head.class_embed.weight[0, 0] += 0.5  # type: ignore[union-attr, index]
    said = trainer.policy(batch.states, batch.references)
    p, q = (torch.distributions.Categorical(logits=one.log_pi) for one in (said, came))
    expected = torch.distributions.kl_divergence(p, q).mean()
    assert expected > 1e-3
    found = trainer._divergence(said, came, drawn, True)
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo", "grpo"])
def test_every_algorithm_gains_on_held_out_samples(caches: Pair, algorithm: str) -> None:
    head = new_head()
    result = HeadPolicyTrainer(head, config(algorithm)).fit(*caches, progress=False)
    assert {row["stage"] for row in result.history[1:]} == {1.0, 2.0, 3.0}
    assert result.selection > result.history[0]["selection"] + 2
    assert same(head.state_dict(), new_head().state_dict())
    changed = {
        name.split(".")[0]
        for name, value in result.head.items()
        if not torch.equal(value, head.state_dict()[name])
    }
    assert changed <= {"span_embed", "class_embed"}


def test_resuming_equals_an_uninterrupted_run(
    caches: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("ppo", epochs=(1, 1, 2))
    whole = HeadPolicyTrainer(new_head(), settings, seed=5).fit(*caches, progress=False)
    broken = HeadPolicyTrainer(new_head(), settings, seed=5)
    start_epoch = broken.start_epoch

    def interrupted(epoch: int) -> Stage:
        if epoch == 2:
            raise KeyboardInterrupt
        return start_epoch(epoch)

    monkeypatch.setattr(broken, "start_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(*caches, checkpoint=tmp_path / "c.pt", progress=False)
    trainer = HeadPolicyTrainer(new_head(seed=9), settings, seed=5)
    resumed = trainer.fit(*caches, checkpoint=tmp_path / "c.pt", resume=True, progress=False)
    assert resumed.history == whole.history
    assert same(resumed.head, whole.head)


def test_cross_fitting_judges_every_sample_once_and_averages_the_members(caches: Pair) -> None:
    cache = caches[0]
    rows = np.arange(len(cache))
    made: list[HeadPolicyTrainer] = []

    def make(seed: int) -> HeadPolicyTrainer:
        made.append(HeadPolicyTrainer(new_head(), config("ppo", epochs=(1, 0, 2)), seed))
        return made[-1]

    result = cross_fit_head(make, cache, rows, members=3, seed=2)
    assert [trainer.seed for trainer in made] == [derived(2, "member", k) for k in range(3)]
    assert [row["epoch"] for row in result.history] == [-1, 0, 1, 2]
    came = Validator(cache, "miou")(*propose(new_head(), StateBatches(cache)))
    assert result.history[0]["mIoU"] == pytest.approx(came["mIoU"], abs=0.011)  # in another order
    assert result.epoch == 2  # these samples are easy: the last is the best
    for name, value in result.head.items():
        mean = sum(trainer.averaged.state_dict()[name] for trainer in made) / 3
        torch.testing.assert_close(value, mean, atol=1e-6, rtol=1e-5)
    assert torch.equal(result.head["iou_embed.layers.0.weight"], new_head().iou_embed.layers[0].weight)


def test_members_learn_from_no_video_that_they_are_judged_on(
    caches: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, learnt, judged = caches[0], [], []
    train, propose_ = HeadPolicyTrainer.train, head_training.propose

    def watched(self: HeadPolicyTrainer, batches: StateBatches, *args: Any, **options: Any) -> Any:
        learnt.append(set(batches.rows.tolist()))
        return train(self, batches, *args, **options)

    def noted(head: Any, batches: StateBatches) -> Any:
        judged.append(set(batches.rows.tolist()))
        return propose_(head, batches)

    monkeypatch.setattr(HeadPolicyTrainer, "train", watched)
    monkeypatch.setattr(head_training, "propose", noted)
    rows = np.arange(4, len(cache))
    cross_fit_head(
        lambda seed: HeadPolicyTrainer(new_head(), config("ppo", epochs=(1, 0, 0)), seed),
        cache, rows, members=3, seed=0,
    )  # fmt: skip
    assert len(learnt) == 3
    for member, of_member in enumerate(learnt):
        for held_out in judged[2 * member : 2 * member + 2]:  # as it came, and after its only epoch
            assert held_out | of_member == set(rows.tolist())
            assert not held_out & of_member


def test_a_pull_keeps_the_head_near_where_it_came_from(caches: Pair) -> None:
    def distance(pull: float) -> float:
        trainer = HeadPolicyTrainer(new_head(), config("ppo", pull=pull, epochs=(0, 0, 4)))
        for _ in trainer.train(StateBatches(caches[0])):
            pass
        start, now = new_head().span_embed, trainer.head.get_submodule("span_embed")
        return math.sqrt(
            sum(
                (a - b).square().sum().item()
                for a, b in zip(start.parameters(), now.parameters(), strict=True)
            )
        )

    assert distance(100.0) < 0.5 * distance(0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": 1}, "group is 1, expected at least 2"),
        ({"passes": 0}, "passes is 0, expected a whole number of at least 1"),
        ({"epochs": (0, 0, 0)}, r"epochs is \(0, 0, 0\), expected whole numbers of at least 0, not all 0"),
        ({"epochs": (1, 2)}, r"epochs is \(1, 2\), expected 3, one of each stage"),
        ({"ratio_clip": 1.0}, "ratio_clip is 1.0, expected a number above 0 and below 1"),
        ({"baseline": "none"}, "baseline is 'none', expected one of 'value', 'group'"),
        ({"kl": -0.1}, "kl is -0.1, expected a number of at least 0"),
        ({"std": 0.0}, "std is 0.0, expected a number above 0"),
        ({"pull": -1.0}, "pull is -1.0, expected a number of at least 0"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config("grpo", **changes)


def test_unknown_algorithm_is_named() -> None:
    with pytest.raises(ValueError, match=r"algorithm must be one of .*'grpo', 'ppo', 'reinforce'"):
        head_policy_config("sac")
