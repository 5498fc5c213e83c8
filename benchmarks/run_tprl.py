"""The main job: from data to a table that says whether reinforcement learning improved the moments.

    python benchmarks/run_tprl.py                                         simulated Charades-STA
    python benchmarks/run_tprl.py --dataset qvhighlights \\
        --predictions val.moment_detr.jsonl --annotations val.jsonl       five folds by video over one file
    python benchmarks/run_tprl.py --dataset qvhighlights \\
        --predictions val.cg_detr.jsonl --annotations val.jsonl \\
        --test-predictions test.cg_detr.jsonl --test-annotations test.jsonl
    python benchmarks/run_tprl.py --agent my_package.my_module:MyAgent    an own algorithm among ours
    python benchmarks/run_tprl.py --dataset qvhighlights --cache caches/train --test-cache caches/val \
        --weights runs/captions/best --agents tprl head_ppo head_grpo ppo  a backbone's head, and agents
    python benchmarks/run_tprl.py --backbone charades-simulated           from features: GIRL-DETR and all
    python benchmarks/run_tprl.py --backbone charades-simulated --ablate  what in TPRL does the work

Several files after --predictions form a pool. Agents learn and are selected on training videos only; test
videos are read once, at the end of a run. Ctrl-C leaves the table of what was done; --resume goes on.
"""

import argparse
import hashlib
import importlib
import importlib.util
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from vmr_env.agents.ensemble.cross_fitting import Configured, MakeAgent, Progress
from vmr_env.agents.stepwise.data import SceneBatches
from vmr_env.backbones.recipes import get_recipe
from vmr_env.backbones.simulated.embedded import RECIPE, Sizes, build_embedded
from vmr_env.benchmarks.experiment.experiment import Experiment, Run, cross_validation, run_all, train_test
from vmr_env.benchmarks.experiment.head_methods import (
    BACKBONE_METHODS,
    HEAD_AGENTS,
    ablations,
    backbone_method,
    configured,
    parse_options,
)
from vmr_env.benchmarks.experiment.methods import EnvironmentMethod, Fold, Method, Settings, check_weights
from vmr_env.benchmarks.experiment.pools import with_references
from vmr_env.benchmarks.experiment.stepwise_method import STEPWISE_AGENTS
from vmr_env.benchmarks.experiment.unfrozen import Features
from vmr_env.benchmarks.report.files import report

import vmr_env
from vmr_env.caches.from_predictions import build_prediction_cache, model_name
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.profiles import get_profile
from vmr_env.envs.actions import FREE
from vmr_env.envs.sources import simulated_source
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import write_text

AGENTS: dict[str, str] = {
    "expected_gain": "vmr_env.agents.expected_gain:ExpectedGain",
    "ppo": "vmr_env.agents.ppo:PPO",
    "reinforce": "vmr_env.agents.reinforce:Reinforce",
    "grpo": "vmr_env.agents.grpo:GRPO",
    "sb3_ppo": "vmr_env.agents.sb3.vec_env:SB3PPO",
    "sb3_a2c": "vmr_env.agents.sb3.vec_env:SB3A2C",
}
EMBEDDABLE = (RECIPE,)
"""Recipes that need no data but their seeds."""

DEFAULT_AGENTS = ("expected_gain", "ppo", "reinforce")

BACKBONE_AGENTS = (*HEAD_AGENTS, *DEFAULT_AGENTS, "grpo", "sb3_ppo")
BESIDE = "girl_detr"
"""Where `vmr_env.backbones.simulated.embedded` puts the weights, beside the caches."""

NOT_RUN = "Not run: head + last decoder layer, head + everything. They need features (--features)."

POOL_PROPOSALS = 10
_LEAST = {"folds": 2, "seeds": 1, "members": 2, "evaluations": 1, "rounds": 1, "proposals": 1, "jobs": 1}
"""Smallest sensible value of each number on the command line."""

_PROTOCOL = ("rounds", "update", "act", "state_dict", "load_state_dict")
"""What an agent's class has; see `vmr_env.agents.base`."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", default="charades", help="charades, qvhighlights or tacos (default charades)"
    )
    data.add_argument(
        "--predictions", nargs="+", type=Path, help="prediction file(s) to learn from; several are a pool"
    )
    data.add_argument("--annotations", type=Path, help="their annotations")
    data.add_argument(
        "--sort", action="store_true", help="bring the windows of prediction files by falling score first"
    )
    data.add_argument(
        "--past-end",
        choices=("error", "clip", "drop"),
        default="error",
        help="what to do with annotated moments that are no stretch of their video (default: error)",
    )
    data.add_argument("--test-predictions", nargs="+", type=Path, help="prediction file(s) to be judged on")
    data.add_argument("--test-annotations", type=Path, help="their annotations")
    data.add_argument(
        "--cache", type=Path, help="a decoder-state cache to learn from, instead of predictions"
    )
    data.add_argument("--test-cache", type=Path, help="a decoder-state cache to be judged on")
    data.add_argument(
        "--folds", type=int, default=5, help="folds by video where there is no test data (default 5)"
    )
    data.add_argument(
        "--backbone",
        metavar="RECIPE",
        help="train a GIRL-DETR on simulated features first, and learn on its decoder states of videos that "
        "it has not seen (charades-simulated)",
    )
    data.add_argument("--backbone-seed", type=int, default=0, help="seed of that training (default 0)")
    data.add_argument(
        "--features",
        nargs=2,
        type=Path,
        metavar=("TRAIN", "TEST"),
        help="features behind --cache and --test-cache, for --ablate: folders with annotations.jsonl, "
        "clips and text",
    )
    data.add_argument(
        "--weights",
        type=Path,
        help=f"the backbone's weights, for agents that train its head (default: {BESIDE} beside --cache)",
    )
    data.add_argument(
        "--select-cache",
        type=Path,
        help="a cache of training videos that the backbone has not seen, by which a head's epoch is chosen "
        "(default: parts of the training videos in turn)",
    )
    data.add_argument(
        "--times",
        choices=("exact", "submission"),
        help="score windows as they are, or rounded as in published submissions "
        "(default: submission for a backbone's caches)",
    )
    learning = parser.add_argument_group("learning")
    learning.add_argument(
        "--agents",
        nargs="*",
        help=f"some of {', '.join(AGENTS)}; with --weights also {', '.join(HEAD_AGENTS)}; "
        f"with clip features in the caches also {', '.join(STEPWISE_AGENTS)} "
        f"(default: {', '.join(DEFAULT_AGENTS)}; of a backbone: {', '.join(BACKBONE_AGENTS)})",
    )
    learning.add_argument(
        "--ablate", action="store_true", help="TPRL's variants in place of --agents; needs --weights"
    )
    learning.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="AGENT.NAME=VALUE",
        help="another setting of an agent, such as tprl.epochs=[1,2,9] or expected_gain.members=3",
    )
    learning.add_argument(
        "--agent", action="append", default=[], help="an own agent, module:Class; may be repeated"
    )
    learning.add_argument("--seeds", type=int, default=2, help="runs of each agent (default 2)")
    learning.add_argument("--members", type=int, default=3, help="members of an ensemble (default 3)")
    learning.add_argument("--evaluations", type=int, default=3, help="judgements of a member (default 3)")
    learning.add_argument("--rounds", type=int, help="rounds of learning; default: each agent's own number")
    learning.add_argument("--proposals", type=int, help="proposals that take part; default: 1, of a pool 10")
    learning.add_argument(
        "--free",
        nargs="+",
        choices=FREE,
        default=FREE,
        help="what agents in the environments may do but stop (default: all of it)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes that train side by side (default 2)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/tprl"), help="folder of the results (default runs/tprl)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in --out")
    args = parser.parse_args(argv)
    if args.cache and not args.weights and (beside := args.cache.parent / BESIDE).is_dir():
        args.weights = beside
    if args.agents is None:
        args.agents = list(BACKBONE_AGENTS if args.weights or args.backbone else DEFAULT_AGENTS)
    return args


def check(args: argparse.Namespace) -> None:
    """Find arguments that are out of range or do not go together.

    Raises:
        DataError: with all that is wrong.
    """
    problems = [
        Problem(f"--{name}", None, None, f"is {value}, expected a whole number from {least}")
        for name, least in _LEAST.items()
        if (value := getattr(args, name)) is not None and value < least
    ]
    try:
        get_profile(args.dataset)
    except ValueError as error:
        problems.append(Problem("--dataset", None, None, str(error)))
    if not args.agents and not args.agent and not args.ablate:
        problems.append(Problem("--agents", None, None, f"is empty, expected some of {', '.join(AGENTS)}"))
    for prefix in ("", "test-"):
        predictions, annotations, cache = (
            getattr(args, (prefix + name).replace("-", "_"))
            for name in ("predictions", "annotations", "cache")
        )
        if bool(predictions) != bool(annotations):
            missing = "annotations" if predictions else "predictions"
            message = f"is missing, expected with --{prefix}{'predictions' if predictions else 'annotations'}"
            problems.append(Problem(f"--{prefix}{missing}", None, None, message))
        if predictions and cache:
            message = f"is given beside --{prefix}predictions, expected one of them"
            problems.append(Problem(f"--{prefix}cache", None, None, message))
    if (args.test_predictions or args.test_cache) and not (args.predictions or args.cache):
        message = "is missing, expected data to learn from (or --cache) beside the test data"
        problems.append(Problem("--predictions", None, None, message))
    if args.backbone is not None:
        problems += _backbone_problems(args)
    headed = ["--ablate"] if args.ablate else [name for name in args.agents if name in HEAD_AGENTS]
    if headed and not args.backbone and not (args.weights and args.cache):
        message = f"is missing, expected with --cache for {headed[0]}, which trains the backbone's head"
        problems.append(Problem("--weights", None, None, message))
    if args.ablate and args.set:
        problems.append(Problem("--set", None, None, "is given beside --ablate, expected one of them"))
    if args.select_cache and not args.test_cache:
        message = "is given without --test-cache, expected caches for training, selection and test"
        problems.append(Problem("--select-cache", None, None, message))
    for package in ("matplotlib", "tensorboard"):
        if importlib.util.find_spec(package) is None:
            problems.append(Problem(package, None, None, "is missing, expected `pip install vmr-env[bench]`"))
    if problems:
        raise DataError(problems)


def _backbone_problems(args: argparse.Namespace) -> list[Problem]:
    """What is wrong with --backbone, or does not go with it."""
    problems = []
    if args.backbone not in EMBEDDABLE:
        expected = ", ".join(EMBEDDABLE)
        problems.append(Problem("--backbone", None, None, f"is {args.backbone!r}, expected {expected}"))
    for name in ("predictions", "cache", "test_cache", "select_cache", "weights", "features"):
        if getattr(args, name):
            option = "--" + name.replace("_", "-")
            problems.append(Problem(option, None, None, "is given beside --backbone, expected one of them"))
    return problems


def train_backbone(args: argparse.Namespace) -> None:
    """Train the backbone that `--backbone` names, or go on with it, and point the arguments to its caches."""
    work, made = args.out / "backbone-work", args.out / "backbone"
    recipe = replace(get_recipe(args.backbone), seed=args.backbone_seed)
    finished = made / "made.json"
    if not finished.exists():
        build_embedded(made, work, recipe, Sizes())
        write_text(finished, json.dumps({"recipe": args.backbone, "seed": args.backbone_seed}) + "\n")
    args.weights, args.dataset = made / "girl_detr", recipe.dataset
    args.cache, args.test_cache, args.select_cache = (made / name for name in ("train", "test", "val"))
    args.features = [work / "train", work / "test"]


def load_agent(name: str) -> MakeAgent:
    """An agent's class by its short name, or as module:Class, also from the working folder.

    Raises:
        DataError: there is no such module or class, or it is no agent.
    """
    module, _, cls = AGENTS.get(name, name).partition(":")
    expected = f"expected one of {', '.join(AGENTS)}, or module:Class"
    if name not in AGENTS and (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        made = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        message = f"{name!r} cannot be imported ({error}); {expected}"
        raise DataError(Problem("--agent", None, None, message)) from error
    lacking = [part for part in _PROTOCOL if not hasattr(made, part)]
    if not isinstance(made, type) or lacking:
        message = f"{name!r} is no agent (it lacks {', '.join(lacking) or 'a class'}); {expected}"
        raise DataError(Problem("--agent", None, None, message))
    agent: MakeAgent = made
    return agent


def methods_of(args: argparse.Namespace, folds: Sequence[Fold]) -> dict[str, Method]:
    """What is to be compared: by name.

    Raises:
        DataError: an agent or a setting is unknown, or the weights are not those behind the caches.
    """
    every = (cache for fold in folds for cache in (fold.train, fold.test, fold.select) if cache is not None)
    for cache in {id(cache): cache for cache in every}.values():
        if args.weights:
            check_weights(args.weights, cache)
        if set(STEPWISE_AGENTS) & set(args.agents):
            SceneBatches(cache)
    if args.ablate:
        features = Features(*args.features) if args.features else None
        return ablations(args.dataset, args.weights, features)
    return chosen_methods(args)


def chosen_methods(args: argparse.Namespace) -> dict[str, Method]:
    """The chosen agents with their settings, by name; reads no data.

    Raises:
        DataError: an agent or a setting is unknown, or `--set` names an agent that was not chosen.
    """
    options = parse_options(args.set, [*args.agents, *args.agent])
    methods: dict[str, Method] = {}
    for name in [*args.agents, *args.agent]:
        if name in BACKBONE_METHODS:
            methods[name] = backbone_method(name, args.dataset, args.weights, options.get(name, {}))
        else:
            methods[name] = EnvironmentMethod(_with_settings(load_agent(name), name, options.get(name, {})))
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


def open_data(args: argparse.Namespace) -> list[Fold]:
    """Caches and folds that the command line names.

    Raises:
        DataError: the data are broken or do not go together.
    """
    train = _cache(args, "train", args.predictions, args.annotations, args.cache)
    test = _cache(args, "test", args.test_predictions, args.test_annotations, args.test_cache)
    simulated = train is None
    if train is None:
        train = DecoderStateCache.open(simulated_source(args.dataset, "train"))
    if simulated:
        test = DecoderStateCache.open(simulated_source(args.dataset, "test"))
    select = DecoderStateCache.open(args.select_cache) if args.select_cache else None
    for cache in (train, test, select):
        if cache is not None and cache.manifest["dataset"] != args.dataset:
            message = f"is {args.dataset}, expected {cache.manifest['dataset']} as in {cache.path}"
            raise DataError(Problem("--dataset", None, None, message))
    folds = cross_validation(train, args.folds) if test is None else train_test(train, test, select)
    return with_references(folds, args.out)


def _cache(
    args: argparse.Namespace,
    split: str,
    predictions: Sequence[Path] | None,
    annotations: Path,
    cache: Path | None,
) -> DecoderStateCache | None:
    """The cache that is named, or is built from the prediction files that are named."""
    if cache:
        return DecoderStateCache.open(cache)
    if not predictions:
        return None
    path = args.out / f"cache-{split}"
    predictions = sorted(predictions, key=model_name)  # the order of a pool says nothing
    profile = get_profile(args.dataset)
    return DecoderStateCache.open(
        build_prediction_cache(
            path,
            predictions,
            annotations,
            profile,
            split,
            sort=args.sort,
            past_end=args.past_end,
            overwrite=True,
        )
    )


def settings_of(args: argparse.Namespace, folds: Sequence[Fold]) -> Settings:
    """How to train on these data.

    Raises:
        DataError: the data have fewer proposals, or fewer videos, than asked for.
    """
    available = min(folds[0].train.manifest["proposals"], folds[0].test.manifest["proposals"])
    # Choosing among one detector's own proposals does not help; among several detectors' it does.
    pooled = len(folds[0].train.manifest["models"]) > 1
    proposals = args.proposals or (min(POOL_PROPOSALS, available) if pooled else 1)
    if proposals > available:
        message = f"is {proposals}, expected at most the {available} that each sample has"
        raise DataError(Problem("--proposals", None, None, message))
    names = folds[0].train.source_videos()
    videos = min(len({names[row] for row in fold.train_samples}) for fold in folds)
    if args.members > videos:
        message = f"is {args.members}, expected at most the {videos} videos to learn from"
        raise DataError(Problem("--members", None, None, message))
    has_states = all(fold.train.states is not None and fold.test.states is not None for fold in folds)
    times = args.times or ("submission" if has_states else "exact")
    free = tuple(group for group in FREE if group in args.free)
    return Settings(args.members, args.evaluations, proposals, args.rounds, free, times == "submission")


def make_folder(args: argparse.Namespace) -> None:
    """The folder of the results; those of another run stay untouched.

    Raises:
        DataError: it has results and --resume was not given, or it cannot be made.
    """
    if (args.out / "settings.json").exists() and not args.resume:
        raise DataError(
            Problem(str(args.out), None, None, "has a run already, expected --resume or another --out")
        )
    if args.resume and not (args.out.is_dir() and any(args.out.iterdir())):
        message = "has no run, expected the folder of an interrupted one for --resume"
        raise DataError(Problem(str(args.out), None, None, message))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot be made ({error.strerror}), expected a folder to write to"
        raise DataError(Problem("--out", None, None, f"{args.out} {message}")) from error


def settle(args: argparse.Namespace, folds: Sequence[Fold]) -> None:
    """Write down what the run is of, or compare it with what an interrupted run wrote down.

    Raises:
        DataError: the interrupted run was another.
    """
    passing = ("out", "resume", "seeds", "jobs")  # may change when a run goes on
    data = [cache.manifest["files"] for fold in folds for cache in (fold.train, fold.test)]
    now = {key: str(value) for key, value in sorted(vars(args).items()) if key not in passing}
    now["data"] = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    now["versions"] = f"vmr_env {vmr_env.__version__}, torch {torch.__version__}, numpy {np.__version__}"
    path = args.out / "settings.json"
    if not path.exists():
        write_text(path, json.dumps(now, indent=1) + "\n")
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        message = f"cannot be read ({error}), expected the settings of the run to resume"
        raise DataError(Problem(str(path), None, None, message)) from error
    problems = [
        Problem(str(path), None, key, f"was {shorten(before.get(key))}, expected {value!r} to resume")
        for key, value in now.items()
        if before.get(key) != value
    ]
    if problems:
        raise DataError(problems)


class Watcher:
    """Shows how far the runs are, and logs their figures for TensorBoard: a log of its own for each.

    Args:
        experiment: what the runs are of.
        folder: of the logs.
    """

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        runs = list(experiment.runs())
        done = sum(map(experiment.is_done, runs))
        self._bar = tqdm(total=len(runs), initial=done, unit="run", dynamic_ncols=True)
        self._running: dict[Run, Progress] = {}
        self._folder = folder
        self._logs: dict[Run, Any] = {}

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        for log in self._logs.values():
            log.close()
        self._bar.close()

    def progress(self, run: Run, now: Progress) -> None:
        """A round is over."""
        self._running[run] = now
        self._bar.set_postfix_str(
            "; ".join(
                f"{run.name} member {at.member + 1}, round {at.round}/{at.rounds}"
                for run, at in self._running.items()
            )
        )
        if run not in self._logs:
            self._logs[run] = _open_log(self._folder / run.name)
        at = now.member * now.rounds + now.round
        for metric, value in now.metrics.items():
            self._logs[run].add_scalar(metric, value, at)
        if now.gain is not None:
            self._logs[run].add_scalar("charts/held_out_gain", now.gain, at)

    def finished(self, run: Run) -> None:
        """A run has its result."""
        self._running.pop(run, None)
        if run in self._logs:
            self._logs.pop(run).close()
        self._bar.update()


def _open_log(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=0)  # hides what an interrupted run logged


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse(argv)
    torch.set_num_threads(1)  # small networks; more threads only fight
    given = [part for part in (sys.argv[1:] if argv is None else argv) if part != "--resume"]
    existed = args.out.exists()
    try:
        check(args)
        for name in [*args.agents, *args.agent]:
            if name not in BACKBONE_METHODS:
                load_agent(name)
        if not args.ablate:
            chosen_methods(args)  # wrong settings are told before anything is trained
        make_folder(args)
        if args.backbone:
            train_backbone(args)
        folds = open_data(args)
        agents = methods_of(args, folds)
        experiment = Experiment(args.out, folds, agents, args.seeds, settings_of(args, folds))
        for name, method in agents.items():
            method.check(name, folds[0], experiment.settings)
        settle(args, folds)
        finished = run(experiment, args.jobs)
        files = args.test_predictions or (None if args.test_cache else args.predictions) or []
        notes = [NOT_RUN] if args.ablate and not args.features else []
        command = shlex.join(["python", "benchmarks/run_tprl.py", *given])
        print(report(experiment, files, command, notes))
    except DataError as error:
        if not existed:
            with suppress(OSError):
                args.out.rmdir()  # only if there is nothing in it
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        finished = False
    if not finished:
        print("interrupted; --resume goes on", file=sys.stderr)
        return 130
    return 0


def run(experiment: Experiment, jobs: int) -> bool:
    """Do all runs that are not done; False if interrupted."""
    todo = [run for run in experiment.runs() if not experiment.is_done(run)]
    with Watcher(experiment, experiment.folder / "tensorboard") as watcher:
        try:
            run_all(experiment, todo, jobs, watcher.progress, watcher.finished)
        except KeyboardInterrupt:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
