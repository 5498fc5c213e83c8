"""The programs that train and judge policies over all spans, on small files."""

import json
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import ARGUMENTS, make_cache
from click.testing import CliRunner
from test_dense import problem

from vmr_env.agents.dense import DensePolicy, Evidence
from vmr_env.agents.dense.cached import cached_predictions, cached_states
from vmr_env.agents.dense.network import DenseNetwork
from vmr_env.agents.dense.objectives import OBJECTIVES
from vmr_env.agents.dense.timeline import Timelines
from vmr_env.agents.dense.trainer import DenseConfig
from vmr_env.backbones.features.store import FeatureStoreWriter
from vmr_env.benchmarks.cli.main import main as cli
from vmr_env.benchmarks.experiment import dense, dense_sb3, parsers
from vmr_env.caches.reader import CacheBatch, DecoderStateCache, Ragged, write_cache
from vmr_env.data.predictions import by_score, read_predictions, write_predictions
from vmr_env.data.profiles import get_profile
from vmr_env.data.queries import Query
from vmr_env.data.timelines import Grid
from vmr_env.errors import DataError, DataWarning

PROFILE = get_profile("qvhighlights")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*rows are not by falling score"),  # of `problem`
    pytest.mark.filterwarnings("ignore:--test shares 20 source videos"),  # of most calls here
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that name queries, predictions and features of `problem`."""
    timelines = problem(20)
    rows = [
        {
            "qid": row.qid,
            "vid": row.vid,
            "query": row.query,
            "duration": row.duration,
            "relevant_windows": row.moments.tolist(),
        }
        for row in timelines.annotations
    ]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_predictions(tmp_path / "detector.jsonl", timelines.models[0])
    with FeatureStoreWriter(tmp_path / "clips", source="simulated", origin={}) as writer:
        for row in timelines.annotations:
            writer.add(row.vid, timelines._features.read(row.vid))
    monkeypatch.setattr(dense, "encode_queries", lambda queries, paraphrases: timelines._queries)
    threads = torch.get_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads())
    learnt = [str(tmp_path / "queries.jsonl"), str(tmp_path / "detector.jsonl")]
    return ["--train", *learnt, "--clips", str(tmp_path / "clips")]


def write_backbone_cache(path: Path, timelines: Timelines) -> None:
    """A backbone's cache of the same windows as timelines have, with random states and references."""
    rows, rng = timelines.models[0], np.random.default_rng(0)
    durations = np.array([row.duration for row in timelines.annotations])
    windows = np.stack([row.windows for row in rows])
    n, q, _ = windows.shape
    batch = CacheBatch(
        qids=[row.qid for row in rows],
        vids=[row.vid for row in rows],
        queries=[row.query for row in rows],
        durations=durations,
        n_clips=(durations / 2).astype(np.int32),
        moments=Ragged.from_rows([row.moments for row in timelines.annotations]),
        spans=(windows[..., :2] / durations[:, None, None]).astype(np.float32),
        scores=windows[..., 2].astype(np.float32),
        counts=np.full(n, q, np.int32),
        models=np.zeros((n, q), np.uint8),
        saliency=Ragged.from_rows([row.saliency for row in rows]),
        states=rng.normal(size=(n, q, 5)).astype(np.float32),
        references=rng.random((n, q, 2)).astype(np.float32),
    )
    write_cache(
        path, batch, **{**ARGUMENTS, "dataset": "qvhighlights", "models": ["one"], "clip_seconds": 2.0}
    )


def test_the_parser_knows_all_gradients() -> None:
    assert tuple(OBJECTIVES) == parsers.GRADIENTS


def test_folds_are_judged_beside_all_references(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "out.jsonl"
    short = ["--folds", "2", "--seeds", "1", "--epochs", "1", "--gradient", "ppo"]
    dense.main([*files, *short, "--ranker", "--out", str(out)])
    names = {line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line[:1] == "|"}
    references = {"vote over candidates", "evidence alone", "gradient boosting", "untrained policy"}
    assert names >= {"detector", "dense policy", *references}
    assert names >= {f"dense policy - {name}" for name in references}
    assert len(read_predictions(out)) == 20


def test_ppo_of_sb3_goes_on_from_imitation(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dense_sb3, "ROLLOUT", 512)
    judged = ["--test", *files[1:3]]
    dense_sb3.main([*files, *judged, "--seeds", "1", "--steps", "512"])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    figures = {line[1].strip(): [cell.strip() for cell in line[2:6]] for line in lines}
    assert figures["imitation alone"] != figures["detector"]
    assert figures["dense policy"] != figures["imitation alone"]


def test_weights_that_are_not_finite_stop_ppo_with_one_error(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [Path(path) for path in files[1:3]]
    clips = dense.Stores([dense.FeatureStore(Path(files[-1]))])
    timelines = dense.read_timelines(paths, clips, PROFILE)
    network = dense.train(timelines, 0, DenseConfig(epochs=1, gradient="none"))
    monkeypatch.setattr(dense_sb3, "ROLLOUT", 512)
    monkeypatch.setattr(dense_sb3, "gain_of", lambda tiou: float("nan"))
    with pytest.raises(FloatingPointError, match=r"SB3's PPO over spans, seed 5, step 512: gradient norm is"):
        dense_sb3.ppo_from(network, timelines, clips, "qvhighlights", 5, 512)


def test_an_extra_that_is_missing_is_a_line(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    ended = CliRunner().invoke(cli, ["dense", *files, "--folds", "2", "--ranker"])
    assert ended.exit_code == 1
    assert (
        ended.output.splitlines()[-1] == "error: the ranker needs scikit-learn: pip install 'vmr-env[ranker]'"
    )


def test_rewards_of_ppo_are_the_gain_of_the_policy() -> None:
    for tiou, expected in ((0.3, 0.1), (0.5, 0.5), (0.69, 0.563), (0.8, 0.933), (1.0, 1.0)):
        assert dense_sb3.gain_of(tiou) == pytest.approx(expected, abs=1e-3)


def test_a_wrong_call_is_one_line(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for program, options, message in (
        (dense_sb3.main, [*files, "--test", files[1]], "--test names one file"),
        (dense_sb3.main, [*files, "--test", *files[1:3], "--steps", "0"], "--steps is 0"),
        (dense.main, [*files, "--seeds", "0"], "--seeds is 0"),
        (dense.main, [*files, "--folds", "1"], "--folds is 1"),
    ):
        with pytest.raises(SystemExit):
            program(options)
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_features_of_the_folder_reach_the_timelines(files: list[str]) -> None:
    clips = dense.Stores([dense.FeatureStore(Path(files[-1]))])
    timelines = dense.read_timelines([Path(path) for path in files[1:3]], clips, PROFILE)
    np.testing.assert_allclose(timelines.clip_vectors(3), problem(20).clip_vectors(3), atol=2e-3)
    blind = dense.read_timelines([Path(path) for path in files[1:3]], clips, PROFILE, blind=True)
    assert not blind.clip_vectors(3).any()


def test_clips_are_those_of_the_data_set_and_features_of_whole_videos(files: list[str]) -> None:
    """Of Charades-STA a row is a second: rows of two seconds show half of each video as if it were all."""
    clips = dense.Stores([dense.FeatureStore(Path(files[-1]))])
    paths = [Path(path) for path in files[1:3]]
    with pytest.raises(DataError, match=r"of 'video0' are 12 rows, 12 s at 1 s a row; expected 24 s"):
        dense.read_timelines(paths, clips, get_profile("charades"))
    blind = dense.read_timelines(paths, clips, get_profile("charades"), blind=True)
    np.testing.assert_array_equal(blind.seconds, 1)
    np.testing.assert_array_equal(blind.clips, [row.duration for row in blind.annotations])
    policy = DensePolicy((DenseNetwork(clips.dim, 75),), Grid(seconds=1.0), 64)
    queries = {str(row.qid): np.zeros((1, clips.dim), np.float32) for row in blind.annotations}
    with pytest.raises(DataError, match=r"evidence: of 'video0' are 12 rows"):
        policy.answer(blind.models, blind.annotations, Evidence(clips, queries))


def test_the_detector_of_a_pool_is_the_best_where_the_policy_learns(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the order of the files: here one that knows all moments, named second or first."""
    truth = problem(20)
    right = [
        replace(row, windows=np.array([[*annotation.moments[0], 1.0]]))
        for row, annotation in zip(truth.models[0], truth.annotations, strict=True)
    ]
    write_predictions(tmp_path / "right.jsonl", right)
    queries, worse, better = files[1], files[2], str(tmp_path / "right.jsonl")
    short = ["--folds", "2", "--seeds", "1", "--epochs", "1"]
    for pool in ([worse, better], [better, worse]):
        dense.main(["--train", queries, *pool, *files[-2:], *short])
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| detector |")]
        assert rows[0].split("|")[2:5] == [" 100.00 "] * 3
    # Each fold chooses without its own queries: of the two, each is right on one half.
    first, second = right[:10] + truth.models[0][10:], truth.models[0][:10] + right[10:]
    pool = Timelines([first, second], truth.annotations, truth._features, truth._queries, truth.grid)
    parts = [(range(10), range(10, 20)), (range(10, 20), range(10))]
    assert dense.detectors(pool, pool.models, parts, ["a", "b"]) == truth.models[0]


def test_folds_and_seeds_have_streams_of_their_own(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    trained = dense.train

    def train(timelines: Timelines, seed: int, *rest: object) -> DenseNetwork:
        asked.append(seed)
        return trained(timelines, seed, *rest)

    monkeypatch.setattr(dense, "train", train)
    dense.main([*files, "--folds", "2", "--seeds", "2", "--epochs", "1"])
    assert len(set(asked)) == len(asked) == 4
    asked.clear()
    with pytest.warns(DataWarning, match="--test shares 20 source videos with --train"):
        dense.main([*files, "--test", *files[1:3], "--seeds", "2", "--epochs", "1"])
    assert asked == [0, 1]


def test_windows_that_are_not_by_score_are_told_and_sorted_on_request(
    files: list[str], tmp_path: Path
) -> None:
    turned = [replace(row, windows=row.windows[::-1]) for row in problem(20).models[0]]
    write_predictions(tmp_path / "turned.jsonl", turned)
    paths = [Path(files[1]), tmp_path / "turned.jsonl"]
    clips = dense.Stores([dense.FeatureStore(Path(files[-1]))])
    with pytest.warns(DataWarning, match=r"turned\.jsonl: pred_relevant_windows of \d+ of 20 rows are not"):
        dense.read_timelines(paths, clips, PROFILE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        timelines = dense.read_timelines(paths, clips, PROFILE, sort=True)
    for row, expected in zip(timelines.models[0], problem(20).models[0], strict=True):
        np.testing.assert_array_equal(row.windows, by_score(expected).windows)


def test_places_are_tried_before_anything_is_learnt(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "train", lambda *_: pytest.fail("training began"))
    test = ["--test", *files[1:3]]
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for options, message in (
        (["--out", str(tmp_path / "no" / "out.jsonl")], "cannot be written"),
        (["--out", str(other)], "cannot be written"),
        ([*test, "--save", str(other)], "is there already and no policy"),
        ([*test, "--save", files[1]], "is there already and no policy"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(DataError, match=message):
            dense.main([*files, *options])
        assert sorted(tmp_path.rglob("*")) == before


def test_a_cache_is_a_detector_alone_or_beside_files(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timelines = problem(20)
    write_backbone_cache(tmp_path / "cache", timelines)
    queries, clips = files[1], files[-2:]
    short = ["--folds", "2", "--seeds", "1", "--epochs", "1", "--cache", str(tmp_path / "cache")]
    dense.main(["--train", queries, *clips, *short, "--states"])
    alone = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| detector |")]
    dense.main([*files, *short])
    beside = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| detector |")]
    assert alone == beside  # the cache holds the windows of the file

    cache = DecoderStateCache.open(tmp_path / "cache")
    shown = cached_predictions(cache)
    for row, expected in zip(shown, timelines.models[0], strict=True):
        np.testing.assert_allclose(row.windows, expected.windows, atol=1e-5)
        np.testing.assert_allclose(row.saliency, expected.saliency)
    for i, states in enumerate(cached_states(cache).values()):
        centres, widths = cache.references[i].T
        np.testing.assert_allclose(states.spans, np.stack([centres - widths / 2, centres + widths / 2], 1))
        np.testing.assert_allclose(states.shares, cache.scores[i] / cache.scores[i].sum(), rtol=1e-6)


def test_a_wrong_call_with_a_cache_is_one_line(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--test", *files[1:3]]
    for options, message in (
        ([*files, "--states"], "--states reads decoder states from --cache"),
        ([*files, "--test-cache", "b"], "expected --test beside it"),
        ([*files, *both, "--cache", "a"], "only one of --cache and --test-cache"),
        (
            [*files, *both, "--cache", "a", "--test-cache", "b", "--states", "--save", "p"],
            "expected no --states",
        ),
    ):
        with pytest.raises(SystemExit):
            dense.main(options)
        assert message in capsys.readouterr().err.splitlines()[-1]
    pool = DecoderStateCache.open(make_cache(tmp_path / "pool"))
    with pytest.raises(DataError, match="has 2 models; expected one"):
        cached_predictions(pool)
    with pytest.raises(DataError, match="no decoder states"):
        cached_states(pool)


def test_paraphrases_belong_to_the_query_of_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"qid": 1, "query": "a dog", "rephrased_query": ["one dog", "some dog"]},
        {"qid": 2, "query": "a cat", "rephrased_query": ["one cat"]},
        {"qid": 3, "query": "another split's", "rephrased_query": ["words"]},
    ]
    path = tmp_path / "rephrased.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    class Letters:
        """Vectors that tell sentences apart: of the first letters."""

        def __init__(self, *_: object) -> None: ...

        def fill(self, texts: Iterable[str]) -> None: ...

        def __getitem__(self, text: str) -> np.ndarray:
            return np.array([[ord(text[0]), ord(text[-1])]], np.float32)

    monkeypatch.setattr(dense, "SentenceCache", Letters)
    monkeypatch.setattr(dense, "SentenceEncoder", lambda model: None)
    asked = [Query(7, "v", "a cat", 30.0), Query("1", "v", "a dog", 30.0), Query(3, "v", "a bird", 30.0)]
    vectors = dense.encode_queries(asked, [path])
    assert vectors["7"].tolist() == [[97.0, 116.0], [111.0, 116.0]]
    assert vectors["1"].tolist() == [[97.0, 103.0], [111.0, 103.0], [115.0, 103.0]]
    assert vectors["3"].tolist() == [[97.0, 100.0]]  # of another query with this qid


def test_judged_queries_are_asked_in_their_paraphrases_too(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, list[Path]]] = []
    real = dense.encode_queries

    def encode(queries: Sequence[object], paraphrases: Sequence[Path]) -> Mapping[str, np.ndarray]:
        given.append((len(queries), list(paraphrases)))
        return real(queries, paraphrases)

    monkeypatch.setattr(dense, "encode_queries", encode)
    short = ["--seeds", "1", "--epochs", "1", "--paraphrases", "words"]
    dense.main([*files, "--test", *files[1:3], *short])
    assert given == [(20, [Path("words")])] * 2
