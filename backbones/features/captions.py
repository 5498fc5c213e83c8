"""Clip features from machine captions: one caption per clip, each turned into one vector by a sentence
encoder.

    python -m vmr_env.backbones.features.captions encode captions.jsonl --out features/clips
    python -m vmr_env.backbones.features.captions import caption_features --split val --out features/clips

``encode`` takes the captions of any captioner, one video per line: ``{"vid": …, "clip_len": seconds,
"captions": […]}``, one caption per clip in time order. ``import`` reads sentence embeddings of captions that
were made before and stored in eight bits. These are features of descriptions of a video, not of its pixels:
say so beside every figure.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vmr_env.backbones.arguments import add_cluster_arguments, cluster_of, device
from vmr_env.backbones.features.store import FeatureStore, FeatureStoreWriter
from vmr_env.backbones.features.text import Encoder, SentenceCache, SentenceEncoder, describe
from vmr_env.data.rows import Row, read_rows
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import PathLike
from vmr_env.programs import run_program

if TYPE_CHECKING:
    from vmr_env.backbones.cluster import Cluster

VALUES_FILE = "values.int8.npy"
SCALES_FILE = "scales.float16.npy"
VIDEOS_FILE = "videos.jsonl.gz"


def read_captions(path: PathLike, clip_seconds: float) -> dict[str, list[str]]:
    """Captions of each video, in time order.

    Args:
        path: json lines with ``vid``, ``clip_len`` and ``captions``.
        clip_seconds: the clip length that is needed.

    Raises:
        DataError: all rows with missing fields, another clip length, no or empty captions, or a repeated vid.
    """
    videos: dict[str, list[str]] = {}
    problems: list[Problem] = []
    for _, row in read_rows(path, problems):
        vid, seconds = _new_video(row, videos), row.number_of("clip_len")
        if seconds is not None and seconds != clip_seconds:
            row.note("clip_len", f"is {seconds}; expected {clip_seconds}")
        captions = row.values.get("captions")
        if not isinstance(captions, list) or not captions:
            row.note("captions", f"is {shorten(captions)}; expected a list of sentences")
            captions = []
        for index, caption in enumerate(captions):
            if not isinstance(caption, str) or not caption.strip():
                row.note(f"captions[{index}]", f"is {shorten(caption)}; expected a sentence")
        if vid is not None:
            videos[vid] = captions
        problems.extend(row.problems)
    if problems:
        raise DataError(problems)
    return videos


def build_caption_store(
    path: PathLike,
    videos: Mapping[str, Sequence[str]],
    encoder: Encoder,
    *,
    cache: PathLike | None = None,
    progress: bool = True,
    cluster: "Cluster | None" = None,
) -> FeatureStore:
    """Sentence features of captions as a feature store: key vid, one row per clip.

    Args:
        path: folder of the store; it must not exist.
        videos: vid -> captions in time order (`read_captions`).
        encoder: the language model.
        cache: folder of the sentence cache; equal captions are encoded once, an interrupted run continues.
        progress: show a progress bar.
        cluster: encodes the captions; None for this process.
    """
    known = SentenceCache(cache, encoder, "sentence")
    known.fill((caption for captions in videos.values() for caption in captions), progress, cluster)
    origin = {"features": "captions", **describe(encoder, "sentence")}
    with FeatureStoreWriter(path, source="real", origin=origin) as writer:
        for vid, captions in videos.items():
            writer.add(vid, np.concatenate([known[caption] for caption in captions]))
    return FeatureStore(path)


def import_caption_features(folder: PathLike, split: str, path: PathLike) -> FeatureStore:
    """Feature store of one split from caption embeddings kept in eight bits.

    Args:
        folder: holds ``values.int8.npy`` (captions, D), ``scales.float16.npy`` (captions,), with embedding =
            value * scale, and ``videos.jsonl.gz`` with ``vid``, ``split`` and ``rows``, one row number per
            clip.
        split: the videos to take.
        path: folder of the store; it must not exist.

    Raises:
        DataError: missing, damaged or mismatching files, row numbers out of range, or no video of that split.
    """
    folder = Path(folder)
    values, scales = _load(folder / VALUES_FILE), _load(folder / SCALES_FILE)
    if values.ndim != 2 or values.dtype != np.int8:
        expected = "int8 (captions, width)"
        raise _fail(folder / VALUES_FILE, f"is {values.dtype} {values.shape}; expected {expected}")
    if scales.shape != values.shape[:1] or scales.dtype != np.float16 or not np.isfinite(scales).all():
        expected = f"float16 ({len(values)},), all finite"
        raise _fail(folder / SCALES_FILE, f"is {scales.dtype} {scales.shape}; expected {expected}")
    videos = _read_videos(folder / VIDEOS_FILE, split, len(values))
    origin = {"features": "captions", "encoder": "all-MiniLM-L6-v2, stored in 8 bits", "split": split}
    with FeatureStoreWriter(path, source="real", origin=origin) as writer:
        for vid, rows in videos.items():
            writer.add(vid, values[rows].astype(np.float32) * scales[rows].astype(np.float32)[:, None])
    return FeatureStore(path)


def _read_videos(path: Path, split: str, captions: int) -> dict[str, NDArray[np.int64]]:
    videos: dict[str, NDArray[np.int64]] = {}
    problems: list[Problem] = []
    for _, row in read_rows(path, problems):
        vid, found, rows = _new_video(row, videos), row.text("split"), row.values.get("rows")
        if not (isinstance(rows, list) and rows and all(type(n) is int and 0 <= n < captions for n in rows)):
            row.note("rows", f"is {shorten(rows)}; expected row numbers below {captions}")
        elif vid is not None and found == split:
            videos[vid] = np.array(rows, np.int64)
        problems.extend(row.problems)
    if not problems and not videos:
        problems.append(Problem(str(path), None, "split", f"has no video of split {split!r}"))
    if problems:
        raise DataError(problems)
    return videos


def _new_video(row: Row, videos: Mapping[str, Any]) -> str | None:
    vid = row.text("vid")
    if vid in videos:
        row.note("vid", f"is {shorten(vid)}, as in an earlier row; expected each video once")
    return vid


def _load(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _fail(path, f"is no readable array ({error})") from error
    return array


def _fail(path: Path, message: str) -> DataError:
    return DataError(Problem(str(path), None, None, message))


def encode_parser() -> argparse.ArgumentParser:
    """The parser of `vmr-env encode captions`."""
    encode = argparse.ArgumentParser(
        prog="vmr-env encode captions", description="Encode captions with a sentence encoder."
    )
    encode.add_argument("captions", type=Path, help="json lines with vid, clip_len and captions")
    encode.add_argument("--clip-seconds", type=float, default=2.0, help="expected clip length (default: 2)")
    encode.add_argument("--model", help="sentence-transformers model (default: offline MiniLM)")
    encode.add_argument("--device", type=device, default="cpu", help="torch device (default: cpu)")
    encode.add_argument("--cache", type=Path, help="folder of the sentence cache")
    encode.add_argument("--out", type=Path, required=True, help="folder of the new feature store")
    add_cluster_arguments(encode)
    return encode


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: clip features from captions."""
    parser = argparse.ArgumentParser(
        prog="python -m vmr_env.backbones.features.captions", description=main.__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    told = "encode captions with a sentence encoder"
    commands.add_parser("encode", help=told, parents=[encode_parser()], add_help=False)
    load = commands.add_parser("import", help="import caption embeddings stored in eight bits")
    load.add_argument("folder", type=Path, help=f"folder with {VALUES_FILE}, {SCALES_FILE} and {VIDEOS_FILE}")
    load.add_argument("--split", required=True, help="videos to take")
    load.add_argument("--out", type=Path, required=True, help="folder of the new feature store")
    options = parser.parse_args(arguments)
    if options.command == "encode":
        videos = read_captions(options.captions, options.clip_seconds)
        encoder = SentenceEncoder(options.model, device=options.device)
        store = build_caption_store(
            options.out, videos, encoder, cache=options.cache, cluster=cluster_of(options)
        )
    else:
        store = import_caption_features(options.folder, options.split, options.out)
    print(f"{options.out}: {len(store)} videos, {store.manifest['rows']} clips of width {store.dim}")


if __name__ == "__main__":
    run_program(main)
