"""The table of stages and the published schedules against their recorded values."""

import json
from pathlib import Path

import pytest

from vmr_env.envs.curriculum import SCHEDULES, STAGES, coefficients, get_schedule, get_stage, three_stages

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
    without_second = three_stages(0.5, (2, 0, 3))
    assert [coefficients(without_second, epoch).stage for epoch in range(5)] == [1, 1, 3, 3, 3]
    assert coefficients(without_second, 2) == (3, pytest.approx(0.05), 0.5)


def test_freedom_grows_with_the_stage() -> None:
    assert list(STAGES) == [1, 2, 3]
    assert STAGES[1].actions <= STAGES[2].actions < STAGES[3].actions
    assert "switch" not in STAGES[2].actions
    for stage in STAGES.values():
        assert ("class_embed" in stage.trains) == (stage.score.height > 0)


@pytest.mark.parametrize("epoch", [-1, 60])
def test_epoch_outside_the_schedule(epoch: int) -> None:
    with pytest.raises(ValueError, match=rf"epoch must be from 0 to 59, got {epoch}"):
        coefficients("tacos", epoch)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="did you mean 'qvhighlights'"):
        coefficients("qvhighlight", 0)
    with pytest.raises(ValueError, match=r"one of \[1, 2, 3\], got 4"):
        get_stage(4)
    with pytest.raises(ValueError, match=r"got \(0, 0, 0\)"):
        three_stages(1.0, (0, 0, 0))
