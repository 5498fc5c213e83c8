"""Query selection against span-by-span loops, and what it promises the model."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from girl_detr_cases import inputs_of, run, sample
from test_girl_detr_repairs import SIZES, difference, lengthened, shaken
from torch import Tensor

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.decoder import Decoder
from vmr_env.backbones.girl_detr.losses import SupervisedCriterion
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.girl_detr.query_selection import QuerySelection, clip_span_iou, selection_loss
from vmr_env.backbones.girl_detr.targets import Targets
from vmr_env.errors import DataError
from vmr_env.metrics import spans as span_functions

CONFIG = GirlDetrConfig(**SIZES, query_selection=True)
LENGTHS = (7, 4, 1)


def tiou(a: Sequence[float], b: Sequence[float]) -> float:
    return float(span_functions.tiou(np.array(a), np.array(b)))


@pytest.fixture(scope="module")
def selection() -> QuerySelection:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return QuerySelection(CONFIG)


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def mask() -> Tensor:
    return (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).float()


def test_logits_are_those_of_each_span_alone(selection: QuerySelection, clips: Tensor, mask: Tensor) -> None:
    logits = selection(clips, mask)
    for b, length in enumerate(LENGTHS):
        for i in range(7):
            for j in range(7):
                if not i <= j < length:
                    assert logits[b, i, j] == -math.inf
                    continue
                first, last = clips[b, i], clips[b, j]
                expected = selection.start(first) @ selection.end(last) / 4
                expected += (selection.start_score(first) + selection.end_score(last)).item()
                expected += sum(selection.inside_score(clip).item() for clip in clips[b, i : j + 1])
                torch.testing.assert_close(logits[b, i, j], expected, rtol=1e-4, atol=1e-5)


def test_anchors_are_the_best_spans_that_do_not_overlap(
    selection: QuerySelection, clips: Tensor, mask: Tensor
) -> None:
    logits = selection(clips, mask)
    anchors = selection.anchors(logits, mask)
    for b, length in enumerate(LENGTHS):
        spans = [(i, j) for i in range(length) for j in range(i, length)]
        spans.sort(key=lambda span: -logits[b, span[0], span[1]].item())
        kept: list[tuple[int, int]] = []
        for i, j in spans:
            pairs = [tiou([i, j + 1], [k, m + 1]) for k, m in kept]
            if all(overlap <= CONFIG.selection_overlap for overlap in pairs):
                kept.append((i, j))
        kept = kept[: CONFIG.num_queries]
        expected = [((i + j + 1) / 2 / length, (j + 1 - i) / length) for i, j in kept]
        torch.testing.assert_close(anchors[b, : len(kept)], torch.tensor(expected))
        assert ((anchors[b] > 0) & (anchors[b] <= 1)).all(), "also where there are too few spans"


def test_the_loss_is_the_cross_entropy_with_the_target_of_its_definition(
    selection: QuerySelection, clips: Tensor, mask: Tensor
) -> None:
    spans = [torch.tensor([[0.3, 0.2], [0.8, 0.3]]), torch.tensor([[0.5, 1.0]]), torch.tensor([[0.5, 0.6]])]
    logits = selection(clips, mask)
    targets = Targets(spans, torch.zeros(3, 7), torch.zeros(3, 2).long(), torch.zeros(3, 2).long())
    losses = []
    for b, length in enumerate(LENGTHS):
        moments = [(float(c - w / 2), float(c + w / 2)) for c, w in spans[b]]
        pairs = [(i, j) for i in range(length) for j in range(i, length)]
        nearest = [max(tiou([i / length, (j + 1) / length], m) for m in moments) for i, j in pairs]
        target = torch.softmax(torch.tensor(nearest) / 0.2, 0)
        likelihood = torch.log_softmax(torch.stack([logits[b, i, j] for i, j in pairs]), 0)
        losses.append(-(target * likelihood).sum())
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(selection_loss(logits, mask, targets, 0.2), expected)


def test_overlaps_are_those_of_the_environments(mask: Tensor) -> None:
    span = torch.tensor([[0.1, 0.45], [0.0, 1.0], [0.2, 0.3]])
    overlaps = clip_span_iou(span, mask)
    for b, length in enumerate(LENGTHS):
        for i in range(length):
            for j in range(i, length):
                expected = tiou([i / length, (j + 1) / length], span[b].tolist())
                assert overlaps[b, i, j].item() == pytest.approx(expected, abs=1e-5)


def test_predictions_ignore_the_batch(goldens: Path) -> None:
    inputs = inputs_of(goldens / "tiny")
    model = shaken(CONFIG)
    together = run(model, inputs)
    for b in range(3):
        alone = sample(inputs, b)
        assert difference(run(model, alone), together, b) < 2e-5
        assert difference(run(model, alone), run(model, lengthened(alone)), 0) < 2e-5


def test_a_model_learns_where_the_moment_is() -> None:
    """A few steps on one video: its moment becomes the first anchor, and every new weight has a gradient."""
    config = replace(CONFIG, dropout=0.0, input_dropout=0.0)
    model = GirlDetr(config, seed=1)
    generator = torch.Generator().manual_seed(1)
    video, text = torch.randn(2, 10, 18, generator=generator), torch.randn(2, 4, 12, generator=generator)
    spans = [torch.tensor([[0.35, 0.3]]), torch.tensor([[0.8, 0.4]])]
    labels = torch.zeros(2, 10)
    labels[0, 2:5] = labels[1, 6:10] = 1
    targets = Targets(spans, labels, torch.tensor([[2, 3], [6, 7]]), torch.tensor([[0, 9], [0, 1]]))
    criterion, optimizer = SupervisedCriterion(config), torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        output = model(video, torch.ones(2, 10), text, torch.ones(2, 4))
        losses = criterion(output, targets, 0)
        optimizer.zero_grad()
        torch.autograd.backward(losses["total"])
        optimizer.step()
    assert model.query_selection is not None
    assert all(weight.grad is not None and weight.grad.any() for weight in model.query_selection.parameters())
    torch.testing.assert_close(output.references[0, :, 0], torch.cat(spans), atol=1e-5, rtol=0)


def test_selected_anchors_replace_learned_ones(clips: Tensor, mask: Tensor) -> None:
    assert "decoder.anchors" not in GirlDetr(CONFIG).state_dict()
    text = torch.zeros(3, 2, 16)
    with pytest.raises(ValueError, match="expected selected ones"):
        Decoder(CONFIG)(clips, clips, mask, text, torch.ones(3, 2))


def test_the_temperature_is_positive() -> None:
    with pytest.raises(DataError, match="selection_temperature"):
        replace(CONFIG, selection_temperature=0.0)
