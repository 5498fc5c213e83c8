"""An episode in the terminal, moved by keys."""

from collections.abc import Mapping
from typing import Any

import click
import numpy as np

from vmr_env.actions import DiscreteActions
from vmr_env.env import VMREnv

CLIPS = ("1", "3", "8")
"""Keys that set how many clips a move goes; the moves that the environment has."""

_DIRECTIONS = {"a": (-1, 0), "s": (1, 0), "k": (0, -1), "l": (0, 1)}
_SWITCHES = {"n": 1, "p": -1}


def play_episodes(env: VMREnv, seed: int | None, qid: str | None, keys: Mapping[str, str]) -> None:
    """Play until the person quits.

    Args:
        env: with discrete actions and `render_mode="ansi"`.
        seed: of the first reset.
        qid: query to begin with; None for a random one.
        keys: what is said of the keys.

    Raises:
        DataError: there is no such query.
        OSError: there is no terminal to read keys from.
    """
    assert isinstance(env.action_mode, DiscreteActions)
    actions = {name: number for number, name in enumerate(env.action_mode.names())}
    clips, over, said, total = "1", False, "", 0.0
    _, info = env.reset(seed=seed, options=None if qid is None else {"qid": qid})
    while True:
        click.clear()
        click.echo(env.render())
        click.echo(f"\n{said}")
        click.echo("   ".join(f"[{key}] {what}" for key, what in keys.items()) + f"   ({clips} now)")
        key = click.getchar()
        if key in ("q", "\x1b", ""):  # the last where the input ends
            return
        if key == "r":
            _, info = env.reset()
            over, said, total = False, "", 0.0
        elif key in CLIPS:
            clips, said = key, ""
        elif over:
            said = f"{_outcome(info, total)} Press r for another episode."
        elif (name := _name(key, int(clips), env, actions)) is None:
            said = f"{key!r} is no key."
        elif not info["action_mask"][actions[name]]:
            said = f"Not possible now: {name}."
        else:
            _, reward, over, _, info = env.step(actions[name])
            total += float(reward)
            said = f"{name}: reward {float(reward):+.3f}."
            if over:
                said = f"{said} {_outcome(info, total)} Press r for another episode."


def _name(key: str, clips: int, env: VMREnv, actions: Mapping[str, int]) -> str | None:
    """Name of the action that a key stands for."""
    if key == ".":
        return "stop"
    if key in _DIRECTIONS:
        start, end = (clips * direction for direction in _DIRECTIONS[key])
        return f"start {start:+g}, end {end:+g} clips"
    if key in _SWITCHES:
        count = int(env.cache.counts[env.episode.sample])
        shown = min(count, len(env.episode.proposals))
        return f"switch to proposal {(env.episode.source + _SWITCHES[key]) % shown + 1}"
    return None


def _outcome(info: Mapping[str, Any], total: float) -> str:
    start, end = np.round(info["span"], 1)
    return f"Over: {start}–{end} s, tIoU {info['tiou']:.2f}, {total:+.3f} in all."
