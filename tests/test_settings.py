"""Ranges of agents' settings, and what run_tprl tells before anything is trained."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tprl import new_head, small_config, write_states

from vmr_env.agents.dense.trainer import DenseConfig
from vmr_env.agents.expected_gain import ExpectedGainConfig
from vmr_env.agents.grpo import GRPOConfig
from vmr_env.agents.ppo import PPOConfig
from vmr_env.agents.reinforce import ReinforceConfig
from vmr_env.agents.stepwise.trainer import StepwiseConfig
from vmr_env.agents.tprl.config import default_config, paper_config
from vmr_env.agents.tprl.data import StateBatches
from vmr_env.agents.tprl.head_policy import head_policy_config
from vmr_env.agents.tprl.trainer import TprlTrainer
from vmr_env.benchmarks.experiment import main as job
from vmr_env.benchmarks.experiment import options
from vmr_env.benchmarks.experiment.options import Options
from vmr_env.benchmarks.experiment.run_folder import settle
from vmr_env.envs.curriculum import through_stages

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


_MADE: list[Any] = [
    PPOConfig(),
    GRPOConfig(),
    ReinforceConfig(),
    ExpectedGainConfig(),
    StepwiseConfig(),
    DenseConfig(),
    default_config("charades"),
    paper_config("tacos"),
    head_policy_config("grpo"),
]


@pytest.mark.parametrize("config", _MADE, ids=lambda config: type(config).__name__)
def test_every_setting_of_every_agent_is_checked(config: Any) -> None:
    """No number may be none, negative or of another kind, and no choice a word that is none of them."""
    for field in fields(config):
        for wrong in (math.nan, -1, math.inf, "nonsense", True):
            now = getattr(config, field.name)
            if isinstance(now, bool if wrong is True else str if wrong == "nonsense" else ()):
                continue
            with pytest.raises(ValueError, match=f"^{field.name} is .*, expected "):
                replace(config, **{field.name: wrong})


def test_settings_that_may_be_none_say_so() -> None:
    assert replace(default_config("charades"), class_lr=None, top_k=None).top_k is None
    with pytest.raises(ValueError, match=r"^top_k is 0\.5, expected a whole number of at least 1, or None$"):
        replace(default_config("charades"), top_k=0.5)
    with pytest.raises(ValueError, match=r"^lr is None, expected a number above 0$"):
        replace(default_config("charades"), lr=None)


def test_a_schedule_without_rl_leaves_the_class_layer_alone(tmp_path: Path) -> None:
    """A coefficient of 0 divides nothing."""
    cache = write_states(tmp_path / "cache", 0, 12)
    schedule = through_stages(0.0, (0, 0, 2))
    for class_lr in (None, 1e-2):
        config = small_config(schedule=schedule, class_lr=class_lr, weight_decay=0.0)
        trainer = TprlTrainer(new_head(), config)
        rows = list(trainer.train(StateBatches(cache)))
        assert np.isfinite(list(rows[-1].values())).all()
        assert torch.equal(trainer.head.class_embed.weight, new_head().class_embed.weight)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"rl_coef is (-1\.0|nan|inf), expected a number of at least 0"):
            through_stages(wrong, (1, 1, 1))


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

    cache = SimpleNamespace(manifest={"files": {}, "backbone": {}, "models": []})
    fold: Any = SimpleNamespace(train=cache, test=cache, select=None)
    args = Options(out=tmp_path)
    settle(args, [fold])
    settle(args, [fold])
    assert "vmr_env" in json.loads((tmp_path / "settings.json").read_text())["versions"]
    monkeypatch.setattr("vmr_env.__version__", "9.9")
    with pytest.raises(DataError, match="versions"):
        settle(args, [fold])
