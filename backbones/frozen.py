"""Opening a trained model together with the recipe it was trained by.

An official checkpoint holds the options of its run, and these are its recipe: its predictions depend on them,
on the batch size too. What the command line says otherwise is refused, or overrides with a line that says so.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vmr_env.backbones.girl_detr.checkpoint import (
    load_checkpoint,
    load_official,
    official_options,
    read_manifest,
)
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.recipes import Recipe, get_recipe
from vmr_env.data.durations import SECONDS, is_seconds
from vmr_env.errors import DataError, Problem, shorten

_RECIPES = {"hl": "qvhighlights", "charadesSTA": "charades", "tacos": "tacos"}
"""Official names of data sets, and the recipes of theirs."""


def open_model(options: argparse.Namespace) -> tuple[Recipe, GirlDetr]:
    """The recipe and the model that the options of `add_model_arguments` name, in evaluation mode.

    Raises:
        DataError: the weights cannot be read or name no recipe, or an option contradicts them.
    """
    torch.set_num_threads(options.threads)
    if options.weights.is_dir():
        for name in ("recipe", "options"):
            if getattr(options, name) is not None:
                message = "is for official checkpoints; weights of ours hold their recipe"
                raise DataError(Problem(f"--{name}", None, None, message))
        recipe, model = recipe_of(options.weights), load_checkpoint(options.weights)
    else:
        model = load_official(options.weights, options=options.options)
        found = official_options(options.weights, options.options)
        recipe = official_recipe(found, str(options.options or options.weights), options.recipe)
        recipe = replace(recipe, model=model.config)
    size = options.batch_size
    if size is not None and size != recipe.eval_batch_size:
        print(f"--batch-size {size} overrides {recipe.eval_batch_size} of {options.weights}", file=sys.stderr)
        recipe = replace(recipe, eval_batch_size=size)
    return recipe, model.to(options.device)


def official_recipe(options: Mapping[str, Any], where: str, name: str | None = None) -> Recipe:
    """The recipe that an official checkpoint's options describe, but for the model.

    Options that are missing are those of the named recipe.

    Args:
        options: official option names and values.
        where: file, for errors.
        name: recipe, for options that do not name their data set.

    Raises:
        DataError: no recipe is known, another one than the options', or an option has no sensible value.
    """
    own = _RECIPES.get(str(options.get("dset_name")))
    if own is None and name is None:
        message = f"is missing; {where} is of the data set {shorten(options.get('dset_name'))}"
        raise DataError(Problem("--recipe", None, None, message))
    if own is not None and name not in (None, own):
        message = f"is {name!r}; {where} was trained on {options['dset_name']}, expected {own!r}"
        raise DataError(Problem("--recipe", None, None, message))
    problems = [
        Problem(where, None, key, f"{shorten(options[key])}; expected {expected}")
        for key, (holds, expected) in _RULES.items()
        if key in options and not holds(options[key])
    ]
    if problems:
        raise DataError(problems)
    recipe = get_recipe(own or str(name)).with_options({"official": True, "behaviour": "official"})
    given = {ours: options[theirs] for theirs, ours in _NAMES.items() if theirs in options}
    for theirs, ours in (("v_feat_dirs", "video_folders"), ("t_feat_dirs", "text_folders")):
        if options.get(theirs):
            given[ours] = tuple(Path(folder).name for folder in options[theirs])
    if "clip_seconds" in given:
        given["clip_seconds"] = float(given["clip_seconds"])
    if "no_norm_vfeat" in options:  # it rules the text too (Q1)
        given["normalise_features"] = not options["no_norm_vfeat"]
    if "ctx_mode" in options:
        given["endpoints"] = "tef" in options["ctx_mode"]
    return recipe.with_options(given)


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a checkpoint of ours was trained by."""
    notes = read_manifest(folder)["notes"]
    if "recipe" not in notes:
        message = "name no recipe; expected weights from vmr_env.backbones.train"
        raise DataError(Problem(str(folder), None, "notes", message))
    return Recipe.from_dict(notes["recipe"], str(folder))


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_folders(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


# Official option -> what holds for a good value, and how the error names it.
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("eval_bsz", "max_q_l", "max_v_l", "max_windows"), (_is_count, "an integer from 1")),
    "clip_length": (is_seconds, SECONDS),
    "iou_rerank_alpha": (lambda value: type(value) in (int, float) and 0 <= value <= 1, "0 to 1"),
    "no_norm_vfeat": (lambda value: type(value) is bool, "true or false"),
    "ctx_mode": (lambda value: value in ("video", "video_tef"), "'video' or 'video_tef'"),
    **dict.fromkeys(("v_feat_dirs", "t_feat_dirs"), (_is_folders, "a list of folders")),
}
# Official option -> option of a recipe with the same meaning.
_NAMES: Mapping[str, str] = {
    "eval_bsz": "eval_batch_size",
    "iou_rerank_alpha": "iou_rerank_alpha",
    "max_q_l": "max_tokens",
    "max_v_l": "max_clips",
    "max_windows": "max_windows",
    "clip_length": "clip_seconds",
}
