"""Own videos to features: times against a counter that pictures show, and a tiny model of random weights."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

av = pytest.importorskip("av")
transformers = pytest.importorskip("transformers")

from vmr_env.backbones.features.store import FeatureStore  # noqa: E402
from vmr_env.backbones.features.video import ClipModel, build_video_store, read_clips  # noqa: E402
from vmr_env.benchmarks.cli import main as cli  # noqa: E402
from vmr_env.errors import DataError  # noqa: E402

BITS, SQUARE = 8, 16


def picture(number: int) -> NDArray[np.uint8]:
    """A counter: eight squares, white where the number has a bit."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 255, SQUARE)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (64, BITS * SQUARE, 3)))


def number_of(shown: NDArray[np.uint8]) -> int:
    squares = shown.astype(float).mean(axis=(0, 2)).reshape(BITS, SQUARE).mean(axis=1)
    return sum(1 << bit for bit, value in enumerate(squares.tolist()) if value > 127)


def render(path: Path, times: Sequence[float], step: float = 0.1) -> Path:
    """A video whose picture k shows the number k from times[k] seconds on; the last one for `step` s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=round(1 / step))
        stream.width, stream.height, stream.pix_fmt = BITS * SQUARE, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown_at(times: Sequence[float], moment: float) -> int:
    """Number of the picture that is shown at a moment."""
    return max(k for k, time in enumerate(times) if time <= moment + 1e-9)


STEADY = [0.1 * k for k in range(52)]
UNSTEADY = [0.0, 0.1, 0.2, 1.7, 1.8, 2.3, 2.4, 2.45, 3.9, 4.0, 4.1, 4.3, 4.9, 5.1]


@pytest.mark.parametrize("times", [STEADY, UNSTEADY], ids=["steady", "unsteady"])
@pytest.mark.parametrize("clip_seconds", [1.0, 2.0, 0.5])
def test_a_clip_is_the_picture_in_its_middle(tmp_path: Path, times: list[float], clip_seconds: float) -> None:
    clips = read_clips(render(tmp_path / "v.mkv", times), clip_seconds)
    assert clips.seconds == pytest.approx(5.2, abs=0.03)
    middles = (np.arange(np.ceil(5.18 / clip_seconds)) + 0.5) * clip_seconds
    assert [number_of(shown) for shown in clips.pictures] == [
        shown_at(times, min(middle, times[-1])) for middle in middles.tolist()
    ]


def test_a_video_shorter_than_a_clip_is_one_clip(tmp_path: Path) -> None:
    clips = read_clips(render(tmp_path / "v.mkv", [0.0, 0.1, 0.2]), 2.0)
    assert [number_of(shown) for shown in clips.pictures] == [2]


def test_broken_files_are_one_error_each_in_words(tmp_path: Path) -> None:
    whole = render(tmp_path / "v.mkv", STEADY).read_bytes()
    for name, content in {"empty": b"", "noise": bytes(range(256)) * 9, "head": whole[:300]}.items():
        path = tmp_path / f"{name}.mkv"
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=f"{name}.mkv: .*expected a video|{name}.mkv: is no readable video"
        ):
            read_clips(path, 1.0)
    with pytest.raises(DataError, match=r"absent.mkv: is no readable video"):
        read_clips(tmp_path / "absent.mkv", 1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of a few hundred weights, saved like any other."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model")
    words = {
        word: number for number, word in enumerate(["[PAD]", "[UNK]", "[EOS]", "a", "man", "sits", "runs"])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=shape | {"vocab_size": len(words), "max_position_embeddings": 12, "eos_token_id": 2},
        vision_config=shape | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_rows_are_the_model_s_own_features_in_any_batches(tmp_path: Path, model: Path) -> None:
    pictures = [picture(number) for number in range(7)]
    small, large = (ClipModel(str(model), batch_size=size) for size in (2, 32))
    rows = large.pictures(pictures)
    assert rows.shape == (7, 8)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(small.pictures(pictures), rows, atol=1e-5)
    assert small.fingerprint == large.fingerprint
    tokens = large.sentences(["a man sits", "runs"])
    assert [array.shape for array in tokens] == [(3, 16), (1, 16)]


class Counting:
    """An encoder whose feature is the number that a picture shows, and that counts what it was given."""

    name, fingerprint = "counting", "f" * 64

    def __init__(self) -> None:
        self.seen = 0

    def pictures(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.seen += len(pictures)
        return np.array([[number_of(shown), 1] for shown in pictures], np.float32)


def test_a_run_goes_on_where_it_was_and_content_counts(tmp_path: Path) -> None:
    videos = [render(tmp_path / f"{name}.mkv", STEADY[: 10 * k]) for k, name in ((2, "a"), (3, "b"))]
    broken = tmp_path / "c.mkv"
    broken.write_bytes(b"nothing")
    encoder = Counting()
    with pytest.raises(DataError, match=r"c.mkv: is no readable video"):
        build_video_store(
            tmp_path / "s", [*videos, broken], encoder, 1.0, cache=tmp_path / "k", progress=False
        )
    assert not (tmp_path / "s").exists()
    assert encoder.seen == 5
    renamed = videos[0].rename(tmp_path / "other name.mkv")
    durations = build_video_store(
        tmp_path / "s", [renamed, videos[1]], encoder, 1.0, cache=tmp_path / "k", progress=False
    )
    assert encoder.seen == 5
    assert durations == pytest.approx({"other name": 2, "b": 3}, abs=0.03)
    store = FeatureStore(tmp_path / "s", checksums=True)
    assert store.read("b")[:, 0].tolist() == [5, 15, 25]
    with pytest.raises(DataError, match="has the name of"):
        build_video_store(tmp_path / "t", [renamed, tmp_path / "x" / renamed.name], encoder, 1.0)


def test_from_videos_and_sentences_to_stores(tmp_path: Path, model: Path) -> None:
    videos = [render(tmp_path / f"{name}.mkv", STEADY[:30]) for name in "ab"]
    queries = tmp_path / "q.jsonl"
    queries.write_text(
        "".join(json.dumps({"qid": i, "vid": v, "query": "a man runs"}) + "\n" for i, v in enumerate("ab"))
    )
    arguments: list[Any] = ["encode", "video", *videos, "--model", model, "--dataset", "charades"]
    arguments += ["--out", tmp_path / "clips", "--durations", tmp_path / "d.json"]
    arguments += ["--queries", queries, "--text-out", tmp_path / "text", "--cache", tmp_path / "kept"]
    done = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    clips, text = FeatureStore(tmp_path / "clips"), FeatureStore(tmp_path / "text")
    assert (list(clips), clips.read("a").shape) == (["a", "b"], (3, 8))
    assert (list(text), text.read("0").shape) == (["0", "1"], (3, 16))
    assert set(json.loads((tmp_path / "d.json").read_text())) == {"a", "b"}


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="is no model that transformers can load"):
        ClipModel(str(tmp_path))
