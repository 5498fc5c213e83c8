"""Runs of an experiment on a Ray cluster; needs the extra `[distributed]`.

Every run is a Ray task. It works in a folder of its own and returns its files as values, which the driver
writes where a run in one process writes them, the result last. So resuming, tables and reports know no
difference, and the numbers are the same to the bit on machines of one kind. Ray starts the task of a lost
worker or node again.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from vmr_env.agents.ensemble.cross_fitting import Progress
from vmr_env.backbones.cluster import Cluster, Sender, connected, on_driver, received
from vmr_env.backbones.shipping import Packed, files_of, pack
from vmr_env.benchmarks.experiment.experiment import Experiment, Run, Work, reason

from vmr_env.files.writing import write_bytes

_RETRIES = 3
"""How often Ray starts a run anew whose worker or node was lost. Errors of the run itself are not retried."""
_POLL = 0.2  # seconds between looks at what runs tell


def run_on_cluster(
    work: Work,
    runs: Sequence[Run],
    cluster: Cluster,
    watch: Callable[[Run, Progress], None],
    finished: Callable[[Run], None],
) -> dict[Run, str]:
    """Do runs on a cluster.

    Args:
        work: what the runs are of.
        runs: which to do.
        cluster: where.
        watch: called after every round of every run, some time later.
        finished: called when the files of a run are written.

    Returns:
        what went wrong, in a line, of each run that failed; all others are done.

    Raises:
        KeyboardInterrupt: interrupted; the cluster's work on these runs has been stopped.
    """
    with connected(cluster.address):
        parts = {experiment.folder: experiment for experiment in map(work.of, runs)}
        packed = {folder: pack(experiment, folder) for folder, experiment in parts.items()}
        paths = {digest: path for part in packed.values() for digest, path in part.folders.items()}
        sender, inbox = on_driver(Sender, paths), on_driver(_Inbox)
        task = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=_RETRIES)(_work)
        contents = {folder: ray.put(part) for folder, part in packed.items()}
        running = {task.remote(contents[work.of(run).folder], run, sender, inbox): run for run in runs}
        failed: dict[Run, str] = {}
        try:
            while running:
                done, _ = ray.wait(list(running), num_returns=len(running), timeout=_POLL)
                for run, progress in ray.get(inbox.told.remote()):
                    watch(run, progress)
                for result in done:
                    run = running.pop(result)
                    try:
                        _write(work.of(run), run, ray.get(result))
                    except RayError as error:
                        failed[run] = reason(error.cause if isinstance(error, RayTaskError) else error)
                    else:
                        finished(run)
        except BaseException:
            for result in running:
                ray.cancel(result, force=True)
            raise
        return failed


class _Inbox:
    """On the driver's node: what runs tell."""

    def __init__(self) -> None:
        self._told: list[tuple[Run, Progress]] = []

    def tell(self, run: Run, progress: Progress) -> None:
        """A round is over."""
        self._told.append((run, progress))

    def told(self) -> list[tuple[Run, Progress]]:
        """What was told since the last call."""
        told, self._told = self._told, []
        return told


_unpacked: dict[bytes, Experiment] = {}
"""Experiments of this worker process by their packed contents: their folders are hashed once, not for each
run."""


def _work(packed: Packed, run: Run, sender: Any, inbox: Any) -> list[tuple[str, bytes]]:
    """Do one run on the node where this is called; returns its files."""
    torch.set_num_threads(1)
    if packed.content not in _unpacked:
        _unpacked[packed.content] = received(packed, sender)
    experiment = _unpacked[packed.content]
    with tempfile.TemporaryDirectory() as folder:
        experiment.folder = Path(folder)
        experiment.do(run, lambda progress: inbox.tell.remote(run, progress))
        return list(files_of(experiment.folder))


def _write(experiment: Experiment, run: Run, files: Sequence[tuple[str, bytes]]) -> None:
    """Write the files of a run, its result last: a run that has one is done."""
    result = experiment.path(run)
    for name, content in sorted(files, key=lambda file: experiment.folder / file[0] == result):
        path = experiment.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
