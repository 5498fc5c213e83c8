"""Plots of a run as SVG, in one style: colours come from the page, so that they suit light and dark.

Every function returns one `<svg>` with a title and a description for those who do not see it. Series have the
classes `s0`, `s1`, …, which callers give by name, so that an agent has one colour on the whole page; `s0` is
the detector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

import numpy as np

from vmr_env.arrays import Doubles
from vmr_env.benchmarks.experiment.results import Curve

Classes = Mapping[str, str]
"""Class of each name's series."""

_WIDTH, _HEIGHT = 400, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 44
_WIDEST = 170
"""Pixels for names left of a plot, at most; longer ones are cut."""
_COLOURS = 6
"""Colours beside the detector's; further series begin anew, with dotted lines."""


@dataclass
class _Axes:
    """One plot under construction: data coordinates in, SVG elements out.

    Attributes:
        x: lowest and highest value shown.
        y: lowest and highest value shown.
        width: of the picture.
        height: of the picture.
        left: edge of the plot, in pixels; row names are left of it.
        parts: elements so far.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        (x0, x1), (y0, y1) = self.x, self.y
        inner = self.width - self.left - _RIGHT, self.height - _TOP - _BOTTOM
        return self.left + (x - x0) / (x1 - x0) * inner[0], _TOP + (y1 - y) / (y1 - y0) * inner[1]

    def line(self, xs: Sequence[float] | Doubles, ys: Sequence[float] | Doubles, name: str) -> None:
        """A line through points."""
        points = " ".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in zip(xs, ys, strict=True))
        self.parts.append(f'<polyline class="line {name}" points="{points}"/>')

    def band(self, xs: Doubles, low: Doubles, high: Doubles, name: str) -> None:
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

    def name(self, text: str, y: float) -> None:
        """Text above a row, at its left."""
        left, top = self.at(self.x[0], y)
        self.parts.append(f'<text class="name" x="{left + 2:.1f}" y="{top:.1f}">{escape(text)}</text>')

    def label(self, text: str, y: float) -> None:
        """Text left of the plot, beside a row."""
        _, top = self.at(self.x[0], y)
        place = f'x="{self.left - 8}" y="{top + 4:.1f}" text-anchor="end"'
        self.parts.append(f'<text class="name" {place}>{escape(text)}</text>')

    def axes(self, x_label: str, y_label: str, x_names: Sequence[str] = ()) -> None:
        """Ticks, grid and labels; a scale without a label is left out.

        Args:
            x_label: of the horizontal scale.
            y_label: of the vertical scale.
            x_names: of its units, instead of numbers; as many as the scale is long.
        """
        bottom = self.height - _BOTTOM
        for tick in range(len(x_names) + 1) if x_names else _ticks(*self.x):
            x, _ = self.at(tick, self.y[0])
            self.parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        at = [(i + 0.5, name) for i, name in enumerate(x_names)] or [(x, f"{x:g}") for x in _ticks(*self.x)]
        for tick, name in at:
            x, _ = self.at(tick, self.y[0])
            self.parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{name}</text>')
        for tick in _ticks(*self.y) if y_label else ():
            _, y = self.at(self.x[0], tick)
            right = self.width - _RIGHT
            self.parts.append(f'<line class="grid" x1="{self.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.parts.append(f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        middle = (self.left + self.width - _RIGHT) / 2, (_TOP + bottom) / 2
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


def _scale(low: float, high: float) -> tuple[float, float]:
    """Ends of a scale of points from low to high, with a margin: two points long at least."""
    margin = max(0.05 * (high - low), 1 - (high - low) / 2, 0.1)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, five to eleven of them."""
    step = 10.0 ** np.floor(np.log10((high - low) / 5))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 10)
    return [
        float(round(i * step, 10))
        for i in range(int(np.ceil(low / step - 1e-9)), int(high / step + 1e-9) + 1)
    ]


def standalone(svg: str) -> str:
    """A picture as a file of its own, with the page's style."""
    style = (files("vmr_env.benchmarks.report") / "templates" / "report.css").read_text("utf-8")
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{style}</style>", 1
    )


def series(number: int) -> str:
    """Class of a series."""
    if number <= _COLOURS:
        return f"s{number}"
    return f"s{1 + (number - 1) % _COLOURS} again"


def learning_curves(
    curves: Mapping[str, Curve], at: Doubles, classes: Classes, stages: Sequence[str] = ()
) -> str:
    """Gain on held-out training samples while learning: mean over trainings, and its interval.

    Args:
        curves: agent -> points gained.
        at: (X,), where the curves are known: percent of the training, or stages, each of length 1.
        classes: of the agents.
        stages: names of the stages; none for a scale in percent.
    """
    low = min(float(curve.low.min()) for curve in curves.values())
    high = max(float(curve.high.max()) for curve in curves.values())
    axes = _Axes((0, len(stages) or 100), _scale(low, high))
    label = "stage of the curriculum" if stages else "training (% of rounds)"
    axes.axes(label, "gain on held-out samples (points)", stages)
    axes.line(list(axes.x), [0, 0], "dashed s0")
    for agent, curve in curves.items():
        axes.band(at, curve.low, curve.high, classes[agent])
        axes.line(at, curve.mean, classes[agent])
    ends = ", ".join(f"{agent} {curve.mean[-1]:+.2f}" for agent, curve in curves.items())
    return axes.svg("Gain on held-out training samples while learning", f"At the end, in points: {ends}")


def differences(changes: Mapping[str, Mapping[str, float]], classes: Classes, measure: str) -> str:
    """Differences from the detector with their intervals, a line each.

    Args:
        changes: agent -> mean, low and high, in points.
        classes: of the agents.
        measure: what is compared.
    """
    low = min(0.0, *(change["low"] for change in changes.values()))
    high = max(0.0, *(change["high"] for change in changes.values()))
    axes = _Axes(
        _scale(low, high),
        (0, len(changes)),
        height=_TOP + _BOTTOM + 26 * len(changes),
        left=16 + min(max(7 * len(agent) for agent in changes), _WIDEST),
    )
    axes.axes(f"change in {measure} (points)", "")
    axes.line([0, 0], axes.y, "dashed s0")
    for row, (agent, change) in zip(reversed(range(len(changes))), changes.items(), strict=True):
        name, middle = classes[agent], row + 0.5
        axes.label(agent if 7 * len(agent) <= _WIDEST else f"{agent[: _WIDEST // 7 - 1]}…", middle)
        axes.line([change["low"], change["high"]], [middle, middle], f"{name} solid")
        says = f"{change['mean']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}]"
        axes.dot(change["mean"], middle, 5, f"fill {name}", says)
    said = ", ".join(f"{agent} {change['mean']:+.2f}" for agent, change in changes.items())
    return axes.svg(f"Change in {measure} from the detector", f"In points: {said}")


def before_after(before: Doubles, after: Doubles, name: str, classes: Classes) -> str:
    """tIoU of an agent's moments against the detector's: discs whose area is the number of queries."""
    counts, _, _ = np.histogram2d(before, after, bins=20, range=[[0, 1], [0, 1]])
    axes = _Axes((0, 1), (0, 1), height=380)
    axes.axes("tIoU of the detector", "tIoU after refinement")
    axes.line([0, 1], [0, 1], "dashed s0")
    largest = counts.max()
    for i, j in np.argwhere(counts):
        x, y = (i + 0.5) / 20, (j + 0.5) / 20
        says = f"{counts[i, j]:.0f} queries from about {x:.2f} to about {y:.2f}"
        axes.dot(x, y, 1 + 8 * np.sqrt(counts[i, j] / largest), f"fill {classes[name]}", says)
    better, worse = np.mean(after > before + 1e-6), np.mean(after < before - 1e-6)
    return axes.svg(f"{name}: tIoU before and after", f"{better:.0%} of queries better, {worse:.0%} worse")


def boundary_errors(errors: Mapping[str, Doubles], boundary: str, classes: Classes) -> str:
    """How far starts or ends lie from the ground truth's: shares of queries within a distance.

    Args:
        errors: name -> (queries,) seconds, answer minus truth.
        boundary: "start" or "end".
        classes: of the names.
    """
    everything = np.abs(np.concatenate(list(errors.values())))
    limit = max(float(np.quantile(everything, 0.8)), 1.0)
    at = np.linspace(0, limit, 121)
    axes = _Axes((0, limit), (0, 100))
    axes.axes(f"error of the {boundary} (seconds)", "% of queries within it")
    for name, error in errors.items():
        within = np.searchsorted(np.sort(np.abs(error)), at, side="right") / len(error)
        axes.line(at, 100 * within, classes[name])
    medians = ", ".join(
        f"{name} {np.median(np.abs(error)):.1f} s, {np.mean(error < 0):.0%} too early"
        for name, error in errors.items()
    )
    return axes.svg(f"Error of the {boundary}", f"Median of its size: {medians}")


def reliability(scores: Doubles, ious: Mapping[str, Doubles], classes: Classes) -> str:
    """How often the answer is right (tIoU of at least 0.5) by the detector's own score, in tenths of queries.

    Args:
        scores: (queries,) of the detector's first window.
        ious: name -> (queries,); the detector first.
        classes: of the names.
    """
    parts = np.array_split(np.argsort(scores, kind="stable"), min(10, len(scores)))
    at = np.array([scores[part].mean() for part in parts])
    first = next(iter(ious.values()))
    low, high = np.floor(10 * at.min() - 1e-9) / 10, np.ceil(10 * at.max() + 1e-9) / 10
    axes = _Axes((float(low), float(high)), (0, 100))
    axes.axes("score of the detector's first window", "% of answers with tIoU ≥ 0.5")
    if low >= 0 and high <= 1:  # scores that may be read as probabilities
        axes.line([low, high], [100 * low, 100 * high], "dashed")
    for name, iou in ious.items():
        right = [100 * float(np.mean(iou[part] >= 0.5)) for part in parts]
        axes.line(at, right, classes[name])
        for x, y, part in zip(at, right, parts, strict=True):
            axes.dot(x, y, 3, f"fill {classes[name]}", f"{y:.0f} % of {len(part)} queries")
    return axes.svg(
        "How often answers are right, by the detector's score",
        f"The detector's from {100 * np.mean(first[parts[0]] >= 0.5):.0f} % of its least certain tenth "
        f"to {100 * np.mean(first[parts[-1]] >= 0.5):.0f} % of its most certain one",
    )


def shares(used: Mapping[str, Doubles], kinds: Sequence[str], title: str, x_label: str) -> str:
    """Stacked bars of shares that make up a whole; the kinds have the classes `k0`, `k1`, ….

    Args:
        used: series name -> shares of the kinds.
        kinds: their names.
        title: of the picture.
        x_label: what the shares are of.
    """
    axes = _Axes((0, 100), (0, len(used)), height=_TOP + _BOTTOM + 38 * len(used))
    axes.axes(x_label, "")
    for row, (name, of_name) in zip(reversed(range(len(used))), used.items(), strict=True):
        axes.name(name, row + 0.64)
        left = 0.0
        for number, (kind, share) in enumerate(zip(kinds, 100 * of_name, strict=True)):
            axes.box((left, left + share), (row + 0.08, row + 0.54), f"k{number}", f"{kind}: {share:.0f} %")
            left += share
    said = "; ".join(
        f"{name}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in zip(kinds, of_name, strict=True))
        for name, of_name in used.items()
    )
    return axes.svg(title, said)
