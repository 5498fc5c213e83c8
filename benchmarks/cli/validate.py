"""`vmr-env validate`: everything that is wrong in files."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import click

from vmr_env.benchmarks.cli.common import FILE, FOLDER, past_end_option, problems_exit_with_1
from vmr_env.data.annotations import PAST_END, PastEnd
from vmr_env.data.profiles import PROFILES
from vmr_env.errors import DataError, Problem


@click.group()
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
    """Errors that the check of each path raises."""
    for path in paths:
        try:
            check(path)
        except DataError as error:
            yield from error.problems


@validate.command("annotations")
@click.argument("files", type=FILE, nargs=-1, required=True)
@past_end_option(PAST_END)
@_json_option
@problems_exit_with_1
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
@past_end_option(PAST_END)
@_json_option
@problems_exit_with_1
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
@click.argument("paths", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@_json_option
@problems_exit_with_1
def validate_features(paths: tuple[Path, ...], as_json: bool) -> None:
    """Feature stores, folders of feature files (.npz, .npy, .pt), HDF5 files: that every number is finite.

    Of stores also the checksums.
    """
    from vmr_env.backbones.features.official import feature_file_problems
    from vmr_env.backbones.features.store import FeatureStore, array_problem

    def check(folder: Path) -> None:
        if not (folder / "manifest.json").exists():
            if problems := feature_file_problems(folder):
                raise DataError(problems)
            return
        store = FeatureStore(folder, checksums=True)
        problems = [
            Problem(str(folder), None, key, problem)
            for key in store
            if (problem := array_problem(store[key]))
        ]
        if problems:
            raise DataError(problems)

    _tell(_problems_of(check, paths), as_json)


@validate.command("cache")
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@_json_option
@problems_exit_with_1
def validate_cache(folders: tuple[Path, ...], as_json: bool) -> None:
    """Decoder-state caches: checksums, and every rule about the contents."""
    from vmr_env.caches.reader import DecoderStateCache

    _tell(_problems_of(lambda folder: DecoderStateCache.open(folder).verify(), folders), as_json)
