"""Named recipes: everything that a training run needs to know but the paths of its data and where it runs.

The first three hold the paper's settings (specification sections 1.3 and 4.5), with the text-guided gate on,
which their scripts leave out (Q23). The others are ours, for the data at hand here.
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from vmr_env.backbones.augment import Augmentation
from vmr_env.backbones.dataset import DatasetSettings
from vmr_env.backbones.features.similarity import SimilarityChannels
from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.inference import WindowSettings
from vmr_env.data.profiles import PROFILES, DatasetProfile
from vmr_env.errors import DataError, Problem
from vmr_env.settings import ABOVE_0, BELOW_1, COUNT_OR_0, Range, Settings


@dataclass(frozen=True)
class Recipe(Settings):
    """A named training configuration.

    Attributes:
        dataset: name of a dataset profile.
        model: the model; `v_feat_dim` and `t_feat_dim` are filled in from the features.
        data: how annotations and features become samples.
        blind: no clip features; the model sees the text and the positions of the clips.
        video_folders: folders of clip features below the feature root, in the official layout.
        text_folders: likewise for text features.
        text_prefix: of their file names, before the qid.
        epochs: passes over the training samples.
        batch_size: samples of a training step.
        eval_batch_size: samples of a forward pass in evaluation.
        lr: full learning rate.
        scheduler: "step" (divided by 10 every `lr_drop` epochs) or "cosine" (to a hundredth).
        lr_drop: see `scheduler`.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: of AdamW, on all parameters.
        clip_norm: largest global gradient norm.
        ema_decay: per step, of the moving average of the weights that is evaluated and kept; 0 for none.
        eval_every: epochs between evaluations on the selection samples.
        seed: of weights, order, dropout and all draws.
        normalise_features: L2-normalise each row of feature files in the official layout.
        iou_rerank_alpha: see `WindowSettings`.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "seed": COUNT_OR_0,
        "warmup_epochs": COUNT_OR_0,
        "clip_norm": ABOVE_0,
        "ema_decay": BELOW_1,
    }

    dataset: str
    model: GirlDetrConfig
    data: DatasetSettings
    blind: bool = False
    video_folders: tuple[str, ...] = ()
    text_folders: tuple[str, ...] = ()
    text_prefix: str = "qid"
    epochs: int = 100
    batch_size: int = 32
    eval_batch_size: int = 100
    lr: float = 2e-4
    scheduler: Literal["step", "cosine"] = "step"
    lr_drop: int = 400
    warmup_epochs: int = 0
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    ema_decay: float = 0.0
    eval_every: int = 5
    seed: int = 2018
    normalise_features: bool = True
    iou_rerank_alpha: float = 0.0

    @property
    def profile(self) -> DatasetProfile:
        """The dataset profile."""
        return PROFILES[self.dataset]

    @property
    def windows(self) -> WindowSettings:
        """How predictions become windows: the official rule, or inside the video with repaired behaviour."""
        official = self.model.behaviour == "official"
        return WindowSettings(
            clip_seconds=self.data.clip_seconds if official else self.profile.submission_step,
            longest=self.profile.submission_limit if official else None,
            inside_video=not official,
            use_iou_head=self.model.use_iou_head,
            iou_rerank_alpha=self.iou_rerank_alpha,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, by field name."""
        return {**asdict(self), "model": self.model.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "Recipe") -> "Recipe":
        """Inverse of `to_dict`; names that do not exist and wrong values raise `DataError` naming `where`."""
        try:
            return cls._from_dict(dict(values), where)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(Problem(where, None, None, str(error))) from error

    @classmethod
    def _from_dict(cls, values: dict[str, Any], where: str) -> "Recipe":
        _refuse_unknown(cls, values, where)
        data = dict(values["data"])
        _refuse_unknown(DatasetSettings, data, where)
        if data.get("similarity") is not None:
            _refuse_unknown(SimilarityChannels, data["similarity"], where)
            tuples = {name: tuple(data["similarity"][name]) for name in ("sigmas", "thresholds")}
            data["similarity"] = SimilarityChannels(**{**data["similarity"], **tuples})
        if data.get("augmentation") is not None:
            _refuse_unknown(Augmentation, data["augmentation"], where)
            data["augmentation"] = Augmentation(**data["augmentation"])
        values["data"] = DatasetSettings(**data)
        values["model"] = GirlDetrConfig.from_dict(values["model"], where)
        for name in ("video_folders", "text_folders"):
            values[name] = tuple(values[name])
        return cls(**values)

    def with_options(self, options: Mapping[str, Any]) -> "Recipe":
        """The recipe with other values; names of model, data, similarity, augmentation options go to those.

        Raises:
            ValueError: an unknown name, with the nearest known one.
        """
        parts: dict[str, Any] = {
            "recipe": self,
            "model": self.model,
            "data": self.data,
            "similarity": self.data.similarity,
            "augmentation": self.data.augmentation,
        }
        owner = {f.name: part for part, value in reversed(parts.items()) if value for f in fields(value)}
        changes: dict[str, dict[str, Any]] = {part: {} for part in parts}
        for name, value in options.items():
            if name not in owner:
                near = difflib.get_close_matches(name, owner, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"No option {name!r}.{hint} Known options: {', '.join(sorted(owner))}.")
            changes[owner[name]][name] = value
        for part in ("similarity", "augmentation"):
            if changes[part]:
                changes["data"].setdefault(part, replace(parts[part], **changes[part]))
        return replace(
            self,
            model=replace(self.model, **changes["model"]),
            data=replace(self.data, **changes["data"]),
            **changes["recipe"],
        )


def _refuse_unknown(kind: type, values: Mapping[str, Any], where: str) -> None:
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise DataError(Problem(where, None, unknown[0], f"unknown option; expected some of {sorted(known)}"))


def _settings(dataset: str, **options: Any) -> DatasetSettings:
    profile = PROFILES[dataset]
    return DatasetSettings(
        clip_seconds=profile.clip_seconds,
        max_clips=profile.max_clips,
        max_tokens=profile.max_query_tokens,
        max_windows=profile.max_windows,
        rated=profile.has_saliency,
        **options,
    )


_CLIP_FOLDERS = ("internvideo2_video_features", "clip_video_features", "blip_video_features")
_TEXT_FOLDERS = ("clip_text_features", "blip_text_features")

_CHARADES = Recipe(
    dataset="charades",
    model=GirlDetrConfig(),
    data=_settings("charades"),
    video_folders=_CLIP_FOLDERS,
    text_folders=_TEXT_FOLDERS,
    batch_size=256,
    eval_batch_size=32,
    lr_drop=100,
    ema_decay=0.999,
    seed=3800,
)
_QVHIGHLIGHTS = Recipe(
    dataset="qvhighlights",
    model=GirlDetrConfig(contrastive_align_loss_coef=0.2),
    data=_settings("qvhighlights"),
    video_folders=("internvideo2_video_features", "clip_features", "blip_video_features"),
    text_folders=("clip_text_features", "blip_aug_text_features_openai"),
    epochs=200,
    batch_size=128,
    lr=1e-4,
)
_TACOS = replace(
    _CHARADES,
    dataset="tacos",
    model=GirlDetrConfig(hard_pos_neg_loss=False, lw_saliency=0.5),
    data=_settings("tacos"),
    text_prefix="",
    batch_size=32,
    eval_batch_size=8,
)

# Small and strongly regularised: 1,400 training videos, features of captions.
_CAPTIONS = Recipe(
    dataset="qvhighlights",
    model=GirlDetrConfig(
        hidden_dim=64,
        nheads=4,
        dim_feedforward=256,
        enc_layers=2,
        dec_layers=2,
        input_dropout=0.1,
        contrastive_align_loss_coef=0.2,
        mr_to_hd_loss=False,
        query_selection=True,
    ),
    data=_settings(
        "qvhighlights",
        normalise_text=True,
        paraphrases=5,
        paraphrase_share=0.8,
        similarity=SimilarityChannels(),
        augmentation=Augmentation(reverse=0.5, crop=0.5),
    ),
    epochs=15,
    batch_size=16,
    lr=1e-3,
    scheduler="cosine",
    warmup_epochs=1,
    weight_decay=1e-2,
    ema_decay=0.99,
    eval_every=3,
)

# The embedded default: small enough to train in about two minutes on two cores.
_SIMULATED = Recipe(
    dataset="charades",
    model=GirlDetrConfig(
        hidden_dim=32,
        nheads=4,
        dim_feedforward=64,
        enc_layers=1,
        dec_layers=2,
        input_dropout=0.1,
        contrastive_align_loss=False,
        mr_to_hd_loss=False,
    ),
    data=_settings("charades"),
    epochs=20,
    batch_size=32,
    lr=2e-3,
    scheduler="cosine",
    warmup_epochs=1,
    ema_decay=0.98,
)

# Small models on the text of real queries, for data sets whose video features are not at hand.
_SMALL = GirlDetrConfig(
    hidden_dim=64,
    nheads=4,
    dim_feedforward=128,
    enc_layers=1,
    dec_layers=2,
    input_dropout=0.1,
    contrastive_align_loss=False,
    mr_to_hd_loss=False,
)
_CHARADES_ANNOTATION_DERIVED = Recipe(
    dataset="charades",
    model=_SMALL,
    # Half of all videos are no longer; longer ones are averaged down, which makes training twice as fast.
    data=replace(_settings("charades", normalise_text=True), max_clips=32),
    epochs=6,
    batch_size=64,
    lr=1e-3,
    scheduler="cosine",
    warmup_epochs=1,
    ema_decay=0.99,
    eval_every=2,
)
# Clips that say nothing but where they are; few of them say as much as many.
_BLIND_CLIPS = 16
_CHARADES_BLIND = replace(
    _CHARADES_ANNOTATION_DERIVED,
    blind=True,
    data=replace(_settings("charades", normalise_text=True), max_clips=_BLIND_CLIPS),
)
_TACOS_BLIND = replace(
    _CHARADES_BLIND,
    dataset="tacos",
    data=replace(_settings("tacos", normalise_text=True), max_clips=_BLIND_CLIPS),
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "charades": _CHARADES,
        "qvhighlights": _QVHIGHLIGHTS,
        "tacos": _TACOS,
        "qvhighlights-captions": _CAPTIONS,
        "charades-simulated": _SIMULATED,
        "charades-annotation-derived": _CHARADES_ANNOTATION_DERIVED,
        "charades-blind": _CHARADES_BLIND,
        "tacos-blind": _TACOS_BLIND,
    }
)


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; an unknown name raises ValueError with the nearest known one."""
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name.lower(), RECIPES, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"No recipe {name!r}.{hint} Known recipes: {', '.join(RECIPES)}.")
