"""A built wheel contains everything that it needs, and nothing else."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vmr_env", "agents", "backbones", "benchmarks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of the sources, so that no build output lands among them."""
    setuptools = pytest.importorskip("setuptools", reason="building needs setuptools")
    if tuple(map(int, setuptools.__version__.split(".")[:2])) < (70, 1):
        pytest.importorskip(
            "wheel", reason="setuptools before 70.1 builds wheels only with the wheel package"
        )
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=lambda *_: ["__pycache__"])
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder / "dist")], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


def test_every_module_and_data_file_is_inside(wheel: zipfile.ZipFile) -> None:
    expected = {
        ("" if name == "vmr_env" else "vmr_env/") + path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file()
        and (
            path.suffix == ".py"
            or path.name == "py.typed"
            or path.is_relative_to(ROOT / "vmr_env" / "assets")
            or path.is_relative_to(ROOT / "benchmarks" / "report" / "templates")
            or path.is_relative_to(ROOT / "benchmarks" / "zoo")
        )
    }
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == expected
    assert {f"{name}/py.typed" for name in ("vmr_env", "vmr_env/agents", "vmr_env/backbones")} <= inside
    assert {name.split("/")[0] for name in inside} == {"vmr_env"}


def test_what_it_requires_is_what_is_declared(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    declared = {line.replace(" ", "") for line in config["options"]["install_requires"].split("\n") if line}
    required = {line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert {_sorted(line) for line in required} == {_sorted(line) for line in declared}
    assert metadata["Requires-Python"] == ">=3.10"
    assert {"bench", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    assert "make tprl" in metadata.get_payload()
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def _sorted(requirement: str) -> tuple[str, ...]:
    """A requirement, whatever the order of its bounds: "a>=1,<2" is "a<2,>=1"."""
    first, *rest = requirement.split(",")
    at = min((first.find(sign) for sign in "<>=!~" if sign in first), default=len(first))
    return (first[:at], *sorted([first[at:], *rest]))


def test_the_command_is_installed(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    points = configparser.ConfigParser()
    points.read_string(wheel.read(name).decode())
    assert dict(points["console_scripts"]) == {"vmr-env": "vmr_env.benchmarks.cli.main:main"}


def foreign_wheel(folder: Path) -> Path:
    """Another distribution with top-level `agents`, as the OpenAI Agents SDK has it, and `benchmarks`."""
    path = folder / "foreign-1.0-py3-none-any.whl"
    info = "foreign-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("agents", "benchmarks"):
            file.writestr(f"{name}/__init__.py", "OWNER = 'foreign'\n")
            file.writestr(f"{name}/base.py", "OWNER = 'foreign'\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.parametrize("foreign_first", [True, False])
def test_other_packages_may_own_the_names_of_our_folders(
    wheel: zipfile.ZipFile, tmp_path: Path, foreign_first: bool
) -> None:
    """Installed in either order, both are whole."""
    pytest.importorskip("pip", reason="installs by pip")
    wheels = [foreign_wheel(tmp_path), Path(str(wheel.filename))]
    site = tmp_path / "site"
    for path in wheels if foreign_first else wheels[::-1]:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--upgrade"]
        done = subprocess.run([*command, "--target", str(site), str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    program = (
        "import agents.base, benchmarks, vmr_env.agents.base, vmr_env.benchmarks; "
        "print(agents.OWNER, agents.base.OWNER, benchmarks.OWNER, vmr_env.__file__, "
        "vmr_env.agents.base.Agent.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ours = str(site / "vmr_env" / "__init__.py")
    assert done.stdout.split() == ["foreign", "foreign", "foreign", ours, "vmr_env.agents.base"]
