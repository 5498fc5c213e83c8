"""An experiment whose runs never end by themselves, for tests of what ends them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmr_env.agents.ensemble.cross_fitting import Progress
from vmr_env.benchmarks.experiment.experiment import Run
from vmr_env.benchmarks.experiment.processes import run_all
from vmr_env.programs import plain_exit


class Endless:
    """Tells its process by a file in its folder, and then goes round after round.

    Args:
        folder: there.
        members: of each run.
    """

    def __init__(self, folder: Path, members: int) -> None:
        self.folder, self._members = folder, members

    def of(self, run: Run) -> "Endless":
        """See `Experiment.of`."""
        return self

    def members(self, run: Run) -> int:
        """See `Experiment.members`."""
        return self._members

    def do(self, run: Run, watch: Callable[[Progress], None]) -> None:
        """See `Experiment.do`."""
        self.train(run, 0, watch)

    def train(self, run: Run, member: int, watch: Callable[[Progress], None]) -> None:
        """See `Experiment.train`."""
        (self.folder / f"{os.getpid()}").touch()
        while True:
            watch(Progress(member, 1, 2, 3, {}, None))


def main(folder: Path, runs: int) -> None:
    """Two runs, or the two members of one, in two processes; says when both have begun."""
    begun = False

    def watch(run: Run, progress: Progress) -> None:
        nonlocal begun
        if not begun and len(list(folder.iterdir())) == 2:
            begun = True
            print("begun", flush=True)

    endless: Any = Endless(folder, 2 // runs)
    with plain_exit():
        run_all(endless, [Run("a", seed, 0) for seed in range(runs)], 2, watch, print)
