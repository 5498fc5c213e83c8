"""Processors that a process may use: by affinity and by the quotas of control groups."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vmr_env.benchmarks.experiment import main
from vmr_env.benchmarks.experiment.processors import available_processors

HAVE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def written(root: Path, groups: str, files: dict[str, str]) -> Path:
    """What the kernel of a machine tells."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", HAVE),
        ("100000 100000\n", 1),
        ("150000 100000\n", 1),
        ("20000 100000\n", 1),
        ("99900000 100000\n", HAVE),
        ("what is this", HAVE),
    ],
)
@pytest.mark.parametrize("place", ["", "a.slice/", "a.slice/job/"])
def test_a_quota_is_respected(text: str, expected: int, place: str, tmp_path: Path) -> None:
    """Of the group itself, or of one above it."""
    root = written(tmp_path, "0::/a.slice/job\n", {f"sys/fs/cgroup/{place}cpu.max": text})
    assert available_processors(root) == expected


def test_the_group_of_a_container_may_be_the_mounted_folder(tmp_path: Path) -> None:
    """The path is then one of the host, where its container has no folder."""
    root = written(tmp_path, "0::/docker/12ab\n", {"sys/fs/cgroup/cpu.max": "100000 100000\n"})
    assert available_processors(root) == 1


@pytest.mark.parametrize(("quota", "expected"), [("100000\n", 1), ("-1\n", HAVE)])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_version_1_of_control_groups_is_respected(
    quota: str, expected: int, controllers: str, tmp_path: Path
) -> None:
    groups = f"9:name=systemd:/\n4:memory:/job\n2:cpuacct:/\n1:{controllers}:/job\n0::/\n"
    folder = f"sys/fs/cgroup/{controllers}/job"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000\n"}
    assert available_processors(written(tmp_path, groups, files)) == expected


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    assert available_processors(tmp_path / "missing") == HAVE


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_affinity_is_respected(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_processors(tmp_path / "missing") == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("given", "expected"), [(None, 5), (3, 3)])
def test_there_are_as_many_jobs_as_processors_where_none_are_given(
    given: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(main, "available_processors", lambda: 5)
    monkeypatch.setattr(main, "run_all", lambda work, runs, jobs, *rest: asked.append(jobs) or {})
    work: Any = SimpleNamespace(runs=lambda: iter(()), folder=tmp_path)
    options: Any = SimpleNamespace(jobs=given, cluster=None, log=())
    assert main.do_runs(work, options) == {}
    assert asked == [expected]
