"""Supervised losses, matching, schedules: equal to the goldens; repaired losses ignore the batch around."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from girl_detr_cases import config_of, inputs_of, model_of, run, targets_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vmr_env.backbones.girl_detr.config import REPAIRS, GirlDetrConfig
from vmr_env.backbones.girl_detr.head import Detections
from vmr_env.backbones.girl_detr.losses import SupervisedCriterion
from vmr_env.backbones.girl_detr.matcher import match, matching_cost
from vmr_env.backbones.girl_detr.model import GirlDetr, GirlDetrOutput
from vmr_env.backbones.girl_detr.official import official_name
from vmr_env.backbones.girl_detr.saliency_losses import saliency_terms
from vmr_env.backbones.girl_detr.schedules import learning_rate
from vmr_env.backbones.girl_detr.spans import cxw_to_span, overlaps
from vmr_env.backbones.girl_detr.targets import Targets

LOSS = 1e-4  # relative tolerances of the goldens' README
GRADIENT = 1e-3
ZERO_GRADIENT = 1e-4  # below it a golden norm is round-off of an inert weight


def supervised(goldens: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((goldens / "losses" / "supervised.json").read_text())[name]
    return content


def gradient_norms(model: GirlDetr) -> dict[str, float | None]:
    return {
        official_name(name, model.config): None if p.grad is None else float(p.grad.norm())
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("name", ["tiny", "tiny_nogate"])
@pytest.mark.parametrize("labels", ["hl", "single"])
@pytest.mark.parametrize("epoch", [0, 7])
@pytest.mark.parametrize("iou_head", [False, True])
def test_official_losses(goldens: Path, name: str, labels: str, epoch: int, iou_head: bool) -> None:
    expected = supervised(goldens, name)[f"{labels}/epoch{epoch}/iou_head_{iou_head}"]
    model = model_of(goldens / name)
    criterion = SupervisedCriterion(replace(model.config, use_iou_head=iou_head))
    targets = targets_of(goldens / "losses" / f"targets_{labels}.npz")
    losses = criterion(model(*inputs_of(goldens / name), training_branches=True), targets, epoch)
    for term, value in expected["loss_terms"].items():
        assert float(losses[term].detach()) == pytest.approx(value, rel=LOSS), term
    for part, value in expected["saliency_subterms"].items():
        assert float(losses[f"saliency/{part}"].detach()) == pytest.approx(value, rel=LOSS), part
    weights = {term: criterion.weight(term) for term in losses if criterion.weight(term)}
    assert weights == {term: w for term, w in expected["weights"].items() if term in losses}
    assert float(losses["total"].detach()) == pytest.approx(expected["weighted_total"], rel=LOSS)
    align = supervised(goldens, name)[f"{labels}/loss_align_vid_txt (inside loss_contrastive_align)"]
    assert float(losses["contrastive/align"].detach()) == pytest.approx(align, rel=LOSS)

    torch.autograd.backward(losses["total"])
    norms = gradient_norms(model)
    total = sum(norm**2 for norm in norms.values() if norm is not None) ** 0.5
    assert total == pytest.approx(expected["total_grad_l2"], rel=GRADIENT)
    for parameter, norm in expected.get("grad_l2_per_parameter", {}).items():
        if norm is None:
            assert norms[parameter] is None
        else:
            assert norms[parameter] == pytest.approx(norm, rel=GRADIENT, abs=ZERO_GRADIENT), parameter


@pytest.mark.parametrize("name", ["tiny", "tiny_nogate"])
@pytest.mark.parametrize("labels", ["hl", "single"])
def test_official_matching(goldens: Path, name: str, labels: str) -> None:
    golden = supervised(goldens, name)[f"{labels}/hungarian [pred_indices, gt_indices] per sample"]
    output = run(model_of(goldens / name), inputs_of(goldens / name))
    targets = targets_of(goldens / "losses" / f"targets_{labels}.npz")
    matches = match(output.detections, targets.spans, output_config(goldens, name))
    for layer, pairs in enumerate((golden["aux0"], golden["final"])):
        for b in range(3):
            own = matches.sample == b
            assert [matches.query[layer, own].tolist(), matches.target[layer, own].tolist()] == pairs[b]


def output_config(goldens: Path, name: str) -> GirlDetrConfig:
    return config_of(goldens / name)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_matching_is_the_cheapest_assignment(seed: int, counts: list[int]) -> None:
    """Against all assignments, one by one; more moments than queries included."""
    generator = torch.Generator().manual_seed(seed)
    queries, batch = 3, len(counts)
    detections = Detections(
        torch.randn(2, batch, queries, 2, generator=generator),
        torch.rand(2, batch, queries, 2, generator=generator),
        torch.rand(2, batch, queries, generator=generator),
    )
    moments = [torch.rand(n, 2, generator=generator) + 0.01 for n in counts]
    config = GirlDetrConfig()
    matches = match(detections, moments, config)
    for layer, b in itertools.product(range(2), range(batch)):
        one = Detections(*(field[layer : layer + 1, b : b + 1] for field in detections))
        cost = matching_cost(one, moments[b][None], config)[0, 0].numpy()
        size = min(queries, counts[b])
        best = min(
            sum(cost[q, t] for q, t in zip(qs, ts, strict=True))
            for qs in itertools.permutations(range(queries), size)
            for ts in itertools.combinations(range(counts[b]), size)
        )
        own = matches.sample == b
        found = cost[matches.query[layer, own].numpy(), matches.target[layer, own].numpy()]
        assert found.sum() == pytest.approx(best, abs=1e-5)
        assert len(found) == size == len(set(matches.query[layer, own].tolist()))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_clipped_generalised_iou_is_the_iou(seed: int) -> None:
    """So the official target of the IoU branch (Q20) is no fault: intervals that overlap fill their hull."""
    spans = torch.rand(2, 20, 2, generator=torch.Generator().manual_seed(seed)).sort(-1).values
    iou, giou = overlaps(spans[0], spans[1])
    torch.testing.assert_close(giou.clamp(min=0), iou, atol=1e-6, rtol=1e-5)


def test_overlaps_by_hand() -> None:
    a = torch.tensor([[0.0, 0.4], [0.0, 0.2], [0.1, 0.5]])
    b = torch.tensor([[0.2, 0.6], [0.6, 1.0], [0.1, 0.5]])
    iou, giou = overlaps(a, b)
    assert iou.tolist() == pytest.approx([0.2 / 0.6, 0, 1])
    assert giou.tolist() == pytest.approx([0.2 / 0.6, -(1.0 - 0.6) / 1.0, 1])
    assert cxw_to_span(torch.tensor([0.3, 0.2])).tolist() == pytest.approx([0.2, 0.4])


SETTINGS: dict[str, dict[str, Any]] = {
    "charades sup: lr 2e-4, step 100, 100 ep": {"base": 2e-4, "lr_drop": 100, "n_epoch": 100},
    "qvhl sup: lr 1e-4, step 400, 200 ep": {"base": 1e-4, "lr_drop": 400, "n_epoch": 200},
    "step 3 over 8 ep": {"base": 1e-3, "lr_drop": 3, "n_epoch": 8},
    "cosine 12 ep": {"base": 1e-3, "scheduler": "cosine", "n_epoch": 12},
    "warmup 4 + cosine 12 ep": {"base": 1e-3, "scheduler": "cosine", "n_epoch": 12, "warmup_epochs": 4},
    "warmup 4 + step 3, 12 ep": {"base": 1e-3, "lr_drop": 3, "n_epoch": 12, "warmup_epochs": 4},
}


def test_learning_rates(goldens: Path) -> None:
    rows = json.loads((goldens / "lr_schedule.json").read_text())["rows"]
    assert rows.keys() == SETTINGS.keys()
    for name, rates in rows.items():
        found = [learning_rate(epoch, **SETTINGS[name]) for epoch in range(len(rates))]
        np.testing.assert_allclose(found, rates, rtol=1e-9, err_msg=name)


# Repaired losses


def small_config(**options: Any) -> GirlDetrConfig:
    sizes = {"hidden_dim": 16, "nheads": 2, "dim_feedforward": 16, "v_feat_dim": 6, "t_feat_dim": 5}
    return GirlDetrConfig(**(sizes | {"dec_layers": 2, "num_queries": 4} | options))


def small_batch(batch: int, clips: int = 9, tokens: int = 5) -> tuple[tuple[Tensor, ...], Targets]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.zeros(batch, clips)
    labels[:, 2:5] = torch.tensor([3.0, 12, 7])
    high, low = torch.tensor([[2, 3]] * batch), torch.tensor([[0, 6]] * batch)
    inputs = (
        torch.randn(batch, clips, 6, generator=generator),
        torch.ones(batch, clips),
        torch.randn(batch, tokens, 5, generator=generator),
        torch.ones(batch, tokens),
    )
    spans = [torch.tensor([[0.4, 0.3], [0.7, 0.2]])[: 1 + b % 2] for b in range(batch)]
    return inputs, Targets(spans, labels, high, low)


def losses_of(output: GirlDetrOutput, targets: Targets, config: GirlDetrConfig) -> dict[str, float]:
    found = SupervisedCriterion(config)(output, targets, epoch=5)
    return {name: float(value.detach()) for name, value in found.items()}


def repeated(inputs: tuple[Tensor, ...], targets: Targets) -> tuple[tuple[Tensor, ...], Targets]:
    twice = tuple(torch.cat((x, x)) for x in inputs)
    labels = (targets.saliency_all_labels, targets.saliency_pos_labels, targets.saliency_neg_labels)
    return twice, Targets([*targets.spans, *targets.spans], *(torch.cat((x, x)) for x in labels))


def padded(inputs: tuple[Tensor, ...], targets: Targets) -> tuple[tuple[Tensor, ...], Targets]:
    video, video_mask, text, text_mask = inputs
    pad = torch.nn.functional.pad
    longer = (
        pad(video, (0, 0, 0, 4)),
        pad(video_mask, (0, 4)),
        pad(text, (0, 0, 0, 3)),
        pad(text_mask, (0, 3)),
    )
    return longer, replace(targets, saliency_all_labels=pad(targets.saliency_all_labels, (0, 4)))


@pytest.mark.parametrize("change", [repeated, padded])
def test_repaired_losses_ignore_batch_size_and_padding(change: Any) -> None:
    """The same samples twice, or behind more padding, cost the same; the official losses change with both."""
    case = small_batch(3)
    for repairs, same in ((REPAIRS.keys() - {"half_negatives"}, True), ((), False)):
        config = small_config(repairs=frozenset(repairs), use_iou_head=True)
        model = GirlDetr(config).eval()
        first, second = (
            losses_of(run(model, inputs), targets, config) for inputs, targets in (case, change(*case))
        )
        assert (first == pytest.approx(second, rel=1e-4)) == same


def test_half_of_a_batch_meets_wrong_texts() -> None:
    """The losses are those of the two halves on their own, one with wrong texts and one without."""
    inputs, targets = small_batch(3)
    config = small_config()
    output = run(GirlDetr(config, seed=2).eval(), inputs)
    negative = output.saliency_scores_neg
    assert negative is not None
    assert len(negative) == 2
    whole = saliency_terms(output, targets, 0, config)
    first, last = (
        saliency_terms(
            replace(
                output,
                saliency_scores=output.saliency_scores[part],
                saliency_scores_neg=wrong,
                saliency_scores_mr=None,
                video_mask=output.video_mask[part],
            ),
            Targets(
                targets.spans[part],
                targets.saliency_all_labels[part],
                targets.saliency_pos_labels[part],
                targets.saliency_neg_labels[part],
            ),
            0,
            config,
        )
        for part, wrong in ((slice(0, 2), negative), (slice(2, 3), None))
    )
    assert "neg_pair" not in last
    torch.testing.assert_close(whole["neg_pair"], first["neg_pair"])
    mean = (2 * first["rank_contrastive"] + last["rank_contrastive"]) / 3
    torch.testing.assert_close(whole["rank_contrastive"], mean)


def test_a_batch_of_one_trains() -> None:
    """The official model would take the sample's own text as a wrong one; repaired, there is no such pair."""
    inputs, targets = small_batch(1)
    config = small_config()
    output = run(GirlDetr(config), inputs)
    assert output.saliency_scores_neg is None
    losses = losses_of(output, targets, config)
    assert "saliency/neg_pair" not in losses
    assert np.isfinite(list(losses.values())).all()


def test_hard_terms_grow_only_officially() -> None:
    inputs, targets = small_batch(2)
    for behaviour, growth in (("official", 6), ("repaired", 1)):
        config = small_config(behaviour=behaviour)
        output, criterion = run(GirlDetr(config), inputs), SupervisedCriterion(config)
        first, sixth = (criterion(output, targets, epoch)["saliency/hard_pos"] for epoch in (0, 5))
        assert float(sixth / first) == pytest.approx(growth)
