"""An episode in the terminal, moved by keys, and scored against an agent at its end."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from vmr_env.envs.env import VMREnv
from vmr_env.rendering.ansi import TEXT_COLUMNS, Scene, render_ansi

if TYPE_CHECKING:
    from vmr_env.agents.ensemble.cross_fitting import CrossFittedEnsemble

CLIPS = ("1", "3", "8")
"""Keys that set how many clips a move goes; the moves that the environment has."""

_ARROWS = {
    **dict.fromkeys(("\x1b[A", "\x1bOA", "\xe0H"), "up"),
    **dict.fromkeys(("\x1b[B", "\x1bOB", "\xe0P"), "down"),
    **dict.fromkeys(("\x1b[C", "\x1bOC", "\xe0M"), "right"),
    **dict.fromkeys(("\x1b[D", "\x1bOD", "\xe0K"), "left"),
}
"""What terminals send for arrows, of Unix in two modes and of Windows."""

_ONE_KEY = re.compile("|".join(map(re.escape, _ARROWS)) + r"|.", re.DOTALL)
_DIRECTIONS = {
    "left": (-1, -1),
    "right": (1, 1),
    "a": (-1, 0),
    "s": (1, 0),
    "k": (0, -1),
    "l": (0, 1),
}
_SWITCHES = {"down": 1, "up": -1, "n": 1, "p": -1}
_STOPS = (".", "\r", "\n")
_QUITS = ("q", "\x1b", "")  # the last where the input ends

YOU, DETECTOR, AGENT = "you", "detector", "agent"


class Scores:
    """Who has come how near to the truth, in the episodes so far.

    Args:
        env: where they are played.
        agent: who plays against the person; None for the detector alone.
    """

    def __init__(self, env: VMREnv, agent: "CrossFittedEnsemble | None") -> None:
        self._env, self._agent = env, agent
        names = (YOU, DETECTOR) if agent is None else (YOU, DETECTOR, AGENT)
        self._tious: dict[str, list[float]] = {name: [] for name in names}

    def count(self, info: Mapping[str, Any], start: float) -> str:
        """Count an episode, with its last info and the tIoU of the detector; what there is to say of it."""
        now = {YOU: float(info["tiou"]), DETECTOR: start}
        if self._agent is not None:
            from vmr_env.agents.evaluation import refine

            rows = np.array([info["sample"]])
            now[AGENT] = float(refine(self._agent.act, self._env.cache, rows, self._agent.options).after[0])
        for name, tiou in now.items():
            self._tious[name].append(tiou)
        count = len(self._tious[YOU])
        means = {name: float(np.mean(tious)) for name, tious in self._tious.items()}
        of_all = f" Mean of {count} episodes: {_listed(means)}." if count > 1 else ""
        return f"Over. tIoU: {_listed(now)}.{of_all}"


def play_episodes(
    env: VMREnv,
    seed: int | None,
    qid: str | None,
    keys: Mapping[str, str],
    agent: "CrossFittedEnsemble | None" = None,
) -> None:
    """Play until the person quits.

    Args:
        env: with discrete actions and `render_mode="ansi"`.
        seed: of the first reset.
        qid: query to begin with; None for a random one.
        keys: what is said of the keys.
        agent: who plays against the person.

    Raises:
        DataError: there is no such query.
        OSError: there is no terminal to read keys from.
    """
    actions = {name: number for number, name in enumerate(env.get_action_meanings())}
    scores = Scores(env, agent)
    source = f"Source of the data: {env.cache.manifest['source']}."
    clips, over, said = "1", False, source
    _, info = env.reset(seed=seed, options=None if qid is None else {"qid": qid})
    start = float(info["tiou"])
    pressed = _pressed()
    while True:
        click.clear()
        click.echo(_screen(env, said, keys, clips, truth=over), nl=False)
        key = next(pressed)
        if key in _QUITS:
            click.echo()
            return
        if key == "r":
            _, info = env.reset()
            start, over, said = float(info["tiou"]), False, source
        elif key in CLIPS:
            clips, said = key, ""
        elif over:
            said = "The episode is over. Press r for another episode."
        elif (name := _name(key, int(clips), env, actions)) is None:
            said = f"{key!r} is no key."
        elif not info["action_mask"][actions[name]]:
            said = f"Not possible now: {_words(name)}."
        else:
            _, _, over, _, info = env.step(actions[name])
            said = f"{_words(name)}."
            if over:
                said = f"{said} {scores.count(info, start)} Press r for another episode."


def _pressed() -> Iterator[str]:
    """Keys, one by one, also those that were pressed in quick succession and come together."""
    while True:
        read = click.getchar()
        found: list[str] = _ONE_KEY.findall(read) or [read]
        yield from (_ARROWS.get(key, key) for key in found)


def _screen(env: VMREnv, said: str, keys: Mapping[str, str], clips: str, *, truth: bool) -> str:
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
    return "\n".join([render_ansi(scene, width, truth=truth), *below])


def _words(name: str) -> str:
    """An action without the boundary that it leaves alone."""
    return name.replace("start +0, ", "").replace(", end +0", "")


def _name(key: str, clips: int, env: VMREnv, actions: Mapping[str, int]) -> str | None:
    """Name of the action of a key."""
    if key in _STOPS:
        return "stop"
    if key in _DIRECTIONS:
        start, end = (clips * direction for direction in _DIRECTIONS[key])
        return f"start {start:+g}, end {end:+g} clips"
    if key in _SWITCHES:
        count = int(env.cache.counts[env.episodes.samples[0]])
        shown = min(count, env.episodes.task.proposals)
        return f"switch to proposal {(int(env.episodes.sources[0]) + _SWITCHES[key]) % shown + 1}"
    return None


def _listed(tious: Mapping[str, float]) -> str:
    """Names and tIoUs, the best first."""
    ordered = sorted(tious.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {tiou:.2f}" for name, tiou in ordered)
