"""`vmr-env measure`: figures beyond the official ones, with intervals that keep source videos together."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from vmr_env.benchmarks.cli.common import FILE, past_end_option, problems_exit_with_1
from vmr_env.data.annotations import PAST_END, PastEnd
from vmr_env.data.answer_sets import paired_sets
from vmr_env.data.highlights import paired_highlights
from vmr_env.data.profiles import PROFILES, clips_of
from vmr_env.metrics import generalised as generalised_metrics
from vmr_env.metrics.groups import GROUPINGS, by_group
from vmr_env.metrics.highlights import highlight_intervals
from vmr_env.metrics.intervals import Comparison, Interval, Over, comparisons, mean_intervals
from vmr_env.metrics.measures import MEASURES, measure_queries
from vmr_env.metrics.moments import Joined, Missing, join

if TYPE_CHECKING:
    import pandas as pd


class _OfVideo(Protocol):
    @property
    def vid(self) -> str: ...


@click.group()
def measure() -> None:
    """Figures beyond the official ones: other recalls, groups of queries, comparisons, other tasks."""


_dataset_option = click.option(
    "--dataset",
    type=click.Choice(list(PROFILES)),
    help="Whose rule tells which vids are cut from one video. Default: that of all vids' form, if any.",
)


def _options(command: Any) -> Any:
    """Options that say what is measured and how it is read."""
    for option in reversed(
        (
            click.option(
                "--measures",
                default=",".join(MEASURES),
                show_default=True,
                help="Columns, separated by commas: R<n>@<threshold>, mIoU, mAP, registered metrics.",
            ),
            click.option(
                "--above", is_flag=True, help="R@n wants a tIoU above its threshold, and not at it."
            ),
            click.option(
                "--nms", type=float, help="Leave out windows whose tIoU with an earlier one is higher."
            ),
            click.option(
                "--mean-over",
                type=click.Choice(["queries", "videos"]),
                default="queries",
                show_default=True,
                help="What means are over; of videos, each has the mean of its queries.",
            ),
            _dataset_option,
            click.option(
                "--missing",
                type=click.Choice(["error", "miss"]),
                default="error",
                show_default=True,
                help="What a query without an answer is.",
            ),
            past_end_option(PAST_END),
        )
    ):
        command = option(command)
    return command


@measure.command()
@click.argument("predictions", type=FILE)
@click.argument("annotations", type=FILE)
@click.option("--by", type=click.Choice(list(GROUPINGS)), help="Also a row for each group of queries.")
@_options
@problems_exit_with_1
def moments(
    predictions: Path, annotations: Path, by: str | None, dataset: str | None, mean_over: Over, **how: Any
) -> None:
    """Recalls of any rank and threshold, with 95 % intervals, of all queries and of groups of them.

    \b
      vmr-env measure moments model.jsonl annotations.jsonl --measures R1@0.1,R5@0.5,R10@0.95 --nms 0.5
      vmr-env measure moments model.jsonl annotations.jsonl --by length --dataset qvhighlights
    """
    joined, scores = _measured(predictions, annotations, **how)
    table = by_group(scores, joined.annotations, by, _source_video(dataset, joined.annotations), mean_over)
    click.echo(table.map(_cell).to_string())
    click.echo(_said(mean_over, **how))


@measure.command()
@click.argument("predictions", type=FILE)
@click.argument("others", type=FILE)
@click.argument("annotations", type=FILE)
@_options
@problems_exit_with_1
def difference(
    predictions: Path, others: Path, annotations: Path, dataset: str | None, mean_over: Over, **how: Any
) -> None:
    """Two prediction files on the same queries: means, difference, 95 % interval, p-value.

    The interval resamples source videos; the p-value is two-sided, by permutation of source videos.

    \b
      vmr-env measure difference refined.jsonl detector.jsonl annotations.jsonl --dataset charades
    """
    import pandas as pd

    joined, scores = _measured(predictions, annotations, **how)
    other_joined, other_scores = _measured(others, annotations, **how)
    if [row.qid for row in joined.annotations] != [row.qid for row in other_joined.annotations]:
        raise click.ClickException(f"{predictions} and {others} answer different queries, expected the same")
    source_video = _source_video(dataset, joined.annotations)
    videos = [source_video(row.vid) for row in joined.annotations]
    values, other_values = scores.to_numpy(), other_scores.to_numpy()
    found = comparisons(values, other_values, videos, mean_over)
    columns: dict[str, Sequence[object]] = {
        predictions.name: mean_intervals(values, videos, mean_over),
        others.name: mean_intervals(other_values, videos, mean_over),
        "difference": found,
        "p": [f"{comparison.p:.4f}" for comparison in found],
    }
    click.echo(pd.DataFrame(columns, scores.columns).map(_cell).to_string())
    click.echo(_said(mean_over, **how))


@measure.command()
@click.argument("predictions", type=FILE)
@click.argument("annotations", type=FILE)
@click.option(
    "--rejection",
    type=float,
    default=generalised_metrics.REJECTION,
    show_default=True,
    help="Existence score up to which an answer is rejected.",
)
@click.option("--ranks", default="1,3,5", show_default=True, help="k of the measures of the first k windows.")
@_dataset_option
@problems_exit_with_1
def generalised(
    predictions: Path, annotations: Path, rejection: float, ranks: str, dataset: str | None
) -> None:
    """Queries with no moment, one, or several: rejection (AUROC, F1), mR@k, G-mIoU@k.

    Ground truth has an empty list of windows where there is no moment. The highest window score stands in
    where an answer has no pred_exist_score. Definitions: Ding et al. 2026, arXiv:2605.02623.
    """
    import pandas as pd

    numbers = ranks.split(",")
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise click.BadParameter(f"is {ranks!r}; expected numbers from 1, as in 1,3,5", param_hint="--ranks")
    answers, truth = paired_sets(predictions, annotations)
    figures = generalised_metrics.generalised_intervals(
        answers,
        truth,
        rejection=rejection,
        ranks=[int(number) for number in numbers],
        source_video=_source_video(dataset, truth),
    )
    click.echo(pd.Series(figures).map(_cell).to_string())
    click.echo(_BOOTSTRAP)


@measure.command()
@click.argument("predictions", type=FILE)
@click.argument("annotations", type=FILE)
@_dataset_option
@problems_exit_with_1
def highlights(predictions: Path, annotations: Path, dataset: str | None) -> None:
    """Saliency curves against rated clips, of data without moments."""
    import pandas as pd

    _, rated = paired_highlights(predictions, annotations)
    figures = highlight_intervals(predictions, annotations, _source_video(dataset, rated))
    click.echo(pd.Series(figures).map(_cell).to_string())
    click.echo(_BOOTSTRAP)


_BOOTSTRAP = "[95 % interval over source videos]"


def _measured(
    predictions: Path,
    annotations: Path,
    *,
    measures: str,
    above: bool,
    nms: float | None,
    missing: Missing,
    past_end: PastEnd,
) -> tuple[Joined, "pd.DataFrame"]:
    joined = join(predictions, annotations, missing=missing, past_end=past_end)
    return joined, measure_queries(joined, measures.split(","), above=above, suppression=nms)


def _source_video(dataset: str | None, rows: Iterable[_OfVideo]) -> Callable[[str], str]:
    """The rule of the data set that is named, else of the one whose clips the vids of all rows look like."""
    profile = clips_of(row.vid for row in rows) if dataset is None else PROFILES[dataset]
    return str if profile is None else profile.source_video


def _cell(value: object) -> str:
    if isinstance(value, Interval | Comparison):
        return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"
    return str(value)


def _said(mean_over: Over, *, above: bool, nms: float | None, **_: Any) -> str:
    """How the figures of a table were made, in a line below it."""
    reached = ">" if above else ">="
    windows = "all windows" if nms is None else f"windows after non-maximum suppression at {nms:g}"
    return f"hit: tIoU {reached} threshold; {windows}; mean over {mean_over}; {_BOOTSTRAP}"
