"""Work on a Ray cluster; needs the extra `[distributed]`.

`spread` calls a function on many items by a pool of Ray Data's actors. What the function refers to by folders
(`vmr_env.backbones.shipping`) reaches each node once; results come back as values.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch

from vmr_env.backbones.desk import Desk
from vmr_env.backbones.shipping import Packed, pack, unpack
from vmr_env.errors import DataError, Problem
from vmr_env.files.folders import Files

Work = Callable[[Any], bytes]
"""Of an item; pickles."""


@dataclass(frozen=True)
class Cluster:
    """Where work goes, and what each worker may use."""

    address: str
    """Of a running cluster, "auto" for that of this machine, or "local" for one on this machine
    alone."""
    cpus: float = 1
    gpus: float = 0


@contextmanager
def connected(address: str) -> Iterator[None]:
    """The cluster of this process, if it has one already; else that of the address, left at the end."""
    if ray.is_initialized():
        yield
        return
    ray.init(address, log_to_driver=False, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


def received(packed: Packed, desk: Any) -> Any:
    """What was packed, its folders found on this node or fetched from a desk."""

    def fetch(digest: str) -> Files:
        return ((name, ray.get(content)) for name, content in ray.get(desk.files.remote(digest)))

    return unpack(packed, fetch)


def spread(work: Work, items: Sequence[Any], cluster: Cluster) -> Iterator[tuple[int, bytes]]:
    """Do work on a cluster, some workers at once.

    Args:
        work: what to do with an item.
        items: each is one block of work.
        cluster: where.

    Yields:
        position of an item and what came of it, as soon as it is there, in any order.

    Raises:
        DataError: the work said so.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    with connected(cluster.address):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        packed = pack(work)
        desk = open_desk(packed.folders)
        rows = ray.data.from_items([{"index": index} for index in range(len(items))])
        done = rows.map_batches(
            _Worker,
            batch_size=1,
            fn_constructor_args=(packed, desk, list(items)),
            compute=ray.data.ActorPoolStrategy(size=max(1, min(len(items), workers(cluster)))),
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus or None,
        )
        for row in done.iter_rows():
            if row["error"]:
                raise DataError(Problem("--cluster", None, None, f"a worker failed: {row['error']}"))
            yield row["index"], row["content"]


def workers(cluster: Cluster) -> int:
    """How many the cluster of this process has room for, at least one."""
    resources: Any = ray.cluster_resources
    total = resources()
    places = total.get("GPU", 0) / cluster.gpus if cluster.gpus else total["CPU"] / cluster.cpus
    return max(1, int(places))


def open_desk(folders: dict[str, str]) -> Any:
    """A `Desk` on the node of this process, which uses no processor of the cluster's."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    made: Any = ray.remote(Desk)
    return made.options(num_cpus=0, max_concurrency=4, scheduling_strategy=here).remote(folders)


class _Worker:
    """An actor that works on items one at a time."""

    def __init__(self, packed: Packed, desk: Any, items: list[Any]) -> None:
        torch.set_num_threads(1)
        self._work, self._items = received(packed, desk), items

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (index,) = batch["index"].tolist()
        content, error = b"", ""
        try:
            content = self._work(self._items[index])
        except DataError as wrong:  # Ray would wrap it in others
            error = str(wrong)
        return {"index": [index], "content": [content], "error": [error]}
