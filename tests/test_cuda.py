"""On a GPU, where there is one: what is learnt and cached there is what the processor learns and caches.

Kernels round in another order, so numbers are near, not equal: docs/cluster.md states how near. Nothing is
dropped here, as dropout draws where it is.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone import make_backbone, open_features
from refinement import short_cache, user_cache_in
from test_dense import CONFIG, problem
from test_devices import AGENTS, HEADS, STEPWISE, head_learnt, learnt, leaves, stepwise_learnt
from test_stepwise import write_clips
from test_tprl import write_states
from test_train import TINY, trainer

from vmr_env.agents.dense.trainer import believe, train
from vmr_env.backbones.base import GirlDetrDetector
from vmr_env.backbones.cache import build_cache
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint
from vmr_env.backbones.girl_detr.layers import Dropout
from vmr_env.backbones.simulated.features import write_simulated
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.profiles import get_profile

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

GPU = "cuda"
NEAR = 1e-4
"""Largest difference of cached states, and of probabilities and weights after some steps of learning."""


def farthest(found: object, expected: object) -> float:
    """The largest difference between the numbers of two nested states."""
    pairs = zip(leaves(found), leaves(expected), strict=True)
    return max(float(np.max(np.abs(np.subtract(one, other)), initial=0)) for one, other in pairs)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with user_cache_in(tmp_path_factory.mktemp("cuda")) as folder:
        yield short_cache(folder / "short").path


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_learns_on_a_gpu_what_it_learns_on_the_processor(name: str, cache: Path) -> None:
    where, _, policy = learnt(name, cache, GPU)
    _, _, expected = learnt(name, cache, "cpu")
    assert where.startswith(GPU)
    np.testing.assert_allclose(policy, expected, rtol=0, atol=NEAR)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "tprl, sampled"])
def test_a_head_learns_on_a_gpu_what_it_learns_on_the_processor(name: str, tmp_path: Path) -> None:
    write_states(tmp_path / "train", 0, dtype="float16"), write_states(tmp_path / "val", 1)
    found, expected = (head_learnt(name, tmp_path, where) for where in (GPU, "cpu"))
    assert farthest(found, expected) <= NEAR


@pytest.mark.parametrize("gradient", ["exact", "reinforce", "ppo"])
def test_a_policy_over_all_spans_learns_on_a_gpu_what_it_learns_on_the_processor(gradient: str) -> None:
    timelines = problem(24)
    config = replace(CONFIG, epochs=2, gradient=gradient, samples=4, dropout=0.0)
    found, expected = (
        believe([train(timelines, 0, config, device=where)], timelines) for where in (GPU, "cpu")
    )
    assert farthest(list(found), list(expected)) <= NEAR


@pytest.mark.parametrize("name", STEPWISE)
def test_a_step_wise_agent_learns_on_a_gpu_what_it_learns_on_the_processor(name: str, tmp_path: Path) -> None:
    write_clips(tmp_path / "train", 0, 16), write_clips(tmp_path / "val", 1, 16)
    found, expected = (stepwise_learnt(STEPWISE[name], tmp_path, where) for where in (GPU, "cpu"))
    assert farthest(found, expected) <= NEAR


def test_a_backbone_caches_on_a_gpu_what_it_caches_on_the_processor(tmp_path: Path) -> None:
    made = make_backbone(tmp_path / "backbone", train=8, select=8, test=24)
    build_cache(
        tmp_path / "there",
        GirlDetrDetector(load_checkpoint(made.weights).to(GPU), "none"),
        open_features(made.features / "test", made.recipe),
        split="test",
        source="simulated",
        profile="charades",
        dtype="float32",
        progress=False,
    )
    there, here = DecoderStateCache.open(tmp_path / "there"), DecoderStateCache.open(made.caches / "test")
    for found, expected in ((there.states, here.states), (there.spans, here.spans)):
        assert found is not None
        assert expected is not None
        np.testing.assert_allclose(found, expected, rtol=0, atol=NEAR)


def test_a_backbone_learns_on_a_gpu_what_it_learns_on_the_processor(tmp_path: Path) -> None:
    recipe = TINY.with_options({"epochs": 2, "dropout": 0, "input_dropout": 0})
    write_simulated(tmp_path / "data", get_profile("charades"), samples=60, seed=1)
    found, expected = {}, {}
    for where, losses in ((GPU, found), ("cpu", expected)):
        run = trainer(tmp_path / "data", tmp_path / where, recipe, device=where)
        for module in run.model.modules():
            if isinstance(module, Dropout):
                module.p = 0.0  # that of the refinement is fixed
        losses.update(run.train_epoch())
    assert found == pytest.approx(expected, rel=10 * NEAR)
