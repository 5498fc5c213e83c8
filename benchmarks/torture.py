"""Attacks on everything that this package keeps on disk, and what came of them; see `Options`."""

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.features.store import FeatureStore, FeatureStoreWriter
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint, save_checkpoint
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.girl_detr.weights import state_sha256
from vmr_env.backbones.recipes import get_recipe
from vmr_env.backbones.simulated.features import write_simulated
from vmr_env.backbones.train import Trainer, split_for_selection
from vmr_env.benchmarks.experiment.main import main as main_job
from vmr_env.benchmarks.experiment.progress import EVERY, minutes
from vmr_env.caches.clip_sums import clip_sums_of
from vmr_env.caches.reader import DecoderStateCache, Ragged, write_cache
from vmr_env.data.annotations import read_annotations
from vmr_env.data.profiles import DatasetProfile, get_profile
from vmr_env.files.user_cache import VARIABLE
from vmr_env.files.writing import only_writer
from vmr_env.options import option, parse_in_range
from vmr_env.programs import plain_exit, run_program
from vmr_env.simulation.config import CONFIGS
from vmr_env.simulation.simulator import simulate, simulated_batch

ATTACKS = {"mutation": 500, "kill": 100, "full disk": 100, "pair": 50}
PATIENCE = 120
"""Seconds after which a process that does not end counts as a failure."""
_LOGS = ("tensorboard", "history.jsonl", "curves.png", "changes.png", "report.html", "table.md")
"""What nothing is computed from: a change there is seen by nobody but people."""
_TINY = {
    "hidden_dim": 16,
    "nheads": 2,
    "dim_feedforward": 16,
    "enc_layers": 1,
    "dec_layers": 2,
    "num_queries": 4,
    "epochs": 3,
    "eval_every": 1,
    "batch_size": 16,
}
_QUICK_JOB = ("--agents", "expected_gain", "--members", "2", "--evaluations", "1", "--rounds", "1")


@dataclass(frozen=True)
class Options:
    """Attacks on everything that this package keeps on disk, and what came of them.

        python benchmarks/torture.py             500 mutations, 100 kills, 100 full disks, 50 pairs
        python benchmarks/torture.py --quick     a tenth of each

    Each job below makes something in a folder, and can be begun again. Four attacks are made on each in turn:

        mutation     a random change of a random file: it is refused in one error, or it has no effect
        kill         SIGKILL at a random moment: the same command again ends with the same result
        full disk    writes fail at a random size: one error, no temporary file; with room the same result
        pair         two processes at once: each ends well or with one error; the result is the same

    A traceback, a signal, a wait without end, a temporary file that stays, or another result is a failure.
    Exit code 1 tells of failures, which are printed with the seed that repeats them.
    """

    quick: bool = option(False, "a tenth of the attacks")
    seconds: int = option(1200, "begin no attack after so many", least=1)
    seed: int = option(0, "of all attacks", least=0)
    only: str | None = option(None, "attacks of this kind alone", choices=tuple(ATTACKS))
    skip: int = option(0, "attacks to leave out at the beginning, which were made before", least=0)


@dataclass(frozen=True)
class Job:
    """Something that is made on disk.

    Attributes:
        name: of the job.
        make: makes it in a folder, or goes on with making it.
        result: what was made, as text that equal results share; reads it as its users do.
        share: how often it is chosen for an attack, beside 1 of the quickest.
    """

    name: str
    make: Callable[[Path], None]
    result: Callable[[Path], str]
    share: float = 1


def digest_of(*arrays: Any) -> str:
    """A hash of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def jobs(data: Path) -> list[Job]:
    """All jobs; `data` holds what they read."""
    charades = get_profile("charades")
    for split, samples in (("train", 40), ("test", 20)):
        simulate(data / split, charades, split, samples=samples)
    _write_clips(data / "clips", charades)
    write_simulated(data / "features", charades, samples=40, seed=1)
    recipe = get_recipe("charades-simulated").with_options(_TINY)

    def cache(folder: Path) -> None:
        simulate(folder / "cache", charades, "train", samples=200, seed=3, overwrite=True)

    def read_cache(folder: Path) -> str:
        opened = DecoderStateCache.open(folder / "cache")
        opened.verify()
        assert opened.saliency is not None
        return digest_of(opened.spans, opened.scores, opened.saliency.values, opened.durations)

    def tables(folder: Path) -> None:
        clip_sums_of(DecoderStateCache.open(data / "clips"))

    def read_tables(folder: Path) -> str:
        sums = clip_sums_of(DecoderStateCache.open(data / "clips"))
        assert sums is not None
        return digest_of(sums.sums)

    def features(folder: Path) -> None:
        if (folder / "store").exists():
            return
        rng = np.random.default_rng(0)
        with FeatureStoreWriter(folder / "store", source="real", origin={}) as writer:
            for key in range(20):
                writer.add(f"k{key}", rng.normal(size=(50, 8)).astype(np.float32))

    def read_features(folder: Path) -> str:
        store = FeatureStore(folder / "store", checksums=True)
        return digest_of(*(store.read(key) for key in store))

    def checkpoint(folder: Path) -> None:
        save_checkpoint(folder / "best", GirlDetr(replace(recipe.model, v_feat_dim=6, t_feat_dim=4), seed=7))

    def read_checkpoint(folder: Path) -> str:
        return state_sha256(load_checkpoint(folder / "best").state_dict())

    def trainer(folder: Path) -> Trainer:
        clips, text = (FeatureStore(data / "features" / name, checksums=True) for name in ("clips", "text"))
        rows = split_for_selection(read_annotations(data / "features" / "annotations.jsonl"), charades)
        train, select = (MomentDataset(part, clips, text, recipe.data) for part in rows)
        return Trainer(recipe, train, select, folder / "run", source="simulated")

    def training(folder: Path) -> None:
        (folder / "run").mkdir(exist_ok=True)
        with only_writer(folder / "run"):
            trainer(folder).run(progress=False)

    def read_training(folder: Path) -> str:
        again = trainer(folder)
        again.run(progress=False)
        best = load_checkpoint(folder / "run" / "best").state_dict()
        return f"{again.epoch} {again.best} {state_sha256(again.shadow.state_dict())} {state_sha256(best)}"

    def tprl(folder: Path) -> None:
        out = folder / "out"
        words = ["--cache", str(data / "train"), "--test-cache", str(data / "test"), "--out", str(out)]
        resume = ["--resume"] * (out.is_dir() and any(out.iterdir()))
        if code := main_job([*words, *_QUICK_JOB, "--seeds", "2", "--jobs", "1", *resume]):
            raise SystemExit(code)

    def read_tprl(folder: Path) -> str:
        tprl(folder)
        record = json.loads((folder / "out" / "results.json").read_text())
        for agent in record["agents"].values():
            del agent["seconds"]
        return json.dumps([record["detectors"], record["references"], record["agents"]])

    return [
        Job("cache", cache, read_cache),
        Job("derived tables", tables, read_tables),
        Job("feature store", features, read_features),
        Job("checkpoint", checkpoint, read_checkpoint),
        Job("training", training, read_training),
        Job("main job", tprl, read_tprl, 0.4),
    ]


def _write_clips(path: Path, profile: DatasetProfile) -> None:
    """A cache with clip features."""
    batch = simulated_batch(profile, "train", samples=200, seed=0, config=CONFIGS[profile.name])
    rng = np.random.default_rng(0)
    clips = Ragged.from_rows([rng.normal(size=(count, 8)).astype(np.float32) for count in batch.n_clips])
    write_cache(
        path,
        replace(batch, clips=clips),
        dataset=profile.name,
        split="train",
        source="simulated",
        models=["simulated"],
        clip_seconds=profile.clip_seconds,
        backbone_kind="simulated",
    )


class Attacker:
    """Makes attacks in a folder of its own, and counts them.

    Attributes:
        counts: (attack, job) -> attempts and failures.
    """

    def __init__(self, folder: Path, all_jobs: Sequence[Job], seed: int) -> None:
        self._folder, self._jobs, self._seed = folder, all_jobs, seed
        self._context = multiprocessing.get_context("fork")  # children begin at once, with all imported
        self.counts: dict[tuple[str, str], list[int]] = {}
        self._good: dict[str, tuple[Path, str, float]] = {}
        for job in all_jobs:
            print(f"making {job.name}", file=sys.stderr, flush=True)
            good = folder / "good" / job.name
            good.mkdir(parents=True)
            began = time.perf_counter()
            self._require(self._run(job.make, good), job)
            seconds = time.perf_counter() - began
            self._good[job.name] = good, self._result(job, good), seconds

    def attack(self, kind: str, number: int) -> None:
        """One attack of a kind: "mutation", "kill", "full disk" or "pair"."""
        rng = np.random.default_rng([self._seed, number, *kind.encode()])
        shares = np.array([job.share for job in self._jobs])
        job = self._jobs[rng.choice(len(self._jobs), p=shares / shares.sum())]
        place = self._folder / "attacked"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        made = getattr(self, f"_{kind.replace(' ', '_')}")
        fault = made(job, place, rng)
        count = self.counts.setdefault((kind, job.name), [0, 0])
        count[0] += 1
        if fault:
            count[1] += 1
            again = f"--seed {self._seed} --only '{kind}' --skip {number}"
            print(f"FAILURE: {kind} {number} of {job.name} ({again}): {fault}", flush=True)

    def _mutation(self, job: Job, place: Path, rng: np.random.Generator) -> str | None:
        good, expected, _ = self._good[job.name]
        shutil.copytree(good, place, dirs_exist_ok=True, symlinks=True)
        files = [
            path
            for path in sorted(place.rglob("*"))
            if path.is_file() and not set(path.relative_to(place).parts) & set(_LOGS)
        ]
        path = files[rng.integers(len(files))]
        what = mutate(path, rng)
        code, told = self._run(lambda folder: _tell(job.result(folder)), place)
        result = told.splitlines()[-1] if told else ""
        if (code == 0 and result == expected) or (code == 1 and "error: " in told and not _traced(told)):
            return None
        return f"{what} of {path.relative_to(place)}: exit code {code}, {_last(told)}"

    def _kill(self, job: Job, place: Path, rng: np.random.Generator) -> str | None:
        _, _, seconds = self._good[job.name]
        self._run(job.make, place, kill_after=float(rng.uniform(0, seconds)))
        return self._again(job, place)

    def _full_disk(self, job: Job, place: Path, rng: np.random.Generator) -> str | None:
        good, _, _ = self._good[job.name]
        sizes = [path.stat().st_size for path in good.rglob("*") if path.is_file()]
        room = int(rng.uniform(0, max(sizes)))
        code, told = self._run(job.make, place, room=room)
        if code not in (0, 1) or _traced(told) or (code == 1 and "error: " not in told):
            return f"room for {room} bytes a file: exit code {code}, {_last(told)}"
        if left := _temporaries(place):
            return f"room for {room} bytes a file: left {left[0]}"
        return self._again(job, place)

    def _pair(self, job: Job, place: Path, rng: np.random.Generator) -> str | None:
        pair = [self._start(job.make, place, number) for number in range(2)]
        for number, process in enumerate(pair):
            code, told = self._end(process, place, number)
            if code not in (0, 1, 2) or _traced(told) or (code and "error: " not in told):
                return f"exit code {code}, {_last(told)}"
        return self._again(job, place)

    def _again(self, job: Job, place: Path) -> str | None:
        """What is wrong after the same command, undisturbed."""
        code, told = self._run(job.make, place)
        if code != 0:
            return f"afterwards: exit code {code}, {_last(told)}"
        if left := _temporaries(place):
            return f"afterwards: left {left[0]}"
        code, told = self._run(lambda folder: _tell(job.result(folder)), place)
        if code != 0 or told.splitlines()[-1] != self._good[job.name][1]:
            return f"afterwards: exit code {code}, another result or none ({_last(told)})"
        return None

    def _result(self, job: Job, place: Path) -> str:
        code, told = self._run(lambda folder: _tell(job.result(folder)), place)
        self._require((code, told), job)
        return told.splitlines()[-1]

    def _require(self, ended: tuple[int, str], job: Job) -> None:
        code, told = ended
        if code != 0:
            raise RuntimeError(f"{job.name} fails undisturbed ({code}): {told}")

    def _run(
        self,
        work: Callable[[Path], None],
        place: Path,
        *,
        kill_after: float | None = None,
        room: int | None = None,
    ) -> tuple[int, str]:
        return self._end(self._start(work, place, 0, room), place, 0, kill_after)

    def _start(self, work: Callable[[Path], None], place: Path, number: int, room: int | None = None) -> Any:
        output = self._folder / f"output-{number}"
        process = self._context.Process(target=_child, args=(work, place, output, room))
        process.start()
        return process

    def _end(
        self, process: Any, place: Path, number: int, kill_after: float | None = None
    ) -> tuple[int, str]:
        """Exit code and output of a process, killed after so many seconds."""
        process.join(PATIENCE if kill_after is None else kill_after)
        waited_in_vain = kill_after is None and process.is_alive()
        process.kill()
        process.join()
        told = (self._folder / f"output-{number}").read_text(errors="replace")
        return (-1, "did not end") if waited_in_vain else (process.exitcode, told)


def _child(work: Callable[[Path], None], place: Path, output: Path, room: int | None) -> None:
    """Body of a child process: work, output into a file, perhaps with little room."""
    handle = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ[VARIABLE] = str(place / "user")
    if room is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(room, 1 << 14), resource.RLIM_INFINITY))
    code = 0
    try:
        with plain_exit():
            work(place)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 3
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _tell(result: str) -> None:
    print(result)


def _traced(told: str) -> bool:
    return "Traceback" in told


def _last(told: str) -> str:
    return told.splitlines()[-1][:300] if told else "nothing told"


def _temporaries(place: Path) -> list[Path]:
    return [path for path in place.rglob(".*") if path.suffix == ".tmp"]


def mutate(path: Path, rng: np.random.Generator) -> str:
    """Change a file somehow; says how."""
    raw = bytearray(path.read_bytes())
    at = int(rng.integers(max(len(raw), 1)))
    kind = ("bit", "zeros", "cut", "empty", "gone", "folder", "longer", "noise")[rng.integers(8)]
    if kind == "bit" and raw:
        raw[at] ^= 1 << int(rng.integers(8))
    elif kind == "zeros":
        raw[at : at + 64] = bytes(len(raw[at : at + 64]))
    elif kind == "cut":
        del raw[at:]
    elif kind == "empty":
        raw.clear()
    elif kind == "longer":
        raw += b"\0"
    elif kind == "noise":
        raw[at : at + 32] = rng.bytes(len(raw[at : at + 32]))
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        return kind
    path.write_bytes(raw)
    return kind


def attack_all(
    attacker: Attacker,
    attacks: Sequence[tuple[str, int]],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Make attacks one after the other, and tell on standard error every half minute how far they are.

    Args:
        attacker: makes them.
        attacks: kinds and numbers.
        seconds: no attack begins after so many.
        clock: tells the time in seconds.
    """
    began = told = clock()
    for done, (kind, number) in enumerate(attacks):
        now = clock()
        if now - began > seconds:
            print(f"stopped after {seconds} s and {done} of {len(attacks)} attacks")
            break
        if now - told >= EVERY:
            told = now
            failures = sum(failed for _, failed in attacker.counts.values())
            line = f"{minutes(now - began)}: {done} of {len(attacks)} attacks made, {failures} failures"
            print(line, file=sys.stderr, flush=True)
        attacker.attack(kind, number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the attacks, and print a table of them."""
    options = parse_in_range(Options, arguments, "python benchmarks/torture.py")
    torch.set_num_threads(1)
    wanted = {kind: times // 10 if options.quick else times for kind, times in ATTACKS.items()}
    if options.only:
        wanted = {options.only: wanted[options.only]}
    attacks = [(number / times, kind, number) for kind, times in wanted.items() for number in range(times)]
    with tempfile.TemporaryDirectory() as name:
        attacker = Attacker(Path(name), jobs(Path(name) / "data"), options.seed)
        in_turn = [(kind, number) for _, kind, number in sorted(attacks)]
        attack_all(attacker, in_turn[options.skip :], options.seconds)
    failures = 0
    print(f"{'attack':<12}{'on':<16}{'attempts':>9}{'failures':>9}")
    for (kind, job), (attempts, failed) in sorted(attacker.counts.items()):
        print(f"{kind:<12}{job:<16}{attempts:>9}{failed:>9}")
        failures += failed
    for kind in wanted:
        totals = np.sum([count for (of, _), count in attacker.counts.items() if of == kind], axis=0)
        if np.ndim(totals):
            print(f"{kind:<12}{'all':<16}{totals[0]:>9}{totals[1]:>9}")
    return int(failures > 0)


if __name__ == "__main__":
    run_program(main)
