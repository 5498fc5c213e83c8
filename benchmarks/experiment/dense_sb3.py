"""Stable-Baselines3's PPO with our network over all spans, judged as by `benchmarks.experiment.dense`.

    python -m vmr_env.benchmarks.experiment.dense_sb3 --train val.jsonl cg_val.jsonl --test test.jsonl
    cg_test.jsonl --clips features/val features/test --paraphrases rephrased_val.jsonl --seeds 3

The network first imitates (`gradient="none"`), then PPO goes on from there in the environment, whose reward
is here the mean of tIoU and hits at 0.5 and 0.7. The table has imitation alone beside it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from vmr_env.agents.dense.decoding import answers
from vmr_env.agents.dense.network import DenseNetwork
from vmr_env.agents.dense.spans import gain
from vmr_env.agents.dense.timeline import Timelines
from vmr_env.agents.dense.trainer import DenseConfig, believe, train
from vmr_env.agents.sb3.span_policy import SpanPolicy
from vmr_env.agents.sb3.vec_env import check_finite
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.benchmarks.experiment.dense import (
    DETECTOR,
    POLICY,
    Stores,
    detectors,
    read_timelines,
    report,
)
from vmr_env.data.annotations import Annotation, read_annotations
from vmr_env.data.predictions import Prediction
from vmr_env.data.profiles import PROFILES, get_profile
from vmr_env.data.timelines import ClipFeatures
from vmr_env.envs.span_env import VMRSpanEnv
from vmr_env.programs import run_program

ENVIRONMENTS = 4
ROLLOUT = 2_048
"""Episodes between updates. With 512, and with more episodes in all, what was learnt by imitation is lost."""


def gain_of(tiou: float) -> float:
    """`vmr_env.agents.dense.spans.gain` of one answer."""
    return float(gain(torch.tensor(tiou)))


def ppo_from(
    network: DenseNetwork, timelines: Timelines, clips: ClipFeatures, dataset: str, seed: int, steps: int
) -> DenseNetwork:
    """A network that SB3's PPO has trained on from this one, for so many episodes of one step.

    Raises:
        FloatingPointError: a gradient or a weight is not finite.
    """
    queries = {str(row.qid): timelines.query_vectors(i) for i, row in enumerate(timelines.annotations)}
    annotations = [row for row in timelines.annotations if isinstance(row, Annotation)]

    def environment() -> gymnasium.Env[object, object]:
        env = VMRSpanEnv(
            dataset,
            annotations=annotations,
            predictions=timelines.models,
            clips=clips,
            queries=queries,
            grid_clips=timelines.grid.clips,
            observation="dict",
            past_end="keep",
        )
        return gymnasium.wrappers.TransformReward(env, lambda reward: gain_of(float(reward)))  # type: ignore[arg-type]

    model = PPO(
        SpanPolicy,
        make_vec_env(environment, n_envs=ENVIRONMENTS, seed=seed),
        learning_rate=5e-4,
        n_steps=ROLLOUT // ENVIRONMENTS,
        batch_size=256,
        n_epochs=2,
        gamma=1.0,
        seed=seed,
        device="cpu",
    )
    policy = model.policy
    assert isinstance(policy, SpanPolicy)
    policy.network.load_state_dict(network.state_dict())
    for register in (policy.optimizer.register_step_pre_hook, policy.optimizer.register_step_post_hook):
        register(check_finite)
    try:
        model.learn(steps)
    except FloatingPointError as error:
        where = f"SB3's PPO over spans, seed {seed}, step {model.num_timesteps}"
        raise FloatingPointError(f"{where}: {error}") from None
    trained: DenseNetwork = policy.network
    return trained.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: imitate, let SB3's PPO go on, and judge both."""
    parser = argparse.ArgumentParser(
        prog="python -m vmr_env.benchmarks.experiment.dense_sb3", description=main.__doc__
    )
    files = "annotation file, then prediction files of one detector or of a pool"
    parser.add_argument("--train", nargs="+", type=Path, required=True, metavar="FILE", help=files)
    parser.add_argument("--test", nargs="+", type=Path, required=True, metavar="FILE", help=files)
    parser.add_argument("--dataset", choices=PROFILES, default="qvhighlights", help="default: qvhighlights")
    parser.add_argument("--clips", nargs="+", type=Path, required=True, help="feature stores of the clips")
    parser.add_argument(
        "--paraphrases", nargs="*", type=Path, default=[], help="of the queries, as of `vmr-env dense`"
    )
    parser.add_argument("--seeds", type=int, default=3, help="networks whose probabilities are averaged")
    parser.add_argument("--steps", type=int, default=16_384, help="episodes of PPO (default: 16,384)")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.steps < 1:
        parser.error(f"--seeds is {options.seeds}, --steps is {options.steps}; expected 1 or more of both")
    for name in ("train", "test"):
        if len(getattr(options, name)) < 2:
            parser.error(f"--{name} names one file; expected an annotation file and prediction files")
    torch.set_num_threads(1)
    clips = Stores([FeatureStore(path) for path in options.clips])
    profile = get_profile(options.dataset)
    learn = read_timelines(options.train, clips, profile, options.paraphrases)
    judge = read_timelines(options.test, clips, profile, options.paraphrases)

    def answered(networks: Sequence[DenseNetwork]) -> list[Prediction]:
        beliefs = believe(networks, judge)
        return answers(judge, beliefs.probabilities, relevance=beliefs.relevance)

    imitation = DenseConfig(gradient="none")
    imitators = [train(learn, seed, imitation) for seed in range(options.seeds)]
    whole = [(range(len(learn)), range(len(judge)))]
    names = [str(path) for path in options.train[1:]]
    detector = detectors(learn, judge.models, whole, names)
    lists = {DETECTOR: detector, "imitation alone": answered(imitators)}
    trained = [
        ppo_from(network, learn, clips, options.dataset, seed, options.steps)
        for seed, network in enumerate(imitators)
    ]
    lists[POLICY] = answered(trained)
    truth = read_annotations(options.test[0], past_end="keep")
    print(report(lists, truth, profile))


if __name__ == "__main__":
    run_program(main)
