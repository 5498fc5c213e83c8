"""Runs of an experiment on a Ray cluster; needs the extra `[distributed]`.

Every run is a Ray task; where a worker would have nothing to do, every member of a run is one, and what they
learnt goes to one that ends the run. It works in a folder of its own and returns its files as values, which
the driver writes where a run in one process writes them, the result last. So resuming, tables and reports
know no difference, and the numbers are the same to the bit on machines of one kind. Ray starts the task of a
lost worker or node again.
"""

import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from vmr_env.agents.ensemble.cross_fitting import Progress
from vmr_env.backbones.cluster import Cluster, connected, open_desk, received, workers
from vmr_env.backbones.shipping import Packed, pack
from vmr_env.benchmarks.experiment.experiment import Experiment, Run, Work, reason, shared_out
from vmr_env.files.folders import files_of
from vmr_env.files.writing import write_bytes

_RETRIES = 3
"""How often Ray starts a run anew whose worker or node was lost. Errors of the run itself are not retried."""
_POLL = 1.0  # seconds between looks at what runs tell; each look takes milliseconds from a worker

Content = list[tuple[str, bytes]]
"""Of a folder: names and contents of files."""


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
        remote: Any = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=_RETRIES)
        do, train, finish = remote(_do), remote(_train), remote(_finish)
        contents = {folder: ray.put(part) for folder, part in packed.items()}
        whole, members = shared_out(work, runs, workers(cluster))
        running: dict[Any, Run] = {do.remote(contents[work.of(run).folder], desk, run): run for run in whole}
        training: dict[Run, list[Any]] = {}
        for run, count in members.items():
            given = contents[work.of(run).folder], desk, run
            training[run] = [train.remote(*given, member) for member in range(count)]
            running[finish.remote(*given, *training[run])] = run
        failed: dict[Run, str] = {}
        try:
            while running:
                done, _ = ray.wait(list(running), timeout=_POLL)
                for message in ray.get(desk.told.remote()):
                    watch(*pickle.loads(message))
                for result in done:
                    run = running.pop(result)
                    training.pop(run, None)
                    try:
                        _write(work.of(run), run, ray.get(result))
                    except RayError as error:
                        failed[run] = reason(error.cause if isinstance(error, RayTaskError) else error)
                    else:
                        finished(run)
        except BaseException:
            for result in chain(running, *training.values()):
                ray.cancel(result, force=True)
            raise
        return failed


_unpacked: dict[bytes, Experiment] = {}
"""Experiments of this worker process by their packed contents: their folders are hashed once, not for each
run."""


def _do(packed: Packed, desk: Any, run: Run) -> Content:
    """Do one run on the node where this is called; returns its files."""
    experiment = _experiment(packed, desk)
    with _watched(desk, run) as watch:
        return _written(experiment, lambda: experiment.do(run, watch))


def _train(packed: Packed, desk: Any, run: Run, member: int) -> bytes:
    """Train one member of a run; returns what it learnt, pickled: it is read where its modules are found."""
    with _watched(desk, run) as watch:
        return pickle.dumps(_experiment(packed, desk).train(run, member, watch))


def _finish(packed: Packed, desk: Any, run: Run, *trained: bytes) -> Content:
    """End a run whose members are trained; returns its files."""
    experiment = _experiment(packed, desk)
    return _written(experiment, lambda: experiment.finish(run, list(map(pickle.loads, trained))))


def _experiment(packed: Packed, desk: Any) -> Experiment:
    torch.set_num_threads(1)
    if packed.content not in _unpacked:
        _unpacked[packed.content] = received(packed, desk)
    return _unpacked[packed.content]


@contextmanager
def _watched(desk: Any, run: Run) -> Iterator[Callable[[Progress], None]]:
    """What to call after every round; when the block ends, all that was told is at the desk."""
    last: list[Any] = []

    def watch(progress: Progress) -> None:
        last[:] = [desk.tell.remote(pickle.dumps((run, progress)))]

    yield watch
    ray.get(last)


def _written(experiment: Experiment, work: Callable[[], object]) -> Content:
    """The files that work writes into the folder of an experiment."""
    with tempfile.TemporaryDirectory() as folder:
        experiment.folder = Path(folder)
        work()
        return list(files_of(experiment.folder))


def _write(experiment: Experiment, run: Run, files: Content) -> None:
    """Write the files of a run, its result last: a run that has one is done."""
    result = experiment.path(run)
    for name, content in sorted(files, key=lambda file: experiment.folder / file[0] == result):
        path = experiment.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
