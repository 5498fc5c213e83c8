"""An episode as the documentation of `VMREnv` tells it: plain Python, float64, one span after the other."""

from dataclasses import dataclass, field

import numpy as np

from vmr_env.caches.reader import DecoderStateCache

Span = tuple[float, float]
Move = tuple[float, float]
"""Offsets of start and end in clips; of a boundary that is borrowed from proposal k, `BORROWED + k`."""

DISCRETE = (-8.0, -3.0, -1.0, 0.0, 1.0, 3.0, 8.0)
PAIRED = (
    (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0),
    (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0),
    (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0),
)
HORIZONS = {"discrete": 3, "multidiscrete": 3, "continuous": 6, "candidates": 1}
BORROWED = 1000.0
"""Beyond all offsets."""
CANDIDATES = (*DISCRETE, BORROWED, BORROWED + 1, BORROWED + 2)
ROUNDING = 1e-6


def tiou(a: Span, b: Span) -> float:
    """Common part over union."""
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - common
    return common / union if union > 0 else 0.0


def giou(a: Span, b: Span) -> float:
    """TIoU less the share of the hull that neither span covers."""
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - common
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return common / union - (hull - union) / hull


@dataclass
class SlowEpisode:
    """One episode in one of the action modes.

    Attributes:
        cache: where the sample is.
        sample: its row.
        proposal: number of the proposal that the span came from.
        actions: "discrete", "multidiscrete", "continuous" or "candidates".
        stage: 1, 2 or 3.
    """

    cache: DecoderStateCache
    sample: int
    proposal: int
    actions: str
    stage: int
    steps: int = 0
    span: Span = field(init=False)

    def __post_init__(self) -> None:
        self.proposals = [(float(start), float(end)) for start, end in self.cache.spans[self.sample]]
        self.moments = [(float(start), float(end)) for start, end in self.cache.moments[self.sample]]
        self.clip = self.cache.manifest["clip_seconds"] / float(self.cache.durations[self.sample])
        self.span = self.proposals[self.proposal]

    def tiou(self) -> float:
        """Highest with any moment."""
        return max(tiou(self.span, moment) for moment in self.moments)

    def potential(self) -> float:
        """Generalised in the first stage."""
        return max(giou(self.span, moment) for moment in self.moments) if self.stage == 1 else self.tiou()

    def moved(self, move: Move) -> Span | None:
        """Where a move leads; None where less than a clip would be left of the span, or of a shorter one
        less than there is."""
        start, end = (self.target(side, offset) for side, offset in enumerate(move))
        least = min(self.clip, self.span[1] - self.span[0])
        return None if end - start < least - ROUNDING else (start, end)

    def target(self, side: int, offset: float) -> float:
        """Where an offset leads the start (side 0) or the end."""
        if offset >= BORROWED:
            return self.proposals[int(offset - BORROWED)][side]
        return min(max(self.span[side] + offset * self.clip, 0.0), 1.0)

    def alone(self, side: int, offset: float) -> bool:
        """Whether an offset of one boundary is possible; a borrowed one needs to be elsewhere, no more."""
        if offset >= BORROWED:
            there_is = int(offset - BORROWED) < self.cache.counts[self.sample]
            return bool(there_is) and abs(self.target(side, offset) - self.span[side]) > ROUNDING
        return self.changes((offset, 0.0) if side == 0 else (0.0, offset))

    def changes(self, move: Move) -> bool:
        """Whether a move of one boundary is possible: staying is, else it must lead elsewhere."""
        if move == (0, 0):
            return True
        span = self.moved(move)
        return span is not None and max(abs(span[0] - self.span[0]), abs(span[1] - self.span[1])) > ROUNDING

    def offsets(self) -> tuple[float, ...]:
        """Those of the current step."""
        return PAIRED[min(self.steps, 2)] if self.actions == "multidiscrete" else DISCRETE

    def pairs(self) -> list[Move]:
        """The moves of both boundaries: 48, with borrowed ones 99."""
        every = CANDIDATES if self.actions == "candidates" else DISCRETE
        return [(start, end) for start in every for end in every if (start, end) != (0, 0)]

    def mask(self) -> list[bool]:
        """Which entries of the action mask are possible."""
        if self.actions not in ("discrete", "candidates"):
            starts = [self.changes((offset, 0.0)) for offset in self.offsets()]
            return starts + [self.changes((0.0, offset)) for offset in self.offsets()]
        possible = []
        for start, end in self.pairs():
            alone = self.alone(0, start) and self.alone(1, end)
            possible.append(alone and self.moved((start, end)) is not None)
        for number, proposal in enumerate(self.proposals):
            there_is = number < self.cache.counts[self.sample]
            possible.append(self.stage == 3 and bool(there_is) and proposal != self.span)
        return [*possible, True]

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        """Take an action; what it earned, and whether the episode ended."""
        before, stopped = self.potential(), False
        if self.actions == "continuous":
            self.span = self.moved((8 * float(action[0]), 8 * float(action[1]))) or self.span
        elif self.actions == "multidiscrete":
            mask, offsets = self.mask(), self.offsets()
            start = offsets[action[0]] if mask[action[0]] else 0.0
            end = offsets[action[1]] if mask[7 + action[1]] else 0.0
            self.span = self.moved((start, end)) or self.span
        elif self.mask()[action]:
            moves = self.pairs()
            if action < len(moves):
                self.span = self.moved(moves[action]) or self.span
            elif action < len(moves) + len(self.proposals):
                self.proposal = int(action) - len(moves)
                self.span = self.proposals[self.proposal]
            else:
                stopped = True
        self.steps += 1
        return self.potential() - before, stopped or self.steps == HORIZONS[self.actions]
