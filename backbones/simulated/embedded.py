"""The embedded default: a small GIRL-DETR trained on simulated Charades videos, and its decoder-state caches.

    python -m vmr_env.backbones.simulated.embedded --out vmr_env/assets/charades-simulated

makes again, from nothing but seeds, what the package ships: ``girl_detr/`` (weights) and ``train/``,
``val/``, ``test/`` (caches with decoder states; without clip features, which would triple their size). It
takes about two and a half minutes of processor time. The cached videos are new to the backbone, those of
``train`` too, so their decoder states are as good, and as bad, as those of ``test``.
"""

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vmr_env.backbones.arguments import whole_number
from vmr_env.backbones.base import GirlDetrDetector
from vmr_env.backbones.cache import build_cache
from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint
from vmr_env.backbones.recipes import Recipe, get_recipe
from vmr_env.backbones.simulated.features import write_simulated
from vmr_env.backbones.train import Trainer
from vmr_env.data.annotations import read_annotations
from vmr_env.programs import run_program

RECIPE = "charades-simulated"
NOTES = {
    "samples": "simulated videos that the backbone saw neither in training nor in the choice of its epoch"
}


@dataclass(frozen=True)
class Sizes:
    """Numbers of queries that are simulated."""

    backbone: int = 1500
    """To train the backbone."""
    select: int = 400
    """To choose its best epoch."""
    caches: tuple[tuple[str, int], ...] = (("train", 3000), ("val", 500), ("test", 1000))
    """Per cached split."""


def build_embedded(
    out: Path, work: Path, recipe: Recipe, sizes: Sizes, *, progress: bool = True
) -> Mapping[str, Path]:
    """Train the backbone and write its weights and caches.

    Args:
        out: folder for ``girl_detr`` and the caches; created, or its content replaced.
        work: folder for simulated data and the training run; a run found there is continued.
        recipe: what to train.
        sizes: numbers of queries.
        progress: show progress bars.

    Returns:
        cache folder by split.
    """
    splits = [("backbone", sizes.backbone), ("select", sizes.select), *sizes.caches]
    data = {}
    for seed, (name, samples) in enumerate(splits):
        if not (work / name / "annotations.jsonl").exists():
            shutil.rmtree(work / name, ignore_errors=True)
            write_simulated(work / name, recipe.profile, samples, seed)
        data[name] = MomentDataset(
            read_annotations(work / name / "annotations.jsonl"),
            FeatureStore(work / name / "clips"),
            FeatureStore(work / name / "text"),
            recipe.data,
        )
    trainer = Trainer(recipe, data["backbone"], data["select"], work / "run", source="simulated")
    trainer.run(progress)
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "girl_detr", ignore_errors=True)
    shutil.copytree(work / "run" / "best", out / "girl_detr")
    detector = GirlDetrDetector(load_checkpoint(out / "girl_detr"))
    caches = {}
    for name, _ in sizes.caches:
        caches[name] = out / name
        build_cache(
            out / name,
            detector,
            data[name],
            split=name,
            source="simulated",
            profile=recipe.dataset,
            features=("simulated",),
            notes=NOTES,
            overwrite=True,
            progress=progress,
        )
    return caches


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: make the embedded default."""
    parser = argparse.ArgumentParser(
        prog="python -m vmr_env.backbones.simulated.embedded", description=main.__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and caches")
    parser.add_argument("--work", type=Path, help="folder for data and the run (default: a temporary one)")
    parser.add_argument("--threads", type=whole_number, default=1, help="torch threads (default: 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        caches = build_embedded(options.out, work, get_recipe(RECIPE), Sizes())
    for name, path in caches.items():
        print(f"{name}: {path}")


if __name__ == "__main__":
    run_program(main)
