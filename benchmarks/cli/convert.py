"""`vmr-env convert`: other people's files to our own formats."""

from pathlib import Path

import click

from vmr_env.benchmarks.cli.common import FILE, NEW, past_end_option, problems_exit_with_1
from vmr_env.data.annotations import PAST_END, Annotation, PastEnd, read_annotations
from vmr_env.data.converters import (
    ANNOTATION_FORMATS,
    PREDICTION_FORMATS,
    REFUSED,
    Converted,
    Refused,
    convert_annotations,
    convert_predictions,
    guess_format,
    write_converted,
)
from vmr_env.data.durations import read_durations
from vmr_env.data.predictions import SCORES, Prediction, Scores

SOURCE = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("source", type=SOURCE)
@click.option(
    "--from",
    "format",
    type=click.Choice([*ANNOTATION_FORMATS, *PREDICTION_FORMATS]),
    help="Format of the source. Default: guessed, where it is unambiguous.",
)
@click.option("--out", type=NEW, required=True, help="JSON lines to write (.jsonl, .jsonl.gz).")
@click.option(
    "--durations", type=FILE, help="Video lengths (.json, .csv), for formats that do not tell them."
)
@click.option("--questions", type=FILE, help="Table of sentences (.csv), for nextgqa.")
@click.option("--annotations", type=FILE, help="Of predictions: ground truth, which completes their rows.")
@click.option(
    "--scores",
    type=click.Choice(SCORES),
    default="keep",
    help="Of predictions: rescale scores. Default: keep.",
)
@click.option(
    "--scale",
    type=click.FloatRange(0, min_open=True),
    help="Of answers: the number that means the end of the video.",
)
@past_end_option(PAST_END)
@click.option(
    "--refused",
    type=click.Choice(REFUSED),
    default="error",
    help="Rows that cannot be used: an error, or left out and counted. Default: error.",
)
@problems_exit_with_1
def convert(
    source: Path,
    format: str | None,
    out: Path,
    durations: Path | None,
    questions: Path | None,
    annotations: Path | None,
    scores: Scores,
    scale: float | None,
    past_end: PastEnd,
    refused: Refused,
) -> None:
    """Annotations and predictions of other formats to ours, with all that was changed counted.

    \b
      vmr-env convert anet_val_1.json --out annotations.jsonl
      vmr-env convert charades_sta_test.txt --durations Charades_v1_test.csv --out annotations.jsonl
      vmr-env convert answers.jsonl --from answers --annotations annotations.jsonl --out model.jsonl
      vmr-env convert logits.jsonl --scores sigmoid --out model.jsonl

    \b
    Annotations: activitynet (and TimeLens), charades, tacos, didemo, ego4d, nextgqa, records (an object for
    each query: moment-detr and lighthouse variants, TVG-Bench, Time-R1), table (Parquet, saved datasets).
    Predictions: windows (with or without scores, one window, lighthouse's predict), answers (language
    models' text), dense (a score for each clip).
    """
    name = guess_format(source) if format is None else format
    converted: Converted[Annotation] | Converted[Prediction]
    if name in ANNOTATION_FORMATS:
        lengths = None if durations is None else read_durations(durations)
        converted = convert_annotations(
            source, name, durations=lengths, questions=questions, past_end=past_end, refused=refused
        )
    else:
        truth = [] if annotations is None else read_annotations(annotations, past_end=past_end)
        converted = convert_predictions(
            source, name, annotations=truth, scores=scores, scale=scale, refused=refused
        )
    write_converted(out, converted)
    click.echo(converted.summary())
