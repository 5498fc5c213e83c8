"""Cross-fitted backbones: no video is shown by a member that has learnt from it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from vmr_env.backbones import cache, train
from vmr_env.backbones.cross_fitted import open_cross_fitted, read_parts
from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.backbones.simulated.features import write_simulated
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import read_annotations
from vmr_env.data.profiles import get_profile
from vmr_env.errors import DataError

MEMBERS = 3
SMALL = [
    text
    for option in ("hidden_dim=16", "nheads=2", "dim_feedforward=16", "num_queries=4", "epochs=1")
    for text in ("--set", option)
]


def data_of(folder: Path) -> list[str]:
    return [
        "--annotations",
        str(folder / "annotations.jsonl"),
        "--clips",
        str(folder / "clips"),
        "--text",
        str(folder / "text"),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of `train` and `test`, and cross-fitted members trained on the former in `runs`."""
    folder = tmp_path_factory.mktemp("crossed")
    for seed, split in enumerate(("train", "test")):
        write_simulated(folder / split, get_profile("charades"), samples=60, seed=seed)
    command = ["charades-simulated", "--cross-fit", str(MEMBERS), *SMALL, "--out", str(folder / "runs")]
    train.main([*command, *data_of(folder / "train")])
    return folder


def cached(weights: Path, data: Path, out: Path) -> DecoderStateCache:
    arguments = [
        str(weights),
        *data_of(data),
        "--split",
        "train",
        "--dtype",
        "float32",
        "--out",
        str(out),
    ]
    cache.main(arguments)
    return DecoderStateCache.open(out)


def test_each_training_video_is_shown_by_a_member_new_to_it(folder: Path, tmp_path: Path) -> None:
    """Against caches that the members make one by one."""
    found = cached(folder / "runs", folder / "train", tmp_path / "crossed")
    members, left_out = read_parts(folder / "runs")
    assert members == MEMBERS
    alone = [
        cached(folder / "runs" / f"member-{k}" / "best", folder / "train", tmp_path / str(k))
        for k in range(members)
    ]
    assert {left_out[vid] for vid in found.vids()} == set(range(members))
    for row, vid in enumerate(found.vids()):
        np.testing.assert_array_equal(found.states[row], alone[left_out[vid]].states[row])  # type: ignore[index]
        np.testing.assert_array_equal(found.spans[row], alone[left_out[vid]].spans[row])
        others = [k for k in range(members) if k != left_out[vid]]
        assert not any(np.array_equal(found.spans[row], alone[k].spans[row]) for k in others)


def test_members_do_not_learn_from_the_videos_that_they_show(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the samples that reach the trainer, for training and for the choice of the epoch."""
    seen: list[set[str]] = []

    class Watched(train.Trainer):
        def __init__(self, recipe, learn, select, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
            seen.append({row.vid for part in (learn, select) for row in part.annotations})
            super().__init__(recipe, learn, select, *args, **kwargs)

    monkeypatch.setattr(train, "Trainer", Watched)
    command = ["charades-simulated", "--cross-fit", str(MEMBERS), *SMALL, "--out", str(tmp_path / "runs")]
    train.main([*command, *data_of(folder / "train")])
    _, left_out = read_parts(tmp_path / "runs")
    every = {row.vid for row in read_annotations(folder / "train" / "annotations.jsonl")}
    assert left_out.keys() == every
    for member, vids in enumerate(seen):
        assert vids == {vid for vid in every if left_out[vid] != member}


def test_unseen_videos_are_shown_by_the_mean_or_by_one_member_each(folder: Path, tmp_path: Path) -> None:
    """The mean by hand from each member's own output, before proposals are sorted."""
    recipe, mean = open_cross_fitted(folder / "runs", "refined", "mean")
    _, one = open_cross_fitted(folder / "runs", "refined", "one")
    rows = read_annotations(folder / "test" / "annotations.jsonl")
    rows = [row for row in rows if row.vid not in mean.left_out_by]
    data = MomentDataset(
        rows, FeatureStore(folder / "test" / "clips"), FeatureStore(folder / "test" / "text"), recipe.data
    )
    batch = data.batch(range(len(rows)), random.Random(0))
    outputs = [member.detect(batch) for member in mean.members]
    for name in ("states", "spans", "saliency", "clips", "scores"):
        parts = torch.stack([getattr(output, name) for output in outputs])
        torch.testing.assert_close(getattr(mean.detect(batch), name), parts.mean(0))
        shown = getattr(one.detect(batch), name)
        same = [[torch.equal(shown[row], part[row]) for part in parts] for row in range(len(rows))]
        assert all(sum(row) == 1 for row in same)
    assert len({tuple(row) for row in same}) == MEMBERS


def test_hash_tells_members_apart(folder: Path) -> None:
    _, detector = open_cross_fitted(folder / "runs", "none", "one")
    hashes = {member.sha256 for member in detector.members}
    assert len(hashes) == MEMBERS
    assert detector.sha256 not in hashes


def test_other_parts_in_the_same_folder_are_refused(folder: Path) -> None:
    command = ["charades-simulated", "--cross-fit", "2", *SMALL, "--out", str(folder / "runs")]
    with pytest.raises(DataError, match=r"cross-fitted\.json: holds members of other videos or parts"):
        train.main([*command, *data_of(folder / "train")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"members": 2}', "cannot be read"),
        ('{"members": 2, "left_out_by": {"a": 2}}', "left_out_by: names members beyond the 2"),
        ('{"members": "2", "left_out_by": {}}', "left_out_by: names members beyond"),
    ],
)
def test_a_damaged_list_of_parts_is_one_error(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "cross-fitted.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_parts(tmp_path)


def test_a_missing_member_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cross-fitted.json").write_text(json.dumps({"members": 2, "left_out_by": {}}))
    with pytest.raises(DataError, match="member-0"):
        open_cross_fitted(tmp_path, "none", "one")
