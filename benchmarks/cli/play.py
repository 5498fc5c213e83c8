"""`vmr-env play`: episodes in the terminal, moved by keys, against an agent."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmr_env.benchmarks.cli.common import FOLDER, problems_exit_with_1

if TYPE_CHECKING:
    from vmr_env.agents.ensemble.cross_fitting import CrossFittedEnsemble
    from vmr_env.caches.reader import DecoderStateCache

KEYS = {
    "←, →": "whole span earlier, later",
    "a, s": "start earlier, later",
    "k, l": "end earlier, later",
    "1, 3, 8": "clips of a move",
    "↑, ↓ or p, n": "previous, next proposal",
    ". or Enter": "stop here",
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
@click.option("--split", help="Name of the split; default: the source's own, else val.")
@click.option("--seed", type=int, help="Fixes the episodes.")
@click.option("--qid", help="Begin with this query.")
@click.option(
    "--agent",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Play against this ensemble, of a run's folder `runs`; default: the one that ships, on its data.",
)
@problems_exit_with_1
def play(
    env_id: str, source: Path | None, split: str | None, seed: int | None, qid: str | None, agent: Path | None
) -> None:
    """Play episodes in the terminal by keys, against an agent. The truth is told at the end.

    \b
      vmr-env play
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
    if source is None and split is None:
        split = "val"
    env = VMREnv(split=split, source=source, render_mode="ansi", **spec.kwargs)
    try:
        play_episodes(env, seed, qid, KEYS, _opponent(env.cache, agent))
    except OSError as error:
        raise click.UsageError(f"play needs a terminal ({error})") from error


def _opponent(cache: "DecoderStateCache", agent: Path | None) -> "CrossFittedEnsemble | None":
    """The agent that a file holds, else the one that ships beside the cache; None where there is none.

    Raises:
        DataError: the file holds no agent, or one for other observations.
    """
    from vmr_env.benchmarks.cli.demo import AGENT_FILE

    shipped = cache.path.with_name(AGENT_FILE)
    if agent is None and not shipped.is_file():
        return None
    import torch

    from vmr_env.agents.ensemble.files import load_ensemble

    torch.set_num_threads(1)
    return load_ensemble(agent or shipped, cache)
