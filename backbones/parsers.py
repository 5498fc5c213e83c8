"""Parsers of the backbones' programs, in a module that loads nothing heavy: help is told at once."""

import argparse
from pathlib import Path

from vmr_env.backbones.arguments import (
    add_cluster_arguments,
    add_model_arguments,
    add_source_arguments,
    device,
    share,
    whole_number,
)
from vmr_env.data.profiles import PROFILES


def train_parser() -> argparse.ArgumentParser:
    """Of `vmr-env train`."""
    parser = argparse.ArgumentParser(prog="vmr-env train", description="Train a named recipe.")
    parser.add_argument("recipe", help="name of a recipe (vmr_env.backbones.recipes)")
    parser.add_argument(
        "--out", type=Path, required=True, help="output folder; a run found there is continued"
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--select-annotations", type=Path, help="selection samples (default: a tenth of the videos)"
    )
    parser.add_argument(
        "--select-clips", type=Path, help="clip features of the selection videos (default: --clips)"
    )
    parser.add_argument(
        "--select-text", type=Path, help="text features of the selection queries (default: --text)"
    )
    parser.add_argument(
        "--cross-fit",
        type=int,
        metavar="K",
        help="train K backbones, each on all source videos but a K-th (vmr_env.backbones.cross_fitted)",
    )
    parser.add_argument("--seed", type=int, help="seed (default: the recipe's)")
    parser.add_argument(
        "--behaviour",
        choices=("official", "repaired"),
        help="of model and losses (labels: --set official=true)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="another value of an option, as JSON"
    )
    parser.add_argument("--device", type=device, default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--amp", action="store_true", help="forward passes in bfloat16")
    parser.add_argument("--threads", type=whole_number, default=1, help="torch threads (default: 1)")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard files")
    return parser


def predict_parser() -> argparse.ArgumentParser:
    """Of `vmr-env predict`."""
    parser = argparse.ArgumentParser(
        prog="vmr-env predict", description="Write a submission file and print its metrics."
    )
    add_model_arguments(parser)
    add_source_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="prediction file to write (.jsonl, .jsonl.gz)"
    )
    return parser


def checkpoint_parser() -> argparse.ArgumentParser:
    """Of `vmr-env cache checkpoint`."""
    parser = argparse.ArgumentParser(
        prog="vmr-env cache checkpoint",
        description="Build a decoder-state cache from a trained or an official checkpoint.",
    )
    add_model_arguments(parser)
    add_source_arguments(parser)
    parser.add_argument("--split", required=True, help="name of the split")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new cache")
    parser.add_argument(
        "--memory",
        choices=("none", "refined", "encoded"),
        default="refined",
        help="clip features to keep, from before or after the transformer; environments show them to agents, "
        "step-wise agents need the refined ones (default: refined)",
    )
    parser.add_argument(
        "--unseen",
        choices=("mean", "one"),
        default="one",
        help="of cross-fitted backbones, what shows videos that all of them are new to: the mean of all, or "
        "one, as for training videos (default: one)",
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the states")
    parser.add_argument(
        "--shard", type=share, default=(0, 1), metavar="I/N", help="do only the I-th of N shares of the work"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a cache that is there")
    add_cluster_arguments(parser)
    return parser


def video_parser() -> argparse.ArgumentParser:
    """Of `vmr-env encode video`."""
    parser = argparse.ArgumentParser(
        prog="vmr-env encode video",
        description="Encode videos, and the queries about them, by a CLIP-like model.",
    )
    parser.add_argument("videos", type=Path, nargs="+", help="video files")
    parser.add_argument("--model", required=True, help="name or folder of a CLIP-like model of transformers")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--dataset", choices=list(PROFILES), help="data set whose clip length is taken")
    length.add_argument("--clip-seconds", type=float, help="length of a clip")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new feature store")
    parser.add_argument("--durations", type=Path, help="also write the videos' lengths here (.json)")
    parser.add_argument("--queries", type=Path, help="annotations (.jsonl) whose sentences are encoded too")
    parser.add_argument("--text-out", type=Path, help="folder of the feature store of --queries")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures in one forward pass")
    parser.add_argument("--cache", type=Path, help="folder that keeps features by content")
    return parser
