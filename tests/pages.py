"""A small page of a report, for the tests of the report and of its explorer in a browser."""

from typing import Any

import numpy as np

from vmr_env.agents.ensemble.cross_fitting import Selection
from vmr_env.benchmarks.report.html import Given, Page, gather
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction

HOSTILE = "</script><script>document.title='broken'</script> & <b>bold</b>"

QUERIES = ("a person opens the door", "somebody runs", HOSTILE, "a dog opens a box")

TRUTH = [
    Annotation(i, f"v{i // 2}", query, 20.0, np.array([[5.0, 15.0], [16.0, 20.0]][: 1 + i % 2]), None, None)
    for i, query in enumerate(QUERIES)
]

DETECTOR = ((0.0, 10.0), (5.0, 15.0), (4.0, 14.0), (0.0, 2.0))
BETTER = ((5.0, 10.0), (5.0, 15.0), (5.0, 15.0), (0.0, 2.0))
WORSE = ((0.0, 1.0), (0.0, 14.0), (4.0, 15.0), (0.0, 2.0))


def answers(spans: tuple[tuple[float, float], ...]) -> list[Prediction]:
    """A submission with these first windows and scores 0.6, 0.7, 0.8, 0.9."""
    return [
        Prediction(row.qid, row.vid, row.query, np.array([[*span, 0.6 + 0.1 * i], [0, 20, 0.1]]))
        for i, (row, span) in enumerate(zip(TRUTH, spans, strict=True))
    ]


TRAJECTORIES = (
    [[5.0, 10.0, 0.5], []],
    [[]],
    [[0.0, 20.0, 0.5, 2], [5.0, 15.0, 1.0]],
    [[]],
)
"""Steps of `BETTER`: a move and a stop, a stop, a switch and a move, a stop."""


def record() -> dict[str, Any]:
    """What `results.json` holds, with figures that are easily found on the page."""
    figures = {"R1@0.5": 41.25, "R1@0.7": 12.5, "mIoU": 33.0, "mAP": 21.0}
    change = {measure: {"mean": 1.5, "low": 0.25, "high": 2.75} for measure in figures}
    worse = {measure: {"mean": -1.5, "low": -2.75, "high": -0.25} for measure in figures}
    unsure = {measure: {"mean": 0.5, "low": -1.0, "high": 2.0} for measure in figures}
    schedule = {"phases": [{"epochs": 1, "stage": 1}, {"epochs": 3, "stage": 3}], "rl_coef": 1.0}
    frozen = {"encoder": {"before": "aa", "after": ["aa"]}, "decoder": {"before": "bb", "after": ["cc"]}}
    return {
        "run": {
            "command": "python benchmarks/run_tprl.py --agents ppo 'tp & rl'",
            "source": "predictions",
            "dataset": "charades",
            "models": ["one"],
            "versions": {"torch": "2.13.0"},
        },
        "detectors": {"one, as published": figures},
        "references": {"random": {"figures": figures, "change": worse}},
        "agents": {
            "ppo": {
                "seeds": [0, 1],
                "figures": [figures, figures],
                "change": change,
                "chosen_rounds": [0, 5],
            },
            "tp & rl": {
                "seeds": [0],
                "figures": [figures],
                "change": unsure,
                "chosen_rounds": [3],
                "config": {"schedule": schedule, "lr": 0.125},
                "frozen": frozen,
            },
        },
    }


_HEALTH = (
    {"health/approximate_kl": 1.5, "losses/entropy": 2.0},
    {"health/approximate_kl": 0.25, "losses/entropy": 1.0},
)


def page() -> Page:
    """The page's data."""
    trajectories = {str(row.qid): trail for row, trail in zip(TRUTH, TRAJECTORIES, strict=True)}
    given = {
        "ppo": {0: Given(answers(BETTER), trajectories, False), 1: Given(answers(DETECTOR), None, False)},
        "tp & rl": {0: Given(answers(WORSE), None, True)},
    }
    half, quarter = (0.5, 0.5, 0.0, 0.0, 0.0), (0.25, 0.0, 0.25, 0.0, 0.5)
    trainings = {
        "ppo": [
            Selection((5, 10), (0.01, 0.02), 0, 0, (half, half), ({"health/approximate_kl": 0.5}, {})),
            Selection((5, 10), (0.03, 0.04), 5, 0, (half, quarter), _HEALTH),
        ],
        "tp & rl": [Selection((1, 2, 3, 4), (0.0, -0.01, 0.0, 0.01), 3, 0, (half, half, half, quarter))],
    }
    return gather(
        "Source: predictions & more.", record(), TRUTH, answers(DETECTOR), answers(DETECTOR), given, trainings
    )
