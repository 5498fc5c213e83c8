"""Methods that look behind a backbone's proposals, by name, and their options on the command line."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from vmr_env.agents.sb3.head_config import SB3HeadConfig
from vmr_env.agents.tprl.config import TprlConfig, default_config, paper_config, with_stages
from vmr_env.agents.tprl.head_config import HeadConfig
from vmr_env.agents.tprl.head_policy import head_policy_config
from vmr_env.benchmarks.experiment.methods import HeadMethod, Method
from vmr_env.benchmarks.experiment.names import STEPWISE_AGENTS
from vmr_env.benchmarks.experiment.stepwise_method import StepwiseMethod, stepwise_config
from vmr_env.benchmarks.experiment.unfrozen import UNFROZEN, Features, UnfrozenMethod
from vmr_env.envs.curriculum import SCHEDULES, through_stages
from vmr_env.errors import DataError, Problem

Config = TypeVar("Config")
"""A dataclass."""


def backbone_method(name: str, dataset: str, weights: Path, options: Mapping[str, Any]) -> Method:
    """One of `names.BACKBONE_METHODS` for a data set, with other values of some settings.

    Raises:
        DataError: There is no such setting, or its value is not as expected.
    """
    if name in STEPWISE_AGENTS:
        return StepwiseMethod(configured(stepwise_config(name, dataset), options))
    return HeadMethod(configured(head_config(name, dataset), options), weights)


def head_config(name: str, dataset: str) -> HeadConfig:
    """Settings of one of `names.HEAD_AGENTS` for a data set."""
    if name == "tprl":
        return default_config(dataset)
    if name == "tprl_paper":
        return paper_config(dataset)
    if name == "sb3_head_ppo":
        return SB3HeadConfig()
    return head_policy_config(name.removeprefix("head_"))


def parse_options(given: Sequence[str], agents: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options as "agent.name=value", values in JSON or plain text: by agent, by name.

    Raises:
        DataError: One is not of that form.
    """
    options: dict[str, dict[str, Any]] = {}
    for text in given:
        path, equals, value = text.partition("=")
        agent, dot, name = path.rpartition(".")
        if not (equals and dot and agent in agents):
            message = f"is {text!r}, expected agent.name=value with an agent of {', '.join(agents)}"
            raise DataError(Problem("--set", None, None, message))
        try:
            options.setdefault(agent, {})[name] = json.loads(value)
        except ValueError:
            options.setdefault(agent, {})[name] = value
    return options


def configured(config: Config, options: Mapping[str, Any]) -> Config:
    """The settings with other values; "epochs" of TPRL are the lengths of the stages of "curriculum".

    Raises:
        DataError: There is no such setting, or its value is not as expected.
    """
    known = {field.name for field in fields(cast(Any, config))}
    if isinstance(config, TprlConfig):
        known = known - {"schedule"} | {"curriculum", "epochs"}
    if unknown := sorted(set(options) - known):
        message = f"has {unknown[0]!r}, expected some of {', '.join(sorted(known))}"
        raise DataError(Problem("--set", None, None, message))
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    try:
        if isinstance(config, TprlConfig) and options.keys() & {"curriculum", "epochs"}:
            epochs = options.pop("epochs", tuple(phase.epochs for phase in config.schedule.phases))
            staged = with_stages(config, epochs, options.pop("curriculum", "tprl"))
            return cast(Config, replace(staged, **options))
        return cast(Config, replace(cast(Any, config), **options))
    except (TypeError, ValueError) as error:
        raise DataError(Problem("--set", None, None, str(error))) from error


def ablations(dataset: str, weights: Path, features: Features | None = None) -> dict[str, Method]:
    """TPRL's variants on one backbone: by name, the default and the published settings among them.

    Each differs from the default in what its name says, and in nothing else. Leaving a stage out gives its
    epochs to the next one, so the budget stays. Variants that unfreeze more than the head, and the published
    settings with the dropout of the frozen part, need features.
    """
    ours = default_config(dataset)
    one, two, three = (phase.epochs for phase in ours.schedule.phases)
    variants: dict[str, HeadConfig] = {
        "tprl": ours,
        "stage 3 from the start": with_stages(ours, (0, 0, one + two + three)),
        "no stage 1": with_stages(ours, (0, one + two, three)),
        "no stage 2": with_stages(ours, (one, 0, two + three)),
        "reward: steps": replace(ours, reward="step"),
        "reward: tIoU + steps": replace(ours, reward="iou_step"),
        "baseline: score-greedy, sampled": replace(ours, estimator="score_greedy"),
        "baseline: IoU-greedy, sampled": replace(ours, estimator="iou_greedy"),
        "baseline: mean, sampled": replace(ours, estimator="loo_mean"),
        "baseline: group-relative": replace(ours, estimator="grpo"),
        "policy: softmax of probabilities": replace(ours, policy_input="probability", temperature=0.5),
        "regression: published weights": replace(ours, weighting="improvement", top_k=3, distance="l1"),
        "official coefficients": replace(
            ours,
            class_lr=None,
            schedule=through_stages(SCHEDULES[dataset].rl_coef, (one, two, three), cosine=True),
        ),
        "tprl_paper": paper_config(dataset),
    }
    methods: dict[str, Method] = {name: HeadMethod(config, weights) for name, config in variants.items()}
    if features is not None:
        for unfrozen in UNFROZEN:
            methods[f"head + {unfrozen}"] = UnfrozenMethod(ours, weights, features, unfrozen)
        paper = paper_config(dataset)
        methods["tprl_paper + dropout"] = UnfrozenMethod(paper, weights, features, "nothing", dropout=True)
    return methods
