"""What actions do, what they earn and what is seen of it, against slow models of the documentation."""

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from caches import make_cache
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from refinement import user_cache_in

from vmr_env.caches.boundary_features import CURVES, INSIDE_FEATURES, KERNELS, POINT_FEATURES, SPAN_FEATURES
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.actions import COARSE_TO_FINE, MOVES
from vmr_env.envs.curriculum import STAGES
from vmr_env.envs.env import VMREnv
from vmr_env.envs.rewards import BUILT_IN, potentials
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.metrics import spans as span_functions

Span = tuple[float, float]

SAMPLES, PROPOSALS, HORIZON = 24, 4, 6
NEAR = 2e-6
"""Float32 rounding of positions in [0, 1]."""

samples = st.integers(0, SAMPLES - 1)
starts = st.integers(0, PROPOSALS - 1)
quick = settings(max_examples=30, deadline=None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cache of two models with saliency; its environments are made once (`environment`)."""
    with user_cache_in(tmp_path_factory.mktemp("dynamics")) as folder:
        yield str(make_cache(folder / "cache", SAMPLES, q=PROPOSALS, seed=4))


@cache
def environment(source: str, stage: int = 3, reward: str | None = None, actions: str = "discrete") -> VMREnv:
    return VMREnv(source=source, stage=stage, reward=reward, actions=actions, horizon=HORIZON)


def names_of(env: VMREnv) -> list[str]:
    return env.get_action_meanings()


def begin(env: VMREnv, sample: int, start: int) -> tuple[NDArray[Any], dict[str, Any], int]:
    """Observation, info and number of the first proposal."""
    start %= int(env.cache.counts[sample])
    return *env.reset(seed=0, options={"sample": sample, "start": start}), start


def span_in(env: VMREnv, observation: NDArray[Any]) -> Span:
    start, end = observation[env.observer.slices["span"]][:2]
    return float(start), float(end)


def clip_of(env: VMREnv, sample: int) -> float:
    """Length of a clip as a share of the video."""
    return float(env.cache.manifest["clip_seconds"]) / float(env.cache.durations[sample])


def moments_of(cache: DecoderStateCache, sample: int) -> list[Span]:
    return [(float(start), float(end)) for start, end in cache.moments[sample]]


# Slow models


def slow_tiou(a: Span, b: Span) -> float:
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - common
    return common / union if union > 0 else 0.0


def slow_giou(a: Span, b: Span) -> float:
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - common
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return common / union - (hull - union) / hull


def slow_potential(name: str, span: Span, moments: Sequence[Span]) -> float:
    tiou = max(slow_tiou(span, moment) for moment in moments)
    if name == "tiou":
        return tiou
    if name == "giou":
        return max(slow_giou(span, moment) for moment in moments)
    bonuses = {"step": {0.5: 0.5, 0.7: 0.5}, "tiou_step": {0.3: 0.1, 0.5: 0.2, 0.7: 0.3}}[name]
    earned = sum(bonus for threshold, bonus in bonuses.items() if tiou >= threshold)
    return earned + (tiou if name == "tiou_step" else 0.0)


def slow_move(span: Span, clips: tuple[float, float], clip: float) -> Span:
    """Both boundaries moved and kept in the video; the old span where too little is left."""
    moved = tuple(min(max(here + by * clip, 0.0), 1.0) for here, by in zip(span, clips, strict=True))
    too_short = moved[1] - moved[0] < min(clip, span[1] - span[0]) - 1e-6
    return span if too_short else (moved[0], moved[1])


def slow_possible(span: Span, clips: tuple[float, float], clip: float) -> bool:
    """Whether that move, of one boundary while the other stays, changes the span as far as it may."""
    moved = slow_move(span, clips, clip)
    return any(abs(here - there) > 1e-6 for here, there in zip(span, moved, strict=True))


def clips_of(name: str) -> tuple[float, float] | None:
    """The move that an action's name states."""
    match = re.fullmatch(r"start ([+-]\d+), end ([+-]\d+) clips", name)
    return (float(match[1]), float(match[2])) if match else None


def slow_mask(env: VMREnv, sample: int, span: Span, proposal: int) -> list[bool]:
    """Discrete actions that the documentation calls possible."""
    clip, free = clip_of(env, sample), STAGES[env.stage].free
    possible = []
    for name in names_of(env):
        clips = clips_of(name)
        if clips is not None:
            both = [one for one in ((clips[0], 0.0), (0.0, clips[1]), clips) if any(one)]
            possible.append("move" in free and all(slow_possible(span, one, clip) for one in both))
        elif name == "stop":
            possible.append("stop" in free)
        else:
            slot = int(name.removeprefix("switch to proposal ")) - 1
            here = slot == proposal and tuple(env.cache.spans[sample, slot].tolist()) == span
            possible.append("switch" in free and slot < env.cache.counts[sample] and not here)
    return possible


def assert_near(got: Span, expected: Span) -> None:
    assert got == pytest.approx(expected, abs=NEAR)


# Actions and rewards


def test_action_names_are_the_documented_actions(source: str) -> None:
    names = names_of(environment(source))
    moves = [(start, end) for start in (-8, -3, -1, 0, 1, 3, 8) for end in (-8, -3, -1, 0, 1, 3, 8)]
    moves.remove((0, 0))
    assert [clips_of(name) for name in names[:48]] == moves
    assert names[48:] == [*(f"switch to proposal {i}" for i in range(1, PROPOSALS + 1)), "stop"]
    assert environment(source).action_space == spaces.Discrete(len(names))
    assert MOVES == (-8, -3, -1, 0, 1, 3, 8)


@quick
@given(
    samples,
    starts,
    st.lists(st.integers(0, 47) | st.integers(48, 48 + PROPOSALS), min_size=1, max_size=HORIZON),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([None, *BUILT_IN]),
)
def test_discrete_steps_do_what_their_names_say(
    source: str, sample: int, start: int, actions: list[int], stage: int, reward: str | None
) -> None:
    env = environment(source, stage, reward)
    names = names_of(env)
    observation, info, proposal = begin(env, sample, start)
    span = first = span_in(env, observation)
    assert span == tuple(env.cache.spans[sample, proposal].tolist())
    moments, clip = moments_of(env.cache, sample), clip_of(env, sample)
    potential = reward or STAGES[stage].reward
    total = 0.0
    for step, action in enumerate(actions, 1):
        mask = info["action_mask"].astype(bool)
        assert mask.tolist() == slow_mask(env, sample, span, proposal)
        observation, earned, terminated, truncated, info = env.step(action)
        before, span = span, span_in(env, observation)
        clips = clips_of(names[action])
        if not mask[action]:
            assert span == before
            assert earned == 0
        elif clips is not None:
            assert_near(span, slow_move(before, clips, clip))
        elif names[action] == "stop":
            assert span == before
        else:
            proposal = action - 48
            assert span == tuple(env.cache.spans[sample, proposal].tolist())

        assert 0 <= span[0] <= span[1] <= 1
        if clips is not None:
            assert span[1] - span[0] >= min(clip, before[1] - before[0]) - NEAR
        stopped = names[action] == "stop" and bool(mask[action])
        assert terminated is (stopped or step == HORIZON)
        assert truncated is False
        assert info["tiou"] == pytest.approx(slow_potential("tiou", span, moments), abs=1e-5)
        remaining = observation[env.observer.slices["remaining"]]
        assert remaining == pytest.approx([1 - step / HORIZON])
        total += earned
        if not near_threshold(span, before, moments):
            gain = slow_potential(potential, span, moments) - slow_potential(potential, before, moments)
            assert earned == pytest.approx(gain, abs=1e-5)
        if terminated:
            seconds = np.array(span) * float(env.cache.durations[sample])
            np.testing.assert_allclose(info["span"], seconds, rtol=1e-6)
            assert info["proposal"] == proposal
            with pytest.raises(ResetNeeded):
                env.step(action)
            break
    if not near_threshold(first, span, moments):
        whole = slow_potential(potential, span, moments) - slow_potential(potential, first, moments)
        assert total == pytest.approx(whole, abs=1e-5)


def near_threshold(a: Span, b: Span, moments: Sequence[Span]) -> bool:
    """Whether float32 may see either tIoU on the other side of a bonus threshold."""
    tious = [slow_potential("tiou", span, moments) for span in (a, b)]
    return any(abs(tiou - threshold) < 1e-5 for tiou in tious for threshold in (0.3, 0.5, 0.7))


def test_coarse_to_fine_offsets_are_the_published_ones() -> None:
    assert COARSE_TO_FINE == (
        (-8, -4, -2, 0, 2, 4, 8),
        (-4, -2, -1, 0, 1, 2, 4),
        (-2, -1, -0.5, 0, 0.5, 1, 2),
    )


@quick
@given(
    samples, starts, st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=HORIZON)
)
def test_coarse_to_fine_steps(source: str, sample: int, start: int, actions: list[tuple[int, int]]) -> None:
    env = environment(source, actions="multidiscrete")
    observation, info, _ = begin(env, sample, start)
    span, clip = span_in(env, observation), clip_of(env, sample)
    for step, action in enumerate(actions):
        offsets = COARSE_TO_FINE[min(step, 2)]
        alone = [(offset, 0.0) for offset in offsets], [(0.0, offset) for offset in offsets]
        expected = [not any(clips) or slow_possible(span, clips, clip) for side in alone for clips in side]
        assert info["action_mask"].tolist() == expected
        possible = expected[action[0]], expected[7 + action[1]]
        clips = tuple(offsets[move] if may else 0.0 for move, may in zip(action, possible, strict=True))
        wanted = slow_move(span, (clips[0], clips[1]), clip)
        observation, _, terminated, _, info = env.step(np.array(action))
        span = span_in(env, observation)
        assert_near(span, wanted)
        assert terminated is (step + 1 == HORIZON)


unit = st.floats(-1, 1, width=32)


@quick
@given(samples, starts, st.lists(st.tuples(unit, unit), min_size=1, max_size=HORIZON))
def test_continuous_steps(source: str, sample: int, start: int, actions: list[tuple[float, float]]) -> None:
    env = environment(source, actions="continuous")
    observation, _, _ = begin(env, sample, start)
    span, clip = span_in(env, observation), clip_of(env, sample)
    for step, action in enumerate(actions, 1):
        moved = [min(max(here + 8 * by * clip, 0.0), 1.0) for here, by in zip(span, action, strict=True)]
        wanted = slow_move(span, (8 * action[0], 8 * action[1]), clip)
        least = min(clip, span[1] - span[0])
        observation, _, terminated, _, _ = env.step(np.array(action, np.float32))
        before, span = span, span_in(env, observation)
        if abs(moved[1] - moved[0] - least) > 1e-5:  # else rounding decides whether it is too short
            assert_near(span, wanted)
        assert span[1] - span[0] >= min(clip, before[1] - before[0]) - NEAR
        assert terminated is (step == HORIZON)


@pytest.mark.parametrize("action", [(1.0000001, 0.2), (-3.0, 40.0), (0.5, -1e30)])
def test_continuous_actions_beyond_the_space_are_clipped(source: str, action: tuple[float, float]) -> None:
    """As unbounded Gaussian policies give them; one such row leaves the others of a vector alone."""
    clipped = tuple(min(max(one, -1.0), 1.0) for one in action)
    found = []
    for given_action in (action, clipped):
        env = environment(source, actions="continuous")
        env.reset(options={"sample": 3, "start": 0})
        found.append(env.step(np.array(given_action))[0])
        envs = VMRVectorEnv(
            2, source=source, actions="continuous", horizon=HORIZON, autoreset_mode="SameStep"
        )
        envs.reset(options={"sample": 3, "start": 0})
        found.append(envs.step(np.array([[0.1, 0.1], given_action]))[0][1])
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_tiou_is_that_of_the_span_functions(source: str) -> None:
    envs = VMRVectorEnv(64, source=source, autoreset_mode="SameStep")
    observations, infos = envs.reset(seed=0)
    envs.action_space.seed(0)
    rows = infos["sample"].copy()
    for _ in range(10):
        for observation, row, tiou in zip(observations, rows, infos["tiou"], strict=True):
            span = observation[envs.observer.slices["span"]][:2]
            expected = span_functions.best_tiou(span, np.asarray(envs.cache.moments[int(row)]))
            assert tiou == pytest.approx(float(expected), abs=1e-6)
        observations, _, _, _, infos = envs.step(envs.action_space.sample())
        rows = infos["sample"].copy()


@pytest.mark.parametrize("stage", [1, 3])
def test_gains_are_what_stepping_gives(source: str, stage: int) -> None:
    size = environment(source, stage).action_mode.size
    envs = VMRVectorEnv(size, source=source, stage=stage, horizon=HORIZON)
    for sample in range(0, SAMPLES, 5):
        for prefix in ((), (30,)):
            infos = envs.reset(seed=0, options={"sample": sample})[1]
            for action in prefix:
                infos = envs.step(np.full(size, action))[4]
            gains, mask, tiou = envs.episodes.gains(), infos["action_mask"].astype(bool), infos["tiou"]
            assert gains.shape == mask.shape == (size, size)
            assert (gains[~mask] == 0).all()
            after = envs.step(np.arange(size))[4]["tiou"]
            np.testing.assert_allclose(gains, np.tile(after - tiou, (size, 1)), atol=1e-6)


def test_a_span_that_ends_before_it_starts_overlaps_nothing() -> None:
    """Moves that are masked may cross; as long as the moment they once divided 0 by 0."""
    spans = np.float32([[0.6, 0.4], [0.6, 0.1], [0.2, 0.4]])
    for moment, expected in (((0.3, 0.5), [0, 0, 1 / 3]), ((0.5, 0.5), [0, 0, 0])):
        moments = np.tile(np.float32(moment), (3, 1, 1))
        np.testing.assert_allclose(potentials("tiou", spans, moments), expected, atol=1e-6)


# Observations


class SlowTimeline:
    """What `vmr_env.caches.boundary_features` documents, one number at a time."""

    def __init__(self, cache: DecoderStateCache, sample: int, cells: int) -> None:
        self.cells = cells
        count = int(cache.counts[sample])
        self.spans = [(float(a), float(b)) for a, b in cache.spans[sample, :count]]
        self.scores = [float(score) for score in cache.scores[sample, :count]]
        self.models = cache.models[sample, :count].tolist()
        self.clip = float(cache.manifest["clip_seconds"]) / float(cache.durations[sample])
        assert cache.saliency is not None
        self.saliency = [float(value) for value in cache.saliency[sample]]
        self.weights = {
            "score": self._shares(self.scores),
            "root": self._shares([math.sqrt(score) for score in self.scores]),
            "models": self._shares([float(m not in self.models[:i]) for i, m in enumerate(self.models)]),
        }
        self.curves = {name: [self._curve(name, cell) for cell in range(cells)] for name in CURVES}

    def _shares(self, weights: list[float]) -> list[float]:
        return [weight / sum(weights) for weight in weights]

    def _curve(self, name: str, cell: int) -> float:
        centre = (cell + 0.5) / self.cells
        if name == "saliency":
            return self._saliency(centre)
        shares = self.weights[name.removeprefix("coverage by ")]
        return sum(
            share for share, (start, end) in zip(shares, self.spans, strict=True) if start <= centre < end
        )

    def _saliency(self, position: float) -> float:
        mean = sum(self.saliency) / len(self.saliency)
        spread = math.sqrt(sum((value - mean) ** 2 for value in self.saliency) / len(self.saliency))
        heights = [math.tanh((value - mean) / spread / 2) for value in self.saliency]
        at = position * len(heights) - 0.5
        if at <= 0 or at >= len(heights) - 1:
            return heights[0 if at <= 0 else -1]
        left = int(at)
        return heights[left] + (at - left) * (heights[left + 1] - heights[left])

    def _mean(self, curve: str, low: int, high: int) -> float:
        part = self.curves[curve][max(low, 0) : min(high, self.cells)]
        return sum(part) / len(part) if part else 0.0

    def point(self, cell: int) -> list[float]:
        values = []
        reach = max(1, round(3 * self.clip * self.cells))
        for name in POINT_FEATURES:
            if match := re.fullmatch(r"(start|end) density within ([\d.]+) clips by (\w+)", name):
                side, width, weight = ("start", "end").index(match[1]), float(match[2]), match[3]
                assert width in KERNELS
                sigma = max(width * self.clip, 0.5 / self.cells)
                values.append(
                    sum(
                        share * math.exp(-0.5 * ((cell / self.cells - span[side]) / sigma) ** 2)
                        for share, span in zip(self.weights[weight], self.spans, strict=True)
                    )
                )
            elif name.startswith("integral of "):
                values.append(sum(self.curves[name.removeprefix("integral of ")][:cell]) / self.cells)
            elif name == "saliency before":
                values.append(self._mean("saliency", cell - reach, cell))
            else:
                assert name == "saliency after"
                values.append(self._mean("saliency", cell, cell + reach))
        return values

    def inside(self, span: Span) -> list[float]:
        low, high = (self.cell(position) for position in span)
        values = []
        for name in INSIDE_FEATURES:
            match = re.fullmatch(r"(mean|share of) (.+) inside", name)
            assert match
            curve = self.curves[match[2]]
            mass = sum(curve[low:high]) / self.cells
            whole = max(sum(curve) / self.cells, 1e-3)
            width = max(span[1] - span[0], 1 / self.cells)
            values.append(min(max(mass / (width if match[1] == "mean" else whole), -1.0), 1.0))
        return values

    def proposal(self, slot: int) -> list[float]:
        if slot >= len(self.spans):
            return [0.0] * len(SPAN_FEATURES)
        span, score = self.spans[slot], self.scores[slot]
        first, last = (self.point(self.cell(position)) for position in span)
        known = {
            **{f"at the start: {name}": value for name, value in zip(POINT_FEATURES, first, strict=True)},
            **{f"at the end: {name}": value for name, value in zip(POINT_FEATURES, last, strict=True)},
            **dict(zip(INSIDE_FEATURES, self.inside(span), strict=True)),
            "start": span[0],
            "end": span[1],
            "width": span[1] - span[0],
            "log length": math.log1p((span[1] - span[0]) / self.clip) / math.log1p(1500),
            "score": score,
            "logit of score": math.log((score + 1e-3) / (1 - score + 1e-3)) / 7,
            "rank": min(slot / 10, 1),
        }
        return [known[name] for name in SPAN_FEATURES]

    def cell(self, position: float) -> int:
        return round(float(np.float32(position)) * self.cells)


@pytest.mark.parametrize("sample", [0, 5, 11])
def test_observations_show_the_slow_timeline(source: str, sample: int) -> None:
    env = environment(source)
    slow = SlowTimeline(env.cache, sample, 128)
    flat, _, _ = begin(env, sample, 1)
    for action in (None, 10, 50):
        if action is not None:
            flat = env.step(action)[0]
        seen, span = env.observer.split(flat), span_in(env, flat)
        clip = clip_of(env, sample)
        positions = [
            slow_move(span, clips, clip)[side]
            for side in (0, 1)
            for clips in ((by, 0.0) if side == 0 else (0.0, by) for by in MOVES)
        ]
        expected: dict[str, Any] = {
            "video": [math.log1p(1 / clip) / math.log1p(1500)],
            "span": [*span, span[1] - span[0], math.log1p((span[1] - span[0]) / clip) / math.log1p(1500)],
            "positions": positions,
            "points": [slow.point(slow.cell(float(position))) for position in seen["positions"]],
            "whole": [sum(slow.curves[name]) / 128 for name in CURVES],
            "inside": slow.inside(span),
            "proposals": [slow.proposal(slot) for slot in range(PROPOSALS)],
            "overlaps": [
                slow_tiou(span, (float(a), float(b))) for a, b in env.cache.spans[sample, :PROPOSALS]
            ],
            "models": [
                [float(slot < len(slow.spans) and slow.models[slot] == model) for model in (0, 1)]
                for slot in range(PROPOSALS)
            ],
        }
        for name, values in expected.items():
            np.testing.assert_allclose(seen[name], values, rtol=1e-4, atol=2e-5, err_msg=name)
        assert set(seen) == {*expected, "remaining", "source"}
        assert seen["source"].sum() == 1
