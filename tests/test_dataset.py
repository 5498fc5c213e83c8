"""Samples, labels and batches against the goldens and against plain re-computation."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones.dataset import DatasetSettings, MomentDataset
from backbones.features import OfficialFeatures
from vmr_env.annotations import read_annotations

NAMES = ("hl", "charadesSTA", "tacos")


def golden_dataset(goldens: Path, name: str, annotations: str = "val.jsonl") -> MomentDataset:
    folder = goldens / "dataset" / name
    options = json.loads((goldens / "dataset" / "settings.json").read_text())[name]
    settings = DatasetSettings(
        clip_seconds=options["clip_length"],
        max_clips=options["max_v_l"],
        max_tokens=options["max_q_l"],
        max_windows=options["max_windows"],
        rated=name == "hl",
        official=True,
    )
    clips = OfficialFeatures(tuple(folder / d for d in options["v_feat_dirs"]))
    prefix = "" if name == "tacos" else "qid"
    tokens = OfficialFeatures(tuple(folder / d for d in options["t_feat_dirs"]), "last_hidden_state", prefix)
    return MomentDataset(read_annotations(folder / annotations), clips, tokens, settings)


@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_the_official_one(goldens: Path, name: str) -> None:
    batch = golden_dataset(goldens, name).batch(range(4), random.Random(123))
    with np.load(goldens / "dataset" / name / "batch.npz") as golden:
        expected = {key: golden[key] for key in golden.files}
    found = {
        "video_feat": batch.src_vid,
        "video_feat_mask": batch.src_vid_mask,
        "query_feat": batch.src_txt,
        "query_feat_mask": batch.src_txt_mask,
        "saliency_all_labels": batch.targets.saliency_all_labels,
        "saliency_pos_labels": batch.targets.saliency_pos_labels,
        "saliency_neg_labels": batch.targets.saliency_neg_labels,
        "saliency_pos_index": (batch.targets.saliency_all_labels > 0).long(),
        **{f"spans{i}": spans for i, spans in enumerate(batch.targets.spans)},
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == torch.from_numpy(value).dtype, key
        np.testing.assert_allclose(found[key].numpy(), value, rtol=1e-6, atol=1e-6, err_msg=key)


def test_rated_clip_past_the_last_row_equals_the_official_item(goldens: Path) -> None:
    item = golden_dataset(goldens, "hl", "edge_val.jsonl").item(0, random.Random(123))
    with np.load(goldens / "dataset" / "hl" / "edge_item.npz") as golden:
        np.testing.assert_allclose(item.video, golden["video_feat"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(item.spans, golden["span_labels"], rtol=1e-6)
        np.testing.assert_array_equal(item.saliency, golden["saliency_all_labels"])
        np.testing.assert_array_equal(item.positive, golden["saliency_pos_labels"])
        np.testing.assert_array_equal(item.negative, golden["saliency_neg_labels"])
