"""The rows of a shard as an Arrow table, and its vectors as an array again; no Python lists."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Vectors = npt.NDArray[np.float32] | npt.NDArray[np.float16]


class EmbeddedRows(Protocol):
    """The input rows of a shard that have a vector, in input order."""

    @property
    def row_index(self) -> npt.NDArray[np.int64]:
        """Positions in the split, (n_rows,)."""
        ...

    @property
    def ids(self) -> pa.Array:
        """Unique ids, strings."""
        ...

    @property
    def texts(self) -> list[str]:
        """What was embedded."""
        ...

    @property
    def metadata(self) -> pa.Array:
        """One JSON object each, strings."""
        ...


def embedding_schema(dim: int, dtype: str) -> pa.Schema:
    """Returns the columns of a shard of vectors.

    What is the same in every row is a plain string all the same: it reads as one in pandas, DuckDB
    and datasets, and Parquet's own dictionary encoding stores it once.

    Args:
        dim: length of the vectors.
        dtype: `float32` or `float16`.
    """
    item = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("dataset", pa.string(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("row_index", pa.int64(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("metadata", pa.string()),
            pa.field("embedding", pa.list_(item, dim), nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    )


def embedding_table(
    *,
    rows: EmbeddedRows,
    vectors: Vectors,
    source: str,
    dataset: str,
    split: str,
    model: str,
    created_at: str,
    run_id: str,
    keep_text: bool,
) -> pa.Table:
    """Returns the table of one shard; the vectors are not copied if they are C-contiguous.

    Args:
        rows: the rows, in input order.
        vectors: their vectors in the same order, (n_rows, dim), float32 or float16.
        source: where the dataset comes from, as its spec says.
        dataset: label of the dataset.
        split: name of the split.
        model: name of the model.
        created_at: ISO 8601; without a zone it is taken as UTC.
        run_id: the run that made the vectors.
        keep_text: store the text; without it the column is null.
    """
    n_rows, dim = vectors.shape
    assert n_rows == len(rows.row_index) == len(rows.ids) == len(rows.texts), (
        "a vector for each row"
    )
    schema = embedding_schema(dim, vectors.dtype.name)
    columns: dict[str, Any] = {
        "id": rows.ids,
        "source": pa.repeat(source, n_rows),
        "dataset": pa.repeat(dataset, n_rows),
        "split": pa.repeat(split, n_rows),
        "row_index": pa.array(rows.row_index, pa.int64()),
        "text": pa.array(rows.texts, pa.string()) if keep_text else pa.nulls(n_rows, pa.string()),
        "metadata": rows.metadata,
        "embedding": _vector_array(vectors, schema.field("embedding").type),
        "model": pa.repeat(model, n_rows),
        "created_at": pa.repeat(_timestamp(created_at), n_rows),
        "run_id": pa.repeat(run_id, n_rows),
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def embedding_matrix(column: pa.Array | pa.ChunkedArray) -> Vectors:
    """Returns a column of vectors as one array, (n_rows, dim); a column in one piece is not copied.

    Raises:
        ValueError: the column holds something else than vectors of one length, or a null.
    """
    if not pa.types.is_fixed_size_list(column.type):
        raise ValueError(f"Not a column of vectors: type={column.type}; fixed_size_list is needed.")
    if column.null_count:
        raise ValueError(
            f"A column of vectors has nulls: null_count={column.null_count}; none may be."
        )
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_chunk_matrix(chunk) for chunk in chunks if len(chunk)]
    if len(parts) == 1:
        return parts[0]
    if not parts:
        dtype = column.type.value_type.to_pandas_dtype()
        parts = [np.empty((0, column.type.list_size), dtype)]
    joined: Any = np.concatenate(parts)
    return joined  # type: ignore[no-any-return]


def _vector_array(vectors: Vectors, type_: pa.FixedSizeListType) -> pa.FixedSizeListArray:
    values = pa.array(np.ascontiguousarray(vectors).reshape(-1), type_.value_type)
    return pa.FixedSizeListArray.from_arrays(values, type=type_)


def _chunk_matrix(chunk: pa.FixedSizeListArray) -> Vectors:
    dim = chunk.type.list_size
    # `values` begins where the buffer does, whatever slice the array is.
    values = chunk.values.slice(chunk.offset * dim, len(chunk) * dim)
    matrix: Vectors = values.to_numpy(zero_copy_only=True).reshape(len(chunk), dim)
    return matrix


def _timestamp(text: str) -> pa.Scalar:
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return pa.scalar(moment, pa.timestamp("us", tz="UTC"))
