"""The search for settings of SB3's algorithms, and the comparison of stages, on small simulated data."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from vmr_env.benchmarks.experiment import sb3_search, stages
from vmr_env.data.profiles import get_profile
from vmr_env.envs.sources import open_source
from vmr_env.files.yaml import read_yaml
from vmr_env.simulation.simulator import simulate


def test_an_interrupted_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="needs Optuna")
    cache, drawn = open_source("charades", "train"), []

    def trained(*given: object) -> None:
        drawn.append(given[1])
        if len(drawn) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(sb3_search, "trained", trained)
    monkeypatch.setattr(sb3_search, "gain", lambda model, cache, rows: float(len(drawn)))
    kept = tmp_path / "a2c.db"
    with pytest.raises(KeyboardInterrupt):
        sb3_search.search("a2c", cache, trials=5, steps=1, seed=0, kept=kept)
    study = sb3_search.search("a2c", cache, trials=5, steps=1, seed=0, kept=kept)
    assert len(drawn) == 6
    assert [trial.value for trial in study.trials if trial.value] == [1, 2, 4, 5, 6]
    assert len({trial["learning_rate"] for trial in drawn}) == 6
    assert len(re.findall("# trial", capsys.readouterr().out)) == 5
    again = sb3_search.search("a2c", cache, trials=5, steps=1, seed=0, kept=kept)
    assert sb3_search.FIXED["a2c"] | again.best_params == drawn[-1]
    assert len(drawn) == 6


def test_two_searches_share_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another search over the same file, while a trial of the first runs."""
    pytest.importorskip("optuna", reason="needs Optuna")
    cache, drawn, kept = open_source("charades", "train"), [], tmp_path / "new" / "study"

    def search() -> Any:
        return sb3_search.search("dqn", cache, trials=4, steps=1, seed=0, kept=kept)

    def trained(*given: object) -> float:
        drawn.append(given[1])
        number = len(drawn)
        if number == 2:
            search()
        return float(number)

    monkeypatch.setattr(sb3_search, "trained", trained)
    monkeypatch.setattr(sb3_search, "gain", lambda model, cache, rows: model)
    study = search()
    # The second has done all that are complete without the one that the first still had to end.
    assert [trial.value for trial in sb3_search.complete(study)] == [1, 2, 3, 4, 5]
    assert study.best_params["learning_rate"] == drawn[4]["learning_rate"]
    assert len({trial["learning_rate"] for trial in drawn}) == 5
    assert sorted(re.findall(r"# trial (\d)", capsys.readouterr().out)) == list("12345")


def test_processes_share_a_study(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs Optuna")
    module = "vmr_env.benchmarks.experiment.sb3_search"
    command = f"-W ignore -m {module} a2c --trials 5 --steps 64 --seeds 0 --study {tmp_path / 'a2c'}"
    run = [sys.executable, *command.split()]
    processes = [
        subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    out = "".join(out for out, _ in told)
    numbers = sorted(int(number) for number in re.findall(r"# trial (\d+):", out))
    assert numbers in ([*range(1, 6)], [*range(1, 7)])
    again = subprocess.run(run, capture_output=True, text=True, check=True, timeout=300).stdout
    assert f"# a2c: best of {len(numbers)} trials" in again
    assert "# trial" not in again
    assert "# after" not in again


def test_a_file_that_is_no_study_is_named(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs Optuna")
    (tmp_path / "old.db").write_bytes(b"SQLite format 3\0\n\xff\n")
    cache = open_source("charades", "train")
    with pytest.raises(ValueError, match=r"old\.db: not a study, expected a file that --study wrote"):
        sb3_search.search("a2c", cache, trials=1, steps=1, seed=0, kept=tmp_path / "old.db")


ZOO = Path(sb3_search.__file__).parents[1] / "zoo"
SHIPPED = ("a2c", "dqn", "maskable_ppo", "ppo")


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, samples in (("train", 40), ("val", 20)):
        (tmp_path / "charades").mkdir(exist_ok=True)
        simulate(tmp_path / "charades" / split, get_profile("charades"), split, samples=samples)
    monkeypatch.setenv("VMR_ENV_DATA", str(tmp_path))


@pytest.mark.parametrize("algorithm", ["dqn", "sac"])
def test_a_search_prints_settings_that_train(algorithm: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="needs Optuna")
    command = [algorithm, "--trials", "2", "--steps", "64", "--final-steps", "64", "--seeds", "2"]
    assert sb3_search.main(command) == 0
    told = capsys.readouterr().out
    assert len(re.findall(r"^# trial \d: [+-]\d+\.\d\d, \d+ s of a processor$", told, re.MULTILINE)) == 2
    gains = re.findall(r"^# after 64 steps, seed (\d): ([+-]\d+\.\d\d)$", told, re.MULTILINE)
    assert [seed for seed, _ in gains] == ["0", "1"]
    mean = float(re.findall(r"^# mean: ([+-]\d+\.\d\d) ± \d+\.\d\d$", told, re.MULTILINE)[0])
    assert mean == pytest.approx(np.mean([float(gained) for _, gained in gains]), abs=0.011)
    found = dict(re.findall(r"^  (\w+): (.+)$", told, re.MULTILINE))
    assert set(sb3_search.SPACES[algorithm]) < set(found)
    assert (found["gamma"], found["policy"], found["n_timesteps"]) == ("1.0", "MlpPolicy", "64")


@pytest.mark.parametrize("algorithm", SHIPPED)
def test_shipped_settings_are_taken(algorithm: str) -> None:
    """Every setting of benchmarks/zoo reaches the algorithm, for the environments that its actions need."""
    if algorithm == "maskable_ppo":
        pytest.importorskip("sb3_contrib", reason="needs sb3-contrib")
    shipped = read_yaml(ZOO / f"{algorithm}.yml")
    settings = dict(shipped.pop("default"))
    assert settings.pop("n_timesteps") == 200_000
    assert settings.pop("policy") == "MlpPolicy"
    assert settings.pop("gamma") == pytest.approx(1, abs=1e-3)
    actions = "-Continuous" if algorithm in sb3_search.CONTINUOUS else ""
    assert list(shipped) == [f"VMR-{name}{actions}-v0" for name in ("Charades", "QVHighlights", "TACoS")]
    cache = open_source("charades", "train")
    model = sb3_search.trained(algorithm, settings, cache, np.arange(len(cache)), steps=1, seed=0)
    assert model.n_envs == settings.pop("n_envs")
    if "use_rms_prop" in settings:
        assert isinstance(model.policy.optimizer, RMSpropTFLike) == settings.pop("use_rms_prop")
    for name, value in settings.items():
        found = getattr(model, name)
        if name == "policy_kwargs":
            found = {key: found[key] for key in value}
        if name == "train_freq":
            found = found.frequency
        elif name == "clip_range":
            found = found(1.0)
        assert found == value, name


@pytest.mark.parametrize("algorithm", ["a2c", "dqn", "maskable_ppo"])
def test_the_page_says_of_shipped_settings_what_their_file_says(algorithm: str) -> None:
    lines = (ZOO / f"{algorithm}.yml").read_text(encoding="utf-8").splitlines()
    head = " ".join(line[2:] for line in lines if line[0] == "#")
    trials, steps = re.findall(rf"sb3_search {algorithm} --trials (\d+) --steps (\d+)", head)[0]
    best, final, gained = re.findall(
        r"held out: ([+-][\d.]+); .* After ([\d,]+) steps it gains (\+[\d.]+ ± [\d.]+) ", head
    )[0]
    page = (Path(__file__).parents[1] / "docs" / "clients.md").read_text(encoding="utf-8")
    row = f"| `{algorithm}` | {trials}, {int(steps):,} | {best} | {final} | {gained} |"
    assert row in page.splitlines()
    shipped = read_yaml(ZOO / f"{algorithm}.yml")["default"]
    assert int(final.replace(",", "")) == shipped["n_timesteps"]
    drawn = sb3_search.SPACES[algorithm].keys() | sb3_search.FIXED.get(algorithm, {}).keys()
    assert drawn | {"n_timesteps", "policy", "gamma"} == shipped.keys()


def test_trials_are_judged_on_videos_that_they_do_not_learn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna", reason="needs Optuna")
    cache, rows = open_source("charades", "train"), {}

    def trained(*given: object) -> None:
        rows["learn"] = given[3]

    def gain(model: object, cache: object, judged: np.ndarray) -> float:
        rows["judge"] = judged
        return 0.0

    monkeypatch.setattr(sb3_search, "trained", trained)
    monkeypatch.setattr(sb3_search, "gain", gain)
    sb3_search.search("a2c", cache, trials=1, steps=1, seed=0)
    videos = np.array(cache.source_videos())
    assert not set(videos[rows["learn"]]) & set(videos[rows["judge"]])
    assert sorted([*rows["learn"], *rows["judge"]]) == list(range(len(cache)))


def test_stages_are_compared_on_the_same_budget(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--steps", "2048", "--seeds", "2", "--settings", "0", "5", "--regimes", stages.THROUGH]
    assert stages.main(command) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows[2:]] == ["3", "1, 2, 3"] * 2
    assert [bool(row[4]) for row in rows[2:]] == [False, True] * 2
    alone, through = (float(row[2].split()[0]) for row in rows[2:4])
    assert float(rows[3][4].split()[0]) == pytest.approx(through - alone, abs=0.011)
