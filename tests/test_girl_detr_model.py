"""Official behaviour: equal to the goldens of the official implementation and to its parameter counts."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from girl_detr_cases import (
    arrays,
    assert_equal,
    computed_inputs,
    computed_state,
    config_of,
    inputs_of,
    model_of,
    named,
    run,
    sample,
    state_of,
)
from torch import Tensor, nn

from vmr_env.backbones.girl_detr.checkpoint import official_model
from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.encoder import Memory
from vmr_env.backbones.girl_detr.head import DetectionHead
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.girl_detr.official import official_name
from vmr_env.backbones.girl_detr.positions import clip_positions

TINY = ("tiny", "tiny_nogate")


@pytest.mark.parametrize("name", TINY)
def test_outputs(goldens: Path, name: str) -> None:
    model = model_of(goldens / name)
    found = named(model, run(model, inputs_of(goldens / name)))
    expected = arrays(goldens / name / "outputs.npz")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert_equal(key, found[key], value)


@pytest.mark.parametrize("name", TINY)
def test_each_sample_alone(goldens: Path, name: str) -> None:
    model, inputs = model_of(goldens / name), inputs_of(goldens / name)
    outputs = [run(model, sample(inputs, b)) for b in range(3)]
    for key, value in arrays(goldens / name / "outputs_each_sample_alone.npz").items():
        b, output_name = key[1:].split(".", 1)
        assert_equal(key, getattr(outputs[int(b)], output_name), value)


def recorded(model: GirlDetr, inputs: tuple[Tensor, ...]) -> dict[str, list[Any]]:
    """Outputs of all modules by name, one entry per call."""
    calls: dict[str, list[Any]] = defaultdict(list)

    def recorder(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, arguments, output: calls[name].append(output)

    handles = [module.register_forward_hook(recorder(name)) for name, module in model.named_modules()]
    run(model, inputs)
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize("name", TINY)
def test_intermediates(goldens: Path, name: str) -> None:
    """Everything that the goldens record on the way; official tensors have the sequence first."""
    model, inputs = model_of(goldens / name), inputs_of(goldens / name)
    calls = recorded(model, inputs)
    output = run(model, inputs)
    assert model.moment_saliency is not None
    text = output.src_txt
    cmi, wrong_cmi = calls["cmi"][0].chunk(2)  # with the right texts, with the wrong ones
    encoded = [calls[f"encoder.layers.{i}"][0].chunk(2)[0] for i in range(2)]
    wrong = Memory(*(field.chunk(2)[1] for field in calls["encoder"][0]))
    found = {
        "input_vid_proj": calls["video_projection"][0],
        "input_txt_proj": calls["text_projection"][0],
        "feature_refinement": calls["refinement"][0][0],
        "pos_vid": clip_positions(inputs[1], model.config.hidden_dim),
        "t2v_encoder": with_global_and_text(model, cmi, text),
        "encoder": torch.cat((output.memory_global[:, None], output.memory_local), 1).transpose(0, 1),
        "encoder_layer0": encoded[0].transpose(0, 1),
        "encoder_layer1": encoded[1].transpose(0, 1),
        "decoder_layer0": calls["decoder.layers.0"][0].transpose(0, 1),
        "decoder_layer1": calls["decoder.layers.1"][0].transpose(0, 1),
        "ref_point_head.call0": calls["decoder.position_head"][0].expand(3, -1, -1).transpose(0, 1),
        "ref_point_head.call1": calls["decoder.position_head"][1].transpose(0, 1),
        "ref_anchor_head.call0": calls["decoder.width_head"][0].expand(3, -1, -1).transpose(0, 1),
        "ref_anchor_head.call1": calls["decoder.width_head"][1].transpose(0, 1),
        "query_scale.call0": calls["decoder.sine_scale"][0].transpose(0, 1),
        "bbox_embed.call0": calls["decoder.anchor_update"][0].transpose(0, 1),
        "bbox_embed.call1": model.decoder.anchor_update(calls["decoder.layers.1"][0]).transpose(0, 1),
        "hs": output.hs,
        "reference_points": output.references,
        "memory_local": output.memory_local,
        "memory_global": output.memory_global,
        "gru_hidden": calls["moment_saliency.gru"][0][1][0],
    }
    if name == "tiny":
        assert model.decoder.tgg is not None
        found |= {
            "tgg_sentence_vector": model.decoder.tgg.sentence(text, inputs[3]),
            "tgg_sentence_context": calls["decoder.tgg.read_text"][0].transpose(0, 1),
            "tgg_self_attn": calls["decoder.tgg.read_queries"][0].transpose(0, 1),
            "tgg_out": calls["decoder.tgg"][0].transpose(0, 1),
        }
    found |= negative_pass(model, wrong_cmi, wrong, inputs, text)
    expected = arrays(goldens / name / "intermediates.npz")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert_equal(key, found[key], value)


def with_global_and_text(model: GirlDetr, video: Tensor, text: Tensor) -> Tensor:
    token = model.encoder.global_token.expand(len(video), 1, -1)
    return torch.cat((token, video, text), 1).transpose(0, 1)


def negative_pass(
    model: GirlDetr, video: Tensor, memory: Memory, inputs: tuple[Tensor, ...], text: Tensor
) -> dict[str, Tensor]:
    """The second pass; the official model runs its decoder in it too, which ours leaves out."""
    rolled, rolled_mask = text.roll(-1, 0), inputs[3].roll(-1, 0)
    positions = clip_positions(inputs[1], model.config.hidden_dim)
    with torch.no_grad():
        decoded = model.decoder(memory.clips, positions, inputs[1], rolled, rolled_mask)
    return {
        "neg.t2v_encoder": with_global_and_text(model, video, rolled),
        "neg.memory_local": memory.clips,
        "neg.memory_global": memory.whole,
        "neg.hs": decoded.states,
        "neg.reference_points": decoded.references,
    }


@pytest.mark.parametrize(
    ("variant", "repairs"),
    [
        ("cmi_mask_fixed", {"cmi_masks"}),
        ("tgg_max_masked", {"sentence_padding"}),
        ("both", {"cmi_masks", "sentence_padding"}),
    ],
)
def test_single_repairs(goldens: Path, variant: str, repairs: set[str]) -> None:
    folder = goldens / "tiny"
    options = {**config_of(folder).to_dict(), "behaviour": "repaired", "repairs": sorted(repairs)}
    output = run(model_of(folder, GirlDetrConfig.from_dict(options)), inputs_of(folder))
    for key, value in arrays(folder / "outputs_repaired_variants.npz").items():
        if key.startswith(f"{variant}."):
            assert_equal(key, getattr(output, key.split(".", 1)[1]), value)


def test_default_size(goldens: Path) -> None:
    """The published size, with weights and inputs computed as the goldens' README says."""
    folder = goldens / "full_default"
    config = config_of(folder)
    state = computed_state(config, arrays(folder / "class_embed_override.npz"))
    checksums = json.loads((folder / "config.json").read_text())["weights_checksum"]
    for key, (total, absolute) in checksums.items():
        values = state[key].double()
        assert [float(values.sum()), float(values.abs().sum())] == pytest.approx([total, absolute], abs=1e-4)
    inputs, stored = computed_inputs(), arrays(folder / "input_masks_and_checksums.npz")
    np.testing.assert_array_equal(inputs[0][..., :8], stored["src_vid_first8"])
    model = official_model(state, config, folder)
    calls = recorded(model, inputs)
    output = run(model, inputs)
    found = named(model, output)
    found |= {
        "src_vid_first8": output.src_vid[..., :8],
        "src_txt_first8": output.src_txt[..., :8],
        "memory_local_first8": output.memory_local[..., :8],
        "memory_global": output.memory_global,
        "hs_last": output.hs[-1],
        "reference_points": output.references,
        "tgg_out": calls["decoder.tgg"][0].transpose(0, 1),
    }
    for key, value in arrays(folder / "outputs.npz").items():
        assert_equal(key, found[key], value)


@pytest.mark.parametrize("dataset", ["hl", "charadesSTA", "tacos"])
def test_dataset_batches(goldens: Path, dataset: str) -> None:
    override = arrays(goldens / "dataset" / "class_embed_override.npz")
    state = state_of(goldens / "tiny") | {key: torch.from_numpy(value) for key, value in override.items()}
    model = official_model(state, config_of(goldens / "tiny"), "tiny")
    batch = arrays(goldens / "dataset" / dataset / "batch.npz")
    names = ("video_feat", "video_feat_mask", "query_feat", "query_feat_mask")
    output = run(model, tuple(torch.from_numpy(batch[name]) for name in names))
    for key, value in arrays(goldens / "dataset" / dataset / "model_out_tiny.npz").items():
        assert_equal(key, getattr(output, key), value)


def count(module: nn.Module | nn.Parameter) -> int:
    return module.numel() if isinstance(module, nn.Parameter) else sum(p.numel() for p in module.parameters())


def test_parameters_of_the_default_model(goldens: Path) -> None:
    """Names, shapes and counts of SPEC section 3."""
    manifest = json.loads((goldens.parent / "state_dict_manifest.json").read_text())
    config = GirlDetrConfig(behaviour="official")
    model = GirlDetr(config)
    assert count(model) == manifest["total_parameters"] == 11_124_456
    shapes = {official_name(name, config): list(p.shape) for name, p in model.state_dict().items()}
    assert shapes == {
        name: shape[:2] if name.endswith("conv1d.weight") else shape
        for name, shape in manifest["state_dict"].items()
    }
    counts: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        official = official_name(name, config)
        block = max((b for b in manifest["parameters_by_block"] if official.startswith(b)), key=len)
        counts[block] += parameter.numel()
    assert counts == manifest["parameters_by_block"]
    head = manifest["head_parameters"]
    assert [count(m) for m in (model.head.span_embed, model.head.class_embed, model.head.iou_embed)] == [
        head["span_embed"],
        head["class_embed"],
        head["iou_embed"],
    ]
    assert model.decoder.tgg is not None
    assert count(model.decoder.tgg) == 592_640
    assert count(GirlDetr(GirlDetrConfig(behaviour="official", decoder_sent_gate=False))) == 10_531_816


@pytest.mark.parametrize("behaviour", ["official", "repaired"])
@pytest.mark.parametrize(("width", "heads"), [(8, 2), (20, 5), (64, 4)])
def test_any_width(behaviour: str, width: int, heads: int) -> None:
    config = GirlDetrConfig.from_dict(
        {
            "behaviour": behaviour,
            "hidden_dim": width,
            "nheads": heads,
            "dim_feedforward": 16,
            "v_feat_dim": 6,
            "t_feat_dim": 5,
        }
    )
    masks = torch.ones(2, 7), torch.ones(2, 4)
    output = run(GirlDetr(config), (torch.randn(2, 7, 6), masks[0], torch.randn(2, 4, 5), masks[1]))
    assert output.hs.shape == (3, 2, 10, width)
    assert output.pred_spans.isfinite().all()


def test_the_seed_decides_and_the_global_state_stays() -> None:
    config = GirlDetrConfig(hidden_dim=8, nheads=2, dim_feedforward=8, v_feat_dim=6, t_feat_dim=5)
    before = torch.get_rng_state()
    first, again, other = (GirlDetr(config, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["decoder.anchors"], other["decoder.anchors"])


def test_wrong_shapes_are_named() -> None:
    model = GirlDetr(GirlDetrConfig(hidden_dim=8, nheads=2, dim_feedforward=8, v_feat_dim=6, t_feat_dim=5))
    video, text, mask = torch.zeros(2, 7, 6), torch.zeros(2, 4, 5), torch.ones(2, 7)
    with pytest.raises(ValueError, match=r"src_vid has shape \(2, 7, 5\); expected \(batch, length, 6\)"):
        model(video[..., 1:], mask, text, mask[:, :4])
    with pytest.raises(ValueError, match=r"src_txt_mask has shape \(2, 7\); expected \(2, 4\)"):
        model(video, mask, text, mask)
    with pytest.raises(ValueError, match="src_vid has 1 samples, src_txt 2"):
        model(video[:1], mask[:1], text, mask[:, :4])


def test_head_is_a_module_of_its_own(goldens: Path) -> None:
    """Fed with golden decoder states and references, the head alone gives the golden predictions."""
    folder = goldens / "tiny"
    expected, inside = arrays(folder / "outputs.npz"), arrays(folder / "intermediates.npz")
    head = DetectionHead(32)
    head.load_state_dict({k: v for k, v in state_of(folder).items() if k in head.state_dict()})
    states, references = (torch.from_numpy(inside[name]) for name in ("hs", "reference_points"))
    detections = head(states, references)
    assert_equal("pred_spans", detections.spans[-1], expected["pred_spans"])
    assert_equal("pred_logits", detections.logits[-1], expected["pred_logits"])
    assert_equal("pred_iou", detections.iou[-1], expected["pred_iou"])
