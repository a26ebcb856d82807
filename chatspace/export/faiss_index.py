"""Exports to FAISS: flat and cell (IVF) indexes as streams, others in memory.

- `flat`: the file is a header and the vectors, written as they come.
- `ivf`, and texts such as `IVF4096,PQ64`: cells are learned from a sample. Of a run that takes more
  than a part (`IndexOptions.part_bytes`), part after part is sorted into cells and appended to a
  temporary file, from which the cells are then written one after the other: `index.ivfdata`, which
  FAISS maps into memory, beside `index.faiss`. Memory is that of two parts; disk that of the index,
  twice.
- Graphs (`hnsw`) and whatever else the library knows are built in memory, if it is there.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chatspace.errors import InputError, UnfitEnvironmentError
from chatspace.export.arrays import Block, IndexOptions, block_of, columns_of, ids_writer
from chatspace.export.libraries import library
from chatspace.export.memory import available_bytes
from chatspace.export.place import new_folder
from chatspace.export.source import VectorSource

INDEXES = ("flat", "ivf", "hnsw")
INDEX_FILE = "index.faiss"
CELLS_FILE = "index.ivfdata"
READ_CELLS = (
    f'faiss.read_index("{INDEX_FILE}", faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY)'
)
TRAINING_BYTES = 512 * 2**20
ROWS_PER_CELL = 39  # Source: FAISS warns of fewer training points per centroid
MOST_ROWS_PER_CELL = 64  # more make the training longer and the cells hardly better
ID_BYTES = 8

Sizes = npt.NDArray[np.int64]


def write_faiss(
    source: VectorSource, out: Path, note: dict[str, Any], options: IndexOptions
) -> None:
    """Writes `index.faiss`, for `faiss.read_index` or, of bits, `faiss.read_index_binary`.

    Raises:
        InputError: FAISS does not know the index, or the run's vectors are no bits.
        UnfitEnvironmentError: FAISS is not installed, or the index does not fit into memory.
    """
    faiss = library("faiss", "faiss-cpu")
    is_bits = options.metric == "hamming"
    with new_folder(out, note) as temp, ids_writer(source, temp) as write_ids:
        path = temp / INDEX_FILE
        blocks = _blocks(source, options.metric, write_ids)
        if options.index.lower() == "flat" and not is_bits and _knows_flat_files(faiss):
            _stream_flat(faiss, source, path, blocks, options.metric)
            return
        index = _untrained(faiss, source, options)
        cells = _cells(faiss, index)
        if cells is None:
            _refuse_too_large(faiss, index, source.rows, options)
        _train(index, source, options)
        if cells is not None and source.rows > _rows_of_part(cells, options):
            _stream_cells(faiss, index, temp, blocks, _rows_of_part(cells, options))
            note["read"] = READ_CELLS.replace("index(", "index_binary(") if is_bits else READ_CELLS
        else:
            _reserve(faiss, index, source.rows)
            _add(index, blocks, source, options)
        write = faiss.write_index_binary if is_bits else faiss.write_index
        write(index, str(path))


def _blocks(source: VectorSource, metric: str, write_ids: Any) -> Iterator[Block]:
    for table in source.tables(columns_of(source)):
        write_ids(table)
        yield block_of(table, metric)


def _metric(faiss: Any, metric: str) -> int:
    found: int = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    return found


# What is built


def _untrained(faiss: Any, source: VectorSource, options: IndexOptions) -> Any:
    """Returns an empty index."""
    bits = options.metric == "hamming"
    named = {"flat": "Flat", "ivf": f"IVF{_n_cells(source)}", "hnsw": "HNSW32"}
    text = named.get(options.index.lower())
    if text is None:
        text = options.index
    elif bits:
        text = f"B{text}"
    elif text != "Flat":
        text = f"{text},Flat"
    try:
        if bits:
            return faiss.index_binary_factory(8 * source.encoding.width, text)
        return faiss.index_factory(source.encoding.dim, text, _metric(faiss, options.metric))
    except RuntimeError as error:
        raise _refused(source, options, error) from error


def _n_cells(source: VectorSource) -> int:
    by_rows = 4 * math.isqrt(source.rows)
    return max(1, min(by_rows, _most_training(source) // ROWS_PER_CELL))


def _most_training(source: VectorSource) -> int:
    return max(1, min(source.rows, TRAINING_BYTES // (4 * source.encoding.dim)))


def _train(index: Any, source: VectorSource, options: IndexOptions) -> None:
    """Trains an index on evenly spaced rows where it needs that; takes memory for them, once."""
    if index.is_trained:
        return
    n_rows = _most_training(source)
    if options.index.lower() == "ivf":
        n_rows = min(n_rows, MOST_ROWS_PER_CELL * _n_cells(source))
    positions = np.linspace(0, source.rows - 1, n_rows).astype(np.int64)
    sample: Block | None = None
    for start in range(0, n_rows, source.block_rows):
        some = positions[start : start + source.block_rows]
        block = block_of(source.rows_at(some, source.encoding.columns), options.metric)
        if sample is None:
            sample = np.empty((n_rows, block.shape[1]), block.dtype)
        sample[start : start + len(block)] = block
    try:
        index.train(sample)
    except RuntimeError as error:
        raise _refused(source, options, error) from error


def _add(index: Any, blocks: Iterator[Block], source: VectorSource, options: IndexOptions) -> None:
    for block in blocks:
        try:
            index.add(block)
        except RuntimeError as error:
            raise _refused(source, options, error) from error


def _refused(source: VectorSource, options: IndexOptions, error: RuntimeError) -> InputError:
    # The lines begin with the place in the library's own source.
    reason = " ".join(str(error).split()).rpartition(": ")[2].rstrip(".")
    return InputError(
        f"FAISS refuses the index: --index {options.index}, {source.rows:,} rows of "
        f"{source.encoding.dim}; {reason}. Use {', '.join(INDEXES)}, or a text that "
        "faiss.index_factory takes."
    )


# In memory


def _refuse_too_large(faiss: Any, index: Any, rows: int, options: IndexOptions) -> None:
    """Refuses an index that would not fit into the memory that is free.

    Raises:
        UnfitEnvironmentError: it would not.
    """
    needed, free = rows * _row_bytes(faiss, index), options.free_bytes or available_bytes()
    if free is not None and needed > free:
        raise UnfitEnvironmentError(
            f"Too little memory: --index {options.index} takes about {needed / 1e9:.1f} GB for "
            f"{rows:,} rows; {free / 1e9:.1f} GB are free. Take --index ivf, which needs "
            "about 1.5 GB for any number of rows, or more memory."
        )


def _row_bytes(faiss: Any, index: Any) -> int:
    """Returns what a row takes at most while an index grows.

    A list that grows is copied into one of twice the size, so what is not reserved counts twice.
    """
    graph = getattr(index, "hnsw", None)
    links = 0 if graph is None else 2 * (4 * graph.nb_neighbors(0) + 2 * ID_BYTES)
    if graph is not None and _has_codes(faiss, index):
        return int(faiss.downcast_index(index.storage).code_size) + links
    try:
        return 2 * (int(index.sa_code_size()) + ID_BYTES) + links
    except (AttributeError, RuntimeError):  # bits, and those that compute no codes by themselves
        return 2 * (int(getattr(index, "code_size", 4 * index.d)) + ID_BYTES) + links


def _reserve(faiss: Any, index: Any, rows: int) -> None:
    """Reserves the memory for the vectors of a graph at once."""
    if _has_codes(faiss, index):
        storage = faiss.downcast_index(index.storage)
        storage.codes.resize(rows * storage.code_size)
        storage.codes.resize(0)  # keeps what is reserved


def _has_codes(faiss: Any, index: Any) -> bool:
    return isinstance(index, faiss.IndexHNSW) and isinstance(
        faiss.downcast_index(index.storage), faiss.IndexFlatCodes
    )


# Cells, part by part


def _cells(faiss: Any, index: Any) -> Any:
    """Returns the part of an index that sorts rows into cells; None if it does not, or not only."""
    inner = index
    if isinstance(index, faiss.IndexPreTransform):
        inner = faiss.downcast_index(index.index)
    if isinstance(inner, faiss.IndexIVFPQR) or not isinstance(
        inner, (faiss.IndexIVF, faiss.IndexBinaryIVF)
    ):
        return None
    lists = faiss.downcast_InvertedLists(inner.invlists)
    return inner if isinstance(lists, faiss.ArrayInvertedLists) else None


def _rows_of_part(cells: Any, options: IndexOptions) -> int:
    row_bytes = int(cells.invlists.code_size) + ID_BYTES
    return max(1, options.part_bytes // row_bytes)


def _stream_cells(
    faiss: Any, index: Any, folder: Path, blocks: Iterator[Block], rows_of_part: int
) -> None:
    """Fills a trained index, whose cells then lie in `CELLS_FILE` of a folder."""
    spilled = folder / "parts"
    sizes: list[Sizes] = []
    with spilled.open("wb") as file:
        part, n_rows = _copy(faiss, index), 0
        for block in blocks:
            for start in range(0, len(block), rows_of_part):
                some = block[start : start + rows_of_part]
                if part.ntotal and part.ntotal + len(some) > rows_of_part:
                    sizes.append(_spill(faiss, _cells(faiss, part).invlists, file))
                    part = _copy(faiss, index)
                part.add_with_ids(some, np.arange(n_rows, n_rows + len(some)))
                n_rows += len(some)
        sizes.append(_spill(faiss, _cells(faiss, part).invlists, file))
        del part
    cells, by_part = _cells(faiss, index), np.stack(sizes)  # (n_parts, n_cells)
    _join(spilled, folder / CELLS_FILE, by_part, int(cells.invlists.code_size))
    spilled.unlink()
    _point_to_file(faiss, index, by_part.sum(axis=0))


def _copy(faiss: Any, index: Any) -> Any:
    # Emptied, an index would keep the memory of every cell's largest size so far.
    is_bits = isinstance(index, faiss.IndexBinary)
    return faiss.clone_binary_index(index) if is_bits else faiss.clone_index(index)


def _spill(faiss: Any, lists: Any, file: Any) -> Sizes:
    """Appends the cells of a part to a file, of each its codes and ids; returns their sizes."""
    sizes = np.array([lists.list_size(cell) for cell in range(lists.nlist)], np.int64)
    for cell, size in enumerate(sizes.tolist()):
        if size:
            file.write(faiss.rev_swig_ptr(lists.get_codes(cell), size * lists.code_size).data)
            file.write(faiss.rev_swig_ptr(lists.get_ids(cell), size).data)
    return sizes


def _join(spilled: Path, out: Path, sizes: Sizes, code_size: int) -> None:
    """Writes every cell whole: the codes of all parts, then their ids.

    `sizes` are the rows of each cell in each part, (n_parts, n_cells).

    Source: `OnDiskInvertedLists::set_all_lists_sizes` in faiss/invlists/OnDiskInvertedLists.cpp
    """
    row_bytes = code_size + ID_BYTES
    ends = row_bytes * np.cumsum(sizes.reshape(-1)).reshape(sizes.shape)
    starts = ends - row_bytes * sizes
    with spilled.open("rb") as source, out.open("wb") as target:
        for cell in range(sizes.shape[1]):
            rows = list(zip(starts[:, cell].tolist(), sizes[:, cell].tolist(), strict=True))
            for start, n_rows in rows:
                target.write(os.pread(source.fileno(), n_rows * code_size, start))
            for start, n_rows in rows:
                after = start + n_rows * code_size
                target.write(os.pread(source.fileno(), n_rows * ID_BYTES, after))


def _point_to_file(faiss: Any, index: Any, sizes: Sizes) -> None:
    """Makes an index say that its cells lie in `CELLS_FILE` beside it."""
    cells = _cells(faiss, index)
    code_size = cells.invlists.code_size
    lists = faiss.OnDiskInvertedLists(cells.nlist, code_size, CELLS_FILE)
    counts = sizes.astype(np.uint64)
    lists.set_all_lists_sizes(faiss.swig_ptr(counts))
    lists.totsize = int(sizes.sum()) * (code_size + ID_BYTES)
    cells.replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = cells.ntotal = int(sizes.sum())


# Flat files


def _stream_flat(
    faiss: Any, source: VectorSource, path: Path, blocks: Iterator[Block], metric: str
) -> None:
    """Writes a flat index without holding it: the file is a header and the vectors."""
    with path.open("wb") as file:
        file.write(_flat_header(faiss, source.encoding.dim, source.rows, metric))
        for block in blocks:
            file.write(block.data)


def _flat_header(faiss: Any, dim: int, rows: int, metric: str) -> bytes:
    """Returns how the file of a flat index begins: with the counts of vectors and of numbers.

    Source: `write_index` in faiss/impl/index_write.cpp.
    """
    empty = faiss.serialize_index(faiss.IndexFlat(dim, _metric(faiss, metric))).tobytes()
    head: bytes = empty[:8] + struct.pack("<q", rows) + empty[16:-8]
    return head + struct.pack("<Q", rows * dim)


def _knows_flat_files(faiss: Any) -> bool:
    """Tells whether the installed FAISS writes flat indexes as `_flat_header` has it."""
    vector = np.arange(3, dtype=np.float32)[None]
    index = faiss.IndexFlat(3, faiss.METRIC_INNER_PRODUCT)
    index.add(vector)
    ours = _flat_header(faiss, 3, 1, "dot") + vector.tobytes()
    return bool(faiss.serialize_index(index).tobytes() == ours)
