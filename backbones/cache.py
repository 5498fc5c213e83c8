"""Decoder-state caches: a frozen detector run once over all samples, so that RL never has to run it again.

    python -m vmr_env.backbones.cache runs/captions/best --annotations val.jsonl --clips features/clips \\
        --text features/text --split val --out caches/val

The samples are done in parts, each written in one step beside the target, so an interrupted build goes on
where it stopped; several processes can share the work with `--shard 0/4` … `--shard 3/4`, after which the
same command without `--shard` puts the parts together. With `--cluster` workers of a Ray cluster make the
parts.
"""

import argparse
import hashlib
import io
import json
import random
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vmr_env.backbones.arguments import cluster_of
from vmr_env.backbones.base import Detector, DetectorOutput, GirlDetrDetector
from vmr_env.backbones.cross_fitted import is_cross_fitted, open_cross_fitted
from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.evidence import on_grid
from vmr_env.backbones.features.sources import (
    open_dataset,
    open_sources,
    read_samples,
)
from vmr_env.backbones.frozen import open_model
from vmr_env.backbones.girl_detr.head import FOREGROUND
from vmr_env.backbones.girl_detr.spans import cxw_to_span
from vmr_env.backbones.parsers import checkpoint_parser
from vmr_env.backbones.recipes import Recipe
from vmr_env.caches.batch import CacheBatch
from vmr_env.caches.format import Ragged, cells_of, spans_of
from vmr_env.caches.writer import CacheWriter
from vmr_env.data.annotations import Annotation
from vmr_env.errors import DataError, DataWarning, Problem
from vmr_env.files.text import PathLike
from vmr_env.files.writing import write_bytes, writing_errors
from vmr_env.programs import run_program

if TYPE_CHECKING:
    from vmr_env.backbones.cluster import Cluster

Arrays = dict[str, NDArray[Any]]

PART_SAMPLES = 512
"""Samples of a part at most, unless a single batch is larger."""
_DAMAGES = (zipfile.BadZipFile, zlib.error, struct.error)
_VERSION = 2  # of parts: a new number for every change of what they hold
RAGGED = ("saliency", "clips")
"""Arrays of a part that have one row per clip, the samples one after the other."""


def build_cache(
    path: PathLike,
    detector: Detector,
    dataset: MomentDataset,
    *,
    split: str,
    source: str,
    profile: str,
    features: Sequence[str] = (),
    dtype: str = "float16",
    batch_size: int = 100,
    shard: tuple[int, int] = (0, 1),
    notes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    kept_moments: bool = False,
    progress: bool = True,
    cluster: "Cluster | None" = None,
) -> Path | None:
    """Run a detector over a data set and write its decoder states and proposals as a cache.

    Proposals stand by falling score, as in submissions. Spans are cut to the video; how many had to be is
    counted in the manifest's notes.

    Args:
        path: folder of the cache.
        detector: the frozen detector.
        dataset: the samples.
        split: name of the split.
        source: where the features come from: "real", "annotation-derived" or "simulated".
        profile: name of the dataset profile.
        features: names of the clip features, for the manifest.
        dtype: type in which states, clips and text are stored, float16 or float32.
        batch_size: samples of a forward pass.
        shard: (i, n) does only every n-th part, the i-th first, and writes no cache unless n is 1.
        notes: further notes for the manifest, JSON values.
        overwrite: replace a cache that is there.
        kept_moments: take moments that leave their videos as they stand.
        progress: show a progress bar.
        cluster: makes the parts; None for this process. The cache is the same.

    Returns:
        the folder, or None for one shard of several.

    Raises:
        DataError: broken features, states or spans that are not finite, or a folder that cannot be written.
    """
    path = Path(path)
    if problems := dataset.problems():
        raise DataError(problems)
    parts = _Parts(path, detector, dataset, dtype, batch_size)
    share = parts.samples
    starts = range(0, len(dataset), share)
    todo = [index for index in range(shard[0], len(starts), shard[1]) if not parts.is_done(index)]
    rows = [range(starts[index], min(starts[index] + share, len(dataset))) for index in todo]
    made = enumerate(map(parts.make, rows)) if cluster is None else _spread(parts.make, rows, cluster)
    for place, content in tqdm(made, total=len(todo), desc="cache", unit="part", disable=not progress):
        parts.keep(todo[place], content)
    if shard[1] > 1:
        return None
    clipped = 0
    with CacheWriter(
        path,
        dataset=profile,
        split=split,
        source=source,
        models=[detector.kind],
        clip_seconds=dataset.settings.clip_seconds,
        backbone_kind=detector.kind,
        backbone_sha256=parts.weights,
        features=features,
        dtype=dtype,
        overwrite=overwrite,
        kept_moments=kept_moments,
    ) as writer:
        for index, start in enumerate(starts):
            arrays = parts.read(index)
            clipped += int(arrays["clipped"])
            writer.append(_batch(dataset.annotations[start : start + share], arrays))
        writer.finish({"proposals_clipped": clipped, **(notes or {})})
    parts.remove()
    return path


def _spread(make: "_MakePart", rows: Sequence[range], cluster: "Cluster") -> Iterator[tuple[int, bytes]]:
    from vmr_env.backbones.cluster import spread  # needs Ray

    return spread(make, rows, cluster) if rows else iter(())


@dataclass(frozen=True)
class _MakePart:
    """Makes the content of parts.

    Predictions of an official model depend on the other samples of a batch, so parts hold whole batches: the
    batches are those of a run without parts.
    """

    detector: Detector
    dataset: MomentDataset
    dtype: str
    batch_size: int

    def __call__(self, rows: range) -> bytes:
        """A part with some rows of the data set, as an archive of arrays."""
        size = self.batch_size
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        arrays = [self._detect(batch) for batch in batches]
        joined = {
            name: np.concatenate([part[name] for part in arrays]) for name in arrays[0] if name != "clipped"
        }
        clipped = np.array(sum(int(part["clipped"]) for part in arrays))
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, clipped=clipped, **joined)
        return content.getvalue()

    def _detect(self, rows: range) -> Arrays:
        batch = self.dataset.batch(rows, random.Random(0))  # the labels are not used
        output = self.detector.detect(batch)
        counts = batch.src_vid_mask.sum(1).long()
        return _arrays(output, counts.tolist(), self.dtype)


class _Parts:
    """The finished parts of a build, in a folder beside the target that is named by all they depend on."""

    def __init__(
        self, target: Path, detector: Detector, dataset: MomentDataset, dtype: str, batch_size: int
    ) -> None:
        self.samples = max(PART_SAMPLES // batch_size, 1) * batch_size
        self.weights = detector.sha256
        self.make = _MakePart(detector, dataset, dtype, batch_size)
        facts = [self.weights, detector.fingerprint, dataset.fingerprint, dtype, batch_size, self.samples]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self._folder = target.with_name(f".{target.name}.parts-{digest[:16]}")

    def file(self, index: int) -> Path:
        return self._folder / f"{index:06d}.npz"

    def keep(self, index: int, content: bytes) -> None:
        with writing_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.file(index), content)

    def is_done(self, index: int) -> bool:
        """Whether a part is there and undamaged; a damaged one is reported and made again."""
        if not self.file(index).exists():
            return False
        try:
            self.read(index)
        except DataError as error:
            warnings.warn(f"{error}; it is done again", DataWarning, stacklevel=2)
            return False
        return True

    def read(self, index: int) -> Arrays:
        """The arrays of a part; the archive's checksums are compared."""
        try:
            with np.load(self.file(index), allow_pickle=False) as file:
                arrays = dict(file)
            if "clipped" not in arrays or "scores" not in arrays:
                raise ValueError(f"it holds {sorted(arrays)}")
        except (OSError, ValueError, EOFError, KeyError, NotImplementedError, *_DAMAGES) as error:
            message = f"is no undamaged part of a cache ({error})"
            raise DataError(Problem(str(self.file(index)), None, None, message)) from error
        return arrays

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _arrays(output: DetectorOutput, counts: Sequence[int], dtype: str) -> Arrays:
    """A detector's output as the arrays of a part, proposals by falling score."""
    raw = cxw_to_span(output.spans.float())
    spans = raw.clamp(0, 1)
    foreground = output.logits.float().softmax(-1)[..., FOREGROUND]
    tensors: dict[str, torch.Tensor] = {
        "states": output.states,
        "references": output.references.float(),
        "spans": spans,
        "detections": torch.cat([output.spans.float(), foreground[..., None]], -1),
        "scores": foreground if output.scores is None else output.scores.float(),
        "n_clips": torch.tensor(counts, dtype=torch.int32),
    }
    order = tensors["scores"].argsort(dim=1, descending=True, stable=True)
    for name in ("states", "references", "detections", "spans", "scores"):
        tensor = tensors[name]
        rows = order if tensor.ndim == 2 else order[..., None].expand_as(tensor)
        tensors[name] = tensor.gather(1, rows)
    if output.text is not None:
        tensors["text"] = output.text
    for name in RAGGED:
        padded: torch.Tensor | None = getattr(output, name)
        if padded is not None:
            tensors[name] = torch.cat([row[:count] for row, count in zip(padded, counts, strict=True)])
    if output.saliency is not None and output.span_scores is not None:
        tensors["relevance"] = tensors["saliency"]
        tensors["span_scores"] = torch.cat(
            [
                torch.from_numpy(on_grid(logits, np.arange(count)))
                for logits, count in zip(output.span_scores, counts, strict=True)
            ]
        )
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    for name in ("states", "clips", "text"):
        if name in arrays:
            with np.errstate(over="ignore"):
                arrays[name] = arrays[name].astype(dtype)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DataError(Problem("detector", None, name, f"holds numbers that are not finite in {dtype}"))
    arrays["clipped"] = np.array(int((raw != spans).any(-1).sum()))
    return arrays


def _batch(rows: Sequence[Annotation], arrays: Mapping[str, NDArray[Any]]) -> CacheBatch:
    offsets = np.concatenate([[0], np.cumsum(arrays["n_clips"], dtype=np.int64)])
    ragged = {name: Ragged(arrays[name], offsets) for name in (*RAGGED, "relevance") if name in arrays}
    spans = np.concatenate([[0], np.cumsum(spans_of(cells_of(arrays["n_clips"])), dtype=np.int64)])
    scores = Ragged(arrays["span_scores"], spans) if "span_scores" in arrays else None
    proposals = arrays["scores"].shape[1]
    return CacheBatch(
        qids=[row.qid for row in rows],
        vids=[row.vid for row in rows],
        queries=[row.query for row in rows],
        durations=np.array([row.duration for row in rows]),
        n_clips=arrays["n_clips"],
        moments=Ragged.from_rows([row.moments for row in rows]),
        spans=arrays["spans"],
        scores=arrays["scores"],
        counts=np.full(len(rows), proposals, np.int32),
        models=np.zeros(arrays["scores"].shape, np.uint8),
        states=arrays["states"],
        references=arrays["references"],
        detections=arrays["detections"],
        saliency=ragged.get("saliency"),
        relevance=ragged.get("relevance"),
        span_scores=scores,
        clips=ragged.get("clips"),
        text=arrays.get("text"),
    )


def open_detector(options: argparse.Namespace) -> tuple[Recipe, Detector]:
    """The recipe and the frozen detector that the command line names: one backbone, or cross-fitted ones.

    Raises:
        DataError: the weights cannot be read, or an option does not go with them.
    """
    if options.weights.is_dir() and is_cross_fitted(options.weights):
        torch.set_num_threads(options.threads)
        return open_cross_fitted(options.weights, options.memory, options.unseen, options.device)
    recipe, model = open_model(options)
    return recipe, GirlDetrDetector(model, options.memory, ranking=recipe.windows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: build a decoder-state cache from a trained or an official checkpoint."""
    parser = checkpoint_parser()
    options = parser.parse_args(arguments)
    if options.cluster is not None and options.shard != (0, 1):
        parser.error("--cluster cuts the work itself: expected no --shard beside it")
    recipe, detector = open_detector(options)
    rows = read_samples(options.annotations, options.past_end)
    sources = open_sources(recipe, options, rows)
    path = build_cache(
        options.out,
        detector,
        open_dataset(recipe, sources, rows, options.short_features),
        split=options.split,
        source=sources.kind,
        profile=recipe.dataset,
        features=sources.names,
        dtype=options.dtype,
        batch_size=recipe.eval_batch_size,
        shard=options.shard,
        overwrite=options.overwrite,
        kept_moments=options.past_end == "keep",
        cluster=cluster_of(options),
    )
    print(f"{path}: {len(rows)} samples" if path else "shard {} of {} done".format(*options.shard))


if __name__ == "__main__":
    run_program(main)
