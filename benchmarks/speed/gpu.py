"""What one accelerator is worth; see `options.GpuSpeed`."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch

from vmr_env.agents.ppo import PPO
from vmr_env.agents.tprl.config import default_config
from vmr_env.backbones.base import GirlDetrDetector
from vmr_env.backbones.cache import build_cache
from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.recipes import get_recipe
from vmr_env.backbones.simulated.features import write_simulated
from vmr_env.benchmarks.speed.girl_detr import CLIPS, training_step
from vmr_env.benchmarks.speed.options import GpuSpeed
from vmr_env.benchmarks.speed.tprl import BATCH, FEW, stage_three, training, write_states
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import read_annotations
from vmr_env.data.profiles import get_profile
from vmr_env.envs.sources import simulated_source
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.files.text import write_text
from vmr_env.options import parse_in_range
from vmr_env.programs import run_program

SAMPLES = 500
"""Of the cache."""


def rate(work: Callable[[], object], seconds: float, device: str) -> float:
    """How often work is done in a second, after once to warm up."""
    work()
    done, began = 0, time.perf_counter()
    while True:
        work()
        done += 1
        if device == "cuda":
            torch.cuda.synchronize()
        if (taken := time.perf_counter() - began) >= seconds:
            return done / taken


def supervised(seconds: float, device: str) -> float:
    """Training steps per second."""
    return rate(training_step(GirlDetr(GirlDetrConfig()).to(device), CLIPS), seconds, device)


def cached(folder: Path, seconds: float, device: str) -> float:
    """Samples per second whose states are cached."""
    recipe = get_recipe("charades-simulated")
    rows = read_annotations(folder / "annotations.jsonl")
    dataset = MomentDataset(rows, FeatureStore(folder / "clips"), FeatureStore(folder / "text"), recipe.data)
    widths = {"v_feat_dim": dataset.video_width, "t_feat_dim": dataset.text_width}
    detector = GirlDetrDetector(GirlDetr(recipe.with_options(widths).model).to(device), "refined")

    def build() -> None:
        build_cache(
            folder / f"cache-{device}",
            detector,
            dataset,
            split="train",
            source="simulated",
            profile="charades",
            overwrite=True,
            progress=False,
        )

    return len(rows) * rate(build, seconds, device)


def head_steps(states: DecoderStateCache, seconds: float, device: str) -> float:
    """Steps per second in TPRL's third stage."""
    trainer, batches = training(states, stage_three(default_config("charades")), device)
    now, rng = trainer.start_epoch(0), np.random.default_rng(0)
    endless = chain.from_iterable(batches.shuffled(BATCH, rng) for _ in count())
    return rate(lambda: trainer.step(next(endless), now), seconds, device)


def frames(seconds: float, device: str) -> float:
    """Steps of all environments per second in which PPO learns."""
    source = simulated_source("charades", "train")
    env = VMRVectorEnv(PPO.num_envs, "charades", source=source, autoreset_mode="SameStep")
    agent = PPO(env, 0)
    agent.to(device)
    return env.num_envs * agent.config.steps * rate(agent.update, seconds, device)


def measure(seconds: float) -> dict[str, dict[str, float]]:
    """All figures: of what, then by device."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_simulated(folder / "samples", get_profile("charades"), samples=SAMPLES, seed=0)
        states = write_states(folder / "states", FEW)
        return {
            "supervised steps/s": {device: supervised(seconds, device) for device in devices},
            "cached samples/s": {device: cached(folder / "samples", seconds, device) for device in devices},
            "TPRL steps/s": {device: head_steps(states, seconds, device) for device in devices},
            "PPO frames/s": {device: frames(seconds, device) for device in devices},
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: print the table."""
    options = parse_in_range(GpuSpeed, arguments, "vmr-env bench gpu")
    torch.set_num_threads(1)
    figures = measure(options.seconds)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU was seen"
    print(f"| | processor, one thread | {gpu} |\n|---|---|---|")
    for name, of in figures.items():
        cells = [f"{of[device]:,.1f}" if device in of else "" for device in ("cpu", "cuda")]
        print(f"| {name} | {' | '.join(cells)} |")
    if options.json:
        write_text(options.json, json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_program(main)
