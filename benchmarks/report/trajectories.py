"""Every step of an agent's episodes, as short as the report's page can hold them."""

from collections.abc import Mapping

import numpy as np

from vmr_env.agents.evaluation import KINDS, Trajectories
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.metrics.spans import best_tiou

Trajectory = list[list[float]]
"""What an episode did after its start. A move is [start, end, tIoU], seconds; a switch is the same with the
number of the proposal, from 1, behind; stopping is []."""


def trajectories(steps: Trajectories, cache: DecoderStateCache) -> Mapping[str, Trajectory]:
    """The trail of each query, by qid as text.

    Args:
        steps: of one episode for each sample.
        cache: where the samples are.
    """
    starts = np.flatnonzero(steps.kinds == KINDS.index("start"))
    ends = np.append(starts[1:], len(steps.kinds))
    found = {}
    for first, end in zip(starts.tolist(), ends.tolist(), strict=True):
        sample = cache.sample(int(steps.samples[first]))
        windows = steps.windows[first + 1 : end]
        tious = best_tiou(windows, np.asarray(sample.moments, np.float64))
        found[str(sample.qid)] = [
            _step(KINDS[kind], [*np.round(window, 2).tolist(), round(float(tiou), 4)], proposal)
            for kind, window, tiou, proposal in zip(
                steps.kinds[first + 1 : end].tolist(),
                windows,
                tious,
                steps.proposals[first + 1 : end].tolist(),
                strict=True,
            )
        ]
    return found


def _step(kind: str, where: list[float], proposal: int) -> list[float]:
    if kind == "stop":
        return []
    return [*where, proposal + 1] if kind == "switch" else where
