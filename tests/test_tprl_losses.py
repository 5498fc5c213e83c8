"""TPRL's losses and rewards against recorded values and gradients, and against slow obvious forms."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_goldens import load_head, load_moments, load_states
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vmr_env.agents.tprl import losses
from vmr_env.agents.tprl.losses import Moments
from vmr_env.backbones.girl_detr.head import DetectionHead, Detections

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
    matches = losses.best_moments(out.spans.detach(), moments)
    if name == "top1" or name.startswith("rwr"):
        order = out.scores.detach().argsort(-1, descending=True)
        order = order[:, :1] if name == "top1" else order[:, : arguments.get("top_k", 3)]
        rows = order[..., None].expand(-1, -1, 2)
        spans = out.spans.gather(1, rows)
        chosen = losses.BestMoments(matches.tiou.gather(1, order), matches.moment.gather(1, rows))
        if name == "top1":
            return losses.top1_loss(spans[:, 0], chosen.moment[:, 0])
        return losses.span_loss(spans, chosen, **renamed(arguments, SPAN_ARGUMENTS))
    if name.startswith("rank"):
        return losses.rank_loss(
            out.scores, matches.tiou, margin=arguments["margin"], threshold=arguments["iou_threshold"]
        )
    reward = losses.rewards(out.spans.detach(), moments, matches, **renamed(arguments, REWARD_ARGUMENTS))
    estimator = "iou_greedy" if arguments.get("iou_greedy") else arguments["baseline_mode"]
    log_pi = losses.log_policy(out.logits)
    return losses.score_loss(
        log_pi,
        reward,
        estimator=estimator,
        draws=forced,
        clip_advantage=arguments.get("clip_adv", 0.0),
    )


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
    matches = losses.best_moments(out.spans, moments)
    torch.testing.assert_close(
        matches.tiou, torch.tensor(recorded[targets]["per_query_best_iou"]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        out.scores, torch.tensor(recorded[targets]["foreground_prob"]), rtol=1e-4, atol=1e-5
    )


def random_problem(seed: int) -> tuple[Tensor, Moments]:
    generator = torch.Generator().manual_seed(seed)
    spans = torch.rand(6, 4, 2, generator=generator) * torch.tensor([1.0, 0.5])
    mask = torch.arange(3) < torch.tensor([3, 1, 2, 2, 1, 3])[:, None]
    return spans, Moments(torch.rand(6, 3, 2, generator=generator) * torch.tensor([1.0, 0.5]), mask)


def slow_overlap(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """TIoU and GIoU of two spans (centre, width), from their boundaries."""
    (ac, aw), (bc, bw) = a, b
    start, end = max(ac - aw / 2, bc - bw / 2), min(ac + aw / 2, bc + bw / 2)
    common = max(0.0, end - start)
    union = aw + bw - common
    hull = max(ac + aw / 2, bc + bw / 2) - min(ac - aw / 2, bc - bw / 2)
    return common / union, common / union - (hull - union) / hull


spans_cxw = st.tuples(st.floats(-0.5, 1.5, width=32), st.floats(0.015625, 1.5, width=32))


@given(spans_cxw, spans_cxw)
def test_overlap_equals_the_one_from_boundaries(a: tuple[float, float], b: tuple[float, float]) -> None:
    got = losses.overlap(torch.tensor(a), torch.tensor(b))
    assert (got.tiou.item(), got.giou.item()) == pytest.approx(slow_overlap(a, b), abs=1e-5)


def test_match_is_the_maximum_over_the_sample_s_own_moments() -> None:
    spans, moments = random_problem(0)
    matches = losses.best_moments(spans, moments)
    for b, count in enumerate(moments.mask.sum(1).tolist()):
        for q in range(4):
            tious = [slow_overlap(spans[b, q].tolist(), m.tolist())[0] for m in moments.spans[b, :count]]
            assert matches.tiou[b, q].item() == pytest.approx(max(tious), abs=1e-6)
            assert torch.equal(matches.moment[b, q], moments.spans[b, int(np.argmax(tious))])


@pytest.mark.parametrize("estimator", ["score_greedy", "iou_greedy", "loo_mean"])
def test_expected_estimator_is_the_mean_of_the_sampled_ones(estimator: losses.Estimator) -> None:
    """Enumerating every draw, weighted by its probability: baselines must not move the expectation."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 4, 2, generator=generator, requires_grad=True)
    reward = torch.rand(1, 4, generator=generator)
    log_pi = losses.log_policy(logits, on="logit")
    exact = torch.autograd.grad(
        losses.score_loss(log_pi, reward, estimator="expected"), logits, retain_graph=True
    )[0]
    mean = torch.zeros_like(logits)
    for q, probability in enumerate(log_pi[0].exp().tolist()):
        loss = losses.score_loss(log_pi, reward, estimator=estimator, draws=torch.tensor([[q]]))
        mean += probability * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    torch.testing.assert_close(exact, mean)


def test_expected_choice_and_policy_weighted_tiou_give_the_gradient_of_the_expected_tiou() -> None:
    """The two losses together differentiate sum_q pi_q tIoU_q through choice and boundaries alike."""
    spans, moments = random_problem(3)
    spans.requires_grad_()
    logits = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(4), requires_grad=True)
    matches = losses.best_moments(spans, moments)
    log_pi = losses.log_policy(logits, on="logit")
    score = losses.score_loss(log_pi, matches.tiou, estimator="expected")
    span = losses.span_loss(spans, matches, weighting="policy", policy=log_pi.exp(), distance="tiou")
    got = torch.autograd.grad(score + span, (logits, spans), retain_graph=True)
    expected_tiou = (log_pi.exp() * losses.overlap(spans, matches.moment).tiou).sum(-1).mean()
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
    matches = losses.BestMoments(torch.zeros(1, 2), torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="needs the policy's probabilities"):
        losses.span_loss(torch.ones(1, 2, 2), matches, weighting="policy")
