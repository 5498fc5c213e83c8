"""Progress of runs, shown while they run and logged.

On a terminal a bar, with the time that is left from the first round on; elsewhere, as in the log of a job,
lines: the first at the beginning, the next every 30 seconds. Both tell what the running agents gain on
samples that are held out from them.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from vmr_env.agents.ensemble.cross_fitting import Progress
from vmr_env.benchmarks.experiment.experiment import Run, Work
from vmr_env.benchmarks.experiment.logs import Log, open_logs

EVERY = 30.0
"""Seconds between two lines."""

_SOON = 0.1
"""Runs, or the part of one, after which the time left is told: the first rounds also load and compile."""
_GAIN = "held-out gain: mean of mIoU, R1@0.5 and R1@0.7 against the detector, on training videos held out"
_BAR = "{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left; {postfix}"


class Watcher:
    """Shows how far the runs are, and logs their figures: a log of its own for each.

    Args:
        work: what the runs are of.
        folder: of the work; logs have folders of their own in it.
        kinds: ways to log, some of `logs.KINDS`.
        stream: where progress is shown.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        work: Work,
        folder: Path,
        kinds: Sequence[str] = ("tensorboard",),
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        runs = list(work.runs())
        self._runs = len(runs)
        self._found = self._done = sum(work.of(run).is_done(run) for run in runs)
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._began = self._told = clock()
        self._running: dict[Run, _Running] = {}
        self._ended: set[Run] = set()
        self._folder, self._kinds = folder, kinds
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=self._runs,
                initial=self._found,
                file=self._stream,
                dynamic_ncols=True,
                smoothing=0,  # the time left by the mean speed: runs are not alike
                bar_format=_BAR,
            )

    def __enter__(self) -> "Watcher":
        if self._bar is None:
            print(f"0:00: {self._done} of {self._runs} runs done ({_GAIN})", file=self._stream, flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        for running in self._running.values():
            running.close()
        if self._bar is not None:
            self._bar.close()

    def progress(self, run: Run, now: Progress) -> None:
        """A round is over. What is told of a run that has its result comes too late, and is left out."""
        if run in self._ended:
            return
        if run not in self._running:
            self._running[run] = _Running(open_logs(self._kinds, self._folder, run.name))
        self._running[run].take(now)
        self._show()

    def finished(self, run: Run) -> None:
        """A run has its result."""
        self._ended.add(run)
        self._done += 1
        if run in self._running:
            self._running.pop(run).close()
        self._show()

    def _show(self) -> None:
        """Move the bar, or write a line where it is time for one."""
        if self._bar is not None:
            self._bar.n = self._amount()
            self._bar.set_postfix_str("; ".join(map(self._state, self._running)))
            return
        now = self._clock()
        if now - self._told < EVERY:
            return
        self._told = now
        done = self._amount() - self._found
        seconds = now - self._began
        rest = self._runs - self._amount()
        left = "" if done < _SOON else f", about {minutes(seconds * rest / done)} left"
        states = "".join(f"; {self._state(run)}" for run in self._running)
        line = f"{minutes(seconds)}{left}: {self._done} of {self._runs} runs done{states}"
        print(line, file=self._stream, flush=True)

    def _amount(self) -> float:
        """Runs that are done, and the parts of those that go on."""
        return self._done + sum(running.amount for running in self._running.values())

    def _state(self, run: Run) -> str:
        """Where a run is, and what it gains by now."""
        return f"{run.name}{self._running[run].state}"


class _Running:
    """A run that goes on; its members may be trained side by side.

    Args:
        log: of the run.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._last: dict[int, Progress] = {}
        self._gain: float | None = None
        self._waiting: list[Progress] = []
        self._turn = 0

    def take(self, now: Progress) -> None:
        """A round is over. It is logged when all members before are: steps in a log only rise."""
        self._last.pop(now.member, None)
        self._last[now.member] = now  # the newest last
        if now.gain is not None:
            self._gain = now.gain
        self._waiting.append(now)
        self._waiting.sort(key=lambda one: one.member)
        while self._waiting and self._waiting[0].member <= self._turn:
            first = self._waiting.pop(0)
            if first.round == first.rounds:
                self._turn = first.member + 1
            self._write(first)

    def close(self) -> None:
        """Nothing more comes; log what still waits."""
        for one in self._waiting:
            self._write(one)
        self._log.close()

    def _write(self, one: Progress) -> None:
        gain = {} if one.gain is None else {"charts/held_out_gain": one.gain}
        self._log.write(one.member * one.rounds + one.round, {**one.metrics, **gain})

    @property
    def amount(self) -> float:
        """The part of it that is done."""
        return sum(now.round / (now.members * now.rounds) for now in self._last.values())

    @property
    def state(self) -> str:
        """Where the member is that told last, and what the run gains by now."""
        now = next(reversed(self._last.values()))
        member = f" member {now.member + 1} of {now.members}," if now.members > 1 else ""
        gain = "" if self._gain is None else f", held-out gain {100 * self._gain:+.2f} points"
        return f"{member} round {now.round} of {now.rounds}{gain}"


def minutes(seconds: float) -> str:
    """A time as minutes:seconds."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02}"
