"""What an agent sees: named components, side by side in one flat vector or as a `Dict`.

| component | shape | what |
|---|---|---|
| `remaining` | (1,) | share of the horizon that is left |
| `video` | (1,) | logarithm of the video's length in clips |
| `span` | (4,) | start, end, width, logarithm of the length in clips |
| `source` | (P,) | which proposal the span came from, one-hot |
| `overlaps` | (P,) | tIoU of the span with each proposal |
| `positions` | (14,) | where the 7 probes of the start and the 7 of the end are |
| `points` | (14, 14) | what the timeline says at each of them (`POINT_FEATURES`) |
| `whole` | (4,) | integral of each curve over the whole video (`CURVES`) |
| `inside` | (7,) | what lies inside the span (`INSIDE_FEATURES`) |
| `proposals` | (P, 34) | all that is known of each proposal (`SPAN_FEATURES`), zeros where there is none |
| `models` | (P, M) | which model each proposal came from, one-hot (pools only) |
| `decoder_state` | (D,) | decoder state of the proposal the span came from (caches with states only) |
| `text` | (X,) | sentence vector (caches with text only) |

All values are finite float32 inside the declared bounds. The features are described in `vmr_env.timeline`.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vmr_env.actions import PROBES
from vmr_env.cache import DecoderStateCache
from vmr_env.timeline import (
    CELLS,
    CURVES,
    INSIDE_FEATURES,
    INTEGRALS,
    POINT_FEATURES,
    SPAN_FEATURES,
    Timelines,
    cell_of,
    inside_features,
    log_length,
)

Array = NDArray[Any]
Floats = NDArray[np.float32]

STATE_BOUND = 65504.0
"""Largest float16: bound of decoder states and sentence vectors."""


class View(NamedTuple):
    """What there is to see of N episodes."""

    samples: Array
    """(N,), rows of the cache."""
    spans: Floats
    """(N, 2), current spans."""
    sources: Array
    """(N,), the proposals they came from."""
    remaining: Floats
    """(N,), share of the horizon that is left."""
    clip: Floats
    """(N,), length of a clip as a share of the video."""
    proposals: Floats
    """(N, P, 2)."""
    positions: Floats
    """(2, PROBES, N), where the boundaries could go."""


class Observer:
    """Assembles observations from the chosen components.

    Args:
        cache: where the samples come from.
        timelines: of its samples, see `vmr_env.timeline`.
        proposals: P, how many proposals are shown.
        components: names, in the order in which they stand; None for all that the cache has.

    Attributes:
        shapes: shape of each component.
        slices: where each component stands in the flat vector.
        width: length of the flat vector.

    Raises:
        ValueError: a component is unknown, named twice, or not in this cache.
    """

    def __init__(
        self,
        cache: DecoderStateCache,
        timelines: Timelines,
        proposals: int,
        components: Sequence[str] | None = None,
    ) -> None:
        models = len(cache.manifest["models"])
        known: dict[str, tuple[tuple[int, ...], Callable[[Floats, View], None]]] = {
            "remaining": ((1,), self._remaining),
            "video": ((1,), self._video),
            "span": ((4,), self._span),
            "source": ((proposals,), self._source),
            "overlaps": ((proposals,), self._overlaps),
            "positions": ((2 * PROBES,), self._positions),
            "points": ((2 * PROBES, len(POINT_FEATURES)), self._points),
            "whole": ((len(CURVES),), self._whole),
            "inside": ((len(INSIDE_FEATURES),), self._inside),
            "proposals": ((proposals, len(SPAN_FEATURES)), self._proposals),
        }
        if models > 1:
            known["models"] = ((proposals, models), self._models)
        if cache.states is not None:
            known["decoder_state"] = ((cache.states.shape[2],), self._decoder_state)
        if cache.text is not None:
            known["text"] = ((cache.text.shape[1],), self._text)
        names = list(known) if components is None else list(components)
        _check_components(names, list(known))

        self.shapes = {name: known[name][0] for name in names}
        self.slices: dict[str, slice] = {}
        self.width = 0
        for name, shape in self.shapes.items():
            self.slices[name] = slice(self.width, self.width + int(np.prod(shape)))
            self.width = self.slices[name].stop
        self._writers = [(known[name][1], self.slices[name]) for name in names]
        self._cache, self._n_models = cache, models
        self._slots = np.arange(proposals)
        self._point_rows = timelines.points.reshape(-1, len(POINT_FEATURES))
        self._proposal_rows = timelines.proposals[:, :proposals].reshape(len(cache), -1)

    def space(self, flat: bool) -> spaces.Space[Any]:
        """Observation space of one episode: a `Box`, or a one-level `Dict` with a key per component."""
        boxes = {}
        for name, shape in self.shapes.items():
            bound = STATE_BOUND if name in ("decoder_state", "text") else 1.0
            boxes[name] = spaces.Box(-bound, bound, shape, np.float32)
        if not flat:
            return spaces.Dict(boxes)
        low = np.concatenate([box.low.ravel() for box in boxes.values()])
        return spaces.Box(low, -low, dtype=np.float32)

    def write(self, out: Floats, view: View) -> None:
        """Fill `out` (N, width) with the flat observations of N episodes."""
        for writer, part in self._writers:
            writer(out[:, part], view)

    def split(self, flat: Floats) -> dict[str, Floats]:
        """The components of flat observations (..., width), as fresh arrays."""
        return {
            name: flat[..., part].reshape(*flat.shape[:-1], *self.shapes[name]).copy()
            for name, part in self.slices.items()
        }

    def _remaining(self, out: Floats, view: View) -> None:
        out[:, 0] = view.remaining

    def _video(self, out: Floats, view: View) -> None:
        out[:, 0] = log_length(1 / view.clip)

    def _span(self, out: Floats, view: View) -> None:
        width = view.spans[:, 1] - view.spans[:, 0]
        out[:, :2] = view.spans
        out[:, 2] = width
        out[:, 3] = log_length(width / view.clip)

    def _source(self, out: Floats, view: View) -> None:
        np.equal(view.sources[:, None], self._slots, out=out, casting="unsafe")

    def _overlaps(self, out: Floats, view: View) -> None:
        low, high = view.proposals[..., 0], view.proposals[..., 1]
        start, end = view.spans[:, :1], view.spans[:, 1:]
        common = np.minimum(end, high)
        common -= np.maximum(start, low)
        np.maximum(common, 0, out=common)
        union = high - low
        union += end - start
        union -= common
        np.maximum(union, np.float32(1e-9), out=union)  # two empty spans overlap by 0
        np.divide(common, union, out=out)

    def _positions(self, out: Floats, view: View) -> None:
        out[:] = view.positions.reshape(-1, len(out)).T

    def _points(self, out: Floats, view: View) -> None:
        rows = cell_of(view.positions)
        rows += view.samples * (CELLS + 1)
        out[:] = self._point_rows.take(rows.reshape(-1, len(out)).T, axis=0).reshape(out.shape)

    def _whole(self, out: Floats, view: View) -> None:
        out[:] = self._point_rows.take(view.samples * (CELLS + 1) + CELLS, axis=0)[:, INTEGRALS]

    def _inside(self, out: Floats, view: View) -> None:
        first = (view.samples * (CELLS + 1))[:, None]
        at = self._point_rows.take(first + cell_of(view.spans), axis=0)[..., INTEGRALS]
        whole = self._point_rows.take(first[:, 0] + CELLS, axis=0)[:, INTEGRALS]
        inside_features(out, at[:, 1] - at[:, 0], view.spans[:, 1] - view.spans[:, 0], whole)

    def _proposals(self, out: Floats, view: View) -> None:
        out[:] = self._proposal_rows.take(view.samples, axis=0)

    def _models(self, out: Floats, view: View) -> None:
        models = self._cache.models[view.samples, : len(self._slots), None]
        exists = self._slots < self._cache.counts[view.samples, None]
        onehot = (models == np.arange(self._n_models)) & exists[..., None]
        out[:] = onehot.reshape(out.shape)

    def _decoder_state(self, out: Floats, view: View) -> None:
        assert self._cache.states is not None
        out[:] = self._cache.states[view.samples, view.sources]

    def _text(self, out: Floats, view: View) -> None:
        assert self._cache.text is not None
        out[:] = self._cache.text[view.samples]


def _check_components(names: list[str], known: list[str]) -> None:
    if not names:
        raise ValueError(f"components is empty, expected some of {', '.join(known)}")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"No observation component {name!r} with this cache.{hint} Known: {', '.join(known)}."
            )
    if len(set(names)) != len(names):
        raise ValueError(f"components names one twice: {', '.join(names)}")
