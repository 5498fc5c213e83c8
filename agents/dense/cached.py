"""A frozen backbone's cache as the detector whose proposals a policy over all spans sees."""

import numpy as np

from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.predictions import Prediction
from vmr_env.data.timelines import States, score_shares
from vmr_env.errors import DataError, Problem


def cached_predictions(cache: DecoderStateCache) -> list[Prediction]:
    """The proposals of every sample, in the order of the cache, whose first is the detector's answer.

    Raises:
        DataError: the cache is of several models; their prediction files say which window is whose.
    """
    if len(cache.manifest["models"]) > 1:
        message = (
            f"has {len(cache.manifest['models'])} models; expected one (of a pool give prediction files)"
        )
        raise DataError(Problem(str(cache.path), None, "models", message))
    rows = []
    for i in range(len(cache)):
        sample, count = cache.sample(i), int(cache.counts[i])
        seconds = cache.spans[i, :count].astype(np.float64) * sample.duration
        windows = np.column_stack([seconds, cache.scores[i, :count]])
        saliency = None if cache.saliency is None else np.array(cache.saliency[i], np.float32)
        rows.append(Prediction(sample.qid, sample.vid, sample.query, windows, saliency))
    return rows


def cached_states(cache: DecoderStateCache) -> dict[str, States]:
    """Decoder states of every sample by qid as text, each at its reference.

    Raises:
        DataError: the cache has none.
    """
    states, references = cache.require_states()
    names, _ = cache.names
    centres, halves = references[..., :1], references[..., 1:] / 2
    spans = np.concatenate([centres - halves, centres + halves], axis=2)
    return {
        name: States(spans[i], score_shares(cache.scores[i].astype(np.float64)), states[i])
        for i, name in enumerate(names.tolist())
    }
