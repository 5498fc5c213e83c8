"""The scripts of `examples/` run, and what they print is so; files for contributors are well-formed."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vmr_env import __version__

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "vmr_env" / "assets" / "charades-simulated"


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "charades").symlink_to(SHIPPED)
    monkeypatch.setenv("VMR_ENV_DATA", str(tmp_path))


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested() -> None:
    tested = set(re.findall(r'_example\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == tested


NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def _in_process(notebook: dict[str, Any]) -> None:
    """Run the code cells in one namespace, as a kernel does: they are plain Python, without magics."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)


def _by_kernel(notebook: dict[str, Any]) -> None:
    """Run it as Jupyter does, in a process of its own."""
    nbclient, nbformat = (
        pytest.importorskip(name, reason="needs Jupyter") for name in ("nbclient", "nbformat")
    )
    pytest.importorskip("ipykernel", reason="needs Jupyter")
    nbclient.NotebookClient(nbformat.from_dict(notebook), timeout=600).execute()


@pytest.mark.filterwarnings("ignore:.*Box action space")
@pytest.mark.parametrize("run", [_in_process, _by_kernel])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(
    path: Path, run: Callable[[dict[str, Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    run(notebook)
    if run is _in_process:
        told = capsys.readouterr().out
        if path.stem == "first_steps":
            gains = dict(re.findall(r"^(\w+) +([+-]\d+\.\d\d) points", told, re.MULTILINE))
            by_gain = sorted(gains, key=lambda name: float(gains[name]))
            assert by_gain == ["RandomAgent", "StopAtOnce", "ExpectedGain", "GreedyOracle"]
        else:
            assert "reward for what the frozen head says: 0.0" in told
            assert "changed: ['class_embed', 'span_embed']" in told
            before, after = re.findall(r"(?:detector|episodes): (\d+\.\d\d)", told)
            assert float(after) > float(before)


def test_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_steps", "tprl_with_sb3"]


def test_predictions_are_refined(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = _example("refine_predictions")
    monkeypatch.setattr(module, "ROUNDS", 10)
    gain = module.main([])
    before, after = map(float, re.findall(r"([\d.]+) (?:before|after)", capsys.readouterr().out))
    assert gain == pytest.approx(after - before, abs=0.011)  # both are rounded
    assert gain > 0


def test_the_scale_of_returns_is_in_order() -> None:
    gains = _example("compare_agents").main(4)
    assert gains["random"] < gains["stop"] == 0 < gains["expected gain"] < gains["greedy oracle"]


def test_episodes_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    last = _example("watch_episodes").main(2)
    shown = capsys.readouterr().out
    assert len(last) == 2
    assert all(picture in shown for picture in last)
    assert all("tIoU" in picture for picture in last)


def test_files_for_contributors_are_well_formed() -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    (paper,) = citation["references"]
    assert paper["title"].startswith("GIRL-DETR: ")
    assert paper["identifiers"][0]["value"] == "arXiv:2606.00775"
    assert all({"family-names", "given-names"} == author.keys() for author in paper["authors"])
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [hook["id"] for hook in hooks["repos"][0]["hooks"]][:2] == ["ruff", "ruff-format"]
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    steps = release["jobs"]["build"]["steps"]
    assert any("twine check" in step.get("run", "") for step in steps)
    (tag,) = (step["run"] for step in steps if step.get("name") == "The tag is the version")
    pattern = re.search(r're\.search\(r"(.+?)", open', tag)
    assert pattern is not None
    found = re.search(pattern[1], (ROOT / "vmr_env" / "__init__.py").read_text(encoding="utf-8"))
    assert found is not None
    assert found[1] == __version__
    for template in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"):
        _, head, _ = template.read_text(encoding="utf-8").split("---\n", 2)
        assert yaml.safe_load(head).keys() == {"name", "about"}
