"""Windows, post-processingion and saliency: equal to the official submissions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from girl_detr_cases import arrays, config_of, run, state_of
from hypothesis import given
from hypothesis import strategies as st

from vmr_env.backbones.girl_detr.checkpoint import official_model
from vmr_env.backbones.girl_detr.head import Detections
from vmr_env.backbones.girl_detr.inference import (
    Windows,
    WindowSettings,
    post_process,
    saliency_curves,
    windows,
)
from vmr_env.backbones.girl_detr.model import GirlDetr, GirlDetrOutput

DATASETS = {
    "hl": WindowSettings(clip_seconds=2, longest=150),
    "charadesSTA": WindowSettings(clip_seconds=1, longest=150),
    "tacos": WindowSettings(clip_seconds=1),
}
SCORE = 1e-4 + 1e-9  # one unit in the last decimal: scores agree to 1e-4 before they are rounded
SALIENCY = 2e-3  # of scores that went through float16
SUBMISSIONS = [
    *((name, f"evalbsz{size}", {}) for name in DATASETS for size in (3, 4)),
    ("charadesSTA", "evalbsz4_iouhead", {"use_iou_head": True}),
    ("charadesSTA", "evalbsz4_rerank0.5", {"iou_rerank_alpha": 0.5}),
    ("charadesSTA", "evalbsz4_unsorted", {"sort": False}),
]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scored_model(goldens: Path) -> GirlDetr:
    override = arrays(goldens / "dataset" / "class_embed_override.npz")
    state = state_of(goldens / "tiny") | {key: torch.from_numpy(value) for key, value in override.items()}
    return official_model(state, config_of(goldens / "tiny"), "tiny")


def outputs(goldens: Path, dataset: str, batch_size: int) -> list[GirlDetrOutput]:
    """Output of the four samples, in batches padded to their own longest sample."""
    model = scored_model(goldens)
    batch = arrays(goldens / "dataset" / dataset / "batch.npz")
    names = ("video_feat", "video_feat_mask", "query_feat", "query_feat_mask")
    video, video_mask, text, text_mask = (torch.from_numpy(batch[name]) for name in names)
    results = []
    for start in range(0, 4, batch_size):
        part = slice(start, start + batch_size)
        clips, tokens = int(video_mask[part].sum(1).max()), int(text_mask[part].sum(1).max())
        inputs = (
            video[part, :clips],
            video_mask[part, :clips],
            text[part, :tokens],
            text_mask[part, :tokens],
        )
        results.append(run(model, inputs, training_branches=False))
    return results


@pytest.mark.parametrize(("dataset", "name", "options"), SUBMISSIONS)
def test_submissions(goldens: Path, dataset: str, name: str, options: dict[str, Any]) -> None:
    folder = goldens / "dataset" / dataset
    durations = [row["duration"] for row in lines(folder / "val.jsonl")]
    batch_size = int(name[len("evalbsz")])
    found: list[Windows] = []
    curves = []
    for output in outputs(goldens, dataset, batch_size):
        seconds = durations[len(found) : len(found) + len(output.pred_iou)]
        found += windows(output, seconds, replace(DATASETS[dataset], **options))
        curves += saliency_curves(output)
    expected = lines(folder / f"submission_tiny_{name}.jsonl")
    assert len(expected) == len(found)
    for row, rows, curve in zip(expected, found, curves, strict=True):
        golden = np.array(row["pred_relevant_windows"])
        np.testing.assert_array_equal(rows[:, :2], golden[:, :2])
        np.testing.assert_allclose(rows[:, 2], golden[:, 2], atol=SCORE)
        if "pred_saliency_scores" in row:
            np.testing.assert_allclose(curve, row["pred_saliency_scores"], atol=SALIENCY)


def test_post_processing(goldens: Path) -> None:
    golden = json.loads((goldens / "dataset" / "postprocessing.json").read_text())
    rows = np.array(golden["input"])
    for name, dataset in (
        ("hl (clip 2)", "hl"),
        ("charadesSTA (clip 1)", "charadesSTA"),
        ("tacos (clip 1)", "tacos"),
    ):
        np.testing.assert_array_equal(post_process(rows, 1e9, DATASETS[dataset]), golden[name])


@given(
    st.lists(st.tuples(st.floats(-5, 40), st.floats(-5, 40), st.floats(0, 1)), min_size=1, max_size=8),
    st.floats(1, 30),
)
def test_inside_the_video(rows: list[tuple[float, float, float]], length: float) -> None:
    """With `inside_video`, nothing lies outside, though rounding to clips goes beyond an odd length."""
    times = post_process(np.array(rows), length, WindowSettings(clip_seconds=2, inside_video=True))[:, :2]
    assert ((times >= 0) & (times <= length)).all()
    on_clip = np.isclose(times % 2, 0) | np.isclose(times, length)
    assert on_clip.all()


def test_broken_numbers_and_counts_are_refused(goldens: Path) -> None:
    output = outputs(goldens, "hl", 4)[0]
    with pytest.raises(ValueError, match=r"seconds has shape \(3,\); expected \(4,\)"):
        windows(output, [1, 2, 3], DATASETS["hl"])
    broken = Detections(*(torch.full_like(field, torch.nan) for field in output.detections))
    with pytest.raises(ValueError, match="not all finite"):
        windows(replace(output, detections=broken), [1, 2, 3, 4], DATASETS["hl"])
