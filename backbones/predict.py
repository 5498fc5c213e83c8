"""A trained model on samples: predictions in the field's format."""

import random
from collections.abc import Iterator

import torch
from tqdm import tqdm

from backbones.dataset import MomentDataset
from backbones.girl_detr.inference import WindowSettings, saliency_curves, windows
from backbones.girl_detr.model import GirlDetr, GirlDetrOutput
from vmr_env.predictions import Prediction


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
