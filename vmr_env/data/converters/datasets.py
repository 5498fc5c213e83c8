"""Data sets with a layout of their own: Charades-STA, DiDeMo, Ego4D's language queries, NExT-GQA."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vmr_env.data.annotations import charades_line
from vmr_env.data.converters.source import Source, numbered, sentence, video_id
from vmr_env.data.rows import Row, is_list, is_number
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import read_lines


def charades(source: Source) -> Iterator[Row]:
    """Charades-STA's text, `VIDEO start end##sentence`, with the durations of videos from another file.

    Qids count the lines from 0, lines that cannot be used included.
    """
    if not source.durations:
        message = "is missing; expected the lengths of videos, which this format does not tell"
        raise DataError(Problem("durations", None, None, f"{message} (durations, or --durations)"))
    for number, line in numbered(read_lines(source.path)):
        values = charades_line(source.name, number, line, source.durations, source.problems)
        if values is not None:
            yield source.row(number, {"qid": number - 1, **values, "query": sentence(values["query"])})


SEGMENT_SECONDS = 5.0
"""Length of DiDeMo's segments."""


def didemo(source: Source) -> Iterator[Row]:
    """`[{"annotation_id", "video", "description", "num_segments", "times": [[first, last], …]}, …]`.

    Times are segments of five seconds, both ends included: [4, 4] is 20 to 25 s. Of several raters' times the
    one counts that agrees best with all of them (see `medoid`). A video lasts as long as its segments, or as
    `durations` say; its last segment then ends with it.
    """
    for number, entry in _entries(source):
        vid, times = video_id(entry.get("video")), entry.get("times")
        duration = source.durations.get(vid)
        segments = entry.get("num_segments", 6)
        if duration is None and is_number(segments):
            duration = segments * SEGMENT_SECONDS
        moment: Any = times
        if is_list(times) and times and all(map(_is_segments, times)):
            first, last = medoid([(int(first), int(last)) for first, last in times])
            end = (last + 1) * SEGMENT_SECONDS
            if vid in source.durations and first * SEGMENT_SECONDS < source.durations[vid] < end:
                end = source.durations[vid]
                source.counts["moments whose last segment was cut to its video"] += 1
            moment = [[first * SEGMENT_SECONDS, end]]
            if len({tuple(time) for time in times}) > 1:
                source.counts[
                    "queries whose raters differ, of which the time that agrees best was taken"
                ] += 1
        values = {
            "qid": entry.get("annotation_id"),
            "vid": vid,
            "query": sentence(entry.get("description")),
            "duration": duration,
            "relevant_windows": moment,
        }
        yield source.row(number, values)


def _is_segments(time: Any) -> bool:
    return is_list(time) and len(time) == 2 and all(isinstance(segment, int) for segment in time)


def medoid(times: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The time of highest mean tIoU with all times, itself included; the first of those on a tie.

    Args:
        times: first and last segment, both included, of each rater.
    """

    def agreement(time: tuple[int, int]) -> float:
        return sum(_tiou(time, other) for other in times)

    return max(times, key=agreement)


def _tiou(a: tuple[int, int], b: tuple[int, int]) -> float:
    """tIoU of two times in whole segments, both ends included."""
    common = max(0, min(a[1], b[1]) - max(a[0], b[0]) + 1)
    union = (a[1] - a[0] + 1) + (b[1] - b[0] + 1) - common
    return common / union if union > 0 else 0.0


def _entries(source: Source) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Objects of a list, numbered; other entries are problems."""
    document = source.document()
    if not isinstance(document, list):
        raise source.fail("is an object; expected a list of objects")
    for number, entry in document:
        if isinstance(entry, Mapping):
            yield number, entry
        else:
            source.problems.append(
                Problem(source.name, number, None, f"is {shorten(entry)}; expected an object")
            )


def ego4d(source: Source) -> Iterator[Row]:
    """Ego4D's natural-language queries, `{"videos": [{"clips": [{"annotations": […]}]}]}`.

    The annotations hold lists `language_queries`. A clip is a video, and lasts from its `video_start_sec` to
    its `video_end_sec`; a query's qid is `<annotation_uid>_<position>`. Queries without a sentence, of which
    there are some, are left out and counted.
    """
    document = source.document()
    videos = document.get("videos") if isinstance(document, dict) else None
    if not is_list(videos):
        raise source.fail('has no list "videos"; expected the language queries of Ego4D')
    number = 0
    for clip in _inside(_inside(videos, "videos", source), "clips", source, key="clips"):
        duration = _difference(clip.get("video_start_sec"), clip.get("video_end_sec"))
        for annotation in _inside([clip], "annotations", source, key="annotations"):
            for position, query in enumerate(
                _inside([annotation], "language_queries", source, key="language_queries")
            ):
                if not query.get("query"):
                    source.counts["queries without a sentence that were left out"] += 1
                    continue
                number += 1
                values = {
                    "qid": f"{annotation.get('annotation_uid')}_{position}",
                    "vid": clip.get("clip_uid"),
                    "query": sentence(query["query"]),
                    "duration": duration,
                    "relevant_windows": [[query.get("clip_start_sec"), query.get("clip_end_sec")]],
                }
                yield source.row(number, values, f"clip {clip.get('clip_uid')}")


def _inside(parents: Any, name: str, source: Source, key: str | None = None) -> Iterator[Mapping[str, Any]]:
    """The objects of a list, or those of a list in each of some objects; anything else is a problem."""
    for parent in parents:
        children = [parent] if key is None else parent.get(key, [])
        for child in children if is_list(children) else [children]:
            if isinstance(child, Mapping):
                yield child
            else:
                message = f"holds {shorten(child)}; expected objects"
                source.problems.append(Problem(source.name, None, name, message))


def _difference(start: Any, end: Any) -> Any:
    """Seconds from start to end, where both are numbers."""
    return end - start if is_number(start) and is_number(end) else None


def nextgqa(source: Source) -> Iterator[Row]:
    """NExT-GQA's grounding, `{vid: {"duration": s, "location": {qid: [[start, end], …]}}}`, times in seconds.

    The questions are in another file, a table with the columns `video_id`, `qid` and `question`. A query's
    qid is `<vid>_<qid>`.
    """
    if source.questions is None:
        message = "is missing; expected the table of questions (questions, or --questions)"
        raise DataError(Problem("questions", None, None, message))
    lines = csv.DictReader(read_lines(source.questions), strict=True)
    columns = {"video_id", "qid", "question"}
    if not columns <= set(lines.fieldnames or ()):
        message = (
            f"has the columns {shorten(list(lines.fieldnames or ()))}; expected {', '.join(sorted(columns))}"
        )
        raise DataError(Problem(str(source.questions), 1, None, message))
    questions = {(line["video_id"], line["qid"]): line["question"] for line in lines}
    number = 0
    for vid, video in source.videos():
        location = video.get("location")
        if not isinstance(location, Mapping):
            message = f"has location {shorten(location)}; expected an object with an entry for each question"
            source.problems.append(Problem(source.name, None, vid, message))
            continue
        for qid, moments in location.items():
            number += 1
            values = {
                "qid": f"{vid}_{qid}",
                "vid": vid,
                "query": sentence(questions.get((vid, qid))),
                "duration": video.get("duration"),
                "relevant_windows": moments,
            }
            yield source.row(number, values, vid)
