"""The report in a real browser: Chromium, driven by Playwright. Skipped where one of them is missing."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import QUERIES, page

from benchmarks.html_report import render

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium, for example Debian's package", allow_module_level=True)

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


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
    assert tab.title() == "vmr-env report"
    assert sorted(listed(tab)) == sorted(QUERIES)
    tab.get_by_label("Search queries").fill("OPENS a")
    assert sorted(listed(tab)) == ["a dog opens a box", "a person opens the door"]
    assert tab.locator("#count").text_content() == "2 episodes"
    tab.get_by_label("Search queries").fill("nothing like it")
    assert listed(tab) == []
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
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert tab.locator("#episode h3").text_content() == f"“{QUERIES[1]}”"


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
