"""From a prediction file to a better one.

python examples/refine_predictions.py predictions.jsonl annotations.jsonl

learns on half of the videos and refines the other half; it prints the mean tIoU before and after. Without
files it takes the predictions of the simulated detector that ships with the package.
"""

import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vmr_env.agents.evaluation import refine, submission
from vmr_env.agents.expected_gain import ExpectedGain
from vmr_env.caches.from_predictions import build_prediction_cache
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.profiles import get_profile
from vmr_env.envs.sources import open_source
from vmr_env.envs.vector_env import VMRVectorEnv

ROUNDS = 30


def open_predictions(files: list[str], folder: str) -> DecoderStateCache:
    """A cache of a prediction file and its annotations, or the simulated one."""
    if not files:
        return open_source("charades", "test")
    predictions, annotations = files
    path = build_prediction_cache(
        Path(folder) / "cache", predictions, annotations, get_profile("charades"), "test"
    )
    return DecoderStateCache.open(path)


def main(files: list[str]) -> float:
    """Print mean tIoU before and after on the half that was not learnt from; returns the gain in points."""
    with TemporaryDirectory() as folder:
        cache = open_predictions(files, folder)
        videos = np.array([cache.sample(row).vid for row in range(len(cache))])
        learnt = np.isin(videos, np.unique(videos)[::2])
        options = {"horizon": 1, "proposals": 1}
        env = VMRVectorEnv(
            256,
            "charades",
            source=cache,
            samples=np.flatnonzero(learnt),
            autoreset_mode="SameStep",
            **options,
        )
        agent = ExpectedGain(env, seed=0)
        for _ in range(ROUNDS):
            agent.update()
        refined = refine(agent.act, cache, np.flatnonzero(~learnt), options)
        answers = submission(cache, refined)
        before, after = 100 * refined.before.mean(), 100 * refined.after.mean()
        print(f"mIoU of {len(answers)} queries on new videos: {before:.2f} before, {after:.2f} after")
        print(f"first answer: {answers[0].query!r} {answers[0].windows[0, :2].tolist()} s")
    return float(after - before)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the data are simulated unless files are named
    main(sys.argv[1:])
