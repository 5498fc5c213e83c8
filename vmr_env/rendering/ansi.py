"""What is shown of one running episode, and how: as text for terminals. `vmr_env.rendering.rgb` draws it."""

import bisect
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmr_env.metrics.spans import best_tiou

if TYPE_CHECKING:
    from vmr_env.caches.reader import DecoderStateCache
    from vmr_env.envs.episodes import Episodes

Span = tuple[float, float]

SHOWN_PROPOSALS = 10
"""Proposals that are shown, at most."""

SHOWN_MOVES = 7
"""Spans of the trajectory that are shown, at most: the first and the last ones."""

TEXT_COLUMNS = 100
"""Widest line of `render_ansi`, in terminal columns by default."""


@dataclass(frozen=True)
class Scene:
    """All that is shown. Times are in seconds.

    Attributes:
        query: the sentence.
        vid: name of the video.
        duration: of the video.
        moments: ground truth, one or more.
        proposals: the detector's first `SHOWN_PROPOSALS`, best first.
        scores: of these proposals.
        source: number, from 0, of the proposal that the current span came from, shown or not.
        trajectory: the spans of the episode so far, the one it started from first, the current one last.
        tious: tIoU of each of them.
        saliency: one value per clip, on the detector's own scale, or None.
        horizon: steps after which the episode ends.
    """

    query: str
    vid: str
    duration: float
    moments: tuple[Span, ...]
    proposals: tuple[Span, ...]
    scores: tuple[float, ...]
    source: int
    trajectory: tuple[Span, ...]
    tious: tuple[float, ...]
    saliency: tuple[float, ...] | None
    horizon: int

    @classmethod
    def of(cls, episodes: "Episodes", trajectory: Sequence[Span]) -> "Scene":
        """The scene of the first of the episodes; its spans so far are given, as shares of the video."""
        return cls.of_sample(
            episodes.task.cache,
            int(episodes.samples[0]),
            trajectory,
            source=int(episodes.sources[0]),
            proposals=episodes.task.proposals,
            horizon=episodes.rules.horizon,
        )

    @classmethod
    def of_sample(
        cls,
        cache: "DecoderStateCache",
        row: int,
        trajectory: Sequence[Span],
        *,
        source: int,
        proposals: int,
        horizon: int,
    ) -> "Scene":
        """The scene of a row of a cache; `trajectory` is in shares of the video.

        Args:
            cache: where the sample is.
            row: of the sample.
            trajectory: the spans so far.
            source: proposal that the last of them came from.
            proposals: how many take part.
            horizon: steps after which the episode ends.
        """
        sample = cache.sample(row)
        shown = min(int(cache.counts[row]), proposals, SHOWN_PROPOSALS)

        def seconds(spans: Sequence[Span]) -> tuple[Span, ...]:
            return tuple((start * sample.duration, end * sample.duration) for start, end in spans)

        return cls(
            query=_one_line(sample.query),
            vid=_one_line(sample.vid),
            duration=sample.duration,
            moments=tuple((start, end) for start, end in sample.moments.tolist()),
            proposals=seconds(cache.spans[row, :shown].tolist()),
            scores=tuple(cache.scores[row, :shown].tolist()),
            source=source,
            trajectory=seconds(trajectory),
            tious=tuple(best_tiou(np.array(trajectory, np.float32), cache.moments[row]).tolist()),
            saliency=None if cache.saliency is None else tuple(cache.saliency[row].tolist()),
            horizon=horizon,
        )

    @property
    def current(self) -> Span:
        """The current span."""
        return self.trajectory[-1]

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.trajectory) - 1

    def moves(self) -> list[tuple[str, Span, float]]:
        """Name, span and tIoU of the start and of the steps that are shown, in their order."""
        rows = [
            (f"step {number}" if number else "start", span, tiou)
            for number, (span, tiou) in enumerate(zip(self.trajectory, self.tious, strict=True))
        ]
        return rows if len(rows) <= SHOWN_MOVES else [rows[0], *rows[1 - SHOWN_MOVES :]]

    def times(self) -> str:
        """Times of the ground truth."""
        first, *others = self.moments
        return f"{times(first)} +{len(others)}" if others else times(first)

    def progress(self) -> str:
        """How long the video is, and how far the episode, with what the last step did."""
        done = f": {self._done()}" if self.step else ""
        where = f"step {self.step} of {self.horizon}{done}"
        return f"{self.duration:.1f} s · {where} · from proposal {self.source + 1}"

    def _done(self) -> str:
        """What the last step did."""
        before, after = self.trajectory[-2:]
        if after == before:
            return "stays"
        if after in self.proposals:
            return f"to proposal {self.proposals.index(after) + 1}"
        shifts = zip(("start", "end"), before, after, strict=True)
        told = {name: f"{now - was:+.1f}".replace("-", "−") for name, was, now in shifts}
        moved = [f"{name} {shift} s" for name, shift in told.items() if shift not in ("+0.0", "−0.0")]
        return ", ".join(moved) or "moves by less than 0.05 s"

    def saliency_shares(self) -> NDArray[np.float64]:
        """The saliency curve from 0, its lowest value, to 1, its highest; a half where all are alike."""
        values = np.array(self.saliency or [], np.float64)
        if not len(values) or values.max() == values.min():
            return np.full(len(values), 0.5)
        shares: NDArray[np.float64] = (values - values.min()) / (values.max() - values.min())
        return shares


def _one_line(text: str) -> str:
    """Text without line breaks and without the characters that would steer a terminal."""
    return " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())


def times(span: Span) -> str:
    """Start and end of a span."""
    return f"{span[0]:.1f}–{span[1]:.1f} s"


_BESIDE_BARS = 40
"""Columns of a line that are not its bar's."""
_LEVELS = "▁▂▃▄▅▆▇█"


def render_ansi(scene: Scene, width: int = TEXT_COLUMNS, *, truth: bool = True) -> str:
    """The scene as lines of at most `width` columns (60 and more), without a line break at the end.

    Query, video, ground truth, the moves so far with their tIoU, the proposals with their scores (an arrow
    marks the one that the span came from), the saliency curve, and seconds. Without `truth` nothing tells the
    ground truth, nor how near a span is to it.
    """
    progress = scene.progress()
    vid = clipped(scene.vid, width - len(progress) - 3, columns)
    length = width - _BESIDE_BARS

    def line(name: str, bar: str, remark: str) -> str:
        return f"{name:<9}{bar} {remark}"[:width].rstrip()

    def bar(spans: Sequence[Span], sign: str) -> str:
        return _text_bar(spans, scene.duration, sign, length)

    moves = [
        line(name, bar([span], "█"), f"{times(span)} · tIoU {tiou:.2f}" if truth else times(span))
        for name, span, tiou in scene.moves()
    ]
    proposals = [
        line(f"{'→' if i == scene.source else ' '}{i + 1:>7}", bar([span], "━"), f"{score:.2f}")
        for i, (span, score) in enumerate(zip(scene.proposals, scene.scores, strict=True))
    ]
    end = f"{scene.duration:.1f} s"
    return "\n".join(
        [
            f"“{clipped(scene.query, width - 2, columns)}”",
            f"{vid} · {progress}"[:width],
            line("truth", bar(scene.moments, "█"), scene.times())
            if truth
            else line("truth", bar([], " "), "?"),
            *moves,
            "proposals",
            *proposals,
            *([line("saliency", _text_curve(scene, length), "")] if scene.saliency else []),
            line("", f"0 s{end:>{length - 3}}", ""),
        ]
    )


def _text_bar(spans: Sequence[Span], duration: float, sign: str, length: int) -> str:
    """Spans on a line of `length` columns, as far as they are in the video; each fills one at least."""
    cells = ["·"] * length
    for start, end in spans:
        low, high = (round(min(max(time / duration, 0), 1) * length) for time in (start, end))
        low = min(low, length - 1)
        high = max(high, low + 1)
        cells[low:high] = sign * (high - low)
    return "".join(cells)


def _text_curve(scene: Scene, length: int) -> str:
    """The saliency curve on `length` columns: in each the clip at its middle."""
    shares = scene.saliency_shares()
    clips = ((np.arange(length) + 0.5) / length * len(shares)).astype(int)
    return "".join(_LEVELS[min(int(share * len(_LEVELS)), len(_LEVELS) - 1)] for share in shares[clips])


def columns(text: str) -> int:
    """Columns that a text takes in a terminal."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def clipped(text: str, width: float, measure: Callable[[str], float]) -> str:
    """The text, or as much of its start as fits into the width with an ellipsis after it."""
    if fitting(text, width, measure) == len(text):
        return text
    return text[: fitting(text, width - measure("…"), measure)].rstrip() + "…"


_LONGEST = 1000
"""Characters of a text that are measured, more than ever fit."""


def fitting(text: str, width: float, measure: Callable[[str], float]) -> int:
    """How many characters of the text's start fit into the width."""
    lengths = range(1, min(len(text), _LONGEST) + 1)
    return bisect.bisect_right(lengths, width, key=lambda length: measure(text[:length]))
