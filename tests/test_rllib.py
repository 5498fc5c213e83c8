"""RLlib: PPO on remote environments, its checkpoint, and its exported policy in the table of the main job."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmr_env.agents.ensemble.cross_fitting import quality
from vmr_env.agents.evaluation import refine
from vmr_env.benchmarks.experiment.main import main
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.profiles import get_profile
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.simulation.simulator import simulate

ppo: Any = pytest.importorskip("ray.rllib.algorithms.ppo", reason="needs RLlib")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own making

ONE: Any = {"proposals": 1}
"""What environments of the main job have for one detector."""
NAME = "vmr_env.agents.rllib:RLlibPolicy"


def test_a_remote_ppo_is_restored_exported_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vmr_env.agents.rllib import RLlibPolicy, RLlibPolicyConfig

    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        simulate(tmp_path / split, get_profile("charades"), split, samples=40)
    config = (
        ppo.PPOConfig()
        .environment("vmr_env:VMR-Charades-v0", env_config={"source": str(tmp_path / "train"), **ONE})
        .env_runners(
            num_env_runners=1,
            num_envs_per_env_runner=8,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=8,
        )
        .training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1)
    )
    algorithm = config.build_algo()
    try:
        assert algorithm.train()["env_runners"]["num_env_steps_sampled"] >= 64
        algorithm.save_to_path(str(tmp_path / "checkpoint"))
        weights = algorithm.get_module().state_dict()
    finally:
        algorithm.stop()
    restored = ppo.PPO.from_checkpoint(str(tmp_path / "checkpoint"))
    try:
        assert restored.iteration == 1
        for name, tensor in restored.get_module().state_dict().items():
            assert torch.equal(tensor, weights[name]), name
        restored.train()
        assert restored.iteration == 2
        module = restored.get_module()
        module.save_to_path(str(tmp_path / "policy"))
    finally:
        restored.stop()

    # The agent takes what the module itself finds most probable among the possible actions.
    env = VMRVectorEnv(8, "charades", source=tmp_path / "test", autoreset_mode="SameStep", **ONE)
    agent = RLlibPolicy(env, 0, RLlibPolicyConfig(str(tmp_path / "policy")))
    observations, told = env.reset(seed=0)
    logits = module.forward_inference({"obs": torch.as_tensor(observations)})["action_dist_inputs"]
    for row, mask, action in zip(
        logits.tolist(), told["action_mask"], agent.act(observations, told["action_mask"]), strict=True
    ):
        assert mask[action]
        assert row[action] == max(value for value, possible in zip(row, mask, strict=True) if possible)
    words = ["--cache", "train", "--test-cache", "test", "--agents", "--agent", NAME, "--seeds", "1"]
    words += [
        "--set",
        f'{NAME}.path="{tmp_path / "policy"}"',
        "--members",
        "2",
        "--jobs",
        "1",
        "--log",
        "csv",
    ]
    assert main([*words, "--out", "judged"]) == 0
    (told_of,) = json.loads((tmp_path / "judged" / "results.json").read_text())["agents"].values()
    (run,) = (tmp_path / "judged" / "runs").glob("*.json")
    train, test = (DecoderStateCache.open(tmp_path / split) for split in ("train", "test"))
    learnt = refine(agent.act, train, np.arange(len(train)), ONE)
    gain = quality(learnt.after) - quality(learnt.before)
    assert json.loads(run.read_text())["selection"]["gains"] == pytest.approx([gain.mean()])
    judged = refine(
        agent.act, test, np.arange(len(test)), ONE
    )  # like all agents it leaves what it would spoil
    expected = judged.after if told_of["chosen_rounds"] == [1] else judged.before
    assert told_of["figures"][0]["mIoU"] == pytest.approx(100 * expected.mean(), abs=0.02)

    assert main([*words, "--proposals", "2", "--out", "wider"]) == 1
    assert "train in environments with the same options, such as proposals" in capsys.readouterr().err
    assert main([*[word.replace("policy", "absent") for word in words], "--out", "other"]) == 1
    assert "expected a folder that save_to_path wrote" in capsys.readouterr().err
