import gzip
import hashlib
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmr_env.caches.from_predictions import build_prediction_cache
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import Annotation, read_annotations
from vmr_env.data.predictions import read_predictions
from vmr_env.data.profiles import PROFILES
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.errors import DataError, DataWarning
from vmr_env.metrics.moments import evaluate
from vmr_env.metrics.spans import best_tiou

CHARADES, QVHIGHLIGHTS, TACOS = (PROFILES[name] for name in ("charades", "qvhighlights", "tacos"))


def annotation(qid: int | str, duration: float = 20.0) -> Annotation:
    return Annotation(qid, f"v{qid}", f"query {qid}", duration, np.array([[2.0, 9.0]]))


def row(qid: int | str, windows: Any, saliency: Any = None) -> dict[str, Any]:
    values = {"qid": qid, "vid": f"v{qid}", "query": f"query {qid}", "pred_relevant_windows": windows}
    return values if saliency is None else values | {"pred_saliency_scores": saliency}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(values) + "\n" for values in rows))
    return path


def build(folder: Path, *args: Any, **options: Any) -> DecoderStateCache:
    return DecoderStateCache.open(
        build_prediction_cache(folder / "cache", *args, CHARADES, "test", **options)
    )


# Head-room of METRICS.md: R1@0.5, R1@0.7, mIoU of the best of the first k proposals.
HEAD_ROOM = {
    ("qvhighlights_val.moment_detr", 1): (53.9, 34.8, 49.2),
    ("qvhighlights_val.moment_detr", 5): (75.0, 47.7, 64.9),
    ("qvhighlights_val.moment_detr", 10): (83.1, 53.7, 69.5),
    ("qvhighlights_val.cg_detr", 1): (67.4, 52.1, 61.7),
    ("qvhighlights_val.cg_detr", 5): (82.4, 64.0, 73.3),
    ("qvhighlights_val.cg_detr", 10): (86.9, 67.6, 76.3),
    ("charades_sta_test.qd_la_detr", 1): (56.8, 35.7, 49.0),
    ("charades_sta_test.qd_la_detr", 5): (83.0, 55.8, 68.6),
    ("charades_sta_test.qd_la_detr", 10): (91.9, 65.4, 74.3),
    ("tacos_test.qd_la_detr", 1): (36.6, 20.3, 36.0),
    ("tacos_test.qd_la_detr", 5): (55.3, 32.6, 49.5),
    ("tacos_test.qd_la_detr", 10): (61.7, 36.4, 54.2),
}
TRUTH = {
    "charades_sta_test": ("charades_sta/charades_sta_test.jsonl", CHARADES),
    "qvhighlights_val": ("qvhighlights/highlight_val_release.jsonl", QVHIGHLIGHTS),
    "qvhighlights_test": ("qvhighlights/highlight_test_with_gt.jsonl", QVHIGHLIGHTS),
    "tacos_test": ("tacos/test.jsonl", TACOS),
}


@pytest.mark.parametrize("name", sorted({name for name, _ in HEAD_ROOM}))
def test_real_files_keep_their_published_head_room(data: Path, tmp_path: Path, name: str) -> None:
    truth, profile = TRUTH[name.partition(".")[0]]
    path = build_prediction_cache(
        tmp_path / "c", data / "predictions" / f"{name}.jsonl.gz", data / truth, profile, "test"
    )
    cache = DecoderStateCache.open(path)
    cache.verify()
    assert cache.manifest["models"] == [name.partition(".")[2]]
    overlap = [
        best_tiou(cache.spans[i, : cache.counts[i]].astype(float), cache.moments[i][None].astype(float))
        for i in range(len(cache))
    ]
    for k in (1, 5, 10):
        best = np.array([row[:k].max() for row in overlap])
        # Windows here end with the video, where the official evaluator lets them run on; a few queries sit on
        # a threshold.
        figures = (best >= 0.5 - 1e-6).mean(), (best >= 0.7 - 1e-6).mean(), best.mean()
        np.testing.assert_allclose(np.array(figures) * 100, HEAD_ROOM[name, k], atol=0.25)


def test_a_pool_of_real_files_holds_each_file_whole(data: Path, tmp_path: Path) -> None:
    files = [
        data / "predictions" / f"qvhighlights_test.{name}.jsonl.gz" for name in ("cg_detr", "qd_detr_40q")
    ]
    truth = data / TRUTH["qvhighlights_test"][0]
    cache = DecoderStateCache.open(build_prediction_cache(tmp_path / "c", files, truth, QVHIGHLIGHTS, "test"))
    assert cache.manifest["models"] == ["cg_detr", "qd_detr_40q"]
    assert cache.spans.shape == (1542, 50, 2)
    for model, file in enumerate(files):
        rows = {str(row.qid): row for row in read_predictions(file)}
        for i, annotated in enumerate(read_annotations(truth)):
            own = cache.models[i] == model
            windows = rows[str(annotated.qid)].windows
            np.testing.assert_allclose(
                cache.spans[i, own[:50]] * annotated.duration,
                np.clip(windows[:, :2], 0, annotated.duration),
                atol=1e-4,
            )
            np.testing.assert_array_equal(cache.scores[i, own], windows[:, 2].astype(np.float32))
    notes = cache.manifest["notes"]
    assert notes["saliency_padded"] == 34  # 17 videos of features a clip short, in each of both files
    assert notes["models"]["cg_detr"]["sha256"] == hashlib.sha256(files[0].read_bytes()).hexdigest()


window_lists = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 100)).map(
        lambda w: [float(min(w[:2])), float(max(w[:2])), w[2] / 100]
    ),
    min_size=1,
    max_size=4,
)
pools = st.lists(st.dictionaries(st.integers(0, 3), window_lists, min_size=1), min_size=1, max_size=4).filter(
    lambda pool: set().union(*pool) == {0, 1, 2, 3}
)


@settings(max_examples=40, deadline=None)
@given(pool=pools, limit=st.none() | st.integers(1, 6))
def test_proposals_alternate_by_rank_among_models(
    tmp_path_factory: pytest.TempPathFactory, pool: list[dict[int, Any]], limit: int | None
) -> None:
    folder = tmp_path_factory.mktemp("pool")
    files = {
        f"m{i}": write(folder / f"{i}.jsonl", [row(qid, windows) for qid, windows in rows.items()])
        for i, rows in enumerate(pool)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # windows are in any order here
        cache = build(folder, files, [annotation(qid) for qid in range(4)], max_proposals=limit)
    cut = 0
    for qid in range(4):
        expected = [
            (rows[qid][rank], model)
            for rank in range(4)
            for model, rows in enumerate(pool)
            if qid in rows and rank < len(rows[qid])
        ]
        cut += len(expected[limit:]) if limit else 0
        expected = expected[:limit]
        assert cache.counts[qid] == len(expected)
        for place, ((start, end, score), model) in enumerate(expected):
            np.testing.assert_allclose(cache.spans[qid, place] * 20, (start, end), atol=1e-5)
            assert cache.scores[qid, place] == np.float32(score)
            assert cache.models[qid, place] == model
    assert cache.manifest["notes"]["proposals_cut"] == cut
    cache.verify()


def test_samples_stand_in_the_order_of_the_annotations_with_their_names(tmp_path: Path) -> None:
    file = write(tmp_path / "val.net.jsonl", [row("b", [[0, 1, 0.5]]), row("7", [[1, 2, 0.5]])])
    cache = build(tmp_path, file, [annotation(7), annotation("b", duration=21.5)])
    assert cache.qids() == [7, "b"]
    assert cache.manifest["models"] == ["net"]
    assert cache.manifest["source"] == "predictions"
    assert cache.manifest["backbone"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert cache.n_clips.tolist() == [20, 22]
    np.testing.assert_allclose(cache.spans[:, 0], [[0.05, 0.1], [0, 1 / 21.5]])
    assert cache.saliency is None
    assert cache.sample(1).moments.tolist() == [[2.0, 9.0]]


def test_windows_end_with_the_video_and_empty_ones_stay(tmp_path: Path) -> None:
    windows = [[-3, 10, 0.5], [15, 25, 0.9], [30, 40, 0.1], [4, 4, 0.1], [0, 20, 0]]
    with pytest.warns(UserWarning, match=r"a\.jsonl: .* of 1 of 1 rows are not by falling score.*--sort"):
        cache = build(tmp_path, write(tmp_path / "a.jsonl", [row(1, windows)]), [annotation(1)])
    assert cache.spans[0].tolist() == [[0, 0.5], [0.75, 1], [1, 1], [np.float32(0.2)] * 2, [0, 1]]
    assert cache.manifest["notes"]["windows_clipped"] == 3
    assert cache.manifest["notes"]["rows_unsorted"] == 1


def test_saliency_of_one_model_stands_as_in_its_file_but_for_one_clip(tmp_path: Path) -> None:
    curves = {1: [1.5] * 19, 2: list(range(20)), 3: list(range(21))}
    file = write(tmp_path / "a.jsonl", [row(qid, [[0, 1, 0.5]], curve) for qid, curve in curves.items()])
    cache = build(tmp_path, file, [annotation(qid) for qid in curves])
    assert cache.saliency is not None
    assert cache.saliency[0].tolist() == [1.5] * 19 + [0]
    assert cache.saliency[1].tolist() == cache.saliency[2].tolist() == list(range(20))
    notes = cache.manifest["notes"]
    assert (notes["saliency_cut"], notes["saliency_padded"]) == (1, 1)


def test_saliency_of_a_pool_is_the_mean_of_standardised_curves(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 10, 20), rng.normal(-5, 0.1, 20)
    files = [
        write(tmp_path / "a.jsonl", [row(1, [[0, 1, 0.5]], a.tolist()), row(2, [[0, 1, 0.5]], a.tolist())]),
        write(tmp_path / "b.jsonl", [row(1, [[0, 1, 0.5]], b.tolist())]),
        write(tmp_path / "c.jsonl", [row(1, [[0, 1, 0.5]]), row(2, [[0, 1, 0.5]])]),
        write(tmp_path / "d.jsonl", [row(1, [[0, 1, 0.5]], [4.0] * 20)]),  # flat: nothing to tell
    ]
    cache = build(tmp_path, files, [annotation(1), annotation(2)])
    assert cache.saliency is not None
    z = [(curve - np.mean(curve)) / np.std(curve) for curve in (a, b)]
    np.testing.assert_allclose(cache.saliency[0], (z[0] + z[1] + 0) / 3, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cache.saliency[1], z[0], rtol=1e-5, atol=1e-6)


def test_predictions_for_other_queries_are_dropped_on_request_only(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [row(qid, [[0, 1, 0.5]]) for qid in (1, 2, 3)])
    cache = build(tmp_path, file, [annotation(2)], unknown_queries="drop")
    assert cache.qids() == [2]
    assert cache.manifest["notes"]["predictions_dropped"] == 2


ONE = [row(1, [[0, 1, 0.5]])]
WITH_SALIENCY = [row(1, [[0, 1, 0.5]], [0.0] * 20)]
Files = Callable[[Path], Any]


def files(*contents: list[dict[str, Any]], **options: Any) -> Files:
    """Files a.jsonl, b.jsonl, … with these rows, beside annotations of query 1."""
    return lambda folder: (
        [write(folder / f"{name}.jsonl", rows) for name, rows in zip("abcd", contents, strict=False)],
        [annotation(1)],
        options,
    )


def raw(content: bytes, name: str = "a.jsonl") -> Files:
    def make(folder: Path) -> Any:
        (folder / name).write_bytes(content)
        return folder / name, [annotation(1)], {}

    return make


BROKEN: dict[str, tuple[Files, str]] = {
    "no file at all": (lambda f: ([], [annotation(1)], {}), "predictions: is empty"),
    "missing file": (lambda f: (f / "a.jsonl", [annotation(1)], {}), r"a\.jsonl: .*does not exist"),
    "a folder": (lambda f: (f, [annotation(1)], {}), "is a folder"),
    "missing annotations": (
        lambda f: (write(f / "a.jsonl", ONE), f / "t.jsonl", {}),
        r"t\.jsonl: .*not exist",
    ),
    "no annotations": (lambda f: (write(f / "a.jsonl", ONE), [], {}), "annotations"),
    "empty file": (raw(b""), r"a\.jsonl: is empty"),
    "binary": (raw(b"\x80\x00\xff"), r"a\.jsonl.*not UTF-8"),
    "cut gzip": (raw(gzip.compress(b"{}" * 999)[:-9], "a.jsonl.gz"), "no complete gzip file"),
    "no JSON": (raw(b"{'qid': 1}\n"), r"a\.jsonl, row 1"),
    "million characters": (raw(b"[" * 10**6), r"a\.jsonl: is a JSON document"),
    "one name twice": (
        lambda f: ([write(f / "x.net.jsonl", ONE), write(f / "y.net.jsonl", ONE)], [annotation(1)], {}),
        "both named 'net'",
    ),
    "empty model name": (lambda f: ({"": write(f / "a.jsonl", ONE)}, [annotation(1)], {}), "models: "),
    "257 models": (
        lambda f: ({str(i): write(f / "a.jsonl", ONE) for i in range(257)}, [annotation(1)], {}),
        "models: .*1 to 256",
    ),
    "unknown query": (
        files([*ONE, row(5, [[0, 1, 0.5]])]),
        r"a\.jsonl, row 2, qid: is 5, which is not annotated",
    ),
    "query without prediction": (
        lambda f: (write(f / "a.jsonl", ONE), [annotation(1), annotation(9)], {}),
        "qid: 9 has no prediction",
    ),
    "query twice": (files([*ONE, row("1", [[0, 1, 0.5]])]), r"a\.jsonl, row 2"),
    "query twice in the annotations": (
        lambda f: (write(f / "a.jsonl", ONE), [annotation(1), annotation("1")], {}),
        "annotations, row 2",
    ),
    "other video": (files([ONE[0] | {"vid": "w"}]), r"a\.jsonl, row 1, vid: is 'w'; expected 'v1'"),
    "score above 1": (
        files([row(1, [[0, 1, 0.5], [0, 1, 1.01]])]),
        r"windows\[1\]: .*1\.01.*within \[0, 1\]",
    ),
    "negative score": (files([row(1, [[0, 1, -0.5]])]), r"windows\[0\]: .*within \[0, 1\]"),
    "score NaN": (files([row(1, [[0, 1, float("nan")]])]), "row 1"),
    "infinite end": (files([row(1, [[0, float("inf"), 0.5]])]), "row 1"),
    "reversed window": (files([row(1, [[5, 1, 0.5]])]), "start <= end"),
    "windows of two": (files([row(1, [[0, 1], [1, 2]])]), "pred_relevant_windows"),
    "no window": (files([row(1, [])]), "pred_relevant_windows"),
    "windows a text": (files([row(1, "0 to 1")]), "pred_relevant_windows"),
    "saliency two short": (files([row(1, [[0, 1, 0.5]], [0.0] * 18)]), "has 18 values; expected 20"),
    "saliency two long": (files([row(1, [[0, 1, 0.5]], [0.0] * 22)]), "has 22 values; expected 20"),
    "moments kept, one of them without length": (
        lambda f: (
            write(f / "a.jsonl", ONE),
            [replace(annotation(1), moments=np.array([[30.0, 45.0], [3.0, 3.0]]))],
            {"past_end": "keep"},
        ),
        r"moments: .*expected start < end, in seconds",
    ),
    "saliency infinite": (files([row(1, [[0, 1, 0.5]], [1e300] * 20)]), "32-bit"),
    "no proposals wanted": (files(ONE, max_proposals=0), "max_proposals: is 0"),
    "unknown rule": (files(ONE, unknown_queries="ignore"), "unknown_queries: is 'ignore'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_and_arguments_are_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    make, words = BROKEN[name]
    predictions, truth, options = make(tmp_path / "in")
    with pytest.raises(DataError, match=words):
        build(tmp_path / "out", predictions, truth, **options)
    assert list((tmp_path / "out").iterdir()) == []


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    predictions, truth, _ = files([row(1, [[0, 1, 2]])], [row(1, [[0, 1, 3]]), row(4, [[0, 1, 0.5]])])(
        tmp_path
    )
    with pytest.raises(DataError) as caught:
        build(tmp_path, predictions, truth)
    told = [(Path(problem.where).name, problem.row) for problem in caught.value.problems]
    assert told == [("a.jsonl", 1), ("b.jsonl", 1), ("b.jsonl", 2)]


def test_sorted_windows_stand_by_falling_score_and_nothing_is_warned_of(tmp_path: Path) -> None:
    windows = [[0, 10, 0.5], [15, 20, 0.9], [2, 4, 0.5], [4, 4, 0.7]]
    file = write(tmp_path / "a.jsonl", [row(1, windows)])
    cache = build(tmp_path, file, [annotation(1)], sort=True)
    np.testing.assert_allclose(cache.spans[0] * 20, [[15, 20], [4, 4], [0, 10], [2, 4]], atol=1e-5)
    assert cache.manifest["notes"]["rows_unsorted"] == 0


@pytest.mark.parametrize(("times", "said"), [(1 / 20, "look normalised"), (0.5, "counted in clips of 2 s")])
def test_windows_in_another_unit_are_told(tmp_path: Path, times: float, said: str) -> None:
    rows = [row(qid, [[qid % 10 * times, (qid % 10 + 10) * times, 0.5]]) for qid in range(30)]
    file, truth = write(tmp_path / "a.jsonl", rows), [annotation(qid) for qid in range(30)]
    with pytest.warns(UserWarning, match=said):
        build_prediction_cache(tmp_path / "cache", file, truth, QVHIGHLIGHTS, "test")


def test_files_of_another_data_set_are_told_by_name_and_in_one_problem(tmp_path: Path) -> None:
    """QVHighlights has clips of 2 s, cut from videos of YouTube; Charades-STA, the default, clips of 1 s."""
    truth = [replace(annotation(qid), vid=f"abcdefghij{qid % 10}_60.0_210.0") for qid in range(30)]
    rows = [row(qid, [[0, 15, 0.5]]) | {"vid": truth[qid].vid} for qid in range(30)]
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.warns(UserWarning, match=r"vid looks like one of qvhighlights in all 30 rows.*--dataset"):
        build_prediction_cache(tmp_path / "cache", file, truth, CHARADES, "test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_prediction_cache(tmp_path / "right", file, truth, QVHIGHLIGHTS, "test")
    file = write(tmp_path / "b.jsonl", [values | {"pred_saliency_scores": [0.0] * 10} for values in rows])
    with pytest.raises(DataError, match="has 10 values; expected 20, one per clip of 1 s; so") as caught:
        build_prediction_cache(tmp_path / "other", file, truth, CHARADES, "test")
    assert len(caught.value.problems) == 1


def test_a_refused_row_is_not_lacking_as_well(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [row(1, [[0, 1, 0.5]]), row(2, [[0, float("nan"), 0.5]])])
    with pytest.raises(DataError) as caught:
        build(tmp_path, file, [annotation(1), annotation(2), annotation(3)])
    told = [(problem.row, problem.message) for problem in caught.value.problems]
    assert len(told) == 2
    assert told[0][0] == 2
    assert told[1][1].startswith("3 has no prediction")


def test_curves_of_some_queries_only_are_left_out_with_a_warning(tmp_path: Path) -> None:
    others = write(tmp_path / "b.jsonl", [row(2, [[0, 1, 0.5]])])
    predictions = write(tmp_path / "a.jsonl", WITH_SALIENCY), others
    with pytest.warns(DataWarning, match="pred_saliency_scores: are given for 1 of 2 queries only"):
        cache = build(tmp_path, predictions, [annotation(1), annotation(2)])
    assert cache.saliency is None


def test_logits_are_rescaled_on_request_and_their_order_stays(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [row(1, [[2, 5, 7.3], [1, 4, -2.0]]), row(2, [[1, 4, 3.2]])])
    truth = [annotation(1), annotation(2)]
    told = r"a.jsonl, row 1, .*\[0\]: .*within \[0, 1\] \(3 windows in all; .*--scores"
    with pytest.raises(DataError, match=told):
        build(tmp_path, file, truth)
    for scores, expected in {
        "sigmoid": [1 / (1 + math.exp(-7.3)), 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-3.2))],
        "minmax": [1, 0, 5.2 / 9.3],
    }.items():
        cache = build(tmp_path, file, truth, scores=scores, overwrite=True)
        np.testing.assert_allclose(cache.scores[[0, 0, 1], [0, 1, 0]], expected, rtol=1e-6)


def test_the_rule_for_moments_reaches_the_cache(tmp_path: Path) -> None:
    past = {"duration": 20, "relevant_windows": [[5, 21]]}
    inside = past | {"relevant_windows": [[2, 5]]}
    truth = write(tmp_path / "t.jsonl", [row(1, []) | past, row(2, []) | inside])
    file = write(tmp_path / "a.jsonl", [row(1, [[0, 1, 0.5]]), row(2, [[0, 1, 0.5]])])
    with pytest.raises(DataError, match=r"ends after the video.*--past-end"):
        build(tmp_path, file, truth)
    with pytest.warns(DataWarning, match="1 moments that leave their video were cut"):
        assert build(tmp_path, file, truth, past_end="clip").moments.values.tolist()[0] == [0.25, 1]
    with pytest.warns(DataWarning, match="1 moments .* left out, and with them 1 rows"):
        assert len(build(tmp_path, file, truth, past_end="drop", overwrite=True)) == 1


def test_moments_that_are_kept_count_as_they_stand(tmp_path: Path) -> None:
    """Figures are the official ones of the file as it is; rewards are their differences."""
    truth = [
        replace(annotation(1, 40.0), moments=np.array([[30.0, 45.0]])),
        replace(annotation(2, 40.0), moments=np.array([[-4.0, 6.0], [20.0, 30.0]])),
    ]
    rows = [row(1, [[28, 40, 0.9]]), row(2, [[0, 6, 0.9]])]
    file = write(tmp_path / "model.jsonl", rows)
    built = build(tmp_path, file, truth, past_end="keep")
    built.verify()
    assert built.kept_moments
    np.testing.assert_allclose(built.moments.values, [[0.75, 1.125], [-0.1, 0.15], [0.5, 0.75]], rtol=1e-6)
    official = evaluate(file, truth, past_end="keep")["brief"]["MR-full-mIoU"]
    assert official == pytest.approx(100 * (10 / 17 + 6 / 10) / 2, abs=0.01)

    env = VMRVectorEnv(2, "charades", source=built, horizon=2)
    observations, told = env.reset(seed=0, options={"sample": np.array([0, 1]), "start": 0})
    assert 100 * told["tiou"].mean() == pytest.approx(official, abs=0.01)
    for _ in range(2):
        assert env.observation_space.contains(observations)
        before = told["tiou"]
        later = told["action_mask"].argmax(axis=1)  # the first possible move
        observations, rewards, _, _, told = env.step(later)
        spans = told["span"]  # in seconds
        for i, one in enumerate(truth):
            best = max(
                max(0.0, min(spans[i, 1], end) - max(spans[i, 0], start))
                / (max(spans[i, 1], end) - min(spans[i, 0], start))
                for start, end in one.moments
            )
            if told["tiou"][i] > 0:  # then the hull is the union
                assert told["tiou"][i] == pytest.approx(best, abs=1e-5)
            assert rewards[i] == pytest.approx(told["tiou"][i] - before[i], abs=1e-6)


def test_moments_beyond_the_video_are_refused_unless_the_cache_keeps_them(tmp_path: Path) -> None:
    truth = [replace(annotation(1, 40.0), moments=np.array([[30.0, 45.0]]))]
    file = write(tmp_path / "model.jsonl", ONE)
    path = build(tmp_path, file, truth, past_end="keep").path
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["notes"]["kept_moments"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"moments.*expected 0 <= start < end <= 1"):
        DecoderStateCache.open(path).require_sound()
