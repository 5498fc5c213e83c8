"""Policy and value networks over the environments' observations.

`RefinementNetwork` scores every action by one small network that all actions share, from what is known of the
span that the action leads to. With a thousand training queries this matters more than anything else: what is
learnt about one move holds for all. `FlatNetwork` is the usual perceptron over the whole observation.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vmr_env.caches.boundary_features import CELLS, INSIDE_FEATURES, INTEGRALS, SPAN_FEATURES
from vmr_env.caches.clip_sums import POINT_PARTS, SPAN_PARTS
from vmr_env.envs import kernel
from vmr_env.envs.actions import pairs_of_moves
from vmr_env.envs.observations import Observer

_GEOMETRY = 2 * INTEGRALS.start + len(INSIDE_FEATURES)  # column of a span's start in SPAN_FEATURES
_SCORE = SPAN_FEATURES.index("score")
_READ = (
    *("remaining", "video", "span", "source", "overlaps"),
    *("positions", "points", "whole", "proposals"),
)
"""Components that features of actions are made of."""
_OF_ACTIONS = ("relevance", "span_evidence", "votes")
"""Components with a row for each action."""
_DROPOUT = 0.1


class Layout(Protocol):
    """Slices of the components in flat observations; `vmr_env.envs.observations.Observer` is one."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each component."""
        ...

    @property
    def slices(self) -> Mapping[str, slice]:
        """Slice of each component."""
        ...

    @property
    def stay(self) -> int:
        """Number of the candidate at which a boundary stays where it is."""
        ...


class Probes:
    """Which candidates of start and end each discrete action but switches goes to.

    Attributes:
        count: K, candidates of one boundary.
        moves: number of moves.
        starts: (moves + 1,), of each move, and last of stopping, which stays.
        ends: (moves + 1,).
        boundaries: (moves + 1, 2) int64, rows of the points of both.
    """

    def __init__(self, observer: Layout) -> None:
        self.count = observer.shapes["positions"][0] // 2
        stay = observer.stay
        pairs = pairs_of_moves(self.count, stay)
        self.moves = len(pairs)
        self.starts, self.ends = torch.tensor([*pairs, (stay, stay)]).T.contiguous()
        self.boundaries = np.array([*pairs, (stay, stay)], np.int64) + np.array([0, self.count])


class PolicyValue(NamedTuple):
    """Output of a network for B observations."""

    logits: Tensor
    """(B, A), -inf where an action is impossible."""
    values: Tensor
    """(B,), expected return."""


class ActionFeatures(nn.Module):
    """Features of the span that each discrete action leads to, put together from a flat observation.

    Attributes:
        width: F, features of an action: `SPAN_FEATURES`, the change of start and end, its kind, and
            evidence where it is shown.
        context: C, features that all actions share.

    Raises:
        ValueError: a component that they are made of is not shown.
    """

    def __init__(self, observer: Layout) -> None:
        super().__init__()
        if missing := [name for name in _READ if name not in observer.shapes]:
            raise ValueError(f"observations have no {missing[0]!r}, expected {', '.join(_READ)} among them")
        self._slices: Mapping[str, slice] = observer.slices
        self._proposals = observer.shapes["proposals"][0]
        self._models = observer.shapes.get("models", (0, 0))[1]
        self._probes = probes = Probes(observer)
        actions = probes.moves + self._proposals + 1
        self._evidence = [name for name in _OF_ACTIONS if name in observer.shapes]
        evidence = sum(observer.shapes[name][1] for name in self._evidence)
        self.width = len(SPAN_FEATURES) + 2 + 3 + self._models + evidence
        self.context = 2 + 2 * self._proposals
        kinds = torch.zeros(actions, 3)
        kinds[: probes.moves, 0] = kinds[probes.moves : -1, 1] = kinds[-1, 2] = 1
        self.register_buffer("_kinds", kinds, persistent=False)
        self._kinds: Tensor

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """(B, width) observations -> (B, A, F) features of actions, (B, C) context.

        Observations get no gradient.
        """

        def part(name: str, *shape: int) -> Tensor:
            return observations[:, self._slices[name]].reshape(len(observations), *shape)

        proposals = part("proposals", self._proposals, len(SPAN_FEATURES))
        source = part("source", self._proposals)
        moved = moved_spans(
            part("points", 2 * self._probes.count, -1),
            part("positions", -1),
            part("whole", -1),
            part("video", 1),
            self._probes.boundaries,
        )
        came_from = (source[:, :, None] * proposals[..., _SCORE:]).sum(1, keepdim=True)
        moved = torch.cat([moved, came_from.expand(-1, moved.shape[1], -1)], dim=-1)
        spans = torch.cat([moved[:, :-1], proposals, moved[:, -1:]], dim=1)  # (B, A, SPAN_FEATURES)
        change = spans[..., _GEOMETRY : _GEOMETRY + 2] - part("span", 1, 4)[..., :2]
        parts = [spans, change, self._kinds.expand(len(spans), -1, -1)]
        if self._models:
            of_proposals = part("models", self._proposals, self._models)
            of_source = (source[:, :, None] * of_proposals).sum(1, keepdim=True)
            moves = of_source.expand(-1, self._probes.moves, -1)
            parts.append(torch.cat([moves, of_proposals, of_source], dim=1))
        parts += [part(name, spans.shape[1], -1) for name in self._evidence]
        context = torch.cat(
            [
                part("remaining", 1),
                part("video", 1),
                proposals[..., _SCORE],
                part("overlaps", self._proposals),
            ],
            dim=-1,
        )
        return torch.cat(parts, dim=-1), context


def moved_spans(
    points: Tensor, positions: Tensor, whole: Tensor, video: Tensor, boundaries: NDArray[np.int64]
) -> Tensor:
    """Features of the spans after every move, and of the current: (B, moves + 1, SPAN_FEATURES - 3).

    The environments' own code computes them; arguments are as for `vmr_env.envs.kernel.describe_moves`.
    """
    out = np.empty((len(points), len(boundaries), _SCORE), np.float32)
    given = [of.detach().cpu().float().contiguous().numpy() for of in (points, positions, whole, video)]
    kernel.describe_moves(given[0], given[1], given[2], given[3], boundaries, out)
    return torch.from_numpy(out).to(points)


class ActionClips(nn.Module):
    """A linear map of the clip features of the span that each action leads to: of those before and after its
    start, before and after its end, and of their mean inside.

    A move's boundaries are probes; each probe is mapped once, and moves add up what belongs to them. The sum
    is divided by the root of the width of clips, so that many channels are not learnt by heart.

    Args:
        observer: of caches with clips.
        width: H, of the result.
    """

    def __init__(self, observer: Layout, width: int) -> None:
        super().__init__()
        self._slices: Mapping[str, slice] = observer.slices
        channels = observer.shapes["point_clips"][-1]
        probes = Probes(observer)
        self._count = probes.count
        self._shapes = (2 * probes.count, len(POINT_PARTS), channels), (-1, len(SPAN_PARTS), channels)
        self.at_start, self.at_end = (nn.Linear(2 * channels, width, bias=False) for _ in range(2))
        self.inside = nn.Linear(channels, width, bias=False)
        self._scale = math.sqrt(channels)
        self.register_buffer("_start_probes", probes.starts, persistent=False)
        self.register_buffer("_end_probes", probes.ends, persistent=False)
        self._start_probes: Tensor
        self._end_probes: Tensor

    def forward(self, observations: Tensor) -> Tensor:
        """(B, width of an observation) -> (B, A, H)."""
        points, spans = (
            observations[:, self._slices[name]].reshape(len(observations), *shape)
            for name, shape in zip(("point_clips", "proposal_clips"), self._shapes, strict=True)
        )
        count = self._count
        starts = self.at_start(points[:, :count, :2].flatten(2))[:, self._start_probes]
        ends = self.at_end(points[:, count:, :2].flatten(2))[:, self._end_probes]
        sums = self.inside(points[:, :, 2])
        positions = observations[:, self._slices["positions"]]
        inside, width = (
            part[:, count:][:, self._end_probes] - part[:, :count][:, self._start_probes]
            for part in (sums, positions)
        )
        moved = starts + ends + inside / width.clamp_min(1 / CELLS)[..., None]
        proposals = (
            self.at_start(spans[:, :, :2].flatten(2))
            + self.at_end(spans[:, :, 2:4].flatten(2))
            + self.inside(spans[:, :, 4])
        )
        mapped: Tensor = torch.cat([moved[:, :-1], proposals, moved[:, -1:]], dim=1)
        return mapped / self._scale


class Standardise(nn.Module):
    """Shift and scale features to mean 0 and deviation 1 of the states it was fitted on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.mean: Tensor
        self.scale: Tensor

    def fit(self, features: Tensor) -> None:
        """Fit on (..., width)."""
        rows = features.reshape(-1, features.shape[-1])
        self.mean.copy_(rows.mean(0))
        self.scale.copy_(rows.std(0, correction=0).clamp_min(1e-2))

    def forward(self, features: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return (features - self.mean) / self.scale


class Projection(nn.Module):
    """A linear map of a vector whose numbers have no meaning of their own, such as a decoder state.

    The standardised vector is divided by the root of its width, so that a wide one is not learnt by heart
    sooner than a narrow one; dropout hides some of its numbers in training.

    Args:
        vector: D, width of the vector.
        width: H, of the result.
    """

    def __init__(self, vector: int, width: int) -> None:
        super().__init__()
        self.standardise = Standardise(vector)
        self.dropout = nn.Dropout(_DROPOUT)
        self.map = nn.Linear(vector, width, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (..., H)."""
        mapped: Tensor = self.map(self.dropout(self.standardise(vectors) / math.sqrt(vectors.shape[-1])))
        return mapped


class ActionVectors(nn.Module):
    """Projections of the decoder state behind the span that each action leads to, and of the sentence vector.

    A move's span keeps the state of the proposal that it came from; a switch leads to that of its proposal,
    where `proposal_states` are shown beside `decoder_state`.

    Args:
        observer: shows `decoder_state` or `text`.
        width: H, of the result.
    """

    def __init__(self, observer: Layout, width: int) -> None:
        super().__init__()
        self._slices: Mapping[str, slice] = observer.slices
        self._shapes: Mapping[str, tuple[int, ...]] = observer.shapes
        self._width, self._moves = width, Probes(observer).moves
        self._switched = "proposal_states" if "proposal_states" in self._shapes else "decoder_state"
        state = self._shapes.get("decoder_state")
        self.states = None if state is None else Projection(state[-1], width)
        self.text = Projection(self._shapes["text"][-1], width) if "text" in self._shapes else None

    def _shown(self, name: str, observations: Tensor) -> Tensor:
        """Vectors of a component: (B, 1 or P, its width)."""
        width = self._shapes[name][-1]
        return observations[:, self._slices[name]].reshape(len(observations), -1, width)

    @torch.no_grad()
    def fit(self, observations: Tensor) -> None:
        """Fit the standardisation on (B, width) observations."""
        if self.states is not None:
            self.states.standardise.fit(self._shown(self._switched, observations))
        if self.text is not None:
            self.text.standardise.fit(self._shown("text", observations))

    def forward(self, observations: Tensor) -> Tensor:
        """(B, width of an observation) -> (B, A, H)."""
        proposals = self._shapes["proposals"][0]
        stay = switch = observations.new_zeros(len(observations), 1, self._width)
        if self.states is not None:
            names = "decoder_state", self._switched
            stay, switch = (self.states(self._shown(name, observations)) for name in names)
        if self.text is not None:
            of_text = self.text(self._shown("text", observations))
            stay, switch = stay + of_text, switch + of_text
        moves = self._moves
        return torch.cat([stay.expand(-1, moves, -1), switch.expand(-1, proposals, -1), stay], dim=1)


class RefinementNetwork(nn.Module):
    """One small network scores every action; their pooled hidden layers give the value.

    Args:
        observer: gives the slices of the components; all of the default ones must be there.
        hidden: width of the two hidden layers.
    """

    def __init__(self, observer: Layout, hidden: int = 64) -> None:
        super().__init__()
        self.features = ActionFeatures(observer)
        width, context = self.features.width, self.features.context
        self.standardise, self.standardise_context = Standardise(width), Standardise(context)
        self.from_action = nn.Linear(width, hidden)
        self.from_context = nn.Linear(context, hidden, bias=False)
        self.from_clips = ActionClips(observer, hidden) if "point_clips" in observer.shapes else None
        vectors = any(name in observer.shapes for name in ("decoder_state", "text"))
        self.from_vectors = ActionVectors(observer, hidden) if vectors else None
        self.hidden = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU())
        self.score = nn.Linear(hidden, 1)
        expected = nn.Linear(hidden, 1)
        self.value = nn.Sequential(nn.Linear(2 * hidden + context, hidden), nn.ReLU(), expected)
        with torch.no_grad():  # nearly uniform policy and value 0 to begin with
            self.score.weight.mul_(0.1)
            expected.weight.mul_(0.1)

    @torch.no_grad()
    def fit(self, observations: Tensor) -> None:
        """Fit the standardisation on (B, width) observations."""
        features, context = self.features(observations)
        self.standardise.fit(features)
        self.standardise_context.fit(context)
        if self.from_vectors is not None:
            self.from_vectors.fit(observations)

    def forward(self, observations: Tensor, masks: Tensor) -> PolicyValue:
        """(B, width) observations, (B, A) possible actions, stopping always among them."""
        masks = masks.bool()
        features, context = self.features(observations)
        context = self.standardise_context(context)
        used = masks.any(0).nonzero()[:, 0]  # what no episode of the batch can do costs nothing
        hidden = self.from_action(self.standardise(features[:, used])) + self.from_context(context)[:, None]
        if self.from_clips is not None:
            hidden = hidden + self.from_clips(observations)[:, used]
        if self.from_vectors is not None:
            hidden = hidden + self.from_vectors(observations)[:, used]
        hidden = self.hidden(torch.relu(hidden))
        logits = torch.full(masks.shape, -torch.inf, dtype=hidden.dtype, device=hidden.device)
        logits[:, used] = self.score(hidden)[..., 0].masked_fill(~masks[:, used], -torch.inf)
        weights = (masks[:, used] / masks.sum(1, keepdim=True))[:, None]
        pooled = torch.cat([(weights @ hidden)[:, 0], hidden[:, -1], context], dim=-1)
        return PolicyValue(logits, self.value(pooled)[:, 0])


class FlatNetwork(nn.Module):
    """Two multilayer perceptrons over the whole observation, one for the policy and one for the value.

    Each has two hidden layers, as Stable-Baselines3's `MlpPolicy` has them, here of ReLU. Their first layers
    read the same, so they are one.

    Args:
        observer: tells the width of an observation.
        actions: A.
        hidden: width of the hidden layers.
    """

    def __init__(self, observer: Observer, actions: int, hidden: int = 64) -> None:
        super().__init__()
        self.first = nn.Linear(observer.width, 2 * hidden)
        self.policy, self.value = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.scores, self.expected = nn.Linear(hidden, actions), nn.Linear(hidden, 1)
        with torch.no_grad():  # nearly uniform policy and value 0 to begin with
            self.scores.weight.mul_(0.1)
            self.expected.weight.mul_(0.1)

    def fit(self, observations: Tensor) -> None:
        """Do nothing: observations lie in [-1, 1]."""

    def forward(self, observations: Tensor, masks: Tensor) -> PolicyValue:
        """(B, width) observations, (B, A) possible actions."""
        policy, value = torch.relu(self.first(observations)).chunk(2, dim=-1)
        logits = self.scores(torch.relu(self.policy(policy))).masked_fill(~masks.bool(), -torch.inf)
        return PolicyValue(logits, self.expected(torch.relu(self.value(value)))[:, 0])


NetworkKind = Literal["refinement", "flat"]


def make_network(
    kind: NetworkKind, observer: Observer, actions: int, hidden: int
) -> RefinementNetwork | FlatNetwork:
    """A network by the name of its kind; further arguments are those of the classes."""
    if kind == "refinement":
        return RefinementNetwork(observer, hidden)
    return FlatNetwork(observer, actions, hidden)
