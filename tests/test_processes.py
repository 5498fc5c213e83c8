"""A training on several processes has the losses and the weights of one on one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from undropped import Undropped

from vmr_env.backbones import train
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint
from vmr_env.backbones.simulated.features import write_simulated
from vmr_env.data.profiles import get_profile

pytest.importorskip("lightning_fabric", reason="needs Lightning Fabric")

SETTINGS = {
    "hidden_dim": 16,
    "nheads": 2,
    "dim_feedforward": 16,
    "enc_layers": 1,
    "dec_layers": 2,
    "num_queries": 4,
    "epochs": 2,
    "scheduler": "step",  # whose runs may grow
    "eval_every": 1,
    "batch_size": 15,
}


def words(folder: Path, out: Path, **more: object) -> list[str]:
    """A command line: 46 samples to learn from, so that the last batch is one sample alone."""
    annotations = folder / "annotations.jsonl"
    rows = annotations.read_text().splitlines()
    learnt, select = folder / "learnt.jsonl", folder / "select.jsonl"
    learnt.write_text("\n".join(rows[:46]) + "\n")
    select.write_text("\n".join(rows[46:]) + "\n")
    settings = [f"--set={name}={json.dumps(value)}" for name, value in {**SETTINGS, **more}.items()]
    data = ["--annotations", learnt, "--select-annotations", select]
    features = ["--clips", folder / "clips", "--text", folder / "text"]
    return [str(word) for word in ("charades-simulated", *data, *features, "--out", out, *settings)]


def on_two(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(Path(__file__).with_name("undropped.py")), *arguments]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "simulated"
    write_simulated(folder, get_profile("charades"), samples=60, seed=1)
    return folder


def history(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def test_two_processes_have_the_losses_of_one_and_go_on(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loss of every epoch, and the weights; the second epoch is of another call, which resumes."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    monkeypatch.setattr(train, "GirlDetr", Undropped)
    train.main(words(simulated, alone))
    first = on_two(words(simulated, shared, epochs=1))
    assert first.returncode == 0, first.stderr
    second = on_two(words(simulated, shared))
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("2 epochs") == 1  # one of them speaks
    one, two = history(alone), history(shared)
    assert len(one) == len(two) == 2
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    expected, found = (load_checkpoint(out / "best").state_dict() for out in (alone, shared))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_model_that_mixes_samples_is_for_one_process(simulated: Path, tmp_path: Path) -> None:
    refused = on_two([*words(simulated, tmp_path / "out"), "--behaviour", "official"])
    assert refused.returncode != 0
    assert "--behaviour: mixes the samples of a batch (Q9), expected repaired" in refused.stderr
