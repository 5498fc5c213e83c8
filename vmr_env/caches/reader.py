"""The decoder-state cache: the frozen proposals of all samples of one split, memory-mapped.

`DecoderStateCache.open` gives access to a cache folder; `CacheWriter` and `write_cache` make one. The format
is described in `vmr_env.caches.format`.
"""

import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Iterator
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.caches.batch import CacheBatch, content_problems, stored_problems
from vmr_env.caches.format import (
    KEPT_MOMENTS,
    RAGGED,
    SAMPLES_FILE,
    Ragged,
    broken,
    map_files,
    open_arrays,
    read_manifest,
)
from vmr_env.caches.table import Sample, SampleTable, first_repeated
from vmr_env.caches.writer import CacheWriter, stored_arrays, write_cache
from vmr_env.data.profiles import get_profile
from vmr_env.data.splits import split_by_video, video_folds
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import PathLike

__all__ = [
    "CacheBatch",
    "CacheWriter",
    "DecoderStateCache",
    "Ragged",
    "Sample",
    "split_by_video",
    "video_folds",
    "write_cache",
]

LABELLED = "labelled"
"""Note of a manifest: False where the queries have no ground truth, and whole videos are used instead."""

_VERIFY_ROWS = 4096
_TRUSTED = (
    *("spans", "scores", "counts", "models", "durations", "n_clips", "moments.values", "saliency.values"),
    *("relevance.values", "span_scores.values"),
    *(f"{name}.offsets" for name in RAGGED),
)
"""Arrays that compiled code takes for sound; the others hold numbers only that are passed on."""
_OPENINGS = 50  # tries to open a folder that others replace meanwhile


class DecoderStateCache:
    """A cache on disk, opened by `DecoderStateCache.open`. Nothing in it can be changed.

    Opening costs the same for any number of samples: the manifest is read, sizes and headers of the files are
    checked, the arrays are mapped. While somebody holds the cache, opening the same folder again in the same
    process gives the same object. It pickles as its path, so worker processes map the files themselves and
    share their pages.

    Attributes:
        path: the folder, absolute, links resolved.
        manifest: contents of `manifest.json`.
        spans: float32 (N, Q, 2), proposals normalised to [0, 1] of the video.
        scores: float32 (N, Q), in [0, 1].
        counts: int32 (N,), proposals of each sample; later rows of (N, Q) arrays are zero.
        models: uint8 (N, Q), index into `manifest["models"]`.
        durations: float32 (N,), seconds.
        n_clips: int32 (N,), clips of each video.
        moments: ragged float32 (T, 2), ground truth as shares of the video, in [0, 1] unless `kept_moments`.
        states: float32 or float16 (N, Q, D), decoder states, or None.
        references: float32 (N, Q, 2), the detector's last references (centre, width) as it has them, or None.
        detections: float32 (N, Q, 3), centre and width from the detector, not cut to the video, and its
            foreground probability, or None.
        saliency: ragged float32 (S,), one value per clip, any scale, or None.
        relevance: ragged float32 (S,), relevance of each clip, any scale, or None.
        span_scores: ragged float32, a score of every span (`vmr_env.caches.evidence`), or None.
        clips: ragged (S, C), clip features, or None.
        text: (N, X), one vector per query, or None.
    """

    def __init__(self, path: Path, stamp: "Stamp") -> None:
        """Map the files of a folder that has this stamp; use `open`."""
        manifest = read_manifest(path)
        files = map_files(path, manifest)
        arrays = open_arrays(path, manifest, files)
        self.path = path
        self.manifest = manifest
        self.spans: NDArray[np.float32] = arrays["spans"]
        self.scores: NDArray[np.float32] = arrays["scores"]
        self.counts: NDArray[np.int32] = arrays["counts"]
        self.models: NDArray[np.uint8] = arrays["models"]
        self.durations: NDArray[np.float32] = arrays["durations"]
        self.n_clips: NDArray[np.int32] = arrays["n_clips"]
        self.moments = Ragged(arrays["moments.values"], arrays["moments.offsets"])
        self.states: NDArray[Any] | None = arrays.get("states")
        self.references: NDArray[np.float32] | None = arrays.get("references")
        self.detections: NDArray[np.float32] | None = arrays.get("detections")
        self.saliency = _ragged(arrays, "saliency")
        self.relevance = _ragged(arrays, "relevance")
        self.span_scores = _ragged(arrays, "span_scores")
        self.clips = _ragged(arrays, "clips")
        self.text: NDArray[Any] | None = arrays.get("text")
        self._arrays, self._files = arrays, files
        self._table = SampleTable(path / SAMPLES_FILE, files[SAMPLES_FILE], manifest["samples"])
        self._stamp = stamp
        self._sound = False

    @classmethod
    def open(cls, path: PathLike, checksums: bool = False) -> "DecoderStateCache":
        """The cache in a folder, mapped once per process.

        Args:
            path: the folder.
            checksums: also read every file and compare its sha256 with the manifest.

        Raises:
            DataError: the folder is no cache, of another version, or torn; the message names the file. Or it
                was replaced again and again while it was opened.
        """
        try:
            real = Path(path).resolve()
            real.exists()  # refuses what no file system could hold
        except (OSError, ValueError, RuntimeError) as error:
            raise broken(Path(path), f"is no path of a folder ({error})") from None
        cache = _OPEN.get(real)
        # A folder that was written anew under the same name is another cache.
        if cache is None or cache._stamp != _stamp(real):
            _OPEN[real] = cache = cls._snapshot(real)
        if checksums:
            cache.verify_files(cache.manifest["files"])
        return cache

    @classmethod
    def _snapshot(cls, path: Path) -> "DecoderStateCache":
        """All files of one cache, although others may replace the folder at any moment."""
        for _ in range(_OPENINGS):
            stamp = _stamp(path)
            try:
                cache = cls(path, stamp)
            except DataError:
                if stamp == _stamp(path):
                    raise
            else:
                if stamp == _stamp(path):
                    return cache
        raise broken(path, f"was replaced {_OPENINGS} times while it was opened; open it again")

    def __len__(self) -> int:
        return self.manifest["samples"]

    def __repr__(self) -> str:
        manifest = self.manifest
        return (
            f"DecoderStateCache({str(self.path)!r}, {manifest['dataset']} {manifest['split']}, "
            f"{manifest['source']}, {len(self)} samples of {manifest['proposals']} proposals)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the hashes that the manifest tells of all files."""
        return hashlib.sha256(json.dumps(self.manifest["files"], sort_keys=True).encode()).hexdigest()

    def require_ground_truth(self) -> None:
        """Refuse a cache of queries without ground truth, for what needs it.

        Raises:
            DataError: saying so.
        """
        if not self.manifest["notes"].get(LABELLED, True):
            message = (
                "has no ground truth; expected some for rewards, training and figures (refining needs none)"
            )
            raise DataError(Problem(str(self.path), None, "moments", message))

    def require_states(self) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Decoder states (N, Q, D) and references (N, Q, 2), for what trains a detection head.

        Raises:
            DataError: there are none, or some samples have fewer proposals than others.
        """
        where = str(self.path)
        if self.states is None or self.references is None:
            message = "no decoder states and references, expected a cache written by a backbone"
            raise DataError(Problem(where, None, "states", message))
        if (fewest := int(self.counts.min())) < self.states.shape[1]:
            message = f"a sample has {fewest} proposals, expected {self.states.shape[1]} for every sample"
            raise DataError(Problem(where, None, "counts", message))
        return self.states, self.references

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecoderStateCache":
        return self

    def __copy__(self) -> "DecoderStateCache":
        return self

    def sample(self, row: int) -> Sample:
        """Names, sentence and exact times of sample `row` (0 to N - 1); reads its part of the table alone."""
        if not 0 <= index(row) < len(self):
            raise IndexError(f"{self.path} has no sample {row}; expected 0 to {len(self) - 1}")
        return self._table.sample(index(row))

    def qids(self) -> list[int | str]:
        """Query ids of all samples, in the types in which they were read."""
        return self._table.qids()

    def vids(self) -> list[str]:
        """Video names of all samples."""
        return self._table.column("vid")

    @cached_property
    def names(self) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
        """Query ids as text, and video names, of all samples: two arrays (N,) of str, read once."""
        qids = np.array([str(qid) for qid in self.qids()], object)
        return qids, np.array(self.vids(), object)

    def source_videos(self) -> list[str]:
        """Source videos of all samples, by the rule of the data set's profile: what folds and bootstraps keep
        together."""
        source_video = get_profile(self.manifest["dataset"]).source_video
        return [source_video(vid) for vid in self.vids()]

    def index_of(self, qid: int | str) -> int:
        """Row of the sample with that query id, compared by text: 7 and "7" are the same query.

        Raises:
            DataError: the cache has no such query.
        """
        row = self._rows_by_qid.get(str(qid))
        if row is None:
            known = ", ".join(shorten(text) for text in list(self._rows_by_qid)[:3])
            message = f"{shorten(qid)} is none of the {len(self)} query ids of this cache ({known}, …)"
            raise DataError(Problem(str(self.path), None, "qid", message))
        return row

    @cached_property
    def _rows_by_qid(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self._table.column("qid"))}

    @property
    def kept_moments(self) -> bool:
        """Whether moments stand as they were annotated, also beyond their videos."""
        return bool(self.manifest["notes"].get(KEPT_MOMENTS, False))

    def require_sound(self) -> None:
        """Check, once, all arrays but decoder states, clip features and sentences: checksums and contents.

        Raises:
            DataError: listing what is wrong.
        """
        if not self._sound:
            self.verify_files([f"{name}.npy" for name in _TRUSTED if name in self._arrays])
            self._check_offsets()
            if problems := stored_problems(self._arrays, str(self.path), self.kept_moments):
                raise DataError(problems)
            self._sound = True

    def verify(self) -> None:
        """Read the whole cache: checksums, and every rule that `CacheBatch` states about the contents.

        Raises:
            DataError: listing what is wrong, by file.
        """
        self.verify_files(self.manifest["files"])
        self._check_offsets()
        problems = []
        qids = self.qids()
        if (row := first_repeated(qids)) is not None:
            message = f"{qids[row]!r} appears twice"
            problems.append(Problem(str(self.path / SAMPLES_FILE), row + 1, "qid", message))
        for first, batch in self._batches(qids):
            problems += content_problems(
                batch, len(self.manifest["models"]), self.kept_moments, str(self.path), first
            )
            problems += self._table_problems(first, batch)
        if problems:
            raise DataError(problems)

    def _check_offsets(self) -> None:
        for name in RAGGED:
            if f"{name}.offsets" in self._arrays and (np.diff(self._arrays[f"{name}.offsets"]) < 0).any():
                raise broken(self.path / f"{name}.offsets.npy", "falls somewhere, expected it never to fall")

    def verify_files(self, names: Iterable[str]) -> None:
        """Compare the content of files with the manifest, as it is mapped.

        Raises:
            DataError: with all that differ.
        """
        problems = []
        for name in names:
            found, expected = (
                hashlib.sha256(self._files[name].data).hexdigest(),
                self.manifest["files"][name]["sha256"],
            )
            if found != expected:
                message = f"has sha256 {found}, expected {expected}; write the cache again"
                problems.append(Problem(str(self.path / name), None, None, message))
        if problems:
            raise DataError(problems)

    def _batches(self, qids: list[int | str]) -> Iterator[tuple[int, CacheBatch]]:
        """The cache as batches with the table's exact times, each with the index of its first sample."""
        vids, queries = self.vids(), self._table.column("query")
        durations = np.array(self._table.column("duration"), np.float64)
        n_clips = np.array(self._table.column("n_clips"), np.int32)
        moments = self._table.moments()
        for start in range(0, len(self), _VERIFY_ROWS):
            stop = min(start + _VERIFY_ROWS, len(self))
            part = slice(start, stop)
            batch = CacheBatch(
                qids=qids[part],
                vids=vids[part],
                queries=queries[part],
                durations=durations[part],
                n_clips=n_clips[part],
                moments=moments.rows(start, stop),
                spans=self.spans[part],
                scores=self.scores[part],
                counts=self.counts[part],
                models=self.models[part],
                states=None if self.states is None else self.states[part],
                references=None if self.references is None else self.references[part],
                detections=None if self.detections is None else self.detections[part],
                saliency=None if self.saliency is None else self.saliency.rows(start, stop),
                relevance=None if self.relevance is None else self.relevance.rows(start, stop),
                span_scores=None if self.span_scores is None else self.span_scores.rows(start, stop),
                clips=None if self.clips is None else self.clips.rows(start, stop),
                text=None if self.text is None else self.text[part],
            )
            yield start, batch

    def _table_problems(self, first: int, batch: CacheBatch) -> list[Problem]:
        """Where the arrays and the table tell different things."""
        stored = stored_arrays(batch)
        problems = []
        for name in ("durations", "n_clips", "moments.values"):
            start = self.moments.offsets[first] if name == "moments.values" else first
            found = self._arrays[name][start : start + len(stored[name])]
            if not np.array_equal(found, stored[name]):
                message = f"differs from {SAMPLES_FILE} among samples {first + 1} to {first + len(batch)}"
                problems.append(Problem(str(self.path / f"{name}.npy"), None, None, message))
        return problems


# Real path -> cache, while anybody holds it.
_OPEN: weakref.WeakValueDictionary[Path, DecoderStateCache] = weakref.WeakValueDictionary()


def _reopen(path: str, fingerprint: str) -> DecoderStateCache:
    """Unpickle a cache; what is on disk now must be what was pickled."""
    cache = DecoderStateCache.open(path)
    if cache.fingerprint != fingerprint:
        raise broken(cache.path, "was replaced by another cache since it was pickled")
    return cache


Stamp: TypeAlias = tuple[tuple[str, int, int, int], ...] | None


def _stamp(folder: Path) -> Stamp:
    """Stamp of a cache: inodes, times, sizes of files; changes with a rewrite. None without a folder."""
    try:
        with os.scandir(folder) as entries:
            status = {entry.name: entry.stat() for entry in entries}
    except OSError:
        return None
    return tuple((name, of.st_ino, of.st_mtime_ns, of.st_size) for name, of in sorted(status.items()))


def _ragged(arrays: dict[str, NDArray[Any]], name: str) -> Ragged | None:
    if f"{name}.values" not in arrays:
        return None
    return Ragged(arrays[f"{name}.values"], arrays[f"{name}.offsets"])
