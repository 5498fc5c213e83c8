"""Recorded head, decoder states and targets of the tiny GIRL-DETR, for the tests of TPRL and its agents."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vmr_env.agents.tprl.losses import Moments
from vmr_env.backbones.girl_detr.head import DetectionHead


def load_head(goldens: Path) -> DetectionHead:
    head = DetectionHead(32)
    weights = load_file(goldens / "tiny" / "state_dict.safetensors")
    head.load_state_dict({key: weights[key] for key in head.state_dict()})
    return head


def load_states(goldens: Path) -> tuple[Tensor, Tensor]:
    """Decoder states (3, 5, 32) and references (3, 5, 2) of the last layer."""
    arrays = np.load(goldens / "tiny" / "intermediates.npz")
    states, references = (torch.from_numpy(arrays[name][-1]) for name in ("hs", "reference_points"))
    return states, references


def load_moments(goldens: Path, targets: str) -> Moments:
    """Moments of the three samples: "single" or "close_spans"."""
    arrays = np.load(goldens / "losses" / f"targets_{targets}.npz")
    spans = [torch.from_numpy(arrays[f"spans{i}"]) for i in range(3)]
    counts = torch.tensor([len(s) for s in spans])
    padded = torch.nn.utils.rnn.pad_sequence(spans, batch_first=True)
    return Moments(padded, torch.arange(padded.shape[1]) < counts[:, None])
