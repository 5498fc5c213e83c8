"""An official checkpoint's own options rule how it predicts: command lines against official submissions."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from girl_detr_cases import arrays, state_of

from vmr_env.backbones import cache, predict
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.errors import DataError

SUBMISSIONS = [
    *((name, f"evalbsz{size}", {}) for name in ("hl", "charadesSTA", "tacos") for size in (3, 4)),
    ("charadesSTA", "evalbsz4_iouhead", {"use_iou_head": True}),
    ("charadesSTA", "evalbsz4_rerank0.5", {"iou_rerank_alpha": 0.5}),
]


def checkpoint(goldens: Path, path: Path, dataset: str, **changes: Any) -> Path:
    """The tiny model in the official form, with the options that the golden data set was read by."""
    model = json.loads((goldens / "tiny" / "config.json").read_text())
    settings = json.loads((goldens / "dataset" / "settings.json").read_text())[dataset]
    override = arrays(goldens / "dataset" / "class_embed_override.npz")
    state = state_of(goldens / "tiny") | {key: torch.from_numpy(value) for key, value in override.items()}
    options = {**model["model"], **model["loss"], **settings, "dset_name": dataset, **changes}
    torch.save({"model": state, "opt": argparse.Namespace(**options), "epoch": 0}, path)
    return path


def sources(goldens: Path, dataset: str) -> list[str]:
    folder = goldens / "dataset" / dataset
    return ["--annotations", str(folder / "val.jsonl"), "--features", str(folder / "features")]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_submission(found: Path, golden: Path) -> None:
    rows, expected = lines(found), lines(golden)
    assert [row["qid"] for row in rows] == [row["qid"] for row in expected]
    for row, want in zip(rows, expected, strict=True):
        windows, official = (np.array(one["pred_relevant_windows"]) for one in (row, want))
        np.testing.assert_array_equal(windows[:, :2], official[:, :2])
        np.testing.assert_allclose(windows[:, 2], official[:, 2], atol=1e-4 + 1e-9)


@pytest.mark.parametrize(("dataset", "name", "options"), SUBMISSIONS)
def test_predictions_equal_the_official_submission(
    goldens: Path, tmp_path: Path, dataset: str, name: str, options: dict[str, Any]
) -> None:
    size = int(name[len("evalbsz")])
    weights = checkpoint(goldens, tmp_path / "model.ckpt", dataset, eval_bsz=size, **options)
    predict.main([str(weights), *sources(goldens, dataset), "--out", str(tmp_path / "out.jsonl")])
    golden = goldens / "dataset" / dataset / f"submission_tiny_{name}.jsonl"
    assert_submission(tmp_path / "out.jsonl", golden)


@pytest.mark.parametrize(("dataset", "name", "options"), SUBMISSIONS[2:])
def test_caches_hold_the_official_proposals(
    goldens: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dataset: str,
    name: str,
    options: dict[str, Any],
) -> None:
    """Even where a part has room for fewer samples than a batch: batches decide what the model says."""
    monkeypatch.setattr(cache, "PART_SAMPLES", 2)
    size = int(name[len("evalbsz")])
    weights = checkpoint(goldens, tmp_path / "model.ckpt", dataset, eval_bsz=size, **options)
    command = [str(weights), *sources(goldens, dataset), "--split", "val", "--out", str(tmp_path / "val")]
    cache.main(command)
    opened = DecoderStateCache.open(tmp_path / "val")
    step = opened.manifest["clip_seconds"]
    golden = lines(goldens / "dataset" / dataset / f"submission_tiny_{name}.jsonl")
    for row, want in enumerate(golden):
        official = np.array(want["pred_relevant_windows"])
        np.testing.assert_allclose(opened.scores[row], official[:, 2], atol=1.1e-4)
        inside = official[:, :2].clip(0, opened.durations[row])
        seconds = opened.spans[row] * opened.durations[row]
        assert (np.abs(seconds - inside) <= step / 2 + 1e-3).all()


def test_features_as_they_are_without_endpoint_channels(goldens: Path, tmp_path: Path) -> None:
    """The official batch written to files, endpoint channels too, is what such a checkpoint reads."""
    folder = goldens / "dataset" / "charadesSTA"
    batch = arrays(folder / "batch.npz")
    for name in ("video", "text"):
        (tmp_path / name).mkdir()
    for b, row in enumerate(lines(folder / "val.jsonl")):
        clips = batch["video_feat"][b, : int(batch["video_feat_mask"][b].sum())]
        tokens = batch["query_feat"][b, : int(batch["query_feat_mask"][b].sum())]
        if len(clips) == 20:  # max_v_l, where the batch was cut: the file reaches further
            clips = np.concatenate([clips, np.zeros((3, clips.shape[1]), np.float32)])
        np.savez(tmp_path / "video" / f"{row['vid']}.npz", features=clips)
        np.savez(tmp_path / "text" / f"qid{row['qid']}.npz", last_hidden_state=tokens)
    weights = checkpoint(
        goldens,
        tmp_path / "model.ckpt",
        "charadesSTA",
        eval_bsz=4,
        ctx_mode="video",
        no_norm_vfeat=True,
        v_feat_dirs=["anywhere/video"],
        t_feat_dirs=["anywhere/text"],
    )
    annotations = ["--annotations", str(folder / "val.jsonl")]
    out = ["--out", str(tmp_path / "out.jsonl")]
    predict.main([str(weights), *annotations, "--features", str(tmp_path), *out])
    assert_submission(tmp_path / "out.jsonl", folder / "submission_tiny_evalbsz4.jsonl")
    stores = ["--clips", str(tmp_path / "clips"), "--text", str(tmp_path / "text")]
    with pytest.raises(DataError, match="--features: is missing; the recipe reads features as they are"):
        predict.main([str(weights), *annotations, *stores, *out])


def test_windows_are_rounded_to_the_checkpoint_s_clips(goldens: Path, tmp_path: Path) -> None:
    weights = checkpoint(goldens, tmp_path / "model.ckpt", "tacos", eval_bsz=4, clip_length=3)
    with pytest.raises(DataError, match="the annotation says"):  # 18 rows are 54 s by these options
        predict.main([str(weights), *sources(goldens, "tacos"), "--out", str(tmp_path / "out.jsonl")])
    rows = lines(goldens / "dataset" / "tacos" / "val.jsonl")
    stretched = [
        {**row, "duration": row["duration"] * 3, "relevant_windows": [[0, 3]], "qid": row["qid"]}
        for row in rows
    ]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stretched))
    features = str(goldens / "dataset" / "tacos" / "features")
    out = tmp_path / "out.jsonl"
    command = [str(weights), "--annotations", str(tmp_path / "val.jsonl"), "--features", features]
    predict.main([*command, "--out", str(out)])
    found = np.concatenate([np.array(row["pred_relevant_windows"])[:, :2] for row in lines(out)])
    np.testing.assert_array_equal(found % 3, 0)
    golden = goldens / "dataset" / "tacos" / "submission_tiny_evalbsz4.jsonl"
    whole = np.concatenate([np.array(row["pred_relevant_windows"])[:, :2] for row in lines(golden)])
    assert (np.abs(found - 3 * whole) <= 1.5 + 1.5).all()  # each is within half a step of the exact time


def test_the_command_line_overrides_aloud(
    goldens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = checkpoint(goldens, tmp_path / "model.ckpt", "charadesSTA", eval_bsz=4)
    out = tmp_path / "out.jsonl"
    command = [str(weights), *sources(goldens, "charadesSTA"), "--out", str(out)]
    golden = goldens / "dataset" / "charadesSTA"
    predict.main([*command, "--batch-size", "3"])
    assert f"--batch-size 3 overrides 4 of {weights}" in capsys.readouterr().err
    assert_submission(out, golden / "submission_tiny_evalbsz3.jsonl")
    predict.main([*command, "--batch-size", "4", "--recipe", "charades"])
    assert "overrides" not in capsys.readouterr().err
    assert_submission(out, golden / "submission_tiny_evalbsz4.jsonl")
    with pytest.raises(SystemExit):
        predict.main([*command, "--batch-size", "0"])
    assert "argument --batch-size: is '0'; expected a whole number from 1" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"--recipe: is 'tacos'.*trained on charadesSTA, expected 'charades'"):
        predict.main([*command, "--recipe", "tacos"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_bsz": 0}, "eval_bsz: 0; expected an integer from 1"),
        ({"max_v_l": "75"}, "max_v_l: '75'; expected an integer from 1"),
        ({"clip_length": float("nan")}, "clip_length: nan; expected seconds from 0.01 to 864000"),
        ({"iou_rerank_alpha": 2.0}, "iou_rerank_alpha: 2.0; expected 0 to 1"),
        ({"no_norm_vfeat": 1}, "no_norm_vfeat: 1; expected true or false"),
        ({"ctx_mode": "tef"}, "ctx_mode: 'tef'; expected 'video' or 'video_tef'"),
        ({"dset_name": "tvsum"}, "--recipe: is missing; .* is of the data set 'tvsum'"),
    ],
)
def test_options_without_sense_are_named(
    goldens: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    weights = checkpoint(goldens, tmp_path / "model.ckpt", "charadesSTA", **changes)
    out = ["--out", str(tmp_path / "out.jsonl")]
    with pytest.raises(DataError, match=message):
        predict.main([str(weights), *sources(goldens, "charadesSTA"), *out])
