"""GIRL-DETR models and inputs of the goldens, and comparison within the tolerances of their README."""

import json
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from vmr_env.backbones.girl_detr.checkpoint import official_model
from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.model import GirlDetr, GirlDetrOutput
from vmr_env.backbones.girl_detr.official import config_from_options, official_name
from vmr_env.backbones.girl_detr.targets import Targets

INPUTS = ("src_vid", "src_vid_mask", "src_txt", "src_txt_mask")


def tolerance(name: str) -> tuple[float, float]:
    """Absolute and relative tolerance for an output, as the goldens' README suggests."""
    narrow = any(part in name for part in ("span", "iou", "proj", "reference"))
    return 1e-5 if narrow else 3e-5, 1e-4


def assert_equal(name: str, found: Tensor, expected: NDArray[np.float32]) -> None:
    """Fail where ``found`` is not the golden ``expected`` within its tolerance."""
    atol, rtol = tolerance(name)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=rtol, atol=atol, err_msg=name)


def arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    """All arrays of an npz file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def config_of(folder: Path) -> GirlDetrConfig:
    """Configuration of a golden model."""
    options = json.loads((folder / "config.json").read_text())
    return config_from_options({**options["model"], **options["loss"]}, str(folder), adds_tef=False)


def state_of(folder: Path) -> dict[str, Tensor]:
    """Weights of a golden model by official names."""
    return load_file(folder / "state_dict.safetensors")


def model_of(folder: Path, config: GirlDetrConfig | None = None) -> GirlDetr:
    """A golden model, in evaluation mode."""
    return official_model(state_of(folder), config or config_of(folder), folder)


def inputs_of(folder: Path) -> tuple[Tensor, ...]:
    """The golden inputs, in the order in which the model takes them."""
    stored = arrays(folder / "inputs.npz")
    return tuple(torch.from_numpy(stored[name]) for name in INPUTS)


def run(model: GirlDetr, inputs: tuple[Tensor, ...], training_branches: bool = True) -> GirlDetrOutput:
    """Output without gradients."""
    with torch.no_grad():
        output: GirlDetrOutput = model(*inputs, training_branches=training_branches)
    return output


def sample(inputs: tuple[Tensor, ...], b: int) -> tuple[Tensor, ...]:
    """Sample ``b`` of a batch alone, without padding."""
    video, video_mask, text, text_mask = inputs
    clips, tokens = int(video_mask[b].sum()), int(text_mask[b].sum())
    one = slice(b, b + 1)
    return video[one, :clips], video_mask[one, :clips], text[one, :tokens], text_mask[one, :tokens]


def named(model: GirlDetr, output: GirlDetrOutput) -> dict[str, Tensor]:
    """Outputs under the names that the goldens use."""
    assert output.proj_layers is not None
    assert output.proj_txt_mem is not None
    assert output.saliency_scores_neg is not None
    assert output.saliency_scores_mr is not None
    assert model.contrastive is not None
    assert model.contrastive.video is not None
    same = ("pred_logits", "pred_spans", "pred_iou", "proj_txt_mem", "src_txt", "src_vid", "video_mask")
    result = {name: getattr(output, name) for name in same}
    result |= {
        "proj_queries": output.proj_layers[-1],
        "proj_vid_mem": normalize(model.contrastive.video(output.memory_local), dim=-1),
        "saliency_scores": output.saliency_scores,
        "saliency_scores_neg": output.saliency_scores_neg,
        "saliency_scores_mr": output.saliency_scores_mr,
    }
    for i, layer in enumerate(output.aux_outputs):
        result |= {f"aux{i}.pred_{name}": value for name, value in layer._asdict().items()}
        result[f"aux{i}.proj_queries"] = output.proj_layers[i]
    return result


def targets_of(path: Path) -> Targets:
    """Golden labels of the three tiny samples."""
    stored = arrays(path)
    names = ("saliency_all_labels", "saliency_pos_labels", "saliency_neg_labels")
    spans = [torch.from_numpy(stored[f"spans{b}"]) for b in range(3)]
    return Targets(spans, *(torch.from_numpy(stored[name]) for name in names))


def computed_state(config: GirlDetrConfig, override: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    """The weights of `full_default`, by the recipe in the goldens' README."""
    state = {}
    for name, parameter in GirlDetr(config).state_dict().items():
        key = official_name(name, config)
        shape = (*parameter.shape, 1) if key.endswith("conv1d.weight") else tuple(parameter.shape)
        draws = np.random.RandomState(crc32(f"V:{key}".encode())).standard_normal(shape)
        scale, shift = _scale_and_shift(key, shape)
        state[key] = torch.from_numpy((draws * scale + shift).astype(np.float32))
    return state | {key: torch.from_numpy(value) for key, value in override.items()}


def _scale_and_shift(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if "norm" in key.lower() and key.endswith("weight"):
        return 0.1, 1
    if key.endswith("activation.weight"):
        return 0.05, 0.25
    if key in ("query_embed.weight", "global_rep_token", "global_rep_pos"):
        return 1, 0
    if len(shape) == 2 and ("qpos_proj" in key or "ref_point_head" in key):
        return 2.5 / np.sqrt(shape[1]), 0
    if len(shape) >= 2:
        return 1 / np.sqrt(shape[1] if shape[1] > 1 else shape[0]), 0
    return 0.05, 0


def computed_inputs() -> tuple[Tensor, ...]:
    """The inputs of `full_default`, by the recipe in the goldens' README."""
    lengths = [(24, 8), (17, 5), (11, 10), (21, 9)]
    draw = np.random.RandomState(77)
    video, text = np.zeros((4, 24, 2050), np.float32), np.zeros((4, 10, 1280), np.float32)
    video_mask, text_mask = np.zeros((4, 24), np.float32), np.zeros((4, 10), np.float32)
    for b, (clips, tokens) in enumerate(lengths):
        rows = draw.randn(clips, 2048).astype(np.float32)
        video[b, :clips, :2048] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        video[b, :clips, 2048] = np.arange(clips) / clips
        video[b, :clips, 2049] = np.arange(clips) / clips + 1 / clips
        words = draw.randn(tokens, 1280).astype(np.float32)
        text[b, :tokens] = words / np.linalg.norm(words, axis=1, keepdims=True)
        video_mask[b, :clips] = text_mask[b, :tokens] = 1
    return tuple(torch.from_numpy(x) for x in (video, video_mask, text, text_mask))
