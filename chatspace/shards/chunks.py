"""The columns of a shard whose rows are chunks of long texts; other shards have none of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]

CHUNK_COLUMN = "chunk_index"
START_COLUMN = "char_start"
STOP_COLUMN = "char_stop"
DOCUMENT_COLUMN = "document_vector"


def with_chunks(
    table: pa.Table,
    *,
    chunk_index: Ints,
    char_start: Ints,
    char_stop: Ints,
    documents: npt.NDArray[np.float32] | None = None,
) -> pa.Table:
    """Returns a table of chunks with the columns that say which part of its row each is.

    Args:
        table: as `embedding_table` makes it of the chunks, those of a row one after another.
        chunk_index: counted from 0 in each row, (n_chunks,).
        char_start: first character in the row's text, (n_chunks,).
        char_stop: the one after the last, (n_chunks,).
        documents: a vector of each row, (n_rows, dim); it stands with the row's first chunk, the
            others have null.
    """
    columns = {
        CHUNK_COLUMN: pa.array(chunk_index, pa.int32()),
        START_COLUMN: pa.array(char_start, pa.int64()),
        STOP_COLUMN: pa.array(char_stop, pa.int64()),
    }
    place = table.schema.get_field_index("row_index")
    for offset, (name, values) in enumerate(columns.items(), start=1):
        field = pa.field(name, values.type, nullable=False)
        table = table.add_column(place + offset, field, values)
    if documents is None:
        return table
    column = _with_first(documents, chunk_index)
    place = table.schema.get_field_index("model")
    return table.add_column(place, pa.field(DOCUMENT_COLUMN, column.type), column)


def count_rows(table: pa.Table) -> tuple[int, int | None]:
    """Returns the input rows that a shard's table holds, and its chunks; None if it has none."""
    if CHUNK_COLUMN not in table.column_names:
        return table.num_rows, None
    return int(pc.sum(pc.equal(table[CHUNK_COLUMN], 0)).as_py() or 0), table.num_rows


def follow_each_other(row_index: Ints, chunk_index: Ints) -> bool:
    """Returns whether the rows ascend, and in each of them the chunks 0, 1, 2, ...

    Args:
        row_index: number of each chunk's row, (n_chunks,).
        chunk_index: its number in the row, (n_chunks,).
    """
    step = np.diff(row_index, prepend=-1)  # (n_chunks,)
    expected = np.where(step > 0, 0, np.concatenate(([0], chunk_index[:-1] + 1))[: len(step)])
    return bool((step >= 0).all() and (chunk_index == expected).all())


def _with_first(documents: npt.NDArray[np.float32], chunk_index: Ints) -> pa.FixedSizeListArray:
    """Returns a vector for each first chunk and null for the others, (n_chunks,)."""
    n_rows, dim = documents.shape
    is_first = chunk_index == 0
    assert int(is_first.sum()) == n_rows, "a vector for each row"
    values = np.zeros((len(chunk_index), dim), np.float32)
    values[is_first] = documents
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), dim, mask=pa.array(~is_first)
    )
