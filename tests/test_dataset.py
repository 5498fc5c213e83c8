"""Samples, labels and batches against the goldens and against plain re-computation."""

import itertools
import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmr_env.backbones.augment import Augmentation, Timeline
from vmr_env.backbones.dataset import DatasetSettings, MomentDataset
from vmr_env.backbones.features import official as features
from vmr_env.backbones.features.official import OfficialFeatures
from vmr_env.backbones.features.similarity import SimilarityChannels, extents
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.data.annotations import Annotation, read_annotations
from vmr_env.errors import DataError, DataWarning, Problem

NAMES = ("hl", "charadesSTA", "tacos")


def golden_dataset(goldens: Path, name: str, annotations: str = "val.jsonl") -> MomentDataset:
    folder = goldens / "dataset" / name
    options = json.loads((goldens / "dataset" / "settings.json").read_text())[name]
    settings = DatasetSettings(
        clip_seconds=options["clip_length"],
        max_clips=options["max_v_l"],
        max_tokens=options["max_q_l"],
        max_windows=options["max_windows"],
        rated=name == "hl",
        official=True,
    )
    clips = OfficialFeatures(tuple(folder / d for d in options["v_feat_dirs"]))
    prefix = "" if name == "tacos" else "qid"
    tokens = OfficialFeatures(tuple(folder / d for d in options["t_feat_dirs"]), "last_hidden_state", prefix)
    return MomentDataset(read_annotations(folder / annotations), clips, tokens, settings)


@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_the_official_one(goldens: Path, name: str) -> None:
    batch = golden_dataset(goldens, name).batch(range(4), random.Random(123))
    with np.load(goldens / "dataset" / name / "batch.npz") as golden:
        expected = {key: golden[key] for key in golden.files}
    found = {
        "video_feat": batch.src_vid,
        "video_feat_mask": batch.src_vid_mask,
        "query_feat": batch.src_txt,
        "query_feat_mask": batch.src_txt_mask,
        "saliency_all_labels": batch.targets.saliency_all_labels,
        "saliency_pos_labels": batch.targets.saliency_pos_labels,
        "saliency_neg_labels": batch.targets.saliency_neg_labels,
        "saliency_pos_index": (batch.targets.saliency_all_labels > 0).long(),
        **{f"spans{i}": spans for i, spans in enumerate(batch.targets.spans)},
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == torch.from_numpy(value).dtype, key
        np.testing.assert_allclose(found[key].numpy(), value, rtol=1e-6, atol=1e-6, err_msg=key)


def test_rated_clip_past_the_last_row_equals_the_official_item(goldens: Path) -> None:
    item = golden_dataset(goldens, "hl", "edge_val.jsonl").item(0, random.Random(123))
    with np.load(goldens / "dataset" / "hl" / "edge_item.npz") as golden:
        np.testing.assert_allclose(item.video, golden["video_feat"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(item.spans, golden["span_labels"], rtol=1e-6)
        np.testing.assert_array_equal(item.saliency, golden["saliency_all_labels"])
        np.testing.assert_array_equal(item.positive, golden["saliency_pos_labels"])
        np.testing.assert_array_equal(item.negative, golden["saliency_neg_labels"])


def toy(settings: DatasetSettings, rows: int = 30, **fields: Any) -> MomentDataset:
    """One video whose only feature counts its rows, with one query."""
    annotation = Annotation(**{"qid": 1, "vid": "v", "query": "q", "duration": float(rows), **fields})
    clips = Memory({"v": np.arange(rows, dtype=np.float32)[:, None] + 1})
    tokens = Memory({"1": np.ones((3, 4), np.float32), "1#1": np.full((2, 4), 2, np.float32)})
    return MomentDataset([annotation], clips, tokens, settings)


class Memory(dict[str, np.ndarray]):
    """Features in memory."""

    @property
    def dim(self) -> int:
        return int(next(iter(self.values())).shape[1])

    def read(self, key: str) -> np.ndarray:
        if key not in self:
            raise DataError(Problem("memory", None, key, "is missing"))
        return self[key].astype(np.float32)


def test_long_videos_are_averaged_and_keep_their_time() -> None:
    settings = DatasetSettings(clip_seconds=1, max_clips=20)
    moments = np.array([[15.0, 30.0]])
    item = toy(settings, rows=50, moments=moments).item(0, random.Random(0))
    bounds = [i * 50 // 20 for i in range(21)]
    means = [np.mean(range(a + 1, b + 1)) for a, b in itertools.pairwise(bounds)]
    np.testing.assert_allclose(item.video[:, 0], means)
    np.testing.assert_allclose(item.spans, [[0.45, 0.3]], rtol=1e-6)  # of the duration, 50 s
    np.testing.assert_array_equal(np.flatnonzero(item.saliency), range(6, 12))


def test_official_mode_cuts_long_videos() -> None:
    settings = DatasetSettings(clip_seconds=1, max_clips=20, official=True)
    item = toy(settings, rows=50, moments=np.array([[15.0, 30.0]])).item(0, random.Random(0))
    np.testing.assert_array_equal(item.video[:, 0], range(1, 21))
    np.testing.assert_allclose(item.spans, [[22.5 / 20, 15 / 20]], rtol=1e-6)  # past the end (Q3)


def test_official_labels_refuse_clips_further_past_the_last_row() -> None:
    """The published code has room for one more clip than there are rows (Q4), and ends in an IndexError."""
    settings = DatasetSettings(clip_seconds=2, max_clips=75, official=True, rated=True)
    fields = {"duration": 64.0, "moments": np.array([[0.0, 4.0]]), "saliency": np.ones((2, 3), np.int64)}
    allowed = toy(settings, rows=30, clip_ids=np.array([0, 30]), **fields)
    assert allowed.problems() == []
    assert len(allowed.item(0, random.Random(0)).saliency) == 31
    refused = toy(settings, rows=30, clip_ids=np.array([0, 31]), **fields)
    expected = "v: has 30 rows, 30 read; qid 1 rates clip 31, expected at most 30"
    with pytest.raises(DataError, match=expected):
        refused.item(0, random.Random(0))
    assert [str(problem).endswith(expected) for problem in refused.problems()] == [True]


def test_short_features_name_the_ways_out() -> None:
    dataset = toy(
        DatasetSettings(clip_seconds=1, max_clips=75), rows=20, duration=30.0, moments=np.array([[1.0, 2.0]])
    )
    (problem,) = dataset.problems()
    assert problem.message.endswith(
        "the annotation says 30 s: encode the whole video at 1 s a row, or leave it out "
        "(--short-features drop)"
    )


class Ones:
    """Features of one width; videos differ in their rows."""

    dim = 3

    def __init__(self, rows: dict[str, int]) -> None:
        self._rows = rows

    def read(self, key: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.ones((self._rows[key], self.dim), np.float32)


def test_videos_with_short_features_can_be_left_out() -> None:
    def row(qid: int, vid: str) -> Annotation:
        return Annotation(qid, vid, "q", 30.0, np.array([[1.0, 2.0]]))

    rows = [row(1, "whole"), row(2, "short"), row(3, "whole"), row(4, "nearly")]
    clips, text = Ones({"whole": 30, "short": 20, "nearly": 28}), Ones({str(i): 4 for i in range(1, 5)})
    settings = DatasetSettings(clip_seconds=1, max_clips=75)
    dataset = MomentDataset(rows, clips, text, settings)
    assert [problem.row or problem.field for problem in dataset.problems()] == ["short"]
    with pytest.warns(DataWarning, match="do not cover 1 of 3 videos; 1 of 4 samples are left out"):
        kept = dataset.covered()
    assert [row.qid for row in kept.annotations] == [1, 3, 4]
    assert kept.problems() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(kept.covered()) == 3
    with pytest.raises(DataError, match="cover none of 1 videos"):
        MomentDataset(rows[1:2], clips, text, settings).covered()


def test_rated_clip_past_the_last_row_is_labelled_where_it_shows() -> None:
    """The case of Q4: three two-second clips rated, but only twelve rows of features for 26 s."""
    settings = DatasetSettings(clip_seconds=2, max_clips=75, rated=True)
    dataset = toy(
        settings,
        rows=12,
        duration=26.0,
        moments=np.array([[20.0, 26.0]]),
        clip_ids=np.array([10, 11, 12]),
        saliency=np.array([[1, 1, 1], [2, 2, 3], [4, 4, 4]]),
    )
    item = dataset.item(0, random.Random(0))
    np.testing.assert_array_equal(item.saliency, [0] * 9 + [3, 7, 12])


@pytest.mark.parametrize("seed", range(20))
def test_at_most_five_moments_and_pairs_on_the_right_sides(seed: int) -> None:
    settings = DatasetSettings(clip_seconds=1, max_clips=75)
    moments = np.array([[2.0 * i, 2.0 * i + 1] for i in range(9)])
    item = toy(settings, moments=moments).item(0, random.Random(seed))
    whole = {(i * 2 + 0.5) / 30 for i in range(9)}
    centres = item.spans[:, 0].tolist()
    assert len(set(centres)) == 5
    assert all(min(abs(centre - c) for c in whole) < 1e-6 for centre in centres)
    assert (item.saliency[item.positive] == 1).all()
    assert (item.saliency[item.negative] == 0).all()


def test_paraphrases_stand_in_for_the_query_in_training_only() -> None:
    settings = DatasetSettings(clip_seconds=1, max_clips=75, paraphrases=1, paraphrase_share=0.5)
    dataset = toy(settings, moments=np.array([[1.0, 5.0]]))
    draw = random.Random(0)
    lengths = [len(dataset.item(0, draw, training=True).text) for _ in range(200)]
    assert 70 < lengths.count(2) < 130
    assert {len(dataset.item(0, draw).text) for _ in range(50)} == {3}


timelines = st.builds(
    lambda length, cuts: (length, sorted({c % (length + 1) for c in cuts})),
    st.integers(4, 40),
    st.lists(st.integers(0, 1000), min_size=2, max_size=8),
).filter(lambda pair: len(pair[1]) >= 2)


@settings(deadline=None, max_examples=150)
@given(timelines, st.integers(0, 10**6))
def test_augmented_rows_keep_their_labels(timeline: tuple[int, list[int]], seed: int) -> None:
    """Each row carries its own number, so it can be told what it was before; moments are on whole rows."""
    length, cuts = timeline
    moments = np.array(list(zip(cuts[::2], cuts[1::2], strict=False)), float)
    inside = np.array([t for start, end in moments for t in range(int(start), int(end))])
    video = Timeline(np.arange(length, dtype=np.float32)[:, None], moments, inside, inside * 10)
    foreign = np.full((3, 1), -1, np.float32)
    changed = Augmentation(reverse=0.5, crop=0.7, surround=0.7)(video, foreign, random.Random(seed))
    assert changed.rated is not None
    assert changed.scores is not None
    covered = [t for start, end in changed.moments for t in range(int(start), int(end))]
    assert sorted(changed.rated.tolist()) == sorted(covered)
    numbers = changed.clips[:, 0]
    np.testing.assert_array_equal(numbers[changed.rated] * 10, changed.scores)
    kept = set(numbers.tolist()) - {-1.0}
    assert kept - set(inside.tolist()) == kept - set(numbers[changed.rated].tolist())
    assert len(changed) >= min(length, np.ceil(length / 2))


def test_all_broken_features_are_listed_before_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("one", "two", "text"):
        (tmp_path / name).mkdir()
    good = rng.standard_normal((20, 3)).astype(np.float32)
    bad: dict[str, Callable[[Path], object]] = {
        "missing": lambda path: None,
        "empty": lambda path: path.write_bytes(b""),
        "noise": lambda path: path.write_bytes(b"PK\x03\x04 no archive"),
        "cut": lambda path: path.write_bytes((tmp_path / "one" / path.name).read_bytes()[:200]),
        "folder": Path.mkdir,
        "name": lambda path: np.savez(path, feature=good),
        "pickle": lambda path: np.savez(path, features=np.array([{}], dtype=object)),
        "shape": lambda path: np.savez(path, features=good[0]),
        "rows": lambda path: np.savez(path, features=good[:0]),
        "ints": lambda path: np.savez(path, features=np.zeros((20, 3), np.int64)),
        "nan": lambda path: np.savez(path, features=np.full((20, 3), np.nan, np.float32)),
        "width": lambda path: np.savez(path, features=np.zeros((20, 4), np.float32)),
        "short": lambda path: np.savez(path, features=good[:9]),
    }
    for vid, damage in bad.items():
        np.savez(tmp_path / "one" / f"{vid}.npz", features=good)
        damage(tmp_path / "two" / f"{vid}.npz")
    for folder in ("one", "two"):
        np.savez(tmp_path / folder / "a good one.npz", features=good)
    rows = [
        Annotation(qid, vid, "q", 20.0, np.array([[1.0, 5.0]]))
        for qid, vid in enumerate(["a good one", *bad])
    ]
    for row in rows[:-1]:
        np.savez(tmp_path / "text" / f"qid{row.qid}.npz", last_hidden_state=good[:4])
    clips = OfficialFeatures((tmp_path / "one", tmp_path / "two"))
    tokens = OfficialFeatures((tmp_path / "text",), "last_hidden_state", "qid")
    dataset = MomentDataset(rows, clips, tokens, DatasetSettings(clip_seconds=1, max_clips=75))
    problems = dataset.problems()
    listed = [vid for vid in bad if any(vid in f"{p.where} {p.field}" for p in problems)]
    assert listed == list(bad)
    assert any(f"qid{rows[-1].qid}.npz" in p.where for p in problems)
    assert len(problems) == len(bad) + 1
    assert MomentDataset(rows[:1], clips, tokens, dataset.settings).problems() == []


def test_npy_stands_in_only_for_a_missing_npz(tmp_path: Path) -> None:
    rows = np.ones((2, 3), np.float32)
    np.save(tmp_path / "v.npy", rows)
    features = OfficialFeatures((tmp_path,), normalise=False)
    np.testing.assert_array_equal(features.read("v"), rows)
    (tmp_path / "v.npz").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"v\.npz: is no readable array file"):
        features.read("v")


def test_official_files_become_a_store(goldens: Path, tmp_path: Path) -> None:
    folder = goldens / "dataset" / "hl"
    out = tmp_path / "store"
    folders = ["internvideo2_video_features", "clip_features", "blip_video_features"]
    options = [word for name in folders for word in ("--folder", str(folder / "features" / name))]
    features.main([str(folder / "val.jsonl"), "--kind", "video", *options, "--out", str(out)])
    store = FeatureStore(out)
    reader = OfficialFeatures(tuple(folder / "features" / name for name in folders))
    assert sorted(store) == ["vidA_0.0_46.0", "vidB_10.0_34.0", "vidC_5.0_23.0"]
    for vid in store:
        np.testing.assert_allclose(store.read(vid), reader.read(vid), atol=1e-3)  # kept in float16


def test_similarity_channels_by_hand() -> None:
    rng = np.random.default_rng(0)
    clips, sentences = rng.standard_normal((9, 5)).astype("f4"), rng.standard_normal((3, 5)).astype("f4")
    similarity = SimilarityChannels(sigmas=(2.0,), extent_sigma=1.0, thresholds=(0.5,))
    channels = similarity(clips, sentences)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    def smooth(values: np.ndarray, sigma: float) -> np.ndarray:
        weights = [[np.exp(-(((i - j) / sigma) ** 2) / 2) for j in range(9)] for i in range(9)]
        return np.array([np.dot(w, values) / sum(w) for w in weights])

    def scaled(values: np.ndarray) -> np.ndarray:
        result: np.ndarray = (values - values.mean()) / (values.std() + 1e-3)
        return result

    units = [s / np.sqrt(s @ s) for s in sentences]
    plain = np.array([[cosine(c, units[0]), c @ (units[1] + units[2]) / 2 / np.sqrt(c @ c)] for c in clips])
    total = plain.sum(1)
    above = scaled(smooth(total, 1.0)) > 0.5
    runs = []
    for i in range(9):
        start = end = i
        while above[i] and start > 0 and above[start - 1]:
            start -= 1
        while above[i] and end < 8 and above[end + 1]:
            end += 1
        runs.append([(start + end + 1) / 2 / 9, (end + 1 - start) / 9])
    columns = [scaled(plain[:, 0]), scaled(plain[:, 1]), scaled(smooth(total, 2.0))]
    expected = np.column_stack([*columns, 2 * plain, 6 * np.array(runs)])
    assert channels.shape == (9, similarity.count)
    assert 1 < above.sum() < 9
    np.testing.assert_allclose(channels, expected, rtol=1e-3, atol=1e-4)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_extents_cover_the_video_once(inside: list[bool]) -> None:
    found = extents(np.array(inside))
    runs = {tuple(row) for row in found.tolist()}
    assert sum(width for _, width in runs) == pytest.approx(1)
    assert (found[~np.array(inside), 1] == np.float32(1 / len(inside))).all()
