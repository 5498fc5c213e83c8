"""Own videos to features: pictures by PyAV, encoded by any CLIP-like model of `transformers`, once and kept.

    python -m vmr_env.backbones.features.video videos/*.mp4 --model openai/clip-vit-base-patch32 \\
        --dataset charades --out features/clips --queries annotations.jsonl --text-out features/text

A row of features is a clip: the picture that is shown in the clip's middle, at any frame rate, or the last
one of the video where it ends before. A key is a file's name without its suffix. Features of a file are kept
by its content, so that an interrupted run goes on from there (extra ``[video]``).
"""

import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vmr_env.backbones.features.store import FeatureStore, FeatureStoreWriter
from vmr_env.backbones.features.text import read_sentences
from vmr_env.backbones.parsers import video_parser
from vmr_env.caches.writer import sha256_of
from vmr_env.data.annotations import NOISE_SECONDS
from vmr_env.data.profiles import PROFILES
from vmr_env.errors import DataError, MissingExtra, Problem
from vmr_env.files.text import PathLike, write_text
from vmr_env.files.user_cache import user_cache_folder
from vmr_env.files.writing import write_bytes

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Clips:
    """What a video shows.

    Attributes:
        seconds: length of the video.
        pictures: uint8 (H, W, 3) RGB, the picture in the middle of each clip.
    """

    seconds: float
    pictures: list[Picture]


def read_clips(path: PathLike, clip_seconds: float) -> Clips:
    """The picture that a video shows in the middle of each clip.

    The number of clips is seconds / clip_seconds, rounded up but for `NOISE_SECONDS` of rounding, at least
    one. A video ends when its last picture's time is over.

    Args:
        path: any file that PyAV opens.
        clip_seconds: length of a clip.

    Raises:
        DataError: it is no video, or has no picture.
        MissingExtra: the extra ``[video]`` is not installed.
    """
    pictures: list[Picture] = []
    shown, end = None, 0.0
    for start, length, frame in _frames(Path(path)):
        while shown is not None and (len(pictures) + 0.5) * clip_seconds < start:
            pictures.append(shown.to_ndarray(format="rgb24"))
        shown, end = frame, start + length
    if shown is None:
        raise _fail(path, "holds no picture; expected a video")
    wanted = max(1, math.ceil((end - NOISE_SECONDS) / clip_seconds))
    last = shown.to_ndarray(format="rgb24")
    pictures += [last] * (wanted - len(pictures))
    return Clips(end, pictures[:wanted])


def _frames(path: Path) -> Iterator[tuple[float, float, Any]]:
    """Start (from the first frame on) and length in seconds, and picture of each frame, as they are shown."""
    try:
        import av
    except ImportError as error:
        raise MissingExtra(f"{error}; videos need `pip install vmr-env[video]`") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise _fail(path, "has no pictures; expected a video")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 25)
            first: float | None = None
            for frame in container.decode(stream):
                if frame.pts is None or frame.time_base is None:
                    continue
                start = float(frame.pts * frame.time_base)
                first = start if first is None else first
                length = float(frame.duration * frame.time_base) if frame.duration else 1 / rate
                yield start - first, length, frame
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise _fail(path, f"is no readable video ({reason})") from error


class PictureEncoder(Protocol):
    """Turns pictures into features."""

    @property
    def name(self) -> str:
        """What a reader should know it by."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest that changes whenever the features would."""
        ...

    def pictures(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Features of pictures: ``(N, D)``."""
        ...


class ClipModel:
    """A CLIP-like model of `transformers`: one with `get_image_features` and a text tower.

    Args:
        model: name or folder; nothing of it is run but the code of `transformers`.
        device: torch device.
        batch_size: pictures, or sentences, in one forward pass.

    Raises:
        MissingExtra: the extra ``[video]`` is not installed.
        DataError: there is no such model, or it has no pictures.
    """

    def __init__(self, model: str, *, device: str = "cpu", batch_size: int = 32) -> None:
        try:
            import transformers
        except ImportError as error:
            raise MissingExtra(f"{error}; videos need `pip install vmr-env[video]`") from error
        self.name = Path(model).name if Path(model).is_dir() else model
        library: Any = transformers  # half of it has no types
        try:
            self._model = library.AutoModel.from_pretrained(model, trust_remote_code=False).to(device).eval()
            self._processor = library.AutoImageProcessor.from_pretrained(model, use_fast=False)
            self._tokenizer = library.AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            reason = str(error).split("\n", 1)[0]
            raise _fail(model, f"is no model that transformers can load ({reason})") from error
        if not hasattr(self._model, "get_image_features"):
            kind = type(self._model).__name__
            raise _fail(model, f"is a {kind}, which has no pictures; expected a CLIP-like model")
        self._device, self._batch_size = device, batch_size

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over weights, picture settings and tokeniser."""
        digest = hashlib.sha256(json.dumps(self._processor.to_dict(), sort_keys=True, default=str).encode())
        for key, value in sorted(self._model.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
        digest.update(json.dumps(self._tokenizer.get_vocab(), sort_keys=True).encode())
        return digest.hexdigest()

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Features of pictures: ``(N, D)``, each divided by its length."""
        rows = []
        for start in range(0, len(pictures), self._batch_size):
            chunk = list(pictures[start : start + self._batch_size])
            inputs = self._processor(images=chunk, return_tensors="pt").to(self._device)
            found = self._model.get_image_features(**inputs)
            found = getattr(found, "pooler_output", found)  # newer versions wrap it
            rows.append(torch.nn.functional.normalize(found.float(), dim=-1).cpu().numpy())
        return np.concatenate(rows)

    @torch.inference_mode()
    def sentences(self, sentences: Sequence[str]) -> list[NDArray[np.float32]]:
        """Features of the tokens of each sentence: ``(tokens, D)``, the text tower's last hidden states."""
        rows: list[NDArray[np.float32]] = []
        limit = self._model.config.text_config.max_position_embeddings
        for start in range(0, len(sentences), self._batch_size):
            chunk = list(sentences[start : start + self._batch_size])
            inputs = self._tokenizer(
                chunk, padding=True, truncation=True, max_length=limit, return_tensors="pt"
            ).to(self._device)
            hidden = self._model.text_model(**inputs).last_hidden_state.float().cpu().numpy()
            lengths = inputs["attention_mask"].sum(1).tolist()
            rows += [states[:length] for states, length in zip(hidden, lengths, strict=True)]
        return rows


@dataclass(frozen=True, slots=True)
class Encoded:
    """One video: its length in seconds, and features ``(T, D)``, one row a clip."""

    seconds: float
    rows: NDArray[np.float32]


class VideoCache:
    """Features of videos by content, below one folder per encoder and clip length; see the module."""

    def __init__(self, folder: PathLike | None, encoder: PictureEncoder, clip_seconds: float) -> None:
        base = user_cache_folder() / "video" if folder is None else Path(folder)
        self._folder = base / f"{encoder.fingerprint[:16]}-{clip_seconds:g}s"
        self._encoder, self._clip_seconds = encoder, clip_seconds

    def encode(self, path: Path) -> Encoded:
        """Features of one video, from what is kept where its content is known.

        Raises:
            DataError: it cannot be read, or the folder cannot be written.
        """
        kept = self._folder / f"{_sha256(path)}.npz"
        if kept.exists():
            with np.load(kept, allow_pickle=False) as arrays:
                return Encoded(float(arrays["seconds"]), arrays["rows"])
        clips = read_clips(path, self._clip_seconds)
        encoded = Encoded(clips.seconds, self._encoder.pictures(clips.pictures))
        buffer = io.BytesIO()
        np.savez(buffer, seconds=np.float64(encoded.seconds), rows=encoded.rows)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_bytes(kept, buffer.getvalue())
        return encoded


def build_video_store(
    path: PathLike,
    videos: Iterable[PathLike],
    encoder: PictureEncoder,
    clip_seconds: float,
    *,
    cache: PathLike | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Features of videos as a feature store, by the names of their files.

    Args:
        path: folder of the store; it must not exist.
        videos: files.
        encoder: the model.
        clip_seconds: length of a clip.
        cache: folder that keeps features by content; None is the user's.
        progress: show a progress bar.

    Returns:
        Length of each video in seconds, by its key.

    Raises:
        DataError: files that cannot be read, all at once, after the others were encoded and kept; two files
            of one name; nothing is written then.
    """
    files: dict[str, Path] = {}
    problems: list[Problem] = []
    for file in map(Path, videos):
        if (other := files.setdefault(file.stem, file)) != file:
            problems.append(
                Problem(str(file), None, None, f"has the name of {other}; expected one of its own")
            )
    if problems:
        raise DataError(problems)
    known = VideoCache(cache, encoder, clip_seconds)
    origin = {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "clip_seconds": clip_seconds}
    durations: dict[str, float] = {}
    with FeatureStoreWriter(path, source="real", origin=origin) as writer:
        for key, file in tqdm(files.items(), desc="encode", unit="video", disable=not progress):
            try:
                encoded = known.encode(file)
            except DataError as error:
                problems.extend(error.problems)
                continue
            writer.add(key, encoded.rows)
            durations[key] = encoded.seconds
        if problems:
            raise DataError(problems)
    return durations


def build_sentence_store(path: PathLike, sentences: Mapping[str, str], model: ClipModel) -> FeatureStore:
    """Token features of sentences, by their keys, from the text side of the model.

    Raises:
        DataError: the folder exists, or cannot be written.
    """
    origin = {"encoder": model.name, "fingerprint": model.fingerprint, "level": "tokens"}
    with FeatureStoreWriter(path, source="real", origin=origin) as writer:
        for key, rows in zip(sentences, model.sentences(list(sentences.values())), strict=True):
            writer.add(key, rows)
    return FeatureStore(path)


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise _fail(path, f"cannot be read ({error.strerror}); expected a video") from error


def _fail(path: PathLike, message: str) -> DataError:
    return DataError(Problem(str(path), None, None, message))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: encode videos, and the queries about them, by a CLIP-like model."""
    parser = video_parser()
    options = parser.parse_args(arguments)
    if (options.queries is None) != (options.text_out is None):
        parser.error("--queries and --text-out belong together")
    clip_seconds = options.clip_seconds or PROFILES[options.dataset].clip_seconds
    if not 0 < clip_seconds < math.inf:
        parser.error(f"--clip-seconds is {clip_seconds}; expected a positive number")
    sentences = {} if options.queries is None else read_sentences(options.queries)
    model = ClipModel(options.model, device=options.device, batch_size=options.batch_size)
    durations = build_video_store(options.out, options.videos, model, clip_seconds, cache=options.cache)
    if options.durations is not None:
        write_text(options.durations, json.dumps(durations, indent=1) + "\n")
    print(f"{options.out}: {len(durations)} videos of {sum(durations.values()):.1f} s")
    if sentences:
        store = build_sentence_store(options.text_out, sentences, model)
        print(f"{options.text_out}: {len(store)} sentences of width {store.dim}")


if __name__ == "__main__":
    main()
