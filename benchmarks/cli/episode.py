"""An episode in the terminal, moved by keys."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import click
import numpy as np

from vmr_env.envs.env import VMREnv
from vmr_env.rendering.ansi import TEXT_COLUMNS, Scene, render_ansi

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
    actions = {name: number for number, name in enumerate(env.get_action_meanings())}
    source = f"Source of the data: {env.cache.manifest['source']}."
    clips, over, said, total = "1", False, source, 0.0
    _, info = env.reset(seed=seed, options=None if qid is None else {"qid": qid})
    pressed = _pressed()
    while True:
        click.clear()
        click.echo(_screen(env, said, keys, clips), nl=False)
        key = next(pressed)
        if key in ("q", "\x1b", ""):  # the last where the input ends
            click.echo()
            return
        if key == "r":
            _, info = env.reset()
            over, said, total = False, source, 0.0
        elif key in CLIPS:
            clips, said = key, ""
        elif over:
            said = f"{_outcome(info, total)} Press r for another episode."
        elif (name := _name(key, int(clips), env, actions)) is None:
            said = f"{key!r} is no key."
        elif not info["action_mask"][actions[name]]:
            said = f"Not possible now: {_words(name)}."
        else:
            _, reward, over, _, info = env.step(actions[name])
            total += float(reward)
            said = f"{_words(name)}: reward {float(reward):+.3f}."
            if over:
                said = f"{said} {_outcome(info, total)} Press r for another episode."


def _pressed() -> Iterator[str]:
    """Keys, one by one, also those that were pressed in quick succession and come together."""
    while True:
        read = click.getchar()
        yield from [read] if read[:1] in ("", "\x1b") else read


def _screen(env: VMREnv, said: str, keys: Mapping[str, str], clips: str) -> str:
    """The episode, what there is to say, and the keys; as many proposals as the terminal has lines for."""
    width, height = shutil.get_terminal_size((TEXT_COLUMNS, 40))
    width = max(min(width, TEXT_COLUMNS), 60)
    scene = Scene.of(env.episodes, env.trajectory)
    unbroken = [f"[{key}] {what}".replace(" ", "\xa0") for key, what in keys.items()]
    moves = f"({clips} now)".replace(" ", "\xa0")
    below = [*textwrap.wrap(said, width)] or [""]
    below += [line.replace("\xa0", " ") for line in textwrap.wrap("   ".join([*unbroken, moves]), width)]
    rest = len(render_ansi(scene, width).split("\n")) - len(scene.proposals) + len(below)
    shown = max(height - rest, 1)
    scene = replace(scene, proposals=scene.proposals[:shown], scores=scene.scores[:shown])
    return "\n".join([render_ansi(scene, width), *below])


def _words(name: str) -> str:
    """An action without the boundary that it leaves alone."""
    return name.replace("start +0, ", "").replace(", end +0", "")


def _name(key: str, clips: int, env: VMREnv, actions: Mapping[str, int]) -> str | None:
    """Name of the action of a key."""
    if key == ".":
        return "stop"
    if key in _DIRECTIONS:
        start, end = (clips * direction for direction in _DIRECTIONS[key])
        return f"start {start:+g}, end {end:+g} clips"
    if key in _SWITCHES:
        count = int(env.cache.counts[env.episodes.samples[0]])
        shown = min(count, env.episodes.task.proposals)
        return f"switch to proposal {(int(env.episodes.sources[0]) + _SWITCHES[key]) % shown + 1}"
    return None


def _outcome(info: Mapping[str, Any], total: float) -> str:
    start, end = np.round(info["span"], 1)
    return f"Over: {start}–{end} s, tIoU {info['tiou']:.2f}, {total:+.3f} in all."
