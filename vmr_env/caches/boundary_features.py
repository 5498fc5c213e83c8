"""The timeline of a sample: what its proposals and its saliency curve say about every point of the video.

What an agent observes about a span is looked up here at the span's two boundaries, so that the cost of an
observation does not grow with the number of proposals or models. This module says what a timeline holds;
`vmr_env.envs.timelines` computes it.

A timeline has one row for each boundary of the `CELLS` equal cells that the video is cut into. All values lie
in [-1, 1], and those below 1e-9 are 0. Saliency is on no common scale among detectors, so it enters as
tanh(z / 2), z being its z-score, linear between the middles of clips.
"""

import numpy as np

from vmr_env.arrays import Numbers

CELLS = 128

KERNELS = (1.0, 2.5)
"""Standard deviations of the density kernels (Gaussian, at most 1), in clips; at least half a cell."""

EDGE_CLIPS = 3
"""Clips before and after a boundary whose saliency is compared."""

CURVES = ("coverage by score", "coverage by root", "coverage by models", "saliency")
"""Curves over the video: share of the proposals that cover a point, weighted by score or by its square root;
share of the models whose first proposal covers it; saliency."""

POINT_FEATURES = (
    *(
        f"{side} density within {clips:g} clips by {weight}"
        for side in ("start", "end")
        for clips in KERNELS
        for weight in ("score", "root")
    ),
    *("saliency before", "saliency after"),
    *(f"integral of {curve}" for curve in CURVES),
)
"""What the timeline says about a point: near how many of the proposals' starts and ends it lies, weighted by
score or by its square root, each normalised to sum 1 over the proposals; the mean saliency of the
`EDGE_CLIPS` clips on either side; and the integral of each curve from the video's start."""

INTEGRALS = slice(len(POINT_FEATURES) - len(CURVES), len(POINT_FEATURES))
"""The last columns of a point."""

INSIDE_FEATURES = (
    *(f"mean {curve} inside" for curve in CURVES),
    *(f"share of {curve} inside" for curve in CURVES[:3]),
)
"""Features of the inside of a span: mean of each curve, and its integral as a share of the whole video's."""

SPAN_FEATURES = (
    *(f"at the start: {name}" for name in POINT_FEATURES[: INTEGRALS.start]),
    *(f"at the end: {name}" for name in POINT_FEATURES[: INTEGRALS.start]),
    *INSIDE_FEATURES,
    *("start", "end", "width", "log length"),
    *("score", "logit of score", "rank"),
)
"""All that is known of a proposal."""

_LOG_CLIPS = np.float32(np.log1p(1500.0))  # longest videos: 1,402 clips (TACoS)

FLOOR = np.float32(1e-3)
"""Least integral over a video that shares are taken of, and least probability of logits."""

SHORTEST = np.float32(1 / CELLS)
"""Least width that means are taken over."""


def log_length(clips: Numbers) -> Numbers:
    """Length in clips on a logarithmic scale, in [0, 1] up to 1,500 clips: any shape."""
    logarithm: Numbers = np.log(clips + np.float32(1)) / _LOG_CLIPS
    return logarithm


def length_of(logarithm: Numbers) -> Numbers:
    """Length in clips whose `log_length` is given: any shape."""
    clips: Numbers = np.exp(logarithm * _LOG_CLIPS) - np.float32(1)
    return clips
