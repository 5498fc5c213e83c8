"""Predictions of other shapes, and language models' answers, as rows of a submission file."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_env.data.annotations import Annotation
from vmr_env.data.converters.answers import read_answer
from vmr_env.data.converters.records import FIELDS
from vmr_env.data.converters.source import Source, first_of, sentence, video_id
from vmr_env.data.rows import Row, is_list, is_number
from vmr_env.errors import Problem, shorten

WINDOWS = (
    *("pred_relevant_windows", "pred_windows", "predicted_windows", "pred_spans", "windows", "predictions"),
    *("prediction", "pred", "timestamps", "timestamp", "spans", "span", "segments", "moments"),
)
TEXTS = ("answer", "response", "output", "prediction", "pred", "completion", "text", "model_output")
CURVES = ("pred_scores", "scores", "dense_scores", "frame_scores", "clip_scores", "pred_saliency_scores")

MISS = [0.0, 0.0, 0.0]
"""Placeholder for a missing answer: a window without length, of score 0. It overlaps nothing, so it is a miss
under every metric, and its row stays.
"""

MOST_WINDOWS = 10
"""Windows kept of a curve of scores."""


def windows(source: Source) -> Iterator[Row]:
    """Windows with or without scores: `[[start, end, score], …]`, `[[start, end], …]`, or one `[start, end]`.

    An object for each query, or one object of qids. Windows without scores get some by their rank, from 1
    downwards in equal steps; a row without windows is a miss. Rows without a qid, as lighthouse's `predict`
    gives them, are found by their sentence. `pred_exist_score` and `pred_saliency_scores` are kept.
    """
    for number, record in _records(source):
        row = _identified(source, number, record)
        row["pred_relevant_windows"] = _scored(source, first_of(record, WINDOWS))
        for name in ("pred_saliency_scores", "pred_exist_score"):
            if record.get(name) is not None:
                row[name] = record[name]
        yield source.row(number, row)


def answers(source: Source, scale: float | None = None) -> Iterator[Row]:
    """Language models' free text; see `converters.answers`. No answer, and what is not understood, is a miss.

    Args:
        source: rows with a text, and their own `scale` where they have one.
        scale: the number for the end of the video where bare numbers are no seconds.
    """
    for number, record in _records(source):
        row = _identified(source, number, record)
        truth = source.truth.get(str(row.get("qid")))
        duration = first_of(record, FIELDS["duration"]) if truth is None else truth.duration
        text = first_of(record, TEXTS)
        answer = read_answer("" if text is None else str(text), duration, record.get("scale", scale))
        if answer.trouble is not None:
            message = f"is {shorten(text)}: {answer.trouble}"
            source.problems.append(Problem(source.name, number, "answer", message, "warning"))
        denied = "that say that it does not occur" if answer.denied else "that were not understood"
        source.counts["answers " + ("that were understood" if answer.spans else denied)] += 1
        row["pred_relevant_windows"] = _scored(source, [list(span) for span in answer.spans])
        yield source.row(number, row)


def dense(source: Source) -> Iterator[Row]:
    """One score for each clip, (T,): windows from it, and the scores themselves as the saliency curve.

    At each of nine levels between the lowest and the highest score, runs of clips that reach it are windows.
    A window's score is the mean inside of it less the mean outside of it, brought to [0, 1] by the curve's
    range. Clips share the video's duration equally, which the annotations tell or the row.
    """
    for number, record in _records(source):
        row = _identified(source, number, record)
        truth = source.truth.get(str(row.get("qid")))
        duration = first_of(record, FIELDS["duration"]) if truth is None else truth.duration
        curve = first_of(record, CURVES)
        if not (is_list(curve) and curve and all(map(is_number, curve)) and np.isfinite(curve).all()):
            message = f"is {shorten(curve)}; expected one finite score for each clip"
            source.problems.append(Problem(source.name, number, "scores", message))
            continue
        if not is_number(duration):
            message = (
                f"is {shorten(duration)}; expected the video's length in seconds, here or in annotations"
            )
            source.problems.append(Problem(source.name, number, "duration", message))
            continue
        values = np.array(curve, np.float64)
        row["pred_relevant_windows"] = windows_of_curve(values, float(duration) / len(values)).tolist()
        row["pred_saliency_scores"] = list(curve)
        yield source.row(number, row)


def windows_of_curve(curve: NDArray[np.float64], clip_seconds: float) -> NDArray[np.float64]:
    """The windows (K, 3) of a curve of scores (T,), best first; see `dense`."""
    low, high = float(curve.min()), float(curve.max())
    if high == low:
        return np.array([[0.0, len(curve) * clip_seconds, 0.5]])
    runs = set()
    for level in np.linspace(low, high, 11)[1:-1]:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], curve >= level, [False]]).astype(int)))
        runs |= set(list(pairwise(edges.tolist()))[::2])
    total = curve.sum()
    found = []
    for start, end in sorted(runs):
        inside = curve[start:end].mean()
        rest = len(curve) - (end - start)
        outside = (total - curve[start:end].sum()) / rest if rest else low
        found.append([start * clip_seconds, end * clip_seconds, (inside - outside) / (high - low)])
    best = np.array(sorted(found, key=lambda window: -window[2])[:MOST_WINDOWS])
    best[:, 2] = best[:, 2].clip(0, 1)
    return best


def _records(source: Source) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Numbered objects: of a list, of JSON lines, or of an object whose keys are qids."""
    document = source.document()
    if isinstance(document, dict) and not set(document) & {*FIELDS["qid"], *WINDOWS, *TEXTS}:
        entries = ((qid, value) for qid, value in document.items())
        document = [
            (number, {"qid": qid, **value} if isinstance(value, Mapping) else {"qid": qid, "pred": value})
            for number, (qid, value) in enumerate(entries, start=1)
        ]
    elif isinstance(document, dict):
        document = [(1, document)]
    for number, record in document:
        if isinstance(record, Mapping):
            yield number, record
        else:
            message = f"is {shorten(record)}; expected an object"
            source.problems.append(Problem(source.name, number, None, message))


def _identified(source: Source, number: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """Qid, vid and sentence of a record, completed from the annotations."""
    qid, vid, text = (first_of(record, FIELDS[field]) for field in ("qid", "vid", "query"))
    vid, text = video_id(vid), sentence(text)
    truth = _truth(source, qid, vid, text)
    if truth is not None:
        return {"qid": truth.qid, "vid": vid or truth.vid, "query": text or truth.query}
    if source.truth:
        message = f"is {shorten(qid if qid is not None else text)}; expected one of the annotated queries"
        source.problems.append(Problem(source.name, number, "qid", message))
    values = {"qid": qid, "vid": vid, "query": text}
    return {field: value for field, value in values.items() if value is not None}


def _truth(source: Source, qid: Any, vid: Any, text: Any) -> Annotation | None:
    """The annotation of a record: by qid, by video and position, or by a sentence that only one has."""
    for name in (str(qid), f"{vid}_{qid}"):
        if qid is not None and name in source.truth:
            return source.truth[name]
    if qid is not None or text is None:
        return None
    found = [row for row in source.truth.values() if row.query.strip() == text and vid in (None, row.vid)]
    return found[0] if len(found) == 1 else None


def _scored(source: Source, value: Any) -> Any:
    """Windows with scores; what is none stays unchanged, to be refused later."""
    if is_list(value) and not len(value):
        source.counts["queries without an answer, which are misses"] += 1
        return [MISS]
    if is_list(value) and len(value) in (2, 3) and all(map(is_number, value)):
        value = [value]
    if is_list(value) and all(is_list(window) and len(window) == 2 for window in value):
        source.counts["queries whose windows got scores by their rank"] += 1
        return [[*window, 1 - rank / len(value)] for rank, window in enumerate(value)]
    return value
