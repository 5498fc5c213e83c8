"""Backbones that are cross-fitted: states and scores of training videos as they are on unseen videos.

    python -m vmr_env.backbones.train qvhighlights-captions --cross-fit 5 \\
        --annotations train.jsonl ... --out runs/crossed
    python -m vmr_env.backbones.cache runs/crossed --annotations train.jsonl ... --split train --out train
    python -m vmr_env.backbones.cache runs/crossed --annotations val.jsonl ... --split val --out val

A backbone is better on videos that it was trained on than on others, so what agents learn over its own
training videos does not hold on test videos. Here the source videos are cut into K parts, and member k learns
on all parts but k. A cache shows each training video as the one member does that has not seen it. Videos of
no part are shown by the mean of all members, or, like training videos, by one of them each.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vmr_env.backbones.base import ClipMemory, DetectorOutput, GirlDetrDetector
from vmr_env.backbones.dataset import FeatureBatch
from vmr_env.backbones.frozen import recipe_of
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint
from vmr_env.backbones.recipes import Recipe
from vmr_env.data.annotations import Annotation
from vmr_env.data.profiles import get_profile
from vmr_env.data.splits import video_folds
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import write_text
from vmr_env.seeding import derived

FILE = "cross-fitted.json"
"""Names the part of each source video; beside it lie the runs of the members."""
PARTS_SEED = 0
"""Which videos form a part does not change with a run's seed, so seeds are compared on the same parts."""

Unseen = Literal["mean", "one"]
"""What shows videos that no member has seen: the mean of all members, or one member, drawn by the video."""


def member_folder(folder: Path, member: int) -> Path:
    """Where the run of a member lies; its weights are in `best`, as those of any run."""
    return folder / f"member-{member}"


def cut_into_parts(rows: Sequence[Annotation], recipe: Recipe, parts: int) -> list[int]:
    """Part of each sample; samples of one source video share it.

    Raises:
        DataError: fewer than two parts, or fewer source videos than parts.
    """
    profile = get_profile(recipe.dataset)
    found: list[int] = video_folds(
        [profile.source_video(row.vid) for row in rows], parts, PARTS_SEED
    ).tolist()
    return found


def write_parts(folder: Path, rows: Sequence[Annotation], parts: Sequence[int], recipe: Recipe) -> None:
    """Note which member has not seen which source video.

    Raises:
        DataError: the folder holds members of other parts, or cannot be written.
    """
    profile = get_profile(recipe.dataset)
    left_out = {profile.source_video(row.vid): part for row, part in zip(rows, parts, strict=True)}
    text = json.dumps({"members": max(parts) + 1, "left_out_by": dict(sorted(left_out.items()))}, indent=0)
    path = folder / FILE
    if path.exists() and path.read_text("utf-8") != text:
        message = "holds members of other videos or parts; expected the same, or a new folder"
        raise DataError(Problem(str(path), None, None, message))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def read_parts(folder: Path) -> tuple[int, dict[str, int]]:
    """Number of members, and the member that has not seen a source video, by source video.

    Raises:
        DataError: the file cannot be read or does not hold that.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text("utf-8"))
        members, left_out = content["members"], content["left_out_by"]
        fits = type(members) is int and all(part in range(members) for part in left_out.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(Problem(str(path), None, None, f"cannot be read ({shorten(error)})")) from error
    if not fits:
        message = f"names members beyond the {shorten(members)} that it says there are"
        raise DataError(Problem(str(path), None, "left_out_by", message))
    return members, left_out


@dataclass(frozen=True)
class CrossFittedDetector:
    """Members as one detector (`vmr_env.backbones.base.Detector`): a weighted mean of what they say.

    A video that one member has not seen is shown by that member alone; see `Unseen` for all others. The mean
    is taken proposal by proposal, which makes sense where members began with the same weights and their
    decoder queries kept their roles; query selection gives them none.

    Attributes:
        members: K detectors of the same kind.
        left_out_by: the member that has not seen a source video, by source video.
        source_video: source video of a video.
        unseen: what shows other videos.
    """

    members: Sequence[GirlDetrDetector]
    left_out_by: Mapping[str, int]
    source_video: Callable[[str], str]
    unseen: Unseen
    kind: str = "girl-detr, cross-fitted"

    @property
    def sha256(self) -> str:
        """Hash of the hashes of all members' weights."""
        return hashlib.sha256(" ".join(member.sha256 for member in self.members).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Members and what each has not seen."""
        parts = json.dumps(sorted(self.left_out_by.items()))
        return f"{[member.fingerprint for member in self.members]} {parts} {self.unseen}"

    @torch.no_grad()
    def detect(self, batch: FeatureBatch) -> DetectorOutput:
        """Proposals for a batch."""
        outputs = [member.detect(batch) for member in self.members]
        weights = torch.tensor([self._weights(vid) for vid in batch.vids])  # (B, K)
        means: dict[str, Any] = {
            field.name: _mean([getattr(output, field.name) for output in outputs], weights)
            for field in fields(DetectorOutput)
        }
        return DetectorOutput(**means)

    def _weights(self, vid: str) -> list[float]:
        """Share of each member in what is shown of a video."""
        video, count = self.source_video(vid), len(self.members)
        member = self.left_out_by.get(video)
        if member is None and self.unseen == "mean":
            return [1 / count] * count
        if member is None:
            member = derived(PARTS_SEED, f"unseen {video}") % count
        return [float(k == member) for k in range(count)]


def _mean(parts: Sequence[Tensor | None], weights: Tensor) -> Tensor | None:
    """Mean of K tensors (B, ...) with weights (B, K); None where they are."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    stacked = torch.stack(present)
    shares = weights.T.to(stacked).reshape(*stacked.shape[:2], *[1] * (stacked.ndim - 2))
    # What has no share must not count, be it as large as it may.
    return torch.where(shares > 0, shares * stacked, 0).sum(0)


def is_cross_fitted(folder: Path) -> bool:
    """Whether a folder holds cross-fitted members, rather than the weights of one backbone."""
    return (folder / FILE).exists()


def open_cross_fitted(
    folder: Path, memory: ClipMemory, unseen: Unseen, device: str = "cpu"
) -> tuple[Recipe, CrossFittedDetector]:
    """The members in a folder, and the recipe that they were trained by.

    Raises:
        DataError: a member is missing, not trained to its end, or damaged.
    """
    count, left_out = read_parts(folder)
    folders = [member_folder(folder, member) / "best" for member in range(count)]
    recipe = recipe_of(folders[0])
    members = [
        GirlDetrDetector(load_checkpoint(weights).to(device), memory, ranking=recipe.windows)
        for weights in folders
    ]
    source_video = get_profile(recipe.dataset).source_video
    return recipe, CrossFittedDetector(members, left_out, source_video, unseen)
