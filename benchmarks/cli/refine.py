"""`vmr-env refine`: answers for new queries."""

from pathlib import Path

import click
from vmr_env.benchmarks.cli.common import FILE, NEW, problems_exit_with_1


@click.command()
@click.argument("predictions", type=FILE)
@click.argument("queries", type=FILE)
@click.option("--agent", type=FILE, required=True, help="A trained ensemble, as `vmr-env tprl` keeps it.")
@click.option("--out", type=NEW, required=True, help="File of the refined predictions.")
@problems_exit_with_1
def refine(predictions: Path, queries: Path, agent: Path, out: Path) -> None:
    """Refine a detector's predictions for queries without ground truth, by a trained agent.

    QUERIES has qid, vid, query and duration in each row. The result has the order and the fields of
    PREDICTIONS; its provenance is written beside it.

    \b
      vmr-env refine my_model.jsonl queries.jsonl --agent runs/tprl/ensemble.safetensors --out refined.jsonl
    """
    from vmr_env.agents.refinement import refine as refine_predictions

    rows = refine_predictions(predictions, queries, agent=agent, out=out)
    click.echo(f"{len(rows)} predictions refined: {out}")
