"""Exports to usearch: a graph for each part of the rows, as these are built in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from chatspace.export.arrays import IndexOptions, block_of, columns_of, ids_writer
from chatspace.export.libraries import library
from chatspace.export.place import new_folder
from chatspace.export.source import VectorSource

INDEX_FILE = "index.usearch"
PART_FILES = "index-*.usearch"
READ_PARTS = f'usearch.index.Indexes(paths=sorted(glob.glob("{PART_FILES}")), view=True)'
_METRICS = {"cosine": "cos", "dot": "ip", "l2": "l2sq", "hamming": "hamming"}
_LINK_BYTES = 300  # of a row, beside its vector: 32 neighbours, key and places; measured 215


def write_usearch(
    source: VectorSource, out: Path, note: dict[str, Any], options: IndexOptions
) -> None:
    """Writes `index.usearch`, for `usearch.index.Index.restore`; its keys are row numbers.

    Of a run that takes more than a part (`IndexOptions.part_bytes`), each part has a file of its
    own, `index-00000.usearch` and so on, opened together by `usearch.index.Indexes`. Memory is
    that of a part.

    Raises:
        UnfitEnvironmentError: usearch is not installed.
    """
    usearch = library("usearch.index", "usearch")
    with new_folder(out, note) as temp, ids_writer(source, temp) as write_ids:
        rows_of_part = _rows_of_part(source, options)
        n_parts = -(-source.rows // rows_of_part)
        names = [INDEX_FILE] if n_parts == 1 else [_part_file(part) for part in range(n_parts)]
        if n_parts > 1:
            note.update(file=PART_FILES, read=READ_PARTS)
        index, start = _new_index(usearch, source, options), 0
        for table in source.tables(columns_of(source)):
            write_ids(table)
            block = block_of(table, options.metric)
            while len(block):
                some = block[: rows_of_part - len(index)]
                keys = np.arange(start, start + len(some))
                index.add(keys, some, threads=_n_threads())
                block, start = block[len(some) :], start + len(some)
                if len(index) == rows_of_part or start == source.rows:
                    index.save(str(temp / names.pop(0)))
                    index = _new_index(usearch, source, options)


def _part_file(part: int) -> str:
    return PART_FILES.replace("*", f"{part:05d}")


def _rows_of_part(source: VectorSource, options: IndexOptions) -> int:
    is_bits = options.metric == "hamming"
    vector_bytes = source.encoding.width if is_bits else 2 * source.encoding.dim
    return max(1, options.part_bytes // (vector_bytes + _LINK_BYTES))


def _new_index(usearch: Any, source: VectorSource, options: IndexOptions) -> Any:
    is_bits = options.metric == "hamming"
    return usearch.Index(
        ndim=8 * source.encoding.width if is_bits else source.encoding.dim,
        metric=_METRICS[options.metric],
        # As the library itself chooses: half the memory of float32 and its range, built in a
        # third of the time.
        dtype="b1" if is_bits else "bf16",
    )


def _n_threads() -> int:
    # Its own default is every core of the machine, which a task on a cluster does not have.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
