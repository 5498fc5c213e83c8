"""Pictures of one running episode: text for terminals, and an RGB image drawn without a display."""

import bisect
import math
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmr_env.cache import DecoderStateCache
from vmr_env.episodes import Episodes
from vmr_env.spans import best_tiou

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

Span = tuple[float, float]
Colour = tuple[int, int, int]

SHOWN_PROPOSALS = 10
"""Proposals that are drawn, at most."""

TEXT_COLUMNS = 100
"""Widest line of `render_ansi`, in terminal columns."""

WIDTH, HEIGHT = 800, 450
"""Pixels of `render_rgb`; even, as video codecs ask."""


@dataclass(frozen=True)
class Scene:
    """All that is drawn. Times are in seconds.

    Attributes:
        query: the sentence.
        vid: name of the video.
        duration: of the video.
        moments: ground truth, one or more.
        proposals: the detector's first `SHOWN_PROPOSALS`, best first.
        scores: of these proposals.
        source: number, from 0, of the proposal that the current span came from, shown or not.
        start: span at the start of the episode.
        current: current span.
        start_tiou: tIoU of the start span.
        tiou: tIoU of the current span.
        step: steps taken.
        saliency: one value per clip, on the detector's own scale, or None.
    """

    query: str
    vid: str
    duration: float
    moments: tuple[Span, ...]
    proposals: tuple[Span, ...]
    scores: tuple[float, ...]
    source: int
    start: Span
    current: Span
    start_tiou: float
    tiou: float
    step: int
    saliency: tuple[float, ...] | None

    @classmethod
    def of(cls, episode: Episodes, cache: DecoderStateCache) -> "Scene":
        """The scene of the first of some running episodes."""
        row = int(episode.samples[0])
        sample = cache.sample(row)
        shown = min(int(cache.counts[row]), episode.proposals.shape[1], SHOWN_PROPOSALS)

        def seconds(spans: NDArray[np.float32]) -> tuple[Span, ...]:
            return tuple((start * sample.duration, end * sample.duration) for start, end in spans.tolist())

        return cls(
            query=_one_line(sample.query),
            vid=_one_line(sample.vid),
            duration=sample.duration,
            moments=tuple((start, end) for start, end in sample.moments.tolist()),
            proposals=seconds(episode.proposals[0, :shown]),
            scores=tuple(cache.scores[row, :shown].tolist()),
            source=int(episode.sources[0]),
            start=seconds(episode.start_spans[:1])[0],
            current=seconds(episode.spans[:1])[0],
            start_tiou=float(best_tiou(episode.start_spans[:1], episode.moments[:1])[0]),
            tiou=float(episode.tiou[0]),
            step=int(episode.steps[0]),
            saliency=None if cache.saliency is None else tuple(cache.saliency[row].tolist()),
        )


def _one_line(text: str) -> str:
    """Text without line breaks and without the characters that would steer a terminal."""
    return " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())


def _times(span: Span) -> str:
    return f"{span[0]:.1f}–{span[1]:.1f} s"


def _moment_times(scene: Scene) -> str:
    first, *others = scene.moments
    return f"{_times(first)} +{len(others)}" if others else _times(first)


def _progress(scene: Scene) -> str:
    return f"{scene.duration:.1f} s · step {scene.step} · from proposal {scene.source + 1}"


# Text.

_BAR_COLUMNS = 60


def render_ansi(scene: Scene) -> str:
    """The scene as lines of at most `TEXT_COLUMNS` columns, without a line break at the end."""
    rows = (
        ("truth", scene.moments, _moment_times(scene)),
        ("start", (scene.start,), f"{_times(scene.start)} · tIoU {scene.start_tiou:.2f}"),
        ("current", (scene.current,), f"{_times(scene.current)} · tIoU {scene.tiou:.2f}"),
    )
    progress = _progress(scene)
    vid = _clipped(scene.vid, TEXT_COLUMNS - len(progress) - 3, _columns)
    return "\n".join(
        [
            f"“{_clipped(scene.query, TEXT_COLUMNS - 2, _columns)}”",
            f"{vid} · {progress}",
            *(f"{name:<8}{_text_bar(spans, scene.duration)} {times}" for name, spans, times in rows),
        ]
    )


def _text_bar(spans: tuple[Span, ...], duration: float) -> str:
    """Spans on a line of `_BAR_COLUMNS` columns; every span fills one at least."""
    cells = ["·"] * _BAR_COLUMNS
    for start, end in spans:
        low, high = (round(time / duration * _BAR_COLUMNS) for time in (start, end))
        low = min(low, _BAR_COLUMNS - 1)
        high = max(high, low + 1)
        cells[low:high] = "█" * (high - low)
    return "".join(cells)


def _columns(text: str) -> int:
    """Columns that a text takes in a terminal."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _clipped(text: str, width: float, measure: Callable[[str], float]) -> str:
    """The text, or as much of its start as fits into the width with an ellipsis after it."""
    if _fitting(text, width, measure) == len(text):
        return text
    return text[: _fitting(text, width - measure("…"), measure)].rstrip() + "…"


def _fitting(text: str, width: float, measure: Callable[[str], float]) -> int:
    """How many characters of the text's start fit into the width."""
    # A longer text never fits, so of a very long one only the start is measured.
    lengths = range(1, min(len(text), WIDTH) + 1)
    return bisect.bisect_right(lengths, width, key=lambda length: measure(text[:length]))


# Picture. Colours are those of Okabe and Ito (2008), which people with any colour vision can tell apart.

_INK: Colour = (32, 32, 32)
_GREY: Colour = (110, 110, 110)
_WHITE: Colour = (255, 255, 255)
_TRUTH: Colour = (0, 158, 115)
_CURRENT: Colour = (0, 114, 178)
_START: Colour = (230, 159, 0)
_PROPOSAL: Colour = (86, 180, 233)
_SALIENCY: Colour = (204, 121, 167)

_LEFT, _RIGHT = 112, 674
"""Pixels where the video starts and ends."""
_TOP, _BOTTOM = 108, 408
"""Pixels where what stands over the time axis starts and ends."""
_PROPOSALS_TOP, _SALIENCY_TOP = 205, 350
_MARGIN = 20


def render_rgb(scene: Scene) -> NDArray[np.uint8]:
    """The scene as an image: uint8 (HEIGHT, WIDTH, 3).

    Queries are set in DejaVu Sans, which has no Chinese, Japanese or Korean: such characters become boxes.

    Raises:
        ModuleNotFoundError: Pillow or matplotlib, which brings the font, is not installed.
    """
    with _bench_extra():
        from PIL import Image, ImageDraw

        fonts = _fonts()
    image = Image.new("RGB", (WIDTH, HEIGHT), _WHITE)
    picture = _Picture(ImageDraw.Draw(image), fonts, scene)
    picture.header()
    picture.guides()
    picture.spans()
    picture.proposals()
    picture.saliency()
    picture.axis()
    return np.array(image)


@contextmanager
def _bench_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "render_mode='rgb_array' needs Pillow and matplotlib "
            f"({error.name} is not installed): pip install 'vmr-env[bench]'",
            name=error.name,
        ) from error


@dataclass(frozen=True)
class _Fonts:
    small: "FreeTypeFont"
    normal: "FreeTypeFont"
    title: "FreeTypeFont"
    number: "FreeTypeFont"


@lru_cache(maxsize=1)
def _fonts() -> _Fonts:
    """Fonts that come with matplotlib, so that pictures are the same everywhere."""
    import matplotlib
    from PIL import ImageFont

    folder = f"{matplotlib.get_data_path()}/fonts/ttf"

    def font(name: str, size: int) -> "FreeTypeFont":
        # Not every build of Pillow has the other layout engine.
        return ImageFont.truetype(f"{folder}/{name}.ttf", size, layout_engine=ImageFont.Layout.BASIC)

    return _Fonts(
        small=font("DejaVuSans", 11),
        normal=font("DejaVuSans", 13),
        title=font("DejaVuSans-Bold", 17),
        number=font("DejaVuSans-Bold", 30),
    )


def _pale(colour: Colour, share: float) -> Colour:
    """The colour on white, opaque by that share."""
    red, green, blue = (round(255 + (value - 255) * share) for value in colour)
    return red, green, blue


class _Picture:
    """Draws the parts of a scene, each in its place."""

    def __init__(self, draw: "ImageDraw", fonts: _Fonts, scene: Scene) -> None:
        self._draw, self._fonts, self._scene = draw, fonts, scene

    def header(self) -> None:
        """Query, video and progress; on the right the tIoU."""
        scene, fonts = self._scene, self._fonts
        gauge_left, gauge_right = _RIGHT - 26, WIDTH - _MARGIN
        width = gauge_left - 2 * _MARGIN
        for number, line in enumerate(_lines(f"“{scene.query}”", width, fonts.title.getlength, most=2)):
            self._text(_MARGIN, 28 + 23 * number, line, fonts.title, _INK)
        progress = f" · {_progress(scene)}"
        vid = _clipped(scene.vid, width - fonts.normal.getlength(progress), fonts.normal.getlength)
        self._text(_MARGIN, 77, vid + progress, fonts.normal, _GREY)

        self._text(gauge_left, 33, "tIoU", fonts.normal, _GREY)
        self._text(gauge_right, 30, f"{scene.tiou:.2f}", fonts.number, _CURRENT, "rm")
        length = gauge_right - gauge_left
        self._draw.rectangle((gauge_left, 52, gauge_right, 59), _pale(_GREY, 0.2))
        if scene.tiou > 0:
            self._draw.rectangle((gauge_left, 52, gauge_left + round(scene.tiou * length), 59), _CURRENT)
        mark = gauge_left + round(scene.start_tiou * length)
        self._draw.rectangle((mark - 1, 49, mark + 1, 62), _START)
        self._text(gauge_right, 77, f"at the start {scene.start_tiou:.2f}", fonts.normal, _GREY, "rm")

    def guides(self) -> None:
        """Behind everything: where the ground truth and the current boundaries are."""
        for moment in self._scene.moments:
            self._bar(moment, _TOP, _BOTTOM, _pale(_TRUTH, 0.13))
        for boundary in self._scene.current:
            x = self._x(boundary)
            self._draw.line((x, _TOP, x, _BOTTOM), _pale(_CURRENT, 0.6))

    def spans(self) -> None:
        """Ground truth, current span and start span, with their times."""
        scene, font = self._scene, self._fonts.normal
        rows = (
            ("truth", scene.moments, _moment_times(scene), _TRUTH, 20),
            ("current", (scene.current,), _times(scene.current), _CURRENT, 20),
            ("start", (scene.start,), _times(scene.start), _START, 10),
        )
        for number, (name, spans, times, colour, height) in enumerate(rows):
            middle = _TOP + 16 + 29 * number
            for span in spans:
                self._bar(span, middle - height // 2, middle + height // 2 - 1, colour)
            self._text(_MARGIN, middle, name, font, _INK)
            self._text(_RIGHT + 10, middle, times, self._fonts.small, _INK)

    def proposals(self) -> None:
        """A thin bar for each proposal, the darker the higher its score; an outline marks the source."""
        scene, fonts = self._scene, self._fonts
        bottom = _BOTTOM if scene.saliency is None else _SALIENCY_TOP
        pitch = min((bottom - _PROPOSALS_TOP - 6) // len(scene.proposals), 22)
        half = pitch * 2 // 7
        self._text(_MARGIN, _PROPOSALS_TOP + pitch // 2, "proposals", fonts.normal, _INK)
        for number, (span, score) in enumerate(zip(scene.proposals, scene.scores, strict=True)):
            middle = _PROPOSALS_TOP + pitch // 2 + pitch * number
            is_source = number == scene.source
            self._bar(span, middle - half, middle + half, _pale(_PROPOSAL, 0.3 + 0.7 * score))
            colour = _CURRENT if is_source else _GREY
            self._text(_LEFT - 8, middle, str(number + 1), fonts.small, colour, "rm")
            self._text(_RIGHT + 10, middle, f"{score:.2f}", fonts.small, colour)
            if is_source:
                self._bar(span, middle - half - 1, middle + half + 1, None, outline=_CURRENT)

    def saliency(self) -> None:
        """One column per clip, from the curve's lowest to its highest value."""
        values = self._scene.saliency
        if values is None:
            return
        self._text(_MARGIN, (_SALIENCY_TOP + _BOTTOM) // 2, "saliency", self._fonts.normal, _INK)
        low, high = min(values), max(values)
        clip = self._scene.duration / len(values)
        for number, value in enumerate(values):
            share = (value - low) / (high - low) if high > low else 0.5
            top = _BOTTOM - 2 - round(share * (_BOTTOM - 2 - _SALIENCY_TOP))
            self._bar((number * clip, (number + 1) * clip), top, _BOTTOM, _pale(_SALIENCY, 0.85))

    def axis(self) -> None:
        """Time in seconds."""
        duration, font = self._scene.duration, self._fonts.small
        self._draw.line((_LEFT, _BOTTOM, _RIGHT, _BOTTOM), _INK)
        step = _tick_step(duration)
        for number in range(int(duration / step) + 1):
            x = self._x(number * step)
            self._draw.line((x, _BOTTOM, x, _BOTTOM + 5), _INK)
            self._text(x, _BOTTOM + 15, f"{number * step:g}", font, _INK, "mm")
        self._text(_RIGHT + 10, _BOTTOM + 15, "seconds", font, _INK)

    def _x(self, seconds: float) -> int:
        return _LEFT + round(seconds / self._scene.duration * (_RIGHT - _LEFT))

    def _bar(
        self, span: Span, top: int, bottom: int, fill: Colour | None, outline: Colour | None = None
    ) -> None:
        left, right = self._x(span[0]), self._x(span[1])
        self._draw.rectangle((left, top, max(right, left + 1), bottom), fill, outline)

    def _text(
        self, x: int, y: int, text: str, font: "FreeTypeFont", colour: Colour, anchor: str = "lm"
    ) -> None:
        self._draw.text((x, y), text, colour, font, anchor)


def _tick_step(duration: float) -> float:
    """The finest of 1, 2 and 5 times a power of ten that gives at most 10 steps."""
    power = 10.0 ** math.floor(math.log10(duration / 10))
    return next(power * factor for factor in (1, 2, 5, 10) if duration / (power * factor) <= 10)


def _lines(text: str, width: float, measure: Callable[[str], float], most: int) -> list[str]:
    """The text broken between words, or inside a word that fills a line; the last line may be clipped."""
    lines: list[str] = []
    while text and len(lines) < most - 1:
        end = _fitting(text, width, measure)
        if end < len(text):
            end = text.rfind(" ", 0, end + 1) if " " in text[1 : end + 1] else max(end, 1)
        lines.append(text[:end])
        text = text[end:].lstrip()
    return [*lines, _clipped(text, width, measure)] if text else lines
