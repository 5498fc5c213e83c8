"""Supervised training of GIRL-DETR.

    python -m vmr_env.backbones.train qvhighlights-captions --annotations test.jsonl --clips features/clips \\
        --text features/text --out runs/captions

trains the named recipe (`vmr_env.backbones.recipes`), sets a tenth of the videos aside for selection unless
`--select-annotations` names others, and writes to the output folder:

    best/           weights of the best evaluation (of the moving average, where the recipe has one)
    last.pt         everything needed to continue; a run that was stopped continues with the same command
    history.jsonl   losses and selection metrics by epoch
    tensorboard/    the same for TensorBoard, if it is installed and `--tensorboard` is given

All randomness of an epoch follows from the seed and the epoch's number, so a run that was killed and
continued ends with the same weights, bit for bit, as one that was not (on one machine and device).
Under `torchrun`, processes share each batch (`vmr_env.backbones.processes`).
"""

import argparse
import io
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vmr_env.backbones.cross_fitted import cut_into_parts, member_folder, write_parts
from vmr_env.backbones.dataset import FeatureBatch, MomentDataset
from vmr_env.backbones.features.sources import (
    open_dataset,
    open_sources,
    read_samples,
)
from vmr_env.backbones.girl_detr.checkpoint import save_checkpoint
from vmr_env.backbones.girl_detr.losses import SupervisedCriterion
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.girl_detr.schedules import learning_rate
from vmr_env.backbones.parsers import train_parser
from vmr_env.backbones.predict import predict
from vmr_env.backbones.processes import OneProcess, Processes, open_processes
from vmr_env.backbones.recipes import Recipe, get_recipe
from vmr_env.data.annotations import Annotation
from vmr_env.data.profiles import DatasetProfile, get_profile
from vmr_env.data.splits import split_by_video
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.objects import read_sealed, write_sealed
from vmr_env.files.text import read_lines, write_text
from vmr_env.files.writing import only_writer, writing_errors
from vmr_env.metrics.moments import evaluate
from vmr_env.programs import run_program

SELECTION_SHARE = 0.1
SELECTION_SEED = 0
"""Which videos are set aside does not change with a run's seed, so seeds are compared on the same samples."""
MAX_FAILURES = 200  # evaluations without improvement that end a training, as in the official code


def selection_score(brief: Mapping[str, float], rated: bool) -> float:
    """The official score that picks the best epoch (specification 6.3), from the `brief` metrics."""
    r1 = sum(weight * brief[f"MR-full-R1@{weight}"] for weight in (0.3, 0.5, 0.7))
    if not rated:
        return (r1 + 0.5 * brief["MR-full-mIoU"]) / 2.0
    by_length = sum(brief[f"MR-{name}-mAP"] for name in ("full", "long", "middle", "short"))
    ap = 0.5 * brief["MR-full-mAP@0.5"] + 0.75 * brief["MR-full-mAP@0.75"] + 0.25 * by_length
    return (r1 + ap) / 3.75


class Trainer:
    """One training run.

    Attributes:
        recipe: the recipe, with the widths of the features filled in.
        model: the model that learns.
        shadow: moving average of its weights, or the model itself without one; what is evaluated and kept.
        epoch: epochs done.
        best: highest selection score so far.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: MomentDataset,
        select: MomentDataset,
        out: Path,
        *,
        source: str,
        device: str = "cpu",
        amp: bool = False,
        processes: Processes | None = None,
        log: Callable[[Mapping[str, float], int], None] | None = None,
    ) -> None:
        """Set up a run, or continue the one in `out`.

        Args:
            recipe: what to train and how.
            train: training samples.
            select: samples that choose the best epoch.
            out: output folder.
            source: where the features come from (real, annotation-derived, simulated); noted in the weights.
            device: torch device.
            amp: compute forward passes in bfloat16 where PyTorch finds it safe.
            processes: those that share each batch; None for this one alone, on `device`.
            log: called with figures and the number of epochs done after each epoch.

        Raises:
            DataError: features of the samples are missing or damaged (all are listed), or `out` holds a run
                of another recipe, or the recipe's model mixes samples and there are several processes.
        """
        if problems := [*train.problems(), *select.problems()]:
            raise DataError(problems)
        widths = {"v_feat_dim": train.video_width, "t_feat_dim": train.text_width}
        self.recipe = recipe.with_options(widths)
        self._train, self._select = train, select
        self._out, self._source, self._log = out, source, log
        self._processes = processes or OneProcess(torch.device(device))
        self._device, self._amp = self._processes.device, amp
        if self._processes.count > 1 and not self.recipe.model.repaired("cmi_masks"):
            message = "mixes the samples of a batch (Q9), expected repaired for several processes"
            raise DataError(Problem("--behaviour", None, None, message))
        self.model = GirlDetr(self.recipe.model, recipe.seed).to(self._device)
        self.model.recompute = recipe.data.max_clips > 256
        self._criterion = SupervisedCriterion(self.recipe.model)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), recipe.lr, weight_decay=recipe.weight_decay
        )
        self.shadow = self.model
        if recipe.ema_decay:
            self.shadow = GirlDetr(self.recipe.model).to(self._device).requires_grad_(False)
            self.shadow.load_state_dict(self.model.state_dict())
        self.epoch, self.best, self._failures = (
            0,
            -math.inf,
            0,
        )  # the first one is kept in any case
        out.mkdir(parents=True, exist_ok=True)
        if (out / "last.pt").exists():
            self._restore()
        elif self._writes:  # what a run told that ended before its first epoch was saved
            (out / "history.jsonl").unlink(missing_ok=True)

    @property
    def _writes(self) -> bool:
        """Whether this is the process that writes the files."""
        return self._processes.rank == 0

    def run(self, progress: bool = True) -> None:
        """Train to the last epoch of the recipe; safe to interrupt at any moment."""
        hidden = not (progress and self._writes)
        bar = tqdm(total=self.recipe.epochs, initial=self.epoch, desc="train", unit="epoch", disable=hidden)
        with bar:
            while self.epoch < self.recipe.epochs and self._failures < MAX_FAILURES:
                figures = self.train_epoch()
                if self.epoch % self.recipe.eval_every == 0 or self.epoch == self.recipe.epochs:
                    figures |= self._evaluate()
                self._finish_epoch(figures)
                bar.update()
                bar.set_postfix(
                    {name: f"{figures[name]:.4g}" for name in ("loss", "score") if name in figures}
                )

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training samples; returns the mean of each loss."""
        recipe = self.recipe
        rate = learning_rate(
            self.epoch,
            recipe.lr,
            scheduler=recipe.scheduler,
            lr_drop=recipe.lr_drop,
            n_epoch=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        draw = random.Random(f"{recipe.seed} {self.epoch}")
        order = list(range(len(self._train)))
        draw.shuffle(order)
        sums: dict[str, Tensor] = {}
        self.model.train()
        key = f"{recipe.seed} {self.epoch}"
        with seeded(key if self._writes else f"{key} {self._processes.rank}", self._device):
            for start in range(0, len(order), recipe.batch_size):
                rows = order[start : start + recipe.batch_size]
                losses = self._step(self._train.batch(rows, draw, training=True).to(self._device))
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0) + value.detach() * len(rows)
        self.epoch += 1
        means = {name: float(value) / len(order) for name, value in sums.items()}
        return {"lr": rate, "loss": means.pop("total"), **means}

    def _step(self, batch: FeatureBatch) -> dict[str, Tensor]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._amp):
            output = self._processes.detect(self.model, batch)
        losses = self._criterion(output, batch.targets, self.epoch)
        total = losses["total"]
        if not torch.isfinite(total):
            values = ", ".join(f"{name} {float(value):g}" for name, value in losses.items())
            raise FloatingPointError(f"the loss is not finite in epoch {self.epoch + 1}: {values}")
        self._optimizer.zero_grad()
        torch.autograd.backward(total)
        self._processes.add_gradients(self.model)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        if not norm.isfinite():
            raise FloatingPointError(
                f"the gradient norm is {norm.item()} in epoch {self.epoch + 1}, expected a finite number"
            )
        self._optimizer.step()
        if self.shadow is not self.model:
            update_average(self.shadow, self.model, self.recipe.ema_decay)
        return losses

    def _evaluate(self) -> dict[str, float]:
        """Metrics on the selection samples; keeps the weights if they are the best so far."""
        predictions = predict(self.shadow, self._select, self.recipe.windows, self.recipe.eval_batch_size)
        brief = evaluate(predictions, self._select.annotations, past_end="keep")["brief"]
        score = selection_score(brief, self.recipe.data.rated)
        self._failures += 1
        if score > self.best:
            self.best, self._failures = score, 0
            notes = {
                "recipe": self.recipe.to_dict(),
                "source": self._source,
                "epoch": self.epoch,
                "selection": brief,
            }
            if self._writes:
                save_checkpoint(self._out / "best", self.shadow, notes)
        return {"score": score, **brief}

    def _finish_epoch(self, figures: Mapping[str, float]) -> None:
        if not self._writes:
            return
        with open(self._out / "history.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": self.epoch, **figures}) + "\n")
        if self._log is not None:
            self._log(figures, self.epoch)
        state = {
            "recipe": json.dumps(self.recipe.to_dict()),
            "epoch": self.epoch,
            "best": self.best,
            "failures": self._failures,
            "model": self.model.state_dict(),
            "shadow": self.shadow.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_sealed(self._out / "last.pt", content.getvalue())

    def _restore(self) -> None:
        path = self._out / "last.pt"
        raw = read_sealed(path, f"remove {self._out} to train anew")
        try:
            state = torch.load(io.BytesIO(raw), map_location=self._device, weights_only=True)
        except Exception as error:  # torch raises many types for a damaged file
            raise DataError(
                Problem(str(path), None, None, f"is no readable training state ({error})")
            ) from error
        texts = (state["recipe"], json.dumps(self.recipe.to_dict()))
        found, wanted = map(recipe_without_length, texts)
        if found != wanted:
            changed = ", ".join(sorted(name for name in wanted if found.get(name) != wanted[name]))
            message = f"belongs to a run with other values of {changed}; expected the same, or a new folder"
            raise DataError(Problem(str(path), None, "recipe", message))
        self.epoch, self.best, self._failures = state["epoch"], state["best"], state["failures"]
        self.model.load_state_dict(state["model"])
        self.shadow.load_state_dict(state["shadow"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._writes:
            cut_history(self._out / "history.jsonl", self.epoch)


def cut_history(path: Path, epochs: int) -> None:
    """Drop lines of an epoch that was logged but not saved before a kill; the file is replaced whole.

    Raises:
        DataError: there are not so many epochs in it, one after the other.
    """
    lines = read_lines(path)[:epochs]
    for row, line in enumerate(lines, 1):
        try:
            epoch = json.loads(line)["epoch"]
        except (ValueError, TypeError, KeyError, RecursionError):
            epoch = None
        if epoch != row:
            message = f"is {shorten(line)}; expected the figures of epoch {row}, or remove the run"
            raise DataError(Problem(str(path), row, None, message))
    if len(lines) < epochs:
        message = f"has {len(lines)} epochs; expected the {epochs} of last.pt, or remove the run"
        raise DataError(Problem(str(path), None, None, message))
    write_text(path, "".join(f"{line}\n" for line in lines))


def recipe_without_length(text: str) -> dict[str, Any]:
    """A recipe's values but for the number of epochs, where a longer run begins like a shorter one."""
    values: dict[str, Any] = json.loads(text)
    if values["scheduler"] == "step":
        del values["epochs"]
    return values


@contextmanager
def seeded(key: str, device: torch.device) -> Iterator[None]:
    """Run a block with PyTorch's own generators seeded by `key`, and put them back as they were afterwards.

    Dropout draws from PyTorch's global generators and cannot be given another one.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(random.Random(key).getrandbits(63))
        yield


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """One step of the exponential moving average of a model's weights."""
    pairs = zip(average.parameters(), model.parameters(), strict=True)
    old, new = (list(parameters) for parameters in zip(*pairs, strict=True))
    torch._foreach_lerp_(old, new, 1 - decay)


def split_for_selection(
    rows: Sequence[Annotation], profile: DatasetProfile
) -> tuple[list[Annotation], list[Annotation]]:
    """Training and selection samples: a tenth of the source videos is set aside, always the same."""
    shares = {"train": 1 - SELECTION_SHARE, "select": SELECTION_SHARE}
    parts = split_by_video([profile.source_video(row.vid) for row in rows], shares, SELECTION_SEED)
    train, select = ([rows[i] for i in parts[name]] for name in ("train", "select"))
    return train, select


def tensorboard_log(folder: Path) -> Callable[[Mapping[str, float], int], None]:
    """A `log` for the trainer that writes TensorBoard files. Raises ImportError without TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def log(figures: Mapping[str, float], epoch: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    return log


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train a named recipe."""
    parser = train_parser()
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        recipe = get_recipe(options.recipe).with_options(parse_options(options.set))
    except ValueError as error:
        parser.error(str(error))
    if options.seed is not None:
        recipe = replace(recipe, seed=options.seed)
    if options.behaviour is not None:
        recipe = recipe.with_options({"behaviour": options.behaviour})
    rows = read_samples(options.annotations, options.past_end)
    with writing_errors(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    with open_processes(options.device) as processes, written_by_first(options.out, processes):
        train_all(rows, recipe, options, processes)


def written_by_first(out: Path, processes: Processes) -> AbstractContextManager[None]:
    """The first process is the only writer of a folder; the others write nothing."""
    return only_writer(out) if processes.rank == 0 else nullcontext()


def train_all(
    rows: Sequence[Annotation], recipe: Recipe, options: argparse.Namespace, processes: Processes
) -> None:
    """Train one backbone on the samples, or the members of a cross-fitted one."""
    if options.cross_fit is None:
        train_on(rows, recipe, options, options.out, processes)
        return
    parts = cut_into_parts(rows, recipe, options.cross_fit)
    if processes.rank == 0:
        write_parts(options.out, rows, parts, recipe)
    for member in range(options.cross_fit):
        seen = [row for row, part in zip(rows, parts, strict=True) if part != member]
        train_on(seen, recipe, options, member_folder(options.out, member), processes)


def train_on(
    rows: Sequence[Annotation], recipe: Recipe, options: argparse.Namespace, out: Path, processes: Processes
) -> None:
    """Train a recipe on samples, with features and devices of the command line; a run in `out` goes on."""
    if options.select_annotations is None:
        train_rows, select_rows = split_for_selection(rows, get_profile(recipe.dataset))
    else:
        train_rows, select_rows = list(rows), read_samples([options.select_annotations], options.past_end)
    sources = open_sources(recipe, options, train_rows)
    select_options = argparse.Namespace(
        clips=options.select_clips or options.clips,
        text=options.select_text or options.text,
        features=options.features,
    )
    select_sources = open_sources(recipe, select_options, select_rows)
    trainer = Trainer(
        recipe,
        open_dataset(recipe, sources, train_rows, options.short_features),
        open_dataset(recipe, select_sources, select_rows, options.short_features),
        out,
        source=sources.kind,
        amp=options.amp,
        processes=processes,
        log=tensorboard_log(out / "tensorboard") if options.tensorboard and processes.rank == 0 else None,
    )
    trainer.run()
    if processes.rank == 0:
        print(f"{out}: {trainer.epoch} epochs, best selection score {trainer.best:.2f}")


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` texts as options; values are JSON, or plain text where they are none."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} is no NAME=VALUE")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options


if __name__ == "__main__":
    run_program(main)
