"""Commands that hand their arguments to the `main` of a module, which is loaded only then."""

import importlib
import re
from argparse import ArgumentParser
from typing import Any

import click
from click.shell_completion import CompletionItem

from vmr_env.benchmarks.cli.common import problems_exit_with_1
from vmr_env.options import parser_of

_FORWARDED = {"ignore_unknown_options": True, "help_option_names": []}
"""Settings of commands whose options, --help included, belong to another program."""


class Forwarded(click.Command):
    """A command whose options belong to a module.

    Args:
        parser: `module:name` of its options, a dataclass, or of a function that makes their parser. The
            module loads nothing heavy, so that help and wrong options are told at once.
    """

    def __init__(self, *args: Any, parser: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parser = parser

    def parser(self, prog: str | None = None) -> ArgumentParser:
        """The parser of the options; `prog` is how the command was called."""
        module, _, name = self._parser.partition(":")
        found = getattr(importlib.import_module(module), name)
        made: ArgumentParser = parser_of(found, prog) if isinstance(found, type) else found()
        return made

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The options."""
        flags = ["--help", *re.findall(r"(?<=[ \[(])--[\w-]+", self.parser().format_usage())]
        return [CompletionItem(flag) for flag in flags if flag.startswith(incomplete)]


def _paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


def program(name: str, module: str, parser: str, help: str, *first: str) -> click.Command:
    """A command whose arguments go to the `main` of a module.

    Args:
        name: of the command.
        module: its `main` takes the arguments and returns an exit code, or None for 0. It is loaded only
            where the parser knows them.
        parser: as for `Forwarded`.
        help: a sentence.
        first: arguments that go before the given ones, which the parser does not know.
    """

    @click.command(name, cls=Forwarded, parser=parser, context_settings=_FORWARDED, short_help=help)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED, shell_complete=_paths)
    @problems_exit_with_1
    def command(arguments: tuple[str, ...]) -> None:
        context = click.get_current_context()
        forwarded.parser(context.command_path).parse_args(arguments)
        code = importlib.import_module(module).main([*first, *arguments])
        context.exit(code or 0)

    forwarded: Forwarded = command
    return command


tprl = program(
    "tprl",
    "vmr_env.benchmarks.experiment.main",
    "vmr_env.benchmarks.experiment.options:Options",
    "The main job: from data to trained agents, a table and a report.",
)
dense = program(
    "dense",
    "vmr_env.benchmarks.experiment.dense",
    "vmr_env.benchmarks.experiment.parsers:dense_parser",
    "A policy over all spans that sees the video: train it, judge it, keep it for `refine`.",
)
train = program(
    "train",
    "vmr_env.backbones.train",
    "vmr_env.backbones.parsers:train_parser",
    "Train a GIRL-DETR backbone on features.",
)
predict = program(
    "predict",
    "vmr_env.backbones.predict",
    "vmr_env.backbones.parsers:predict_parser",
    "A backbone's predictions, and their metrics.",
)
graft = program(
    "graft",
    "vmr_env.benchmarks.cli.graft",
    "vmr_env.benchmarks.cli.graft:Options",
    "Put a trained head back into its backbone.",
)


@click.group()
def encode() -> None:
    """Make feature stores: of your own videos, of sentences, and of published files."""


_FEATURES = "vmr_env.backbones.features"
for _program in (
    program(
        "features",
        f"{_FEATURES}.official",
        f"{_FEATURES}.official:make_parser",
        "Feature stores from files of the official layout (.npz, .npy).",
    ),
    program(
        "video",
        f"{_FEATURES}.video",
        "vmr_env.backbones.parsers:video_parser",
        "Videos of your own, by a CLIP-like model.",
    ),
    program(
        "text",
        f"{_FEATURES}.text",
        f"{_FEATURES}.text:make_parser",
        "The queries of annotation files.",
    ),
    program(
        "captions",
        f"{_FEATURES}.captions",
        f"{_FEATURES}.captions:encode_parser",
        "Machine captions of videos, one per clip.",
        "encode",
    ),
):
    encode.add_command(_program)


@click.group()
def bench() -> None:
    """Sweeps over many runs, and speed on this machine."""


_EXPERIMENT, _SPEED = "vmr_env.benchmarks.experiment", "vmr_env.benchmarks.speed"
for _program in (
    program(
        "sweep",
        f"{_EXPERIMENT}.sweep",
        f"{_EXPERIMENT}.options:SweepOptions",
        "Data, detectors, settings, methods and seeds as one table of runs.",
    ),
    program(
        "search",
        f"{_EXPERIMENT}.search",
        f"{_EXPERIMENT}.options:SearchOptions",
        "Settings of an agent, searched on held-out training videos.",
    ),
    program(
        "throughput",
        f"{_SPEED}.throughput",
        f"{_SPEED}.options:Throughput",
        "Environments: steps and frames per second.",
    ),
    program(
        "girl-detr",
        f"{_SPEED}.girl_detr",
        f"{_SPEED}.options:GirlDetrSpeed",
        "GIRL-DETR: forward and backward passes.",
    ),
    program("tprl", f"{_SPEED}.tprl", f"{_SPEED}.options:TprlSpeed", "TPRL: epochs of a head's training."),
    program("gpu", f"{_SPEED}.gpu", f"{_SPEED}.options:GpuSpeed", "Processor and GPU side by side."),
    program(
        "cluster",
        f"{_SPEED}.cluster",
        f"{_SPEED}.options:ClusterSpeed",
        "Runs on a Ray cluster: overhead and speed-up.",
    ),
):
    bench.add_command(_program)
