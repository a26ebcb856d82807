"""Verify: reads a shard again and compares it, byte and row, with what was recorded of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.shards.records import ShardRecord, ShardSpan
from chatspace.shards.store import ShardStore, sha256_of
from chatspace.shards.table import embedding_matrix


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
    """
    path = store.path(span)
    if sha256_of(path) != record.sha256:
        return _damaged(f"Checksum differs: {path}; recorded {record.sha256[:12]}")
    if store.read_footer(span) is None:
        return _damaged(f"Damaged shard: {path}; its footer cannot be read")
    try:
        table = pq.read_table(path, columns=["id", "row_index", "embedding"], partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        return _damaged(f"Damaged shard: {path}; {error}")
    ids = table["id"].to_pylist()
    return ShardCheck(
        problems=tuple(f"{path}: {line}" for line in _check_rows(table, span, record)),
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
    line = f"{what}. `chatspace resubmit RUN --verify` does it again."
    return ShardCheck(problems=(line,), id_hashes=np.empty(0, np.int64), is_damaged=True)


def _check_rows(table: pa.Table, span: ShardSpan, record: ShardRecord) -> list[str]:
    problems = []
    if table.num_rows != record.rows:
        problems.append(f"rows={table.num_rows}; recorded {record.rows}.")
    row_index = table["row_index"].to_numpy()  # (rows,)
    inside = row_index.size == 0 or (
        row_index[0] >= span.row_start and row_index[-1] < span.row_stop
    )
    if not inside or np.any(np.diff(row_index) <= 0):
        problems.append(f"row_index is not ascending within [{span.row_start}, {span.row_stop}).")
    matrix = embedding_matrix(table["embedding"])  # (rows, embedding_dim)
    if matrix.shape[1] != record.embedding_dim:
        problems.append(f"embedding_dim={matrix.shape[1]}; recorded {record.embedding_dim}.")
    if not np.isfinite(matrix).all():
        problems.append("vectors hold NaN or infinity.")
    return problems
