"""A package outside of this one, for tests: installed into a folder, used by a process that runs there."""

import subprocess
import sys
from pathlib import Path


def install_outside(folder: Path, module: str, *, plugin: bool = True) -> None:
    """What `pip install` of a package leaves behind: its module, and of a plugin its entry point."""
    (folder / "cooking_plugin.py").write_text(module)
    if not plugin:
        return
    info = folder / "cooking_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cooking-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vmr_env.plugins]\ncooking = cooking_plugin\n")


def run_outside(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script beside the module, so that the folder is on the path of every process that it starts."""
    script = folder / "use.py"
    script.write_text(code)
    return subprocess.run(
        [sys.executable, str(script), *arguments], cwd=folder, capture_output=True, text=True
    )
