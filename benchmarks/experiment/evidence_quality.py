"""What a policy over all spans gains while more and more videos have the clips of another one.

    python -m vmr_env.benchmarks.experiment.evidence_quality --policy policy --test test.jsonl cg_test.jsonl
    --clips features/test

For each share of spoilt videos it prints differences from the detector, with 95 % intervals, of the policy
with evidence, without any, and gated: half of the videos, by their ground truth, decides whether the other
half is answered with evidence.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vmr_env.agents.dense.policy import DensePolicy, Evidence, load_policy
from vmr_env.arrays import Floats
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.benchmarks.experiment.dense import Stores, encode_queries
from vmr_env.benchmarks.experiment.results import Difference, differences, query_scores, table
from vmr_env.data.annotations import Annotation, read_annotations
from vmr_env.data.predictions import Prediction, read_predictions
from vmr_env.data.profiles import PROFILES, get_profile
from vmr_env.data.splits import video_folds
from vmr_env.data.timelines import ClipFeatures
from vmr_env.programs import run_program
from vmr_env.settings import SHARE

GAIN = ("R1@0.5", "R1@0.7", "mIoU")
"""Measures whose mean the gate compares."""


class SpoiltClips:
    """Clip features of which some videos have those of another one."""

    def __init__(self, clips: ClipFeatures, videos: Sequence[str], share: float, seed: int = 0) -> None:
        """Spoil a random share of the videos; each of them shows the next one of a random circle.

        Args:
            clips: of all videos.
            videos: all of them, two or more.
            share: 0 to 1.
            seed: of the choice. A larger share spoils the same videos and more.
        """
        order = np.random.default_rng(seed).permutation(sorted(set(videos))).tolist()
        following = [*order[1:], *order[:1]]
        count = round(share * len(order))
        self.shown: dict[str, str] = dict(zip(order[:count], following[:count], strict=True))
        self._clips = clips

    @property
    def dim(self) -> int:
        """Width D."""
        return self._clips.dim

    def read(self, key: str) -> Floats:
        """Features of the video that is shown for this one, cut or begun anew to be as long."""
        own = self._clips.read(key)
        if key not in self.shown:
            return own
        foreign = self._clips.read(self.shown[key])
        return foreign[np.arange(len(own)) % len(foreign)]


def gated(seen: pd.DataFrame, blind: pd.DataFrame, halves: NDArray[np.int64]) -> pd.DataFrame:
    """Scores of answers with evidence where the other half of the videos gains by it, else of those without.

    Args:
        seen: scores of each query with evidence, as `query_scores` gives them.
        blind: the same without.
        halves: 0 or 1 for each query, queries of one video alike.
    """
    result = blind.copy()
    for half in (0, 1):
        others, these = halves != half, halves == half
        if seen.loc[others, list(GAIN)].to_numpy().mean() >= blind.loc[others, list(GAIN)].to_numpy().mean():
            result.loc[these] = seen.loc[these]
    return result


def curve(
    policy: DensePolicy,
    models: Sequence[Sequence[Prediction]],
    annotations: Sequence[Annotation],
    evidence: Evidence,
    shares: Sequence[float],
    dataset: str,
) -> Mapping[str, Mapping[str, Difference]]:
    """Differences from the first model, by what was answered with and the share of spoilt videos."""
    profile = get_profile(dataset)

    def scores(answers: Sequence[Prediction]) -> pd.DataFrame:
        return query_scores(answers, annotations, profile)

    detector = scores(models[0])
    blind = scores(policy.answer(models, annotations, None))
    halves = video_folds([profile.source_video(row.vid) for row in annotations], 2, seed=0)
    found = {"without evidence": differences([blind], detector)}
    for share in shares:
        clips = SpoiltClips(evidence.clips, [row.vid for row in annotations], share)
        seen = scores(policy.answer(models, annotations, Evidence(clips, evidence.queries)))
        found[f"evidence, {share:.0%} spoilt"] = differences([seen], detector)
        found[f"gated, {share:.0%} spoilt"] = differences([gated(seen, blind, halves)], detector)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: the gain of a policy against the quality of its evidence."""
    parser = argparse.ArgumentParser(
        prog="python -m vmr_env.benchmarks.experiment.evidence_quality", description=main.__doc__
    )
    parser.add_argument("--policy", type=Path, required=True, help="folder that `dense --save` wrote")
    files = "annotation file, then prediction files of one detector or of a pool"
    parser.add_argument("--test", nargs="+", type=Path, required=True, metavar="FILE", help=files)
    parser.add_argument("--clips", nargs="+", type=Path, required=True, help="feature stores of the clips")
    parser.add_argument("--dataset", choices=PROFILES, default="qvhighlights", help="default: qvhighlights")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.25, 0.5, 1.0], help="0 to 1")
    options = parser.parse_args(arguments)
    if len(options.test) < 2:
        parser.error("--test names one file; expected an annotation file and prediction files")
    for share in options.shares:
        if not SHARE.holds(share):
            parser.error(f"--shares has {share}; expected {SHARE.expected}")
    annotations = read_annotations(options.test[0], past_end="keep")
    models = [read_predictions(path, before_start="keep") for path in options.test[1:]]
    clips = Stores([FeatureStore(path) for path in options.clips])
    evidence = Evidence(clips, encode_queries(annotations, []))
    policy = load_policy(options.policy)
    print(table(curve(policy, models, annotations, evidence, options.shares, options.dataset)))


if __name__ == "__main__":
    run_program(main)
