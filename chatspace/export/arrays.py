"""Exports of bare vectors, ids beside them: what all of these share, and the numpy array.

Row `i` of `ids.parquet` says which row of the dataset vector `i` is. Memory is bounded by a block
of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.export.place import new_folder
from chatspace.export.source import VectorSource, unit_rows
from chatspace.shards.table import embedding_matrix, float_vectors
from chatspace.shards.vectors import VECTOR_COLUMN

METRICS = ("cosine", "dot", "l2", "hamming")
IDS_FILE = "ids.parquet"
PART_BYTES = 512 * 2**20

Block = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """How an index is made.

    Attributes:
        index: `flat`, `ivf`, `hnsw`, or what FAISS's `index_factory` takes.
        metric: one of `METRICS`; `hamming` compares stored bits.
        part_bytes: what the rows of an index may take in memory; one that takes more is made in
            parts, where that can be done.
        free_bytes: memory that may be taken by one that cannot [what is available].
    """

    index: str = "flat"
    metric: str = "cosine"
    part_bytes: int = PART_BYTES
    free_bytes: int | None = None


def write_numpy(source: VectorSource, out: Path, note: dict[str, Any]) -> None:
    """Writes `vectors.npy`, floats of shape (rows, dim), for `numpy.load(..., mmap_mode="r")`."""
    dtype, shape = np.dtype(source.float_dtype), (source.rows, source.encoding.dim)
    with (
        new_folder(out, note) as temp,
        ids_writer(source, temp) as write_ids,
        (temp / "vectors.npy").open("wb") as file,
    ):
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for table in source.tables(columns_of(source)):
            write_ids(table)
            file.write(np.ascontiguousarray(float_vectors(table)).data)


def columns_of(source: VectorSource) -> list[str]:
    """Returns the columns that are read: keys, and the vectors as they are stored."""
    return [*source.key_columns, *source.encoding.columns]


@contextmanager
def ids_writer(source: VectorSource, folder: Path) -> Iterator[Any]:
    """Gives a function that appends the keys of a table's rows to `ids.parquet`."""
    names = source.key_columns
    fields = [source.schema.field(name) for name in names]
    schema = pa.schema([pa.field("position", pa.int64(), nullable=False), *fields])
    start = 0
    with pq.ParquetWriter(folder / IDS_FILE, schema, compression="zstd") as writer:

        def write(table: pa.Table) -> None:
            nonlocal start
            positions = pa.array(np.arange(start, start + len(table)), pa.int64())
            columns = [positions, *(table[name] for name in names)]
            writer.write_table(pa.table(columns, schema=schema))
            start += len(table)

        yield write


def block_of(table: pa.Table, metric: str) -> Block:
    """Returns what an index takes of some rows: bits, unit vectors, or vectors; C-contiguous."""
    if metric == "hamming":
        return np.ascontiguousarray(embedding_matrix(table[VECTOR_COLUMN]))
    vectors = float_vectors(table)
    return unit_rows(vectors) if metric == "cosine" else np.ascontiguousarray(vectors, np.float32)
