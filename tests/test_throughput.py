"""The speed script: what is compared takes turns. What it measures is not tested."""

import itertools
from pathlib import Path

import pytest
from refinement import short_cache, user_cache_in

from vmr_env.benchmarks.speed import throughput


def test_works_take_turns_and_the_first_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.accumulate([0, 9, 0, 7, 0, 1, 0, 2, 0, 3, 0, 6])  # seconds of every other work
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    done: list[str] = []
    times = throughput.in_turns({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 2)
    assert done == ["a", "b"] * 3
    assert times == {"a": [1, 3], "b": [2, 6]}
    assert throughput.median_ratio(times["b"], times["a"]) == 2


def test_scoring_of_a_file_is_timed(data: Path) -> None:
    name = "qvhighlights_val.vtg_gpt_zeroshot.jsonl.gz"
    truth = data / "qvhighlights" / "highlight_val_release.jsonl"
    ((label, seconds),) = throughput.evaluate_figures(data / "predictions" / name, truth, 1).items()
    assert name in label
    assert 0 < seconds < 60


def test_repeats_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        throughput.main(["--repeats", "0"])
    assert "--repeats: is 0, expected a whole number from 1" in capsys.readouterr().err


def test_the_interval_of_a_mean_is_student_s() -> None:
    # t(0.975, 2) = 4.30265 from a table; the deviation of 1, 2, 3 is 1.
    assert throughput.interval([1.0, 2.0, 3.0]) == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_our_ppo_stands_beside_sb3_s(tmp_path: Path) -> None:
    with user_cache_in(tmp_path) as folder:
        figures = throughput.ppo_figures(short_cache(folder / "short"), seeds=2, rounds=1)
    assert all(f"{name}, return" in figures for name in throughput.PPOS)
    assert sum(" / " in name for name in figures) == 2
