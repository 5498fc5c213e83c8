"""Configuration of GIRL-DETR: sizes, losses and which of the official model's oddities are repaired.

Field names are those of the official options, so that an ``opt.json`` reads directly (see `checkpoint`).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from vmr_env.errors import DataError, Problem, shorten

REPAIRS: Mapping[str, str] = {
    "padded_similarity": (
        "Refinement: the similarity of padded clips to the sentence is 0, not cos - 103.28, which came from "
        "the logarithm of a subnormal number (Q5)."
    ),
    "word_clip_attention": (
        "Refinement: the fourth block is the text that each clip attends to (scaled dot product, padded "
        "tokens left out), not a constant vector; `cor_v_w` and `cor_q_w` go (Q6)."
    ),
    "cmi_pre_norm": "CMI: `pre_norm` works (Q7).",
    "cmi_residual": "CMI: the feed-forward branch is added to its input, not to itself (Q8).",
    "cmi_text_norm": "CMI: the updated text passes through the norm made for it, `norm2`, never used before.",
    "cmi_masks": "CMI: no attention mask taken from other samples of the batch (Q9).",
    "sentence_padding": "TGG: the sentence vector is the maximum over real tokens only (Q12).",
    "query_content": (
        "Decoder: queries start from learned content instead of zeros, so the text-guided gate and the first "
        "layer's self-attention distinguish them (Q13, Q38)."
    ),
    "gate_tokens": (
        "TGG: queries attend to the sentence vector and all real tokens, not to the sentence vector alone, "
        "over which a softmax is always 1 (Q13)."
    ),
    "negative_refinement": (
        "Negative pairs: the video is refined with the wrong text too, not with the matching one; a batch of "
        "one has no negative pair, where the official model takes the sample's own text (Q14)."
    ),
    "negative_text_positions": (
        "Negative pairs: with `use_txt_pos` the wrong text has its own positions, not those of the matching "
        "text."
    ),
    "half_negatives": (
        "Negative pairs: at each training step half of the batch is shown with a wrong text, not all of it; "
        "batches are shuffled, so all videos take turns. A step costs a fifth less."
    ),
    "shared_dropout": (
        "Training: dropout is drawn once for the channels of a feed-forward network, the keys of a head and "
        "the sentence, not for each element; a step takes less time."
    ),
    "moment_length": (
        "Saliency of the predicted moment: its clips are counted in the video's own length, and the "
        "recurrent network stops at the moment's last clip instead of running through padding (Q16)."
    ),
    "moment_clamp": (
        "Saliency of the predicted moment: a moment that starts before 0 or ends after the video is cut "
        "there; negative indices do not count from the end (Q17)."
    ),
    "anchor_width_floor": "Decoder: the anchor width that divides the modulation is at least 0.01, never 0.",
    "anchor_init": "Decoder: the anchor update starts at zero, as its own initialisation meant to (Q19).",
    "unused_parameters": (
        "No parameters that nothing reads: text positions only with `use_txt_pos`, no contrastive projection "
        "of the video."
    ),
    "constant_hard_weight": "Losses: the weight of the hard terms does not grow with the epoch (Q21).",
    "loss_means": "Losses: means over the batch where the official ones are sums (Q22).",
    "loss_padding": (
        "Losses: minima, norms and means are taken per sample over real clips and tokens, not over the batch "
        "and its padding (Q5, Q22)."
    ),
}
"""Every repair by name. `GirlDetrConfig.repairs` chooses among them; `official` behaviour has none."""

Behaviour = Literal["official", "repaired"]


@dataclass(frozen=True)
class GirlDetrConfig:
    """Everything that `GirlDetr` and `SupervisedCriterion` need to know; JSON-able by `to_dict`.

    Widths count channels. ``v_feat_dim`` includes the two channels of temporal endpoint features.
    """

    behaviour: Behaviour = "repaired"
    """``official`` reproduces the published model to the tensor; ``repaired`` sets its faults right."""
    repairs: frozenset[str] | None = None
    """Names from `REPAIRS` to make; None means all of them, or none with ``behaviour="official"``."""

    v_feat_dim: int = 2050
    t_feat_dim: int = 1280
    hidden_dim: int = 256
    """Model width d: divisible by 4 and by ``nheads``."""
    nheads: int = 8
    dim_feedforward: int = 1024
    cmi_layers: int = 1
    enc_layers: int = 3
    dec_layers: int = 3
    num_queries: int = 10
    n_input_proj: int = 2
    input_dropout: float = 0.5
    dropout: float = 0.1
    pre_norm: bool = False
    max_q_l: int = 32
    """Longest text in tokens; sizes the table of text positions."""
    use_txt_pos: bool = False
    no_feature_refinement: bool = False
    decoder_sent_gate: bool = True
    """Text-Guided Gating."""
    contrastive_align_loss: bool = True
    contrastive_hdim: int = 64
    mr_to_hd_loss: bool = True
    """Saliency from the predicted moment, and its loss."""
    use_iou_head: bool = False
    """Train the IoU branch, and rank by it."""
    aux_loss: bool = True
    """Losses on the earlier decoder layers too."""
    query_selection: bool = False
    """Anchors from the encoded clips instead of learned ones: no part of the paper; see `query_selection`."""
    selection_overlap: float = 0.7
    """Largest tIoU of two selected anchors."""
    selection_temperature: float = 0.05
    """Slope with which the target of the selection falls with tIoU."""

    set_cost_span: float = 10.0
    set_cost_giou: float = 1.0
    set_cost_class: float = 4.0
    span_loss_coef: float = 10.0
    giou_loss_coef: float = 1.0
    label_loss_coef: float = 4.0
    iou_loss_coef: float = 1.0
    eos_coef: float = 0.1
    temperature: float = 0.07
    contrastive_align_loss_coef: float = 0.3
    lw_saliency: float = 1.0
    saliency_margin: float = 0.2
    cos_sim_loss_coef: float = 1.0
    mr_to_hd_loss_coef: float = 1.0
    hard_pos_neg_loss: bool = True
    hard_pos_neg_loss_coef: float = 10.0
    selection_loss_coef: float = 1.0

    def __post_init__(self) -> None:
        if self.behaviour not in ("official", "repaired"):
            self._refuse("behaviour", f"{self.behaviour!r}; expected 'official' or 'repaired'")
        if self.repairs is not None:
            object.__setattr__(self, "repairs", frozenset(self.repairs))
            unknown = sorted(self.active_repairs - REPAIRS.keys())
            if unknown:
                self._refuse("repairs", f"unknown {unknown}; expected names from {sorted(REPAIRS)}")
            if self.behaviour == "official" and self.repairs:
                self._refuse(
                    "repairs", f"{sorted(self.active_repairs)} with behaviour 'official', which has none"
                )
        self._check_kinds()
        self._check_sizes()
        if self.pre_norm and not self.repaired("cmi_pre_norm"):
            self._refuse(
                "pre_norm", "True; the official model cannot run it, the repair 'cmi_pre_norm' is needed"
            )

    def _check_kinds(self) -> None:
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind in kinds and not _same_kind(value, field.default):
                self._refuse(field.name, f"{shorten(value)}; expected {kinds[kind]}")

    def _check_sizes(self) -> None:
        for name, most in _COUNTS.items():
            if not 1 <= getattr(self, name) <= most:
                self._refuse(name, f"{getattr(self, name)}; expected 1 to {most}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, float) and not 0 <= value < math.inf:
                self._refuse(field.name, f"{value}; expected a finite number of at least 0")
        for name in ("input_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                self._refuse(name, f"{getattr(self, name)}; expected 0 <= p < 1")
        for name in ("selection_temperature", "temperature"):
            if getattr(self, name) <= 0:
                self._refuse(name, f"{getattr(self, name)}; expected a positive number")
        if self.hidden_dim % self.nheads or self.hidden_dim % 4:
            expected = f"a multiple of 4 and of nheads = {self.nheads}"
            self._refuse("hidden_dim", f"{self.hidden_dim}; expected {expected}")

    @staticmethod
    def _refuse(field: str, message: str) -> None:
        raise DataError(Problem("GirlDetrConfig", None, field, message))

    @property
    def active_repairs(self) -> frozenset[str]:
        """The repairs that are made."""
        if self.repairs is not None:
            return self.repairs
        return frozenset(REPAIRS) if self.behaviour == "repaired" else frozenset()

    def repaired(self, name: str) -> bool:
        """Whether the repair ``name`` (a key of `REPAIRS`) is made."""
        if name not in REPAIRS:
            raise KeyError(name)
        return name in self.active_repairs

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, by field name."""
        values = asdict(self)
        values["repairs"] = None if self.repairs is None else sorted(self.repairs)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "GirlDetrConfig") -> "GirlDetrConfig":
        """Inverse of `to_dict`; unknown names and values of the wrong kind raise `DataError`."""
        defaults = {field.name: field.default for field in fields(cls)}
        problems = [
            Problem(where, None, name, f"unknown option; expected one of {sorted(defaults)}")
            for name in values
            if name not in defaults
        ]
        problems += [
            Problem(where, None, name, f"{value!r}; expected {type(defaults[name]).__name__}")
            for name, value in values.items()
            if name in defaults and name != "repairs" and not _same_kind(value, defaults[name])
        ]
        repairs = values.get("repairs")
        if repairs is not None and not (
            isinstance(repairs, list | tuple | set | frozenset)
            and all(isinstance(name, str) for name in repairs)
        ):
            problems.append(Problem(where, None, "repairs", f"{repairs!r}; expected names or null"))
        if problems:
            raise DataError(problems)
        return cls(**{**values, "repairs": None if repairs is None else frozenset(repairs)})


# Largest sizes: far beyond use, and small enough that a model of these shapes can at least be described.
_WIDTH, _NUMBER, _DEPTH = 2**20, 2**16, 100
_COUNTS = {
    "v_feat_dim": _WIDTH,
    "t_feat_dim": _WIDTH,
    "hidden_dim": _WIDTH,
    "nheads": _NUMBER,
    "dim_feedforward": _WIDTH,
    "cmi_layers": _DEPTH,
    "enc_layers": _DEPTH,
    "dec_layers": _DEPTH,
    "num_queries": _NUMBER,
    "n_input_proj": _DEPTH,
    "max_q_l": _NUMBER,
    "contrastive_hdim": _WIDTH,
}


def _same_kind(value: object, default: object) -> bool:
    """Whether a JSON value can stand where ``default`` does: a float takes integers, an int no bools."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))
