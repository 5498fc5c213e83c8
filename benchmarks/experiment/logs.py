"""Where figures of running trainings go: TensorBoard, CSV, Weights & Biases without a network."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

KINDS = ("tensorboard", "csv", "wandb")
"""Names of all ways to log."""

NEEDED = {"tensorboard": "bench", "wandb": "wandb"}
"""Package that a way needs, with the extra that installs it."""


class Log(Protocol):
    """The figures of one run."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Take down figures at a step."""

    def close(self) -> None:
        """Nothing more comes."""


def open_logs(kinds: Sequence[str], folder: Path, run: str) -> Log:
    """Logs of a run under `<folder>/<kind>`, as one; what an interrupted run logged there is replaced.

    Args:
        kinds: some of `KINDS`.
        folder: of the whole experiment.
        run: name of the run.
    """
    makers: dict[str, Callable[[Path, str], Log]] = {
        "tensorboard": TensorBoardLog,
        "csv": CsvLog,
        "wandb": WandbLog,
    }
    return _Together([makers[kind](folder / kind, run) for kind in kinds])


class _Together:
    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = logs

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for log in self._logs:
            log.write(step, figures)

    def close(self) -> None:
        for log in self._logs:
            log.close()


class TensorBoardLog:
    """A folder of event files."""

    def __init__(self, folder: Path, run: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(
            str(folder / run), purge_step=0
        )  # hides what an interrupted run logged

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Log`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Log`."""
        self._writer.close()


class CsvLog:
    """A file with the columns step, name, value, and a line for each figure; each step is on the disk at
    once."""

    def __init__(self, folder: Path, run: str) -> None:
        path = folder / f"{run}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        self._rows.writerow(("step", "name", "value"))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Log`."""
        self._rows.writerows((step, name, repr(float(value))) for name, value in figures.items())
        self._file.flush()

    def close(self) -> None:
        """See `Log`."""
        self._file.close()


class WandbLog:
    """A run of Weights & Biases on this disk, which `wandb sync` sends where its owner wants it."""

    def __init__(self, folder: Path, run: str) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            mode="offline", project="vmr-env", name=run, dir=str(folder), reinit="create_new"
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Log`."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """See `Log`."""
        self._run.finish()
