"""The rows of a shard as an Arrow table, and its vectors as an array again; no Python lists."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chatspace.shards.vectors import (
    SCALE_COLUMN,
    VECTOR_COLUMN,
    Encoding,
    Norms,
    dequantised,
    encoding_of,
    norm_range,
    quantised,
)

Vectors = npt.NDArray[np.float32] | npt.NDArray[np.float16]
NORMS_KEY = b"chatspace.norms"


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
        dtype: how they are stored: `float32`, `float16`, `int8` or `binary`.
    """
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("dataset", pa.string(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("row_index", pa.int64(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("metadata", pa.string()),
            *Encoding(dtype=dtype, dim=dim).fields(),
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
    dtype: str | None = None,
) -> pa.Table:
    """Returns the table of one shard; floats are not copied if they are C-contiguous.

    The metadata of a table whose vectors are quantised says the range of their norms before that.

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
        dtype: how the vectors are stored; `int8` and `binary` are made of float32 [as they are].
    """
    n_rows, dim = vectors.shape
    assert n_rows == len(rows.row_index) == len(rows.ids) == len(rows.texts), (
        "a vector for each row"
    )
    schema = embedding_schema(dim, dtype or vectors.dtype.name)
    stored: npt.NDArray[Any] = vectors
    if encoding_of(schema).is_quantised:
        assert dtype is not None
        stored, scales = quantised(vectors.astype(np.float32, copy=False), dtype)
        schema = schema.with_metadata({NORMS_KEY: json.dumps(norm_range(vectors))})
    columns: dict[str, Any] = {
        "id": rows.ids,
        "source": pa.repeat(source, n_rows),
        "dataset": pa.repeat(dataset, n_rows),
        "split": pa.repeat(split, n_rows),
        "row_index": pa.array(rows.row_index, pa.int64()),
        "text": pa.array(rows.texts, pa.string()) if keep_text else pa.nulls(n_rows, pa.string()),
        "metadata": rows.metadata,
        VECTOR_COLUMN: _vector_array(stored, schema.field(VECTOR_COLUMN).type),
        "model": pa.repeat(model, n_rows),
        "created_at": pa.repeat(_timestamp(created_at), n_rows),
        "run_id": pa.repeat(run_id, n_rows),
    }
    if SCALE_COLUMN in schema.names:
        columns[SCALE_COLUMN] = pa.array(scales, pa.float32())
    return pa.table([columns[name] for name in schema.names], schema=schema)


def float_vectors(table: pa.Table) -> Vectors:
    """Returns the vectors of a table as floats, (n_rows, dim), however they are stored.

    Args:
        table: has the columns that `encoding_of(schema).columns` names, at least.

    Raises:
        ValueError: it has no column of vectors, or the column has nulls.
    """
    encoding = encoding_of(table.schema)
    stored = embedding_matrix(table[VECTOR_COLUMN])  # (n_rows, width)
    if not encoding.is_quantised:
        return stored
    scales = table[SCALE_COLUMN].to_numpy() if encoding.dtype == "int8" else None
    return dequantised(stored, scales, encoding)


def vector_norms(table: pa.Table) -> Norms:
    """Returns the smallest and the largest norm of a table's vectors, before they were quantised.

    Where a quantised table does not say it, it is that of the vectors as they are read back.
    """
    stated = (table.schema.metadata or {}).get(NORMS_KEY)
    if stated is not None:
        low, high = json.loads(stated)
        return low, high
    return norm_range(float_vectors(table))


def embedding_matrix(column: pa.Array | pa.ChunkedArray) -> Vectors:
    """Returns a column of vectors as it is stored, one array; one in one piece is not copied.

    The array is (n_rows, items of a vector); `float_vectors` gives floats whatever is stored.

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


def _vector_array(vectors: npt.NDArray[Any], type_: pa.FixedSizeListType) -> pa.FixedSizeListArray:
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
