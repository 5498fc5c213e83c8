"""What the video itself says about a query: how relevant each clip is, and how likely each span.

A cache may hold, beside a detector's proposals, a relevance curve (`relevance`, one number per clip, any
scale) and a score of every span (`span_scores`, as logits). `vmr_env.envs.evidence` makes tables of them in
memory, whose look-ups cost the same for all spans. Spans run from cell to cell of a grid: cells are clips, in
videos of more than `MOST_CELLS` clips runs of as many clips as make it fit.

Without scores of spans a curve gives them: the log-likelihood ratio of two levels, inside and outside a span,
against one level, for normal noise. It needs no training (change-point detection; Page, 1955).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from vmr_env.arrays import Array
from vmr_env.caches.format import Ragged
from vmr_env.data.annotations import Annotation

EDGE_CELLS = 2
"""Cells before and after a boundary whose relevance is averaged."""

RELEVANCE = ("inside", "before the start", "after the start", "before the end", "after the end")
"""Mean relevance inside a span and on either side of its boundaries: tanh(z / 2), z being the z-score of the
curve, as saliency enters timelines."""

SPAN_EVIDENCE = ("log score", "expected tIoU", "hits at 0.5", "hits at 0.7", "start", "end", "entropy")
"""What is known of a span under the distribution of all, the softmax of their scores: its log-probability
less the highest, over `LOG_SCALE`, at least -1; tIoU and share of spans with a tIoU of at least 0.5 and 0.7,
in expectation; probabilities of its start and its end, over the highest; entropy of the distribution over its
highest possible value, the same for all spans."""

LOG_SCALE = 10.0


class Evidence(NamedTuple):
    """Evidence of n samples for a cache; arrays are those of `vmr_env.caches.batch.CacheBatch`."""

    source: str
    """What gives it, in a word."""
    sha256: str | None
    """Hash of the weights that give it, if any do."""
    features: tuple[str, ...]
    """Names of the clip features that it comes from."""
    relevance: Ragged
    """(clips,)."""
    span_scores: Ragged | None = None
    clips: Ragged | None = None
    text: Array | None = None


FindEvidence: TypeAlias = Callable[[Sequence[Annotation]], Evidence]
"""Gives evidence for samples, one row each, in their order."""
