"""What a Ray cluster costs and gives; see `options.ClusterSpeed`."""

import importlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from vmr_env.agents.ensemble.cross_fitting import Selection
from vmr_env.agents.evaluation import Refined
from vmr_env.agents.expected_gain import ExpectedGain
from vmr_env.backbones.cluster import Cluster
from vmr_env.benchmarks.experiment.cluster import run_on_cluster
from vmr_env.benchmarks.experiment.experiment import Experiment, Run, train_test
from vmr_env.benchmarks.experiment.methods import (
    EnvironmentMethod,
    Fold,
    Method,
    MethodResult,
    Settings,
    Watch,
)
from vmr_env.benchmarks.speed.options import ClusterSpeed
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.profiles import get_profile
from vmr_env.files.folders import files_of
from vmr_env.files.text import write_text
from vmr_env.options import parse_in_range
from vmr_env.programs import run_program
from vmr_env.simulation.simulator import simulate

SIZES = (250, 500, 1000, 2000, 4000)
"""Training samples, and as many test samples."""
SETTINGS = Settings(members=2, evaluations=1, proposals=1, rounds=20)


@dataclass(frozen=True)
class Nothing(Method):
    """Learns nothing and answers with whole videos."""

    def train(self, fold: Fold, seed: int, settings: Settings, member: int, watch: Watch) -> None:
        """See `Method`."""

    def answer(
        self,
        learnt: Sequence[None],
        fold: Fold,
        seed: int,
        settings: Settings,
        keep: Path,
        about: Mapping[str, Any],
    ) -> MethodResult:
        """See `Method`."""
        samples = fold.test_samples
        windows = np.zeros((len(samples), 2))
        windows[:, 1] = fold.test.durations[samples]
        nothing = np.zeros(len(samples))
        answers = Refined(samples, windows, nothing.astype(np.intp), nothing, nothing)
        return MethodResult(answers, Selection((1,), (0.0,), 0, 0))


def experiment(folder: Path, caches: Path, method: Method, seeds: int) -> Experiment:
    """As many runs as seeds, of one method on two caches."""
    train, test = (DecoderStateCache.open(caches / split) for split in ("train", "test"))
    return Experiment(folder, train_test(train, test), {"method": method}, seeds, SETTINGS)


def wall_seconds(work: Experiment, runs: Sequence[Run]) -> float:
    """Of runs on the cluster of this process.

    Raises:
        RuntimeError: a run failed.
    """
    began = time.perf_counter()
    failed = run_on_cluster(work, runs, Cluster("auto"), lambda run, progress: None, lambda run: None)
    if failed:
        raise RuntimeError(f"runs failed: {failed}")
    return time.perf_counter() - began


def measure_workers(folder: Path, caches: Path, workers: int, runs: int) -> dict[str, float]:
    """Wall seconds of runs, and of one that does nothing, on a Ray of some processors, its start apart."""
    ray.init("local", num_cpus=workers, log_to_driver=False, include_dashboard=False)
    try:
        empty = experiment(folder / "empty", caches, Nothing(), 2 * workers + runs)
        first, rest = list(empty.runs())[: 2 * workers], list(empty.runs())[2 * workers :]
        wall_seconds(empty, first)  # worker processes start and import
        overhead = wall_seconds(empty, rest) * workers / len(rest)
        real = experiment(folder / "real", caches, EnvironmentMethod(ExpectedGain), runs)
        return {"seconds": wall_seconds(real, list(real.runs())), "overhead": overhead}
    finally:
        ray.shutdown()


def measure_processes(folder: Path, caches: Path, workers: int, runs: int) -> float:
    """Wall seconds of the same runs in plain processes, their start apart: what the machine itself gives."""
    context = multiprocessing.get_context("spawn")
    work = experiment(folder, caches, EnvironmentMethod(ExpectedGain), runs)
    with ProcessPoolExecutor(workers, context, _begin, (context.Barrier(workers),)) as pool:
        list(pool.map(_begun, range(workers)))
        began = time.perf_counter()
        list(pool.map(work.do, work.runs()))
        return time.perf_counter() - began


def _begin(all_there: Any) -> None:
    """Start a process; wait until all have started."""
    torch.set_num_threads(1)
    all_there.wait()


def _begun(worker: int) -> None:
    """Work that is done at once."""


def measure_size(folder: Path, caches: Path) -> dict[str, float]:
    """Processor seconds of a run in this process, bytes of its results, and of its caches; the best of 3."""
    work = experiment(folder, caches, EnvironmentMethod(ExpectedGain), 3)
    seconds = []
    for run in work.runs():
        began = time.process_time()
        work.do(run)
        seconds.append(time.process_time() - began)
    results = sum(len(content) for _, content in files_of(folder)) / 3
    sent = sum(len(content) for _, content in files_of(caches))
    return {"seconds": min(seconds), "results": results, "caches": float(sent)}


def foretold(sizes: Sequence[int], values: Sequence[float]) -> tuple[float, float, list[float]]:
    """A line through the first and the last of some values: its height at 0, its slope, and its values."""
    slope = (values[-1] - values[0]) / (sizes[-1] - sizes[0])
    height = values[0] - slope * sizes[0]
    return height, slope, [height + slope * size for size in sizes]


def measure(runs: int) -> dict[str, Any]:
    """All figures, by name."""
    figures: dict[str, Any] = {"processors": os.cpu_count(), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in SIZES:
            for split in ("train", "test"):
                simulate(folder / str(size) / split, get_profile("charades"), split, samples=size)
        of_size = [measure_size(folder / f"alone-{size}", folder / str(size)) for size in SIZES]
        for what in ("seconds", "results", "caches"):
            values = [one[what] for one in of_size]
            height, slope, line = foretold(SIZES, values)
            figures[what] = {"at 0": height, "of a sample": slope, "measured": values, "foretold": line}
        for workers in (1, 2):
            caches = folder / str(SIZES[2])
            told = measure_workers(folder / f"workers-{workers}", caches, workers, runs)
            plain = measure_processes(folder / f"processes-{workers}", caches, workers, runs)
            figures[f"{workers} workers"] = {**told, "plain seconds": plain}
    for name, of in (("speed-up", "seconds"), ("plain speed-up", "plain seconds")):
        figures[name] = figures["1 workers"][of] / figures["2 workers"][of]
    figures["load at the end"] = os.getloadavg()[0]
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: print the figures."""
    options = parse_in_range(ClusterSpeed, arguments, "vmr-env bench cluster")
    figures = measure(options.runs)
    print(
        f"{figures['processors']} processors, load {figures['load']:.1f} to {figures['load at the end']:.1f}"
    )
    for workers in (1, 2):
        told = figures[f"{workers} workers"]
        print(
            f"{workers} workers: {options.runs} runs in {told['seconds']:.1f} s; "
            f"overhead of a run {told['overhead']:.3f} s; in plain processes {told['plain seconds']:.1f} s"
        )
    print(
        f"speed-up of two workers: {figures['speed-up']:.2f}; "
        f"of two plain processes, the most that this machine gives: {figures['plain speed-up']:.2f}"
    )
    for what, unit in (("seconds", "s"), ("results", "bytes"), ("caches", "bytes")):
        said = figures[what]
        print(f"{what}: {said['at 0']:.4g} + {said['of a sample']:.4g} N {unit}")
        for size, found, line in zip(SIZES, said["measured"], said["foretold"], strict=True):
            print(f"  N {size:,}: measured {found:,.4g}, foretold {line:,.4g} ({found / line - 1:+.0%})")
    if options.json:
        write_text(options.json, json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":  # workers import what they are sent, which no worker finds in a script
    run_program(importlib.import_module("vmr_env.benchmarks.speed.cluster").main)
