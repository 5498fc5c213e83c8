"""The main job: from data to a table that says whether reinforcement learning improved the moments.

`Options` says what it can do.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from vmr_env.benchmarks.experiment.chosen_methods import chosen_methods, methods_of
from vmr_env.benchmarks.experiment.data import open_data, settings_of, train_backbone
from vmr_env.benchmarks.experiment.experiment import Experiment, Run, Work
from vmr_env.benchmarks.experiment.options import SEEDS, Execution, Options, check, resolved
from vmr_env.benchmarks.experiment.processes import run_all
from vmr_env.benchmarks.experiment.processors import available_processors
from vmr_env.benchmarks.experiment.progress import Watcher
from vmr_env.benchmarks.experiment.run_folder import SETTINGS_FILE, make_folder, settle
from vmr_env.benchmarks.report.files import report
from vmr_env.errors import DataError, Problem
from vmr_env.files.writing import only_writer
from vmr_env.options import parse
from vmr_env.programs import INTERRUPTED, exit_code, terminated_as_interrupted

NOT_RUN = "Not run: head + last decoder layer, head + everything. They need features (--features)."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    given = parse(Options, words, "vmr-env tprl")
    return ended(lambda: carry_out(given, words), given.out)


def ended(work: Callable[[], bool], out: Path) -> int:
    """Exit code of a program that does runs.

    Args:
        work: does them; False if it was interrupted.
        out: folder that it writes to; removed if there is nothing in it but what failed.
    """
    torch.set_num_threads(1)  # small networks; more threads only fight
    existed = out.exists()
    try:
        with terminated_as_interrupted():
            finished = work()
    except DataError as error:
        if not existed:
            with suppress(OSError):
                out.rmdir()  # only if there is nothing in it
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        finished = False
    if not finished:
        print("interrupted; --resume goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


def carry_out(given: Options, words: Sequence[str]) -> bool:
    """Check the options, do the runs and write the report; False if interrupted.

    Args:
        given: the options.
        words: the command line that they come from.

    Raises:
        DataError: options or data cannot be used.
    """
    options = resolved(given)
    check_all(options)
    make_folder(options.out, SETTINGS_FILE, options.resume)
    with only_writer(options.out):
        if options.backbone:
            options = train_backbone(options)
        experiment = prepared(options)
        failed = do_runs(experiment, options)
        command = ["vmr-env", "tprl", *(word for word in words if word != "--resume")]
        print(reported(experiment, options, shlex.join(command)))
    raise_failed(failed or {})
    return failed is not None


def check_all(options: Options) -> None:
    """Refuse wrong options, agents and settings before anything is trained.

    Raises:
        DataError: with all that is wrong.
    """
    check(options)
    if not options.ablate:
        chosen_methods(options)


def prepared(options: Options, row: str = "") -> Experiment:
    """The experiment that checked options describe, in its folder; nothing is trained.

    Args:
        options: those of the main job, with caches or predictions.
        row: name of the experiment in a sweep's table.

    Raises:
        DataError: the data cannot be used, or the folder has results of another run.
    """
    folds = open_data(options)
    methods = methods_of(options, folds)
    settings = settings_of(options, folds)
    experiment = Experiment(options.out, folds, methods, options.seeds or SEEDS, settings, row)
    for name, method in methods.items():
        method.check(name, folds[0], settings)
    settle(options, folds)
    experiment.check_done()
    return experiment


def reported(experiment: Experiment, options: Options, command: str) -> str:
    """Write the report of an experiment; returns its table, and what it says in words."""
    files = options.test_predictions or (() if options.test_cache else options.predictions)
    notes = [NOT_RUN] if options.ablate and not options.features else []
    return report(experiment, files, command, notes)


def raise_failed(failed: Mapping[Run, str]) -> None:
    """Name the runs that failed, if there are any.

    Raises:
        DataError: with what went wrong in each.
    """
    if failed:
        raise DataError([Problem(run.name, None, None, f"failed ({text})") for run, text in failed.items()])


def do_runs(work: Work, options: Execution) -> dict[Run, str] | None:
    """Do all runs that are not done; what went wrong in those that failed, or None if interrupted."""
    todo = [run for run in work.runs() if not work.of(run).is_done(run)]
    with Watcher(work, work.folder, options.log) as watcher:
        try:
            if options.cluster is None:
                jobs = options.jobs or available_processors()
                return run_all(work, todo, jobs, watcher.progress, watcher.finished)
            from vmr_env.backbones.cluster import Cluster  # needs Ray
            from vmr_env.benchmarks.experiment.cluster import run_on_cluster

            cluster = Cluster(options.cluster, options.cpus_per_run, options.gpus_per_run)
            return run_on_cluster(work, todo, cluster, watcher.progress, watcher.finished)
        except KeyboardInterrupt:
            return None
