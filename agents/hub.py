"""Trained agents on the Hugging Face Hub (extra `hub`): a folder in its layout, pushed and loaded by
revision.

The folder holds `model.safetensors` (the ensemble as `agents.ensemble.files` keeps it), `config.json` (how
it came to be) and `README.md`, the model card, whose metadata name licence, data source and figures.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vmr_env
from vmr_env.agents.ensemble.files import ensemble_run
from vmr_env.errors import DataError, MissingExtra, Problem
from vmr_env.files.text import PathLike, write_text
from vmr_env.files.writing import write_bytes

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"

_REVISION = re.compile(r"[0-9a-f]{40}")


def write_model_folder(
    folder: PathLike, agent: PathLike, *, figures: Mapping[str, float], licence: str, data_source: str
) -> Path:
    """Write a trained ensemble as a model repository.

    Args:
        folder: where; it is made, and files of these names in it are replaced.
        agent: file of the ensemble.
        figures: what it reached, by measure, for the card's metadata.
        licence: identifier of the Hub, such as `mit`.
        data_source: what it was trained and judged on, in a sentence.

    Returns:
        The folder.

    Raises:
        DataError: the file is no ensemble's, or the folder cannot be written.
    """
    run = ensemble_run(agent)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / MODEL, Path(agent).read_bytes())
    write_text(folder / CONFIG, json.dumps({"vmr_env": vmr_env.__version__, **run}, indent=1) + "\n")
    write_text(folder / CARD, _card(run, figures, licence, data_source))
    return folder


def _card(run: Mapping[str, Any], figures: Mapping[str, float], licence: str, data_source: str) -> str:
    """The model card: metadata, which are YAML as every JSON value is, and what to do with the model."""
    dataset = run["dataset"]
    results = {
        "task": {"type": "video-moment-retrieval"},
        "dataset": {"name": dataset, "type": dataset},
        "metrics": [{"type": name, "name": name, "value": value} for name, value in figures.items()],
    }
    metadata = {
        "license": licence,
        "library_name": "vmr-env",
        "tags": ["video-moment-retrieval", "reinforcement-learning"],
        "model-index": [{"name": f"vmr-env agent for {dataset}", "results": [results]}],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in metadata.items()]
    table = [
        "| measure | value |",
        "|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in figures.items()),
    ]
    said = f"An agent of vmr-env that refines a detector's moments.\n\nData: {data_source}"
    use = "Use: `vmr_env.refine(predictions, queries, agent=load_from_hub(repository, revision=...))`"
    return "\n".join(["---", *lines, "---", "", said, "", *table, "", use, ""])


def push_to_hub(folder: PathLike, repository: str, *, private: bool = True) -> str:
    """Upload a model folder; the revision that it then has.

    Args:
        folder: as `write_model_folder` wrote it.
        repository: `owner/name`; made where it is not there.
        private: whether a new repository is.

    Raises:
        DataError: the folder is no model's.
        MissingExtra: huggingface_hub is not installed.
    """
    lacking = [name for name in (MODEL, CONFIG, CARD) if not (Path(folder) / name).is_file()]
    if lacking:
        message = f"lacks {', '.join(lacking)}; expected a folder of write_model_folder"
        raise DataError(Problem(str(folder), None, None, message))
    api = _hub().HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repository, folder_path=str(folder), allow_patterns=[MODEL, CONFIG, CARD]
    )
    return str(commit.oid)


def load_from_hub(repository: str, *, revision: str) -> Path:
    """File of a trained ensemble from the Hub, for `vmr_env.refine`.

    Args:
        repository: `owner/name`.
        revision: hash of a commit, 40 hexadecimal digits: a branch may hold another model tomorrow.

    Raises:
        DataError: the revision is no hash, or what is there is no ensemble.
        MissingExtra: huggingface_hub is not installed.
    """
    if not _REVISION.fullmatch(revision):
        message = f"is {revision!r}; expected the hash of a commit, 40 hexadecimal digits"
        raise DataError(Problem("revision", None, None, message))
    file = Path(_hub().hf_hub_download(repo_id=repository, filename=MODEL, revision=revision))
    ensemble_run(file)
    return file


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtra("the Hub needs huggingface_hub: pip install 'vmr-env[hub]'") from error
    return huggingface_hub
