"""The parser of the dense policy's program, in a module that loads nothing heavy: help is told at once."""

import argparse
from pathlib import Path

from vmr_env.backbones.arguments import device
from vmr_env.data.profiles import PROFILES

GRADIENTS = ("exact", "reinforce", "ppo", "none")
"""Keys of `vmr_env.agents.dense.objectives.OBJECTIVES`."""

CONFIGURED = ("epochs", "models_shown", "evidence_dropout", "foreign_evidence", "gradient")
"""Options that are fields of `DenseConfig`; None where the command line says nothing of them."""


def dense_parser() -> argparse.ArgumentParser:
    """Of `vmr-env dense`."""
    parser = argparse.ArgumentParser(
        prog="vmr-env dense", description="Train the policy over all spans, and judge it."
    )
    files = "annotation file, then prediction files of one detector or of a pool"
    parser.add_argument("--train", nargs="+", type=Path, required=True, metavar="FILE", help=files)
    parser.add_argument(
        "--test", nargs="+", type=Path, metavar="FILE", help=f"{files}; default: folds of --train"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="a backbone's cache beside --train's files"
    )
    parser.add_argument("--test-cache", type=Path, metavar="FOLDER", help="its cache beside --test's files")
    parser.add_argument("--states", action="store_true", help="see the decoder states of the caches too")
    parser.add_argument("--dataset", choices=PROFILES, default="qvhighlights", help="default: qvhighlights")
    parser.add_argument("--clips", nargs="+", type=Path, required=True, help="feature stores of the clips")
    parser.add_argument(
        "--paraphrases",
        nargs="*",
        type=Path,
        default=[],
        help="json lines with query and rephrased_query: training mixes a query with its paraphrases, and "
        "judged queries are asked in all their wordings",
    )
    parser.add_argument("--no-evidence", action="store_true", help="control: clips and queries are zero")
    parser.add_argument("--seeds", type=int, default=3, help="networks whose probabilities are averaged")
    parser.add_argument("--folds", type=int, default=5, help="folds by video where there is no --test")
    parser.add_argument("--epochs", type=int, help="passes over the queries")
    parser.add_argument(
        "--models-shown",
        type=int,
        help="each training sample shows a random few of the models, at most so many, so that "
        "the policy suits detectors that it never saw; 0 (default) shows all, a pool",
    )
    parser.add_argument(
        "--evidence-dropout",
        type=float,
        help="share of training samples without clips and query, so that none are needed (default: 0)",
    )
    parser.add_argument(
        "--foreign-evidence",
        type=float,
        help="share of training samples with the clips of another video, so that evidence is "
        "trusted where it deserves it (default: 0)",
    )
    parser.add_argument(
        "--gradient",
        choices=GRADIENTS,
        help="of the expected gain: over all spans, over spans that are drawn, or none (default: exact)",
    )
    parser.add_argument(
        "--ranker", action="store_true", help="compare with gradient boosting too; needs vmr-env[ranker]"
    )
    parser.add_argument(
        "--sort", action="store_true", help="bring the windows of each row by falling score first"
    )
    parser.add_argument("--device", type=device, default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--out", type=Path, help="prediction file to write")
    parser.add_argument("--save", type=Path, help="folder for the policy learnt on --train; needs --test")
    return parser
