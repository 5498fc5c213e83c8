"""Training of the policy over all spans by its expected gain, and what trained ones say together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vmr_env.agents.dense.network import DenseNetwork
from vmr_env.agents.dense.objectives import OBJECTIVES, Gradient
from vmr_env.agents.dense.spans import best_overlap, vote
from vmr_env.agents.dense.timeline import Draw, Timelines
from vmr_env.agents.devices import device_of, global_generator, seeded
from vmr_env.agents.policy_agent import descend
from vmr_env.seeding import derived
from vmr_env.settings import BELOW_1, COUNT_OR_0, Range, Settings

TARGET_TEMPERATURE = 0.08
MAX_NORM = 1.0
"""Norm of the gradient above which it is scaled down."""

MIXTURE_RATE = 10.0

OWN_WORDS = 0.5
"""What a query's own wording counts for in an answer; its paraphrases, if any, share the rest."""


@dataclass(frozen=True)
class DenseConfig(Settings):
    """Settings of network and training.

    Attributes:
        channels: width of the network.
        dropout: probability.
        epochs: steps that each training query takes part in.
        batch_size: queries of a step.
        learning_rate: highest of the one cycle; ten times that for the weights of the detector's vote.
        weight_decay: of matrices; what the detector's vote is weighted with does not decay.
        models_shown: a training sample shows a random few of the models, at most so many; 0: all, a pool.
        evidence_dropout: share of the training samples that show neither clips nor query.
        foreign_evidence: share of those with evidence that show another video's clips, so that the policy
            learns when not to trust them.
        gradient: of the expected gain: exact, or by spans that the policy draws; none is imitation alone.
        samples: spans drawn of each query.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "models_shown": COUNT_OR_0,
        "evidence_dropout": BELOW_1,
        "foreign_evidence": BELOW_1,
        "samples": Range(lambda value: value >= 2, "a whole number of at least 2"),
    }

    channels: int = 64
    dropout: float = 0.2
    epochs: int = 6
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    models_shown: int = 0
    evidence_dropout: float = 0.0
    foreign_evidence: float = 0.0
    gradient: Gradient = "exact"
    samples: int = 16


def policy_loss(logits: Tensor, overlaps: Tensor, mask: Tensor, w: float, gained: Tensor) -> Tensor:
    """Loss of the policy, gliding from imitation to expected gain.

    Args:
        logits: (B, S), -inf for spans beyond the video.
        overlaps: (B, S), best tIoU of each span with the moments.
        mask: bool (B, S), which spans are in the video.
        w: 0 is cross-entropy to softmax(tIoU / 0.08), times 1/2; 1 is minus the gain, times 2.
        gained: scalar, the gain of the policy under an objective.
    """
    target = (overlaps / TARGET_TEMPERATURE).masked_fill(~mask, -torch.inf).softmax(dim=1)
    log_policy = logits.log_softmax(dim=1).masked_fill(~mask, 0.0)
    imitation = -(target * log_policy).sum(dim=1).mean()
    return 0.5 * (1 - w) * imitation - 2 * w * gained


def relevance_loss(logits: Tensor, moments: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of each clip being in a moment by more than half: (B, L), (B, M, 2), (B, L) -> scalar."""
    centres = torch.arange(logits.shape[1], device=logits.device) + 0.5
    inside = (moments[..., :1] <= centres) & (centres <= moments[..., 1:])  # (B, M, L)
    target = inside.any(dim=1).float()
    return nn.functional.binary_cross_entropy_with_logits(logits[mask], target[mask])


def train(
    timelines: Timelines,
    seed: int,
    config: DenseConfig | None = None,
    rows: Sequence[int] | None = None,
    device: str = "cpu",
) -> DenseNetwork:
    """A trained network; the same queries, settings and seed give the same weights.

    Args:
        timelines: queries with their ground truth.
        seed: of weights, order, dropout and mixtures of queries. Torch's global generator is left as it was.
        config: settings.
        rows: the queries to train on; all by default.
        device: torch device of the network, which stays there.

    Raises:
        FloatingPointError: the loss or its gradient is not finite.
    """
    config = config or DenseConfig()
    order = np.arange(len(timelines)) if rows is None else np.asarray(rows)
    draws = torch.Generator().manual_seed(derived(seed, "spans"))
    objective = OBJECTIVES[config.gradient](config.samples, draws)
    visits, batches = -(-config.epochs // objective.passes), -(-len(order) // config.batch_size)
    steps = visits * batches * objective.passes
    rng, where = np.random.default_rng(seed), torch.device(device)
    draw = Draw(rng, config.models_shown, config.evidence_dropout, config.foreign_evidence)
    spans = timelines.spans.to(where)
    with seeded(seed, where):
        network = DenseNetwork(
            timelines.dim, timelines.grid.clips, config.channels, config.dropout, timelines.state_dim
        ).to(where)
        dropout = global_generator(device_of(network))
        optimizer = torch.optim.AdamW(_groups(network, config))
        rates = [group["lr"] for group in optimizer.param_groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
        for _ in range(visits):
            for chosen in np.array_split(rng.permutation(order), batches):
                batch = timelines.batch(chosen.tolist(), draw).to(where)
                moments = timelines.moments(chosen.tolist()).to(where)
                overlaps = best_overlap(spans, moments)
                objective.begin()
                # The same dropout in all passes: ratios of probabilities tell of weights alone.
                noise = dropout.get_state()
                for _ in range(objective.passes):
                    dropout.set_state(noise)
                    outputs, step = network(batch), schedule.last_epoch
                    gained = objective(outputs.logits, overlaps)
                    w = objective.weight * step / max(steps - 1, 1)
                    loss = policy_loss(outputs.logits, overlaps, batch.span_mask, w, gained)
                    loss = loss + relevance_loss(outputs.relevance, moments, batch.clip_mask)
                    try:
                        descend(loss, optimizer, MAX_NORM)
                    except FloatingPointError as error:
                        at = f"dense policy, step {step + 1} of {steps}"
                        raise FloatingPointError(f"{at}: {error}") from None
                    schedule.step()
    return network.eval()


def _groups(network: DenseNetwork, config: DenseConfig) -> list[dict[str, Any]]:
    """Parameters by what is decayed and how fast it learns: in some 300 steps Adam moves a weight little."""
    mixture = [network.vote, network.factor]
    rest = [one for one in network.parameters() if one is not mixture[0] and one is not mixture[1]]
    matrices, others = [one for one in rest if one.ndim > 1], [one for one in rest if one.ndim <= 1]
    rate = config.learning_rate
    return [
        {"params": matrices, "lr": rate, "weight_decay": config.weight_decay},
        {"params": others, "lr": rate, "weight_decay": 0.0},
        {"params": mixture, "lr": MIXTURE_RATE * rate, "weight_decay": 0.0},
    ]


class Beliefs(NamedTuple):
    """Joint output of networks for n queries, on the processor."""

    probabilities: Tensor
    """(n, S), zero beyond the video."""
    relevance: Tensor
    """(n, L), probability of each clip being part of a moment; zero beyond the video."""


@torch.no_grad()
def believe(
    networks: Sequence[DenseNetwork], timelines: Timelines, rows: Sequence[int] | None = None
) -> Beliefs:
    """Mean probabilities over the networks (seeds), of all queries or of some.

    A query that has paraphrases is asked in all its wordings; its own counts for half.

    Raises:
        ValueError: no network.
    """
    if not networks:
        raise ValueError("networks is empty; expected one or more")
    chosen = list(range(len(timelines))) if rows is None else list(rows)
    asked = [
        _Asked(place, row, wording, share)
        for place, row in enumerate(chosen)
        for wording, share in enumerate(_shares(len(timelines.query_vectors(row))))
    ]
    beliefs = Beliefs(
        torch.zeros(len(chosen), len(timelines.spans)), torch.zeros(len(chosen), timelines.grid.clips)
    )
    for at in range(0, len(asked), 64):
        places, rows_asked, wordings, shares = zip(*asked[at : at + 64], strict=True)
        batch = timelines.batch(rows_asked, wordings=wordings).to(device_of(networks[0]))
        outputs = [network.eval()(batch) for network in networks]
        probabilities = torch.stack([one.logits.softmax(dim=1) for one in outputs]).mean(dim=0)
        relevance = torch.stack([one.relevance.sigmoid() for one in outputs]).mean(dim=0) * batch.clip_mask
        for whole, part in zip(beliefs, (probabilities, relevance), strict=True):
            whole.index_add_(0, torch.tensor(places), part.cpu() * torch.tensor(shares)[:, None])
    return beliefs


class _Asked(NamedTuple):
    """One wording of one query."""

    place: int
    """Of the query in what is returned."""
    row: int
    wording: int
    share: float


def _shares(wordings: int) -> list[float]:
    """What each of so many wordings counts for, the query's own first; their sum is 1."""
    others = wordings - 1
    return [OWN_WORDS, *[(1 - OWN_WORDS) / others] * others] if others else [1.0]


@torch.no_grad()
def vote_distribution(timelines: Timelines, rows: Sequence[int] | None = None) -> Tensor:
    """Softmax of the detector's own vote, what an untrained network says: float32 (n, S)."""
    chosen = list(range(len(timelines))) if rows is None else list(rows)
    parts = []
    for at in range(0, len(chosen), 64):
        batch = timelines.batch(chosen[at : at + 64])
        parts.append(vote(batch.numbers).masked_fill(~batch.span_mask, -torch.inf).softmax(dim=1))
    return torch.cat(parts)
