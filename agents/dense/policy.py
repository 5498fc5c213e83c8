"""A trained policy over all spans: on disk, and applied to prediction files without any ground truth.

On disk it is a folder: `policy.json` says what it is, and names the weights file and its hash.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vmr_env.agents.dense.decoding import answers
from vmr_env.agents.dense.network import DenseNetwork
from vmr_env.agents.dense.timeline import Timelines
from vmr_env.agents.dense.trainer import believe
from vmr_env.arrays import Floats
from vmr_env.data.predictions import Prediction, read_predictions
from vmr_env.data.queries import read_queries
from vmr_env.data.records import Rows
from vmr_env.data.timelines import Asked, ClipFeatures, Grid, NoEvidence, check_features
from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.objects import read_object
from vmr_env.files.text import PathLike, write_text
from vmr_env.files.writing import NewFolder, write_bytes

FORMAT = "vmr-dense-policy"
VERSION = 1
POLICY_FILE = "policy.json"
WEIGHTS_FILE = "weights.safetensors"


class Evidence(NamedTuple):
    """Facts about videos and queries beside predictions."""

    clips: ClipFeatures
    """Features of each video by vid."""
    queries: Mapping[str, Floats]
    """Vector of each query by qid as text, and below it those of its paraphrases, if any: (1 + P, D)."""


@dataclass(frozen=True)
class DensePolicy:
    """Networks that answer together, and the grid on which they do.

    Attributes:
        networks: one per seed; their probabilities are averaged.
        grid: how videos are cut.
        channels: width of the networks.
    """

    networks: tuple[DenseNetwork, ...]
    grid: Grid
    channels: int

    def __post_init__(self) -> None:
        if any(network.state_dim for network in self.networks):
            raise ValueError("a network reads decoder states, which predictions do not have; expected none")

    @property
    def dim(self) -> int:
        """Width D of the clip and query vectors that it takes."""
        return self.networks[0].dim

    def answer(
        self, models: Sequence[Sequence[Prediction]], queries: Sequence[Asked], evidence: Evidence | None
    ) -> list[Prediction]:
        """Ranked windows of each query; with evidence, saliency is improved by relevance.

        Args:
            models: predictions of each model, one for every query.
            queries: what is asked.
            evidence: features; without them only the predictions speak.

        Raises:
            DataError: features of another width than the policy's, or what is missing for a query.
        """
        if evidence is None:
            zeros = {str(query.qid): np.zeros((1, self.dim), np.float32) for query in queries}
            evidence_or_none = Evidence(NoEvidence(self.dim), zeros)
        elif evidence.clips.dim != self.dim:
            message = f"has features of width {evidence.clips.dim}; expected {self.dim}, as the policy learnt"
            raise DataError(Problem("evidence", None, None, message))
        else:
            check_features("evidence", evidence.clips, queries, self.grid.seconds)
            evidence_or_none = evidence
        timelines = Timelines(models, queries, *evidence_or_none, self.grid)
        beliefs = believe(self.networks, timelines)
        relevance = None if evidence is None else beliefs.relevance
        return answers(timelines, beliefs.probabilities, relevance=relevance)


def refine_rows(
    policy: DensePolicy, queries: Rows, prediction_files: Sequence[PathLike], stores: Evidence | None
) -> list[Prediction]:
    """Refined rows of prediction files, of one detector or of the models of a pool; no ground truth is read.

    Args:
        policy: a trained one.
        queries: as `vmr_env.data.queries.read_queries` takes them.
        prediction_files: one per model, each with a row for every query.
        stores: clip and query vectors, or None.

    Raises:
        DataError: all rows with missing or wrong fields; or errors of the files and of `DensePolicy.answer`.
    """
    asked = read_queries(queries)
    models = [read_predictions(path, before_start="keep") for path in prediction_files]
    return policy.answer(models, asked, stores)


def check_policy_place(folder: PathLike) -> None:
    """Find out before training that a policy could not be kept.

    Raises:
        DataError: the folder cannot be written, or holds anything but a policy.
    """
    path = Path(folder)
    if path.exists() and not (path / POLICY_FILE).exists() and (path.is_file() or any(path.iterdir())):
        raise _bad(path, "is there already and no policy; expected a new folder, or that of a policy")
    NewFolder(path).drop()


def save_policy(folder: PathLike, policy: DensePolicy, notes: Mapping[str, Any] | None = None) -> None:
    """Write a policy; the folder is replaced whole or left as it was.

    Args:
        folder: where.
        policy: trained networks.
        notes: anything of JSON worth keeping: files, settings, seeds.

    Raises:
        DataError: it cannot be written, or the folder holds something else.
    """
    check_policy_place(folder)
    weights = save(
        {
            f"{number}.{name}": tensor.detach().cpu().contiguous()
            for number, network in enumerate(policy.networks)
            for name, tensor in network.state_dict().items()
        }
    )
    described = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "networks": len(policy.networks),
        "dim": policy.dim,
        "channels": policy.channels,
        "grid": asdict(policy.grid),
        "notes": dict(notes or {}),
    }
    with NewFolder(Path(folder)) as new:
        write_bytes(new.path / WEIGHTS_FILE, weights)
        write_text(new.path / POLICY_FILE, json.dumps(described, indent=1) + "\n")
        new.publish(replace=True)


def load_policy(folder: PathLike, device: str = "cpu") -> DensePolicy:
    """The policy that `save_policy` wrote.

    Args:
        folder: where.
        device: torch device of its networks, wherever they have learnt.

    Raises:
        DataError: a file is missing, damaged, or of another kind.
    """
    path, weights_path = Path(folder) / POLICY_FILE, Path(folder) / WEIGHTS_FILE
    described = read_object(path)
    if (described.get("format"), described.get("version")) != (FORMAT, VERSION):
        found = f"format {shorten(described.get('format'))}, version {shorten(described.get('version'))}"
        raise _bad(path, f"is of {found}; expected {FORMAT!r}, version {VERSION}")
    try:
        raw = weights_path.read_bytes()
    except OSError as error:
        raise _bad(weights_path, f"cannot be read ({error.strerror}); expected the weights") from error
    if hashlib.sha256(raw).hexdigest() != described.get("sha256"):
        raise _bad(weights_path, f"does not have the sha256 that {POLICY_FILE} names; expected these weights")
    try:
        grid = Grid(**described["grid"])
        networks = tuple(
            DenseNetwork(described["dim"], grid.clips, described["channels"])
            for _ in range(described["networks"])
        )
        _fill(networks, load(raw))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise _bad(
            path, f"does not describe the weights ({error}); expected what save_policy wrote"
        ) from error
    return DensePolicy(tuple(network.to(device) for network in networks), grid, described["channels"])


def _fill(networks: Sequence[DenseNetwork], state: Mapping[str, Tensor]) -> None:
    for number, network in enumerate(networks):
        prefix = f"{number}."
        own = {name.removeprefix(prefix): part for name, part in state.items() if name.startswith(prefix)}
        network.load_state_dict(own)
        network.eval()


def _bad(path: Path, message: str) -> DataError:
    return DataError(Problem(str(path), None, None, message))
