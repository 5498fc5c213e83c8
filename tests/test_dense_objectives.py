"""Sampled gradients of the policy over all spans against the exact one."""

import itertools

import numpy as np
import pytest
import torch

from vmr_env.agents.dense.objectives import (
    CLIP,
    OBJECTIVES,
    Drawn,
    draw,
    expected_gain,
    ppo_gain,
    reinforce_gain,
)

LOGITS = torch.tensor([[0.3, -0.7, 1.1, 0.0, -torch.inf]], dtype=torch.float64)
OVERLAPS = torch.tensor([[0.9, 0.2, 0.55, 0.72, 1.0]], dtype=torch.float64)
GAINS = [(o + (o >= 0.5) + (o >= 0.7)) / 3 for o in OVERLAPS[0].tolist()]


def gradient(function: object, *arguments: object) -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(logits, *arguments).sum(), logits)
    return found


def drawn_pair(first: int, second: int, log_policy: torch.Tensor) -> Drawn:
    spans = torch.tensor([[first, second]])
    difference = GAINS[first] - GAINS[second]
    return Drawn(spans, log_policy[0, spans], torch.tensor([[difference, -difference]], dtype=torch.float64))


@pytest.mark.parametrize("surrogate", [reinforce_gain, ppo_gain])
def test_over_all_pairs_that_can_be_drawn_the_gradient_is_the_exact_one(surrogate: object) -> None:
    log_policy = LOGITS.log_softmax(dim=1)
    mean = torch.zeros_like(LOGITS)
    for first, second in itertools.product(range(4), repeat=2):
        probability = float((log_policy[0, first] + log_policy[0, second]).exp())
        mean += probability * gradient(surrogate, drawn_pair(first, second, log_policy))
    exact = gradient(expected_gain, OVERLAPS)
    assert float(exact.abs().max()) > 0.05
    torch.testing.assert_close(mean, exact, rtol=1e-9, atol=1e-12)


def test_spans_are_drawn_as_often_as_the_policy_says_and_compared_with_the_others() -> None:
    drawn = draw(LOGITS.repeat(500, 1), OVERLAPS.repeat(500, 1), 8, torch.Generator().manual_seed(0))
    shares = np.bincount(drawn.spans.flatten(), minlength=5) / drawn.spans.numel()
    weights = np.exp(LOGITS[0].numpy())
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.02)
    for row in range(3):
        gains = [GAINS[span] for span in drawn.spans[row].tolist()]
        for k, found in enumerate(drawn.advantages[row].tolist()):
            others = [gain for j, gain in enumerate(gains) if j != k]
            assert found == pytest.approx(gains[k] - np.mean(others))


def test_ppo_stops_where_a_ratio_has_moved_enough() -> None:
    log_policy = LOGITS.log_softmax(dim=1)
    drawn = drawn_pair(0, 1, log_policy - np.log(1 + 2 * CLIP))  # both now 1.4 times as probable
    found = gradient(ppo_gain, drawn)
    # Only the span that is worse than the other pulls: it has become more probable, to its harm.
    worse = gradient(lambda logits: (logits.log_softmax(dim=1)[:, 1] * drawn.advantages[:, 1]).mean() / 2)
    torch.testing.assert_close(found, worse * (1 + 2 * CLIP))


def test_ppo_keeps_what_it_drew_for_the_steps_on_a_batch() -> None:
    objective = OBJECTIVES["ppo"](4, torch.Generator().manual_seed(0))
    objective.begin()
    first, again = (float(objective(LOGITS, OVERLAPS)) for _ in range(2))
    assert first == again
    values = set()
    for _ in range(8):
        objective.begin()
        moved = LOGITS + torch.tensor([[0.4, 0.0, 0.0, 0.0, 0.0]])
        objective(LOGITS, OVERLAPS)
        values.add(float(objective(moved, OVERLAPS)))
    assert len(values) > 1
