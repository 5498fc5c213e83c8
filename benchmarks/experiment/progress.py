"""How far the runs of an experiment are: shown while they go on, and logged."""

from pathlib import Path
from typing import Any

from tqdm import tqdm
from vmr_env.agents.ensemble.cross_fitting import Progress
from vmr_env.benchmarks.experiment.experiment import Experiment, Run


class Watcher:
    """Shows how far the runs are, and logs their figures for TensorBoard: a log of its own for each.

    Args:
        experiment: what the runs are of.
        folder: of the logs.
    """

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        runs = list(experiment.runs())
        done = sum(map(experiment.is_done, runs))
        self._bar = tqdm(total=len(runs), initial=done, unit="run", dynamic_ncols=True)
        self._running: dict[Run, Progress] = {}
        self._folder = folder
        self._logs: dict[Run, Any] = {}

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        for log in self._logs.values():
            log.close()
        self._bar.close()

    def progress(self, run: Run, now: Progress) -> None:
        """A round is over."""
        self._running[run] = now
        self._bar.set_postfix_str(
            "; ".join(
                f"{run.name} member {at.member + 1}, round {at.round}/{at.rounds}"
                for run, at in self._running.items()
            )
        )
        if run not in self._logs:
            self._logs[run] = _open_log(self._folder / run.name)
        at = now.member * now.rounds + now.round
        for metric, value in now.metrics.items():
            self._logs[run].add_scalar(metric, value, at)
        if now.gain is not None:
            self._logs[run].add_scalar("charts/held_out_gain", now.gain, at)

    def finished(self, run: Run) -> None:
        """A run has its result."""
        self._running.pop(run, None)
        if run in self._logs:
            self._logs.pop(run).close()
        self._bar.update()


def _open_log(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=0)  # hides what an interrupted run logged
