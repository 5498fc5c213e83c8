"""Methods that the options of the main job choose, with the settings that `--set` gives them."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmr_env.agents.base import agent_class
from vmr_env.agents.ensemble.cross_fitting import Configured, MakeAgent
from vmr_env.agents.stepwise.data import DetectedBatches
from vmr_env.benchmarks.experiment.head_methods import (
    ablations,
    backbone_method,
    configured,
    parse_options,
)
from vmr_env.benchmarks.experiment.methods import EnvironmentMethod, Fold, Method, check_weights
from vmr_env.benchmarks.experiment.names import AGENTS, BACKBONE_METHODS, STEPWISE_AGENTS
from vmr_env.benchmarks.experiment.options import BESIDE, Options
from vmr_env.benchmarks.experiment.unfrozen import Features
from vmr_env.errors import DataError, Problem


def load_agent(name: str) -> MakeAgent:
    """An agent's class by its short name, or as module:Class, also from the working folder.

    Raises:
        DataError: there is no such module or class, or it is no agent.
    """
    if name not in AGENTS and (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        return agent_class(AGENTS.get(name, name))
    except ValueError as error:
        message = f"{error}; expected one of {', '.join((*AGENTS, *BACKBONE_METHODS))}, or module:Class"
        raise DataError(Problem("--agents", None, None, message)) from error


def methods_of(options: Options, folds: Sequence[Fold]) -> dict[str, Method]:
    """Methods to be compared, by name.

    Raises:
        DataError: an agent or a setting is unknown, or the weights are not those behind the caches.
    """
    every = (cache for fold in folds for cache in (fold.train, fold.test, fold.select) if cache is not None)
    for cache in {id(cache): cache for cache in every}.values():
        if options.weights:
            check_weights(options.weights, cache)
        if set(STEPWISE_AGENTS) & set(options.chosen):
            DetectedBatches(cache)
    if options.ablate and options.weights is not None:
        features = Features(*options.features) if options.features else None
        return ablations(options.dataset, options.weights, features)
    return chosen_methods(options)


def chosen_methods(options: Options) -> dict[str, Method]:
    """The chosen agents with their settings, by name; reads no data.

    Raises:
        DataError: an agent or a setting is unknown, or `--set` names an agent that was not chosen.
    """
    settings = parse_options(options.set, options.chosen)
    weights = options.weights or Path(BESIDE)  # those that --backbone has yet to train
    methods: dict[str, Method] = {}
    for name in options.chosen:
        given = settings.get(name, {})
        if name in BACKBONE_METHODS:
            methods[name] = backbone_method(name, options.dataset, weights, given)
        else:
            methods[name] = EnvironmentMethod(_with_settings(load_agent(name), name, given))
    return methods


def _with_settings(agent: MakeAgent, name: str, options: Mapping[str, Any]) -> MakeAgent:
    """The agent's class, or what makes its agents with other values of some settings.

    Raises:
        DataError: there is no such setting, or its value is not as expected.
    """
    if not options:
        return agent
    config_class: Any = getattr(agent, "config_class", None)
    if config_class is None:
        message = f"names {name}, expected an agent with settings (a class with config_class)"
        raise DataError(Problem("--set", None, None, message))
    return Configured(agent, configured(config_class(), options))
