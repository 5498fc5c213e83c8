"""`vmr-env play`: episodes in the terminal, moved by keys."""

from pathlib import Path
from typing import Any

import click
from vmr_env.benchmarks.cli.common import FOLDER, problems_exit_with_1

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
"""Meanings of the keys of `play`."""


def _env_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    import gymnasium

    return [name for name, spec in gymnasium.registry.items() if name.startswith(incomplete) and _plays(spec)]


def _plays(spec: Any) -> bool:
    """Whether an environment has a detector's moments that discrete actions move."""
    return spec.entry_point == "vmr_env.envs.env:VMREnv" and "actions" not in spec.kwargs


@click.command()
@click.argument("env_id", default="VMR-Charades-v0", shell_complete=_env_ids)
@click.option("--source", type=FOLDER, help="A decoder-state cache; default: as `gymnasium.make` chooses.")
@click.option("--split", help="Name of the split; default: the source's own, else train.")
@click.option("--seed", type=int, help="Fixes the episodes.")
@click.option("--qid", help="Begin with this query.")
@problems_exit_with_1
def play(env_id: str, source: Path | None, split: str | None, seed: int | None, qid: str | None) -> None:
    """Play episodes in the terminal by keys, to see what an agent sees.

    \b
      vmr-env play VMR-QVHighlights-v0 --seed 1
    """
    import gymnasium
    from vmr_env.benchmarks.cli.episode import play_episodes

    from vmr_env.envs.env import VMREnv

    try:
        spec = gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        raise click.BadParameter(str(error), param_hint="ENV_ID") from error
    if not _plays(spec):
        message = f"{env_id} is no environment of ours with Discrete actions"
        raise click.BadParameter(message, param_hint="ENV_ID")
    env = VMREnv(split=split, source=source, render_mode="ansi", **spec.kwargs)
    try:
        play_episodes(env, seed, qid, KEYS)
    except OSError as error:
        raise click.UsageError(f"play needs a terminal ({error})") from error
