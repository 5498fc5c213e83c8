"""A batch of samples on its way into a cache, or out of one, and the rules that its contents obey."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vmr_env.arrays import Array
from vmr_env.caches.format import Ragged, cells_of, spans_of
from vmr_env.data.durations import LONGEST, SECONDS, SHORTEST
from vmr_env.errors import DataError, Problem, shorten


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBatch:
    """n samples with at most Q proposals each.

    Attributes:
        qids: n query ids, int or str, different by their text (7 equals "7").
        vids: n video names.
        queries: n sentences.
        durations: float64 (n,), seconds.
        n_clips: int32 (n,), clips of each video.
        moments: ragged float64 (T, 2), ground truth in seconds, at least one a sample,
            0 <= start < end <= duration; of a cache with `kept_moments` start < end.
        spans: float32 (n, Q, 2), proposals normalised to [0, 1], start <= end.
        scores: float32 (n, Q), in [0, 1].
        counts: int32 (n,), proposals of each sample, from 1; later rows of every (n, Q) array are zero.
        models: uint8 (n, Q), which of the cache's models made the proposal.
        states: (n, Q, D), last decoder layer's output, or None.
        references: float32 (n, Q, 2), the detector's last references (centre, width) as it has them, or None.
        detections: float32 (n, Q, 3), centre and width from the detector, not cut to the video, and its
            foreground probability, or None.
        saliency: ragged float32 (S,), one value per clip, any scale, or None.
        relevance: ragged float32 (S,), relevance of each clip, any scale, or None.
        span_scores: ragged float32 (T,), a score of every span (`vmr_env.caches.evidence`), or None; beside a
            relevance only.
        clips: ragged (S, C), clip features, or None.
        text: (n, X), one vector per query, or None.
    """

    qids: Sequence[int | str]
    vids: Sequence[str]
    queries: Sequence[str]
    durations: Array
    n_clips: Array
    moments: Ragged
    spans: Array
    scores: Array
    counts: Array
    models: Array
    states: Array | None = None
    references: Array | None = None
    detections: Array | None = None
    saliency: Ragged | None = None
    relevance: Ragged | None = None
    span_scores: Ragged | None = None
    clips: Ragged | None = None
    text: Array | None = None

    def __len__(self) -> int:
        return len(self.qids)


@dataclass(frozen=True, slots=True)
class Layout:
    """Properties shared by all batches of one cache: the sizes of its arrays (None where there is none)."""

    proposals: int
    d: int | None
    clips: int | None
    text: int | None
    references: bool
    detections: bool
    saliency: bool
    relevance: bool
    span_scores: bool


def layout_of(batch: CacheBatch) -> Layout:
    """Layout of a batch that `coerced` has passed."""
    return Layout(
        proposals=batch.spans.shape[1],
        d=None if batch.states is None else batch.states.shape[2],
        clips=None if batch.clips is None else batch.clips.values.shape[1],
        text=None if batch.text is None else batch.text.shape[1],
        references=batch.references is not None,
        detections=batch.detections is not None,
        saliency=batch.saliency is not None,
        relevance=batch.relevance is not None,
        span_scores=batch.span_scores is not None,
    )


def coerced(batch: CacheBatch, dtype: str) -> CacheBatch:
    """The batch with every array in the type in which a cache stores it (`dtype` for states, clips and text).

    Raises:
        DataError: an array has the wrong kind of numbers or the wrong shape.
    """
    n, problems = len(batch), list[Problem]()
    if n == 0:
        raise DataError(Problem("batch", None, None, "holds no samples, expected at least one"))

    def array(name: str, value: Any, kind: str, *shape: int | None) -> Array:
        try:
            return _array(value, kind, shape)
        except (ValueError, TypeError, OverflowError) as error:
            problems.append(Problem("batch", None, name, str(error)))
            return np.zeros([size or 1 for size in shape], kind)

    def ragged(name: str, value: Ragged, kind: str, *shape: int | None) -> Ragged:
        offsets = array(f"{name}.offsets", value.offsets, "int64", n + 1)
        values = array(f"{name}.values", value.values, kind, None, *shape)
        if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
            message = f"{shorten(offsets.tolist())}, expected a rise from 0 to {len(values)}"
            problems.append(Problem("batch", None, f"{name}.offsets", message))
        return Ragged(values, offsets)

    spans = array("spans", batch.spans, "float32", n, None, 2)
    q = spans.shape[1]
    result = replace(
        batch,
        durations=array("durations", batch.durations, "float64", n),
        n_clips=array("n_clips", batch.n_clips, "int32", n),
        moments=ragged("moments", batch.moments, "float64", 2),
        spans=spans,
        scores=array("scores", batch.scores, "float32", n, q),
        counts=array("counts", batch.counts, "int32", n),
        models=array("models", batch.models, "uint8", n, q),
        states=None if batch.states is None else array("states", batch.states, dtype, n, q, None),
        references=None
        if batch.references is None
        else array("references", batch.references, "float32", n, q, 2),
        detections=None
        if batch.detections is None
        else array("detections", batch.detections, "float32", n, q, 3),
        saliency=None if batch.saliency is None else ragged("saliency", batch.saliency, "float32"),
        relevance=None if batch.relevance is None else ragged("relevance", batch.relevance, "float32"),
        span_scores=None
        if batch.span_scores is None
        else ragged("span_scores", batch.span_scores, "float32"),
        clips=None if batch.clips is None else ragged("clips", batch.clips, dtype, None),
        text=None if batch.text is None else array("text", batch.text, dtype, n, None),
    )
    problems += [
        Problem("batch", None, name, f"has {len(getattr(batch, name))} entries, expected {n}")
        for name in ("vids", "queries")
        if len(getattr(batch, name)) != n
    ]
    if batch.span_scores is not None and batch.relevance is None:
        problems.append(Problem("batch", None, "relevance", "is missing, expected beside span_scores"))
    if problems:
        raise DataError(problems)
    return result


def _array(value: Any, kind: str, shape: tuple[int | None, ...]) -> Array:
    found = np.asarray(value)
    wanted = f"{kind} ({', '.join('any' if size is None else str(size) for size in shape)})"
    fits = found.ndim == len(shape) and all(
        size is None or size == have for size, have in zip(shape, found.shape, strict=True)
    )
    if not fits or 0 in found.shape:
        raise ValueError(f"has shape {found.shape}, expected {wanted}")
    if found.dtype.kind not in ("iu" if np.dtype(kind).kind in "iu" else "fiu"):
        raise ValueError(f"holds {found.dtype}, expected {wanted}")
    # Overflow to infinity is left to the check of contents, which names the row.
    with np.errstate(over="ignore"):
        result = found.astype(kind, copy=False)
    if result.dtype.kind in "iu" and (result != found).any():
        raise ValueError(f"{found[result != found][0]} does not fit {kind}")
    return result


class _Checker:
    """Collects, for each rule, the first sample that breaks it and how many more do."""

    def __init__(self, where: str, first: int) -> None:
        self.where, self.first = where, first
        self.problems: list[Problem] = []

    def rows(self, field: str, bad: Array, values: Array, expected: str) -> None:
        """`bad` (n, ...) marks values that break the rule."""
        index = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
        if index.size:
            self._add(field, int(index[0]), values[index[0]].tolist(), expected, index.size)

    def ragged(self, field: str, bad: Array, ragged: Ragged, expected: str) -> None:
        """`bad` (T, ...) marks values of a ragged array that break the rule."""
        index = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
        if index.size:
            samples = np.unique(np.searchsorted(ragged.offsets, index, side="right") - 1)
            self._add(field, int(samples[0]), ragged.values[index[0]].tolist(), expected, samples.size)

    def _add(self, field: str, row: int, value: object, expected: str, total: int) -> None:
        more = f" ({total - 1} more samples likewise)" if total > 1 else ""
        message = f"{shorten(value)}, expected {expected}{more}"
        self.problems.append(Problem(self.where, self.first + row + 1, field, message))


def content_problems(
    batch: CacheBatch, models: int, kept_moments: bool, where: str = "batch", first: int = 0
) -> list[Problem]:
    """Every rule of `CacheBatch` that the contents of a coerced batch break, one problem a rule.

    Args:
        batch: what `coerced` returned.
        models: number of models of the cache.
        kept_moments: whether moments may leave their videos.
        where: how problems name the batch.
        first: index of the batch's first sample, so that rows count from the start of the cache.
    """
    check = _Checker(where, first)
    _check_proposals(check, batch.spans, batch.scores, batch.counts)
    check.rows("models", batch.models >= models, batch.models, f"an index below {models}")
    real = np.arange(batch.spans.shape[1]) < batch.counts[:, None]
    for name in ("spans", "scores", "models", "states", "references", "detections"):
        values = getattr(batch, name)
        if values is not None:
            padding = values.reshape(*real.shape, -1).any(axis=-1) & ~real
            check.rows(name, padding, values, "zeros after the last proposal of a sample")

    sensible = (batch.durations >= SHORTEST) & (batch.durations <= LONGEST)
    check.rows("durations", ~sensible, batch.durations, SECONDS)
    check.rows("n_clips", batch.n_clips < 1, batch.n_clips, "at least 1 clip")

    moments = batch.moments
    check.rows("moments", moments.lengths < 1, moments.lengths, "at least 1 moment")
    limit = np.repeat(batch.durations, moments.lengths)
    inside = (moments.values[:, 0] >= 0) & (moments.values[:, 1] <= limit)
    # Two boundaries so near that float32 cannot tell them apart would be an empty moment.
    stored = normalised_moments(batch).values
    apart = (stored[:, 0] < stored[:, 1]) & np.isfinite(stored).all(axis=1)
    rule = "start < end, in seconds" if kept_moments else "0 <= start < end <= duration, in seconds"
    check.ragged("moments", ~(apart & (inside | kept_moments)), moments, rule)

    for name in _OF_CLIPS:
        ragged: Ragged | None = getattr(batch, name)
        if ragged is not None:
            check.ragged(name, ~np.isfinite(ragged.values), ragged, "finite numbers")
            _check_lengths(check, name, ragged.lengths, batch.n_clips)
    for name in ("states", "references", "detections", "text"):
        values = getattr(batch, name)
        if values is not None:
            check.rows(name, ~np.isfinite(values), values, f"finite {values.dtype} numbers")

    check.problems += _name_problems(batch, where, first)
    return check.problems


def stored_problems(arrays: Mapping[str, Array], where: str, kept_moments: bool) -> list[Problem]:
    """What environments rely on that the arrays of a cache break, one problem a rule.

    Args:
        arrays: by name, as stored; offsets never fall.
        where: how problems name the cache.
        kept_moments: whether moments may leave their videos.
    """
    check = _Checker(where, 0)
    durations, n_clips = arrays["durations"], arrays["n_clips"]
    moments = Ragged(arrays["moments.values"], arrays["moments.offsets"])
    _check_proposals(check, arrays["spans"], arrays["scores"], arrays["counts"])
    sensible = (durations >= np.float32(SHORTEST)) & (durations <= np.float32(LONGEST))
    check.rows("durations", ~sensible, durations, SECONDS)
    check.rows("moments", moments.lengths < 1, moments.lengths, "at least 1 moment")
    start, end = moments.values[:, 0], moments.values[:, 1]
    apart = (start < end) & np.isfinite(moments.values).all(axis=1)
    inside = (start >= 0) & (end <= 1) | kept_moments
    rule = "start < end" if kept_moments else "0 <= start < end <= 1"
    check.ragged("moments", ~(apart & inside), moments, f"{rule}, as shares of the video")
    check.rows("n_clips", n_clips < 1, n_clips, "at least 1 clip")
    for name in _OF_CLIPS:
        if f"{name}.offsets" in arrays:
            _check_lengths(check, name, np.diff(arrays[f"{name}.offsets"]), n_clips)
    return check.problems


_OF_CLIPS = ("saliency", "relevance", "span_scores", "clips")
"""Ragged arrays whose lengths follow from the number of clips."""


def _check_lengths(check: _Checker, name: str, lengths: Array, n_clips: Array) -> None:
    wanted, expected = n_clips, "one value per clip (n_clips)"
    if name == "span_scores":
        wanted, expected = spans_of(cells_of(n_clips)), "one value per span of the grid"
    check.rows(name, lengths != wanted, lengths, expected)


def _check_proposals(check: _Checker, spans: Array, scores: Array, counts: Array) -> None:
    q = spans.shape[1]
    check.rows("counts", (counts < 1) | (counts > q), counts, f"1 to {q} proposals")
    start, end = spans[..., 0], spans[..., 1]
    ordered = (start >= 0) & (start <= end) & (end <= 1)
    check.rows("spans", ~ordered, spans, "0 <= start <= end <= 1")
    check.rows("scores", ~((scores >= 0) & (scores <= 1)), scores, "scores within [0, 1]")


def normalised_moments(batch: CacheBatch) -> Ragged:
    """Ground truth as stored for the environments: ragged float32 (T, 2), divided by the duration."""
    scale = np.repeat(batch.durations, batch.moments.lengths)[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return Ragged((batch.moments.values / scale).astype(np.float32), batch.moments.offsets)


def _name_problems(batch: CacheBatch, where: str, first: int) -> list[Problem]:
    rules: tuple[tuple[str, Callable[[object], bool], str], ...] = (
        ("qids", lambda value: type(value) is int or _is_name(value), "an int or a non-empty text"),
        ("vids", _is_name, "a non-empty text"),
        ("queries", lambda value: value == "" or _is_name(value), "a text"),
    )
    problems = []
    for name, holds, expected in rules:
        bad = [row for row, value in enumerate(getattr(batch, name)) if not holds(value)]
        if bad:
            message = f"{shorten(getattr(batch, name)[bad[0]])}, expected {expected}"
            problems.append(Problem(where, first + bad[0] + 1, name, message))
    return problems


def _is_name(value: object) -> bool:
    if not isinstance(value, str) or not value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can carry and UTF-8 cannot
        return False
    return True
