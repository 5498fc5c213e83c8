"""Runs of an experiment in worker processes of this machine.

Every run is a task of one pool; where a worker would have nothing to do, every member of a run is a task, and
the run is ended when all are trained. The numbers are those of one process.
"""

import multiprocessing
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

from vmr_env.agents.ensemble.cross_fitting import Progress
from vmr_env.benchmarks.experiment.experiment import Run, Work, reason, shared_out
from vmr_env.errors import DataError, Problem
from vmr_env.programs import end_with_parent

_POLL = 0.2  # seconds between looks at what worker processes tell
_MESSAGES = 100  # read of them at most before looking whether all still live


def run_all(
    work: Work,
    runs: Sequence[Run],
    jobs: int,
    watch: Callable[[Run, Progress], None],
    finished: Callable[[Run], None],
) -> dict[Run, str]:
    """Do runs in as many processes as `jobs` says; the numbers do not depend on it.

    Args:
        work: what the runs are of.
        runs: which to do.
        jobs: 1 does them in this process, as is one run alone that has no members.
        watch: called after every round of every run.
        finished: called when a run has its result.

    Returns:
        what went wrong, in a line, of each run that failed; all others are done.

    Raises:
        KeyboardInterrupt: interrupted; worker processes have ended.
        DataError: a worker process was killed.
    """
    failed: dict[Run, str] = {}

    def settled(run: Run, result: Callable[[], object]) -> None:
        try:
            result()
        except BrokenProcessPool:
            raise
        except Exception as error:  # a fault of one run, whatever it is, must not cost the others
            failed[run] = reason(error)
        else:
            finished(run)

    whole, members = shared_out(work, runs, jobs)
    jobs = min(jobs, len(whole) + sum(members.values()))
    if jobs <= 1:
        for run in runs:
            settled(run, partial(work.of(run).do, run, partial(watch, run)))
        return failed
    context = multiprocessing.get_context("spawn")
    told, stop = context.SimpleQueue(), context.Event()
    arguments = work, told, stop
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    # In a thread of its own: a worker that is killed while telling leaves half a message to wait for.
    threading.Thread(target=_relay, args=(told, inbox), daemon=True).start()
    running: dict[Future[Any], Run] = {}
    training: dict[Run, list[Future[bytes]]] = {}
    with ProcessPoolExecutor(jobs, context, initializer=_start_worker, initargs=arguments) as pool:

        def start(run: Run, task: Callable[..., Any], *arguments: Any) -> "Future[Any]":
            future = pool.submit(task, run, *arguments)
            running[future] = run
            # Not `wait`: an interrupt while it takes the futures' locks would leave some of them taken,
            # and the executor would wait for them for ever.
            future.add_done_callback(ended.put)
            return future

        try:
            with _interrupts_ignored():  # workers inherit it: only `stop` ends them
                for run in whole:
                    start(run, _do)
                for run, count in members.items():
                    training[run] = [start(run, _train, member) for member in range(count)]
                # The executor watches the workers that were there when it was last woken, which is before it
                # starts another one: without this, nobody hears that the last worker was killed.
                pool.submit(_nothing)
            while running:
                last: Future[Any] | None = None
                with suppress(queue.Empty):
                    last = ended.get(timeout=_POLL)
                # All that was told before a task has ended, which may end its run.
                for _ in range(min(inbox.qsize(), _MESSAGES) if last is None else inbox.qsize()):
                    watch(*inbox.get())
                if last is None or (run := running.pop(last)) in failed:  # by another member of it
                    continue
                if run not in training or last.exception() is not None:
                    settled(run, last.result)
                    for member in training.pop(run, []):
                        member.cancel()
                elif all(member.done() for member in training[run]):
                    start(run, _finish, [member.result() for member in training.pop(run)])
        except BrokenProcessPool as error:
            message = "a worker process was killed, perhaps for want of memory; --resume goes on"
            raise DataError(Problem(str(work.folder), None, None, message)) from error
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _nothing() -> None:
    """Work that is done at once."""


def _relay(told: Any, inbox: "queue.SimpleQueue[Any]") -> None:
    """Pass on what workers tell, also while they are being stopped, so that none waits for room."""
    while True:
        inbox.put(told.get())


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_worker: tuple[Work, Any, Any]


def _start_worker(work: Work, told: Any, stop: Any) -> None:
    global _worker
    _worker = work, told, stop
    torch.set_num_threads(1)
    end_with_parent()


def _watch(run: Run, progress: Progress) -> None:
    _, told, stop = _worker
    if stop.is_set():
        raise KeyboardInterrupt
    told.put((run, progress))


def _do(run: Run) -> None:
    _worker[0].of(run).do(run, partial(_watch, run))


def _train(run: Run, member: int) -> bytes:
    """What a member learnt, pickled here: the pool would hand over tensors as files that are open in both."""
    return pickle.dumps(_worker[0].of(run).train(run, member, partial(_watch, run)))


def _finish(run: Run, trained: Sequence[bytes]) -> None:
    _worker[0].of(run).finish(run, list(map(pickle.loads, trained)))
