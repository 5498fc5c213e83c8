"""The published step-wise agent in the main job."""

import json
from pathlib import Path

import numpy as np
import pytest
from backbone import Backbone, make_backbone
from safetensors.torch import load_file

from vmr_env.agents.stepwise.trainer import new_policy, walk
from vmr_env.benchmarks.experiment.main import main
from vmr_env.benchmarks.experiment.names import STEPWISE_AGENTS
from vmr_env.benchmarks.experiment.stepwise_method import stepwise_config
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.predictions import read_predictions

SHORT = [
    option
    for name in STEPWISE_AGENTS
    for setting in ("warm_up_epochs=1", "epochs=1", "evaluate_every=1")
    for option in ("--set", f"{name}.{setting}")
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("backbone"), memory="refined")


def arguments(backbone: Backbone, out: Path, *more: str) -> list[str]:
    data = ["--cache", str(backbone.caches / "train"), "--test-cache", str(backbone.caches / "test")]
    quick = ["--members", "2", "--jobs", "1", "--seeds", "1", "--times", "exact"]
    return [*data, *quick, "--agents", *STEPWISE_AGENTS, *SHORT, "--out", str(out), *more]


def test_answers_are_the_proposals_after_the_kept_policy_s_moves(backbone: Backbone, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(arguments(backbone, out)) == 0
    cache = DecoderStateCache.open(backbone.caches / "test")
    for name in STEPWISE_AGENTS:
        policy = new_policy(stepwise_config(name, "charades"), 16)
        policy.load_state_dict(load_file(out / "runs" / f"{name}-seed0-fold0.safetensors"))
        walked = walk(policy, cache)
        answers = {row.qid: row.windows for row in read_predictions(out / f"submission-{name}-seed0.jsonl")}
        for i in range(len(cache)):
            sample = cache.sample(i)  # proposals stand by falling score already
            windows = answers[sample.qid]
            np.testing.assert_allclose(
                windows[:, :2], walked[i, :, -1].clip(0, 1) * sample.duration, atol=1e-4
            )
            np.testing.assert_allclose(windows[:, 2], cache.scores[i], atol=1e-4)
        run = json.loads((out / "runs" / f"{name}-seed0-fold0.json").read_text())
        steps = np.array(run["trajectories"]["windows"]).reshape(len(cache), 4, 2)
        seconds = walked[:, 0] * cache.durations[:, None, None]
        np.testing.assert_allclose(steps, np.clip(seconds, 0, cache.durations[:, None, None]), atol=1e-4)
        assert run["selection"]["rounds"] == [1, 2]
        assert run["selection"]["chosen"] in (1, 2)
        assert run["selection"]["steps"] in range(2 * 10, 2 * 31)  # two epochs over some half of the videos


def test_resuming_gives_the_same_numbers(backbone: Backbone, tmp_path: Path) -> None:
    select = ["--select-cache", str(backbone.caches / "select")]
    out = tmp_path / "out"
    assert main(arguments(backbone, out, *select)) == 0
    run = out / "runs" / "stepwise_ppo-seed0-fold0.json"
    before = json.loads(run.read_text())
    run.unlink()
    assert main([*arguments(backbone, out, *select), "--resume"]) == 0
    again = json.loads(run.read_text())
    assert before.keys() == again.keys()
    assert all(again[name] == before[name] for name in before if name not in ("seconds", "sha256"))
    assert before["selection"]["steps"] == 2 * 40


def test_caches_without_clip_features_are_refused_before_anything_is_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = make_backbone(tmp_path / "bare", train=8, select=4, test=4)
    assert main(arguments(bare, tmp_path / "out")) == 1
    errors = capsys.readouterr().err
    assert "clips: no clip features and text, expected a cache written with the backbone" in errors
    assert errors.count("error: ") == 1


def test_unknown_settings_are_named(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(backbone, tmp_path / "out", "--set", "stepwise_ppo.sped=1")) == 2
    assert "--set: has 'sped', expected some of actions, algorithm" in capsys.readouterr().err
