"""The torture script finds careless jobs, and repeats what it found."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from vmr_env.benchmarks.torture import Attacker, Job, attack_all, main, mutate
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


def test_progress_is_told_every_half_minute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attacker = _attacker(tmp_path, careful=False)
    assert capsys.readouterr().err == "making job\n"
    times = iter([0.0, *(20.0 * number for number in range(1, 9))])
    attack_all(attacker, [("full disk", number) for number in range(8)], 130, lambda: next(times))
    out, err = capsys.readouterr()
    failed = out.count("FAILURE: ")
    lines = err.splitlines()
    assert [line.rpartition(",")[0] for line in lines] == [
        "0:40: 1 of 8 attacks made",
        "1:20: 3 of 8 attacks made",
        "2:00: 5 of 8 attacks made",
    ]
    told = [int(line.split()[-2]) for line in lines]
    assert told == sorted(told)
    assert told[-1] in (failed, failed - 1)
    assert "stopped after 130 s and 6 of 8 attacks" in out


def test_one_kind_may_be_begun_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the line of a failure says."""
    made = []
    monkeypatch.setattr("vmr_env.benchmarks.torture.jobs", lambda data: [])
    monkeypatch.setattr(
        "vmr_env.benchmarks.torture.attack_all", lambda attacker, attacks, seconds: made.append(attacks)
    )
    assert main(["--only", "full disk", "--skip", "97"]) == 0
    assert made == [[("full disk", number) for number in (97, 98, 99)]]
    assert main(["--quick"]) == 0
    assert len(made[1]) == 75


def test_mutations_repeat_and_are_of_every_kind(tmp_path: Path) -> None:
    def of(seed: int) -> str:
        path = tmp_path / f"{seed}"
        path.write_bytes(CONTENT)
        return mutate(path, np.random.default_rng(seed % 100))

    kinds = [of(seed) for seed in range(60)]
    assert kinds == [of(seed) for seed in range(100, 160)]
    assert set(kinds) == {"bit", "zeros", "cut", "empty", "gone", "folder", "longer", "noise"}
