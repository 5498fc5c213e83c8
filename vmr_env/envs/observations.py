"""What an agent sees: named components, side by side in one flat vector or as a `Dict`.

| component | shape | what |
|---|---|---|
| `remaining` | (1,) | share of the horizon that is left |
| `video` | (1,) | logarithm of the video's length in clips |
| `span` | (4,) | start, end, width, logarithm of the length in clips |
| `source` | (P,) | which proposal the span came from, one-hot |
| `overlaps` | (P,) | tIoU of the span with each proposal |
| `positions` | (2K,) | where the K candidates of the start and the K of the end are (K = 7 by default) |
| `points` | (2K, 14) | what is known of each of them (`POINT_FEATURES`) |
| `whole` | (4,) | integral of each curve over the whole video (`CURVES`) |
| `inside` | (7,) | what lies inside the span (`INSIDE_FEATURES`) |
| `proposals` | (P, 34) | all that is known of each proposal (`SPAN_FEATURES`), zeros where there is none |
| `models` | (P, M) | which model each proposal came from, one-hot (pools only) |
| `decoder_state` | (D,) | decoder state of the proposal the span came from (caches with states only) |
| `proposal_states` | (P, D) | decoder state of each proposal (where `components` names it only) |
| `text` | (X,) | sentence vector (caches with text only) |
| `point_clips` | (2K, 3, C) | clip features at each candidate (`POINT_PARTS`; caches with clips only) |
| `proposal_clips` | (P, 5, C) | clip features of each proposal (`SPAN_PARTS`; caches with clips only) |
| `relevance` | (A, 5) | relevance in and around the span each action leads to (caches with evidence only) |
| `span_evidence` | (A, 7) | what the distribution of all spans says of it (caches with evidence only) |
| `votes` | (A, 6M) | what each model thinks of that span (`VOTES`; where `components` names it only) |
| `action_mask` | (A,) | 1 for each action that is possible, else 0 (where `components` names it only) |

All values are finite float32 inside the declared bounds. The features are described in
`vmr_env.caches.boundary_features`, `vmr_env.caches.clip_sums` and `vmr_env.caches.evidence`;
`vmr_env.envs.kernel` and `vmr_env.envs.components` write them.
`register_component` adds one of your own. Clip features are worth having, and make observations wide: 23,552
numbers of C = 256 channels and P = 10 proposals. Naming the other components leaves them out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vmr_env.arrays import Floats
from vmr_env.caches.boundary_features import CURVES, INSIDE_FEATURES, POINT_FEATURES, SPAN_FEATURES
from vmr_env.caches.clip_sums import POINT_PARTS, SPAN_PARTS
from vmr_env.caches.evidence import RELEVANCE, SPAN_EVIDENCE
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.actions import ActionMode
from vmr_env.envs.components import VOTES
from vmr_env.envs.lookup import Registry

if TYPE_CHECKING:
    from vmr_env.envs.episodes import Episodes

STATE_BOUND = 65504.0
"""Largest float16: bound of decoder states, sentence vectors and clip features."""


@dataclass(frozen=True)
class Component:
    """A part of the observation.

    Attributes:
        shape: of one episode's; values are float32.
        low: lower bound, finite.
        high: upper bound, finite.
        look_up: from the episodes, the component of all N of them: (N, *shape). The environments call it once
            after each step. None for those that are compiled.
    """

    shape: tuple[int, ...]
    low: float = -1.0
    high: float = 1.0
    look_up: Callable[["Episodes"], Any] | None = None


COMPONENTS: Registry[Component] = Registry("observation component", {}, Component)
"""Components from outside of the package; `components` names them beside those of the package."""


def register_component(
    name: str,
    shape: tuple[int, ...],
    look_up: Callable[["Episodes"], Any],
    low: float = -1.0,
    high: float = 1.0,
) -> None:
    """Add a component that the environments' argument `components` can name; arguments are `Component`'s.

    Worker processes know it too where the call stands in a plugin (`vmr_env.plugins`). Without one,
    `components` takes `"module:name"` of a `Component`.

    Raises:
        ValueError: another component has that name.
    """
    COMPONENTS.add(name, Component(shape, low, high, look_up))


LENGTH_BOUND = 3.0
"""Bound of components with lengths in clips, by `log_length`: that of 2^31 clips, more than caches count."""

UNASKED = ("action_mask", "proposal_states", "votes")
"""Components that are shown only where `components` names them."""


class Observer:
    """Where the chosen components stand in an observation.

    Args:
        cache: where the samples come from.
        mode: the action mode.
        proposals: P, how many proposals are shown.
        components: names, in the order in which they stand; None for all that the cache has.

    Attributes:
        shapes: shape of each component.
        slices: where each component stands in the flat vector.
        width: length of the flat vector.
        stay: number of the candidate at which a boundary stays where it is.

    Raises:
        ValueError: a component is unknown, named twice, or not in this cache.
    """

    def __init__(
        self,
        cache: DecoderStateCache,
        mode: ActionMode,
        proposals: int,
        components: Sequence[str] | None = None,
    ) -> None:
        known = _components_of(cache, mode, proposals)
        if taken := sorted(known.keys() & set(COMPONENTS)):
            raise ValueError(
                f"observation component {taken[0]!r} is the package's own, register another name"
            )
        if components is None:
            components = [name for name in known if name not in UNASKED]
        if isinstance(components, str):
            raise ValueError(f"components is {components!r}, expected a list of names: [{components!r}]")
        if not components:
            raise ValueError(f"components is empty, expected some of {', '.join(known)}")
        chosen = {
            _key(name): known[name] if name in known else COMPONENTS.get(name, known) for name in components
        }
        if len(chosen) != len(components):
            raise ValueError(f"components names one twice: {', '.join(components)}")
        self._components = chosen
        self._looked_up = {name: part.look_up for name, part in chosen.items() if part.look_up is not None}
        self.stay = mode.moves.stay
        self.shapes = {name: part.shape for name, part in chosen.items()}
        self.slices: dict[str, slice] = {}
        self.width = 0
        for name, shape in self.shapes.items():
            self.slices[name] = slice(self.width, self.width + math.prod(shape))
            self.width += math.prod(shape)

    def columns(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Where compiled components begin, -1 where they are left out."""
        found = [
            self.slices[name].start if name in self.slices and name not in self._looked_up else -1
            for name in names
        ]
        return np.array(found, np.int64)

    def space(self, flat: bool) -> spaces.Space[Any]:
        """Observation space of one episode: a `Box`, or a one-level `Dict` with a key per component."""
        boxes: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(part.low, part.high, part.shape, np.float32)
            for name, part in self._components.items()
        }
        if not flat:
            return spaces.Dict(boxes)
        low, high = (
            np.concatenate([getattr(box, end).ravel() for box in boxes.values()]) for end in ("low", "high")
        )
        return spaces.Box(low, high)

    def split(self, flat: Floats) -> dict[str, Floats]:
        """The components of flat observations (..., width), as fresh arrays."""
        return {
            name: flat[..., part].reshape(*flat.shape[:-1], *self.shapes[name]).copy()
            for name, part in self.slices.items()
        }

    def look_up(self, episodes: "Episodes", out: Floats) -> None:
        """Write the components from outside of the package into flat observations (N, width).

        Raises:
            ValueError: one has another shape than it declares.
        """
        for name, look_up in self._looked_up.items():
            found = np.asarray(look_up(episodes))
            if found.shape != (len(out), *self.shapes[name]):
                expected = f"expected {(len(out), *self.shapes[name])}"
                raise ValueError(f"observation component {name!r} has shape {found.shape}, {expected}")
            out[:, self.slices[name]] = found.reshape(len(out), -1)


def _key(name: str) -> str:
    """The name of a component, of `"module:name"` the last part."""
    return name.rpartition(":")[2] if isinstance(name, str) else name


def _components_of(cache: DecoderStateCache, mode: ActionMode, proposals: int) -> dict[str, Component]:
    """All compiled components that a cache has."""
    models, candidates = len(cache.manifest["models"]), 2 * mode.probes
    found = {
        "remaining": Component((1,)),
        "video": Component((1,), high=LENGTH_BOUND),
        "span": Component((4,), high=LENGTH_BOUND),
        "source": Component((proposals,)),
        "overlaps": Component((proposals,)),
        "positions": Component((candidates,)),
        "points": Component((candidates, len(POINT_FEATURES))),
        "whole": Component((len(CURVES),)),
        "inside": Component((len(INSIDE_FEATURES),)),
        "proposals": Component((proposals, len(SPAN_FEATURES)), high=LENGTH_BOUND),
    }
    if models > 1:
        found["models"] = Component((proposals, models))
    if cache.states is not None:
        found["decoder_state"] = _of_any_scale(cache.states.shape[2])
        found["proposal_states"] = _of_any_scale(proposals, cache.states.shape[2])
    if cache.text is not None:
        found["text"] = _of_any_scale(cache.text.shape[1])
    if cache.clips is not None:
        width = cache.clips.values.shape[1]
        found["point_clips"] = _of_any_scale(candidates, len(POINT_PARTS), width)
        found["proposal_clips"] = _of_any_scale(proposals, len(SPAN_PARTS), width)
    if cache.relevance is not None:
        found["relevance"] = Component((mode.size, len(RELEVANCE)))
        found["span_evidence"] = Component((mode.size, len(SPAN_EVIDENCE)))
    found["votes"] = Component((mode.size, models * len(VOTES)))
    return found | {"action_mask": Component((mode.size,), low=0.0)}


def _of_any_scale(*shape: int) -> Component:
    return Component(shape, -STATE_BOUND, STATE_BOUND)
