"""Names of the official implementation, parameters and options, and how they map to ours."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.errors import DataError, Problem, shorten

_PROJECTION = {"norm": "LayerNorm", "linear": "net.1.conv1d"}
# Our prefix -> official prefix, and the parts of the name behind it that differ.
_BLOCKS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "head": ("", {}),
    "video_projection": ("input_vid_proj", _PROJECTION),
    "text_projection": ("input_txt_proj", _PROJECTION),
    "refinement": (
        "feature_refinement",
        {
            "sentence_pool": "word_to_sentence_pool.weight",
            "similarity": "sim_w",
            "correlation.clip_weight": "cor_v_w",
            "correlation.word_weight": "cor_q_w",
            "mixer": "mixer.conv1d",
        },
    ),
    "text_positions": ("txt_position_embed", {"embeddings": "position_embeddings", "norm": "LayerNorm"}),
    "cmi": (
        "transformer.t2v_encoder",
        {
            "read_text.linear": "linear1",
            "read_video.linear": "linear2",
            "fuse.linear": "linear3",
            "feed_forward.linear1": "linear4",
            "feed_forward.linear2": "linear5",
            "feed_forward.activation": "activation",
            "read_text.attention": "cross_attn_1",
            "read_video.attention": "cross_attn_2",
            "fuse.attention": "cross_attn_3",
        },
    ),
    "encoder.global_token": ("global_rep_token", {}),
    "encoder.global_position": ("global_rep_pos", {}),
    "encoder": ("transformer.encoder", {"attention": "self_attn", "feed_forward.": ""}),
    "decoder.anchors": ("query_embed.weight", {}),
    "decoder": (
        "transformer.decoder",
        {
            "tgg.read_text": "gate_cross_attn",
            "tgg.read_queries": "gate_self_attn",
            "tgg.linear": "gate_linear",
            "tgg.norm": "gate_norm",
            "position_head": "ref_point_head",
            "sine_scale": "query_scale",
            "width_head": "ref_anchor_head",
            "anchor_update": "bbox_embed",
            "self_attention.query_content": "sa_qcontent_proj",
            "self_attention.query_position": "sa_qpos_proj",
            "self_attention.key_content": "sa_kcontent_proj",
            "self_attention.key_position": "sa_kpos_proj",
            "self_attention.value": "sa_v_proj",
            "self_attention.out": "self_attn.out_proj",
            "cross_attention.query_content": "ca_qcontent_proj",
            "cross_attention.query_position": "ca_qpos_proj",
            "cross_attention.query_sine": "ca_qpos_sine_proj",
            "cross_attention.key_content": "ca_kcontent_proj",
            "cross_attention.key_position": "ca_kpos_proj",
            "cross_attention.value": "ca_v_proj",
            "cross_attention.out": "cross_attn.out_proj",
            "feed_forward.": "",
        },
    ),
    "saliency.clip": ("saliency_proj1", {}),
    "saliency.whole": ("saliency_proj2", {}),
    "moment_saliency": ("", {"gru": "gru_extractor.gru", "projection": "saliency_proj_mr"}),
    "contrastive.query": ("contrastive_align_projection_query", {}),
    "contrastive.text": ("contrastive_align_projection_txt", {}),
    "contrastive.video": ("contrastive_align_projection_vid", {}),
}

# Names that options had in older versions.
_OLD_OPTIONS = {"bicmf_layers": "cmi_layers"}
# Options that change the model in ways nobody has trained; only these values are built.
_FIXED_OPTIONS: Mapping[str, Any] = {
    "position_embedding": "sine",
    "span_loss_type": "l1",
    "a_feat_dim": 0,
    "hd_to_mr_gate": False,
    "cmi_gate": False,
    "bicmf_gate": False,
    "task_decouple_gate": False,
    "span_gaussian_mask": False,
}
_NEEDED_OPTIONS = (
    "v_feat_dim",
    "t_feat_dim",
    "hidden_dim",
    "nheads",
    "dim_feedforward",
    "num_queries",
    "enc_layers",
    "dec_layers",
    "cmi_layers",
    "decoder_sent_gate",
)


def official_name(name: str, config: GirlDetrConfig) -> str:
    """The official name of the parameter that our model calls ``name``."""
    block = next(block for block in _BLOCKS if name == block or name.startswith(block + "."))
    prefix, parts = _BLOCKS[block]
    rest = name.removeprefix(block)
    for ours, theirs in parts.items():
        rest = rest.replace("." + ours, "." + theirs, 1)
    if config.no_feature_refinement:
        rest = rest.replace("net.1.conv1d", "net.1")
    return (prefix + rest).removeprefix(".")


def config_from_options(options: Mapping[str, Any], where: str, *, adds_tef: bool) -> GirlDetrConfig:
    """Configuration of an official model, with its behaviour.

    Args:
        options: official option names and values; those that do not describe the model are ignored.
        where: file, for errors.
        adds_tef: whether ``v_feat_dim`` has yet to be increased by the two temporal endpoint channels, as in
            `opt.json` and merged checkpoints, which were written before that.
    """
    options = {_OLD_OPTIONS.get(name, name): value for name, value in options.items()}
    problems = [
        Problem(where, None, name, f"{shorten(options[name])}; only {value!r} is supported")
        for name, value in _FIXED_OPTIONS.items()
        if name in options and not _equal(options[name], value)
    ]
    problems += [
        Problem(where, None, name, "missing option") for name in _NEEDED_OPTIONS if name not in options
    ]
    if problems:
        raise DataError(problems)
    names = {field.name for field in fields(GirlDetrConfig)} - {"behaviour", "repairs"}
    chosen = {name: value for name, value in options.items() if name in names}
    has_tef = "tef" in str(options.get("ctx_mode", "video_tef"))
    if adds_tef and has_tef and isinstance(chosen["v_feat_dim"], int):
        chosen["v_feat_dim"] += 2
    return GirlDetrConfig.from_dict({**chosen, "behaviour": "official"}, where)


def _equal(value: object, expected: object) -> bool:
    """Equality of plain values; anything else that a file may hold, such as a tensor, is unequal."""
    return isinstance(value, type(expected)) and value == expected
