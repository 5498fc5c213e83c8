"""The command line, `vmr-env`: what the library does, for people and for scripts.

Exit codes: 0 all is well, 1 the data have problems, 2 the command was wrong, 130 interrupted.
"""

import ast
import importlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import wraps
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, ParamSpec

import click
from click.shell_completion import CompletionItem

import vmr_env
from vmr_env.data.annotations import PAST_END, PastEnd
from vmr_env.data.predictions import SCORES, Scores
from vmr_env.data.profiles import PROFILES
from vmr_env.errors import DataError, DataWarning, Problem

P = ParamSpec("P")

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
NEW = click.Path(path_type=Path)

_FORWARDED = {"ignore_unknown_options": True, "help_option_names": []}
"""Settings of commands whose options, --help included, belong to another program."""


def _problems_exit_with_1(command: Callable[P, None]) -> Callable[P, None]:
    """Tell a `DataError` in its own words, without a traceback, and a `DataWarning` without its place."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always", DataWarning)
            shown = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
                if issubclass(category, DataWarning):
                    click.echo(f"warning: {message}", err=True)
                else:
                    shown(message, category, *rest, **more)

            warnings.showwarning = show
            try:
                command(*args, **kwargs)
            except DataError as error:
                raise click.ClickException(str(error)) from error

    return run


def _past_end_option(choices: Sequence[PastEnd]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """The option for moments that are no stretch of their video, with those rules that a command has."""
    return click.option(
        "--past-end",
        type=click.Choice(choices),
        default="error",
        help="Moments that end after their video, start before it, or have no length. Default: error.",
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(vmr_env.__version__, prog_name="vmr-env")
def main() -> None:
    """Video moment retrieval as reinforcement-learning environments.

    \b
    From nothing to a trained agent and an open report:
      vmr-env train --out runs/first
      open runs/first/report.html
    \b
    From your model's predictions:
      vmr-env validate predictions my_model.jsonl --annotations annotations.jsonl
      vmr-env evaluate my_model.jsonl annotations.jsonl
      vmr-env train --dataset charades --predictions my_model.jsonl --annotations annotations.jsonl

    Exit codes: 0 all is well, 1 the data have problems, 2 the command was wrong, 130 interrupted.
    """


@main.command()
@click.argument("predictions", type=FILE, nargs=-1, required=True)
@click.argument("annotations", type=FILE)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the official result as JSON; of several files, by name."
)
@click.option("--out", type=NEW, help="Also write the official result of the one prediction file here.")
@click.option(
    "--shared-only", is_flag=True, help="Score the queries that both sides have, instead of refusing."
)
@click.option(
    "--missing",
    type=click.Choice(["error", "miss"]),
    default="error",
    help="What a query without an answer is: an error, or a miss that is counted. Default: error.",
)
@_past_end_option(PAST_END)
@click.option("--keep-outside", is_flag=True, help="The same as --past-end keep.")
@_problems_exit_with_1
def evaluate(
    predictions: tuple[Path, ...],
    annotations: Path,
    as_json: bool,
    out: Path | None,
    shared_only: bool,
    missing: Literal["error", "miss"],
    past_end: PastEnd,
    keep_outside: bool,
) -> None:
    """Score prediction files against ground truth, as the official evaluators do.

    \b
      vmr-env evaluate my_model.jsonl highlight_val_release.jsonl
      vmr-env evaluate a.jsonl b.jsonl.gz annotations.jsonl          side by side
      vmr-env evaluate a.jsonl annotations.jsonl --json | jq .brief
    """
    from vmr_env.metrics import moments as metrics

    if out is not None and len(predictions) > 1:
        raise click.UsageError(f"--out takes the result of one prediction file, got {len(predictions)}")
    results = {
        str(path): metrics.evaluate(
            path,
            annotations,
            match_number=not shared_only,
            missing=missing,
            past_end="keep" if keep_outside else past_end,
        )
        for path in predictions
    }
    if out is not None:
        metrics.write_result(out, results[str(predictions[0])])
    if as_json:
        click.echo(json.dumps(results if len(results) > 1 else results[str(predictions[0])], indent=1))
        return
    click.echo(metrics.table({Path(name).name: result for name, result in results.items()}).T.to_string())


@main.group()
def validate() -> None:
    """Find everything that is wrong in files, before anything is computed from them.

    Errors are what the readers refuse (exit code 1); warnings are legal but deserve a look (exit code 0).
    """


_json_option = click.option("--json", "as_json", is_flag=True, help="Print the problems as a JSON list.")


def _tell(problems: Iterable[Problem], as_json: bool) -> None:
    """Print problems, and exit with 1 where there are errors."""
    found = list(problems)
    errors = sum(problem.severity == "error" for problem in found)
    if as_json:
        click.echo(json.dumps([asdict(problem) for problem in found], indent=1))
    else:
        for problem in found:
            click.echo(f"{problem.severity}: {problem}")
        click.echo(f"{errors} errors, {len(found) - errors} warnings")
    if errors:
        click.get_current_context().exit(1)


def _problems_of(check: Callable[[Path], object], paths: Iterable[Path]) -> Iterable[Problem]:
    """What the check of each path raises."""
    for path in paths:
        try:
            check(path)
        except DataError as error:
            yield from error.problems


@validate.command("annotations")
@click.argument("files", type=FILE, nargs=-1, required=True)
@_past_end_option(PAST_END)
@_json_option
def validate_annotations(files: tuple[Path, ...], past_end: PastEnd, as_json: bool) -> None:
    """Annotation files (.jsonl, .jsonl.gz)."""
    from vmr_env.data import validation

    found = (validation.validate_annotations(file, past_end=past_end) for file in files)
    _tell((problem for problems in found for problem in problems), as_json)


@validate.command("predictions")
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--annotations", type=FILE, help="Ground truth of the same split, to be compared with.")
@click.option(
    "--dataset", type=click.Choice(list(PROFILES)), help="The data set, for the number of a video's clips."
)
@_past_end_option(PAST_END)
@_json_option
def validate_predictions(
    files: tuple[Path, ...],
    annotations: Path | None,
    dataset: str | None,
    past_end: PastEnd,
    as_json: bool,
) -> None:
    """Prediction files (.jsonl, .jsonl.gz)."""
    from vmr_env.data import validation

    profile = None if dataset is None else PROFILES[dataset]
    found = (validation.validate_predictions(file, annotations, profile, past_end=past_end) for file in files)
    _tell((problem for problems in found for problem in problems), as_json)


@validate.command("features")
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@_json_option
def validate_features(folders: tuple[Path, ...], as_json: bool) -> None:
    """Feature stores: checksums, and that every number is finite."""
    from vmr_env.backbones.features.store import FeatureStore, array_problem

    def check(folder: Path) -> None:
        store = FeatureStore(folder, checksums=True)
        problems = [
            Problem(str(folder), None, key, problem)
            for key in store
            if (problem := array_problem(store[key]))
        ]
        if problems:
            raise DataError(problems)

    _tell(_problems_of(check, folders), as_json)


@validate.command("cache")
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@_json_option
def validate_cache(folders: tuple[Path, ...], as_json: bool) -> None:
    """Decoder-state caches: checksums, and every rule about the contents."""
    from vmr_env.caches.reader import DecoderStateCache

    _tell(_problems_of(lambda folder: DecoderStateCache.open(folder).verify(), folders), as_json)


@main.group()
def cache() -> None:
    """Make decoder-state caches, which the environments run on."""


@cache.command("predictions")
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--annotations", type=FILE, required=True, help="Ground truth of the same split.")
@click.option("--dataset", type=click.Choice(list(PROFILES)), required=True, help="The data set.")
@click.option("--split", required=True, help="Name of the split.")
@click.option("--out", type=NEW, required=True, help="Folder of the new cache.")
@click.option("--proposals", type=click.IntRange(1), help="Proposals kept of a query; default: all.")
@click.option(
    "--drop-unknown", is_flag=True, help="Leave out predictions for queries that are not annotated."
)
@click.option("--sort", is_flag=True, help="Bring the windows of each row by falling score first.")
@click.option(
    "--scores", type=click.Choice(SCORES), default="keep", help="Rescale each file's scores. Default: keep."
)
@_past_end_option(("error", "clip", "drop"))
@click.option("--overwrite", is_flag=True, help="Replace a cache that is there.")
@_problems_exit_with_1
def cache_predictions(
    files: tuple[Path, ...],
    annotations: Path,
    dataset: str,
    split: str,
    out: Path,
    proposals: int | None,
    drop_unknown: bool,
    sort: bool,
    scores: Scores,
    past_end: PastEnd,
    overwrite: bool,
) -> None:
    """From prediction files of one split; several become a pool of models.

    \b
      vmr-env cache predictions my_model.jsonl --annotations annotations.jsonl \\
          --dataset charades --split test --out caches/charades/test
    """
    from vmr_env.caches.from_predictions import build_prediction_cache
    from vmr_env.caches.reader import DecoderStateCache

    build_prediction_cache(
        out,
        files,
        annotations,
        PROFILES[dataset],
        split,
        max_proposals=proposals,
        unknown_queries="drop" if drop_unknown else "error",
        sort=sort,
        scores=scores,
        past_end=past_end,
        overwrite=overwrite,
    )
    click.echo(repr(DecoderStateCache.open(out)))


class _Forwarded(click.Command):
    """A command whose options belong to the argument parser of a module."""

    def __init__(self, *args: Any, module: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.module = module

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The module's options, read from its source: importing what trains takes seconds."""
        package, _, name = self.module.rpartition(".")
        source = (files(package) / f"{name}.py").read_text(encoding="utf-8")
        calls = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
        ]
        texts = [arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)]
        options = ["--help", *(text for text in texts if isinstance(text, str) and text.startswith("--"))]
        return [CompletionItem(option) for option in options if option.startswith(incomplete)]


def _paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


def _forward(group: click.Group, name: str, module: str, help: str, *first: str) -> None:
    """A command whose arguments go to the `main` of a module, after some fixed ones."""

    @group.command(name, cls=_Forwarded, module=module, context_settings=_FORWARDED, short_help=help)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED, shell_complete=_paths)
    @_problems_exit_with_1
    def command(arguments: tuple[str, ...]) -> None:
        code = importlib.import_module(module).main([*first, *arguments])
        click.get_current_context().exit(code or 0)


@main.group()
def encode() -> None:
    """Make feature stores: of sentences, by a language model that runs offline, and of published files."""


_forward(
    cache,
    "checkpoint",
    "vmr_env.backbones.cache",
    "From a trained or an official GIRL-DETR checkpoint and features.",
)
_forward(
    encode,
    "features",
    "vmr_env.backbones.features.official",
    "Feature stores from files of the official layout (.npz, .npy).",
)
_forward(encode, "text", "vmr_env.backbones.features.text", "The queries of annotation files.")
_forward(
    encode,
    "captions",
    "vmr_env.backbones.features.captions",
    "Machine captions of videos, one per clip.",
    "encode",
)
_forward(
    main,
    "train",
    "vmr_env.benchmarks.run_tprl",
    "The main job: from data to trained agents, a table and a report.",
)


@main.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=NEW, help="File to write; default: report.html in the run's folder.")
@_problems_exit_with_1
def report(run: Path, out: Path | None) -> None:
    """Write the report of a run again: one HTML file that needs no network.

    \b
      vmr-env report runs/tprl --out report.html
    """
    from vmr_env.benchmarks.report.html import write_report

    click.echo(write_report(run, out))


KEYS = {
    "a": "start earlier",
    "s": "start later",
    "k": "end earlier",
    "l": "end later",
    "1, 3, 8": "clips of a move",
    "n, p": "next, previous proposal",
    ".": "stop here",
    "r": "another episode",
    "q": "quit",
}
"""What the keys of `play` do."""


def _env_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    import gymnasium

    return [name for name in gymnasium.registry if name.startswith("VMR-") and name.startswith(incomplete)]


@main.command()
@click.argument("env_id", default="VMR-Charades-v0", shell_complete=_env_ids)
@click.option("--source", type=FOLDER, help="A decoder-state cache; default: as `gymnasium.make` chooses.")
@click.option("--split", help="Name of the split; default: the source's own, else train.")
@click.option("--seed", type=int, help="Fixes the episodes.")
@click.option("--qid", help="Begin with this query.")
@_problems_exit_with_1
def play(env_id: str, source: Path | None, split: str | None, seed: int | None, qid: str | None) -> None:
    """Play episodes in the terminal by keys, to see what an agent sees.

    \b
      vmr-env play VMR-QVHighlights-v0 --seed 1
    """
    import gymnasium
    from vmr_env.benchmarks.cli.play import play_episodes

    from vmr_env.envs.env import VMREnv

    try:
        kwargs = gymnasium.spec(env_id).kwargs
    except gymnasium.error.Error as error:
        raise click.BadParameter(str(error), param_hint="ENV_ID") from error
    if "dataset" not in kwargs or "actions" in kwargs:
        message = f"{env_id} is no environment of ours with Discrete actions"
        raise click.BadParameter(message, param_hint="ENV_ID")
    env = VMREnv(split=split, source=source, render_mode="ansi", **kwargs)
    try:
        play_episodes(env, seed, qid, KEYS)
    except OSError as error:
        raise click.UsageError(f"play needs a terminal ({error})") from error


if __name__ == "__main__":
    main()
