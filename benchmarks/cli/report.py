"""`vmr-env report`: the page of a run, written again."""

from pathlib import Path

import click

from vmr_env.benchmarks.cli.common import FOLDER, NEW, problems_exit_with_1


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=NEW, help="File to write; default: report.html in the run's folder.")
@problems_exit_with_1
def report(run: Path, out: Path | None) -> None:
    """Write the report of a run again: one HTML file that needs no network.

    \b
      vmr-env report runs/tprl --out report.html
    """
    from vmr_env.benchmarks.report.html import write_report

    click.echo(write_report(run, out))
