"""Simulated and annotation-derived features: their statistics, their labels, their noise."""

from pathlib import Path

import numpy as np
import pytest

from vmr_env.backbones.features.annotations import (
    Action,
    DetectorNoise,
    build_annotation_store,
    main,
    read_actions,
    simulate_detector,
)
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.backbones.simulated.features import OBJECTS, VERBS, Simulator, World, write_simulated
from vmr_env.data.annotations import Annotation, read_annotations
from vmr_env.data.profiles import PROFILES, get_profile
from vmr_env.errors import DataError, DataWarning
from vmr_env.simulation.videos import statistics_of

QUIET = DetectorNoise(miss=0, confusion=0, jitter_seconds=0, jitter_share=0, false_rate=0, score_noise=0)


@pytest.mark.parametrize("name", PROFILES)
def test_written_samples_are_valid_and_labelled(tmp_path: Path, name: str) -> None:
    profile = get_profile(name)
    write_simulated(tmp_path / "s", profile, samples=40, seed=3)
    rows = read_annotations(
        tmp_path / "s" / "annotations.jsonl"
    )  # strict: moments inside the video and so on
    clips, text = FeatureStore(tmp_path / "s" / "clips"), FeatureStore(tmp_path / "s" / "text")
    assert len(rows) == 40
    assert (clips.source, text.source) == ("simulated", "simulated")
    assert sorted(clips) == sorted({row.vid for row in rows})
    for row in rows:
        assert len(clips[row.vid]) == np.ceil(row.duration / profile.clip_seconds)
        assert len(text[str(row.qid)]) == 5
        assert (row.saliency is not None) == profile.has_saliency


def test_moments_and_durations_have_the_profile_statistics() -> None:
    profile = get_profile("charades")
    rows = Simulator(profile).draw(2000, seed=0).annotations
    middle = len(statistics_of(profile).durations) // 2
    durations = list({row.vid: row.duration for row in rows}.values())
    lengths = np.concatenate([row.moments[:, 1] - row.moments[:, 0] for row in rows])
    assert np.median(durations) == pytest.approx(statistics_of(profile).durations[middle], rel=0.05)
    assert np.median(lengths) == pytest.approx(statistics_of(profile).moment_lengths[middle], rel=0.1)
    assert len(rows) / len(durations) == pytest.approx(statistics_of(profile).queries_per_video, rel=0.1)


def test_the_same_seed_gives_the_same_files_and_another_one_other_videos(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_simulated(tmp_path / name, get_profile("charades"), samples=10, seed=seed)
    files = [
        (tmp_path / name / file).read_bytes()
        for name in "abc"
        for file in ("annotations.jsonl", "clips/values.npy", "text/values.npy")
    ]
    assert files[:3] == files[3:6]
    assert all(one != other for one, other in zip(files[:3], files[6:], strict=True))


def test_clips_of_a_moment_show_what_its_query_asks_for() -> None:
    """With noise off, the activity's own vector is found inside the moment and hardly outside."""
    world = World(noise=0, scene=0, visibility=0.999, boundary_seconds=0, word_noise=0)
    drawn = Simulator(get_profile("charades"), world).draw(60, seed=0)
    vectors = world.vectors()["clips"]
    inside, outside = [], []
    for row in drawn.annotations:
        _, verb, _, thing = row.query.rstrip(".").split()
        wanted = vectors[VERBS.index(verb)] + vectors[len(VERBS) + OBJECTS.index(thing)]
        shown = drawn.clips[row.vid] @ wanted
        times = np.arange(len(shown)) + 0.5
        within = (times > row.moments[0, 0]) & (times < row.moments[0, 1])
        inside.append(shown[within].mean())
        outside.append(shown[~within].mean())
    assert np.mean(inside) > 3 * np.mean(outside)


TABLE = """id,actions,length
AAAAA,c001 1.00 4.00;c002 0.00 9.50,10.0
BBBBB,,20.0
CCCCC,c000 3.00 30.00,30.0
"""


def test_actions_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TABLE)
    assert read_actions(path, 3) == {
        "AAAAA": [Action(1, 1.0, 4.0), Action(2, 0.0, 9.5)],
        "BBBBB": [],
        "CCCCC": [Action(0, 3.0, 30.0)],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE.replace("c002", "c003"), "row 2, actions: 'c003 0.00 9.50'; expected a class below c003"),
        (TABLE.replace("c002 0.00", "c002"), "row 2, actions"),
        (TABLE.replace("1.00 4.00", "1.00 nan"), "row 2, actions"),
        (TABLE.replace("1.00 4.00", "-1.00 4.00"), "row 2, actions"),
        (TABLE.replace("1.00 4.00", "4.00 1.00"), "row 2, actions"),
        (TABLE.replace("BBBBB", "AAAAA"), "row 3, id: is 'AAAAA', as in an earlier row"),
        (TABLE.replace("actions", "labels"), "actions: is no column"),
    ],
)
def test_broken_tables(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_actions(path, 3)


def test_reversed_actions_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TABLE.replace("1.00 4.00", "4.00 1.00"))
    with pytest.warns(DataWarning, match="1 actions with end <= start"):
        assert read_actions(path, 3, reversed_actions="drop")["AAAAA"] == [Action(2, 0.0, 9.5)]


def detect(actions: list[Action], noise: DetectorNoise, seed: int = 0) -> np.ndarray:
    frequencies, lengths = np.full(5, 0.2), np.array([4.0])
    return simulate_detector(actions, frequencies, lengths, 20.0, 1.0, noise, np.random.default_rng(seed))


def test_without_noise_the_detector_sees_the_labels() -> None:
    scores = detect([Action(3, 2.5, 6.0)], QUIET)
    assert scores.shape == (20, 5)
    confidence = scores[4, 3]
    expected = np.zeros((20, 5), np.float32)
    expected[2, 3], expected[3:6, 3] = confidence / 2, confidence
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("noise", "seen"),
    [
        (DetectorNoise(0.3, 0, 0, 0, 0, 0), 0.7),
        (DetectorNoise(0, 0.5, 0, 0, 0, 0), 0.5 + 0.5 * 0.2),  # taken for its own class in one case of five
        (QUIET, 1.0),
    ],
)
def test_misses_and_confusions_have_their_rates(noise: DetectorNoise, seen: float) -> None:
    hits = [detect([Action(3, 2, 6)], noise, seed)[4, 3] > 0 for seed in range(600)]
    assert np.mean(hits) == pytest.approx(seen, abs=0.06)


def test_annotation_derived_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, samples = tmp_path / "t.csv", tmp_path / "a.jsonl"
    table.write_text(TABLE)
    line = '{"qid": 1, "query": "q", "duration": 10.0, "vid": "AAAAA", "relevant_windows": [[1, 4]]}\n'
    samples.write_text(line)
    main([str(table), "--annotations", str(samples), "--out", str(tmp_path / "s"), "--classes", "3"])
    assert "annotation-derived" in capsys.readouterr().out
    store = FeatureStore(tmp_path / "s")
    assert store.source == "annotation-derived"
    assert store["AAAAA"].shape == (10, 3)
    assert store.manifest["origin"]["noise"]["miss"] == DetectorNoise().miss
    rows = [Annotation(2, "ZZZZZ", "q", 5.0, np.array([[0.0, 1.0]]))]
    with pytest.raises(DataError, match="ZZZZZ: is no video of the table"):
        build_annotation_store(
            tmp_path / "t", rows, {"A": []}, classes=3, clip_seconds=1, noise=QUIET, seed=0
        )
