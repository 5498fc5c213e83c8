"""Training kernels and attention against slow, obvious versions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vmr_env.backbones.girl_detr.cmi import CrossBranch
from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.decoder import AnchorCrossAttention
from vmr_env.backbones.girl_detr.kernels import BLOCK, dropout, last_state, prelu
from vmr_env.backbones.girl_detr.layers import (
    Attention,
    FeedForward,
    attend,
    cosine,
    kept_channels,
    split_heads,
)
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.girl_detr.projections import ProjectionBlock


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_dropout_rate_and_scale(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(40, 1001)
    results = [dropout(x, p) for _ in range(60)]
    share = torch.stack([(y == 0).float().mean() for y in results]).mean()
    assert float(share) == pytest.approx(p, abs=0.002)
    for y in results:
        assert len(set(y.view(-1).tolist())) <= 2  # 0 and one scale


@pytest.mark.parametrize("with_sum", [False, True])
def test_dropout_gradient_is_its_own_mask(with_sum: bool) -> None:
    torch.manual_seed(1)
    x = torch.randn(7, 33, requires_grad=True)
    other = torch.randn(7, 33, requires_grad=True)
    y = dropout(x, 0.3, other if with_sum else None)
    torch.autograd.backward(y, torch.ones_like(y))
    assert x.grad is not None
    torch.testing.assert_close((x * x.grad + (other if with_sum else 0)).detach(), y.detach())
    if with_sum:
        assert other.grad is not None
        assert torch.equal(other.grad, torch.ones_like(other))


def test_dropout_follows_the_seed() -> None:
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        draws.append(dropout(torch.ones(9, 9), 0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("rows", [5, BLOCK // 6 + 5])
def test_prelu_gradients(rows: int) -> None:
    generator = torch.Generator().manual_seed(2)
    found = []
    for function in (prelu, F.prelu):
        x = torch.randn(rows, 6, generator=generator.manual_seed(3), requires_grad=True)
        slope = torch.tensor([-0.2], requires_grad=True)
        torch.autograd.backward((function(x, slope) ** 2).sum())
        found.append((x.grad, slope.grad))
    torch.testing.assert_close(found[0], found[1])


def test_feed_forward_drops_the_same_channels_of_all_rows() -> None:
    layer = FeedForward(40, 40, 0.25)
    with torch.no_grad():
        layer.linear2.weight.copy_(torch.eye(40))  # so the inner channels themselves come out
        layer.linear2.bias.zero_()
    x = torch.randn(3, 5, 40)
    whole = layer.eval()(x)
    torch.manual_seed(0)
    draws = torch.stack([layer.train()(x) for _ in range(400)])
    dropped = (draws == 0).flatten(1, 2)
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert dropped.all(1).sum(-1).unique().tolist() == [10]
    torch.testing.assert_close(draws, torch.where(draws == 0, 0, whole / 0.75).expand_as(draws))
    torch.testing.assert_close(draws.mean(0), whole, atol=0.0, rtol=0.2)


def test_kept_channels() -> None:
    assert kept_channels(1024, 0.1) == 928  # a multiple of 16
    assert [kept_channels(count, 0.1) for count in (1, 8, 256)] == [1, 7, 230]
    assert kept_channels(2, 0.9) == 1


def test_projection_block_is_norm_then_linear() -> None:
    block = ProjectionBlock(6, 4, 0.5, relu=False).eval()
    with torch.no_grad():
        block.norm.weight.uniform_(0.5, 2)
        block.norm.bias.normal_()
    x = torch.randn(2, 3, 6)
    found = []
    for y in (block(x), block.linear(block.norm(x))):
        block.zero_grad()
        torch.autograd.backward((y**2).sum())
        gradients = [p.grad.clone() for p in block.parameters() if p.grad is not None]
        found.append([y.detach(), *gradients])
    assert len(found[0]) == 5
    torch.testing.assert_close(found[0], found[1])


def test_cross_branch_is_attention_then_linear() -> None:
    branch = CrossBranch(12, 3, 0.5).eval()
    torch.nn.init.normal_(branch.attention.out_proj.bias)
    query, key = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    visible = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    expected = branch.linear(branch.attention(query, key, key, visible))
    torch.testing.assert_close(branch(query, key, key, visible), expected)


def test_last_state_is_pytorchs() -> None:
    gru = torch.nn.GRU(3, 4, batch_first=True)
    rows = torch.randn(5, 9, 3, requires_grad=True)
    lengths = torch.tensor([4, 9, 1, 4, 7])
    outputs, _ = gru(rows)
    found = []
    for state in (last_state(gru, rows, lengths), outputs[torch.arange(5), lengths - 1]):
        gru.zero_grad()
        rows.grad = None
        torch.autograd.backward((state * torch.arange(20.0).view(5, 4)).sum())
        found.append(
            [state.detach(), rows.grad, *(p.grad.clone() for p in gru.parameters() if p.grad is not None)]
        )
    torch.testing.assert_close(found[0], found[1])


def test_attend_with_dropout_averages_to_attention() -> None:
    """In expectation over its draws; the path is another than that without dropout."""
    generator = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    visible = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 1, 1, 0]]).bool()[:, None, None]
    torch.manual_seed(5)
    mean = torch.stack([attend(query, key, value, visible, 0.2) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, attend(query, key, value, visible), atol=0.05, rtol=0)


def test_attention_drops_keys() -> None:
    """A head drops a key for all queries of its sample at once and scales the others up."""
    generator = torch.Generator().manual_seed(4)
    query, key = (torch.randn(2, 3, 8, 4, generator=generator) for _ in range(2))
    value = torch.eye(8).expand(2, 3, 8, 8)  # so the weights themselves come out
    weights = (query @ key.transpose(-1, -2) / 2).softmax(-1)
    torch.manual_seed(5)
    found = attend(query, key, value, None, 0.5).view(2, 8, 3, 8).transpose(1, 2)
    factors = found / weights
    torch.testing.assert_close(factors, factors[:, :, :1].expand_as(factors))  # the same for all queries
    rounded = factors.round(decimals=3)
    assert rounded.unique().tolist() == [0, 2]
    assert len(rounded[:, :, 0].flatten(0, 1).unique(dim=0)) > 3  # drawn for each sample and head


def test_cosine_is_pytorchs() -> None:
    rows, row = torch.randn(2, 5, 4), torch.randn(2, 4)
    rows[0, 2] = 0
    torch.testing.assert_close(cosine(rows, row), F.cosine_similarity(rows, row[:, None], dim=-1))


@pytest.mark.parametrize("shared", ["none", "query is key", "key is value", "all"])
def test_attention_is_pytorchs(shared: str) -> None:
    ours, theirs = Attention(12, 3, 0.0), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    a, b, c = (torch.randn(2, 6, 12) for _ in range(3))
    q, k, v = {
        "none": (a, b, c),
        "query is key": (a, a, c),
        "key is value": (a, b, b),
        "all": (a, a, a),
    }[shared]
    visible = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    expected, _ = theirs(q, k, v, key_padding_mask=~visible)
    torch.testing.assert_close(ours(q, k, v, visible[:, None, None]), expected)


@pytest.mark.parametrize("first", [False, True])
def test_cross_attention_projects_every_clip(first: bool) -> None:
    """Against the plain form: project all clips, put content and position side by side in each head."""
    config = GirlDetrConfig(hidden_dim=16, nheads=4, dropout=0.0)
    layer = AnchorCrossAttention(config, adds_position=first)
    x, position, sine = (torch.randn(2, 5, 16) for _ in range(3))
    memory, places = torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    visible = (torch.arange(9) < torch.tensor([[9], [6]]))[:, None, None]
    found = layer(x, position, sine, memory, places, visible)
    torch.testing.assert_close(found, plain(layer, x, position, sine, memory, places, visible))


def plain(
    layer: AnchorCrossAttention,
    x: Tensor,
    position: Tensor,
    sine: Tensor,
    memory: Tensor,
    places: Tensor,
    visible: Tensor,
) -> Tensor:
    query, key, key_place = layer.query_content(x), layer.key_content(memory), layer.key_position(places)
    if layer.query_position is not None:
        query, key = query + layer.query_position(position), key + key_place
    heads = [split_heads(y, 4) for y in (query, layer.query_sine(sine), key, key_place)]
    q, k = torch.cat(heads[:2], -1), torch.cat(heads[2:], -1)
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
    mixed = scores.softmax(-1) @ split_heads(layer.value(memory), 4)
    result: Tensor = layer.out(mixed.transpose(1, 2).flatten(2))
    return result


def test_recomputed_activations_give_the_same_gradients() -> None:
    """Dropout included: the draws are repeated."""
    config = GirlDetrConfig(hidden_dim=8, nheads=2, dim_feedforward=8, v_feat_dim=6, t_feat_dim=5)
    inputs = torch.randn(2, 7, 6), torch.ones(2, 7), torch.randn(2, 4, 5), torch.ones(2, 4)
    gradients = []
    for recompute in (False, True):
        model = GirlDetr(config, seed=1).train()
        model.recompute = recompute
        torch.manual_seed(9)
        output = model(*inputs)
        torch.autograd.backward(output.hs.sum() + output.saliency_scores.sum())
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])
