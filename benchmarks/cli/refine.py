"""`vmr-env refine`: answers for new queries."""

import json
from pathlib import Path

import click

from vmr_env.benchmarks.cli.common import FILE, FOLDER, NEW, device_option, problems_exit_with_1


@click.command()
@click.argument("predictions", type=FILE, nargs=-1, required=True)
@click.argument("queries", type=FILE)
@click.option(
    "--agent",
    type=click.Path(path_type=Path),
    required=True,
    help="A trained ensemble, as `vmr-env tprl` keeps it; the folder of a policy over all spans; or `vote`, "
    "the rule for pools that needs no training.",
)
@click.option(
    "--clips",
    type=FOLDER,
    multiple=True,
    help="Feature store of the videos, for a policy over all spans; may repeat.",
)
@click.option(
    "--paraphrases",
    type=FILE,
    multiple=True,
    help="Json lines with query and rephrased_query, for a policy over all spans; may repeat.",
)
@click.option(
    "--model", help="Sentence encoder of the queries, as the policy learnt with. Default: offline MiniLM."
)
@click.option("--sort", is_flag=True, help="Bring the windows of each row by falling score first.")
@device_option
@click.option("--out", type=NEW, required=True, help="File of the refined predictions.")
@problems_exit_with_1
def refine(
    predictions: tuple[Path, ...],
    queries: Path,
    agent: Path,
    clips: tuple[Path, ...],
    paraphrases: tuple[Path, ...],
    model: str | None,
    sort: bool,
    device: str,
    out: Path,
) -> None:
    """Refine predictions for queries without ground truth. Several files of PREDICTIONS are a pool.

    QUERIES has qid, vid, query and duration in each row. The result has the order and the fields of the first
    of PREDICTIONS; its provenance is written beside it.

    \b
      vmr-env refine my_model.jsonl queries.jsonl --agent runs/tprl/runs/ppo-seed0-fold0.safetensors \\
          --out refined.jsonl
      vmr-env refine my_model.jsonl queries.jsonl --agent policy --clips features/clips --out refined.jsonl
    """
    from vmr_env.agents.dense import Evidence
    from vmr_env.agents.refinement import refine as refine_predictions

    if paraphrases and not clips:
        raise click.UsageError("--paraphrases is read beside --clips, which is not given; expected both")
    evidence = None
    if clips:
        from vmr_env.backbones.features.store import FeatureStore
        from vmr_env.benchmarks.experiment.dense import Stores, encode_queries
        from vmr_env.data.queries import read_queries

        stores = Stores([FeatureStore(path) for path in clips])
        evidence = Evidence(stores, encode_queries(read_queries(queries), paraphrases, model))
    rows = refine_predictions(
        predictions, queries, agent=agent, evidence=evidence, sort=sort, out=out, device=device
    )
    told = json.loads(Path(f"{out}.provenance.json").read_text(encoding="utf-8"))
    click.echo(f"{told['moved']} of {len(rows)} predictions have another first window: {out}")
    run = told["agent"].get("run")
    if run is not None and run.get("chosen") == 0:
        click.echo("This ensemble fell back to the detector when it was trained, so it changes nothing.")
