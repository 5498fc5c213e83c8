"""Cost of GIRL-DETR, measured; see `options.GirlDetrSpeed`."""

import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.losses import SupervisedCriterion
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.girl_detr.targets import Targets
from vmr_env.benchmarks.speed.options import GirlDetrSpeed
from vmr_env.options import parse_in_range
from vmr_env.programs import run_program

OFFICIAL_SECONDS = {"step": 2.8, "inference": 0.75}
REQUIRED_RATIO = {"step": 2.0, "inference": 2.5}
BATCH, CLIPS, TOKENS = 32, 75, 32
TACOS_CLIPS, TACOS_GIGABYTES = 1000, 6.0


def batch(config: GirlDetrConfig, clips: int) -> tuple[tuple[Tensor, ...], Targets]:
    """Unit feature rows at full length, one moment per sample."""
    generator = torch.Generator().manual_seed(0)
    video = F.normalize(torch.randn(BATCH, clips, config.v_feat_dim, generator=generator), dim=-1)
    text = F.normalize(torch.randn(BATCH, TOKENS, config.t_feat_dim, generator=generator), dim=-1)
    labels = torch.zeros(BATCH, clips)
    labels[:, clips // 4 : clips // 2] = 1
    inside = torch.tensor([[clips // 4, clips // 3]] * BATCH)
    outside = torch.tensor([[0, clips - 1]] * BATCH)
    targets = Targets([torch.tensor([[0.375, 0.25]])] * BATCH, labels, inside, outside)
    return (video, torch.ones(BATCH, clips), text, torch.ones(BATCH, TOKENS)), targets


def training_step(model: GirlDetr, clips: int) -> Callable[[], None]:
    """One supervised step on the model's device, to be called again and again."""
    device = next(model.parameters()).device
    of_cpu, targets = batch(model.config, clips)
    inputs, targets = [tensor.to(device) for tensor in of_cpu], targets.to(device)
    criterion = SupervisedCriterion(model.config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)

    def step() -> None:
        model.train()
        optimiser.zero_grad()
        torch.autograd.backward(criterion(model(*inputs), targets, 0)["total"])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()

    return step


def inference(model: GirlDetr) -> Callable[[], None]:
    """One forward pass without gradients."""
    inputs, _ = batch(model.config, CLIPS)

    def forward() -> None:
        model.eval()
        with torch.no_grad():
            model(*inputs)

    return forward


def seconds(work: Callable[[], None], repeats: int) -> list[float]:
    """CPU seconds of each repetition, after one to warm up."""
    work()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return found


def measure(config: GirlDetrConfig, repeats: int) -> dict[str, dict[str, float]]:
    """Least and median CPU seconds, and their ratio to the official figures."""
    model = GirlDetr(config)
    results = {}
    for name, work in (("step", training_step(model, CLIPS)), ("inference", inference(model))):
        found = seconds(work, repeats)
        results[name] = {
            "official_seconds": OFFICIAL_SECONDS[name],
            "least_seconds": min(found),
            "median_seconds": median(found),
            "ratio": OFFICIAL_SECONDS[name] / median(found),
            "required_ratio": REQUIRED_RATIO[name],
        }
    return results


def tacos_gigabytes(config: GirlDetrConfig) -> float:
    """Peak memory of this process after a training step at TACoS lengths, activations recomputed."""
    model = GirlDetr(config)
    model.recompute = True
    training_step(model, TACOS_CLIPS)()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON if asked."""
    options = parse_in_range(GirlDetrSpeed, arguments, "vmr-env bench girl-detr")
    torch.set_num_threads(1)
    config = GirlDetrConfig(behaviour=options.behaviour)
    config = replace(config, repairs=config.active_repairs - set(options.without))
    results: dict[str, object] = {"behaviour": options.behaviour, "without": options.without}
    for name, row in measure(config, options.repeats).items():
        results[name] = row
        print(
            f"{name}: {row['median_seconds']:.2f} s CPU (least {row['least_seconds']:.2f}), "
            f"official {row['official_seconds']:.2f} s, ratio {row['ratio']:.2f}, "
            f"required {row['required_ratio']:.1f}"
        )
    if options.memory:
        results["tacos_gigabytes"] = gigabytes = tacos_gigabytes(config)
        print(f"TACoS lengths: {gigabytes:.1f} GB at most, allowed {TACOS_GIGABYTES:.0f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    run_program(main)
