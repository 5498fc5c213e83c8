"""The timeline of one running episode as an image, drawn without a display."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmr_env.rendering.ansi import SHOWN_MOVES, Scene, Span, clipped, fitting, times

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

Colour = tuple[int, int, int]

WIDTH, HEIGHT = 960, 540
"""Pixels of `render_rgb`; even, as video codecs ask."""

# Colours are those of Okabe and Ito (2008), which people with any colour vision can tell apart.
_INK: Colour = (32, 32, 32)
_GREY: Colour = (100, 100, 100)
_WHITE: Colour = (255, 255, 255)
_TRUTH: Colour = (0, 158, 115)
_CURRENT: Colour = (0, 114, 178)
_START: Colour = (230, 159, 0)
_PROPOSAL: Colour = (86, 180, 233)
_SALIENCY: Colour = (204, 121, 167)

_LEFT, _RIGHT = 120, 820
"""Pixels where the video starts and ends."""
_TOP, _BOTTOM = 108, 500
"""First and last pixel of the drawing over the time axis."""
_MOVES_TOP, _PROPOSALS_TOP, _SALIENCY_TOP = 175, 282, 432
_MOVE_PITCH = (_PROPOSALS_TOP - _MOVES_TOP - 9) // SHOWN_MOVES
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
    picture.moves()
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
            "drawing an episode needs Pillow and matplotlib "
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
        small=font("DejaVuSans", 12),
        normal=font("DejaVuSans", 14),
        title=font("DejaVuSans-Bold", 19),
        number=font("DejaVuSans-Bold", 32),
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
        """Query, video and progress; on the right the tIoU, its bar marked where the episode started."""
        scene, fonts = self._scene, self._fonts
        tiou, first = scene.tious[-1], scene.tious[0]
        gauge_left, gauge_right = _RIGHT - 26, WIDTH - _MARGIN
        width = gauge_left - 2 * _MARGIN
        for number, line in enumerate(_lines(f"“{scene.query}”", width, fonts.title.getlength, most=2)):
            self._text(_MARGIN, 28 + 24 * number, line, fonts.title, _INK)
        progress = f" · {scene.progress()}"
        vid = clipped(scene.vid, width - fonts.normal.getlength(progress), fonts.normal.getlength)
        self._text(_MARGIN, 82, vid + progress, fonts.normal, _GREY)

        self._text(gauge_left, 33, "tIoU", fonts.normal, _GREY)
        self._text(gauge_right, 30, f"{tiou:.2f}", fonts.number, _CURRENT, "rm")
        length = gauge_right - gauge_left
        self._draw.rectangle((gauge_left, 54, gauge_right, 61), _pale(_GREY, 0.2))
        if tiou > 0:
            self._draw.rectangle((gauge_left, 54, gauge_left + round(tiou * length), 61), _CURRENT)
        mark = gauge_left + round(first * length)
        self._draw.rectangle((mark - 1, 51, mark + 1, 64), _START)
        self._text(gauge_right, 82, f"at the start {first:.2f}", fonts.normal, _GREY, "rm")

    def guides(self) -> None:
        """Behind everything: where the ground truth and the current boundaries are."""
        for moment in self._scene.moments:
            self._bar(moment, _TOP, _BOTTOM, _pale(_TRUTH, 0.13))
        for boundary in self._scene.current:
            x = self._x(boundary)
            self._draw.line((x, _TOP, x, _BOTTOM), _pale(_CURRENT, 0.6))

    def spans(self) -> None:
        """Ground truth and current span, with their times."""
        scene = self._scene
        rows = (
            ("truth", scene.moments, scene.times(), _TRUTH),
            ("current", (scene.current,), times(scene.current), _CURRENT),
        )
        for number, (name, spans, said, colour) in enumerate(rows):
            middle = _TOP + 17 + 30 * number
            for span in spans:
                self._bar(span, middle - 10, middle + 9, colour)
            self._text(_MARGIN, middle, name, self._fonts.normal, _INK)
            self._text(_RIGHT + 10, middle, said, self._fonts.small, _INK)

    def moves(self) -> None:
        """The trail: the span at the start and after every step, with lines from boundary to boundary."""
        rows = self._scene.moves()
        middles = [_MOVES_TOP + _MOVE_PITCH // 2 + _MOVE_PITCH * number for number in range(len(rows))]
        self._text(_MARGIN, middles[0], "moves", self._fonts.normal, _INK)
        for end in (0, 1):
            ways = [(self._x(span[end]), middle) for (_, span, _), middle in zip(rows, middles, strict=True)]
            self._draw.line(ways, _pale(_INK, 0.5))
        for number, ((name, span, tiou), middle) in enumerate(zip(rows, middles, strict=True)):
            colour = _pale(_CURRENT, 0.4 + 0.6 * number / (len(rows) - 1)) if number else _START
            self._bar(span, middle - 3, middle + 3, colour)
            short = name.removeprefix("step ").replace("start", "0")
            self._text(_LEFT - 8, middle, short, self._fonts.small, _GREY, "rm")
            self._text(_RIGHT + 10, middle, f"tIoU {tiou:.2f}", self._fonts.small, _GREY)

    def proposals(self) -> None:
        """A thin bar for each proposal, the darker the higher its score; an outline marks the source."""
        scene, fonts = self._scene, self._fonts
        bottom = _BOTTOM if scene.saliency is None else _SALIENCY_TOP
        pitch = min((bottom - _PROPOSALS_TOP - 8) // len(scene.proposals), 22)
        half = pitch * 2 // 7
        self._text(_MARGIN, _PROPOSALS_TOP + pitch // 2, "proposals", fonts.normal, _INK)
        for number, (span, score) in enumerate(zip(scene.proposals, scene.scores, strict=True)):
            middle = _PROPOSALS_TOP + pitch // 2 + pitch * number
            is_source = number == scene.source
            self._bar(span, middle - half, middle + half, _pale(_PROPOSAL, 0.35 + 0.65 * score))
            colour = _CURRENT if is_source else _GREY
            self._text(_LEFT - 8, middle, str(number + 1), fonts.small, colour, "rm")
            self._text(_RIGHT + 10, middle, f"score {score:.2f}", fonts.small, colour)
            if is_source:
                self._bar(span, middle - half - 1, middle + half + 1, None, outline=_CURRENT)

    def saliency(self) -> None:
        """One column per clip, from the curve's lowest to its highest value."""
        shares = self._scene.saliency_shares()
        if not len(shares):
            return
        self._text(_MARGIN, (_SALIENCY_TOP + _BOTTOM) // 2, "saliency", self._fonts.normal, _INK)
        clip = self._scene.duration / len(shares)
        for number, share in enumerate(shares.tolist()):
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
        share = min(max(seconds / self._scene.duration, 0), 1)
        return _LEFT + round(share * (_RIGHT - _LEFT))

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
        end = fitting(text, width, measure)
        if end < len(text):
            end = text.rfind(" ", 0, end + 1) if " " in text[1 : end + 1] else max(end, 1)
        lines.append(text[:end])
        text = text[end:].lstrip()
    return [*lines, clipped(text, width, measure)] if text else lines
