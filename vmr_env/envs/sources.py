"""Which cache an environment opens: the one named, one in the data folder, or the simulated default."""

import os
import warnings
from pathlib import Path

from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.profiles import get_profile
from vmr_env.errors import DataError, Problem, shorten

DATA_VARIABLE = "VMR_ENV_DATA"
"""Environment variable: a folder with caches at `<data set>/<split>`."""

_TOLD = "VMR_ENV_TOLD"
"""Environment variable: the warnings that this process or one before it has given, line by line."""

_SHIPPED = Path(__file__).parents[1] / "assets"


def open_cache(path: str | os.PathLike[str]) -> DecoderStateCache:
    """Open the decoder-state cache in a folder; it is mapped into memory, and opened once per process.

    Raises:
        DataError: the folder is no cache, or a file of it is torn.
    """
    return DecoderStateCache.open(path)


def open_source(
    dataset: str, split: str | None, source: str | os.PathLike[str] | None = None
) -> DecoderStateCache:
    """The cache for a data set and split.

    Args:
        dataset: name of a profile.
        split: name of a split; None is that of the source, and "train" where no source is given.
        source: folder of a cache. None looks for `<data set>/<split>` in the folder that the environment
            variable `VMR_ENV_DATA` names; where that is not set, simulated data are used, with a warning: for
            Charades the decoder states of a small GIRL-DETR on simulated videos, which ship with the package
            (`vmr_env.backbones.simulated.embedded` makes them), otherwise the detector simulator's, without
            decoder states.

    Raises:
        DataError: the folder, given or in `VMR_ENV_DATA`, is no cache of this data set and split.
        ValueError: the data set is unknown.
    """
    profile = get_profile(dataset)
    folder = os.environ.get(DATA_VARIABLE)
    chosen = "train" if split is None else split
    if source is not None:
        cache = DecoderStateCache.open(source)
    elif folder:
        cache = _in_data_folder(Path(folder), profile.name, chosen)
    else:
        cache = DecoderStateCache.open(simulated_source(dataset, chosen))
        _tell_once(
            f"no cache given for {profile.env_name} {chosen}: using simulated data ({cache.path.name}). "
            f"Pass source=<cache folder> or set {DATA_VARIABLE} to use real ones."
        )
    if cache.manifest["dataset"] != profile.name:
        found = cache.manifest["dataset"]
        message = f"is a cache of {found}, expected {profile.name}; ask for {found}, or pass another cache"
        raise DataError(Problem(str(cache.path), None, "dataset", message))
    check_split(cache, split)
    cache.require_ground_truth()
    return cache


def _in_data_folder(folder: Path, dataset: str, split: str) -> DecoderStateCache:
    """The cache of a split in the folder that `VMR_ENV_DATA` names.

    Raises:
        DataError: it has none, or one that is torn.
    """
    path = folder / dataset / split
    if not path.is_dir():
        others = sorted(one.name for one in (folder / dataset).glob("*") if one.is_dir())
        there = f", where there is {', '.join(others)}" if others else ""
        message = f"is {shorten(str(folder))}, expected a folder with a cache at {dataset}/{split}{there}"
        raise DataError(Problem(DATA_VARIABLE, None, None, f"{message}; unset it to use simulated data"))
    return DecoderStateCache.open(path)


def _tell_once(message: str) -> None:
    """Warn, but not again in this process nor in those that it starts, which inherit its variables."""
    told = os.environ.get(_TOLD, "")
    if message not in told.split("\n"):
        os.environ[_TOLD] = f"{told}\n{message}"
        warnings.warn(message, stacklevel=5)


def check_split(cache: DecoderStateCache, split: str | None) -> None:
    """Refuse a cache of another split than asked for; None asks for none.

    Raises:
        DataError: naming the split that the cache is of.
    """
    if split is not None and cache.manifest["split"] != split:
        message = f"is a cache of {cache.manifest['split']!r}, expected {split!r}"
        raise DataError(Problem(str(cache.path), None, "split", message))


def simulated_source(dataset: str, split: str) -> Path:
    """The simulated cache of a data set: shipped with the package, else simulated on first use."""
    shipped = _SHIPPED / f"{dataset}-simulated" / split
    if shipped.is_dir():
        return shipped
    from vmr_env.simulation.simulator import simulated_cache

    return simulated_cache(get_profile(dataset), split)
