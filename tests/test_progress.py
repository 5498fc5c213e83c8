"""What is said of runs while they go on, and when they have ended."""

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pages import record

from vmr_env.agents.ensemble.cross_fitting import Progress
from vmr_env.benchmarks.experiment.experiment import Run
from vmr_env.benchmarks.experiment.progress import Watcher
from vmr_env.benchmarks.report.verdicts import lines

RUNS = [Run("ppo", seed, 0) for seed in range(4)]


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def watched(stream: StringIO, seconds: list[float]) -> Watcher:
    """A watcher of four runs, of which the first is done; the clock shows these times."""
    experiment = SimpleNamespace(is_done=lambda run: run.seed == 0)
    work: Any = SimpleNamespace(runs=lambda: iter(RUNS), of=lambda run: experiment)
    times = iter(seconds)
    return Watcher(work, Path(), (), stream, lambda: next(times))


def at(round_: int, member: int = 0, gain: float | None = None) -> Progress:
    return Progress(member, round_, 10, 0, {}, gain, members=2)


def test_without_a_terminal_there_is_a_line_every_30_seconds() -> None:
    stream = StringIO()
    with watched(stream, [0, 10, 29, 31, 59, 62, 95]) as watcher:
        watcher.progress(RUNS[1], at(2))
        watcher.progress(RUNS[1], at(4, gain=0.0125))
        watcher.progress(RUNS[1], at(5))  # after 31 s
        watcher.progress(RUNS[1], at(10))
        watcher.progress(RUNS[1], at(10, member=1, gain=-0.02))  # 62 s
        watcher.finished(RUNS[1])  # 95 s
    first, *told = stream.getvalue().splitlines()
    assert first.startswith("0:00: 1 of 4 runs done (held-out gain: mean of mIoU, R1@0.5 and R1@0.7 against")
    # A quarter of the second run took 31 s; two and three quarters are left.
    assert told == [
        "0:31, about 5:41 left: 1 of 4 runs done; ppo-seed1-fold0 member 1 of 2, round 5 of 10, "
        "held-out gain +1.25 points",
        "1:02, about 2:04 left: 1 of 4 runs done; ppo-seed1-fold0 member 2 of 2, round 10 of 10, "
        "held-out gain -2.00 points",
        "1:35, about 3:10 left: 2 of 4 runs done",
    ]


def test_members_side_by_side_are_added_up() -> None:
    """The member that told last is named; half of one and a fifth of the other are 35 % of the run."""
    stream = StringIO()
    with watched(stream, [0, 10, 35]) as watcher:
        watcher.progress(RUNS[1], at(2, member=1))
        watcher.progress(RUNS[1], at(5, gain=0.0125))
    _, told = stream.getvalue().splitlines()
    assert told == (
        "0:35, about 4:25 left: 1 of 4 runs done; ppo-seed1-fold0 member 1 of 2, round 5 of 10, "
        "held-out gain +1.25 points"
    )


def test_the_first_rounds_foretell_nothing() -> None:
    stream = StringIO()
    with watched(stream, [0, 40, 80]) as watcher:
        watcher.progress(RUNS[1], at(1))  # a twentieth of the run, and all that was compiled
        watcher.progress(RUNS[1], at(2))
    _, *told = stream.getvalue().splitlines()
    assert told == [
        "0:40: 1 of 4 runs done; ppo-seed1-fold0 member 1 of 2, round 1 of 10",
        "1:20, about 38:40 left: 1 of 4 runs done; ppo-seed1-fold0 member 1 of 2, round 2 of 10",
    ]


def test_a_terminal_has_an_estimate_from_the_first_round_on() -> None:
    stream = Terminal()
    with watched(stream, [0.0]) as watcher:
        watcher.progress(RUNS[1], at(5, gain=0.01))
        assert watcher._bar is not None
        assert watcher._bar.n == pytest.approx(1.25)
        watcher.finished(RUNS[1])
        assert watcher._bar.n == 2
    last = stream.getvalue().split("\r")
    assert any("31%" in part and "? left" not in part and "gain +1.00 points" in part for part in last)


def test_a_run_ends_in_words() -> None:
    told = record()
    rows = told["agents"]
    nothing = {"R1@0.7": {"mean": 0.0, "low": 0.0, "high": 0.0}}
    rows["kept"] = {"change": nothing, "chosen_rounds": [0, 0]}
    rows["worse"] = {"change": told["references"]["random"]["change"], "chosen_rounds": [1]}
    assert lines(told) == [
        "ppo: R1@0.7 +1.5 [+0.2, +2.8]: improved",
        "tp & rl: R1@0.7 +0.5 [-1.0, +2.0]: no significant change",
        "kept: R1@0.7 +0.0 [+0.0, +0.0]: fell back to the detector in every run",
        "worse: R1@0.7 -1.5 [-2.8, -0.2]: became worse",
    ]
    del rows["ppo"]
    assert lines(told)[-1].startswith("Nothing was gained. Try more training videos")
    assert "a pool of several prediction files, `vmr-env dense`" in lines(told)[-1]
    told["run"]["source"] = "simulated"
    assert "pool" not in lines(told)[-1]  # there are no prediction files
    assert "so that TPRL can train its head" in lines(told)[-1]
    rows["tprl"] = rows["kept"]
    assert "TPRL" not in lines(told)[-1]
    rows["tp & rl"]["change"]["mIoU"] = {"mean": 1.0, "low": 0.5, "high": 1.5}
    assert lines(told)[0] == "tp & rl: R1@0.7 +0.5 [-1.0, +2.0]: no significant change, but mIoU improved"
    assert not lines(told)[-1].startswith("Nothing")
    del rows["tp & rl"]
    told["references"]["greedy oracle (ceiling)"] = {"change": rows["worse"]["change"]}
    assert "even the greedy oracle gains little" in lines(told)[-1]
    assert lines({"agents": {}, "references": {}}) == []
