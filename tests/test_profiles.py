"""Dataset profiles against the published numbers and the train files they describe."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

from vmr_env.data.annotations import read_annotations
from vmr_env.data.profiles import PROFILES, DatasetProfile, get_profile
from vmr_env.simulation.videos import statistics_of

TRAIN = {
    "charades": "charades_sta/charades_sta_train.jsonl.gz",
    "qvhighlights": "qvhighlights/highlight_train_release.jsonl.gz",
    "tacos": "tacos/train.jsonl.gz",
}
LEVELS = np.linspace(0, 1, 21)


@pytest.mark.parametrize(
    ("name", "env_name", "clip_seconds", "max_clips", "has_saliency"),
    [
        ("charades", "Charades", 1, 75, False),
        ("qvhighlights", "QVHighlights", 2, 75, True),
        ("tacos", "TACoS", 1, 1000, False),
    ],
)
def test_limits_are_those_of_the_specification(
    name: str, env_name: str, clip_seconds: float, max_clips: int, has_saliency: bool
) -> None:
    profile = get_profile(name)
    assert (profile.name, profile.env_name) == (name, env_name)
    assert (profile.clip_seconds, profile.max_clips) == (clip_seconds, max_clips)
    assert (profile.max_query_tokens, profile.max_windows) == (32, 5)
    assert profile.has_saliency == has_saliency


def test_length_ranges_are_those_of_the_official_evaluator() -> None:
    for profile in PROFILES.values():
        assert [tuple(entry) for entry in profile.length_ranges] == [
            ("short", 0, 10),
            ("middle", 10, 30),
            ("long", 30, 150),
        ]


@pytest.mark.parametrize("name", PROFILES)
def test_statistics_are_those_of_the_train_file(data: Path, name: str) -> None:
    profile = get_profile(name)
    train = read_annotations(data / TRAIN[name])
    video = {row.vid: row.duration for row in train}
    lengths = np.concatenate([row.moments[:, 1] - row.moments[:, 0] for row in train])
    room = np.concatenate([row.duration - (row.moments[:, 1] - row.moments[:, 0]) for row in train])
    starts = np.concatenate([row.moments[:, 0] for row in train])
    counts = np.bincount([len(row.moments) for row in train])[1:] / len(train)

    np.testing.assert_allclose(
        statistics_of(profile).durations, np.quantile(list(video.values()), LEVELS), atol=0.006
    )
    np.testing.assert_allclose(
        statistics_of(profile).moment_lengths, np.quantile(lengths, LEVELS), atol=0.006
    )
    positions = np.quantile(starts[room > 0] / room[room > 0], LEVELS)
    np.testing.assert_allclose(statistics_of(profile).moment_positions, positions, atol=6e-4)
    assert statistics_of(profile).queries_per_video == pytest.approx(len(train) / len(video), rel=1e-3)
    kept = len(statistics_of(profile).moments_per_query)
    np.testing.assert_allclose(statistics_of(profile).moments_per_query[:-1], counts[: kept - 1], atol=6e-5)
    assert statistics_of(profile).moments_per_query[-1] == pytest.approx(counts[kept - 1 :].sum(), abs=3e-4)
    assert sum(statistics_of(profile).moments_per_query) == pytest.approx(1)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_travel_between_processes(name: str) -> None:
    profile = get_profile(name)
    assert pickle.loads(pickle.dumps(profile)) == profile
    assert copy.deepcopy(profile) == profile


@pytest.mark.parametrize(
    ("wrong", "right"), [("charade", "charades"), ("QVHighlight", "qvhighlights"), ("TACoS", "tacos")]
)
def test_a_wrong_name_is_answered_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ValueError, match=f"Did you mean '{right}'"):
        get_profile(wrong)


def test_a_name_near_none_is_answered_with_all() -> None:
    with pytest.raises(ValueError, match=r"'imagenet'\. Known profiles: charades, qvhighlights, tacos\."):
        get_profile("imagenet")


def test_clips_of_qvhighlights_belong_to_the_videos_that_they_were_cut_from(data: Path) -> None:
    profile = get_profile("qvhighlights")
    assert profile.source_video("NUsG9BgSes0_210.0_360.0") == "NUsG9BgSes0"
    assert profile.source_video("-_a_0_1_b-c_60.0_210.0") == "-_a_0_1_b-c"  # ids may look like times
    assert profile.source_video("a-video-of-mine_1") == "a-video-of-mine_1"
    rows = read_annotations(data / "qvhighlights" / "highlight_val_release.jsonl")
    assert len({row.vid for row in rows}) == 1519
    assert len({profile.source_video(row.vid) for row in rows}) == 474
    for name in ("charades", "tacos"):
        assert get_profile(name).source_video("NUsG9BgSes0_210.0_360.0") == "NUsG9BgSes0_210.0_360.0"


@pytest.mark.parametrize("seconds", [1e300, 1e-30, 0.0, -1.0, float("nan"), float("inf"), True])
def test_clips_have_a_sensible_length(seconds: float) -> None:
    expected = "clip_seconds of data set films is .*, expected seconds from 0.01 to 864000"
    with pytest.raises(ValueError, match=expected):
        DatasetProfile(name="films", env_name="Films", clip_seconds=seconds, max_clips=75)
    for bound in (0.01, 864_000.0):
        DatasetProfile(name="films", env_name="Films", clip_seconds=bound, max_clips=75)
