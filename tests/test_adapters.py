"""A model of somebody else behind a cache: a minimal one in the manner of Moment-DETR."""

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vmr_env.backbones.base import DetectorOutput
from vmr_env.backbones.cache import build_cache
from vmr_env.backbones.dataset import DatasetSettings, FeatureBatch, MomentDataset
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.backbones.recipes import get_recipe
from vmr_env.backbones.simulated import embedded
from vmr_env.backbones.simulated.embedded import Sizes, build_embedded
from vmr_env.backbones.simulated.features import write_simulated
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import read_annotations
from vmr_env.data.profiles import get_profile
from vmr_env.errors import DataError


class MomentDetr(nn.Module):
    """Interface and output names of Moment-DETR: a dict; class and span layers named as there."""

    def __init__(self, video: int, text: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(video + text, 8)
        self.queries = nn.Parameter(torch.randn(6, 8))
        self.class_embed = nn.Linear(8, 2)
        self.span_embed = nn.Linear(8, 2)
        self.saliency_proj = nn.Linear(8, 1)

    def forward(
        self, src_txt: Tensor, src_txt_mask: Tensor, src_vid: Tensor, src_vid_mask: Tensor
    ) -> dict[str, Tensor]:
        text = (src_txt * src_txt_mask[..., None]).sum(1) / src_txt_mask.sum(1, keepdim=True)
        clips = self.project(torch.cat([src_vid, text[:, None].expand(-1, src_vid.shape[1], -1)], -1))
        weights = (clips @ self.queries.T).masked_fill(src_vid_mask[..., None] == 0, -1e9).softmax(1)
        states = weights.transpose(1, 2) @ clips
        return {
            "pred_logits": self.class_embed(states),
            "pred_spans": self.span_embed(states).sigmoid(),
            "saliency_scores": self.saliency_proj(clips).squeeze(-1),
        }


class MomentDetrDetector:
    """The adapter: decoder states are what the class layer is given, caught by a hook."""

    kind = "moment-detr"

    def __init__(self, model: MomentDetr) -> None:
        self.model = model.eval()
        self._states = torch.empty(0)
        model.class_embed.register_forward_pre_hook(self._catch)

    def _catch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._states = inputs[0]

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for tensor in self.model.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    fingerprint = sha256

    @torch.no_grad()
    def detect(self, batch: FeatureBatch) -> DetectorOutput:
        out = self.model(batch.src_txt, batch.src_txt_mask, batch.src_vid, batch.src_vid_mask)
        return DetectorOutput(
            states=self._states,
            references=out["pred_spans"],  # this model has no references
            logits=out["pred_logits"],
            spans=out["pred_spans"],
            saliency=out["saliency_scores"],
        )


@pytest.fixture
def dataset(tmp_path: Path) -> MomentDataset:
    write_simulated(tmp_path / "data", get_profile("charades"), samples=30, seed=0)
    clips, text = FeatureStore(tmp_path / "data" / "clips"), FeatureStore(tmp_path / "data" / "text")
    rows = read_annotations(tmp_path / "data" / "annotations.jsonl")
    return MomentDataset(rows, clips, text, DatasetSettings(clip_seconds=1, max_clips=75))


def cached(path: Path, detector: Any, dataset: MomentDataset, **options: Any) -> DecoderStateCache:
    build_cache(
        path,
        detector,
        dataset,
        split="test",
        source="simulated",
        profile="charades",
        progress=False,
        **options,
    )
    return DecoderStateCache.open(path, checksums=True)


def test_a_foreign_model_behind_a_cache(tmp_path: Path, dataset: MomentDataset) -> None:
    model = MomentDetr(dataset.video_width, dataset.text_width)
    found = cached(tmp_path / "c", MomentDetrDetector(model), dataset, dtype="float32", batch_size=7)
    assert found.manifest["models"] == ["moment-detr"]
    assert found.states is not None
    assert found.saliency is not None
    for index in (0, 13, 29):  # each sample alone, without padding
        batch = dataset.batch([index], random.Random(0))
        out = model(batch.src_txt, batch.src_txt_mask, batch.src_vid, batch.src_vid_mask)
        scores = out["pred_logits"][0].softmax(-1)[:, 0].detach().numpy()
        order = np.argsort(-scores, kind="stable")
        np.testing.assert_allclose(found.scores[index], scores[order], atol=1e-6)
        logits = torch.nn.functional.linear(
            torch.tensor(found.states[index]), model.class_embed.weight, model.class_embed.bias
        )
        np.testing.assert_allclose(logits.detach(), out["pred_logits"][0][order].detach(), atol=1e-5)
        centre, width = out["pred_spans"][0].detach().numpy().T
        spans = np.stack([centre - width / 2, centre + width / 2], 1)[order]
        np.testing.assert_allclose(found.spans[index], spans.clip(0, 1), atol=1e-6)
        np.testing.assert_allclose(found.saliency[index], out["saliency_scores"][0].detach(), atol=1e-5)
    clipped = found.manifest["notes"]["proposals_clipped"]
    assert clipped == int(((found.spans == 0) | (found.spans == 1)).any(-1).sum())


def test_an_unfinished_build_of_other_weights_is_not_used(
    tmp_path: Path, dataset: MomentDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MomentDetr(dataset.video_width, dataset.text_width)
    detector = MomentDetrDetector(model)
    options = {"split": "test", "source": "simulated", "profile": "charades", "progress": False}
    build_cache(tmp_path / "c", detector, dataset, shard=(0, 2), **options)  # type: ignore[arg-type]
    calls: list[int] = []
    detect = MomentDetrDetector.detect

    def counted(self: MomentDetrDetector, batch: FeatureBatch) -> DetectorOutput:
        calls.append(len(batch.src_vid))
        return detect(self, batch)

    monkeypatch.setattr(MomentDetrDetector, "detect", counted)
    build_cache(tmp_path / "c", detector, dataset, **options)  # type: ignore[arg-type]
    assert calls == []
    with torch.no_grad():
        model.queries.add_(1)
    build_cache(tmp_path / "c", detector, dataset, overwrite=True, **options)  # type: ignore[arg-type]
    assert sum(calls) == len(dataset)


def test_states_that_do_not_fit_are_refused(tmp_path: Path, dataset: MomentDataset) -> None:
    model = MomentDetr(dataset.video_width, dataset.text_width)
    with torch.no_grad():
        model.project.weight *= 1e8
    with pytest.raises(DataError, match="detector, states: holds numbers that are not finite in float16"):
        cached(tmp_path / "c", MomentDetrDetector(model), dataset)
    assert not (tmp_path / "c").exists()


def test_the_embedded_default_is_made_again_from_seeds(tmp_path: Path) -> None:
    recipe = get_recipe(embedded.RECIPE).with_options(
        {"epochs": 1, "hidden_dim": 8, "nheads": 2, "dim_feedforward": 8, "num_queries": 3}
    )
    sizes = Sizes(backbone=40, select=12, caches=(("train", 20), ("test", 10)))
    for name in "ab":
        build_embedded(tmp_path / name, tmp_path / f"work-{name}", recipe, sizes, progress=False)
    one, two = (DecoderStateCache.open(tmp_path / name / "test") for name in "ab")
    assert one.manifest == two.manifest
    assert one.manifest["source"] == "simulated"
    train = DecoderStateCache.open(tmp_path / "a" / "train")
    names = [{cache.sample(i).vid for i in range(cache.manifest["samples"])} for cache in (train, one)]
    assert not names[0] & names[1]
