"""What the shard of chunked rows has beside other shards: places in the text, vectors of rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chatspace.chunking.chunker import ChunkedRows
from chatspace.chunking.cutting import IntArray
from chatspace.shards.chunks import with_chunks

FloatArray = npt.NDArray[np.float32]


def chunk_table(
    table: pa.Table, rows: ChunkedRows, documents: FloatArray | None = None
) -> pa.Table:
    """Returns the table of a shard of chunks with the columns that say where each is from.

    Args:
        table: as `embedding_table` makes it of the chunks.
        rows: the chunks.
        documents: a vector of each row, (n_rows, dim); None where they are not wanted.
    """
    return with_chunks(
        table,
        chunk_index=rows.chunk_index,
        char_start=rows.char_start,
        char_stop=rows.char_stop,
        documents=documents,
    )


def document_vectors(vectors: FloatArray, row: IntArray, n_tokens: IntArray) -> FloatArray:
    """Returns one vector a row, the mean of its chunks', each as often as it has tokens.

    They have length one, or are zero where the mean is.

    Args:
        vectors: those of the chunks, (n_chunks, dim).
        row: row of each chunk: 0, then ascending without gaps, (n_chunks,).
        n_tokens: as the model sees the chunks, (n_chunks,).

    Returns:
        Vectors of shape (n_rows, dim).
    """
    firsts = np.flatnonzero(np.diff(row, prepend=-1))  # (n_rows,)
    weighted = vectors * n_tokens[:, None].astype(np.float32)  # (n_chunks, dim)
    sums = np.add.reduceat(weighted, firsts, axis=0, dtype=np.float64)  # (n_rows, dim)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)  # (n_rows, 1)
    means: FloatArray = (sums / np.where(norms > 0, norms, 1)).astype(np.float32)
    return means
