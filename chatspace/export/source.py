"""The rows of a run as a stream of blocks, in input order, whatever its shards and dtype are.

Memory is bounded by the pages of one shard that are being decoded, and two blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.errors import IncompleteError, InputError
from chatspace.jobs.gather import complaint, read_manifest, split_coverage
from chatspace.plan.model import Plan, SplitPlan
from chatspace.shards.records import ShardRecord
from chatspace.shards.store import DAMAGE_ADVICE, unreadable_shard
from chatspace.shards.table import float_vectors
from chatspace.shards.vectors import SCALE_COLUMN, VECTOR_COLUMN, Encoding, encoding_of

BLOCK_BYTES = 32 * 2**20
MOST_BLOCK_ROWS = 65_536
KEY_COLUMNS = ("id", "split", "row_index", "chunk_index")

Positions = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShard:
    """One whole shard, and how many rows its file has: chunks, where rows were cut into them."""

    split: str
    path: Path
    rows: int


ReadShard = Callable[[SourceShard, Sequence[str], int], Iterator[pa.RecordBatch]]


def read_shard(
    shard: SourceShard, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a shard, a few at a time.

    Raises:
        IncompleteError: the file cannot be read, or holds another number of rows.
    """
    n_read = 0
    try:
        with pq.ParquetFile(shard.path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_rows, columns=list(columns)):
                n_read += batch.num_rows
                yield batch
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable_shard(shard.path, error) from error
    if n_read != shard.rows:
        raise IncompleteError(
            f"Damaged shard: {shard.path}; rows={n_read}, recorded {shard.rows}. {DAMAGE_ADVICE}"
        )


def row_bytes(shard: SourceShard, columns: Sequence[str]) -> int:
    """Returns how many bytes a row of some columns takes in memory, on average, at least 1.

    Raises:
        IncompleteError: the file cannot be read.
    """
    try:
        footer = pq.read_metadata(shard.path)
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable_shard(shard.path, error) from error
    n_bytes = 0
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for chunk in map(group.column, range(footer.num_columns)):
            path = chunk.path_in_schema  # of a list: embedding.list.element
            if any(path == name or path.startswith(f"{name}.") for name in columns):
                n_bytes += chunk.total_uncompressed_size
    return -(-n_bytes // max(1, footer.num_rows)) or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSource:
    """The rows of some splits of a run, one after the other.

    Attributes:
        shards: whole shards, in input order.
        schema: columns of every shard, without the metadata of one file.
        n_missing: shards that are not there; 0 unless a part was asked for.
        read: gives the rows of a shard.
    """

    plan: Plan
    shards: tuple[SourceShard, ...]
    schema: pa.Schema
    n_missing: int = 0
    read: ReadShard = read_shard

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def key_columns(self) -> list[str]:
        """The columns that say which row of the dataset a vector is of."""
        return [name for name in KEY_COLUMNS if name in self.schema.names]

    @property
    def encoding(self) -> Encoding:
        """How the vectors are stored."""
        return encoding_of(self.schema)

    @property
    def float_dtype(self) -> str:
        """The dtype of the vectors once they are floats."""
        return "float32" if self.encoding.is_quantised else self.encoding.dtype

    @property
    def block_rows(self) -> int:
        """Rows of a block: about 32 MiB of float32."""
        return max(1, min(MOST_BLOCK_ROWS, BLOCK_BYTES // (4 * self.encoding.dim)))

    def rows_of_block(self, columns: Sequence[str]) -> int:
        """Returns the rows of a block of some columns: `block_rows`, fewer where texts are long.

        The columns without a vector take about 32 MiB, as far as the first shard can tell.
        """
        others = [name for name in columns if name not in self.encoding.columns]
        if not others or not self.shards:
            return self.block_rows
        return max(1, min(self.block_rows, BLOCK_BYTES // row_bytes(self.shards[0], others)))

    @property
    def splits(self) -> dict[str, int]:
        """Rows by split, in order."""
        found: dict[str, int] = {}
        for shard in self.shards:
            found[shard.split] = found.get(shard.split, 0) + shard.rows
        return found

    def of_split(self, name: str) -> VectorSource:
        """Returns the rows of one of its splits."""
        return VectorSource(
            plan=self.plan,
            shards=tuple(shard for shard in self.shards if shard.split == name),
            schema=self.schema,
            n_missing=self.n_missing,
            read=self.read,
        )

    def tables(self, columns: Sequence[str] | None = None, start: int = 0) -> Iterator[pa.Table]:
        """Yields blocks of `rows_of_block` rows, the last one smaller.

        Args:
            columns: names [all].
            start: the row to begin with.
        """
        names = list(self.schema.names if columns is None else columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        size, held, n_held = self.rows_of_block(names), list[pa.Table](), 0
        for batch in self._batches(names, start, size):
            held.append(pa.Table.from_batches([batch]).cast(schema))
            n_held += batch.num_rows
            while n_held >= size:
                joined = pa.concat_tables(held)
                yield joined.slice(0, size)
                held, n_held = [joined.slice(size)], n_held - size
        if n_held:
            yield pa.concat_tables(held)

    def float_tables(self) -> Iterator[pa.Table]:
        """Yields blocks of all columns, the vectors as floats; see `float_schema`."""
        schema = self.float_schema()
        for table in self.tables():
            columns = {name: table[name] for name in schema.names}
            if self.encoding.is_quantised:
                values = pa.array(float_vectors(table).reshape(-1))
                type_ = schema.field(VECTOR_COLUMN).type
                columns[VECTOR_COLUMN] = pa.FixedSizeListArray.from_arrays(values, type=type_)
            yield pa.table(columns, schema=schema)

    def float_schema(self) -> pa.Schema:
        """Returns the columns of `float_tables`."""
        if not self.encoding.is_quantised:
            return self.schema
        (field,) = Encoding(dtype=self.float_dtype, dim=self.encoding.dim).fields()
        fields = [field if f.name == VECTOR_COLUMN else f for f in self.schema]
        return pa.schema([f for f in fields if f.name != SCALE_COLUMN])

    def vectors(self, start: int = 0) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yields the position of a block's first row and its vectors, (n_rows, dim), floats."""
        for table in self.tables(self.encoding.columns, start):
            yield start, float_vectors(table)
            start += table.num_rows

    def unit_vectors(self, start: int = 0) -> Iterator[tuple[int, FloatArray]]:
        """Yields the same with vectors of length one, float32; a vector of zeros stays so."""
        for first, vectors in self.vectors(start):
            yield first, unit_rows(vectors)

    def rows_at(self, positions: Positions, columns: Sequence[str]) -> pa.Table:
        """Returns some rows in the order of `positions`; only shards that hold them are read.

        Takes memory for these rows, and for the pages of one shard.
        """
        order = np.argsort(positions, kind="stable")
        wanted = positions[order]  # ascending
        schema = pa.schema([self.schema.field(name) for name in columns])
        parts, begin = [schema.empty_table()], 0
        for shard, end in zip(
            self.shards, accumulate(shard.rows for shard in self.shards), strict=True
        ):
            stop = int(np.searchsorted(wanted, end))
            if stop > begin:
                parts.append(self._taken(shard, wanted[begin:stop] - (end - shard.rows), schema))
            begin = stop
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.concat_tables(parts).take(pa.array(back))

    def _taken(self, shard: SourceShard, rows: Positions, schema: pa.Schema) -> pa.Table:
        parts, start = [], 0
        for batch in self.read(shard, schema.names, self.rows_of_block(schema.names)):
            low, high = np.searchsorted(rows, (start, start + batch.num_rows))
            if high > low:
                chosen = batch.take(pa.array(rows[low:high] - start))
                parts.append(pa.Table.from_batches([chosen]).cast(schema))
            start += batch.num_rows
        return pa.concat_tables(parts)

    def _batches(self, names: Sequence[str], start: int, size: int) -> Iterator[pa.RecordBatch]:
        before = 0
        for shard in self.shards:
            skip, before = max(0, start - before), before + shard.rows
            if skip >= shard.rows:
                continue
            for batch in self.read(shard, names, size):
                if skip < batch.num_rows:
                    yield batch.slice(skip)
                skip = max(0, skip - batch.num_rows)


def unit_rows(vectors: npt.NDArray[Any]) -> FloatArray:
    """Returns vectors scaled to length one, float32; a vector of zeros stays zeros."""
    rows = vectors.astype(np.float32)  # (n_rows, dim)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]  # (n_rows, 1)
    np.divide(rows, norms, out=rows, where=norms > 0)
    return rows


def open_source(plan: Plan, split: str | None = None, *, partial: bool = False) -> VectorSource:
    """Returns the rows of a run.

    Args:
        plan: the run.
        split: one of its splits [all].
        partial: take the shards that are whole, if others are missing.

    Raises:
        InputError: no such split, or a part was asked for and no shard is there.
        IncompleteError: shards are missing or wrong; the message has the command that repairs it.
    """
    chosen = plan.splits if split is None else (_split(plan, split),)
    found = [_shards(plan, part, partial=partial) for part in chosen]
    shards = tuple(shard for part in found for shard in part)
    if not any(shard.rows for shard in shards):
        raise InputError(
            f"No rows: {plan.run_id} has no vector in {', '.join(s.name for s in chosen)} yet. "
            "Look at `chatspace status RUN`."
        )
    first = next(shard for shard in shards if shard.rows)
    n_planned = sum(part.n_shards for part in chosen)
    return VectorSource(
        plan=plan,
        shards=tuple(shard for shard in shards if shard.rows),
        schema=shard_schema(first.path),
        n_missing=n_planned - len(shards),
    )


def shard_schema(path: Path) -> pa.Schema:
    """Returns the columns of a shard, with their own metadata and without that of the file.

    Raises:
        IncompleteError: the file cannot be read.
        OutputError: it may not be read.
    """
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable_shard(path, error) from error
    return pa.schema([_own_metadata(field) for field in schema])


def _own_metadata(field: pa.Field) -> pa.Field:
    """Returns a field without the number that Parquet gave it."""
    kept = {
        key: value
        for key, value in (field.metadata or {}).items()
        if not key.startswith(b"PARQUET:")
    }
    return field.with_metadata(kept or None)


def _split(plan: Plan, name: str) -> SplitPlan:
    names = [split.name for split in plan.splits]
    if name not in names:
        raise InputError(
            f"Unknown split: --split {name}; {plan.run_id} has {', '.join(names)}. Name one of "
            "them, or leave it out."
        )
    return plan.split(name)


def _shards(plan: Plan, split: SplitPlan, *, partial: bool) -> list[SourceShard]:
    root = Path(plan.workspace)
    manifest = read_manifest(plan, split)
    if manifest is not None:
        records = [ShardRecord(**shard) for shard in manifest["shards"]]
        if all(_size(root / record.path) == record.bytes for record in records):
            return [_source_shard(root, split, record) for record in records]
    coverage = split_coverage(plan, split, verify=False)
    if coverage.problems or (coverage.missing and not partial):
        more = "" if coverage.problems else ". --partial takes what is there"
        raise IncompleteError(f"{complaint(plan, split, coverage)}{more}.")
    return [_source_shard(root, split, record) for record in coverage.records]


def _source_shard(root: Path, split: SplitPlan, record: ShardRecord) -> SourceShard:
    rows = record.rows if record.chunks is None else record.chunks
    return SourceShard(split=split.name, path=root / record.path, rows=rows)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
