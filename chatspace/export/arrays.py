"""Exports of bare vectors: a numpy array on disk, an index of FAISS or usearch; ids beside them.

Row `i` of `ids.parquet` says which row of the dataset vector `i` is. Memory is bounded by a block
of rows and, but for numpy arrays and flat FAISS indexes, by the index itself: these libraries
build it in memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.errors import InputError
from chatspace.export.libraries import library
from chatspace.export.place import new_folder
from chatspace.export.source import VectorSource, unit_rows
from chatspace.shards.table import embedding_matrix, float_vectors
from chatspace.shards.vectors import VECTOR_COLUMN

METRICS = ("cosine", "dot", "l2", "hamming")
INDEXES = ("flat", "ivf", "hnsw")
IDS_FILE = "ids.parquet"
TRAINING_BYTES = 512 * 2**20
ROWS_PER_CELL = 39  # Source: FAISS warns of fewer training points per centroid
_USEARCH_METRICS = {"cosine": "cos", "dot": "ip", "l2": "l2sq", "hamming": "hamming"}

Block = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """How an index is made.

    Attributes:
        index: `flat`, `ivf`, `hnsw`, or what FAISS's `index_factory` takes.
        metric: one of `METRICS`; `hamming` compares stored bits.
    """

    index: str = "flat"
    metric: str = "cosine"


def write_numpy(source: VectorSource, out: Path, note: dict[str, Any]) -> None:
    """Writes `vectors.npy`, floats of shape (rows, dim), for `numpy.load(..., mmap_mode="r")`."""
    dtype, shape = np.dtype(source.float_dtype), (source.rows, source.encoding.dim)
    with (
        new_folder(out, note) as temp,
        _ids_writer(source, temp) as write_ids,
        (temp / "vectors.npy").open("wb") as file,
    ):
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for table in source.tables(_columns(source)):
            write_ids(table)
            file.write(np.ascontiguousarray(float_vectors(table)).data)


def write_faiss(
    source: VectorSource, out: Path, note: dict[str, Any], options: IndexOptions
) -> None:
    """Writes `index.faiss`, for `faiss.read_index` or, of bits, `faiss.read_index_binary`.

    Raises:
        InputError: FAISS does not know the index, or the run's vectors are no bits.
        UnfitEnvironmentError: FAISS is not installed.
    """
    faiss = library("faiss", "faiss-cpu")
    with new_folder(out, note) as temp, _ids_writer(source, temp) as write_ids:
        path = temp / "index.faiss"
        is_flat = options.index.lower() == "flat" and options.metric != "hamming"
        if is_flat and _knows_flat_files(faiss):
            _stream_flat(faiss, source, path, metric=options.metric, write_ids=write_ids)
            return
        index = _new_index(faiss, source, options)
        for table in source.tables(_columns(source)):
            write_ids(table)
            index.add(_block(table, options.metric))
        write = faiss.write_index_binary if options.metric == "hamming" else faiss.write_index
        write(index, str(path))


def write_usearch(
    source: VectorSource, out: Path, note: dict[str, Any], options: IndexOptions
) -> None:
    """Writes `index.usearch`, for `usearch.index.Index.restore`; its keys are row numbers.

    Raises:
        UnfitEnvironmentError: usearch is not installed.
    """
    usearch = library("usearch.index", "usearch")
    is_bits = options.metric == "hamming"
    dtype = "b1" if is_bits else "f32" if source.encoding.dtype == "float32" else "f16"
    index = usearch.Index(
        ndim=8 * source.encoding.width if is_bits else source.encoding.dim,
        metric=_USEARCH_METRICS[options.metric],
        dtype=dtype,
    )
    # Its own default is every core of the machine, which a task on a cluster does not have.
    n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    with new_folder(out, note) as temp, _ids_writer(source, temp) as write_ids:
        start = 0
        for table in source.tables(_columns(source)):
            write_ids(table)
            keys = np.arange(start, start + len(table))
            index.add(keys, _block(table, options.metric), threads=n_threads)
            start += len(table)
        index.save(str(temp / "index.usearch"))


def _columns(source: VectorSource) -> list[str]:
    return [*source.key_columns, *source.encoding.columns]


@contextmanager
def _ids_writer(source: VectorSource, folder: Path) -> Iterator[Any]:
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


def _block(table: pa.Table, metric: str) -> Block:
    """Returns what an index takes of some rows: bits, unit vectors, or vectors; C-contiguous."""
    if metric == "hamming":
        return np.ascontiguousarray(embedding_matrix(table[VECTOR_COLUMN]))
    vectors = float_vectors(table)
    return unit_rows(vectors) if metric == "cosine" else np.ascontiguousarray(vectors, np.float32)


# FAISS


def _faiss_metric(faiss: Any, metric: str) -> int:
    found: int = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    return found


def _new_index(faiss: Any, source: VectorSource, options: IndexOptions) -> Any:
    """Returns an empty index, trained on evenly spaced rows where it needs that."""
    row_bytes = 4 * source.encoding.dim
    n_training = max(1, min(source.rows, TRAINING_BYTES // row_bytes))
    n_cells = max(1, min(round(4 * source.rows**0.5), n_training // ROWS_PER_CELL))
    bits = options.metric == "hamming"
    named = {"flat": "Flat", "ivf": f"IVF{n_cells}", "hnsw": "HNSW32"}
    text = named.get(options.index.lower())
    if text is None:
        text = options.index
    elif bits:
        text = f"B{text}"
    elif text != "Flat":
        text = f"{text},Flat"
    try:
        if bits:
            index = faiss.index_binary_factory(8 * source.encoding.width, text)
        else:
            metric = _faiss_metric(faiss, options.metric)
            index = faiss.index_factory(source.encoding.dim, text, metric)
        if not index.is_trained:
            positions = np.linspace(0, source.rows - 1, n_training).astype(np.int64)
            sample = source.rows_at(positions, source.encoding.columns)
            index.train(_block(sample, options.metric))
    except RuntimeError as error:
        # The lines begin with the place in the library's own source.
        reason = " ".join(str(error).split()).rpartition(": ")[2].rstrip(".")
        raise InputError(
            f"FAISS refuses the index: --index {options.index}, {source.rows:,} rows of "
            f"{source.encoding.dim}; {reason}. Use {', '.join(INDEXES)}, or a text that "
            "faiss.index_factory takes."
        ) from error
    return index


def _stream_flat(
    faiss: Any, source: VectorSource, path: Path, *, metric: str, write_ids: Any
) -> None:
    """Writes a flat index without holding it: the file is a header and the vectors."""
    with path.open("wb") as file:
        file.write(_flat_header(faiss, source.encoding.dim, source.rows, metric))
        for table in source.tables(_columns(source)):
            write_ids(table)
            file.write(_block(table, metric).data)


def _flat_header(faiss: Any, dim: int, rows: int, metric: str) -> bytes:
    """Returns how the file of a flat index begins: with the counts of vectors and of numbers.

    Source: `write_index` in faiss/impl/index_write.cpp.
    """
    empty = faiss.serialize_index(faiss.IndexFlat(dim, _faiss_metric(faiss, metric))).tobytes()
    head: bytes = empty[:8] + struct.pack("<q", rows) + empty[16:-8]
    return head + struct.pack("<Q", rows * dim)


def _knows_flat_files(faiss: Any) -> bool:
    """Tells whether the installed FAISS writes flat indexes as `_flat_header` has it."""
    vector = np.arange(3, dtype=np.float32)[None]
    index = faiss.IndexFlat(3, faiss.METRIC_INNER_PRODUCT)
    index.add(vector)
    ours = _flat_header(faiss, 3, 1, "dot") + vector.tobytes()
    return bool(faiss.serialize_index(index).tobytes() == ours)
