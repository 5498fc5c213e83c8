"""Agents and heads learn and act on any device: nothing is mixed, and numbers are those of the processor."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone import Backbone, make_backbone
from click.testing import CliRunner
from one_run import run_alone
from refinement import environment, short_cache, user_cache_in
from second_device import DEVICE, elsewhere, with_device
from test_dense import CONFIG, problem
from test_stepwise import small_config as stepwise_config
from test_stepwise import write_clips
from test_tprl import new_head, small_config, write_states
from torch import Tensor

from vmr_env.agents.dense import DensePolicy, load_policy, save_policy
from vmr_env.agents.dense.objectives import Gradient
from vmr_env.agents.dense.trainer import believe, train
from vmr_env.agents.ensemble.cross_fitting import CrossFittedEnsemble
from vmr_env.agents.ensemble.files import load_ensemble, save_ensemble
from vmr_env.agents.expected_gain import ExpectedGain, ExpectedGainConfig
from vmr_env.agents.grpo import GRPO, GRPOConfig
from vmr_env.agents.policy_agent import PolicyAgent, PolicyConfig
from vmr_env.agents.ppo import PPO, PPOConfig
from vmr_env.agents.reinforce import Reinforce, ReinforceConfig
from vmr_env.agents.sb3.head_config import SB3HeadConfig
from vmr_env.agents.sb3.vec_env import SB3PPO
from vmr_env.agents.stepwise.trainer import StepwiseTrainer, walk
from vmr_env.agents.tprl.head_config import HeadConfig
from vmr_env.agents.tprl.head_policy import HeadPolicyConfig, HeadPolicyTrainer, head_policy_config
from vmr_env.agents.tprl.head_training import HeadTrainer, cross_fit_head
from vmr_env.agents.tprl.trainer import TprlConfig, TprlTrainer
from vmr_env.benchmarks.cli.refine import refine
from vmr_env.benchmarks.experiment.dense import main as dense
from vmr_env.benchmarks.experiment.experiment import train_test
from vmr_env.benchmarks.experiment.main import main
from vmr_env.benchmarks.experiment.methods import HeadMethod, Settings
from vmr_env.benchmarks.experiment.unfrozen import Features, UnfrozenMethod
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.curriculum import through_stages
from vmr_env.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

AGENTS: dict[str, tuple[type[PolicyAgent[Any]], PolicyConfig]] = {
    "ppo": (PPO, PPOConfig(minibatch=64, hidden=16, members=2)),
    "ppo, flat": (PPO, PPOConfig(minibatch=64, hidden=16, network="flat")),
    "reinforce": (Reinforce, ReinforceConfig(minibatch=64, hidden=16)),
    "grpo": (GRPO, GRPOConfig(minibatch=64, hidden=16, group=4, batches=1, epochs=2)),
    "expected gain": (ExpectedGain, ExpectedGainConfig(minibatch=32, hidden=16)),
}


@pytest.fixture(scope="module")
def device() -> Iterator[ProcessPoolExecutor]:
    with elsewhere() as process:
        yield process


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with user_cache_in(tmp_path_factory.mktemp("devices")) as folder:
        yield short_cache(folder / "short").path


def leaves(state: Any) -> list[Any]:
    """Tensors, as arrays, and numbers of nested dicts and lists."""
    if isinstance(state, Mapping):
        return [leaf for part in state.values() for leaf in leaves(part)]
    if isinstance(state, list | tuple):
        return [leaf for part in state for leaf in leaves(part)]
    return [state.detach().cpu().numpy() if isinstance(state, Tensor) else state]


def learnt(name: str, path: Path, where: str) -> tuple[str, list[Any], Any]:
    """Where an agent's networks are after two rounds, its state, and what it does then."""
    kind, config = AGENTS[name]
    env = environment(DecoderStateCache.open(path))
    agent = kind(env, 3, config)
    agent.to(where)
    for _ in range(2):
        agent.update()
    observations, infos = env.reset(seed=5)
    policy = agent.probabilities(observations, infos["action_mask"])
    return str(next(agent.members.parameters()).device), leaves(agent.state_dict()), policy


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_learns_on_a_device_what_it_learns_on_the_processor(
    name: str, cache: Path, device: ProcessPoolExecutor
) -> None:
    where, state, policy = device.submit(with_device, learnt, name, cache, DEVICE).result()
    _, expected, expected_policy = learnt(name, cache, "cpu")
    assert where == DEVICE
    np.testing.assert_array_equal(policy, expected_policy)
    assert len(state) == len(expected)
    for found, of_processor in zip(state, expected, strict=True):
        np.testing.assert_array_equal(found, of_processor)


def kept_and_loaded(path: Path, file: Path, learns: str, acts: str) -> Any:
    """The policy of an ensemble that learnt on one device and acts on another, and where it acts."""
    cache = DecoderStateCache.open(path)
    kind, config = AGENTS["ppo"]
    agent = kind(environment(cache), 3, config)
    agent.to(learns)
    agent.update()
    save_ensemble(file, CrossFittedEnsemble([agent], agent.env_options), cache, {})
    member: Any = load_ensemble(file, cache, acts).members[0]
    observations, infos = member.env.reset(seed=5)
    where = str(next(member.members.parameters()).device)
    return where, member.probabilities(observations, infos["action_mask"])


def test_an_ensemble_acts_on_another_device_than_it_learnt_on(
    cache: Path, tmp_path: Path, device: ProcessPoolExecutor
) -> None:
    _, expected = kept_and_loaded(cache, tmp_path / "cpu", "cpu", "cpu")
    for learns, acts in ((DEVICE, "cpu"), ("cpu", DEVICE)):
        where, found = device.submit(
            with_device, kept_and_loaded, cache, tmp_path / "kept", learns, acts
        ).result()
        assert where == acts
        np.testing.assert_array_equal(found, expected)


SHORT = through_stages(0.5, (1, 1, 2))
HEADS: Mapping[str, HeadConfig] = {
    "tprl": small_config(schedule=SHORT),
    "tprl, sampled": small_config(
        schedule=SHORT, estimator="loo_mean", state_dropout=0.2, rank_coef=0.1, class_lr=1e-3
    ),
    "policy": replace(head_policy_config("ppo"), batch_size=16, epochs=(1, 1, 2)),
    "policy, grpo": replace(head_policy_config("grpo"), batch_size=16, epochs=(1, 1, 2)),
}


def head_trainer(name: str, where: str) -> HeadTrainer[Any, Any]:
    config, head = HEADS[name], new_head().to(where)
    if isinstance(config, HeadPolicyConfig):
        return HeadPolicyTrainer(head, config)
    assert isinstance(config, TprlConfig)
    return TprlTrainer(head, config)


def head_learnt(name: str, folder: Path, where: str) -> list[Any]:
    """What training a head gives, with a third cache for its choice, and cross-fitted."""
    train_cache, validation = (DecoderStateCache.open(folder / split) for split in ("train", "val"))
    fitted = head_trainer(name, where).fit(train_cache, validation, progress=False)
    rows = np.arange(len(train_cache))
    crossed = cross_fit_head(lambda seed: head_trainer(name, where), train_cache, rows, members=2, seed=0)
    assert {tensor.device.type for result in (fitted, crossed) for tensor in result.head.values()} == {"cpu"}
    return leaves([fitted.head, fitted.history, crossed.head, crossed.history])


@pytest.mark.parametrize("name", HEADS)
def test_a_head_learns_on_a_device_what_it_learns_on_the_processor(
    name: str, tmp_path: Path, device: ProcessPoolExecutor
) -> None:
    write_states(tmp_path / "train", 0, dtype="float16"), write_states(tmp_path / "val", 1)
    found = device.submit(with_device, head_learnt, name, tmp_path, DEVICE).result()
    for one, other in zip(found, head_learnt(name, tmp_path, "cpu"), strict=True):
        np.testing.assert_array_equal(one, other)


def interrupted(name: str, folder: Path, where: str) -> None:
    """Train a head up to its first evaluation, which the checkpoint holds."""
    train_cache, validation = (DecoderStateCache.open(folder / split) for split in ("train", "val"))
    seen: list[Any] = []

    def watch(row: Any) -> None:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(row)

    with pytest.raises(KeyboardInterrupt):
        head_trainer(name, where).fit(
            train_cache, validation, checkpoint=folder / "checkpoint", progress=False, watch=watch
        )


@pytest.mark.parametrize("name", ["tprl", "policy, grpo"])
def test_a_training_of_a_device_goes_on_on_the_processor(
    name: str, tmp_path: Path, device: ProcessPoolExecutor
) -> None:
    caches = write_states(tmp_path / "train", 0), write_states(tmp_path / "val", 1)
    device.submit(with_device, interrupted, name, tmp_path, DEVICE).result()
    resumed = head_trainer(name, "cpu").fit(
        *caches, checkpoint=tmp_path / "checkpoint", resume=True, progress=False
    )
    whole = head_trainer(name, "cpu").fit(*caches, progress=False)
    for one, other in zip(leaves(resumed.head), leaves(whole.head), strict=True):
        np.testing.assert_array_equal(one, other)


def dense_learnt(gradient: Gradient, folder: Path, where: str) -> list[Any]:
    """What a policy over all spans says, also after its disk."""
    timelines = problem(24)
    config = replace(CONFIG, epochs=2, gradient=gradient, samples=4)
    network = train(timelines, 0, config, device=where)
    assert network.vote.device == torch.device(where)
    save_policy(folder, DensePolicy((network,), timelines.grid, config.channels))
    loaded = load_policy(folder, where)
    return leaves([believe([network], timelines), believe(loaded.networks, timelines)])


@pytest.mark.parametrize("gradient", ["exact", "reinforce", "ppo"])
def test_a_policy_over_all_spans_learns_on_a_device_what_it_learns_on_the_processor(
    gradient: Gradient, tmp_path: Path, device: ProcessPoolExecutor
) -> None:
    found = device.submit(with_device, dense_learnt, gradient, tmp_path / "there", DEVICE).result()
    for one, other in zip(found, dense_learnt(gradient, tmp_path / "here", "cpu"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)  # attention is another kernel there


def stepwise_learnt(settings: Mapping[str, Any], folder: Path, where: str) -> list[Any]:
    """Weights and walks of a step-wise agent."""
    train_cache, validation = (DecoderStateCache.open(folder / split) for split in ("train", "val"))
    config = stepwise_config(**{"warm_up_epochs": 1, "epochs": 1, "evaluate_every": 1, **settings})
    trainer = StepwiseTrainer(config, 8, device=where)
    result = trainer.fit(train_cache, validation, progress=False)
    return leaves([result.policy, result.history, walk(trainer.policy, validation)])


STEPWISE: Mapping[str, Mapping[str, Any]] = {  # without its memory, whose cell is another kernel elsewhere
    "reinforce": {},
    "ppo": {"algorithm": "ppo", "gate": True, "iou_head": True, "hard_below": 0.9},
    "continuous": {"actions": "continuous", "warm_up_epochs": 0},
}


@pytest.mark.parametrize("name", STEPWISE)
def test_a_step_wise_agent_learns_on_a_device_what_it_learns_on_the_processor(
    name: str, tmp_path: Path, device: ProcessPoolExecutor
) -> None:
    write_clips(tmp_path / "train", 0, 16), write_clips(tmp_path / "val", 1, 16)
    found = device.submit(with_device, stepwise_learnt, STEPWISE[name], tmp_path, DEVICE).result()
    for one, other in zip(found, stepwise_learnt(STEPWISE[name], tmp_path, "cpu"), strict=True):
        np.testing.assert_array_equal(one, other)


def mixed(what: str) -> None:
    """What an accelerator refuses."""
    here, there = torch.ones(3), torch.ones(3).to(DEVICE)
    assert (there + 1).cpu().tolist() == [2, 2, 2]
    if what == "tensors":
        here + there
    elif what == "numpy":
        there.numpy()
    else:
        there.bernoulli_(0.5, generator=torch.Generator())


@pytest.mark.parametrize("what", ["tensors", "numpy", "generator"])
def test_the_second_device_of_these_tests_refuses_what_an_accelerator_refuses(
    what: str, device: ProcessPoolExecutor
) -> None:
    with pytest.raises((RuntimeError, TypeError), match=r"second|numpy\(\)"):
        device.submit(with_device, mixed, what).result()


def test_a_device_that_is_not_there_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    file, refused = str(tmp_path / "file"), "is 'abacus'; expected cpu or a device of this machine"
    assert main(["--device", "abacus", "--out", str(tmp_path / "out")]) == 2
    assert f"--device: {refused}" in capsys.readouterr().err
    told = CliRunner().invoke(refine, [file, file, "--agent", "vote", "--out", "x", "--device", "abacus"])
    assert told.exit_code == 2
    assert refused in told.output
    with pytest.raises(SystemExit):
        dense(["--train", file, file, "--clips", file, "--device", "abacus"])
    assert f"argument --device: {refused}" in capsys.readouterr().err


def test_agents_of_other_libraries_say_that_they_stay_on_the_processor(cache: Path) -> None:
    opened = DecoderStateCache.open(cache)
    with pytest.raises(ValueError, match=f"device is '{DEVICE}', expected 'cpu' for SB3PPO"):
        SB3PPO(environment(opened), 0).to(DEVICE)


def main_job(made: Backbone, out: Path, where: str, *more: str) -> list[dict[str, Any]]:
    """Results of runs of the main job, by the names of their files."""
    words = ["--cache", str(made.caches / "train"), "--test-cache", str(made.caches / "test")]
    words += ["--weights", str(made.weights), "--members", "2", "--evaluations", "1", "--rounds", "1"]
    words += ["--jobs", "1", "--seeds", "1", "--log", "csv", "--agents", "ppo", "tprl", "stepwise_ppo"]
    for setting in ("tprl.epochs=[0,0,1]", "stepwise_ppo.warm_up_epochs=1", "stepwise_ppo.epochs=1"):
        words += ["--set", setting]
    assert main([*words, "--out", str(out), "--device", where, *more]) == 0
    return results(out)


def results(out: Path) -> list[dict[str, Any]]:
    """Selections and answers; what stayed frozen is found by addresses, which that device has not."""
    read = [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
    different = ("seconds", "sha256", "frozen")
    return [{key: value for key, value in one.items() if key not in different} for one in read]


def unfrozen_learnt(made: Backbone, folder: Path, where: str) -> list[Any]:
    """Answers of a backbone that learns with its head."""
    folds = train_test(*(DecoderStateCache.open(made.caches / split) for split in ("train", "test")))
    features = Features(made.features / "train", made.features / "test")
    method = UnfrozenMethod(small_config(schedule=SHORT), made.weights, features, "everything")
    settings = Settings(members=2, evaluations=1, proposals=1, rounds=None, device=where)
    result = run_alone(method, folds[0], settings, folder)
    return [*leaves(list(result.answers)), len(result.selection.rounds)]


def test_the_main_job_gives_the_same_table_on_a_device_and_goes_on_there(
    tmp_path: Path, device: ProcessPoolExecutor
) -> None:
    made = make_backbone(tmp_path / "backbone", train=24, test=12, memory="refined")
    here, there = tmp_path / "here", tmp_path / "there"
    expected = main_job(made, here, "cpu")
    assert len(expected) == 3
    assert device.submit(with_device, main_job, made, there, DEVICE).result() == expected
    next((here / "runs").glob("ppo*.json")).unlink()  # one is yet to do, and is done elsewhere
    assert device.submit(with_device, main_job, made, here, DEVICE, "--resume").result() == expected
    found = device.submit(with_device, unfrozen_learnt, made, tmp_path / "there", DEVICE).result()
    for one, other in zip(found, unfrozen_learnt(made, tmp_path / "here", "cpu"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)  # attention is another kernel there


def test_a_head_that_another_library_trains_is_refused_on_a_device(tmp_path: Path) -> None:
    made = make_backbone(tmp_path / "backbone", train=8, test=4)
    folds = train_test(*(DecoderStateCache.open(made.caches / split) for split in ("train", "test")))
    settings = Settings(members=2, evaluations=1, proposals=1, rounds=None, device=DEVICE)
    with pytest.raises(DataError, match="--device, mine: trains by Stable-Baselines3 on the processor"):
        HeadMethod(SB3HeadConfig(), made.weights).check("mine", folds[0], settings)
