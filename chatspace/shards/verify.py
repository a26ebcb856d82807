"""Verify: reads a shard again and compares it, byte and row, with what was recorded of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.shards.chunks import CHUNK_COLUMN, count_rows, follow_each_other
from chatspace.shards.records import ShardRecord, ShardSpan
from chatspace.shards.store import Ints, ShardStore, refuse_forbidden, sha256_of
from chatspace.shards.table import embedding_matrix
from chatspace.shards.vectors import SCALE_COLUMN, VECTOR_COLUMN, encoding_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCheck:
    """What one shard showed when it was read again.

    Attributes:
        problems: a line for each thing that is wrong.
        id_hashes: 64-bit hashes of the ids, shape (rows,); comparable within this process only.
        is_damaged: whether the file is not the one that was written.
    """

    problems: tuple[str, ...]
    id_hashes: npt.NDArray[np.int64]
    is_damaged: bool = False


def check_shard(store: ShardStore, span: ShardSpan, record: ShardRecord) -> ShardCheck:
    """Reads one shard again.

    Checked: sha256, owner and row range in the footer, row count, row indexes inside the range and
    ascending, vector length, vectors finite. The ids of all shards are compared by `repeated_ids`.

    Raises:
        OutputError: the file may not be read, or belongs to another plan.
    """
    path = store.path(span)
    refuse_forbidden(path)
    try:
        if sha256_of(path) != record.sha256:
            return _damaged(f"Checksum differs: {path}; recorded {record.sha256[:12]}")
        if store.read_footer(span) is None:
            return _damaged(f"Damaged shard: {path}; its footer cannot be read")
        schema = pq.read_schema(path)
        columns = ["id", "row_index", *encoding_of(schema).columns]
        columns += [name for name in schema.names if name == CHUNK_COLUMN]
        table = pq.read_table(path, columns=columns, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        return _damaged(f"Damaged shard: {path}; {reason}")
    ids = table["id"].to_pylist()
    problems = _check_rows(table, store.row_numbers(span), record)
    return ShardCheck(
        problems=tuple(f"{path}: {line}" for line in problems),
        id_hashes=np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids)),
    )


def repeated_ids(checks: Sequence[ShardCheck]) -> list[str]:
    """Returns a line if an id stands in more than one row of the split.

    Takes 8 bytes a row. Two different ids with one 64-bit hash would be reported too; among 100
    million rows that happens with a probability of 0.0003.
    """
    hashes = np.concatenate([np.empty(0, np.int64), *(check.id_hashes for check in checks)])
    n_repeated = len(hashes) - len(np.unique(hashes))
    return [f"ids repeat in {n_repeated} rows of the split."] if n_repeated else []


def _damaged(what: str) -> ShardCheck:
    return ShardCheck(problems=(f"{what}.",), id_hashes=np.empty(0, np.int64), is_damaged=True)


def _check_rows(table: pa.Table, numbers: Ints, record: ShardRecord) -> list[str]:
    problems = []
    n_rows, n_chunks = count_rows(table)
    if n_rows != record.rows:
        problems.append(f"rows={n_rows}; recorded {record.rows}.")
    if n_chunks != record.chunks:
        problems.append(f"chunks={n_chunks}; recorded {record.chunks}.")
    row_index = table["row_index"].to_numpy()  # (rows,), or one for each chunk
    chunk_index = table[CHUNK_COLUMN].to_numpy() if n_chunks is not None else 0 * row_index
    inside = np.isin(row_index, numbers).all()
    if not inside or not follow_each_other(row_index, chunk_index):
        ends = f"{numbers[0]} to {numbers[-1]}"
        problems.append(f"row_index is not ascending within the shard's rows {ends}.")
    dim = encoding_of(table.schema).dim
    if dim != record.embedding_dim:
        problems.append(f"embedding_dim={dim}; recorded {record.embedding_dim}.")
    names = (VECTOR_COLUMN, SCALE_COLUMN)
    floats = [table[name] for name in names if name in table.column_names]
    if not all(_is_finite(column) for column in floats):
        problems.append("vectors hold NaN or infinity.")
    return problems


def _is_finite(column: pa.ChunkedArray) -> bool:
    is_list = pa.types.is_fixed_size_list(column.type)
    values = embedding_matrix(column) if is_list else column.to_numpy()
    return bool(np.isfinite(values).all())
