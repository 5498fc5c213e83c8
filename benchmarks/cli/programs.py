"""Commands that hand their arguments to the `main` of a module, which is loaded only then."""

import ast
import importlib
from importlib.resources import files
from typing import Any

import click
from click.shell_completion import CompletionItem
from vmr_env.benchmarks.cli.common import problems_exit_with_1

from vmr_env.options import flags

_FORWARDED = {"ignore_unknown_options": True, "help_option_names": []}
"""Settings of commands whose options, --help included, belong to another program."""


class _Forwarded(click.Command):
    """A command whose options belong to a module."""

    def __init__(self, *args: Any, module: str, options: str | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.module, self.options = module, options

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The options of the dataclass, or those that the source of the module names."""
        if self.options is not None:
            module, _, name = self.options.partition(":")
            options = flags(getattr(importlib.import_module(module), name))
        else:
            options = _options_in_source(self.module)
        return [CompletionItem(option) for option in options if option.startswith(incomplete)]


def _options_in_source(module: str) -> list[str]:
    """Options that a module's argument parser has, without importing it, which would take seconds."""
    tree = _parsed(module)
    imported = [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.name.startswith("add_") and alias.name.endswith("_arguments")
    ]
    parts: list[ast.AST] = [tree]
    for other, name in imported:  # functions that add options to the parser
        parts += [
            node
            for node in ast.walk(_parsed(other))
            if isinstance(node, ast.FunctionDef) and node.name == name
        ]
    calls = [
        node
        for part in parts
        for node in ast.walk(part)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
    ]
    texts = [arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)]
    return ["--help", *(text for text in texts if isinstance(text, str) and text.startswith("--"))]


def _parsed(module: str) -> ast.Module:
    package, _, name = module.rpartition(".")
    return ast.parse((files(package) / f"{name}.py").read_text(encoding="utf-8"))


def _paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


def program(name: str, module: str, help: str, *first: str, options: str | None = None) -> click.Command:
    """A command whose arguments go to the `main` of a module.

    Args:
        name: of the command.
        module: its `main` takes the arguments and returns an exit code, or None for 0.
        help: a sentence.
        first: arguments that go before the given ones.
        options: `module:Class` of the dataclass with its options, if it has one.
    """

    @click.command(
        name, cls=_Forwarded, module=module, options=options, context_settings=_FORWARDED, short_help=help
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED, shell_complete=_paths)
    @problems_exit_with_1
    def command(arguments: tuple[str, ...]) -> None:
        code = importlib.import_module(module).main([*first, *arguments])
        click.get_current_context().exit(code or 0)

    return command


tprl = program(
    "tprl",
    "vmr_env.benchmarks.experiment.main",
    "The main job: from data to trained agents, a table and a report.",
    options="vmr_env.benchmarks.experiment.options:Options",
)
dense = program(
    "dense",
    "vmr_env.benchmarks.experiment.dense",
    "A policy over all spans that sees the video: train it, judge it, keep it for `refine`.",
)
train = program("train", "vmr_env.backbones.train", "Train a GIRL-DETR backbone on features.")
predict = program("predict", "vmr_env.backbones.predict", "A backbone's predictions, and their metrics.")
graft = program(
    "graft",
    "vmr_env.benchmarks.cli.graft",
    "Put a trained head back into its backbone.",
    options="vmr_env.benchmarks.cli.graft:Options",
)


@click.group()
def encode() -> None:
    """Make feature stores: of your own videos, of sentences, and of published files."""


encode.add_command(
    program(
        "features",
        "vmr_env.backbones.features.official",
        "Feature stores from files of the official layout (.npz, .npy).",
    )
)
encode.add_command(
    program("video", "vmr_env.backbones.features.video", "Videos of your own, by a CLIP-like model.")
)
encode.add_command(program("text", "vmr_env.backbones.features.text", "The queries of annotation files."))
encode.add_command(
    program(
        "captions",
        "vmr_env.backbones.features.captions",
        "Machine captions of videos, one per clip.",
        "encode",
    )
)


@click.group()
def bench() -> None:
    """Sweeps over many runs, and speed on this machine."""


bench.add_command(
    program(
        "sweep",
        "vmr_env.benchmarks.experiment.sweep",
        "Data, detectors, settings, methods and seeds as one table of runs.",
        options="vmr_env.benchmarks.experiment.sweep:SweepOptions",
    )
)
bench.add_command(
    program(
        "search",
        "vmr_env.benchmarks.experiment.search",
        "Settings of an agent, searched on held-out training videos.",
        options="vmr_env.benchmarks.experiment.search:SearchOptions",
    )
)
bench.add_command(
    program("throughput", "vmr_env.benchmarks.speed.throughput", "Environments: steps and frames per second.")
)
bench.add_command(
    program("girl-detr", "vmr_env.benchmarks.speed.girl_detr", "GIRL-DETR: forward and backward passes.")
)
bench.add_command(program("tprl", "vmr_env.benchmarks.speed.tprl", "TPRL: epochs of a head's training."))
bench.add_command(program("gpu", "vmr_env.benchmarks.speed.gpu", "Processor and GPU side by side."))
bench.add_command(
    program("cluster", "vmr_env.benchmarks.speed.cluster", "Runs on a Ray cluster: overhead and speed-up.")
)
