"""Moving forward through the rows of many Parquet files, holding one batch at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.data.inputs import InputFile, file_time
from chatspace.data.parquet import check_column, open_parquet, reading
from chatspace.data.selection import Selection
from chatspace.data.texts import needed_leaves
from chatspace.errors import InputError
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown

Ints = npt.NDArray[np.int64]

# A batch holds about this much text, so that rows of 1 MB do not fill the memory.
_BATCH_BYTES = 32 << 20
_MAX_BATCH_ROWS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows of one file, ascending.

    Attributes:
        rows: their numbers in the split, (n_rows,).
        file_start: number in the split of the file's first row.
    """

    batch: pa.RecordBatch
    rows: Ints
    file_start: int
    path: str

    def first(self, n_rows: int) -> Chunk:
        """Returns the first `n_rows` rows."""
        return self._part(slice(0, n_rows))

    def after(self, n_rows: int) -> Chunk | None:
        """Returns the rows from `n_rows` on, None where there are none."""
        return None if n_rows >= len(self.rows) else self._part(slice(n_rows, None))

    def place(self, offset: int) -> str:
        """Returns where a row of the chunk stands, as errors name it."""
        return f"row {self.rows[offset] - self.file_start} of {shown(Path(self.path))}"

    def _part(self, part: slice) -> Chunk:
        return Chunk(
            batch=self.batch[part],
            rows=self.rows[part],
            file_start=self.file_start,
            path=self.path,
        )


class Cursor:
    """A place in the selected rows of a split, moving forward.

    Attributes:
        position: of the row that `take` gives next, counted in the selection.
    """

    def __init__(
        self,
        files: Sequence[InputFile],
        selection: Selection,
        position: int,
        dataset: DatasetSection,
        keep_columns: Sequence[str],
    ) -> None:
        self.position = position
        self._rest: Chunk | None = None
        self._chunks = _chunks(files, (selection, position), dataset, keep_columns)

    def take(self, n_rows: int) -> Iterator[Chunk]:
        """Yields the next `n_rows` rows.

        Raises:
            InputError: a file is missing, damaged, or not the one that was planned with.
        """
        stop = self.position + n_rows
        while self.position < stop:
            chunk = self._rest or next(self._chunks, None)
            assert chunk is not None, f"the rows end at {self.position}, the span at {stop}"
            n_wanted = min(stop - self.position, len(chunk.rows))
            self._rest = chunk.after(n_wanted)
            self.position += n_wanted
            yield chunk.first(n_wanted)

    def close(self) -> None:
        """Closes the file at hand."""
        self._chunks.close()


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group with rows to read; its first row is `start` of the file."""

    index: int
    start: int
    wanted: Ints  # numbers in the file, ascending


def _chunks(
    files: Sequence[InputFile],
    begin: tuple[Selection, int],
    dataset: DatasetSection,
    keep_columns: Sequence[str],
) -> Generator[Chunk]:
    selection, position = begin
    row = selection.row_at(position)
    file_start = 0
    for file in files:
        groups = _wanted_groups(file, file_start, selection, row)
        group = next(groups, None)
        if group is not None:
            _check_unchanged(file, dataset)
            with open_parquet(file.path) as parquet:
                columns = _columns(parquet, file.path, dataset, keep_columns)
                while group is not None:
                    for batch, rows in _batches(parquet, file, group, columns):
                        yield Chunk(
                            batch=batch,
                            rows=rows + file_start,
                            file_start=file_start,
                            path=file.path,
                        )
                    group = next(groups, None)
        file_start += file.rows


def _wanted_groups(
    file: InputFile, file_start: int, selection: Selection, row: int
) -> Iterator[_Group]:
    """Yields the row groups that hold selected rows, from row `row` of the split on."""
    if file_start + file.rows <= row:
        return
    start = file_start
    for index, n_rows in enumerate(file.row_groups):
        wanted = selection.between(max(start, row), start + n_rows)
        if len(wanted):
            yield _Group(index, start - file_start, wanted - file_start)
        start += n_rows


def _batches(
    parquet: pq.ParquetFile, file: InputFile, group: _Group, columns: list[str]
) -> Iterator[tuple[pa.RecordBatch, Ints]]:
    """Yields the wanted rows of a row group, each batch with their numbers in the file."""
    batches = parquet.iter_batches(
        _batch_rows(file, group.index),
        row_groups=[group.index],
        columns=columns,
        use_threads=False,
    )
    start = group.start
    last = int(group.wanted[-1])
    while start <= last:
        with reading(file.path):
            batch = next(batches, None)
        if batch is None:
            return
        stop = start + batch.num_rows
        wanted = group.wanted[np.searchsorted(group.wanted, start) :]
        wanted = wanted[: np.searchsorted(wanted, stop)]
        if len(wanted):
            yield _picked(batch, wanted - start), wanted
        start = stop


def _picked(batch: pa.RecordBatch, offsets: Ints) -> pa.RecordBatch:
    """Returns some rows of a batch, ascending; consecutive ones are not copied."""
    first, n_rows = int(offsets[0]), len(offsets)
    if int(offsets[-1]) - first + 1 == n_rows:
        return batch.slice(first, n_rows)
    return batch.take(pa.array(offsets))


def _batch_rows(file: InputFile, group: int) -> int:
    row_bytes = file.text_bytes[group] / max(file.row_groups[group], 1)
    return max(1, min(_MAX_BATCH_ROWS, int(_BATCH_BYTES / max(row_bytes, 1))))


def _columns(
    parquet: pq.ParquetFile, path: str, dataset: DatasetSection, keep_columns: Sequence[str]
) -> list[str]:
    """Returns the columns to read, after checking that they are there."""
    schema = parquet.schema_arrow
    leaves = needed_leaves(dataset, schema, path)
    names = [parquet.metadata.schema.column(leaf).path for leaf in leaves]
    if dataset.id_field is not None:
        check_column(schema, dataset.id_field, path, "dataset.id_field")
        names.append(dataset.id_field)
    for name in keep_columns:
        check_column(schema, name, path, "output.keep_columns")
        names.append(name)
    return list(dict.fromkeys(names))


def _check_unchanged(file: InputFile, dataset: DatasetSection) -> None:
    with reading(file.path):
        stat = Path(file.path).stat()
    if (stat.st_size, stat.st_mtime_ns) == (file.bytes, file.mtime_ns):
        return
    planned = file_time(file.mtime_ns)
    if stat.st_size == file.bytes:
        what = f"changed on {file_time(stat.st_mtime_ns)}, planned as of {planned}, the same size"
    else:
        what = f"{stat.st_size:,} bytes, planned with {file.bytes:,} as of {planned}"
    if dataset.source == "parquet" and not dataset.is_remote:
        # The time is part of what the plan is hashed from.
        advice = (
            "Restore the file with its time (cp -p, rsync -t, touch -d) to go on with this run; "
            "setup again gives a new run"
        )
    else:
        advice = "Run setup again; it gives this run again where the data's source is unchanged"
    raise InputError(f"Input changed: {shown(Path(file.path))}; {what}. {advice}.")
