"""The table of a cache, `samples.parquet`: names, texts and exact times of the samples, read by row group."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmr_env.caches.batch import CacheBatch
from vmr_env.caches.format import Ragged, broken

ROWS_PER_GROUP = 4096
_GROUPS_KEPT = 32  # in memory, about a megabyte each


class Sample(NamedTuple):
    """One row of the table.

    Attributes:
        qid: query id, in the type in which it was read.
        vid: video name.
        query: the sentence.
        duration: seconds.
        moments: float64 (M, 2), ground truth in seconds.
        n_clips: clips of the video.
    """

    qid: int | str
    vid: str
    query: str
    duration: float
    moments: NDArray[np.float64]
    n_clips: int


def _schema() -> Any:
    import pyarrow as pa

    # A column has one type, so a qid is kept as text beside what it was.
    types = {
        "qid": pa.string(),
        "qid_is_int": pa.bool_(),
        "vid": pa.string(),
        "query": pa.string(),
        "duration": pa.float64(),
        "moments": pa.list_(pa.list_(pa.float64())),
        "n_clips": pa.int32(),
    }
    return pa.schema(list(types.items()))


class TableWriter:
    """Writes the table batch by batch in row groups of `ROWS_PER_GROUP` rows."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(path, _schema())
        self._waiting: list[Any] = []

    def append(self, batch: CacheBatch) -> None:
        """Add the rows of a checked batch."""
        import pyarrow as pa

        moments = batch.moments
        pairs = pa.ListArray.from_arrays(
            np.arange(0, 2 * len(moments.values) + 1, 2, dtype=np.int32), moments.values.ravel()
        )
        columns = {
            "qid": [str(qid) for qid in batch.qids],
            "qid_is_int": [isinstance(qid, int) for qid in batch.qids],
            "vid": list(batch.vids),
            "query": list(batch.queries),
            "duration": batch.durations,
            "moments": pa.ListArray.from_arrays(moments.offsets.astype(np.int32), pairs),
            "n_clips": batch.n_clips,
        }
        self._waiting.append(pa.table(columns, schema=_schema()))
        if sum(map(len, self._waiting)) >= ROWS_PER_GROUP:
            self._flush(whole_groups=True)

    def _flush(self, *, whole_groups: bool) -> None:
        import pyarrow as pa

        rows = pa.concat_tables(self._waiting)
        stop = len(rows) // ROWS_PER_GROUP * ROWS_PER_GROUP if whole_groups else len(rows)
        self._writer.write_table(rows.slice(0, stop), row_group_size=ROWS_PER_GROUP)
        self._waiting = [rows.slice(stop)]

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        if self._waiting:
            self._flush(whole_groups=False)
        self._writer.close()

    def drop(self) -> None:
        """Let go of the file without the rows that wait."""
        self._writer.close()


class SampleTable:
    """Lazy reader of a cache's table: nothing is read before the first row or column is asked for."""

    def __init__(self, path: Path, raw: NDArray[np.uint8], samples: int) -> None:
        """A table of so many samples, in the mapped bytes of the file at `path`."""
        self._path, self._raw, self._samples = path, raw, samples
        self._opened: tuple[Any, list[int]] | None = None
        self._groups: dict[int, _Group] = {}

    def sample(self, index: int) -> Sample:
        """Row `index`; only its row group is read, and kept for later calls."""
        _, starts = self._open()
        number = bisect_right(starts, index) - 1
        if number not in self._groups:
            if len(self._groups) == _GROUPS_KEPT:
                del self._groups[next(iter(self._groups))]  # the oldest
            self._groups[number] = self._read_group(number)
        return self._groups[number].sample(index - starts[number])

    def _read_group(self, number: int) -> "_Group":
        file, _ = self._open()
        with self._errors():
            table = file.read_row_group(number, use_threads=False)
            lists = {name: table.column(name).to_pylist() for name in table.column_names if name != "moments"}
            lists["qid"] = list(map(_qid, lists["qid"], lists.pop("qid_is_int")))
            return _Group(lists, _moments(table.column("moments")))

    def column(self, name: str) -> list[Any]:
        """A whole column."""
        file, _ = self._open()
        with self._errors():
            values: list[Any] = file.read(columns=[name], use_threads=False).column(0).to_pylist()
        return values

    def qids(self) -> list[int | str]:
        """All query ids, in the types in which they were read."""
        texts, are_ints = self.column("qid"), self.column("qid_is_int")
        with self._errors():
            return list(map(_qid, texts, are_ints))

    def moments(self) -> Ragged:
        """Ground truth of all samples in seconds: ragged float64 (T, 2)."""
        file, _ = self._open()
        with self._errors():
            return _moments(file.read(columns=["moments"], use_threads=False).column(0))

    def _open(self) -> tuple[Any, list[int]]:
        """The parquet file and the first row of each of its row groups; checked once."""
        if self._opened is None:
            import pyarrow as pa
            import pyarrow.parquet as pq

            with self._errors():
                # Mapped, so that processes forked from this one share no file position.
                file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(self._raw)))
            found = file.schema_arrow
            if not found.equals(_schema()):
                shown = ", ".join(f"{field.name}: {field.type}" for field in found)
                wanted = ", ".join(f"{field.name}: {field.type}" for field in _schema())
                raise broken(self._path, f"has columns {shown}; expected {wanted}")
            if file.metadata.num_rows != self._samples:
                raise broken(self._path, f"has {file.metadata.num_rows} rows, expected {self._samples}")
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._opened = file, [0, *accumulate(sizes[:-1])]
        return self._opened

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever a damaged file makes the parquet reader raise becomes one error with its name."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
            raise broken(self._path, f"is no readable table of samples ({error})") from error


class _Group:
    """A row group in memory."""

    def __init__(self, columns: dict[str, list[Any]], moments: Ragged) -> None:
        self._columns, self._moments = columns, moments

    def sample(self, row: int) -> Sample:
        """One of its rows."""
        values = {name: column[row] for name, column in self._columns.items()}
        return Sample(moments=self._moments[row], **values)


def _moments(column: Any) -> Ragged:
    """A column of moments: ragged float64 (T, 2)."""
    moments = column.combine_chunks()
    pairs = moments.flatten()
    values = _numbers(pairs.flatten(), np.float64).reshape(len(pairs), 2)
    offsets = _numbers(moments.offsets, np.int32).astype(np.int64)
    return Ragged(values, offsets - offsets[0])


def _numbers(array: Any, dtype: type[np.generic]) -> NDArray[Any]:
    """An Arrow array of numbers of this type as NumPy's.

    Where no value is missing they share memory; Arrow's own way loads pandas, which takes half a second.
    """
    if array.null_count:
        missing: NDArray[Any] = array.to_numpy(zero_copy_only=False)
        return missing
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * np.dtype(dtype).itemsize)


def _qid(text: str, is_int: bool) -> int | str:
    return int(text) if is_int else text


def first_repeated(qids: Sequence[int | str], seen: Set[str] = frozenset()) -> int | None:
    """Index of the first qid whose text occurs earlier or in `seen`; None if all are new."""
    texts: set[str] = set()
    for index, text in enumerate(map(str, qids)):
        if text in seen or text in texts:
            return index
        texts.add(text)
    return None
