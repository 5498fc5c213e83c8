"""From refined moments to figures: official metrics, differences from the detector, and their uncertainty."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vmr_env.arrays import Doubles
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.data.profiles import DatasetProfile
from vmr_env.metrics.intervals import video_draws
from vmr_env.metrics.measures import MEASURES
from vmr_env.metrics.moments import evaluate, per_query
from vmr_env.metrics.registry import METRICS

DRAWS = 2000
BOOTSTRAP_SEED = 0


def measures() -> tuple[str, ...]:
    """Columns of tables: the usual figures, then registered metrics (`vmr_env.register_metric`)."""
    return (*MEASURES, *METRICS)


class Difference(NamedTuple):
    """A difference from the detector in percent points, with its 95 % interval."""

    mean: float
    low: float
    high: float


def figures(predictions: Sequence[Prediction], annotations: Sequence[Annotation]) -> dict[str, float]:
    """Official figures in percent, and those of registered metrics."""
    brief = evaluate(predictions, annotations, past_end="keep")["brief"]  # readers have settled it
    return {measure: brief[f"MR-full-{measure}"] for measure in MEASURES} | {
        measure: brief[measure] for measure in METRICS
    }


def query_scores(
    predictions: Sequence[Prediction], annotations: Sequence[Annotation], profile: DatasetProfile
) -> pd.DataFrame:
    """Scores of each query in percent, indexed by qid as text: `measures()` and `video`, the source."""
    frame = per_query(predictions, annotations, past_end="keep")
    scores = pd.DataFrame({"video": frame["vid"].map(profile.source_video)})
    scores["R1@0.5"] = 100.0 * (frame["iou"] >= 0.5)
    scores["R1@0.7"] = 100.0 * (frame["iou"] >= 0.7)
    scores["mIoU"] = 100.0 * frame["iou"]
    scores["mAP"] = 100.0 * frame["ap"]
    scores[list(METRICS)] = frame[list(METRICS)]
    scores.index = pd.Index(frame["qid"].astype(str))
    return scores


class Resampling:
    """A bootstrap over source videos: the same draws for everything that is compared on the same queries.

    A draw takes as many source videos as there are, with replacement; queries of one video stay together.

    Args:
        scores: a row per query with its `video`, as `query_scores` gives them.
        draws: number of draws.
    """

    def __init__(self, scores: pd.DataFrame, draws: int = DRAWS) -> None:
        self.queries, self.draws = scores.index, draws
        self.rng = np.random.default_rng(BOOTSTRAP_SEED)
        self._codes, videos = pd.factorize(scores["video"])
        self._videos = len(videos)
        self._weights = np.concatenate(list(video_draws(len(videos), draws, self.rng)))  # (draws, videos)
        self._sizes = self._weights @ np.bincount(self._codes, minlength=len(videos))

    def column(self, scores: pd.DataFrame, measure: str) -> Doubles:
        """A measure of every query (Q,), in the order of these queries."""
        column: Doubles = scores.loc[self.queries, measure].to_numpy()
        return column

    def means(self, values: Doubles) -> Doubles:
        """Mean over the drawn queries of each of K rows of values: (K, Q) -> (draws, K)."""
        by_video = np.stack([np.bincount(self._codes, row, minlength=self._videos) for row in values])
        means: Doubles = (self._weights @ by_video.T) / self._sizes[:, None]
        return means

    def choices(self, of: int, *shape: int) -> NDArray[np.int64]:
        """Draws with replacement among `of` things, such as seeds: (draws, *shape)."""
        return self.rng.integers(of, size=(self.draws, *shape))


def differences(
    agents: Sequence[pd.DataFrame], detector: pd.DataFrame, draws: int = DRAWS
) -> dict[str, Difference]:
    """Mean difference of an agent's seeds from the detector, with a bootstrap interval over videos and seeds.

    Args:
        agents: scores of each seed, as `query_scores` gives them.
        detector: scores of the detector on the same queries.
        draws: number of draws.
    """
    return compared(agents, [detector], draws)


def compared(
    agents: Sequence[pd.DataFrame], others: Sequence[pd.DataFrame], draws: int = DRAWS
) -> dict[str, Difference]:
    """Mean difference of one agent's seeds from another's, with a bootstrap interval over videos and seeds.

    Args:
        agents: scores of each seed, as `query_scores` gives them.
        others: scores of the other's seeds on the same queries; only measures that they have are compared.
        draws: number of draws.
    """
    resampling = Resampling(others[0], draws)
    seeds = [resampling.choices(len(each), len(each)) for each in (agents, others)]
    result = {}
    for measure in (name for name in measures() if name in others[0]):
        values = [np.stack([resampling.column(one, measure) for one in each]) for each in (agents, others)]
        # From a common zero for each query, so that equal answers differ by exactly nothing.
        values = [of_seeds - values[1].mean(axis=0) for of_seeds in values]
        drawn = [
            np.take_along_axis(resampling.means(of_seeds), chosen, axis=1).mean(axis=1)
            for of_seeds, chosen in zip(values, seeds, strict=True)
        ]
        low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
        result[measure] = Difference(float(values[0].mean() - values[1].mean()), float(low), float(high))
    return result


class Curve(NamedTuple):
    """Mean over trainings, with its 95 % interval: (X,) each."""

    mean: Doubles
    low: Doubles
    high: Doubles


def mean_curve(
    trainings: Sequence[tuple[Sequence[float], Sequence[float]]], at: Doubles, draws: int = DRAWS
) -> Curve:
    """Mean of curves, each known at points of its own, with a bootstrap interval over trainings.

    Args:
        trainings: of each training its points, rising, and the values there; between them a line.
        at: (X,), where to look.
        draws: number of draws; with one training the interval is empty.
    """
    values = np.stack([np.interp(at, *training) for training in trainings])  # (trainings, X)
    drawn = np.random.default_rng(BOOTSTRAP_SEED).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975], axis=0)
    return Curve(values.mean(axis=0), low, high)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of figures as a Markdown table; cells are numbers, `Difference`s or text."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| agent | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(_cell(row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, Difference):
        return f"{value.mean:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"
    if isinstance(value, float):
        return f"{value:.2f}"
    return "" if value is None else str(value)
