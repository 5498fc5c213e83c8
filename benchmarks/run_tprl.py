"""The main job: from data to a table that says whether reinforcement learning improved the moments.

    python benchmarks/run_tprl.py                                         simulated Charades-STA
    python benchmarks/run_tprl.py --dataset qvhighlights \\
        --predictions val.moment_detr.jsonl --annotations val.jsonl       five folds by video over one file
    python benchmarks/run_tprl.py --dataset qvhighlights \\
        --predictions val.cg_detr.jsonl --annotations val.jsonl \\
        --test-predictions test.cg_detr.jsonl --test-annotations test.jsonl
    python benchmarks/run_tprl.py --agent my_package.my_module:MyAgent    an own algorithm among ours

Several files after --predictions form a pool. Agents learn and are selected on training videos only; test videos are
read once, at the end of a unit. Ctrl-C leaves the table of what was done; --resume goes on.
"""

import argparse
import importlib
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import vmr_env
from agents.committee import Progress
from agents.evaluation import Refined, refine, submission
from benchmarks.curves import draw_curves
from benchmarks.experiment import Experiment, Fold, MakeAgent, Settings, cross_validation, train_test
from benchmarks.results import MEASURES, differences, figures, query_scores, table
from vmr_env.annotations import Annotation
from vmr_env.cache import DecoderStateCache
from vmr_env.errors import DataError, Problem
from vmr_env.files import write_text
from vmr_env.prediction_cache import build_prediction_cache
from vmr_env.predictions import Prediction, read_predictions, write_predictions
from vmr_env.profiles import get_profile
from vmr_env.sources import simulated_source

AGENTS: dict[str, str] = {
    "expected_gain": "agents.expected_gain:ExpectedGain",
    "ppo": "agents.ppo:PPO",
    "reinforce": "agents.reinforce:Reinforce",
    "sb3_ppo": "agents.sb3:SB3PPO",
    "sb3_a2c": "agents.sb3:SB3A2C",
}
DEFAULT_AGENTS = ("expected_gain", "ppo", "reinforce")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", default="charades", help="charades, qvhighlights or tacos (default charades)"
    )
    data.add_argument(
        "--predictions", nargs="+", type=Path, help="prediction file(s) to learn from; several are a pool"
    )
    data.add_argument("--annotations", type=Path, help="their annotations")
    data.add_argument("--test-predictions", nargs="+", type=Path, help="prediction file(s) to be judged on")
    data.add_argument("--test-annotations", type=Path, help="their annotations")
    data.add_argument(
        "--cache", type=Path, help="a decoder-state cache to learn from, instead of predictions"
    )
    data.add_argument("--test-cache", type=Path, help="a decoder-state cache to be judged on")
    data.add_argument(
        "--folds", type=int, default=5, help="folds by video where there is no test data (default 5)"
    )
    learning = parser.add_argument_group("learning")
    learning.add_argument(
        "--agents", nargs="*", default=list(DEFAULT_AGENTS), help=f"some of {', '.join(AGENTS)}"
    )
    learning.add_argument(
        "--agent", action="append", default=[], help="an own agent, module:Class; may be repeated"
    )
    learning.add_argument("--seeds", type=int, default=2, help="runs of each agent (default 2)")
    learning.add_argument("--members", type=int, default=4, help="members of a committee (default 4)")
    learning.add_argument("--evaluations", type=int, default=4, help="judgements of a member (default 4)")
    learning.add_argument("--rounds", type=int, help="rounds of learning; default: each agent's own number")
    learning.add_argument("--proposals", type=int, help="proposals that take part; default: one per model")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/tprl"), help="folder of the results (default runs/tprl)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in --out")
    return parser.parse_args(argv)


def load_agent(name: str) -> MakeAgent:
    """An agent's class by its short name or as module:Class.

    Raises:
        DataError: there is no such module or class.
    """
    module, _, cls = AGENTS.get(name, name).partition(":")
    try:
        made: MakeAgent = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError, ValueError) as error:
        message = (
            f"{name!r} cannot be imported ({error}); expected one of {', '.join(AGENTS)}, or module:Class"
        )
        raise DataError(Problem("--agents", None, None, message)) from error
    return made


def open_data(args: argparse.Namespace) -> list[Fold]:
    """Caches and folds that the command line names.

    Raises:
        DataError: arguments are missing or contradict each other, or the data are broken.
    """
    if args.predictions and not args.annotations:
        raise DataError(
            Problem("--annotations", None, None, "is missing, expected the file behind --predictions")
        )
    if bool(args.test_predictions) != bool(args.test_annotations):
        raise DataError(Problem("--test-predictions", None, None, "and --test-annotations belong together"))
    if args.predictions:
        train = _prediction_cache(args, "train", args.predictions, args.annotations)
    else:
        train = DecoderStateCache.open(args.cache or simulated_source(args.dataset, "train"))
    if args.test_predictions:
        test = _prediction_cache(args, "test", args.test_predictions, args.test_annotations)
    elif args.test_cache:
        test = DecoderStateCache.open(args.test_cache)
    elif args.predictions or args.cache:
        return cross_validation(train, args.folds)
    else:
        test = DecoderStateCache.open(simulated_source(args.dataset, "test"))
    return train_test(train, test)


def _prediction_cache(
    args: argparse.Namespace, split: str, predictions: Sequence[Path], annotations: Path
) -> DecoderStateCache:
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"cache-{split}"
    built = build_prediction_cache(
        path, predictions, annotations, get_profile(args.dataset), split, overwrite=True
    )
    return DecoderStateCache.open(built)


def truth_of(folds: Sequence[Fold]) -> tuple[list[Annotation], list[Prediction]]:
    """Ground truth of all test samples, and the detector's own answers as the caches have them."""
    truth, answers = [], []
    for fold in folds:
        for i in fold.test_samples:
            sample = fold.test.sample(int(i))
            truth.append(
                Annotation(sample.qid, sample.vid, sample.query, sample.duration, sample.moments, None, None)
            )
        stopped = refine(_stop, fold.test, fold.test_samples, {"proposals": 1})
        answers += submission(fold.test, stopped)
    return truth, answers


def _stop(observations: Any, masks: Any) -> Any:
    return np.full(len(masks), masks.shape[1] - 1)


def detectors(
    args: argparse.Namespace, folds: Sequence[Fold], answers: list[Prediction]
) -> dict[str, list[Prediction]]:
    """The detectors to compare with: each file as published; for caches, their first proposals."""
    files = args.test_predictions or args.predictions
    if not files:
        return {f"detector ({folds[0].test.manifest['backbone']['kind']})": answers}
    names = folds[0].test.manifest["models"]
    return {f"{name}, as published": read_predictions(file) for name, file in zip(names, files, strict=True)}


def summarise(
    experiment: Experiment,
    args: argparse.Namespace,
    truth: list[Annotation],
    published: dict[str, list[Prediction]],
) -> str:
    """Write tables, figures, curves and submissions of what is done; returns the table."""
    rows: dict[str, dict[str, Any]] = {name: figures(rows_, truth) for name, rows_ in published.items()}
    reference = max(published, key=lambda name: rows[name]["R1@0.7"])
    detector = query_scores(published[reference], truth)
    curves: dict[str, list[tuple[tuple[int, ...], tuple[float, ...]]]] = {}
    record: dict[str, Any] = {"detectors": {name: dict(row) for name, row in rows.items()}, "agents": {}}
    for agent in experiment.agents:
        done = [
            (seed, merged) for seed in range(experiment.seeds) if (merged := experiment.merged(agent, seed))
        ]
        if not done:
            continue
        predictions = [_submission(experiment.folds, refined) for _, refined in done]
        for (seed, _), rows_ in zip(done, predictions, strict=True):
            write_predictions(args.out / f"submission-{agent.replace(':', '.')}-seed{seed}.jsonl", rows_)
        units = [
            experiment.read(agent, seed, fold) for seed, _ in done for fold in range(len(experiment.folds))
        ]
        curves[agent] = [
            (unit.selection.rounds, unit.selection.gains) for unit in units if unit.selection.rounds
        ]
        each = [figures(rows_, truth) for rows_ in predictions]
        change = differences([query_scores(rows_, truth) for rows_ in predictions], detector)
        seconds, steps = sum(unit.seconds for unit in units), sum(unit.selection.steps for unit in units)
        rows[agent] = {
            **{measure: float(np.mean([one[measure] for one in each])) for measure in MEASURES},
            **{f"Δ {measure}": change[measure] for measure in MEASURES},
            "kept detector": f"{sum(unit.selection.chosen == 0 for unit in units)}/{len(units)}",
            "steps/s": f"{steps / seconds:,.0f}",
            "s": f"{seconds:.0f}",
        }
        record["agents"][agent] = {
            "seeds": [seed for seed, _ in done],
            "figures": each,
            "change": {measure: value._asdict() for measure, value in change.items()},
            "compared_with": reference,
            "chosen_rounds": [unit.selection.chosen for unit in units],
            "steps": steps,
            "seconds": seconds,
        }
    text = _heading(experiment, args, truth, reference) + "\n\n" + table(rows) + "\n"
    write_text(args.out / "table.md", text)
    write_text(args.out / "results.json", json.dumps({"run": _provenance(experiment), **record}, indent=1))
    if curves:
        draw_curves(
            args.out / "curves.png", curves, f"{args.dataset}, {experiment.folds[0].train.manifest['source']}"
        )
    return text


def _submission(folds: Sequence[Fold], refined: Refined) -> list[Prediction]:
    # Folds of one cache were merged; a train-test pair has one fold.
    return submission(folds[0].test, refined)


def _heading(
    experiment: Experiment, args: argparse.Namespace, truth: list[Annotation], reference: str
) -> str:
    manifest = experiment.folds[0].test.manifest
    protocol = (
        f"{len(experiment.folds)} folds by video"
        if len(experiment.folds) > 1
        else "train and test data apart"
    )
    return (
        f"Source of the data: {manifest['source']}. {manifest['dataset']}, {', '.join(manifest['models'])}, {protocol}, "
        f"{len(truth):,} test queries, {experiment.seeds} seeds, {experiment.settings.members} members a committee. "
        f"Differences are from {reference}, with 95 % bootstrap intervals over videos and seeds."
    )


def _provenance(experiment: Experiment) -> dict[str, Any]:
    manifest = experiment.folds[0].train.manifest
    return {
        "command": shlex.join(["python", "benchmarks/run_tprl.py", *sys.argv[1:]]),
        "source": manifest["source"],
        "dataset": manifest["dataset"],
        "models": manifest["models"],
        "backbone": manifest["backbone"],
        "settings": vars(experiment.settings),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "vmr_env": vmr_env.__version__,
        },
    }


def run(experiment: Experiment, log: Any) -> bool:
    """Do all units that are not done; False if interrupted."""
    units = list(experiment.units())
    with tqdm(total=len(units), unit="unit", dynamic_ncols=True) as bar:
        for agent, seed, fold in units:
            if not experiment.is_done(agent, seed, fold):
                name = f"{agent} seed {seed} fold {fold}"

                def watch(
                    progress: Progress, name: str = name, tag: str = f"{agent}/seed{seed}/fold{fold}"
                ) -> None:
                    bar.set_description(
                        f"{name} member {progress.member} round {progress.round}/{progress.rounds}"
                    )
                    if log is not None:
                        at = progress.member * progress.rounds + progress.round
                        for metric, value in progress.metrics.items():
                            log.add_scalar(f"{tag}/{metric}", value, at)
                        if progress.gain is not None:
                            log.add_scalar(f"{tag}/charts/held_out_gain", progress.gain, at)

                try:
                    experiment.run(agent, seed, fold, watch)
                except KeyboardInterrupt:
                    return False
            bar.update()
    return True


def open_log(folder: Path) -> Any:
    """A TensorBoard writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))  # type: ignore[no-untyped-call]


def check_folder(args: argparse.Namespace) -> None:
    """Results of another run are neither mixed with nor overwritten.

    Raises:
        DataError: the folder has results and --resume was not given, or they are of other settings.
    """
    identity = {
        key: str(value) for key, value in sorted(vars(args).items()) if key not in ("out", "resume", "seeds")
    }
    path = args.out / "settings.json"
    if path.exists():
        if not args.resume:
            raise DataError(
                Problem(str(args.out), None, None, "has a run already, expected --resume or another --out")
            )
        before = json.loads(path.read_text())
        for key, value in identity.items():
            if before.get(key) != value:
                message = f"was {before.get(key)} in this run and is {value} now, expected the same to resume"
                raise DataError(Problem(str(path), None, key, message))
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(identity, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse(argv)
    torch.set_num_threads(1)  # small networks; more threads only fight
    try:
        agents = {name: load_agent(name) for name in [*args.agents, *args.agent]}
        check_folder(args)
        folds = open_data(args)
        proposals = args.proposals or len(folds[0].train.manifest["models"])
        settings = Settings(args.members, args.evaluations, proposals, args.rounds)
        experiment = Experiment(args.out, folds, agents, args.seeds, settings)
        truth, answers = truth_of(folds)
        published = detectors(args, folds, answers)
        finished = run(experiment, open_log(args.out / "tensorboard"))
        print(summarise(experiment, args, truth, published))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not finished:
        print("interrupted; --resume goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
