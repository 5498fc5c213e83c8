"""Code shared by the commands of `vmr-env`: kinds of arguments, and errors without a traceback."""

import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import click

from vmr_env.data.annotations import PastEnd
from vmr_env.errors import DataWarning
from vmr_env.programs import plain_exit

P = ParamSpec("P")

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
NEW = click.Path(path_type=Path)


def problems_exit_with_1(command: Callable[P, None]) -> Callable[P, None]:
    """End as `plain_exit` says, and tell a `DataWarning` without its place."""

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
            with plain_exit():
                command(*args, **kwargs)

    return run


def past_end_option(choices: Sequence[PastEnd]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """The option for moments that do not lie within their video, with those rules that a command has."""
    return click.option(
        "--past-end",
        type=click.Choice(choices),
        default="error",
        help="Moments that end after their video, start before it, or have no length. Default: error.",
    )


def device_option(command: Callable[P, None]) -> Callable[P, None]:
    """The option for the torch device of networks, which must be there."""
    return click.option(
        "--device", default="cpu", callback=_device, help="Torch device of the networks. Default: cpu."
    )(command)


def _device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from vmr_env.backbones.arguments import device_problem  # loads torch

    if wrong := device_problem(value):
        raise click.BadParameter(wrong)
    return value
