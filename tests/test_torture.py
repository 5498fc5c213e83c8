"""The torture script finds careless jobs, and repeats what it found."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from vmr_env.benchmarks.torture import Attacker, Job, mutate

from vmr_env.files.objects import read_sealed, write_sealed

CONTENT = bytes(range(256)) * 2000


def _careful(folder: Path) -> None:
    write_sealed(folder / "file", CONTENT)


def _careless(folder: Path) -> None:
    (folder / ".file.tmp").write_bytes(CONTENT)
    (folder / "file").write_bytes(CONTENT)


def _count(attacker: Attacker, kind: str, times: int) -> tuple[int, int]:
    for number in range(times):
        attacker.attack(kind, number)
    ((attempts, failures),) = (count for (of, _), count in attacker.counts.items() if of == kind)
    return attempts, failures


def _attacker(folder: Path, careful: bool) -> Attacker:
    if careful:
        job = Job("job", _careful, lambda place: str(sum(read_sealed(place / "file", "go"))))
    else:
        job = Job("job", _careless, lambda place: str(sum((place / "file").read_bytes())))
    return Attacker(folder, [job], seed=0)


@pytest.mark.parametrize("kind", ["mutation", "kill", "full disk", "pair"])
def test_a_careful_job_has_no_failures(tmp_path: Path, kind: str) -> None:
    assert _count(_attacker(tmp_path, careful=True), kind, 8) == (8, 0)


@pytest.mark.parametrize("kind", ["mutation", "full disk"])
def test_a_careless_job_is_caught(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    attempts, failures = _count(_attacker(tmp_path, careful=False), kind, 16)
    assert attempts == 16
    assert failures > 4
    assert f"FAILURE: {kind}" in capsys.readouterr().out


def test_mutations_repeat_and_are_of_every_kind(tmp_path: Path) -> None:
    def of(seed: int) -> str:
        path = tmp_path / f"{seed}"
        path.write_bytes(CONTENT)
        return mutate(path, np.random.default_rng(seed % 100))

    kinds = [of(seed) for seed in range(60)]
    assert kinds == [of(seed) for seed in range(100, 160)]
    assert set(kinds) == {"bit", "zeros", "cut", "empty", "gone", "folder", "longer", "noise"}
