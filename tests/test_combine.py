"""Several backbones' runs in one table: means, intervals against a slow bootstrap, and what is refused."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vmr_env.benchmarks.experiment.results import BOOTSTRAP_SEED, differences
from vmr_env.benchmarks.report.combine import combine, combined_differences, main
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction, write_predictions
from vmr_env.data.profiles import PROFILES
from vmr_env.errors import DataError
from vmr_env.metrics.measures import MEASURES

QUERIES = 24


def scores(rng: np.random.Generator, level: float) -> pd.DataFrame:
    frame = pd.DataFrame({"video": [f"v{i // 3}" for i in range(QUERIES)]})
    for measure in MEASURES:
        frame[measure] = rng.normal(level, 10, QUERIES)
    frame.index = pd.Index([str(i) for i in range(QUERIES)])
    return frame


def test_one_backbone_is_the_plain_difference() -> None:
    rng = np.random.default_rng(0)
    detector, seeds = scores(rng, 50), [scores(rng, 52) for _ in range(3)]
    found, plain = combined_differences([(detector, seeds)]), differences(seeds, detector)
    for measure in MEASURES:
        assert found[measure].mean == pytest.approx(plain[measure].mean)
        assert found[measure].low == pytest.approx(plain[measure].low, abs=0.5)
        assert found[measure].high == pytest.approx(plain[measure].high, abs=0.5)


def test_intervals_equal_an_obvious_bootstrap() -> None:
    rng = np.random.default_rng(1)
    runs = [(scores(rng, 50), [scores(rng, 50 + k) for _ in range(2 + k)]) for k in range(3)]
    draws = 30
    found = combined_differences(runs, draws)
    rng = np.random.default_rng(BOOTSTRAP_SEED)  # the same draws, taken apart
    weights = rng.multinomial(8, np.full(8, 1 / 8), size=draws)
    backbones = rng.integers(3, size=(draws, 3))
    seeds = [rng.integers(len(of), size=(draws, 3, len(of))) for _, of in runs]
    for measure in MEASURES:
        means = []
        for draw in range(draws):
            of_draw = []
            for place in range(3):
                detector, agents = runs[backbones[draw, place]]
                for seed in seeds[backbones[draw, place]][draw, place]:
                    gains = agents[seed][measure] - detector[measure]
                    rows = [(gains.iloc[query], weights[draw, query // 3]) for query in range(QUERIES)]
                    value = sum(gain * weight for gain, weight in rows) / sum(weight for _, weight in rows)
                    of_draw.append((value, 1 / len(agents)))
            means.append(sum(value * share for value, share in of_draw) / 3)
        low, high = np.quantile(means, [0.025, 0.975])
        assert (found[measure].low, found[measure].high) == (pytest.approx(low), pytest.approx(high))


def test_runs_of_two_backbones_from_files(tmp_path: Path) -> None:
    truth = [Annotation(i, f"v{i}", "a query", 30.0, np.array([[10.0, 20.0]]), None, None) for i in range(4)]

    def answers(start: float) -> list[Prediction]:
        return [Prediction(i, f"v{i}", "a query", np.array([[start, 20.0, 0.9]]), None) for i in range(4)]

    for run, (detector, agent) in {"a": (15.0, 10.0), "b": (12.5, 12.5)}.items():
        (tmp_path / run).mkdir()
        write_predictions(tmp_path / run / "submission-detector.jsonl", answers(detector))
        write_predictions(tmp_path / run / "submission-tprl-seed0.jsonl", answers(agent))
        (tmp_path / run / "results.json").write_text(json.dumps({"agents": {"tprl": {"seeds": [0]}}}))
    text = combine([tmp_path / "a", tmp_path / "b"], truth, PROFILES["charades"], tmp_path / "all")
    record = json.loads((tmp_path / "all" / "combined.json").read_text())["rows"]
    assert record["detector"]["figures"]["mIoU"] == pytest.approx((50 + 75) / 2)
    assert record["tprl"]["figures"]["mIoU"] == pytest.approx((100 + 75) / 2)
    assert record["tprl"]["change"]["mIoU"]["mean"] == pytest.approx(25)
    assert record["tprl"]["change"]["mIoU"]["low"] == pytest.approx(0)  # the second backbone, twice
    assert record["tprl"]["change"]["mIoU"]["high"] == pytest.approx(50)
    assert "+25.00 [+0.00, +50.00]" in text
    drawn = ET.parse(tmp_path / "all" / "combined.svg").getroot()
    assert "Change in R1@0.7" in drawn.attrib["aria-label"]

    with pytest.raises(DataError, match="expected the settings of a run with --test-cache"):
        main([str(tmp_path / "a"), "--out", str(tmp_path / "none")])
