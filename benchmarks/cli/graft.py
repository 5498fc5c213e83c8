"""A trained head put back into its backbone: a checkpoint like any other, for features and caches alike.

    vmr-env graft runs/captions/best runs/tprl/runs/tprl-seed0-fold0.safetensors \\
        --out runs/captions/tprl
    vmr-env predict runs/captions/tprl --annotations val.jsonl …

Nothing but the head differs from the backbone's own weights.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from vmr_env.errors import DataError, Problem
from vmr_env.options import argument, option, parse
from vmr_env.programs import run_program


def graft(weights: Path, head: Path, out: Path) -> str:
    """Write the backbone in `weights` with another head to the folder `out`; returns the hash of its weights.

    Args:
        weights: Folder of a backbone.
        head: What a run of `run_tprl.py` kept of a method that trains the head.
        out: Folder to write.

    Raises:
        DataError: A file cannot be read or written, or the head is none of this backbone's.
    """
    from vmr_env.agents.tensors import read_tensors
    from vmr_env.backbones.base import open_detector
    from vmr_env.benchmarks.experiment.methods import KIND

    header, tensors = read_tensors(head, "head")
    detector = open_detector(header.get(KIND, "girl-detr"), weights)
    expected = {name: tuple(tensor.shape) for name, tensor in detector.head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        message = f"has {found}, expected {expected} as the backbone's head"
        raise DataError(Problem(str(head), None, None, message))
    notes = {"backbone_sha256": detector.sha256, "head": head.name}
    detector.head.load_state_dict(tensors)
    return detector.save(out, notes)


@dataclass(frozen=True)
class Options:
    """Put a trained head back into its backbone."""

    weights: Path = argument("folder of the backbone's weights")
    head: Path = argument("the trained head (.safetensors)")
    out: Path = option(MISSING, "folder to write")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: graft a head."""
    options = parse(Options, arguments, "vmr-env graft")
    print(f"{options.out}: sha256 {graft(options.weights, options.head, options.out)}")


if __name__ == "__main__":
    run_program(main)
