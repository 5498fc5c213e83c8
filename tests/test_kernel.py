"""The compiled kernel against plain Python, without its compiler, with threads, and installed read-only."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from caches import make_cache
from refinement import user_cache_in
from slow_episode import SlowEpisode
from walks import recorded, varied_actions

import vmr_env
from vmr_env.envs import kernel
from vmr_env.envs.env import VMREnv
from vmr_env.envs.timelines import find_timelines
from vmr_env.envs.vector_env import VMRVectorEnv

MODES = ("discrete", "multidiscrete", "continuous", "candidates")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with user_cache_in(tmp_path_factory.mktemp("kernel")) as folder:
        yield str(make_cache(folder / "cache", 40, full=True))


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("actions", MODES)
def test_every_step_is_that_of_the_slow_episode(source: str, actions: str, stage: int) -> None:
    n, steps = 16, 40
    envs = VMRVectorEnv(n, source=source, actions=actions, stage=stage, autoreset_mode="SameStep")
    rng = np.random.default_rng(stage)
    envs.action_space.seed(stage)
    _, infos = envs.reset(seed=stage)
    slow: list[SlowEpisode] = []
    ended, ends = np.ones(n, bool), 0
    for _ in range(steps):
        began = [
            SlowEpisode(envs.cache, int(sample), int(proposal), actions, stage)
            for sample, proposal in zip(infos["sample"], infos["proposal"], strict=True)
        ]
        slow = [began[i] if ended[i] else slow[i] for i in range(n)]
        for i, episode in enumerate(slow):
            span = np.array(episode.span) * float(envs.cache.durations[episode.sample])
            np.testing.assert_allclose(infos["span"][i], span, atol=1e-4)
            assert infos["tiou"][i] == pytest.approx(episode.tiou(), abs=1e-5)
            assert infos["proposal"][i] == episode.proposal
            assert infos["action_mask"][i].tolist() == episode.mask()
        listed = actions in ("discrete", "candidates")
        taken = varied_actions(envs, rng) if listed else envs.action_space.sample()
        expected = [episode.step(action) for episode, action in zip(slow, taken, strict=True)]
        _, rewards, ended, _, infos = envs.step(taken)
        np.testing.assert_allclose(rewards, [earned for earned, _ in expected], atol=1e-5)
        assert ended.tolist() == [over for _, over in expected]
        ends += int(ended.sum())
    assert ends > n


def test_the_interpreter_gives_what_compiled_code_gives(source: str, tmp_path: Path) -> None:
    code = f"import numpy, walks; numpy.savez({str(tmp_path / 'walk')!r}, **walks.recorded({source!r}))"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, check=True)
    compiled = recorded(source)
    with np.load(tmp_path / "walk.npz") as interpreted:
        assert set(interpreted) == set(compiled)
        for name, values in compiled.items():
            assert values.dtype == interpreted[name].dtype
            np.testing.assert_allclose(values, interpreted[name], atol=1e-6, err_msg=name)


def test_threads_change_nothing(source: str) -> None:
    one, two = (recorded(source, threads=threads) for threads in (1, 2))
    for name, values in one.items():
        np.testing.assert_array_equal(two[name], values, err_msg=name)


def test_the_kernel_is_compiled_for_one_set_of_types(source: str) -> None:
    """Whatever the task is: later calls do not look at types."""
    recorded(source)
    VMRVectorEnv(2, source=source, samples=[1], components=["span"], proposals=1).reset(seed=0)
    VMREnv(source=source).reset(seed=0)
    entries = kernel.advance, kernel.draw, find_timelines
    assert [len(entry.overloads) for entry in entries] == [1, 1, 1]


def test_components_that_are_not_shown_are_not_compiled(source: str) -> None:
    code = f"""
from vmr_env.envs.components import write_clips, write_votes
from vmr_env.envs.env import VMREnv
for name in ("positions", "votes"):
    VMREnv(source={source!r}, components=["span", name])
    print(len(write_clips.overloads), len(write_votes.overloads))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["0 0", "0 1"]


def test_an_installation_that_is_read_only_compiles_into_the_users_folder(tmp_path: Path) -> None:
    site, users = tmp_path / "site", tmp_path / "users"
    shutil.copytree(
        Path(vmr_env.__file__).parent, site / "vmr_env", ignore=shutil.ignore_patterns("__pycache__", "*.nb?")
    )
    before = sorted(site.rglob("*"))
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    code = (
        "import numpy, vmr_env; from vmr_env.envs.rewards import potentials; print(vmr_env.__file__); "
        "print(potentials('tiou', numpy.float32([[0, 0.5]]), numpy.float32([[[0, 1]]])))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(users)}
    for variable in ("NUMBA_CACHE_DIR", "VMR_ENV_CACHE"):
        environment.pop(variable, None)
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-c", code],
            cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        for path in before:  # so that pytest can remove it
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert done.stdout.splitlines() == [str(site / "vmr_env" / "__init__.py"), "[0.5]"]
    assert sorted(site.rglob("*")) == before
    assert list((users / "vmr_env" / "compiled").rglob("*.nbi"))
