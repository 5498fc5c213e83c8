"""Training kernels and attention against slow, obvious versions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.girl_detr.config import GirlDetrConfig
from backbones.girl_detr.decoder import AnchorCrossAttention
from backbones.girl_detr.kernels import dropout, prelu
from backbones.girl_detr.layers import Attention, attend, cosine, split_heads
from backbones.girl_detr.model import GirlDetr


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


def test_prelu_gradients() -> None:
    generator = torch.Generator().manual_seed(2)
    found = []
    for function in (prelu, F.prelu):
        x = torch.randn(5, 6, generator=generator.manual_seed(3), requires_grad=True)
        slope = torch.tensor([-0.2], requires_grad=True)
        torch.autograd.backward((function(x, slope) ** 2).sum())
        found.append((x.grad, slope.grad))
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
