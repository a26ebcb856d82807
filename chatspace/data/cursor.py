"""Moving forward through the rows of many Parquet files, holding one batch at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.data.inputs import InputFile
from chatspace.data.parquet import check_column, check_text_column, open_parquet, reading
from chatspace.errors import InputError
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown

# A batch holds about this much text, so that rows of 1 MB do not fill the memory.
_BATCH_BYTES = 32 << 20
_MAX_BATCH_ROWS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive rows of one file: the first is `row` of the split and `file_row` of the file."""

    batch: pa.RecordBatch
    row: int
    file_row: int
    path: str

    def first(self, n_rows: int) -> Chunk:
        """Returns the first `n_rows` rows."""
        batch = self.batch.slice(0, n_rows)
        return Chunk(batch=batch, row=self.row, file_row=self.file_row, path=self.path)

    def after(self, n_rows: int) -> Chunk | None:
        """Returns the rows from `n_rows` on, None where there are none."""
        if n_rows >= self.batch.num_rows:
            return None
        return Chunk(
            batch=self.batch.slice(n_rows),
            row=self.row + n_rows,
            file_row=self.file_row + n_rows,
            path=self.path,
        )


class Cursor:
    """A place in the files of a split, moving forward.

    Attributes:
        row: the row of the split that `take` gives next.
    """

    def __init__(
        self,
        files: Sequence[InputFile],
        row: int,
        dataset: DatasetSection,
        keep_columns: Sequence[str],
    ) -> None:
        self.row = row
        self._rest: Chunk | None = None
        self._chunks = _chunks(files, row, dataset, keep_columns)

    def take(self, n_rows: int) -> Iterator[Chunk]:
        """Yields the next `n_rows` rows.

        Raises:
            InputError: a file is missing, damaged, or not the one that was planned with.
        """
        stop = self.row + n_rows
        while self.row < stop:
            chunk = self._rest or next(self._chunks, None)
            assert chunk is not None, f"the files end at row {self.row}, the span at {stop}"
            n_wanted = min(stop - self.row, chunk.batch.num_rows)
            self._rest = chunk.after(n_wanted)
            self.row += n_wanted
            yield chunk.first(n_wanted)

    def close(self) -> None:
        """Closes the file at hand."""
        self._chunks.close()


def _chunks(
    files: Sequence[InputFile], row: int, dataset: DatasetSection, keep_columns: Sequence[str]
) -> Generator[Chunk]:
    first = 0
    for file in files:
        if first + file.rows > row:
            _check_unchanged(file, dataset)
            with open_parquet(file.path) as parquet:
                columns = _columns(parquet, file.path, dataset, keep_columns)
                for batch, file_row in _batches(parquet, file, max(row - first, 0), columns):
                    yield Chunk(
                        batch=batch, row=first + file_row, file_row=file_row, path=file.path
                    )
        first += file.rows


def _batches(
    parquet: pq.ParquetFile, file: InputFile, start: int, columns: list[str]
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yields the file's batches from row `start` on, each with its first row."""
    row = 0
    for group, n_rows in enumerate(file.row_groups):
        if row + n_rows <= start:
            row += n_rows
            continue
        batches = parquet.iter_batches(
            _batch_rows(file, group), row_groups=[group], columns=columns, use_threads=False
        )
        while True:
            with reading(file.path):
                batch = next(batches, None)
            if batch is None:
                break
            skipped = min(max(start - row, 0), batch.num_rows)
            if skipped < batch.num_rows:
                yield batch.slice(skipped), row + skipped
            row += batch.num_rows


def _batch_rows(file: InputFile, group: int) -> int:
    row_bytes = file.text_bytes[group] / max(file.row_groups[group], 1)
    return max(1, min(_MAX_BATCH_ROWS, int(_BATCH_BYTES / max(row_bytes, 1))))


def _columns(
    parquet: pq.ParquetFile, path: str, dataset: DatasetSection, keep_columns: Sequence[str]
) -> list[str]:
    """Returns the columns to read, after checking that they are there."""
    schema = parquet.schema_arrow
    type_ = check_column(schema, dataset.text_field, path, "dataset.text_field")
    check_text_column(type_, dataset.text_field, path, dataset.extract_first_assistant)
    names = [dataset.text_field]
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
    planned = _moment(file.mtime_ns)
    if stat.st_size == file.bytes:
        what = f"changed on {_moment(stat.st_mtime_ns)}, planned as of {planned}, the same size"
    else:
        what = f"{stat.st_size:,} bytes, planned with {file.bytes:,} as of {planned}"
    if dataset.source == "parquet":
        # The time is part of what the plan is hashed from.
        advice = (
            "Restore the file with its time (cp -p, rsync -t, touch -d) to go on with this run; "
            "setup again gives a new run"
        )
    else:
        advice = "Run setup again; it gives this run again where the data's source is unchanged"
    raise InputError(f"Input changed: {shown(Path(file.path))}; {what}. {advice}.")


def _moment(ns: int) -> str:
    """Returns a file's time to the nanosecond, as `touch -d` takes it."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
