"""The table of stages and the published schedules against their recorded values."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from head_goldens import load_head

from vmr_env.agents.tprl.config import default_config
from vmr_env.agents.tprl.head_policy import HeadPolicyTrainer, head_policy_config
from vmr_env.benchmarks.experiment.head_methods import configured
from vmr_env.envs.curriculum import (
    OFF,
    SCHEDULES,
    STAGES,
    Curriculum,
    Ramp,
    Stage,
    coefficients,
    get_schedule,
    through_stages,
)
from vmr_env.errors import DataError

OFFICIAL = {
    "charades": "charadesSTA (train_rl.sh)",
    "charades_v15c": "charadesSTA (finetune_scst_v15c_frozen_lowlr.sh)",
    "charades_span_only": "variant: charadesSTA with phase3_span_only",
    "qvhighlights": "hl (qvhl/train_rl.sh)",
    "tacos": "tacos (train_rl.sh)",
    "linear": "variant: linear warmup 10",
    "constant": "variant: none",
}


def test_every_recorded_schedule_has_a_name(goldens: Path) -> None:
    recorded = json.loads((goldens / "tprl_schedule.json").read_text())
    assert set(OFFICIAL.values()) == set(recorded)
    assert set(OFFICIAL) == set(SCHEDULES)


@pytest.mark.parametrize("name", OFFICIAL)
def test_schedule_equals_the_recorded_one(goldens: Path, name: str) -> None:
    rows = json.loads((goldens / "tprl_schedule.json").read_text())[OFFICIAL[name]]["rows"]
    assert get_schedule(name).epochs == len(rows)
    for epoch, stage, score, span in rows:
        got = coefficients(name, epoch)
        assert got.stage == stage, epoch
        assert got.score == pytest.approx(score, rel=1e-12, abs=0), epoch
        assert got.span == pytest.approx(span, rel=1e-12, abs=0), epoch


def test_stage_left_out_shifts_the_rest() -> None:
    without_second = through_stages(0.5, (2, 0, 3))
    assert [coefficients(without_second, epoch).stage for epoch in range(5)] == [1, 1, 3, 3, 3]
    assert coefficients(without_second, 2) == (3, pytest.approx(0.05), 0.5)


TWO = Curriculum((Stage("spans", span=Ramp(0.5), score=OFF), Stage("all", decays=True)))


def test_a_schedule_through_stages_of_ones_own() -> None:
    """By the definitions: half of the coefficient, then all of both, which fall to a fifth by a cosine."""
    config = configured(default_config("charades"), {"curriculum": f"{__name__}:TWO", "epochs": [2, 4]})
    decay = [0.2 + 0.4 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    expected = [(1, 0.0, 0.5)] * 2 + [(2, pytest.approx(part), pytest.approx(part)) for part in decay]
    assert [tuple(coefficients(config.schedule, epoch)) for epoch in range(6)] == expected
    with pytest.raises(DataError, match="epochs must be 2 lengths"):
        configured(default_config("charades"), {"curriculum": f"{__name__}:TWO", "epochs": [2, 4, 1]})


def test_a_head_policy_goes_through_stages_of_ones_own(goldens: Path) -> None:
    config = replace(head_policy_config("ppo"), curriculum=f"{__name__}:TWO", epochs=(1, 2))
    trainer = HeadPolicyTrainer(load_head(goldens), config)
    stages = [trainer.start_epoch(epoch) for epoch in range(trainer.epochs)]
    assert stages == [TWO[1], TWO[2], TWO[2]]
    assert list(map(trainer.stage_of, stages)) == [1, 2, 2]
    with pytest.raises(ValueError, match=r"epochs is .*, expected 2, one of each stage"):
        replace(config, epochs=(1, 2, 3))


def test_freedom_grows_with_the_stage() -> None:
    assert list(STAGES.numbers) == [1, 2, 3]
    assert STAGES[1].free <= STAGES[2].free < STAGES[3].free
    assert "switch" not in STAGES[2].free
    for stage in STAGES.stages:
        assert ("switch" in stage.free) == (stage.score.height > 0)


@pytest.mark.parametrize("epoch", [-1, 60])
def test_epoch_outside_the_schedule(epoch: int) -> None:
    with pytest.raises(ValueError, match=rf"epoch must be from 0 to 59, got {epoch}"):
        coefficients("tacos", epoch)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="did you mean 'qvhighlights'"):
        coefficients("qvhighlight", 0)
    with pytest.raises(ValueError, match=r"one of \[1, 2, 3\], got 4"):
        STAGES[4]
    with pytest.raises(ValueError, match=r"got \(0, 0, 0\)"):
        through_stages(1.0, (0, 0, 0))
