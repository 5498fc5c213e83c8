"""A trained model on samples: predictions in the field's format, and their metrics.

    python -m vmr_env.backbones.predict runs/captions/best --annotations val.jsonl --clips features/clips \\
        --text features/text --out val_preds.jsonl
"""

import json
import random
from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm

from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.features.sources import (
    open_dataset,
    open_sources,
    read_samples,
)
from vmr_env.backbones.frozen import open_model
from vmr_env.backbones.girl_detr.inference import WindowSettings, saliency_curves, windows
from vmr_env.backbones.girl_detr.model import GirlDetr, GirlDetrOutput
from vmr_env.backbones.parsers import predict_parser
from vmr_env.data.predictions import Prediction, write_predictions
from vmr_env.errors import DataError
from vmr_env.files.writing import check_place
from vmr_env.metrics.moments import evaluate
from vmr_env.programs import run_program


@torch.no_grad()
def outputs(
    model: GirlDetr, dataset: MomentDataset, batch_size: int, *, start: int = 0, progress: bool = False
) -> Iterator[tuple[range, GirlDetrOutput]]:
    """The model's output batch by batch, in the order of the data set, in evaluation mode.

    Args:
        model: its mode is restored afterwards.
        dataset: the samples.
        batch_size: samples of a batch.
        start: first sample.
        progress: show a progress bar.

    Yields:
        the positions of the batch's samples, and the output.
    """
    device = next(model.parameters()).device
    draw = random.Random(0)  # labels are not used, but their draws need a source
    training = model.training
    model.eval()
    try:
        for first in tqdm(range(start, len(dataset), batch_size), desc="predict", disable=not progress):
            rows = range(first, min(first + batch_size, len(dataset)))
            yield rows, model(*dataset.batch(rows, draw).to(device).inputs)
    finally:
        model.train(training)


def predict(
    model: GirlDetr,
    dataset: MomentDataset,
    settings: WindowSettings,
    batch_size: int,
    *,
    progress: bool = False,
) -> list[Prediction]:
    """Ranked windows of every sample, and saliency curves where the data set has ratings."""
    predictions = []
    for rows, output in outputs(model, dataset, batch_size, progress=progress):
        annotations = [dataset.annotations[row] for row in rows]
        found = windows(output, [row.duration for row in annotations], settings)
        curves = saliency_curves(output) if dataset.settings.rated else [None] * len(rows)
        predictions += [
            Prediction(row.qid, row.vid, row.query, moments, curve)
            for row, moments, curve in zip(annotations, found, curves, strict=True)
        ]
    return predictions


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: write a submission file and print its metrics."""
    options = predict_parser().parse_args(arguments)
    check_place(options.out)
    recipe, model = open_model(options)
    rows = read_samples(options.annotations, options.past_end)
    sources = open_sources(recipe, options, rows)
    dataset = open_dataset(recipe, sources, rows, options.short_features)
    if problems := dataset.problems():
        raise DataError(problems)
    predictions = predict(model, dataset, recipe.windows, recipe.eval_batch_size, progress=True)
    write_predictions(options.out, predictions)
    print(json.dumps(evaluate(predictions, dataset.annotations, past_end="keep")["brief"], indent=1))


if __name__ == "__main__":
    run_program(main)
