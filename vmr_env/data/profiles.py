"""Dataset profiles: everything that differs from one data set to another, as data."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from vmr_env.data.durations import SECONDS, is_seconds

Quantiles = tuple[float, ...]


class LengthRange(NamedTuple):
    """Moments with low < length <= high, in seconds."""

    name: str
    low: float
    high: float


# jayleicn/moment_detr `standalone_eval` has these for every data set.
LENGTH_RANGES = (LengthRange("short", 0, 10), LengthRange("middle", 10, 30), LengthRange("long", 30, 150))


@dataclass(frozen=True, slots=True)
class VideoStatistics:
    """What videos and moments are like, from train annotations; the simulator draws from it.

    Quantiles are given at 0, 5, …, 100 %, so that `np.interp(u, np.linspace(0, 1, 21), quantiles)` turns
    uniform numbers into a draw.

    Attributes:
        durations: quantiles of video length (seconds), one value per video.
        moment_lengths: quantiles of moment length (seconds), one value per moment.
        moment_positions: quantiles of start / (duration - length), over moments shorter than their video.
        moments_per_query: share of queries with 1, 2, … moments.
        queries_per_video: mean number of queries of a video.
    """

    durations: Quantiles
    moment_lengths: Quantiles
    moment_positions: Quantiles
    moments_per_query: tuple[float, ...]
    queries_per_video: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetProfile:
    """Facts about one data set; `vmr_env.register_dataset` adds one of your own.

    Attributes:
        name: key in `PROFILES`, and `dataset` of a cache: lower-case letters, digits, `_` and `-`.
        env_name: the word in environment ids (`VMR-<env_name>-v0`).
        clip_seconds: length of one clip, the time step of features.
        max_clips: clips read of a video; longer ones are cut there.
        max_query_tokens: text tokens read of a query.
        max_windows: ground-truth moments used of a query in training.
        length_ranges: ranges of moment length for which mAP is also reported.
        has_saliency: whether annotations rate clips, so that highlight metrics exist.
        splits: names of the splits, in the order train, validation, test.
        submission_step: published detectors round their submission windows to multiples of this (seconds).
        submission_limit: they move window boundaries into [0, this] (seconds); None leaves them alone.
        statistics: of its videos and moments; None where nothing is simulated from the data set.
        clip_names: regular expression of the vids of clips that were cut from a longer video, whose first
            group is that video; None where every vid is a video of its own.

    Raises:
        ValueError: a name is no word, a number is not positive, or a clip is no sensible length.
    """

    name: str
    env_name: str
    clip_seconds: float
    max_clips: int
    has_saliency: bool = False
    splits: tuple[str, ...] = ("train", "val", "test")
    submission_step: float = 1.0
    submission_limit: float | None = None
    statistics: VideoStatistics | None = None
    max_query_tokens: int = 32
    max_windows: int = 5
    length_ranges: tuple[LengthRange, ...] = LENGTH_RANGES
    clip_names: str | None = None

    def source_video(self, vid: str) -> str:
        """The video that a vid belongs to: samples of one source video are no independent ones.

        A vid that does not look like that of a clip is a video of its own.
        """
        match = None if self.clip_names is None else re.fullmatch(self.clip_names, vid)
        return vid if match is None else match[1]

    def __post_init__(self) -> None:
        for field, pattern, example in (("name", _NAME, "charades"), ("env_name", _ENV_NAME, "Charades")):
            value = getattr(self, field)
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise ValueError(f"{field} is {value!r}, expected a word like {example!r}")
        if not is_seconds(self.clip_seconds):
            message = f"clip_seconds of data set {self.name} is {self.clip_seconds!r}, expected {SECONDS}"
            raise ValueError(message)
        for field in ("max_clips", "submission_step", "max_query_tokens", "max_windows"):
            value = getattr(self, field)
            if not 0 < value < float("inf"):
                raise ValueError(f"{field} of data set {self.name} is {value!r}, expected a positive number")
        if not self.splits:
            raise ValueError(f"splits of data set {self.name} is empty, expected names of splits")


_NAME, _ENV_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*"), re.compile(r"[A-Za-z0-9]+")

_PROFILES = (
    DatasetProfile(
        name="charades",
        env_name="Charades",
        clip_seconds=1.0,
        max_clips=75,
        has_saliency=False,
        splits=("train", "test"),
        submission_step=1.0,
        submission_limit=150.0,
        statistics=VideoStatistics(
            durations=(
                *(5.5, 18.32, 21.92, 24.42, 26.29, 27.92, 29.25, 29.92, 30.25, 30.46, 30.67),
                *(30.88, 31.08, 31.42, 31.88, 32.54, 33.54, 35.08, 37.81, 42.92, 194.33),
            ),
            moment_lengths=(
                *(1.68, 4.2, 4.8, 5.1, 5.4, 5.7, 6.0, 6.3, 6.6, 6.9, 7.3),
                *(7.7, 8.1, 8.62, 9.29, 10.0, 10.7, 11.72, 13.0, 14.5, 80.8),
            ),
            moment_positions=(
                *(0.0, 0.0, 0.0, 0.0, 0.01, 0.062, 0.119, 0.19, 0.263, 0.338, 0.419),
                *(0.501, 0.583, 0.663, 0.747, 0.835, 0.914, 0.992, 1.0, 1.0, 1.0),
            ),
            moments_per_query=(1.0,),
            queries_per_video=2.325,
        ),
    ),
    DatasetProfile(
        name="qvhighlights",
        env_name="QVHighlights",
        clip_seconds=2.0,
        max_clips=75,
        has_saliency=True,
        splits=("train", "val", "test"),
        submission_step=2.0,
        submission_limit=150.0,
        statistics=VideoStatistics(
            durations=(120.0, *(150.0,) * 20),
            moment_lengths=(
                *(2.0, 2.0, 2.0, 4.0, 6.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0),
                *(18.0, 22.0, 24.0, 26.0, 30.0, 34.0, 42.0, 54.0, 88.0, 150.0),
            ),
            moment_positions=(
                *(0.0, 0.0, 0.014, 0.077, 0.137, 0.197, 0.257, 0.319, 0.377, 0.438, 0.5),
                *(0.562, 0.622, 0.686, 0.746, 0.811, 0.871, 0.938, 1.0, 1.0, 1.0),
            ),
            # The tail beyond eight moments (1.1 %) is folded into eight.
            moments_per_query=(0.6726, 0.1704, 0.0646, 0.0369, 0.0194, 0.0112, 0.0076, 0.0173),
            queries_per_video=1.017,
        ),
        clip_names=r"([\w-]{11})_\d+(?:\.\d+)?_\d+(?:\.\d+)?",  # YouTube's id, start, end
    ),
    DatasetProfile(
        name="tacos",
        env_name="TACoS",
        clip_seconds=1.0,
        max_clips=1000,
        has_saliency=False,
        splits=("train", "val", "test"),
        submission_step=1.0,
        submission_limit=None,
        statistics=VideoStatistics(
            durations=(
                *(51.5, 62.18, 77.61, 81.96, 95.61, 104.4, 110.52, 116.72, 130.86, 148.1, 158.74),
                *(175.97, 187.14, 198.9, 213.21, 241.99, 282.33, 321.33, 423.65, 552.06, 1402.18),
            ),
            moment_lengths=(
                *(0.48, 2.72, 3.5, 4.22, 4.93, 5.71, 6.39, 7.18, 8.27, 9.42, 10.78),
                *(12.14, 14.05, 16.87, 20.2, 24.69, 31.22, 39.39, 53.1, 85.51, 751.43),
            ),
            moment_positions=(
                *(0.005, 0.034, 0.055, 0.076, 0.101, 0.127, 0.16, 0.196, 0.236, 0.282, 0.335),
                *(0.392, 0.457, 0.531, 0.623, 0.709, 0.812, 0.884, 0.946, 0.978, 1.0),
            ),
            moments_per_query=(1.0,),
            queries_per_video=130.5,
        ),
    ),
)

_REGISTERED = {profile.name: profile for profile in _PROFILES}

PROFILES: Mapping[str, DatasetProfile] = MappingProxyType(_REGISTERED)
"""All profiles by name: ours, and those that `add_profile` added."""


def add_profile(profile: DatasetProfile) -> None:
    """Make a profile known under its name; adding the same one again changes nothing.

    Raises:
        ValueError: another profile has its `name` or `env_name`.
    """
    for known in PROFILES.values():
        if known != profile and (known.name == profile.name or known.env_name == profile.env_name):
            raise ValueError(
                f"data set {profile.name!r} ({profile.env_name}) meets another one that is registered as "
                f"{known.name!r} ({known.env_name}); choose other names"
            )
    _REGISTERED[profile.name] = profile


def clips_of(vids: Iterable[str]) -> DatasetProfile | None:
    """The data set whose clips, cut from longer videos, all the vids look like; None where there is none."""
    vids = list(vids)
    for profile in PROFILES.values():
        names = profile.clip_names
        if names is not None and vids and all(re.fullmatch(names, vid) for vid in vids):
            return profile
    return None


def seems_of_another(vids: Iterable[str], profile: DatasetProfile) -> str | None:
    """What to say of vids that all look like those of another data set; None where they do not."""
    vids = list(vids)
    other = clips_of(vids)
    if other is None or other.clip_names == profile.clip_names:
        return None
    return (
        f"looks like one of {other.name} in all {len(vids)} rows; expected one of {profile.name}: "
        f"is the data set (--dataset) {other.name}?"
    )


def get_profile(name: str) -> DatasetProfile:
    """The profile of that name; an unknown name raises ValueError with the nearest known one."""
    if name in PROFILES:
        return PROFILES[name]
    known = ", ".join(PROFILES)
    near = difflib.get_close_matches(str(name).lower(), PROFILES, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"No dataset profile {name!r}.{hint} Known profiles: {known}.")
