"""TPRL's losses and rewards against recorded values and gradients, and against slow obvious forms."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_goldens import load_head, load_moments, load_states
from torch import Tensor

from agents import tprl_losses as losses
from agents.tprl_losses import Moments
from backbones.girl_detr.head import DetectionHead, Detections

TARGETS = {"single": "single", "close": "close_spans"}  # entry of the record -> target file

# Published argument names -> ours.
SPAN_ARGUMENTS = {"span_weight_mode": "weighting", "threshold_aware": "threshold_aware", "use_giou": "giou"}
REWARD_ARGUMENTS = {
    "reward_mode": "mode",
    "boundary_bonus": "boundary_bonus",
    "threshold_steps": "threshold_steps",
    "ic_reward_weight": "ic_weight",
    "cendist_weight": "centre_weight",
}


def renamed(arguments: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names[key]: value for key, value in arguments.items() if key in names}


@pytest.fixture(scope="module")
def recorded(goldens: Path) -> dict[str, Any]:
    return json.loads((goldens / "losses" / "tprl.json").read_text())


@pytest.fixture
def detections(goldens: Path) -> tuple[DetectionHead, Detections]:
    head = load_head(goldens)
    return head, head(*load_states(goldens))


def loss_of(name: str, entry: dict[str, Any], out: Detections, moments: Moments, forced: Tensor) -> Tensor:
    """The loss that a recorded entry names, from our functions."""
    arguments = entry["args"]
    matches = losses.match(out.spans.detach(), moments)
    if name == "top1" or name.startswith("rwr"):
        order = out.scores.detach().argsort(-1, descending=True)
        order = order[:, :1] if name == "top1" else order[:, : arguments.get("top_k", 3)]
        rows = order[..., None].expand(-1, -1, 2)
        spans = out.spans.gather(1, rows)
        chosen = losses.Matches(matches.tiou.gather(1, order), matches.moment.gather(1, rows))
        if name == "top1":
            values = losses.top1_loss(spans[:, 0], chosen.moment[:, 0])
        else:
            values = losses.span_loss(spans, chosen, **renamed(arguments, SPAN_ARGUMENTS))
        return losses.mean_over(values, moments.valid)
    if name.startswith("rank"):
        return losses.rank_loss(
            out.scores, matches.tiou, margin=arguments["margin"], threshold=arguments["iou_threshold"]
        )
    reward = losses.rewards(out.spans.detach(), moments, matches, **renamed(arguments, REWARD_ARGUMENTS))
    estimator = "iou_greedy" if arguments.get("iou_greedy") else arguments["baseline_mode"]
    log_pi = losses.log_policy(out.logits)
    values = losses.score_loss(
        log_pi,
        reward,
        estimator=estimator,
        draws=forced,
        clip_advantage=arguments.get("clip_adv", 0.0),
    )
    return losses.mean_over(values, moments.valid)


@pytest.mark.parametrize("targets", TARGETS)
def test_values_and_gradients_equal_the_recorded_ones(
    goldens: Path, recorded: dict[str, Any], detections: tuple[DetectionHead, Detections], targets: str
) -> None:
    head, out = detections
    moments = load_moments(goldens, TARGETS[targets])
    forced = torch.tensor(recorded["forced_sample_order"]["indices"]).reshape(3, 3)
    entries = {name: entry for name, entry in recorded[targets].items() if "grads" in entry}
    assert len(entries) == 24
    for name, entry in entries.items():
        head.zero_grad()
        loss = loss_of(name, entry, out, moments, forced)
        assert loss.item() == pytest.approx(entry["value"], rel=1e-4, abs=1e-5), name
        if loss.requires_grad:
            loss.backward(retain_graph=True)
        for module, gradients in entry["grads"].items():
            for parameter, norm in gradients["per_tensor_l2"].items():
                gradient = head.get_submodule(module).get_parameter(parameter).grad
                got = 0.0 if gradient is None else gradient.norm().item()
                assert got == pytest.approx(norm or 0.0, rel=1e-3, abs=1e-6), (name, module, parameter)


@pytest.mark.parametrize("targets", TARGETS)
def test_matches_equal_the_recorded_ones(
    goldens: Path, recorded: dict[str, Any], detections: tuple[DetectionHead, Detections], targets: str
) -> None:
    _, out = detections
    moments = load_moments(goldens, TARGETS[targets])
    matches = losses.match(out.spans, moments)
    torch.testing.assert_close(
        matches.tiou, torch.tensor(recorded[targets]["per_query_best_iou"]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        out.scores, torch.tensor(recorded[targets]["foreground_prob"]), rtol=1e-4, atol=1e-5
    )


def random_problem(seed: int) -> tuple[Tensor, Moments]:
    generator = torch.Generator().manual_seed(seed)
    spans = torch.rand(6, 4, 2, generator=generator) * torch.tensor([1.0, 0.5])
    mask = torch.arange(3) < torch.tensor([3, 1, 2, 0, 1, 3])[:, None]
    return spans, Moments(torch.rand(6, 3, 2, generator=generator) * torch.tensor([1.0, 0.5]), mask)


def slow_tiou(a: Tensor, b: Tensor) -> float:
    (ac, aw), (bc, bw) = a.tolist(), b.tolist()
    left, right = max(ac - aw / 2, bc - bw / 2), min(ac + aw / 2, bc + bw / 2)
    shared = max(0.0, right - left)
    return shared / (aw + bw - shared)


def test_match_is_the_maximum_over_the_sample_s_own_moments() -> None:
    spans, moments = random_problem(0)
    matches = losses.match(spans, moments)
    for b, valid in enumerate(moments.mask.sum(1).tolist()):
        for q in range(4):
            overlaps = [slow_tiou(spans[b, q], moments.spans[b, m]) for m in range(valid)]
            assert matches.tiou[b, q].item() == pytest.approx(max(overlaps, default=0.0), abs=1e-6)
            if valid:
                best = moments.spans[b, int(np.argmax(overlaps))]
                assert matches.moment[b, q].tolist() == best.tolist()


def test_samples_without_moments_do_not_count() -> None:
    spans, moments = random_problem(1)
    values = losses.top1_loss(spans[:, 0], losses.match(spans, moments).moment[:, 0])
    with_moment = torch.tensor([0, 1, 2, 4, 5])
    expected = values[with_moment].mean()
    torch.testing.assert_close(losses.mean_over(values, moments.valid), expected)
    assert losses.mean_over(values, torch.zeros(6, dtype=torch.bool)).item() == 0.0


def test_expected_estimator_is_the_mean_of_the_sampled_one() -> None:
    """Its gradient must be what REINFORCE estimates: enumerate every draw, weighted by its probability."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, 4, 2, generator=generator, requires_grad=True)
    reward = torch.rand(5, 4, generator=generator)
    (exact,) = torch.autograd.grad(
        losses.score_loss(losses.log_policy(logits, on="logit"), reward, estimator="expected").sum(), logits
    )
    log_pi = losses.log_policy(logits, on="logit")
    sampled = torch.zeros_like(logits)
    for q in range(4):
        draws = torch.full((5, 1), q)
        values = losses.score_loss(log_pi, reward, estimator="score_greedy", draws=draws)
        weighted = (values * log_pi[:, q].exp().detach()).sum()
        sampled += torch.autograd.grad(weighted, logits, retain_graph=True)[0]
    torch.testing.assert_close(exact, sampled)


def test_expected_choice_and_policy_weighted_tiou_give_the_gradient_of_the_expected_tiou() -> None:
    """The two losses together differentiate sum_q pi_q tIoU_q through choice and boundaries alike."""
    spans, moments = random_problem(3)
    keep = moments.valid
    spans, moments = spans[keep].requires_grad_(), Moments(moments.spans[keep], moments.mask[keep])
    logits = torch.randn(len(spans), 4, 2, generator=torch.Generator().manual_seed(4), requires_grad=True)
    matches = losses.match(spans, moments)
    log_pi = losses.log_policy(logits, on="logit")
    loss = losses.score_loss(log_pi, matches.tiou, estimator="expected") + losses.span_loss(
        spans, matches, weighting="policy", policy=log_pi.exp(), distance="tiou"
    )
    got = torch.autograd.grad(loss.sum(), (logits, spans))
    expected_tiou = (
        losses.log_policy(logits, on="logit").exp() * losses.overlap(spans, matches.moment).tiou
    ).sum()
    want = torch.autograd.grad(-expected_tiou, (logits, spans))
    for ours, direct in zip(got, want, strict=True):
        torch.testing.assert_close(ours, direct)


def test_logit_policy_ranks_like_the_published_one_but_can_become_certain() -> None:
    logits = torch.tensor([[[8.0, -8.0], [-8.0, 8.0], [0.0, 0.0]]])
    published, ours = losses.log_policy(logits), losses.log_policy(logits, on="logit")
    assert published.argsort().tolist() == ours.argsort().tolist()
    assert (published[0, 0] - published[0, 1]).exp().item() <= np.e**2 + 1e-4
    assert ours[0, 0].exp().item() > 0.999


def test_missing_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="'loo_mean' needs draws"):
        losses.score_loss(torch.zeros(1, 2), torch.zeros(1, 2), estimator="loo_mean")
    matches = losses.Matches(torch.zeros(1, 2), torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="needs the policy's probabilities"):
        losses.span_loss(torch.ones(1, 2, 2), matches, weighting="policy")
