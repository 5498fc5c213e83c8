"""Command-line arguments that more than one program of the backbones has; loading them loads no torch."""

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from vmr_env.data.annotations import PAST_END
from vmr_env.errors import MissingExtra

if TYPE_CHECKING:
    from vmr_env.backbones.cluster import Cluster

LOCAL = "local"
"""Address of the Ray that is started on this machine alone."""


def device_problem(text: str) -> str | None:
    """What is wrong with the name of a torch device; None for one that is there, such as cpu or cuda:0."""
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        return f"is {text!r}; expected cpu or a device of this machine ({reason})"
    return None


def device(text: str) -> str:
    """A torch device that is there."""
    if wrong := device_problem(text):
        raise argparse.ArgumentTypeError(wrong)
    return text


def whole_number(text: str) -> int:
    """A whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; expected a whole number from 1")
    return int(text)


def share(text: str) -> tuple[int, int]:
    """I/N, the I-th of N shares, counted from 0."""
    index, slash, count = text.partition("/")
    if not slash or not (index + count).isdigit() or not index or not count or int(index) >= int(count):
        raise argparse.ArgumentTypeError(f"is {text!r}; expected I/N with I from 0 to N - 1, such as 0/4")
    return int(index), int(count)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name a model and where it runs."""
    parser.add_argument("weights", type=Path, help="folder of our weights, or an official .ckpt file")
    parser.add_argument(
        "--recipe",
        help="recipe of an official checkpoint that names no data set: charades, qvhighlights or tacos",
    )
    parser.add_argument(
        "--options", type=Path, help="opt.json of an official checkpoint, in place of the options inside it"
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number,
        help="samples of a forward pass; official predictions depend on it (default: as the weights say)",
    )
    parser.add_argument("--device", type=device, default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--threads", type=whole_number, default=1, help="torch threads (default: 1)")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name annotations and features."""
    parser.add_argument(
        "--annotations",
        type=Path,
        action="append",
        required=True,
        help="samples (.jsonl, .jsonl.gz); may repeat",
    )
    parser.add_argument(
        "--past-end",
        choices=PAST_END,
        default="clip",
        help="what to do with moments that do not lie within their video (default: clip)",
    )
    parser.add_argument(
        "--short-features",
        choices=("error", "drop"),
        default="error",
        help="what to do with videos whose features do not cover their length: refuse them (default), or "
        "leave their samples out",
    )
    parser.add_argument("--clips", type=Path, help="feature store of clips (not for blind recipes)")
    parser.add_argument("--text", type=Path, help="feature store of text tokens")
    parser.add_argument("--features", type=Path, help="root of the official layout, instead of the stores")


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of work that a Ray cluster can do."""
    parser.add_argument(
        "--cluster",
        nargs="?",
        const=LOCAL,
        metavar="ADDRESS",
        help="do the work on a Ray cluster; without an address, Ray is started on this machine",
    )
    parser.add_argument("--cpus-per-worker", type=whole_number, default=1, help="processors (default: 1)")
    parser.add_argument("--gpus-per-worker", type=float, default=0.0, help="accelerators, or a share of one")


def cluster_of(options: argparse.Namespace) -> "Cluster | None":
    """The cluster that the command line names, if any.

    Raises:
        MissingExtra: Ray is not installed.
    """
    if options.cluster is None:
        return None
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("--cluster needs `pip install vmr-env[distributed]`")
    from vmr_env.backbones.cluster import Cluster

    return Cluster(options.cluster, options.cpus_per_worker, options.gpus_per_worker)
