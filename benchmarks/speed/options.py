"""Options of the programs that measure speed, in a module that loads nothing of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmr_env.backbones.girl_detr.config import REPAIRS
from vmr_env.options import option


@dataclass(frozen=True)
class Throughput:
    """Speed, as ratios measured in one run on one machine, one thread.

        vmr-env bench throughput [--repeats N] [--evaluate PREDICTIONS GROUND_TRUTH]... [--json FILE]

    Prints, over a simulated QVHighlights cache:

    - the native vector environment against Gymnasium's `SyncVectorEnv` over the same single environments, and
      against only gathering as many observation rows (N rows of the same width and type, out of a table with
      a row for each sample and step, into a fresh array, as a step returns them), once more with observations
      in one array that every step overwrites (`copy=False`), and against completing its observations alone;
    - steps per second of a single environment of `gymnasium.make`, resets included;
    - frames per second of our PPO against Stable-Baselines3's, with the same networks (two perceptrons of two
      hidden layers) and rollouts, and the returns that they reach after the same number of frames, means over
      seeds with 95 % intervals (Student's t): ours with 8 passes over a rollout against SB3's with the
      passes, minibatches and learning rate that it has by default (10 passes in minibatches of 64), and both
      with all of these alike (4 passes in minibatches of 256);
    - with --evaluate, seconds of `vmr_env.metrics.moments.evaluate` on a prediction file, reading included.

    What is compared takes turns, and figures are medians over the turns: what else the machine does falls on
    both. Times are processor time.
    """

    repeats: int = option(9, "turns of each comparison", least=1)
    evaluate: tuple[tuple[Path, Path], ...] = option(
        (),
        "also time the scoring of this file; may be repeated",
        repeated=True,
        metavar=("PREDICTIONS", "GROUND_TRUTH"),
    )
    json: Path | None = option(None, "also write the figures to this file")


@dataclass(frozen=True)
class GirlDetrSpeed:
    """Cost of GIRL-DETR on one CPU thread against the official implementation, and memory at TACoS lengths.

        vmr-env bench girl-detr [--repeats 6] [--behaviour repaired] [--memory] [--json FILE]

    The official figures were measured once, on one thread of a 2-core machine: a supervised step (forward,
    losses, backward, clipping, AdamW) and an inference forward of its default configuration, batch 32, 75
    clips, 32 tokens.
    Ours are CPU time of the same work; ratios mean something on a similar, idle machine only.
    """

    repeats: int = option(6, "measurements of each", least=1)
    behaviour: Literal["official", "repaired"] = option(
        "repaired", "of model and losses", choices=("official", "repaired")
    )
    without: tuple[str, ...] = option((), "repairs to leave out", choices=tuple(REPAIRS))
    memory: bool = option(False, "also a training step of 1,000 clips")
    json: Path | None = option(None, "also write the figures to this file")


@dataclass(frozen=True)
class TprlSpeed:
    """Speed of TPRL's third stage on cached decoder states, one thread.

        vmr-env bench tprl [--json FILE]

    The official step (batch 32, default config: width 256, 10 queries, 75 clips, 32 tokens) cost 1.12 to 1.22
    s of processor time when it was measured once on a 2-core machine: at most 28 samples/s, 97 % of it the
    forward pass of the frozen model, run twice. Ours runs the same head, the same batch and the published
    losses on states from a memory-mapped cache; reading them is part of the figure. Memory is that of a
    batch: the most that is allocated while training on few and on many samples is printed beside it.
    """

    json: Path | None = option(None, "also write the figures to this file")


@dataclass(frozen=True)
class GpuSpeed:
    """What one accelerator is worth: a table in less than five minutes.

        vmr-env bench gpu [--seconds 10] [--json FILE]

    Wall seconds on this machine, on the processor (one thread) and on the GPU where there is one:

    supervised steps/s   GIRL-DETR's training step, batch 32, 75 clips, 32 tokens
    cached samples/s     its frozen pass over simulated samples, until their decoder states are on the disk
    TPRL steps/s         the head on cached states, batch 32, third stage
    PPO frames/s         our PPO in the native vector environment, which stays on the processor
    """

    seconds: float = option(10.0, "of each measurement")
    json: Path | None = option(None, "also write the figures to this file")


@dataclass(frozen=True)
class ClusterSpeed:
    """What runs on a Ray cluster cost, on this machine.

        vmr-env bench cluster [--runs 12] [--json FILE]

    Three questions, Ray's start apart:

    - overhead: wall seconds of a run that does nothing, with everything that is sent and written for it;
    - efficiency: wall seconds of independent runs on one worker over those on two, and the same of plain
      processes without Ray, which is the most that this machine gives;
    - cost model: a run costs a + b N seconds of processor time on N samples, and its results c + d N bytes.
      The four numbers are fitted to the smallest and the largest size, and foretell the three between them.

    The load of the machine is printed beside them: on busy processors two workers are no faster than one.
    """

    runs: int = option(12, "independent runs", least=1)
    json: Path | None = option(None, "also write the figures to this file")
