"""Plots of a run as SVG, in one style: colours come from the page, so that they suit light and dark.

Every function returns one `<svg>` with a title and a description for those who do not see it. Series take the
classes `s0`, `s1`, …; `s0` is always the detector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_WIDTH, _HEIGHT = 400, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 44
_SERIES = 7
"""Colours; further series begin anew."""


@dataclass
class _Axes:
    """One plot under construction: data coordinates in, SVG elements out.

    Attributes:
        x: lowest and highest value shown.
        y: lowest and highest value shown.
        width: of the picture.
        height: of the picture.
        parts: elements so far.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = _WIDTH
    height: int = _HEIGHT
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        (x0, x1), (y0, y1) = self.x, self.y
        inner = self.width - _LEFT - _RIGHT, self.height - _TOP - _BOTTOM
        return _LEFT + (x - x0) / (x1 - x0) * inner[0], _TOP + (y1 - y) / (y1 - y0) * inner[1]

    def line(self, xs: Sequence[float] | Floats, ys: Sequence[float] | Floats, name: str) -> None:
        """A line through points."""
        points = " ".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in zip(xs, ys, strict=True))
        self.parts.append(f'<polyline class="line {name}" points="{points}"/>')

    def band(self, xs: Floats, low: Floats, high: Floats, name: str) -> None:
        """The area between two lines."""
        xs, ys = np.concatenate([xs, xs[::-1]]), np.concatenate([low, high[::-1]])
        points = " ".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in zip(xs, ys, strict=True))
        self.parts.append(f'<polygon class="band {name}" points="{points}"/>')

    def box(self, x: tuple[float, float], y: tuple[float, float], name: str, says: str = "") -> None:
        """A rectangle; what it says is shown when it is pointed at."""
        (left, bottom), (right, top) = self.at(x[0], y[0]), self.at(x[1], y[1])
        size = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
        self.parts.append(f'<rect class="{name}" {size}><title>{escape(says)}</title></rect>')

    def dot(self, x: float, y: float, radius: float, name: str, says: str) -> None:
        """A disc of that many pixels."""
        left, top = self.at(x, y)
        place = f'cx="{left:.1f}" cy="{top:.1f}" r="{radius:.1f}"'
        self.parts.append(f'<circle class="{name}" {place}><title>{escape(says)}</title></circle>')

    def axes(self, x_label: str, y_label: str) -> None:
        """Ticks, grid and labels; a scale without a label is left out."""
        bottom = self.height - _BOTTOM
        for tick in _ticks(*self.x):
            x, _ = self.at(tick, self.y[0])
            self.parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
            self.parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>')
        for tick in _ticks(*self.y) if y_label else ():
            _, y = self.at(self.x[0], tick)
            right = self.width - _RIGHT
            self.parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        middle = (_LEFT + self.width - _RIGHT) / 2, (_TOP + bottom) / 2
        self.parts.append(
            f'<text x="{middle[0]}" y="{self.height - 6}" text-anchor="middle">{escape(x_label)}</text>'
        )
        self.parts.append(
            f'<text transform="translate(13 {middle[1]}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )

    def svg(self, title: str, description: str) -> str:
        """The finished picture."""
        return (
            f'<svg role="img" viewBox="0 0 {self.width} {self.height}" aria-label="{escape(title)}. '
            f'{escape(description)}">' + "".join(self.parts) + "</svg>"
        )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, five to eleven of them."""
    step = 10.0 ** np.floor(np.log10((high - low) / 5))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 10)
    return [
        float(round(i * step, 10))
        for i in range(int(np.ceil(low / step - 1e-9)), int(high / step + 1e-9) + 1)
    ]


def series(number: int) -> str:
    """Class of a series."""
    return f"s{number if number < _SERIES else 1 + (number - 1) % (_SERIES - 1)}"


def learning_curves(
    curves: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], stages: Sequence[float] = ()
) -> str:
    """Gain on held-out training samples while learning: mean over trainings, and the range from 10 to 90 %.

    Args:
        curves: agent -> of each training the rounds and the gains in `agents.committee.quality`, which begin
            with nothing at 0.
        stages: where stages of a curriculum end, as shares of the training.
    """
    shares = np.linspace(0, 1, 41)
    gains = {
        agent: 100
        * np.stack([np.interp(shares, [0, *np.divide(at, at[-1])], [0, *gain]) for at, gain in trainings])
        for agent, trainings in curves.items()
    }
    ranges = {agent: np.quantile(each, [0.1, 0.9], axis=0) for agent, each in gains.items()}
    low, high = min(float(r.min()) for r in ranges.values()), max(float(r.max()) for r in ranges.values())
    margin = max(0.05 * (high - low), 0.1)
    axes = _Axes((0, 100), (low - margin, high + margin))
    axes.axes("training (% of rounds)", "gain on held-out samples (points)")
    for share in stages:
        axes.line([100 * share] * 2, axes.y, "stage")
    axes.line([0, 100], [0, 0], f"dashed {series(0)}")
    for number, (agent, each) in enumerate(gains.items(), start=1):
        axes.band(100 * shares, ranges[agent][0], ranges[agent][1], series(number))
        axes.line(100 * shares, each.mean(0), series(number))
    ends = ", ".join(f"{agent} {each.mean(0)[-1]:+.2f}" for agent, each in gains.items())
    return axes.svg("Gain on held-out training samples while learning", f"At the end, in points: {ends}")


def before_after(before: Floats, after: Floats, number: int, name: str) -> str:
    """tIoU of the refined moment against the detector's: discs whose area is the number of queries."""
    counts, _, _ = np.histogram2d(before, after, bins=20, range=[[0, 1], [0, 1]])
    axes = _Axes((0, 1), (0, 1), height=380)
    axes.axes("tIoU of the detector", "tIoU after refinement")
    axes.line([0, 1], [0, 1], f"dashed {series(0)}")
    largest = counts.max()
    for i, j in np.argwhere(counts):
        x, y = (i + 0.5) / 20, (j + 0.5) / 20
        says = f"{counts[i, j]:.0f} queries from about {x:.2f} to about {y:.2f}"
        axes.dot(x, y, 1 + 8 * np.sqrt(counts[i, j] / largest), f"fill {series(number)}", says)
    better, worse = np.mean(after > before + 1e-6), np.mean(after < before - 1e-6)
    return axes.svg(f"{name}: tIoU before and after", f"{better:.0%} of queries better, {worse:.0%} worse")


def boundary_errors(errors: Mapping[str, Floats], boundary: str) -> str:
    """How far starts or ends lie from the ground truth's: shares of queries by error, a line per answerer.

    Args:
        errors: name -> (queries,) seconds, answer minus truth; the detector first.
        boundary: "start" or "end".
    """
    everything = np.concatenate(list(errors.values()))
    limit = max(float(np.quantile(np.abs(everything), 0.9)), 1.0)
    edges = np.linspace(-limit, limit, 42)
    shares = {name: 100 * np.histogram(e, edges)[0] / len(e) for name, e in errors.items()}
    axes = _Axes((-limit, limit), (0, 1.05 * max(float(s.max()) for s in shares.values())))
    axes.axes(f"error of the {boundary} (seconds; left is too early)", "% of queries")
    for number, share in enumerate(shares.values()):
        axes.line(np.repeat(edges, 2)[1:-1], np.repeat(share, 2), series(number))
    medians = ", ".join(f"{name} {np.median(np.abs(error)):.1f} s" for name, error in errors.items())
    return axes.svg(f"Error of the {boundary}", f"Median of its size: {medians}")


def reliability(scores: Floats, ious: Mapping[str, Floats]) -> str:
    """How often the answer is right (tIoU of at least 0.5) by the detector's own score, in tenths of queries.

    Args:
        scores: (queries,) of the detector's first window.
        ious: name -> (queries,); the detector first.
    """
    parts = np.array_split(np.argsort(scores, kind="stable"), min(10, len(scores)))
    at = np.array([scores[part].mean() for part in parts])
    first = next(iter(ious.values()))
    low, high = np.floor(10 * at.min() - 1e-9) / 10, np.ceil(10 * at.max() + 1e-9) / 10
    axes = _Axes((float(low), float(high)), (0, 100))
    axes.axes("score of the detector's first window", "% of answers with tIoU ≥ 0.5")
    if low >= 0 and high <= 1:  # scores that may be read as probabilities
        axes.line([low, high], [100 * low, 100 * high], "dashed")
    for number, iou in enumerate(ious.values()):
        right = [100 * float(np.mean(iou[part] >= 0.5)) for part in parts]
        axes.line(at, right, series(number))
        for x, y, part in zip(at, right, parts, strict=True):
            axes.dot(x, y, 3, f"fill {series(number)}", f"{y:.0f} % of {len(part)} queries")
    return axes.svg(
        "How often answers are right, by the detector's score",
        f"The detector's from {100 * np.mean(first[parts[0]] >= 0.5):.0f} % of its least certain tenth "
        f"to {100 * np.mean(first[parts[-1]] >= 0.5):.0f} % of its most certain one",
    )


CHANGES = ("kept", "start only", "end only", "both")
"""What an agent may have done to the detector's moment."""


def changes(used: Mapping[str, Floats]) -> str:
    """What agents did to the detector's moments: stacked bars of shares.

    Args:
        used: agent -> shares of `CHANGES`.
    """
    axes = _Axes((0, 100), (0, len(used)), height=_TOP + _BOTTOM + 48 * len(used))
    axes.axes("% of the detector's moments", "")
    for number, (agent, shares) in enumerate(used.items()):
        bottom, left = len(used) - number - 1, 0.0
        x, y = axes.at(0, bottom + 0.72)
        axes.parts.append(f'<text class="name" x="{x + 2:.1f}" y="{y:.1f}">{escape(agent)}</text>')
        for kind, share in enumerate(100 * shares):
            axes.box(
                (left, left + share),
                (bottom + 0.1, bottom + 0.6),
                f"k{kind}",
                f"{CHANGES[kind]}: {share:.0f} %",
            )
            left += share
    said = "; ".join(
        f"{agent}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in zip(CHANGES, shares, strict=True))
        for agent, shares in used.items()
    )
    return axes.svg("What agents did to the detector's moments", said)
