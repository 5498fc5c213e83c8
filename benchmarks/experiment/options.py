"""Options of the main job: what they are, what they are by default, and which of them go together."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmr_env.backbones.arguments import LOCAL, device_problem
from vmr_env.benchmarks.experiment.logs import KINDS, NEEDED
from vmr_env.benchmarks.experiment.names import (
    AGENTS,
    BACKBONE_AGENTS,
    DEFAULT_AGENTS,
    HEAD_AGENTS,
    STEPWISE_AGENTS,
)
from vmr_env.data.annotations import PAST_END, PastEnd
from vmr_env.data.profiles import get_profile
from vmr_env.envs.actions import FREE
from vmr_env.envs.curriculum import CURRICULA, Plateau, Progression, Rule, StepSchedule
from vmr_env.envs.sources import simulated_source
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.options import argument, option, out_of_range

RECIPES = ("charades-simulated",)
"""Backbones that can be trained from nothing but seeds."""

EMBEDDED = "charades"
"""Data set of the backbone and the caches that the package ships."""

SEEDS = 2
"""Runs of each agent where nothing else is said."""

BESIDE = "girl_detr"
"""Folder of a backbone's weights, beside its caches."""


@dataclass(frozen=True)
class Execution:
    """Options of where runs are done and where their results are kept."""

    jobs: int | None = option(
        None, "processes that train side by side (default: as many as this one may use processors)", least=1
    )
    cluster: str | None = option(
        None,
        "do the runs on a Ray cluster; without an address, Ray is started on this machine",
        group="cluster",
        bare=LOCAL,
        metavar="ADDRESS",
    )
    cpus_per_run: int = option(1, "processors that a run is given", group="cluster", least=1)
    gpus_per_run: float = option(0.0, "accelerators that a run is given, or a share of one", group="cluster")
    device: str = option(
        "cpu", "torch device of networks that learn, such as cuda:0; environments stay on the processor"
    )
    log: tuple[str, ...] = option(
        ("tensorboard",), "where figures of trainings are logged, in folders in --out", choices=KINDS
    )
    out: Path = option(Path("runs/tprl"), "folder of the results")
    resume: bool = option(False, "go on with an interrupted run in --out")


@dataclass(frozen=True)
class Options(Execution):
    """The main job: from data to a table that says whether reinforcement learning improved the moments.

        vmr-env tprl                                         TPRL and agents on a small GIRL-DETR
        vmr-env tprl --dataset qvhighlights \\
            --predictions val.moment_detr.jsonl --annotations val.jsonl       five folds by video of one file
        vmr-env tprl --dataset qvhighlights \\
            --predictions val.cg_detr.jsonl --annotations val.jsonl \\
            --test-predictions test.cg_detr.jsonl --test-annotations test.jsonl
        vmr-env tprl --agent my_package.my_module:MyAgent    an own algorithm among ours
        vmr-env tprl --dataset qvhighlights --cache caches/train --test-cache caches/val \\
            --weights runs/captions/best --agents tprl head_ppo head_grpo ppo  a backbone's head, and agents
        vmr-env tprl --backbone charades-simulated           from features: GIRL-DETR and all
        vmr-env tprl --backbone charades-simulated --ablate  what in TPRL does the work

    Several files after --predictions form a pool. Agents learn and are selected on training videos only; test
    videos are read once, at the end of a run. Ctrl-C leaves the table of what was done; --resume goes on.
    """

    dataset: str = option(EMBEDDED, "name of the data set", group="data")
    predictions: tuple[Path, ...] = option(
        (), "prediction file(s) to learn from; several are a pool", group="data"
    )
    annotations: Path | None = option(None, "their annotations", group="data")
    sort: bool = option(False, "bring the windows of prediction files by falling score first", group="data")
    past_end: PastEnd = option(
        "error",
        "what to do with annotated moments that do not lie within their video",
        group="data",
        choices=PAST_END,
    )
    test_predictions: tuple[Path, ...] = option((), "prediction file(s) to be judged on", group="data")
    test_annotations: Path | None = option(None, "their annotations", group="data")
    cache: Path | None = option(
        None, "a decoder-state cache to learn from, instead of predictions", group="data"
    )
    test_cache: Path | None = option(None, "a decoder-state cache to be judged on", group="data")
    folds: int = option(5, "folds by video where there is no test data", group="data", least=2)
    backbone: str | None = option(
        None,
        "train a GIRL-DETR on simulated features first, and learn on its decoder states of videos that it "
        f"has not seen ({', '.join(RECIPES)})",
        group="data",
        metavar="RECIPE",
    )
    backbone_seed: int = option(0, "seed of that training", group="data")
    features: tuple[Path, Path] | None = option(
        None,
        "features behind --cache and --test-cache, for --ablate: folders with annotations.jsonl, clips and "
        "text",
        group="data",
        metavar=("TRAIN", "TEST"),
    )
    weights: Path | None = option(
        None,
        f"the backbone's weights, for agents that train its head (default: {BESIDE} beside --cache)",
        group="data",
    )
    select_cache: Path | None = option(
        None,
        "a cache of training videos that the backbone has not seen, by which a head's epoch is chosen "
        "(default: parts of the training videos in turn)",
        group="data",
    )
    times: str | None = option(
        None,
        "score windows as they are, or rounded as in published submissions (default: submission for a "
        "backbone's caches)",
        group="data",
        choices=("exact", "submission"),
    )
    agents: tuple[str, ...] | None = option(
        None,
        f"some of {', '.join(AGENTS)}; with --weights also {', '.join(HEAD_AGENTS)}; with clip features in "
        f"the caches also {', '.join(STEPWISE_AGENTS)} (default: {', '.join(DEFAULT_AGENTS)}; of a backbone: "
        f"{', '.join(BACKBONE_AGENTS)})",
        group="learning",
        empty=True,
    )
    ablate: bool = option(False, "TPRL's variants in place of --agents; needs --weights", group="learning")
    set: tuple[str, ...] = option(
        (),
        "another setting of an agent, such as tprl.epochs=[1,2,9] or expected_gain.members=3",
        group="learning",
        metavar="AGENT.NAME=VALUE",
        repeated=True,
    )
    agent: tuple[str, ...] = option(
        (), "an own agent, module:Class; may be repeated", group="learning", repeated=True
    )
    seeds: int | None = option(
        None,
        f"runs of each agent (default: {SEEDS}; 1 on the embedded backbone, so that all ends within minutes)",
        group="learning",
        least=1,
    )
    members: int = option(3, "members of a cross-fitted ensemble", group="learning", least=2)
    evaluations: int = option(3, "judgements of a member", group="learning", least=1)
    rounds: int | None = option(
        None, "rounds of learning; default: each agent's own number", group="learning", least=1
    )
    proposals: int | None = option(
        None, "proposals that take part; default: 1, of a pool 10", group="learning", least=1
    )
    free: tuple[str, ...] = option(
        FREE, "what agents in the environments may do but stop", group="learning", choices=FREE
    )
    actions: str | None = option(
        None,
        "action mode of agents in the environments: discrete, candidates, or one of yours (default: the "
        "agent's own, discrete)",
        group="learning",
        metavar="MODE",
    )
    components: tuple[str, ...] = option(
        (),
        "components of observations that agents in the environments see, such as votes (default: all that "
        "the data have but proposal_states and votes)",
        group="learning",
    )
    curriculum: str | None = option(
        None,
        "let agents in the environments learn through the stages: STEPS,STEPS after which stages 2 and 3 "
        "begin for a member, or plateau (default: the last stage alone)",
        group="learning",
        metavar="RULE",
    )
    stages: str = option(
        "tprl",
        "the environments' stages: a registered curriculum, or module:name of one",
        group="learning",
        metavar="CURRICULUM",
    )

    @property
    def chosen(self) -> tuple[str, ...]:
        """All agents, ours and own ones."""
        return (*(self.agents or ()), *self.agent)


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Execution):
    """Sweeps: a table of experiments, done as one, with one report over all of them.

        vmr-env bench sweep sweep.yaml --out runs/sweep

    The file says what is varied; every combination of data, detectors and settings is a row of the table, and
    each row an experiment of the main job:

        data:                                 names, each with options of `vmr-env tprl`
          val: {dataset: qvhighlights, annotations: val.jsonl}
        detectors: [cg_detr, eatr]            likewise; a list where there are no options
        settings:
          plain: {}
          large: {members: 5, set: [ppo.epochs=4]}
        methods: [expected_gain, ppo]         agents, ours by name and own ones as module:Class
        seeds: 3
        options:                              of all rows
          predictions: val.{detector}.jsonl

    `{data}` and `{detector}` in a text stand for the names of the row. Where an option is given several
    times, the setting's value goes before the detector's, the data's, and that of all rows. Every row is
    checked before anything is trained. `--resume` goes on, also with rows or seeds that were added to the
    file.
    """

    file: Path = argument("the table, a YAML file")


@dataclass(frozen=True, kw_only=True)
class SearchOptions(Execution):
    """Search of an agent's settings by Optuna, on held-out training videos alone.

        vmr-env bench search search.yaml --trials 30 --out runs/search

    The file names one agent, the settings to vary, and data to learn from, but none to be judged on:

        method: ppo
        settings:
          lr: {low: 1.0e-4, high: 1.0e-2, log: true}
          epochs: {low: 1, high: 8}
          entropy: [0, 0.01, 0.1]
        options: {dataset: qvhighlights, predictions: [val.cg_detr.jsonl], annotations: val.jsonl, folds: 3}

    `options` are those of `vmr-env tprl`. A trial is an experiment of the main job: folds by video over the
    data, each judged by what was learnt from the others. Its value is a figure over all of them, in the mean
    over seeds. Trial 0 has the settings that the agent has by default. The best value of many is too good to
    be true: only data that the search has not seen tell what the settings are worth.

    Trials that are done are read again with `--resume`; the search then asks for the same ones, and goes on.
    """

    file: Path = argument("what to search, a YAML file")
    trials: int = option(20, "trials, with those that are done", group="search", least=1)
    together: int = option(1, "trials that are done side by side", group="search", least=1)
    search_seed: int = option(0, "seed of the sampler", group="search", least=0)
    measure: str = option("mIoU", "figure to be raised", group="search")


def resolved(options: Options) -> Options:
    """The options with the defaults that follow from others.

    Without any data the embedded backbone and its caches are used; agents are those that the data allow.
    """
    sources = (options.predictions, options.test_predictions, options.cache, options.test_cache)
    if not any((*sources, options.backbone)) and options.dataset == EMBEDDED:
        train = simulated_source(EMBEDDED, "train")
        options = replace(options, cache=train, test_cache=train.with_name("test"))
        options = replace(options, select_cache=options.select_cache or train.with_name("val"))
        options = replace(options, seeds=1 if options.seeds is None else options.seeds)
    if options.cache and not options.weights and (beside := options.cache.parent / BESIDE).is_dir():
        options = replace(options, weights=beside)
    if options.agents is None:
        backbone = options.weights or options.backbone
        options = replace(options, agents=BACKBONE_AGENTS if backbone else DEFAULT_AGENTS)
    return options


def check(options: Options) -> None:
    """Find options that are out of range or do not go together.

    Raises:
        DataError: with all that is wrong.
    """
    problems = execution_problems(options)
    try:
        get_profile(options.dataset)
    except ValueError as error:
        problems.append(Problem("--dataset", None, None, str(error)))
    if not options.chosen and not options.ablate:
        problems.append(Problem("--agents", None, None, f"is empty, expected some of {', '.join(AGENTS)}"))
    problems += _source_problems("", options.predictions, options.annotations, options.cache)
    problems += _source_problems(
        "test-", options.test_predictions, options.test_annotations, options.test_cache
    )
    if (options.test_predictions or options.test_cache) and not (options.predictions or options.cache):
        message = "is missing, expected data to learn from (or --cache) beside the test data"
        problems.append(Problem("--predictions", None, None, message))
    if options.backbone is not None:
        problems += _backbone_problems(options)
    headed = ["--ablate"] if options.ablate else [name for name in options.chosen if name in HEAD_AGENTS]
    if headed and not options.backbone and not (options.weights and options.cache):
        message = f"is missing, expected with --cache for {headed[0]}, which trains the backbone's head"
        problems.append(Problem("--weights", None, None, message))
    if options.ablate and options.set:
        problems.append(Problem("--set", None, None, "is given beside --ablate, expected one of them"))
    if options.select_cache and not options.test_cache:
        message = "is given without --test-cache, expected caches for training, selection and test"
        problems.append(Problem("--select-cache", None, None, message))
    try:
        rule_of(options)
    except DataError as error:
        problems += error.problems
    if problems:
        raise DataError(problems)


def execution_problems(options: Execution) -> list[Problem]:
    """Numbers that are out of range, and packages that are needed and not installed."""
    problems = out_of_range(options)
    if options.gpus_per_run < 0:
        problems.append(
            Problem("--gpus-per-run", None, None, f"is {options.gpus_per_run}, expected 0 or more")
        )
    if options.cluster is None and (wrong := device_problem(options.device)):
        problems.append(Problem("--device", None, None, wrong))
    needed = {kind: NEEDED[kind] for kind in options.log if kind in NEEDED}
    if options.cluster is not None:
        needed["ray"] = "distributed"
    for package, extra in needed.items():
        if importlib.util.find_spec(package) is None:
            message = f"is missing, expected `pip install vmr-env[{extra}]`"
            problems.append(Problem(package, None, None, message))
    return problems


def _source_problems(
    prefix: str, predictions: Sequence[Path], annotations: Path | None, cache: Path | None
) -> list[Problem]:
    """Problems of the data of one role."""
    problems = []
    if bool(predictions) != bool(annotations):
        given, missing = ("predictions", "annotations") if predictions else ("annotations", "predictions")
        message = f"is missing, expected with --{prefix}{given}"
        problems.append(Problem(f"--{prefix}{missing}", None, None, message))
    if predictions and cache:
        message = f"is given beside --{prefix}predictions, expected one of them"
        problems.append(Problem(f"--{prefix}cache", None, None, message))
    return problems


def _backbone_problems(options: Options) -> list[Problem]:
    """Problems of --backbone, or of options that cannot be combined with it."""
    problems = []
    if options.backbone not in RECIPES:
        message = f"is {options.backbone!r}, expected {', '.join(RECIPES)}"
        problems.append(Problem("--backbone", None, None, message))
    for name in ("predictions", "cache", "test_cache", "select_cache", "weights", "features"):
        if getattr(options, name):
            flag = "--" + name.replace("_", "-")
            problems.append(Problem(flag, None, None, "is given beside --backbone, expected one of them"))
    return problems


def rule_of(options: Options) -> Rule | None:
    """When the stages of a curriculum begin: "plateau", or numbers of steps as "20000,60000".

    Raises:
        DataError: it is neither, or there are not as many stages; or there is no such curriculum.
    """
    try:
        stages = len(CURRICULA.get(options.stages))
    except ValueError as error:
        raise DataError(Problem("--stages", None, None, str(error))) from error
    text = options.curriculum
    if text is None or text == "plateau":
        return None if text is None else Plateau()
    try:
        rule = StepSchedule(tuple(int(steps) for steps in text.split(",")))
        Progression(rule, stages)
    except ValueError as error:
        message = (
            f"is {shorten(text)}, expected plateau, or {stages - 1} rising numbers of steps as 20000,60000"
        )
        raise DataError(Problem("--curriculum", None, None, message)) from error
    return rule
