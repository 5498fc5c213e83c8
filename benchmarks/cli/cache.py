"""`vmr-env cache`: decoder-state caches, of prediction files and of backbones."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmr_env.benchmarks.cli.common import FILE, FOLDER, NEW, past_end_option, problems_exit_with_1
from vmr_env.benchmarks.cli.programs import program
from vmr_env.data.annotations import PAST_END, PastEnd
from vmr_env.data.predictions import SCORES, Scores
from vmr_env.data.profiles import PROFILES, DatasetProfile
from vmr_env.errors import DataError, Problem

if TYPE_CHECKING:
    from vmr_env.caches.evidence import FindEvidence


@click.group()
def cache() -> None:
    """Make decoder-state caches, which the environments run on."""


@cache.command("predictions")
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--annotations", type=FILE, required=True, help="Ground truth of the same split.")
@click.option("--dataset", type=click.Choice(list(PROFILES)), required=True, help="The data set.")
@click.option("--split", required=True, help="Name of the split.")
@click.option("--out", type=NEW, required=True, help="Folder of the new cache.")
@click.option("--proposals", type=click.IntRange(1), help="Proposals kept of a query; default: all.")
@click.option(
    "--drop-unknown", is_flag=True, help="Leave out predictions for queries that are not annotated."
)
@click.option("--sort", is_flag=True, help="Bring the windows of each row by falling score first.")
@click.option(
    "--scores", type=click.Choice(SCORES), default="keep", help="Rescale each file's scores. Default: keep."
)
@click.option(
    "--clips", type=FOLDER, help="Feature store of the videos' clips, for evidence: what the videos show."
)
@click.option("--text", type=FOLDER, help="Feature store of the queries' tokens, in the same space.")
@click.option(
    "--evidence", type=FOLDER, help="Weights of a backbone that reads them; default: cosines, untrained."
)
@past_end_option(PAST_END)
@click.option(
    "--unlabelled",
    is_flag=True,
    help="Queries without ground truth: moments are not looked at, and what needs them refuses the cache.",
)
@click.option("--overwrite", is_flag=True, help="Replace a cache that is there.")
@problems_exit_with_1
def cache_predictions(
    files: tuple[Path, ...],
    annotations: Path,
    dataset: str,
    split: str,
    out: Path,
    proposals: int | None,
    drop_unknown: bool,
    sort: bool,
    scores: Scores,
    clips: Path | None,
    text: Path | None,
    evidence: Path | None,
    past_end: PastEnd,
    unlabelled: bool,
    overwrite: bool,
) -> None:
    """From prediction files of one split; several become a pool of models.

    \b
      vmr-env cache predictions my_model.jsonl --annotations annotations.jsonl \\
          --dataset charades --split test --out caches/charades/test

    With --clips and --text agents see the videos, too: the relevance of each clip, and how likely each span
    is.
    """
    from vmr_env.caches.from_predictions import build_prediction_cache
    from vmr_env.caches.reader import DecoderStateCache

    build_prediction_cache(
        out,
        files,
        annotations,
        PROFILES[dataset],
        split,
        max_proposals=proposals,
        unknown_queries="drop" if drop_unknown else "error",
        sort=sort,
        scores=scores,
        past_end=past_end,
        evidence=_evidence(clips, text, evidence, PROFILES[dataset]),
        overwrite=overwrite,
        labelled=not unlabelled,
    )
    click.echo(repr(DecoderStateCache.open(out)))


def _evidence(
    clips: Path | None, text: Path | None, weights: Path | None, profile: DatasetProfile
) -> "FindEvidence | None":
    """What gives the evidence that the options name.

    Raises:
        DataError: an option is missing beside the others, or a folder is not what it should be.
    """
    if clips is None and text is None and weights is None:
        return None
    if clips is None or text is None:
        missing = "--clips" if clips is None else "--text"
        raise DataError(Problem(missing, None, None, "is missing; evidence needs --clips and --text"))
    from vmr_env.backbones.evidence import backbone_evidence, cosine_evidence, open_backbone
    from vmr_env.backbones.features.store import FeatureStore

    stores = FeatureStore(clips, checksums=True), FeatureStore(text, checksums=True)
    names = (str(stores[0].manifest["origin"].get("features", clips.name)),)
    if weights is None:
        return cosine_evidence(*stores, names, profile.clip_seconds)
    return backbone_evidence(*open_backbone(weights), *stores, names)


@cache.command("prune")
@click.option("--most", type=click.FloatRange(0), default=0, help="Gigabytes that may stay. Default: 0.")
@problems_exit_with_1
def cache_prune(most: float) -> None:
    """Remove what the package made for itself and can make again, the oldest first.

    These are tables derived from caches, simulated caches and encoded sentences, in the folder that
    VMR_ENV_CACHE names.
    """
    from vmr_env.files.user_cache import prune, user_cache_folder

    removed, left = prune(int(most * 1e9))
    click.echo(f"{user_cache_folder()}: {removed:,} bytes removed, {left:,} left")


cache.add_command(
    program(
        "checkpoint",
        "vmr_env.backbones.cache",
        "vmr_env.backbones.parsers:checkpoint_parser",
        "From a trained or an official GIRL-DETR checkpoint and features.",
    )
)
