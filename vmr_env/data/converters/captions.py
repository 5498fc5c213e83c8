"""Videos with lists of times and sentences: ActivityNet Captions and 2D-TAN, TimeLens, TACoS."""

from collections.abc import Iterator
from typing import Any

from vmr_env.data.converters.source import Source, first_of, paired, sentence, video_id
from vmr_env.data.rows import Row, is_list, is_number
from vmr_env.errors import Problem, shorten


def activitynet(source: Source) -> Iterator[Row]:
    """`{vid: {"duration": s, "timestamps": [[start, end], …], "sentences": […]}}`, all times in seconds.

    A query's qid is `<vid>_<position in its video>`. TimeLens calls the lists `spans` and `queries`; a span
    may be a list of several.
    """
    number = 0
    for vid, video in source.videos():
        times = first_of(video, ("timestamps", "spans"))
        for position, (moment, text) in enumerate(
            paired(source, vid, times, first_of(video, ("sentences", "queries")))
        ):
            number += 1
            several = is_list(moment) and len(moment) > 0 and is_list(moment[0])
            values = {
                "qid": f"{vid}_{position}",
                "vid": vid,
                "query": sentence(text),
                "duration": video.get("duration", source.durations.get(vid)),
                "relevant_windows": moment if several else [moment],
            }
            yield source.row(number, values, vid)


def tacos(source: Source) -> Iterator[Row]:
    """`{vid: {"fps": f, "num_frames": n, "timestamps": [[first, last], …], "sentences": […]}}`, in frames.

    Seconds are frames / fps. The suffix of a video's file is left out of its id.
    """
    number = 0
    for file, video in source.videos():
        vid, fps, frames = video_id(file), video.get("fps"), video.get("num_frames")
        if not is_number(fps) or not is_number(frames) or not fps > 0:
            message = (
                f"has fps {shorten(fps)} and num_frames {shorten(frames)}; expected two positive numbers"
            )
            source.problems.append(Problem(source.name, None, file, message))
            continue
        moments = paired(source, file, video.get("timestamps"), video.get("sentences"))
        for position, (moment, text) in enumerate(moments):
            number += 1
            values = {
                "qid": f"{vid}_{position}",
                "vid": vid,
                "query": sentence(text),
                "duration": frames / fps,
                "relevant_windows": [_seconds(moment, fps)],
            }
            yield source.row(number, values, file)


def _seconds(moment: Any, fps: float) -> Any:
    """A moment in frames as seconds; what is no list of numbers stays, to be refused as it stands."""
    if is_list(moment) and all(map(is_number, moment)):
        return [frame / fps for frame in moment]
    return moment
