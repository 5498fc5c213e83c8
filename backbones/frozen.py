"""Opening a trained model together with the recipe it was trained by."""

import argparse
from pathlib import Path

import torch
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint, load_official, read_manifest
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.recipes import Recipe, get_recipe

from vmr_env.errors import DataError, Problem


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name a model and where it runs."""
    parser.add_argument("weights", type=Path, help="folder of our weights, or an official .ckpt file")
    parser.add_argument("--recipe", help="recipe of an official checkpoint: charades, qvhighlights or tacos")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")


def open_model(options: argparse.Namespace) -> tuple[Recipe, GirlDetr]:
    """The recipe and the model that the options of `add_model_arguments` name, in evaluation mode.

    Raises:
        DataError: the weights cannot be read, or name no recipe.
    """
    torch.set_num_threads(options.threads)
    if options.weights.is_dir():
        recipe, model = recipe_of(options.weights), load_checkpoint(options.weights)
    elif options.recipe is None:
        message = "is missing; an official checkpoint does not say what it was trained on"
        raise DataError(Problem("arguments", None, "--recipe", message))
    else:
        model = load_official(options.weights)
        recipe = get_recipe(options.recipe).with_options({"official": True, "behaviour": "official"})
    return recipe, model.to(options.device)


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a checkpoint of ours was trained by."""
    notes = read_manifest(folder)["notes"]
    if "recipe" not in notes:
        message = "name no recipe; expected weights from vmr_env.backbones.train"
        raise DataError(Problem(str(folder), None, "notes", message))
    return Recipe.from_dict(notes["recipe"], str(folder))
