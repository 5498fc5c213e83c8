"""Speed of TPRL, measured; see `options.TprlSpeed`."""

import itertools
import json
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vmr_env.agents.tprl.config import TprlConfig, default_config, paper_config, with_stages
from vmr_env.agents.tprl.data import StateBatches
from vmr_env.agents.tprl.trainer import TprlTrainer
from vmr_env.backbones.girl_detr.head import DetectionHead
from vmr_env.benchmarks.speed.options import TprlSpeed
from vmr_env.caches.reader import CacheBatch, CacheWriter, DecoderStateCache, Ragged
from vmr_env.files.text import write_text
from vmr_env.options import parse_in_range
from vmr_env.programs import run_program

OFFICIAL = 28.0
"""Samples per second of the official step, measured once."""
WIDTH, PROPOSALS, BATCH = 256, 10, 32
FEW, MANY = 1_000, 10_000


def write_states(path: Path, samples: int) -> DecoderStateCache:
    """A cache of random states of the default config's shape, written in parts."""
    rng = np.random.default_rng(0)
    with CacheWriter(
        path,
        dataset="charades",
        split="train",
        source="simulated",
        models=["random"],
        clip_seconds=1.0,
        backbone_kind="random",
        dtype="float32",
    ) as writer:
        for first in range(0, samples, FEW):
            n = min(FEW, samples - first)
            spans = np.sort(rng.random((n, PROPOSALS, 2)), axis=2).astype(np.float32)
            starts = rng.uniform(0, 15, n)
            writer.append(
                CacheBatch(
                    qids=list(range(first, first + n)),
                    vids=[f"v{i}" for i in range(first, first + n)],
                    queries=["query"] * n,
                    durations=np.full(n, 30.0),
                    n_clips=np.full(n, 30, np.int32),
                    moments=Ragged.from_rows([[[start, start + 8]] for start in starts]),
                    spans=spans,
                    scores=rng.random((n, PROPOSALS)).astype(np.float32),
                    counts=np.full(n, PROPOSALS, np.int32),
                    models=np.zeros((n, PROPOSALS), np.uint8),
                    states=rng.standard_normal((n, PROPOSALS, WIDTH)).astype(np.float32),
                    references=np.stack([spans.mean(2), spans[..., 1] - spans[..., 0]], -1),
                )
            )
        writer.finish()
    return DecoderStateCache.open(path)


def stage_three(config: TprlConfig) -> TprlConfig:
    """The settings with batches of `BATCH` and nothing but stage 3."""
    return replace(with_stages(config, (0, 0, 1)), batch_size=BATCH)


def training(
    cache: DecoderStateCache, config: TprlConfig, device: str = "cpu"
) -> tuple[TprlTrainer, StateBatches]:
    """A trainer of an untrained head on a device, and what it learns from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = DetectionHead(WIDTH)
    return TprlTrainer(head.to(device), config), StateBatches(cache, config.target_length, device=device)


def tprl_speed(cache: DecoderStateCache, config: TprlConfig, steps: int = 100, repetitions: int = 3) -> float:
    """Samples per second of processor time in stage 3, the best of a few repetitions."""
    trainer, batches = training(cache, config)
    now = trainer.start_epoch(0)
    best = 0.0
    for repetition in range(repetitions):
        rng = np.random.default_rng(repetition)
        passes = -(-steps * BATCH // len(batches))
        endless = itertools.chain.from_iterable(batches.shuffled(BATCH, rng) for _ in range(passes))
        samples, began = 0, time.process_time()
        for batch in itertools.islice(endless, steps):
            trainer.step(batch, now)
            samples += len(batch.states)
        best = max(best, samples / (time.process_time() - began))
    return best


def peak_mebibytes(cache: DecoderStateCache, config: TprlConfig, steps: int = 20) -> float:
    """Most memory that Python and NumPy held at once while training."""
    tracemalloc.start()
    try:
        tprl_speed(cache, config, steps, repetitions=1)
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def measure() -> dict[str, float]:
    """All figures, by name."""
    published, ours = stage_three(paper_config("charades")), stage_three(default_config("charades"))
    with tempfile.TemporaryDirectory() as folder:
        many = write_states(Path(folder) / "many", MANY)
        figures = {
            "published losses, samples/s": tprl_speed(many, published),
            "default losses, samples/s": tprl_speed(many, ours),
        }
        figures["published losses, times the official"] = figures["published losses, samples/s"] / OFFICIAL
        figures["default losses, times the official"] = figures["default losses, samples/s"] / OFFICIAL
        few = write_states(Path(folder) / "few", FEW)
        for cache in (few, many):
            figures[f"peak at {len(cache):,} samples, MiB"] = peak_mebibytes(cache, published)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: print the figures."""
    options = parse_in_range(TprlSpeed, arguments, "vmr-env bench tprl")
    torch.set_num_threads(1)
    figures = measure()
    print(f"official step, measured once: {OFFICIAL:g} samples/s")
    for name, value in figures.items():
        print(f"{name}: {value:,.1f}")
    if options.json:
        write_text(options.json, json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_program(main)
