"""A tiny GIRL-DETR with random weights, simulated features, and the caches that they make."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vmr_env.backbones.base import ClipMemory, GirlDetrDetector
from vmr_env.backbones.cache import build_cache
from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint, save_checkpoint
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.recipes import Recipe, get_recipe
from vmr_env.backbones.simulated.features import write_simulated
from vmr_env.data.annotations import read_annotations
from vmr_env.data.profiles import get_profile


class Backbone(NamedTuple):
    """Folders of a backbone and of its caches (`caches / split`), and the features behind them."""

    weights: Path
    caches: Path
    features: Path
    recipe: Recipe


def open_features(folder: Path, recipe: Recipe) -> MomentDataset:
    """Samples as `write_simulated` writes them."""
    rows = read_annotations(folder / "annotations.jsonl")
    return MomentDataset(rows, FeatureStore(folder / "clips"), FeatureStore(folder / "text"), recipe.data)


def make_backbone(
    folder: Path, *, train: int = 40, select: int = 20, test: int = 30, memory: ClipMemory = "none"
) -> Backbone:
    """Write everything into a folder."""
    recipe = get_recipe("charades-simulated").with_options(
        {"hidden_dim": 16, "nheads": 2, "dim_feedforward": 16, "num_queries": 5}
    )
    data = {}
    for seed, (split, samples) in enumerate({"train": train, "select": select, "test": test}.items()):
        write_simulated(folder / "features" / split, get_profile("charades"), samples, seed)
        data[split] = open_features(folder / "features" / split, recipe)
    widths = {"v_feat_dim": data["train"].video_width, "t_feat_dim": data["train"].text_width}
    recipe = recipe.with_options(widths)
    save_checkpoint(folder / "weights", GirlDetr(recipe.model, seed=0), {"recipe": recipe.to_dict()})
    detector = GirlDetrDetector(load_checkpoint(folder / "weights"), memory)
    for split, dataset in data.items():
        build_cache(
            folder / "caches" / split,
            detector,
            dataset,
            split=split,
            source="simulated",
            profile="charades",
            dtype="float32",
            progress=False,
        )
    return Backbone(folder / "weights", folder / "caches", folder / "features", replace(recipe))
