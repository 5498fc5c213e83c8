"""A detector from outside of the package: its head is trained by the main job and put back into it."""

import json
from pathlib import Path
from typing import Any

import pytest
from outside import install_outside, run_outside
from torch import nn

from vmr_env.agents.tprl.config import default_config
from vmr_env.agents.tprl.trainer import TprlTrainer
from vmr_env.backbones.base import BACKBONES, open_detector, register_backbone
from vmr_env.errors import DataError

# Its layers have other names than ours, and scores and spans share one.
TOY = """
import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save, save_file
from torch import nn
from vmr_env.backbones.base import DetectorOutput


class ToyHead(nn.Module):
    width = 8
    span_layers = ("trunk", "where")
    score_layers = ("trunk", "which")

    def __init__(self):
        super().__init__()
        self.trunk, self.where, self.which = nn.Linear(8, 6), nn.Linear(6, 2), nn.Linear(6, 1)

    def score(self, states):
        logit = self.which(torch.relu(self.trunk(states)))
        return torch.cat([logit, torch.zeros_like(logit)], -1)

    def locate(self, states, references):
        return torch.sigmoid(torch.logit(references) + self.where(torch.relu(self.trunk(states))))


class Toy(nn.Module):
    kind = "cooking_plugin:open_toy"

    def __init__(self, channels):
        super().__init__()
        self.encode = nn.Linear(channels, 8)
        self.queries = nn.Parameter(torch.randn(5, 8))
        self.head = ToyHead()

    @torch.no_grad()
    def detect(self, batch):
        mask = batch.src_vid_mask[..., None]
        pooled = (batch.src_vid * mask).sum(1) / mask.sum(1)
        states = torch.tanh(self.encode(pooled)[:, None] + self.queries)
        references = torch.sigmoid(self.queries[:, :2]).expand(len(states), -1, -1)
        spans = self.head.locate(states, references)
        return DetectorOutput(states, references, self.head.score(states), spans)

    @property
    def sha256(self):
        return hashlib.sha256(save(self.state_dict())).hexdigest()

    @property
    def fingerprint(self):
        return self.sha256

    def save(self, path, notes):
        Path(path).mkdir()
        save_file(self.state_dict(), Path(path) / "toy.safetensors")
        return self.sha256


def open_toy(path):
    weights = load_file(path / "toy.safetensors")
    toy = Toy(weights["encode.weight"].shape[1])
    toy.load_state_dict(weights)
    return toy
"""

USE = """
import json
import random
from pathlib import Path

import torch
from cooking_plugin import Toy, open_toy
from vmr_env.backbones.cache import build_cache
from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.backbones.recipes import get_recipe
from vmr_env.backbones.simulated.features import write_simulated
from vmr_env.benchmarks.cli.main import main
from vmr_env.data.annotations import read_annotations
from vmr_env.data.predictions import read_predictions
from vmr_env.data.profiles import get_profile

AGENTS = ("tprl", "head_ppo")
COMMON = ["--members", "2", "--jobs", "1", "--seeds", "1", "--times", "exact", "--out", "out"]
SETTINGS = ["epochs=[1,1,2]", "lr=0.01", "start_is_candidate=false", "ema=0"]


def run(*arguments):
    try:
        code = main(list(arguments))
    except SystemExit as end:
        code = end.code
    assert not code, arguments


def dataset(split):
    rows = read_annotations(f"{split}/annotations.jsonl")
    return MomentDataset(rows, FeatureStore(f"{split}/clips"), FeatureStore(f"{split}/text"), RECIPE.data)


if __name__ == "__main__":
    torch.manual_seed(0)
    RECIPE = get_recipe("charades-simulated")
    for seed, (split, samples) in enumerate({"train": 24, "test": 10}.items()):
        write_simulated(Path(split), get_profile("charades"), samples, seed)
    toy = Toy(dataset("train").batch(range(1), random.Random(0)).src_vid.shape[2])
    toy.save("toy", {})
    common = {"source": "simulated", "profile": "charades", "dtype": "float32", "progress": False}
    for split in ("train", "test"):
        build_cache(f"cache-{split}", toy, dataset(split), split=split, **common)
    data = ["--cache", "cache-train", "--test-cache", "cache-test", "--weights", "toy"]
    settings = [f"--set={agent}.{setting}" for agent in AGENTS for setting in SETTINGS]
    run("tprl", *data, "--agents", *AGENTS, *settings, *COMMON)
    told = {}
    for agent in AGENTS:
        run("graft", "toy", f"out/runs/{agent}-seed0-fold0.safetensors", "--out", agent)
        before, trained = toy.state_dict(), open_toy(Path(agent))
        changed = {name for name, tensor in trained.state_dict().items() if not tensor.equal(before[name])}
        found = trained.detect(dataset("test").batch(range(10), random.Random(0)))
        centre, width = found.spans.unbind(-1)
        spans = torch.stack([centre - width / 2, centre + width / 2], -1).clamp(0, 1).numpy()
        best = found.logits[..., 0].argmax(1)
        written = read_predictions(f"out/submission-{agent}-seed0.jsonl")
        answers = {row.qid: row.windows[0, :2] for row in written}
        rows = read_annotations("test/annotations.jsonl")
        away = [abs(spans[i, best[i]] * row.duration - answers[row.qid]).max() for i, row in enumerate(rows)]
        told[agent] = [sorted({name.rpartition(".")[0] for name in changed}), float(max(away))]
    print(json.dumps(told))
"""


def test_a_foreign_head_is_trained_reported_and_put_back(tmp_path: Path) -> None:
    """With its trained head the whole detector answers from features what the run wrote."""
    install_outside(tmp_path, TOY, plugin=False)
    done = run_outside(tmp_path, USE)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    for agent in ("tprl", "head_ppo"):
        changed, away = told[agent]
        assert set(changed) <= {"head.trunk", "head.where", "head.which"}
        assert "head.trunk" in changed
        assert away < 2e-4  # submissions have four decimals
        frozen = record["agents"][agent]["frozen"]
        assert set(frozen) == {"encode.weight", "encode.bias", "queries"}
        assert all(hashes["after"] == [hashes["before"]] for hashes in frozen.values())
        assert agent in (tmp_path / "out" / "report.html").read_text()


def test_kinds_of_backbones_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKBONES, "_parts", dict(BACKBONES._parts))
    detector: Any = object()
    register_backbone("toy", lambda weights: detector)
    assert open_detector("toy", tmp_path) is detector
    with pytest.raises(DataError, match=r"No kind of backbone 'toi'. Did you mean 'toy'"):
        open_detector("toi", tmp_path)

    def broken(weights: Path) -> Any:
        raise KeyError("encode.weight")

    register_backbone("broken", broken)
    with pytest.raises(
        DataError, match=r"cannot be opened as weights of a broken backbone \('encode.weight'\)"
    ):
        open_detector("broken", tmp_path)


def test_what_is_no_head_is_refused() -> None:
    with pytest.raises(TypeError, match="the head, a Linear, lacks width, span_layers, score_layers, score"):
        TprlTrainer(nn.Linear(2, 2), default_config("charades"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"the head is a int, expected a torch\.nn\.Module"):
        TprlTrainer(3, default_config("charades"))  # type: ignore[arg-type]
