"""Pages of the API reference: one for each package, with all of its public modules."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREES = {
    "vmr_env": "vmr_env",
    "agents": "vmr_env.agents",
    "backbones": "vmr_env.backbones",
    "benchmarks": "vmr_env.benchmarks",
}
"""Folders of the repository, and the names that they are installed by."""


def packages() -> Iterator[tuple[str, list[str]]]:
    """Dotted name of every package, and those of its public modules."""
    for folder, name in TREES.items():
        for found in sorted((ROOT / folder).rglob("__init__.py")):
            package = ".".join([name, *found.parent.relative_to(ROOT / folder).parts])
            modules = sorted(path.stem for path in found.parent.glob("*.py") if not path.stem.startswith("_"))
            yield package, [f"{package}.{module}" for module in modules]


def write_pages(folder: Path) -> None:
    """Write a page for each package; what stands there already and is the same is left alone."""
    folder.mkdir(exist_ok=True)
    pages = {f"{package}.rst": _page(package, modules) for package, modules in packages()}
    for path in folder.glob("*.rst"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _page(package: str, modules: list[str]) -> str:
    parts = [_headed(package, "="), f".. automodule:: {package}\n   :no-members:\n"]
    for module in modules:
        parts += [_headed(module, "-"), f".. automodule:: {module}\n"]
    return "\n".join(parts)


def _headed(name: str, line: str) -> str:
    return f"{name}\n{line * len(name)}\n"
