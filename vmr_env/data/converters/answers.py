"""Language models' answers: free text to spans.

Understood are two times in a sentence (`from 12.3 to 15 seconds`, `12.3-15`, `00:12 - 00:15`, `[3, 5]`,
`between 3 and 5`, `start: 3, end: 5`, `1 min 5 s to 2 min`), several such spans, per cent, times on a scale
of 0 to 99 or 100, JSON, and `<answer>…</answer>` around any of them; and the statement that the event does
not occur.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from vmr_env.data.rows import is_number

_NUMBER = r"\d+(?:\.\d+)?"
_CLOCK = r"(?:\d{1,2}:)?\d{1,3}:\d{2}(?:\.\d+)?"
_SPELT = (
    r"(?:\d+\s*h(?:ours?|rs?)?\s*)?\d+\s*m(?:in(?:ute)?s?)?(?![a-z])"
    rf"(?:\s*(?:and\s*)?{_NUMBER}\s*s(?:ec(?:ond)?s?)?\b)?"
)
_TIME = rf"(?:{_CLOCK}|{_SPELT}|{_NUMBER})"
_UNIT = r"(?:\s*(?:%|per\s?cent\b|s(?:ec(?:ond)?s?)?\b))?"
_OPEN = r"[\"'(\[<]*\s*(?:(?:about|around|approximately|roughly|second|timestamp|time|t\s*=)\s*)?"
_CLOSE = r"[\"')\]>]*"
_FIRST = rf"(?<![\w.:])(?P<start>{_TIME})(?P<start_unit>{_UNIT}){_CLOSE}"
_LAST = rf"{_OPEN}(?P<end>{_TIME})(?P<end_unit>{_UNIT})(?![\w:])"
_PAIRS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_FIRST}\s*(?:-|–|—|~|\bto\b|\buntil\b|\btill\b|\bthrough\b)\s*{_LAST}",
        rf"\bbetween\s+{_OPEN}{_FIRST}\s+and\s+{_LAST}",
        rf"[\[(]\s*[\"']?{_FIRST}\s*,\s*{_LAST}[\"']?\s*[\])]",
        rf"\bstart(?:s|ing|_?time)?\b\W*(?:at|time|is|from|of)?\W*{_FIRST}\D{{0,40}}?"
        rf"\bend(?:s|ing|_?time)?\b\W*(?:at|time|is|of)?\W*{_LAST}",
    )
)
_SENTENCES = re.compile(r"[.!?;](?:\s+|$)|\n|\bbut\b|\bhowever\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"(?:\b(?:not|never|no|cannot|nothing)\b|n['’]t\b).*?"
    r"\b(?:occur|happen|appear|exist|present|found|find|visible|shown?|contain|seen?|depict|take place|match|"
    r"such|relevant|event|moment|answer|applicable|mention|locate)"
    r"|^\W*(?:none|null|n/?a|no|unanswerable|\[\s*\])\W*$"
    r"|[\"']?\w+[\"']?\s*:\s*\[\s*\]",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a text says.

    Attributes:
        spans: [start, end] in seconds, in the order of the text.
        denied: whether it says that the event does not occur; then there are no spans.
        trouble: what was not understood, None where all was.
    """

    spans: tuple[tuple[float, float], ...] = ()
    denied: bool = False
    trouble: str | None = None


def read_answer(text: str, duration: float | None = None, scale: float | None = None) -> Answer:
    """Answer in a language model's text.

    Args:
        text: the answer. Of `<answer>…</answer>` the last one counts, and of anything else what stands
            outside of `<think>…</think>`.
        duration: length of the video in seconds, which per cent and scales need.
        scale: the number for the end of the video where bare numbers are no seconds, such as 100 or 99.

    Returns:
        Spans, the statement that there are none, or what was not understood. Spans whose end lies before
        their start are not understood; others of the same text count.
    """
    spans: list[tuple[float, float]] = []
    denied, trouble = False, None
    for sentence in _SENTENCES.split(_said(text)):
        if _DENIAL.search(sentence):
            denied = True
            continue
        for match in _matches(sentence):
            start, end = (_seconds(match, side, duration, scale) for side in ("start", "end"))
            if start is None or end is None:
                trouble = f"{match[0]!r} needs the duration of its video"
            elif end < start:
                trouble = f"{match[0]!r} is reversed"
            else:
                spans.append((start, end))
    if not spans and not denied and trouble is None:
        trouble = "names no two times"
    return Answer(tuple(spans), denied and not spans, None if spans or denied else trouble)


def _said(text: str) -> str:
    """The part of a text that is the answer."""
    answers = re.findall(r"<answer>(.*?)(?:</answer>|$)", text, re.DOTALL | re.IGNORECASE)
    if answers:
        return str(answers[-1])
    return re.sub(r"<think>.*?(?:</think>|$)", " ", text, flags=re.DOTALL | re.IGNORECASE)


def _matches(sentence: str) -> Iterator[re.Match[str]]:
    """Pairs of times in their order; where two ways of reading overlap, the one that begins first counts."""
    found = [match for pattern in _PAIRS for match in pattern.finditer(sentence)]
    reached = 0
    for match in sorted(found, key=lambda match: (match.start("start"), -match.end("end"))):
        if match.start("start") >= reached:
            reached = match.end("end")
            yield match


def _seconds(match: re.Match[str], side: str, duration: float | None, scale: float | None) -> float | None:
    """One time of a pair in seconds; None where it needs a duration that is not known."""
    text, units = match[side], match["start_unit"] + match["end_unit"]
    if ":" in text or not re.fullmatch(_NUMBER, text):
        return clock_seconds(text)
    value = float(text)
    if "%" in units or "cent" in units.lower():
        scale = 100.0
    elif units.strip() or scale is None:
        return value
    if not is_number(duration):
        return None
    assert duration is not None
    return value * duration / scale


def clock_seconds(text: str) -> float:
    """Seconds of a time like 1:02:03.5, 02:03, or 1 min 5 s."""
    seconds = 0.0
    if ":" in text:
        for part in text.split(":"):
            seconds = 60 * seconds + float(part)
        return seconds
    for number, unit in re.findall(rf"({_NUMBER})\s*([hms])", text.lower()):
        seconds += float(number) * {"h": 3600, "m": 60, "s": 1}[unit]
    return seconds
