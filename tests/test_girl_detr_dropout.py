"""Dropout of the published model is drawn for each element; with the repair, once for all rows."""

import pytest
import torch
from torch import Tensor

from vmr_env.backbones.girl_detr.cmi import CrossBranch
from vmr_env.backbones.girl_detr.config import Behaviour, GirlDetrConfig
from vmr_env.backbones.girl_detr.layers import FeedForward, attend
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.girl_detr.projections import ProjectionBlock
from vmr_env.backbones.girl_detr.refinement import FeatureRefinement

SHARED = [False, True]


def identity(layer: torch.nn.Linear) -> None:
    torch.nn.init.eye_(layer.weight)
    torch.nn.init.zeros_(layer.bias)


def rows_differ(masks: Tensor) -> bool:
    """Whether the rows ``(..., L, d)`` of one sample lose other elements than its first row."""
    return bool((masks != masks[..., :1, :]).any())


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("behaviour", ["official", "repaired"])
def test_behaviour_decides_for_every_layer(behaviour: Behaviour) -> None:
    sizes = {"hidden_dim": 16, "nheads": 2, "v_feat_dim": 8, "t_feat_dim": 8, "enc_layers": 1}
    model = GirlDetr(GirlDetrConfig(behaviour=behaviour, **sizes))
    shared = [m.shared_dropout for m in model.modules() if hasattr(m, "shared_dropout")]
    assert len(shared) > 20
    assert set(shared) == {behaviour == "repaired"}


@pytest.mark.parametrize("shared", SHARED)
def test_inner_channels(shared: bool) -> None:
    layer = FeedForward(64, 64, 0.5, shared)
    torch.nn.init.zeros_(layer.linear1.weight)
    torch.nn.init.ones_(layer.linear1.bias)
    identity(layer.linear2)
    kept = layer(torch.zeros(3, 5, 64))  # every inner channel is 1, so the mask itself comes out
    assert set(kept.unique().tolist()) == {0, 2}
    assert rows_differ(kept.flatten(0, 1)) != shared
    assert layer.eval()(torch.zeros(1, 64)).unique().tolist() == [1]


@pytest.mark.parametrize("shared", SHARED)
def test_attention_weights(shared: bool) -> None:
    query, key = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 8, 4)
    visible = torch.ones(2, 1, 1, 8, dtype=torch.bool)
    visible[1, ..., 6:] = False
    value = torch.eye(8).expand(2, 3, 8, 8)  # so the weights themselves come out
    weights = attend(query, key, value, visible).view(2, 8, 3, 8).transpose(1, 2)
    found = attend(query, key, value, visible, 0.5, shared).view(2, 8, 3, 8).transpose(1, 2)
    assert not found[1, ..., 6:].any()
    factors = (found / weights)[..., :6].round(decimals=3)
    assert set(factors.unique().tolist()) == {0, 2}
    assert rows_differ(factors) != shared


def test_between_the_attention_and_its_linear_layer() -> None:
    """As published: each element of the attention's output is dropped, not of what its projection reads."""
    branch = CrossBranch(12, 3, 0.5, shared_dropout=False)
    branch.attention.p = 0.0
    identity(branch.linear)
    query, key = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    visible = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    factors = (branch(query, key, key, visible) / branch.eval()(query, key, key, visible)).round(decimals=2)
    assert set(factors.unique().tolist()) == {0, 2}
    assert rows_differ(factors)


@pytest.mark.parametrize("shared", SHARED)
def test_shift_of_the_projected_features(shared: bool) -> None:
    block = ProjectionBlock(12, 12, 0.5, False, shared)
    identity(block.linear)
    torch.nn.init.zeros_(block.norm.weight)
    torch.nn.init.ones_(block.norm.bias)
    assert set(block(torch.randn(2, 5, 12)).unique().tolist()) == ({1} if shared else {0, 2})


@pytest.mark.parametrize("shared", SHARED)
def test_sentence_beside_each_clip(shared: bool) -> None:
    config = GirlDetrConfig(behaviour="repaired" if shared else "official", hidden_dim=16, nheads=2)
    layer = FeatureRefinement(config)
    layer.dropout.p = 0.5
    for block, weight in enumerate(layer._mixer_weights()):
        torch.nn.init.eye_(weight.data) if block == 2 else torch.nn.init.zeros_(weight.data)
    torch.nn.init.constant_(layer.mixer.bias, 10)  # far from the ReLU
    sentence = torch.ones(2, 1, 16)
    layer.train()
    video, mask = torch.randn(2, 9, 16), torch.ones(2, 9)
    with torch.no_grad():
        found = layer(video, mask, [(sentence, torch.ones(2, 1))])[0]
    before = found[found > 0] / 2  # without the last dropout, which is drawn for each element
    assert set(before.round().unique().tolist()) == {10, 12}
    masks = torch.where(found > 0, (found / 2).round(), torch.nan)
    seen = [{value for value in column.tolist() if value == value} for column in masks[0].T]
    assert any(len(values) == 2 for values in seen) != shared
