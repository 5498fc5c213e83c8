"""Rendering: what stands in the pictures is what is the case in the episode."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from caches import ARGUMENTS, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmr_env.caches.reader import write_cache
from vmr_env.envs.env import VMREnv
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.rendering.ansi import Scene, render_ansi
from vmr_env.rendering.rgb import HEIGHT, WIDTH, render_rgb

TRUTH, CURRENT, START = (0, 158, 115), (0, 114, 178), (230, 159, 0)  # Okabe and Ito's
SALIENCY_LIKE = (212, 141, 180)

SCENE = Scene(
    query="a person opens the door",
    vid="ABC12",
    duration=60.0,
    moments=((12.0, 30.0),),
    proposals=((10.0, 20.0), (30.0, 59.0), (0.0, 60.0)),
    scores=(0.9, 0.5, 0.0),
    source=1,
    trajectory=((30.0, 59.0), (9.0, 59.0), (6.0, 24.0)),
    tious=(0.0, 0.36, 0.5),
    saliency=(0.0, 1.0, -1.0),
    horizon=3,
)
PICTURE = render_rgb(SCENE)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache of 5 samples whose queries are hard to draw."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    queries = [
        "person \x1b[31mopens\x1b[0m\na\tdoor\u202e",
        "Человек открывает дверь, 人がドアを開ける " * 40,
        "x" * 5000,
        "e\u0301" * 300,
        "?",
    ]
    batch = replace(random_batch(5, q=12, seed=3), queries=queries)
    return write_cache(tmp_path / "cache", batch, **ARGUMENTS)


def make(source: Path, mode: str, **options: Any) -> VMREnv:
    return VMREnv("charades", "test", source, render_mode=mode, **options)


def scene_of(env: VMREnv) -> Scene:
    return Scene.of(env.episodes, env.trajectory)


def seconds_of(picture: NDArray[np.uint8], colour: tuple[int, int, int], row: slice) -> tuple[float, float]:
    """Where, on SCENE's time axis, pixels of a colour begin and end within some rows of the plot."""
    axis = np.flatnonzero((picture[500] == 32).all(-1))  # the axis line runs from 0 s to the duration
    left, right = int(axis[0]), int(axis[-1])
    columns = np.flatnonzero((picture[row, left : right + 1] == colour).all(-1).any(0))
    low, high = columns[[0, -1]] / (right - left) * SCENE.duration
    return float(low), float(high)


def test_scene_is_the_state_of_the_episode(source: Path) -> None:
    env = make(source, "ansi", proposals=12)
    _, info = env.reset(options={"sample": 2, "start": 1 if env.cache.counts[2] > 1 else 0})
    spans, tious = [env.episodes.seconds()[0]], [info["tiou"]]
    for _ in range(2):
        info = env.step(int(np.flatnonzero(info["action_mask"])[0]))[4]
        spans.append(env.episodes.seconds()[0])
        tious.append(info["tiou"])
    assert not np.array_equal(spans[0], spans[2])
    scene = scene_of(env)
    sample = env.cache.sample(2)
    shown = min(int(env.cache.counts[2]), 10)
    assert (scene.vid, scene.duration, scene.step) == (sample.vid, sample.duration, 2)
    np.testing.assert_allclose(scene.tious, tious, rtol=1e-6)
    np.testing.assert_allclose(scene.trajectory, spans, rtol=1e-6)
    np.testing.assert_array_equal(scene.current, scene.trajectory[-1])
    np.testing.assert_allclose(scene.moments, sample.moments)
    np.testing.assert_allclose(scene.proposals, env.cache.spans[2, :shown] * sample.duration, rtol=1e-6)
    np.testing.assert_array_equal(scene.scores, env.cache.scores[2, :shown])
    assert env.cache.saliency is not None
    np.testing.assert_array_equal(scene.saliency, env.cache.saliency[2])
    env.reset()
    assert scene_of(env).step == 0


def test_at_most_ten_proposals_are_shown_and_no_padding(source: Path) -> None:
    env = make(source, "ansi", proposals=12)
    for row, count in enumerate(env.cache.counts.tolist()):
        env.reset(options={"sample": row})
        assert len(scene_of(env).proposals) == min(count, 10)


def test_of_a_long_trail_the_first_and_the_last_spans_are_shown() -> None:
    trajectory = tuple((float(i), float(i + 1)) for i in range(20))
    scene = replace(SCENE, trajectory=trajectory, tious=tuple(i / 20 for i in range(20)))
    rows = scene.moves()
    assert [name for name, _, _ in rows] == ["start", *(f"step {i}" for i in range(14, 20))]
    assert [span for _, span, _ in rows] == [trajectory[0], *trajectory[14:]]
    assert rows[-1][2] == 0.95
    assert len(render_ansi(scene).split("\n")) == len(render_ansi(SCENE).split("\n")) + 4
    assert render_rgb(scene).shape == PICTURE.shape


def test_text_picture() -> None:
    # 60 s on 60 columns: one column per second.
    assert render_ansi(SCENE).split("\n") == [
        "“a person opens the door”",
        "ABC12 · 60.0 s · step 2 of 3: start −3.0 s, end −35.0 s · from proposal 2",
        "truth    " + "·" * 12 + "█" * 18 + "·" * 30 + " 12.0–30.0 s",
        "start    " + "·" * 30 + "█" * 29 + "·" + " 30.0–59.0 s · tIoU 0.00",
        "step 1   " + "·" * 9 + "█" * 50 + "·" + " 9.0–59.0 s · tIoU 0.36",
        "step 2   " + "·" * 6 + "█" * 18 + "·" * 36 + " 6.0–24.0 s · tIoU 0.50",
        "proposals",
        "       1 " + "·" * 10 + "━" * 10 + "·" * 40 + " 0.90",
        "→      2 " + "·" * 30 + "━" * 29 + "·" + " 0.50",
        "       3 " + "━" * 60 + " 0.00",
        "saliency " + "▅" * 20 + "█" * 20 + "▁" * 20,
        "         0 s" + " " * 51 + "60.0 s",
    ]


def test_text_says_what_the_last_step_did() -> None:
    def told(*trajectory: tuple[float, float]) -> str:
        return (
            replace(SCENE, trajectory=trajectory, tious=(0.0,) * len(trajectory)).progress().split(" · ")[1]
        )

    assert told((1.0, 5.0)) == "step 0 of 3"
    assert told((1.0, 5.0), (1.0, 5.0)) == "step 1 of 3: stays"
    assert told((1.0, 5.0), (1.0, 8.0)) == "step 1 of 3: end +3.0 s"
    assert told((1.0, 5.0), (30.0, 59.0)) == "step 1 of 3: to proposal 2"
    assert told((1.0, 5.0), (0.98, 7.0)) == "step 1 of 3: end +2.0 s"
    assert told((1.0, 5.0), (1.01, 5.02)) == "step 1 of 3: moves by less than 0.05 s"


@pytest.mark.parametrize("width", [60, 80, 132])
def test_text_picture_of_another_width(width: int) -> None:
    lines = render_ansi(SCENE, width).split("\n")
    assert max(map(len, lines)) <= width
    bars = [line[9:].split(" ")[0] for line in lines if "█" in line and "▁" not in line]
    assert {len(bar) for bar in bars} == {width - 40}
    assert bars[0].count("█") == pytest.approx((width - 40) * 18 / 60, abs=1)  # the truth


def test_text_picture_of_several_moments_and_of_very_short_spans() -> None:
    scene = replace(SCENE, moments=((0.0, 0.1), (30.0, 31.0), (60.0, 60.0)))
    truth = render_ansi(scene).split("\n")[2]
    assert truth == "truth    █" + "·" * 29 + "█" + "·" * 28 + "█ 0.0–0.1 s +2"


def test_picture_shows_the_spans_where_they_are() -> None:
    assert PICTURE.shape == (HEIGHT, WIDTH, 3)
    assert PICTURE.dtype == np.uint8
    assert HEIGHT % 2 == 0
    assert WIDTH % 2 == 0
    pixel = SCENE.duration / 600  # a pixel is at most this many seconds
    assert seconds_of(PICTURE, TRUTH, slice(108, 138)) == pytest.approx((12, 30), abs=pixel)
    assert seconds_of(PICTURE, CURRENT, slice(140, 170)) == pytest.approx((6, 24), abs=pixel)
    assert seconds_of(PICTURE, START, slice(175, 190)) == pytest.approx((30, 59), abs=pixel)
    assert seconds_of(PICTURE, CURRENT, slice(205, 216)) == pytest.approx((6, 24), abs=pixel)  # the last step
    # The proposal that the span came from is framed in the colour of the current span.
    assert seconds_of(PICTURE, CURRENT, slice(284, 430)) == pytest.approx((30, 59), abs=pixel)


def test_picture_shows_every_part_of_the_scene() -> None:
    changes: list[dict[str, Any]] = [
        {"query": "another"},
        {"vid": "another"},
        {"duration": 61.0},
        {"moments": ((12.0, 30.0), (40.0, 50.0))},
        {"proposals": ((10.0, 21.0), *SCENE.proposals[1:])},
        {"scores": (0.8, 0.5, 0.0)},
        {"source": 0},
        {"trajectory": ((30.0, 50.0), *SCENE.trajectory[1:])},
        {"trajectory": (SCENE.trajectory[0], (9.0, 50.0), SCENE.trajectory[2])},
        {"trajectory": (*SCENE.trajectory[:2], (6.0, 25.0))},
        {"tious": (0.2, *SCENE.tious[1:])},
        {"tious": (*SCENE.tious[:2], 0.6)},
        {"trajectory": SCENE.trajectory[:2], "tious": SCENE.tious[:2]},
        {"saliency": (0.0, 1.0, -2.0)},
        {"saliency": None},
    ]
    for change in changes:
        assert (render_rgb(replace(SCENE, **change)) != PICTURE).any(), change


def test_saliency_is_drawn_from_its_lowest_to_its_highest_value() -> None:
    curve = (PICTURE == SALIENCY_LIKE).all(-1)
    heights = curve.sum(0)[[200, 470, 750]]  # amid the three clips
    assert heights[2] < 5
    assert heights[0] == pytest.approx(heights[1] / 2, abs=2)
    flat = (render_rgb(replace(SCENE, saliency=(7.0,) * 3)) == SALIENCY_LIKE).all(-1).sum(0)
    assert len(set(flat[flat > 0].tolist())) == 1


@pytest.mark.parametrize("duration", [0.3, 5.0, 31.97, 1402.5, 250_000.0])
def test_any_duration(duration: float) -> None:
    scene = replace(SCENE, duration=duration, moments=((0, duration),), proposals=((0, 0),) * 3)
    scene = replace(scene, trajectory=((0, 0), (0, duration), (duration, duration)))
    assert render_rgb(scene).shape == (HEIGHT, WIDTH, 3)
    assert max(map(len, render_ansi(scene).split("\n"))) <= 100


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), max_size=300))
def test_ascii_lines_fit_a_terminal_and_keep_the_start_of_the_query(query: str) -> None:
    first, *others = render_ansi(replace(SCENE, query=query, vid=query)).split("\n")
    assert max(map(len, [first, *others])) <= 100
    if len(query) <= 98:
        assert first == f"“{query}”"
    else:
        assert first.endswith("…”")
        assert query.startswith(first[1:-2])


@settings(max_examples=10, deadline=None)
@given(st.text(max_size=200))
def test_any_query_leaves_the_plot_as_it_is(query: str) -> None:
    picture = render_rgb(replace(SCENE, query=query))
    np.testing.assert_array_equal(picture[108:], PICTURE[108:])
    np.testing.assert_array_equal(picture[:, 790:], PICTURE[:, 790:])  # the tIoU


@pytest.mark.parametrize("row", range(5))
def test_hard_queries(source: Path, row: int) -> None:
    env = make(source, "ansi")
    env.reset(options={"sample": row})
    text = env.render()
    assert all(line.isprintable() for line in text.split("\n"))
    if row == 0:
        assert text.startswith("“person [31mopens[0m a door”\n")
    if row == 1:  # half of the letters take two columns
        assert text.index("\n") < 100
    picture = make(source, "rgb_array")
    picture.reset(options={"sample": row})
    assert (picture.render()[18:40, 20:600] < 100).any()


def test_pictures_repeat_and_rendering_changes_nothing(source: Path) -> None:
    seen, unseen, again = (make(source, "rgb_array") for _ in range(3))
    for env in (seen, unseen, again):
        env.reset(seed=5)
    before = seen.render()
    results = [env.step(0) for env in (seen, unseen, again)]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    after = seen.render()
    assert (after != before).any()
    np.testing.assert_array_equal(after, again.render())


@pytest.mark.parametrize("missing", ["PIL", "matplotlib"])
def test_missing_packages_are_named_with_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vmr_env.rendering import rgb as picture

    picture._fonts.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{missing} is not installed.*vmr-env\[bench\]"):
        render_rgb(SCENE)
    assert render_ansi(SCENE)


def test_rendering_before_the_first_reset_is_refused(source: Path) -> None:
    with pytest.raises(gymnasium.error.ResetNeeded, match="render called before the first reset"):
        make(source, "rgb_array").render()


def test_rendering_without_a_mode_warns_as_gymnasium_does(source: Path) -> None:
    single, native = VMREnv("charades", "test", source), VMRVectorEnv(2, "charades", "test", source)
    with pytest.warns(UserWarning, match="without render_mode, expected one of human, rgb_array, ansi"):
        assert single.render() is None
    with pytest.warns(UserWarning, match="expected a single one"):
        native.render()


class Desktop:
    """Stands for Python's Tk: notes what a window is told."""

    class TclError(Exception):
        pass

    def __init__(self, *, there: bool = True) -> None:
        self.there, self.images, self.open, self.on_close = there, list[bytes](), 0, lambda: None

    def Tk(self) -> "Desktop":
        if not self.there:
            raise self.TclError("no display")
        self.open += 1
        return self

    def PhotoImage(self, *, master: Any, data: bytes, format: str) -> bytes:
        assert (master, format) == (self, "PPM")
        self.images.append(data)
        return data

    def Label(self, *_: Any, **__: Any) -> "Desktop":
        return self

    def protocol(self, name: str, call: Any) -> None:
        assert name == "WM_DELETE_WINDOW"
        self.on_close = call

    def destroy(self) -> None:
        self.open -= 1

    def nothing(self, *_: Any, **__: Any) -> None:
        pass

    title = resizable = pack = configure = update = nothing


def test_window_shows_every_step(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desktop = Desktop()
    monkeypatch.setitem(sys.modules, "tkinter", desktop)  # type: ignore[arg-type]  # a stand-in
    waits: list[float] = []
    monkeypatch.setattr("vmr_env.rendering.window.time.sleep", waits.append)
    shown, drawn = make(source, "human"), make(source, "rgb_array")
    expected = []
    for env in (shown, drawn):
        env.reset(seed=4)
        expected.append(env.render())
        env.step(0)
        expected.append(env.render())
    assert expected[:2] == [None, None]
    assert len(desktop.images) == 4  # at reset and step, and where asked for
    header = b"P6 %d %d 255\n" % (WIDTH, HEIGHT)
    assert [desktop.images[0], desktop.images[3]] == [header + image.tobytes() for image in expected[2:]]
    assert waits[0] == 0
    assert all(0 < wait <= 1 for wait in waits[1:])
    desktop.on_close()
    shown.reset()  # closed by its user, it stays closed
    assert (len(desktop.images), desktop.open) == (4, 0)
    shown.close()
    assert desktop.open == 0


def test_no_desktop_is_one_warning_and_shows_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tk, reason in ((None, "tkinter"), (Desktop(there=False), "no display")):
        monkeypatch.setitem(sys.modules, "tkinter", tk)  # type: ignore[arg-type]  # a stand-in
        env = make(source, "human")
        with pytest.warns(UserWarning, match=rf"'human' needs a desktop and Python's Tk.*{reason}"):
            env.reset()
        assert env.render() is None  # no second warning: those are errors in tests
        env.step(env.action_space.sample())
        env.close()


def test_record_video(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    folder = tmp_path / "videos"
    with gymnasium.wrappers.RecordVideo(make(source, "rgb_array"), str(folder)) as env:
        env.reset(seed=0)
        over = False
        while not over:
            over = env.step(0)[2]
    (video,) = folder.glob("*.mp4")
    assert video.read_bytes()[4:8] == b"ftyp"
