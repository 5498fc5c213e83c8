"""Writing a decoder-state cache: batch by batch, checked, and in one step visible or not at all."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vmr_env.arrays import Array
from vmr_env.caches.batch import (
    CacheBatch,
    Layout,
    coerced,
    content_problems,
    layout_of,
    normalised_moments,
)
from vmr_env.caches.format import (
    FORMAT,
    KEPT_MOMENTS,
    MANIFEST_FILE,
    SAMPLES_FILE,
    VERSION,
    FileEntry,
    Manifest,
    Ragged,
    broken,
    manifest_problems,
)
from vmr_env.caches.table import TableWriter, first_repeated
from vmr_env.errors import DataError, Problem
from vmr_env.files.npy import NpyWriter
from vmr_env.files.text import PathLike
from vmr_env.files.writing import NewFolder, writing_errors


class CacheWriter:
    """Writes a cache batch by batch, in constant memory but for the qids.

    Used as a context manager. `finish` makes the cache appear at `path` in one step; leaving the block
    without it, or by an exception, leaves nothing behind:

        with CacheWriter(path, dataset="charades", split="test", ...) as writer:
            for batch in batches:
                writer.append(batch)
            writer.finish()

    Args:
        path: folder of the new cache; its parent must exist.
        dataset: name of a dataset profile.
        split: name of the split.
        source: where the proposals come from: "real", "annotation-derived", "simulated" or "predictions".
        models: names of the models whose proposals the cache holds, at most 256.
        clip_seconds: length of one clip.
        backbone_kind: what made the proposals, in a word.
        backbone_sha256: hash of its weights (or of whatever fixes its output), None where there is none.
        features: names of the clip features behind it.
        dtype: type in which states, clips and text are stored, "float32" or "float16".
        overwrite: replace a cache that is already there; anything else at `path` is never touched.
        kept_moments: take moments that leave their videos as they stand (`PastEnd` "keep"); the manifest says
            so.

    Raises:
        DataError: an argument breaks a rule, the target exists, or its folder cannot be written.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        dataset: str,
        split: str,
        source: str,
        models: Sequence[str],
        clip_seconds: float,
        backbone_kind: str,
        backbone_sha256: str | None = None,
        features: Sequence[str] = (),
        dtype: str = "float32",
        overwrite: bool = False,
        kept_moments: bool = False,
    ) -> None:
        self.path = Path(path)
        self._kept_moments = kept_moments
        self._overwrite = overwrite
        self._manifest: Manifest = {
            "format": FORMAT,
            "version": VERSION,
            "dataset": dataset,
            "split": split,
            "source": source,
            "backbone": {"kind": backbone_kind, "sha256": backbone_sha256},
            "features": list(features),
            "dims": {},
            "d": None,
            "proposals": 1,
            "dtype": dtype,
            "samples": 1,
            "models": list(models),
            "clip_seconds": clip_seconds,
            "files": {},
            "notes": {},
        }
        if problems := manifest_problems("argument", self._manifest, check_files=False):
            raise DataError(problems)
        self._refuse_target()
        self._folder: NewFolder | None = None
        self._layout: Layout | None = None
        self._samples = 0
        self._seen: set[str] = set()
        self._ends: dict[str, int] = {}
        self._streams: dict[str, NpyWriter] = {}
        self._table: TableWriter | None = None
        self._open = ExitStack()

    def __enter__(self) -> "CacheWriter":
        self._folder = NewFolder(self.path)
        try:
            with writing_errors(self.path):
                self._table = TableWriter(self._folder.path / SAMPLES_FILE)
        except DataError:
            self.abort()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def append(self, batch: CacheBatch) -> None:
        """Add a batch of samples. The first batch settles the layout: Q, and which optional arrays there are.

        Raises:
            DataError: the batch breaks a rule of `CacheBatch`, differs from the first in layout, or repeats a
                qid; or the disk refuses.
        """
        if self._table is None or self._folder is None:
            raise RuntimeError("CacheWriter.append outside of its `with` block")
        batch = coerced(batch, self._manifest["dtype"])
        layout = layout_of(batch)
        if self._layout not in (None, layout):
            message = f"has {layout}, expected {self._layout} as in the first batch"
            raise DataError(Problem("batch", None, None, message))
        problems = content_problems(
            batch, len(self._manifest["models"]), self._kept_moments, first=self._samples
        )
        repeated = first_repeated(batch.qids, self._seen)
        if repeated is not None:
            message = f"{batch.qids[repeated]!r} appears twice, expected different query ids"
            problems.append(Problem("batch", self._samples + repeated + 1, "qids", message))
        if problems:
            raise DataError(problems)
        self._layout = layout
        self._seen.update(map(str, batch.qids))
        with writing_errors(self.path):
            self._table.append(batch)
            for name, array in stored_arrays(batch).items():
                self._write(self._folder.path, name, array)
        self._samples += len(batch)

    def _write(self, folder: Path, name: str, array: Array) -> None:
        if name not in self._streams:
            stream = NpyWriter(folder / f"{name}.npy", array)
            self._streams[name] = self._open.enter_context(closing(stream))
        if name.endswith(".offsets"):
            # Offsets go on where the last batch ended; the leading 0 is written once.
            end = self._ends.get(name, 0)
            self._ends[name] = end + int(array[-1])
            array = array + end if end == 0 and self._streams[name].rows == 0 else array[1:] + end
        self._streams[name].append(array)

    def finish(self, notes: Mapping[str, Any] | None = None) -> Path:
        """Write the manifest, flush everything to disk, and move the cache to its place.

        Args:
            notes: counts and remarks for the manifest, as JSON values.

        Returns:
            The cache's path.

        Raises:
            DataError: nothing was appended, the notes are not JSON, the target has appeared meanwhile, or the
                disk refuses.
        """
        if self._layout is None or self._table is None or self._folder is None:
            raise DataError(
                Problem(str(self.path), None, None, "nothing was appended, expected at least one batch")
            )
        manifest, layout = self._manifest, self._layout
        widths = {"clips": layout.clips, "text": layout.text}
        manifest["dims"] = {name: width for name, width in widths.items() if width is not None}
        manifest["d"], manifest["proposals"], manifest["samples"] = layout.d, layout.proposals, self._samples
        manifest["notes"] = {**(notes or {}), **({KEPT_MOMENTS: True} if self._kept_moments else {})}
        with writing_errors(self.path):
            self._table.close()
            for stream in self._streams.values():
                stream.finish()
            self._open.close()
            manifest["files"] = {path.name: _entry(path) for path in sorted(self._folder.path.iterdir())}
            try:
                text = json.dumps(manifest, indent=1, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise DataError(Problem("argument", None, "notes", f"are not JSON ({error})")) from None
            (self._folder.path / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
        self._refuse_target()
        self._folder.publish(replace=self._overwrite)
        return self.path

    def abort(self) -> None:
        """Drop everything that was not finished; harmless afterwards."""
        with suppress(OSError):  # the disk may be what failed
            self._open.close()
            if self._table is not None:
                self._table.drop()
        self._table = None
        if self._folder is not None:
            self._folder.drop()

    def _refuse_target(self) -> None:
        """Stop before a folder is replaced that is no cache, or that nobody asked to replace."""
        if not os.path.lexists(self.path):
            return
        if not self._overwrite:
            raise broken(self.path, "exists already; --overwrite replaces it (in Python: overwrite=True)")
        try:
            cache = json.loads((self.path / MANIFEST_FILE).read_text(encoding="utf-8"))["format"] == FORMAT
        except (OSError, ValueError, TypeError, KeyError):
            cache = False
        if not cache or self.path.is_symlink():
            raise broken(
                self.path,
                "exists and is no decoder-state cache, so it is not overwritten; remove it yourself",
            )


def write_cache(
    path: PathLike, batch: CacheBatch, *, notes: Mapping[str, Any] | None = None, **arguments: Any
) -> Path:
    """Write a cache of one batch; `arguments` are those of `CacheWriter`."""
    with CacheWriter(path, **arguments) as writer:
        writer.append(batch)
        return writer.finish(notes)


def stored_arrays(batch: CacheBatch) -> dict[str, Array]:
    """The arrays of a coerced batch as they stand in a cache, by name; offsets begin at 0."""
    arrays: dict[str, Array | None] = {
        "spans": batch.spans,
        "scores": batch.scores,
        "counts": batch.counts,
        "models": batch.models,
        "durations": batch.durations.astype(np.float32),
        "n_clips": batch.n_clips,
        "states": batch.states,
        "references": batch.references,
        "detections": batch.detections,
        "text": batch.text,
    }
    ragged: dict[str, Ragged | None] = {
        "moments": normalised_moments(batch),
        "saliency": batch.saliency,
        "relevance": batch.relevance,
        "span_scores": batch.span_scores,
        "clips": batch.clips,
    }
    for name, rows in ragged.items():
        if rows is not None:
            arrays |= {f"{name}.values": rows.values, f"{name}.offsets": rows.offsets}
    return {name: array for name, array in arrays.items() if array is not None}


def sha256_of(path: Path) -> str:
    """Checksum of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _entry(path: Path) -> FileEntry:
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}
