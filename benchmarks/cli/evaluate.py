"""`vmr-env evaluate`: prediction files against ground truth."""

import json
from pathlib import Path
from typing import Literal

import click

from vmr_env.benchmarks.cli.common import FILE, NEW, past_end_option, problems_exit_with_1
from vmr_env.data.annotations import PAST_END, PastEnd


@click.command()
@click.argument("predictions", type=FILE, nargs=-1, required=True)
@click.argument("annotations", type=FILE)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the official result as JSON; of several files, by name."
)
@click.option("--out", type=NEW, help="Also write the official result of the one prediction file here.")
@click.option(
    "--shared-only", is_flag=True, help="Score the queries that both sides have, instead of refusing."
)
@click.option(
    "--missing",
    type=click.Choice(["error", "miss"]),
    default="error",
    help="What a query without an answer is: an error, or a miss that is counted. Default: error.",
)
@past_end_option(PAST_END)
@click.option("--keep-outside", is_flag=True, help="The same as --past-end keep.")
@problems_exit_with_1
def evaluate(
    predictions: tuple[Path, ...],
    annotations: Path,
    as_json: bool,
    out: Path | None,
    shared_only: bool,
    missing: Literal["error", "miss"],
    past_end: PastEnd,
    keep_outside: bool,
) -> None:
    """Score prediction files against ground truth, as the official evaluators do.

    \b
      vmr-env evaluate my_model.jsonl highlight_val_release.jsonl
      vmr-env evaluate a.jsonl b.jsonl.gz annotations.jsonl          side by side
      vmr-env evaluate a.jsonl annotations.jsonl --json | jq .brief
    """
    from vmr_env.metrics import moments as metrics

    if out is not None and len(predictions) > 1:
        raise click.UsageError(f"--out takes the result of one prediction file, got {len(predictions)}")
    results = {
        str(path): metrics.evaluate(
            path,
            annotations,
            match_number=not shared_only,
            missing=missing,
            past_end="keep" if keep_outside else past_end,
        )
        for path in predictions
    }
    if out is not None:
        metrics.write_result(out, results[str(predictions[0])])
    if as_json:
        click.echo(json.dumps(results if len(results) > 1 else results[str(predictions[0])], indent=1))
        return
    click.echo(metrics.table({Path(name).name: result for name, result in results.items()}).T.to_string())
