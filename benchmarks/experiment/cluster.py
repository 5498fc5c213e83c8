"""Runs of an experiment on a Ray cluster; needs the extra `[distributed]`.

Every run is a Ray task. It works in a folder of its own and returns its files as values, which the driver
writes where a run in one process writes them, the result last. So resuming, tables and reports know no
difference, and the numbers are the same to the bit on machines of one kind. Ray starts the task of a lost
worker or node again.
"""

import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from vmr_env.agents.ensemble.cross_fitting import Progress
from vmr_env.backbones.cluster import Cluster, connected, open_desk, received
from vmr_env.backbones.shipping import Packed, pack
from vmr_env.benchmarks.experiment.experiment import Experiment, Run, Work, reason

from vmr_env.files.folders import files_of
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
        desk = open_desk(paths)
        task = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=_RETRIES)(_work)
        contents = {folder: ray.put(part) for folder, part in packed.items()}
        running = {task.remote(contents[work.of(run).folder], run, desk): run for run in runs}
        failed: dict[Run, str] = {}
        try:
            while running:
                done, _ = ray.wait(list(running), num_returns=len(running), timeout=_POLL)
                for message in ray.get(desk.told.remote()):
                    watch(*pickle.loads(message))
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


_unpacked: dict[bytes, Experiment] = {}
"""Experiments of this worker process by their packed contents: their folders are hashed once, not for each
run."""


def _work(packed: Packed, run: Run, desk: Any) -> list[tuple[str, bytes]]:
    """Do one run on the node where this is called; returns its files."""
    torch.set_num_threads(1)
    if packed.content not in _unpacked:
        _unpacked[packed.content] = received(packed, desk)
    experiment = _unpacked[packed.content]
    with tempfile.TemporaryDirectory() as folder:
        experiment.folder = Path(folder)
        experiment.do(run, lambda progress: desk.tell.remote(pickle.dumps((run, progress))))
        return list(files_of(experiment.folder))


def _write(experiment: Experiment, run: Run, files: Sequence[tuple[str, bytes]]) -> None:
    """Write the files of a run, its result last: a run that has one is done."""
    result = experiment.path(run)
    for name, content in sorted(files, key=lambda file: experiment.folder / file[0] == result):
        path = experiment.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
