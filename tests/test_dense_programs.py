"""The programs that train and judge policies over all spans, on small files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_dense import problem
from vmr_env.backbones.features.store import FeatureStoreWriter
from vmr_env.benchmarks.experiment import dense, dense_sb3

from vmr_env.data.predictions import read_predictions, write_predictions


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that name queries, predictions and features of `problem`."""
    timelines = problem(20)
    rows = [
        {
            "qid": row.qid,
            "vid": row.vid,
            "query": row.query,
            "duration": row.duration,
            "relevant_windows": row.moments.tolist(),
        }
        for row in timelines.annotations
    ]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_predictions(tmp_path / "detector.jsonl", timelines.models[0])
    with FeatureStoreWriter(tmp_path / "clips", source="simulated", origin={}) as writer:
        for row in timelines.annotations:
            writer.add(row.vid, timelines._features.read(row.vid))
    monkeypatch.setattr(dense, "encode_queries", lambda queries, paraphrases: timelines._queries)
    threads = torch.get_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads())
    learnt = [str(tmp_path / "queries.jsonl"), str(tmp_path / "detector.jsonl")]
    return ["--train", *learnt, "--clips", str(tmp_path / "clips")]


def test_folds_are_judged_beside_all_references(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "out.jsonl"
    short = ["--folds", "2", "--seeds", "1", "--epochs", "1", "--gradient", "ppo"]
    dense.main([*files, *short, "--ranker", "--out", str(out)])
    names = {line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line[:1] == "|"}
    references = {"vote over candidates", "evidence alone", "gradient boosting", "untrained policy"}
    assert names >= {"detector", "dense policy", *references}
    assert names >= {f"dense policy - {name}" for name in references}
    assert len(read_predictions(out)) == 20


def test_ppo_of_sb3_goes_on_from_imitation(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    judged = ["--test", *files[1:3]]
    dense_sb3.main([*files, *judged, "--seeds", "1", "--steps", "512"])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    figures = {line[1].strip(): [cell.strip() for cell in line[2:6]] for line in lines}
    assert figures["imitation alone"] != figures["detector"]
    assert figures["dense policy"] != figures["imitation alone"]


def test_rewards_of_ppo_are_the_gain_of_the_policy() -> None:
    for tiou, expected in ((0.3, 0.1), (0.5, 0.5), (0.69, 0.563), (0.8, 0.933), (1.0, 1.0)):
        assert dense_sb3.gain_of(tiou) == pytest.approx(expected, abs=1e-3)


def test_a_wrong_call_is_one_line(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for program, options, message in (
        (dense_sb3.main, [*files, "--test", files[1]], "--test names one file"),
        (dense_sb3.main, [*files, "--test", *files[1:3], "--steps", "0"], "--steps is 0"),
        (dense.main, [*files, "--seeds", "0"], "--seeds is 0"),
    ):
        with pytest.raises(SystemExit):
            program(options)
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_features_of_the_folder_reach_the_timelines(files: list[str]) -> None:
    clips = dense.Stores([dense.FeatureStore(Path(files[-1]))])
    timelines = dense.read_timelines([Path(path) for path in files[1:3]], clips, [])
    np.testing.assert_allclose(timelines.clip_vectors(3), problem(20).clip_vectors(3), atol=2e-3)
    blind = dense.read_timelines([Path(path) for path in files[1:3]], clips, [], blind=True)
    assert not blind.clip_vectors(3).any()
