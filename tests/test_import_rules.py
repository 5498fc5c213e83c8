"""Which package may import which, and what `import vmr_env` leaves alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from caches import make_cache

ROOT = Path(__file__).resolve().parents[1]

INSTALLED = {
    "vmr_env": "vmr_env",
    "agents": "vmr_env.agents",
    "backbones": "vmr_env.backbones",
    "benchmarks": "vmr_env.benchmarks",
}
"""Name by which each top-level folder is imported."""

AGENTS, BACKBONES, BENCHMARKS = (INSTALLED[folder] for folder in ("agents", "backbones", "benchmarks"))

FORBIDDEN = {
    "vmr_env": {
        AGENTS,
        BACKBONES,
        BENCHMARKS,
        "tests",
        "torch",
        "ray",
        "stable_baselines3",
        "scipy",
        "safetensors",
    },
    "agents": {BACKBONES, BENCHMARKS, "tests"},
    "backbones": {AGENTS, BENCHMARKS, "tests"},
    "benchmarks": {"tests"},
}
"""Modules that no file of a folder imports, not even inside a function."""


def imported(path: Path) -> list[tuple[int, str]]:
    """Line and full name of every module that a file imports, relative ones resolved."""
    top, *inner = path.relative_to(ROOT).parent.parts
    package = [*INSTALLED[top].split("."), *inner]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = [*above, *([node.module] if node.module else [])]
            found += [(node.lineno, ".".join([*module, alias.name])) for alias in node.names]
    return found


def violations(path: Path, package: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imported(path)
        if any(f"{name}.".startswith(f"{forbidden}.") for forbidden in FORBIDDEN[package])
    ]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_what_they_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert [one for file in files for one in violations(file, package)] == []


FLOORS = ("errors", "arrays", "files", "data", "metrics", "caches", "simulation", "envs")
"""Parts of `vmr_env`, lowest first; each imports only from those below. `rendering` is level with `envs`."""


def test_floors_of_vmr_env_run_one_way() -> None:
    height = {name: floor for floor, name in enumerate(FLOORS)} | {"rendering": FLOORS.index("envs")}
    wrong = []
    for path in sorted((ROOT / "vmr_env").rglob("*.py")):
        own = path.relative_to(ROOT / "vmr_env").parts[0].removesuffix(".py")
        for line, name in imported(path):
            other = name.split(".")[1] if name.startswith("vmr_env.") else None
            if own in height and other in height and height[other] > height[own]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "import torch.nn",
        "def f():\n    from torch import nn",
        "from vmr_env.agents.ppo import PPO",
        "if True:\n    import numpy, vmr_env.backbones",
        "from . import agents",
    ],
)
def test_the_rule_sees_every_kind_of_import(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "vmr_env" / "module.py"
    file.parent.mkdir()
    file.write_text(line)
    assert len(violations(file, "vmr_env")) == 1
    file.write_text("import numpy as np\nfrom vmr_env.metrics.spans import tiou\nfrom . import spans\n")
    assert violations(file, "vmr_env") == []


def loaded_by(code: str) -> set[str]:
    """Top-level modules, and those of this package, in a fresh interpreter after the code."""
    report = "\nimport sys; names = {*sys.modules}; print(*sorted(names | {n.split('.')[0] for n in names}))"
    command = [sys.executable, "-c", code + report]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_importing_the_package_stays_light() -> None:
    loaded = loaded_by("import vmr_env")
    assert "vmr_env" in loaded
    assert loaded.isdisjoint({"torch", "stable_baselines3", "pyarrow", "scipy", AGENTS, BACKBONES})


def test_help_of_every_command_loads_nothing_heavy() -> None:
    loaded = loaded_by(
        "import click\n"
        "from click.testing import CliRunner\n"
        "from vmr_env.benchmarks.cli.main import main\n"
        "def walk(command, words):\n"
        "    told = CliRunner().invoke(main, [*words, '--help'], prog_name='vmr-env')\n"
        "    assert told.exit_code == 0, told.output\n"
        "    usage = told.output.split('[')[0].lower().split()\n"
        "    assert usage == ['usage:', 'vmr-env', *words], usage\n"
        "    for name, child in getattr(command, 'commands', {}).items():\n"
        "        walk(child, [*words, name])\n"
        "walk(main, [])"
    )
    assert {f"{BENCHMARKS}.speed.options", f"{BACKBONES}.parsers"} <= loaded  # it has come that far
    heavy = {"torch", "numba", "stable_baselines3", "pandas", "pyarrow", "scipy", "ray", "optuna"}
    assert loaded.isdisjoint(heavy)


def test_an_agent_that_only_acts_leaves_the_compiler_of_torch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading it, or pandas, takes longer than all that `vmr-env demo` does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    loaded = loaded_by(
        "from click.testing import CliRunner\n"
        "from vmr_env.benchmarks.cli.main import main\n"
        "told = CliRunner().invoke(main, ['demo'])\n"
        "assert told.exit_code == 0, told.output\n"
    )
    assert {"torch", f"{AGENTS}.expected_gain"} <= loaded
    assert loaded.isdisjoint({"torch._dynamo", "pandas"})


def test_stepping_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    source = make_cache(tmp_path / "cache")
    loaded = loaded_by(
        "import gymnasium\n"
        f"env = gymnasium.make('vmr_env:VMR-Charades-v0', source={str(source)!r})\n"
        "env.reset(seed=0); env.step(0)\n"
        f"envs = gymnasium.make_vec('vmr_env:VMR-Charades-v0', num_envs=2, source={str(source)!r})\n"
        "envs.reset(seed=0); envs.step(envs.action_space.sample())"
    )
    # Numba itself loads scipy where it is installed.
    assert loaded.isdisjoint({"torch", "stable_baselines3", AGENTS, BACKBONES})
