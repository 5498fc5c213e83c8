"""Ranges of agents' settings, and what run_tprl tells before anything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from vmr_env.agents.grpo import GRPOConfig
from vmr_env.agents.ppo import PPOConfig
from vmr_env.agents.stepwise.trainer import StepwiseConfig
from vmr_env.benchmarks.experiment import main as job
from vmr_env.benchmarks.experiment import options
from vmr_env.benchmarks.experiment.options import Options
from vmr_env.benchmarks.experiment.run_folder import settle

_WRONG = [
    (PPOConfig, "gamma", 5.0),
    (PPOConfig, "lam", 3.0),
    (PPOConfig, "clip", 7.0),
    (PPOConfig, "lr", 0.0),
    (PPOConfig, "max_norm", 0.0),
    (GRPOConfig, "clip", 7.0),
    (GRPOConfig, "lr", 0.0),
    (StepwiseConfig, "gamma", 5.0),
    (StepwiseConfig, "gae_lambda", -1.0),
    (StepwiseConfig, "ratio_clip", 7.0),
    (StepwiseConfig, "clip", 0.0),
    (StepwiseConfig, "lr", float("nan")),
]


@pytest.mark.parametrize(("config", "name", "value"), _WRONG)
def test_a_number_out_of_its_range_is_refused(config: Any, name: str, value: float) -> None:
    config()
    with pytest.raises(ValueError, match=f"^{name} is .*, expected a number"):
        config(**{name: value})


def test_settings_are_checked_before_the_backbone_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(args: Any) -> None:
        raise AssertionError("the backbone was trained")

    monkeypatch.setattr(job, "train_backbone", trained)
    backbone = ["--backbone", "girl_detr_simulated", "--agents", "ppo", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(options, "RECIPES", ("girl_detr_simulated",))
    for given in ("tprl.epochs=3", "ppo.gamma=5", "ppo.gama=1"):
        assert job.main([*backbone, "--set", given]) == 2
        assert "error: --set" in capsys.readouterr().err


def test_resume_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--agents", "ppo", "--out", str(tmp_path / "new"), "--resume"]) == 2
    assert "has no run" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_another_package_version_does_not_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from vmr_env.errors import DataError

    cache = SimpleNamespace(manifest={"files": {}})
    fold: Any = SimpleNamespace(train=cache, test=cache)
    args = Options(out=tmp_path)
    settle(args, [fold])
    settle(args, [fold])
    assert "vmr_env" in json.loads((tmp_path / "settings.json").read_text())["versions"]
    monkeypatch.setattr("vmr_env.__version__", "9.9")
    with pytest.raises(DataError, match="versions"):
        settle(args, [fold])
