"""JSON objects on disk: manifests, and the state of runs, which carries a digest of itself."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from vmr_env.errors import DataError, Problem, shorten
from vmr_env.files.text import read_lines, write_text
from vmr_env.files.writing import write_bytes

_DIGEST = "sha256"
_SEAL = b"vmr-env state, sha256 "
_SEAL_BYTES = len(_SEAL) + 64 + 1


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DataError: the file cannot be read, or holds anything else, a key twice, or NaN.
    """
    text = "\n".join(read_lines(path))
    try:
        content = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_different_keys)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise _broken(path, f"holds {shorten(content)}, expected a JSON object")
    return content


def write_state(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with the sha256 of its text as its last key.

    Raises:
        DataError: it cannot be written, or holds a number that is not finite.
    """
    try:
        digest = _digest_of(content)
        text = json.dumps({**content, _DIGEST: digest}, indent=1, allow_nan=False)
    except ValueError as error:
        raise _broken(path, f"cannot be written ({error}); expected finite numbers") from error
    write_text(path, text + "\n")


def read_state(path: Path, remedy: str) -> dict[str, Any]:
    """The object that `write_state` wrote.

    Args:
        path: the file.
        remedy: what to do about a damaged file, for the error.

    Raises:
        DataError: the file is missing, damaged, or was changed since.
    """
    try:
        content = read_object(path)
    except DataError as error:
        raise error.advised(remedy) from error
    digest = content.pop(_DIGEST, None)
    if digest != _digest_of(content):
        raise _changed(path, remedy)
    return content


def write_sealed(path: Path, content: bytes) -> None:
    """Write bytes behind a line with their sha256; errors as of `vmr_env.files.writing.new_file`."""
    write_bytes(path, _SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def read_sealed(path: Path, remedy: str) -> bytes:
    """The bytes that `write_sealed` wrote; arguments and errors as of `read_state`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise _broken(path, f"cannot be read ({error.strerror}); {remedy}") from error
    seal, content = raw[:_SEAL_BYTES], raw[_SEAL_BYTES:]
    if seal != _SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n":
        raise _changed(path, remedy)
    return content


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, allow_nan=False).encode()).hexdigest()


def _different_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {shorten(next(key for key in keys if keys.count(key) > 1))} appears twice")
    return content


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _changed(path: Path, remedy: str) -> DataError:
    return _broken(path, f"does not have the sha256 that it was written with, so it is damaged; {remedy}")


def _broken(path: Path, message: str) -> DataError:
    return DataError(Problem(str(path), None, None, message))
