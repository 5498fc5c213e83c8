"""The report in a real browser: Chromium, driven by Playwright. Skipped where one of them is missing."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import QUERIES, page

from vmr_env.benchmarks.report.html import render

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium, for example Debian's package", allow_module_level=True)

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def tab(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page, opened as a file; nothing may have been asked of any other address, or gone wrong."""
    path = tmp_path / "report.html"
    path.write_text(render(page()), encoding="utf-8")
    opened = browser.new_page()
    asked: list[str] = []
    wrong: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(path.as_uri())
    yield opened
    assert asked == [path.as_uri()]
    assert wrong == []
    opened.close()


def listed(tab: Any) -> list[str]:
    """Queries of the listed episodes."""
    texts: list[str] = tab.locator("#episodes button span:nth-child(2)").all_text_contents()
    return texts


def test_search_finds_words_in_any_order(tab: Any) -> None:
    assert tab.title() == "charades, one: predictions · vmr-env"
    assert sorted(listed(tab)) == sorted(QUERIES)
    tab.get_by_label("Search queries").fill("OPENS a")
    assert sorted(listed(tab)) == ["a dog opens a box", "a person opens the door"]
    assert tab.locator("#count").text_content() == "2 episodes"
    tab.get_by_label("Search queries").fill("nothing like it")
    assert listed(tab) == []
    assert tab.locator("#episode").is_hidden()  # what is not found is not shown
    tab.get_by_label("Search queries").fill("runs")
    assert tab.locator("#episode h3").text_content() == "“somebody runs”"
    tab.get_by_label("Search queries").fill("v0")  # by video
    assert sorted(listed(tab)) == ["a person opens the door", "somebody runs"]


def test_sorting_by_gain_and_loss_for_the_chosen_agent(tab: Any) -> None:
    tab.get_by_role("combobox", name="Agent").select_option("tp & rl")
    tab.get_by_label("Sort by").select_option("largest loss")
    # Changes: -0.33 + 0 (0-1 overlaps nothing), 9/15 - 1, 10/11 - 9/11, 0.
    assert listed(tab) == [QUERIES[1], QUERIES[0], QUERIES[3], QUERIES[2]]
    gains = tab.locator("#episodes .gain").all_text_contents()
    assert gains == ["▼ −0.40", "▼ −0.33", "±0.00", "▲ +0.09"]
    tab.get_by_label("Sort by").select_option("largest gain")
    assert listed(tab)[0] == QUERIES[2]
    tab.get_by_role("combobox", name="Agent").select_option("ppo")
    assert listed(tab)[0] in (QUERIES[0], QUERIES[2])
    tab.get_by_label("Sort by").select_option("order of the file")
    assert listed(tab) == list(QUERIES)


def test_an_episode_opens_by_mouse_and_by_keyboard(tab: Any) -> None:
    tab.get_by_label("Sort by").select_option("order of the file")
    tab.get_by_role("button", name="somebody runs").click()
    timeline = tab.locator("#episode svg")
    label = timeline.get_attribute("aria-label")
    assert "ground truth 5.0–15.0 s and 16.0–20.0 s" in label
    assert "detector 5.0–15.0 s tIoU 1.00" in label
    assert "tp & rl 0.0–14.0 s tIoU 0.60 (−0.40)" in label
    assert "ppo, seed 1 5.0–15.0 s tIoU 1.00 (±0.00)" in label
    tab.keyboard.press("ArrowDown")
    assert tab.locator("#episodes [aria-current=true]").count() == 1
    assert tab.locator("#episode h3").text_content() == f"“{QUERIES[2]}”"  # markup stays text
    tab.keyboard.press("ArrowUp")
    tab.keyboard.press("ArrowUp")
    assert tab.locator("#episode h3").text_content() == f"“{QUERIES[0]}”"
    tab.keyboard.press("End")
    assert tab.locator("#episode h3").text_content() == f"“{QUERIES[3]}”"
    tab.keyboard.press("Tab")  # one stop for the list, however long it is
    assert tab.evaluate("document.activeElement.id") == "walker"
    tab.keyboard.press("Shift+Tab")
    assert tab.evaluate("document.activeElement.dataset.row") == "3"


def steps(tab: Any) -> list[list[str]]:
    """The table of steps, without its head."""
    rows = tab.locator("#steps tr").all()
    return [row.locator("th, td").all_text_contents() for row in rows]


def test_every_step_of_an_agent_is_drawn_and_listed(tab: Any) -> None:
    tab.get_by_label("Sort by").select_option("order of the file")
    tab.get_by_role("button", name=QUERIES[0]).click()
    assert tab.locator("#steps-of").text_content() == "Steps of ppo, seed 0"
    assert steps(tab) == [
        ["0", "start", "0.0–10.0 s", "0.33", ""],
        ["1", "start +5.0 s", "5.0–10.0 s", "0.50", "+0.17"],
        ["2", "stop", "5.0–10.0 s", "0.50", "±0.00"],
    ]
    tab.locator("#episodes button").nth(2).click()
    assert [row[1] for row in steps(tab)] == ["start", "switch to proposal 2", "start +5.0 s, end −5.0 s"]
    # Thin bars: start and switch of the first seed, start of the one without steps, and of the head.
    assert tab.locator("#timeline rect.earlier").count() == 4
    tab.get_by_role("combobox", name="Steps of").select_option("tp & rl")
    assert [row[1] for row in steps(tab)] == ["start", "answer of the trained head: end +1.0 s"]
    tab.get_by_role("combobox", name="Steps of").select_option("ppo, seed 1")
    assert [row[1] for row in steps(tab)][1] == "all steps (this run recorded no single ones): nothing moves"
    tab.get_by_role("combobox", name="Agent").select_option("tp & rl")  # its steps are shown, too
    assert tab.locator("#steps-of").text_content() == "Steps of tp & rl"


def test_steps_are_gone_through_by_buttons_and_by_keyboard(tab: Any) -> None:
    tab.get_by_label("Sort by").select_option("order of the file")
    tab.locator("#episodes button").nth(2).click()
    said, current = tab.locator("#step"), tab.locator("#steps [aria-current=step] th")
    marked = tab.locator("#timeline rect.now")
    assert said.text_content() == "Step 0 of 2: start; 4.0–14.0 s, tIoU 0.82"
    assert tab.locator("#back").get_attribute("aria-disabled") == "true"
    tab.get_by_role("button", name="step ▶").click()
    assert said.text_content() == "Step 1 of 2: switch to proposal 2; 0.0–20.0 s, tIoU 0.50"
    whole_video = float(marked.get_attribute("width"))
    tab.keyboard.press("ArrowRight")  # from the button on
    assert current.text_content() == "2"
    assert float(marked.get_attribute("width")) == pytest.approx(whole_video / 2, abs=0.1)
    tab.keyboard.press("ArrowRight")  # there is no further one
    assert current.text_content() == "2"
    tab.locator("#episodes button").nth(2).focus()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert current.text_content() == "0"
    assert tab.evaluate("document.activeElement.dataset.row") == "2"


def test_the_timeline_fits_the_width_of_its_place(tab: Any) -> None:
    for width in (360, 1280):
        tab.set_viewport_size({"width": width, "height": 800})
        place, drawn = tab.evaluate(
            "[document.getElementById('timeline').clientWidth,"
            " document.querySelector('#timeline svg').viewBox.baseVal.width]"
        )
        assert place == drawn  # so that its letters are as large as they say


def test_the_first_stop_of_the_keyboard_skips_to_the_episodes(tab: Any) -> None:
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the episodes"
    tab.keyboard.press("Enter")
    assert tab.evaluate("location.hash") == "#explorer"


CONTRAST = """() => {
  const light = (c) => {
    const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => {
      const s = v / 255;
      return s <= 0.03928 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (node) => {
    for (; node; node = node.parentElement) {
      const c = getComputedStyle(node).backgroundColor;
      if (!c.endsWith(", 0)")) return c;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  let worst = [21, ""];
  const texts = "p, td, th, dt, dd, a, h1, h2, h3, label, button, figcaption, span";
  for (const node of document.querySelectorAll(texts)) {
    if (!node.textContent.trim() || node.closest(".skip")) continue;
    const style = getComputedStyle(node), a = light(style.color), b = light(back(node));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, node.outerHTML.slice(0, 80)];
  }
  return worst;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_legible_in_light_and_dark_and_on_small_screens(tab: Any, scheme: str, width: int) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 800})
    ratio, where = tab.evaluate(CONTRAST)
    assert ratio >= 4.5, where  # WCAG 2, level AA
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
