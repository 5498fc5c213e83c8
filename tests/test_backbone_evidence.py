"""A frozen backbone's evidence, in its own caches and beside the predictions of others."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from vmr_env.backbones import cache, train
from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.backbones.frozen import recipe_of
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint
from vmr_env.backbones.simulated.features import write_simulated
from vmr_env.benchmarks.cli.main import main
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import read_annotations
from vmr_env.data.profiles import get_profile

SETTINGS = (
    "hidden_dim=16",
    "nheads=2",
    "dim_feedforward=16",
    "num_queries=4",
    "epochs=1",
    "query_selection=true",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, a backbone with query selection in `run/best`, and its own cache in `own`."""
    folder = tmp_path_factory.mktemp("evidence")
    write_simulated(folder / "data", get_profile("charades"), samples=30, seed=0)
    named = [f"--{name}={folder / 'data' / file}" for name, file in FILES.items()]
    small = [f"--set={setting}" for setting in SETTINGS]
    train.main(["charades-simulated", *small, *named, f"--out={folder / 'run'}"])
    made = ["--split=train", "--dtype=float32", f"--out={folder / 'own'}"]
    cache.main([str(folder / "run" / "best"), *named, *made])
    return folder


FILES = {"annotations": "annotations.jsonl", "clips": "clips", "text": "text"}


def test_its_own_cache_has_the_scores_of_its_query_selection(folder: Path) -> None:
    own = DecoderStateCache.open(folder / "own", checksums=True)
    own.verify()
    assert own.relevance is not None
    assert own.span_scores is not None
    assert own.saliency is not None
    data, weights = folder / "data", folder / "run" / "best"
    rows = read_annotations(data / "annotations.jsonl")
    recipe, model = recipe_of(weights), load_checkpoint(weights).eval()
    dataset = MomentDataset(rows, FeatureStore(data / "clips"), FeatureStore(data / "text"), recipe.data)
    for row in (0, 7):
        with torch.no_grad():
            logits = model(*dataset.batch([row], random.Random(0)).inputs).selection_logits[0].numpy()
        np.testing.assert_allclose(own.span_scores[row], logits[np.isfinite(logits)], atol=1e-4)
        np.testing.assert_array_equal(own.relevance[row], own.saliency[row])


def test_beside_other_predictions_it_says_the_same(folder: Path, tmp_path: Path) -> None:
    own = DecoderStateCache.open(folder / "own")
    told = tmp_path / "told.jsonl"
    with told.open("w") as file:
        for row in range(len(own)):
            sample = own.sample(row)
            windows = [[0.0, sample.duration / 2, 0.5]]
            about = {"qid": sample.qid, "vid": sample.vid, "query": sample.query}
            file.write(json.dumps({**about, "pred_relevant_windows": windows}) + "\n")
    features = [f"--{name}={folder / 'data' / file}" for name, file in FILES.items()]
    options = ["--dataset=charades", "--split=train", f"--out={tmp_path / 'joined'}"]
    command = ["cache", "predictions", str(told), *features, *options]
    done = CliRunner().invoke(main, [*command, f"--evidence={folder / 'run' / 'best'}"])
    assert done.exit_code == 0, done.output
    joined = DecoderStateCache.open(tmp_path / "joined", checksums=True)
    joined.verify()
    sha256 = own.manifest["backbone"]["sha256"]
    assert joined.manifest["notes"]["evidence"] == {"source": "girl-detr", "sha256": sha256}
    assert joined.counts.tolist() == [1] * len(own)
    assert (joined.n_clips == own.n_clips).mean() > 0.5
    for row in np.flatnonzero(joined.n_clips == own.n_clips).tolist():
        for name in ("relevance", "span_scores", "clips", "text"):
            found, expected = getattr(joined, name)[row], getattr(own, name)[row]
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=f"{name} of {row}")


def test_a_folder_without_weights_is_told_in_a_line(folder: Path, tmp_path: Path) -> None:
    features = [f"--{name}={folder / 'data' / file}" for name, file in FILES.items()]
    options = ["--dataset=charades", "--split=train", f"--out={tmp_path / 'joined'}"]
    told = tmp_path / "told.jsonl"
    told.write_text("")
    command = ["cache", "predictions", str(told), *features, *options, f"--evidence={folder}"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code != 0
    assert isinstance(done.exception, SystemExit)
    assert str(folder) in done.output
    assert not (tmp_path / "joined").exists()
