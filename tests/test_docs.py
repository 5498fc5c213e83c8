"""The site: names that resolve, Markdown that becomes what Sphinx reads, pages without debris."""

import doctest
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import gymnasium
import pytest
from gymnasium.envs.registration import registry

from vmr_env.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
TREES = ("vmr_env", "agents", "backbones", "benchmarks", "docs", "tests", "examples")


def _module(name: str) -> ModuleType:
    """A module of the docs folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _found(name: str) -> Any:
    """What a dotted name stands for; raises ModuleNotFoundError or AttributeError."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        module = ".".join(parts[:split])
        try:
            thing: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise
            continue
        for part in parts[split:]:
            thing = getattr(thing, part)
        return thing
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_a_page_mentions_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"`(vmr_env(?:\.\w+)+)`", text)):
        _found(name)
    for path in set(re.findall(rf"`((?:{'|'.join(TREES)})/[\w/.-]+)`", text)):
        assert (ROOT / path).exists(), path


def test_a_name_that_is_gone_does_not_resolve() -> None:
    assert _found("vmr_env.envs.env.VMREnv.reset")
    for gone in ("vmr_env.envs.env.VMREnv.no_such", "vmr_env.no_such.thing"):
        with pytest.raises((AttributeError, ModuleNotFoundError)):
            _found(gone)


def test_examples_in_docstrings_are_so() -> None:
    """Every module that has one, of all packages."""
    ran = 0
    for folder, package in _module("reference").TREES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                found = doctest.testmod(importlib.import_module(".".join([package, *parts])))
                assert not found.failed
                ran += found.attempted
    assert ran >= 5


LINK = re.compile(
    r"(?<!!)\[[^]]*\]\(([^)\s]+)\)|!\[[^]]*\]\(([^)\s]+)\)|<(?:img|source) [^>]*src(?:set)?=\"([^\"]+)\""
)
ALL_PAGES = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", ROOT / "benchmarks" / "RESULTS.md"]


def links(text: str) -> list[str]:
    """Where a page's links and pictures lead, code left out."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return ["".join(found) for found in LINK.findall(prose)]


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub and MyST make them."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#{1,6} (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path, text: str) -> list[str]:
    """Links of a page that lead nowhere; of those to other hosts, what is no address."""
    wrong = []
    for link in links(text):
        address = urlsplit(link)
        if address.scheme:
            if address.scheme != "https" or not re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.netloc):
                wrong.append(link)
            continue
        target = (page.parent / address.path).resolve() if address.path else page
        if not target.exists():
            wrong.append(link)
        elif address.fragment:
            there = text if target == page else target.read_text(encoding="utf-8")
            if address.fragment not in anchors(there):
                wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_links_that_lead_nowhere_are_seen() -> None:
    text = (
        "# One two\n[a](#one-two) [b](#three) [c](tprl.md#the-stages) [d](tprl.md#gone) [e](gone.md)\n"
        "![f](images/timeline.png) ![g](images/gone.png) [h](https://a.org/x) [i](http://a.org) [j](https://a)\n"
        "`[k](gone.md)`\n```\n[l](gone.md)\n```\n"
        '<source srcset="images/no.gif"><img alt="m" src="images/timeline.png">\n'
    )
    wrong = ["#three", "tprl.md#gone", "gone.md", "images/gone.png", "http://a.org", "https://a"]
    wrong.append("images/no.gif")
    assert broken(DOCS / "index.md", text) == wrong


MARKDOWN = """First line, |A| of `x`s.

## Arguments
one: what it is
    and more.
two, three: `"text"`.

| name | what |
|---|---|
| `a` | an *A* |

A list:
- first, and
more of it
- second
  and more

    python -m code --with |pipes|

Args:
    four: `vmr_env.arrays`, |B|.
"""

RESTRUCTURED = """First line, \\|A\\| of ``x``\\ s.


.. rubric:: Arguments


-   ``one``: what it is
    and more.
-   ``two, three``: ``"text"``.


.. list-table::
   :header-rows: 1

   * - name
     - what
   * - ``a``
     - an \\*A*


A list:

- first, and
  more of it
- second
  and more

    python -m code --with \\|pipes\\|

Args:
    four: `vmr_env.arrays`, \\|B\\|.
"""


def test_markdown_of_docstrings_becomes_restructured_text() -> None:
    lines = MARKDOWN.split("\n")
    _module("docstrings").restructured(lines)
    assert "\n".join(lines) == RESTRUCTURED


def test_a_file_of_the_repository_is_included_without_gaps_in_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    macros = _module("macros")
    monkeypatch.setattr(macros, "ROOT", tmp_path)
    (tmp_path / "some.md").write_text(
        "# Title\n\n## Part\n\n| a |\n|---|\n| 1 |\n\n| 2 |\n\n| b |\n|---|\n| 3 |\n"
    )
    wanted = "\n\n## Part\n\n| a |\n|---|\n| 1 |\n| 2 |\n\n| b |\n|---|\n| 3 |\n\n"
    assert macros.expand("\n<!-- include some.md -->\nold\n<!-- end -->\n") == wanted


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_what_pages_say_of_the_code_is_so(page: Path) -> None:
    """Tables and help texts in the repository are those that `python docs/macros.py` writes."""
    if page.name == "cli.md" and sys.version_info >= (3, 13):
        pytest.skip("argparse sets help in another way there")
    text = page.read_text(encoding="utf-8")
    assert _module("macros").renew(text) == text


@pytest.mark.filterwarnings("ignore:no cache given")
@pytest.mark.parametrize("name", [name for name in registry if name.startswith("VMR-")])
def test_an_id_needs_the_data_that_the_list_says(name: str) -> None:
    needed = re.findall("`(.+?)`", _module("macros").needed(registry[name]))
    if needed:
        with pytest.raises(DataError, match=rf"^{needed[0]}: is missing"):
            gymnasium.make(f"vmr_env:{name}")
    else:
        gymnasium.make(f"vmr_env:{name}").reset(seed=0)


def test_every_public_module_has_its_place_in_the_reference(tmp_path: Path) -> None:
    reference = _module("reference")
    (tmp_path / "gone.rst").touch()
    reference.write_pages(tmp_path)
    assert not (tmp_path / "gone.rst").exists()
    written = "\n".join(path.read_text() for path in tmp_path.glob("*.rst"))
    for name in ("vmr_env.envs.env", "vmr_env.agents.sb3.vec_env", "vmr_env.benchmarks.run_tprl"):
        assert f".. automodule:: {name}\n" in written
    for name in re.findall(r"automodule:: (\S+)", written):
        assert importlib.util.find_spec(name) is not None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site without the API reference, which `make docs` builds."""
    for name in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(name, reason="needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    chosen = ["-D", "exclude_patterns=api/vmr_env.[a-z]*.*"]
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        *chosen,
        str(DOCS),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_the_site_asks_no_other_host(site: Path) -> None:
    """Scripts, styles, fonts and pictures lie beside the pages."""
    loads = re.compile(
        r'<(?:script|img|source|video)[^>]+src="(?:https?:)?//|<link[^>]+href="(?:https?:)?//|url\(["\']?(?:https?:)?//|@import'
    )
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        found = loads.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.name}: {found}"


QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def tab(site: Path) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[dev]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium, for example Debian's package")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=QUIET)
        opened = browser.new_page(viewport={"width": 400, "height": 800})
        yield opened
        browser.close()


# Text of the page without code: what a reader takes for a broken table or list there.
DEBRIS = """() => {
  const article = document.querySelector("article").cloneNode(true);
  article.querySelectorAll("pre, code, svg, math, dt.sig").forEach(node => node.remove());
  const blocks = [...article.querySelectorAll("p, li, td, th, dd, dt, h1, h2, h3, h4")];
  const texts = blocks.map(node => node.textContent);
  const levels = [...article.querySelectorAll("h1, h2, h3, h4, h5")].map(node => Number(node.tagName[1]));
  return {
    pipes: texts.filter(text => /(^|\\n)\\s*\\|.*\\||\\|--/.test(text)),
    control: texts.filter(text => /[\\u0000-\\u0008\\u000b-\\u001f]/.test(text)),
    lists: texts.filter(text => /\\n\\s*([-*]|\\d+\\.) \\S/.test(text)),
    stars: texts.filter(text => /\\*\\*\\S|<!--/.test(text)),
    skipped: levels.filter((level, i) => level > (i ? levels[i - 1] : 0) + 1),
    wide: document.documentElement.scrollWidth > window.innerWidth,
  };
}"""
KINDS = ("pipes", "control", "lists", "stars", "skipped", "wide")


def test_pages_render_without_debris(site: Path, tab: Any) -> None:
    pages = [path for path in site.glob("*.html") if path.stem not in ("genindex", "search", "py-modindex")]
    assert len(pages) > 10
    debris = {}
    for path in pages:
        tab.goto(path.as_uri())
        debris[path.name] = {kind: found for kind, found in tab.evaluate(DEBRIS).items() if found}
    assert [f"{name}: {kinds}" for name, kinds in debris.items() if kinds] == []


def test_debris_is_seen(tab: Any) -> None:
    tab.set_content(
        "<article><h1>a</h1><h3>b</h3><p>| a | b |</p><p>x\n- one\n- two</p><p>**no** a\b</p>"
        "<div style='width: 900px'>wide</div></article>"
    )
    seen = tab.evaluate(DEBRIS)
    assert all(seen[kind] for kind in KINDS), seen
