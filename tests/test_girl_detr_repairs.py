"""What the repairs promise: predictions that ignore the batch, no dead block, a gate that gates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from girl_detr_cases import inputs_of, run, sample
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad

import vmr_env.backbones.girl_detr
from vmr_env.backbones.girl_detr.branches import MomentSaliency
from vmr_env.backbones.girl_detr.config import REPAIRS, Behaviour, GirlDetrConfig
from vmr_env.backbones.girl_detr.head import Detections
from vmr_env.backbones.girl_detr.losses import SupervisedCriterion
from vmr_env.backbones.girl_detr.model import GirlDetr, GirlDetrOutput
from vmr_env.backbones.girl_detr.refinement import FeatureRefinement
from vmr_env.backbones.girl_detr.targets import Targets

SIZES: dict[str, Any] = {
    "hidden_dim": 16,
    "nheads": 2,
    "dim_feedforward": 24,
    "v_feat_dim": 18,
    "t_feat_dim": 12,
    "num_queries": 5,
}
BEHAVIOURS: tuple[Behaviour, Behaviour] = ("official", "repaired")
PER_CLIP = ("saliency_scores", "saliency_scores_mr", "memory_local", "src_vid")
PER_SAMPLE = ("pred_logits", "pred_spans", "pred_iou", "memory_global")


def shaken(config: GirlDetrConfig, seed: int = 0) -> GirlDetr:
    """A model in evaluation mode in which no weight has a neutral value, as none has after training."""
    model = GirlDetr(config, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def difference(alone: GirlDetrOutput, together: GirlDetrOutput, b: int) -> float:
    """Largest difference between a sample's outputs alone and as sample ``b`` of a batch, without padding."""
    clips = alone.video_mask.shape[1]
    pairs = [(getattr(alone, name)[0], getattr(together, name)[b]) for name in PER_SAMPLE]
    pairs += [(getattr(alone, name)[0], getattr(together, name)[b, :clips]) for name in PER_CLIP]
    pairs.append((alone.hs[:, 0], together.hs[:, b]))
    return max(float((one - other).abs().max()) for one, other in pairs)


@pytest.mark.parametrize(
    "options", [{}, {"decoder_sent_gate": False}, {"pre_norm": True}, {"use_txt_pos": True}]
)
def test_predictions_ignore_the_batch(goldens: Path, options: dict[str, Any]) -> None:
    """Alone, in a batch, and behind more padding: the same. The official behaviour fails this test."""
    inputs = inputs_of(goldens / "tiny")
    for seed in range(2):
        model = shaken(GirlDetrConfig(**SIZES, **options), seed)
        together = run(model, inputs)
        for b in range(3):
            alone = sample(inputs, b)
            assert difference(run(model, alone), together, b) < 2e-5
            assert difference(run(model, alone), run(model, lengthened(alone)), 0) < 2e-5
    if not options:
        model = shaken(GirlDetrConfig(**SIZES, behaviour="official"))
        assert difference(run(model, sample(inputs, 1)), run(model, inputs), 1) > 1e-3


def lengthened(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    video, video_mask, text, text_mask = inputs
    return pad(video, (0, 0, 0, 5)), pad(video_mask, (0, 5)), pad(text, (0, 0, 0, 4)), pad(text_mask, (0, 4))


def gradients(config: GirlDetrConfig) -> dict[str, float]:
    """Largest gradient of each parameter under the training loss; -1 where it has none."""
    model = shaken(config)
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(3, 9, 18, generator=generator),
        torch.ones(3, 9),
        torch.randn(3, 6, 12, generator=generator),
        torch.ones(3, 6),
    )
    labels = torch.zeros(3, 9)
    labels[:, 2:5] = 1
    pairs = torch.tensor([[2, 3]] * 3), torch.tensor([[0, 7]] * 3)
    targets = Targets([torch.tensor([[0.4, 0.3]])] * 3, labels, *pairs)
    total = SupervisedCriterion(config)(model(*inputs, training_branches=True), targets, 0)["total"]
    torch.autograd.backward(total)
    return {
        name: -1.0 if p.grad is None else float(p.grad.abs().max()) for name, p in model.named_parameters()
    }


DEAD = 1e-6


def test_no_parameter_is_dead() -> None:
    """Every parameter learns, but for biases that a softmax, or the zero point of a curve, takes away."""
    found = gradients(GirlDetrConfig(**SIZES, use_iou_head=True))
    dead = {name for name, size in found.items() if size < DEAD}
    key_biases = {name for name in found if "attention.key_" in name and name.endswith("bias")}
    assert dead <= key_biases | {"moment_saliency.projection.bias"}
    assert found["decoder.tgg.read_text.in_proj_weight"] > 1e-3


def test_the_official_model_has_dead_ones() -> None:
    """Those that SPEC names: so the test above can fail."""
    found = gradients(GirlDetrConfig(**SIZES, behaviour="official"))
    for name in (
        "cmi.layers.0.norm2.weight",
        "contrastive.video.weight",
        "text_positions.embeddings.weight",
        "decoder.layers.0.self_attention.query_position.weight",
    ):
        assert found[name] < DEAD, name


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_positions_of_the_wrong_text(goldens: Path, behaviour: Behaviour) -> None:
    """The published negative pass keeps the positions of the matching text, the repaired one does not."""
    video, video_mask, text, text_mask = inputs_of(goldens / "tiny")
    model = shaken(GirlDetrConfig(**SIZES, behaviour=behaviour, use_txt_pos=True))
    given: list[tuple[Tensor, Tensor]] = []
    model.cmi.register_forward_pre_hook(lambda _, arguments: given.append(arguments[2:4]))
    with torch.no_grad():
        model(video, video_mask, text, text_mask, training_branches=True)
        ((texts, positions),) = given
        assert model.text_positions is not None
        n = len(text)
        torch.testing.assert_close(positions[:n], model.text_positions(texts[:n]))
        own, wrong = model.text_positions(texts[: len(texts) - n]), model.text_positions(texts[n:])
    assert not torch.allclose(own, wrong)
    torch.testing.assert_close(positions[n:], own if behaviour == "official" else wrong)


def test_query_and_key_weights_of_the_gate() -> None:
    """Officially the attention to the sentence ignores its query and key weights; repaired it does not."""
    generator = torch.Generator().manual_seed(3)
    text, mask = torch.randn(2, 6, 16, generator=generator), torch.ones(2, 6)
    for behaviour, alive in zip(BEHAVIOURS, (False, True), strict=True):
        model = shaken(GirlDetrConfig(**SIZES, behaviour=behaviour))
        gate, content = model.decoder.tgg, torch.zeros(2, 5, 16)
        assert gate is not None
        if model.decoder.content is not None:
            content = model.decoder.content.detach().expand(2, -1, -1)
        with torch.no_grad():
            before = gate(content, text, mask)
            gate.read_text.in_proj_weight[:32] *= -2
            change = gate(content, text, mask) - before
        assert (float(change.abs().max()) > 1e-3) == alive


def test_the_gate_gates() -> None:
    """Each query gets a gate of its own, which the text moves; officially it is 1/2 for all."""
    gates: list[Tensor] = []
    generator = torch.Generator().manual_seed(4)
    for behaviour in BEHAVIOURS:
        model = shaken(GirlDetrConfig(**SIZES, behaviour=behaviour))
        assert model.decoder.tgg is not None
        seen: list[tuple[Tensor, Tensor]] = []
        model.decoder.tgg.read_text.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append((inputs[0], output))
        )
        inputs = torch.randn(2, 9, 18, generator=generator), torch.ones(2, 9)
        run(model, (*inputs, torch.randn(2, 6, 12, generator=generator), torch.ones(2, 6)))
        content, context = seen[0]
        gates.append(torch.sigmoid(content * context).detach())
    official, repaired = gates
    assert torch.equal(official, torch.full_like(official, 0.5))
    assert float(repaired.std(dim=1).min()) > 1e-3  # among queries
    assert float((repaired[0] - repaired[1]).abs().max()) > 1e-3  # among texts


def test_no_negative_pass_at_inference() -> None:
    """In evaluation each video is encoded once, in training also with a wrong text, or half of them."""
    for behaviour, seen in zip(BEHAVIOURS, (6, 5), strict=True):
        model = GirlDetr(GirlDetrConfig(**SIZES, behaviour=behaviour))
        encoded: list[int] = []
        model.cmi.register_forward_hook(lambda *call, encoded=encoded: encoded.append(len(call[-1])))
        inputs = torch.randn(3, 9, 18), torch.ones(3, 9), torch.randn(3, 6, 12), torch.ones(3, 6)
        assert model.eval()(*inputs).saliency_scores_neg is None
        assert model.train()(*inputs).saliency_scores_neg is not None
        assert encoded == [3, seen]


def test_moment_is_summed_up_over_its_own_clips() -> None:
    """Against the recurrent network run over the clips of each moment alone."""
    branch = MomentSaliency(GirlDetrConfig(**SIZES))
    video, mask = torch.randn(3, 9, 16), (torch.arange(9) < torch.tensor([[9], [6], [4]])).float()
    spans = torch.tensor([[[0.5, 0.3]], [[0.1, 0.5]], [[0.95, 0.5]]])
    clips = [slice(3, 6), slice(0, 3), slice(2, 4)]  # by hand, in the video's own clips
    best = Detections(logits=torch.zeros(3, 1, 2), spans=spans, iou=torch.zeros(3, 1))
    expected = [branch.gru(video[b : b + 1, inside])[0][0, -1] for b, inside in enumerate(clips)]
    torch.testing.assert_close(branch.moment(video, mask, best), torch.stack(expected))


def test_refinement_mixes_concatenated_blocks() -> None:
    """Against the plain form: all four blocks side by side for each clip, then one linear layer."""
    part = FeatureRefinement(GirlDetrConfig(**SIZES)).eval()
    video, text = torch.randn(2, 9, 16), torch.randn(2, 6, 16)
    video_mask = (torch.arange(9) < torch.tensor([[9], [5]])).float()
    text_mask = (torch.arange(6) < torch.tensor([[4], [6]])).float()
    for b, (clips, tokens) in enumerate(((9, 4), (5, 6))):
        v, t = video[b, :clips], text[b, :tokens]
        sentence = (t @ part.sentence_pool).softmax(0).t() @ t
        similarity = cosine_similarity(v, sentence)[:, None] * part.similarity.t()
        attended = (v @ t.t() / 4).softmax(-1) @ t
        blocks = torch.cat((v, similarity, sentence.expand_as(v), attended), 1)
        (refined,) = part(video, video_mask, [(text, text_mask)])
        found = refined[b, :clips]
        torch.testing.assert_close(found, part.mixer(blocks).relu())


def test_inference_agrees_with_the_full_output(goldens: Path) -> None:
    """Leaving out the training branches changes nothing else."""
    inputs = inputs_of(goldens / "tiny")
    for behaviour in BEHAVIOURS:
        model = shaken(GirlDetrConfig(**SIZES, behaviour=behaviour))
        full, lean = run(model, inputs), run(model, inputs, training_branches=False)
        assert lean.saliency_scores_mr is None
        assert lean.proj_layers is None
        assert len(lean.detections.logits) == 1
        assert lean.aux_outputs == []
        for name in ("hs", "references", "pred_logits", "pred_spans", "pred_iou", "saliency_scores"):
            torch.testing.assert_close(getattr(full, name), getattr(lean, name), atol=1e-6, rtol=1e-6)


def test_negative_text_refines_its_video() -> None:
    """Repaired, the wrong text alone decides about the negative scores; officially the right one remains."""
    generator = torch.Generator().manual_seed(5)
    video, mask = torch.randn(2, 9, 18, generator=generator), torch.ones(2, 9)
    text, text_mask = torch.randn(2, 6, 12, generator=generator), torch.ones(2, 6)
    other = torch.stack((torch.randn(6, 12, generator=generator), text[1]))
    for behaviour, keeps_right_text in zip(BEHAVIOURS, (True, False), strict=True):
        model = shaken(GirlDetrConfig(**SIZES, behaviour=behaviour))
        first, second = (
            run(model, (video, mask, words, text_mask)).saliency_scores_neg for words in (text, other)
        )
        assert first is not None
        assert second is not None
        # sample 0 is scored with text 1, which is the same in both
        assert (float((first[0] - second[0]).abs().max()) > 1e-4) == keeps_right_text


def test_tiny_anchor_widths_stay_finite() -> None:
    """An anchor width that underflows makes the official model NaN."""
    inputs = torch.randn(2, 9, 18), torch.ones(2, 9), torch.randn(2, 6, 12), torch.ones(2, 6)
    for behaviour, finite in zip(BEHAVIOURS, (False, True), strict=True):
        model = shaken(GirlDetrConfig(**SIZES, behaviour=behaviour))
        with torch.no_grad():
            model.decoder.anchors[0, 1] = -200.0
        output = run(model, inputs, training_branches=False)
        assert bool(output.pred_logits.isfinite().all()) == finite


def test_anchors_start_where_they_were_learned() -> None:
    inputs = torch.randn(2, 9, 18), torch.ones(2, 9), torch.randn(2, 6, 12), torch.ones(2, 6)
    output = run(GirlDetr(GirlDetrConfig(**SIZES)).eval(), inputs)
    torch.testing.assert_close(output.references[1:], output.references[:1].expand(2, -1, -1, -1))


@pytest.mark.parametrize("name", sorted(REPAIRS))
def test_each_repair_alone(goldens: Path, name: str) -> None:
    """Runs, and differs from the official behaviour in what it is about and in nothing before it."""
    inputs = inputs_of(goldens / "tiny")
    config = GirlDetrConfig(**SIZES, repairs=frozenset({name}))
    model = shaken(config)
    official = shaken(replace(config, behaviour="official", repairs=None))
    shared = {k: v for k, v in official.state_dict().items() if k in model.state_dict()}
    model.load_state_dict(shared, strict=False)
    found, before = run(model, inputs), run(official, inputs)
    assert found.pred_spans.isfinite().all()
    refines = name in ("padded_similarity", "word_clip_attention")
    assert torch.equal(found.src_vid, before.src_vid) != refines


def test_repairs_are_documented() -> None:
    documentation = vmr_env.backbones.girl_detr.__doc__
    assert documentation is not None
    assert {name for name in REPAIRS if f"`{name}`" in documentation} == REPAIRS.keys()
