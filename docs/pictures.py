"""Moving pictures of the environments, for the pages and the README: python docs/pictures.py

Each shows one episode whose every step is the best of many. They are found by the ground truth, which agents
do not see.
"""

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).parent / "images"
SAMPLE = 91
"""Row of the validation split that the pictures show."""
NAMES = ("VMR-Charades-v0", "VMR-Charades-Continuous-v0", "VMR-Charades-MultiDiscrete-v0")
TRIES = 60
MILLISECONDS = (1200, 2500)
"""How long a step is shown, and the last one."""


def tiou_after(name: str, sample: int, actions: list[Any]) -> float:
    """TIoU after the given actions."""
    env = gymnasium.make(f"vmr_env:{name}", split="val")
    _, info = env.reset(seed=0, options={"sample": sample})
    for action in actions:
        *_, info = env.step(action)
    return float(info["tiou"])


def best_actions(name: str, sample: int) -> list[Any]:
    """An episode of best steps; of equally good ones the last tried."""
    env = gymnasium.make(f"vmr_env:{name}", split="val")
    env.reset(seed=0, options={"sample": sample})
    env.action_space.seed(0)
    discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
    actions: list[Any] = []
    over = False
    while not over:
        tries = range(env.action_space.n) if discrete else [env.action_space.sample() for _ in range(TRIES)]
        gains = [tiou_after(name, sample, [*actions, action]) for action in tries]
        actions.append(tries[len(gains) - 1 - int(np.argmax(gains[::-1]))])
        *_, terminated, truncated, _ = env.step(actions[-1])
        over = terminated or truncated
    return actions


def dark(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame (H, W, 3) for dark pages: lightness turned around, and not its hues.

    As `invert(0.9) hue-rotate(180deg)` of style sheets (W3C, Filter Effects).
    """
    turned = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])
    inverted = 0.9 - 0.8 * (frame / 255)
    return np.rint((inverted @ turned.T).clip(0, 1) * 255).astype(np.uint8)


def frames_of(name: str, sample: int) -> list[NDArray[np.uint8]]:
    """A frame of the start, and one after each step."""
    env = gymnasium.make(f"vmr_env:{name}", split="val", render_mode="rgb_array")
    env.reset(seed=0, options={"sample": sample})
    frames = [env.render()]
    for action in best_actions(name, sample):
        env.step(action)
        frames.append(env.render())
    return frames


def save(path: Path, frames: list[NDArray[np.uint8]]) -> None:
    """Write a moving picture."""
    first, *others = (
        Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE, colors=32) for frame in frames
    )
    durations = [MILLISECONDS[0]] * len(others) + [MILLISECONDS[1]]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)
    print(path.name, len(frames), "frames")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in NAMES:
        frames = frames_of(name, SAMPLE)
        save(FOLDER / f"{name}.gif", frames)
        if name == NAMES[0]:  # that of the README, which has no style sheet
            save(FOLDER / f"{name}-dark.gif", [dark(frame) for frame in frames])
