"""The policy over all spans in Stable-Baselines3, against the policy itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from test_dense import GRID, problem

from vmr_env.agents.dense.network import DenseNetwork
from vmr_env.agents.dense.timeline import Timelines
from vmr_env.agents.dense.trainer import vote_distribution
from vmr_env.agents.sb3.span_policy import SpanPolicy, timeline_batch

pytestmark = pytest.mark.filterwarnings("ignore:.*are not by falling score")  # as a detector may give them

SETTINGS: dict[str, Any] = {"gamma": 1.0, "seed": 0, "device": "cpu"}


def environment(timelines: Timelines, **options: object) -> Callable[[], gymnasium.Env]:
    return lambda: gymnasium.make(
        "vmr_env:VMR-QVHighlights-Spans-v0",
        annotations=timelines.annotations,
        predictions=timelines.models,
        clips=timelines._features,
        queries=timelines._queries,
        grid_clips=GRID.clips,
        **options,
    )


def observed(timelines: Timelines) -> dict[str, np.ndarray]:
    env = environment(timelines, observation="dict")()
    rows = [env.reset(options={"sample": row})[0] for row in range(len(timelines))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_observations_are_the_batches_of_the_trainer() -> None:
    timelines = problem(6)
    given = timeline_batch({name: torch.from_numpy(part) for name, part in observed(timelines).items()})
    for name, found, expected in zip(given._fields, given, timelines.batch(range(6)), strict=True):
        inside = given.span_mask[..., None] if name == "numbers" else torch.ones(())
        torch.testing.assert_close(found * inside, expected * inside, rtol=1e-4, atol=2e-5)


def test_it_begins_as_the_vote_and_says_what_the_network_says() -> None:
    timelines = problem(12)
    model = PPO(SpanPolicy, environment(timelines, observation="dict")(), **SETTINGS)
    seen = observed(timelines)
    voted = vote_distribution(timelines).argmax(dim=1)
    np.testing.assert_array_equal(model.predict(seen, deterministic=True)[0], voted)
    torch.manual_seed(3)
    network = DenseNetwork(timelines.dim, GRID.clips).eval()
    torch.nn.init.normal_(network.clip_scores.weight)
    model.policy.network.load_state_dict(network.state_dict())
    logits = network(timelines.batch(range(12))).logits
    np.testing.assert_array_equal(model.predict(seen, deterministic=True)[0], logits.argmax(dim=1))
    assert not torch.equal(logits.argmax(dim=1), voted)
    given, actions = model.policy.obs_to_tensor(seen)[0], logits.argmax(dim=1)
    found = model.policy.evaluate_actions(given, actions)[1]
    expected = logits.log_softmax(dim=1).gather(1, actions[:, None])[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_ppo_learns_what_evidence_tells_and_is_the_same_after_its_disk(tmp_path: Path) -> None:
    timelines = problem(24)
    env = make_vec_env(environment(timelines, observation="dict"), n_envs=8, seed=0)
    model = PPO(
        SpanPolicy,
        env,
        n_steps=16,
        batch_size=64,
        learning_rate=3e-3,
        policy_kwargs={"channels": 16},
        **SETTINGS,
    )
    seen = observed(timelines)
    judge = environment(timelines, observation="dict")()

    def mean_tiou() -> float:
        values = []
        for row, action in enumerate(model.predict(seen, deterministic=True)[0]):
            judge.reset(options={"sample": row})
            values.append(judge.step(action)[1])
        return float(np.mean(values))

    before = mean_tiou()
    model.learn(128 * 12)
    assert mean_tiou() > before + 0.1
    model.save(tmp_path / "model.zip")
    again = PPO.load(tmp_path / "model.zip", device="cpu")
    for name, part in model.policy.state_dict().items():
        assert torch.equal(part, again.policy.state_dict()[name])


def test_unsuitable_spaces_are_told() -> None:
    timelines = problem(2)
    with pytest.raises(ValueError, match="observation space is a Box, expected a Dict"):
        PPO(SpanPolicy, environment(timelines)(), device="cpu")
    space = gymnasium.spaces.Dict({"query": gymnasium.spaces.Box(0, 1, (3,))})
    with pytest.raises(ValueError, match="observations lack action_mask, timeline, windows"):
        SpanPolicy(space, gymnasium.spaces.Discrete(3), lambda _: 1e-3)
    with pytest.raises(ValueError, match="observation is 'flat', expected one of 'timeline', 'dict'"):
        environment(timelines, observation="flat")()
