"""Processors that a process may use: by affinity and by the quota of a container."""

import os
from pathlib import Path

import pytest
from vmr_env.benchmarks.experiment.processors import available_processors

HAVE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


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
def test_a_quota_is_respected(text: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert available_processors(tmp_path / "cpu.max") == expected


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
