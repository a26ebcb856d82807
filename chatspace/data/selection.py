"""Which rows of a split a run reads: all of a range, or those that a list names.

A run counts the rows that it reads from 0: these are positions, and shards are ranges of them. A
row's number is its place in the split, which stands in its id and does not change with what else is
read. A list of rows is a Parquet file of ascending numbers below the workspace, named after its
content; a task reads the part that its shards need.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.data.parquet import open_parquet, reading
from chatspace.errors import InputError
from chatspace.spec.document import shown

Ints = npt.NDArray[np.int64]

LIST_GROUP_ROWS = 1 << 17
LIST_SCHEMA = pa.schema([pa.field("row", pa.int64(), nullable=False)])


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedRows:
    """What a plan says of the rows that are read, where they are not the first of the split.

    Attributes:
        first_row: number of the first row of a range.
        path: the list of rows, relative to the workspace; None for a range.
        sha256: of the row numbers as little-endian 64-bit integers; None for a range.
        group_rows: rows that are read of each row group, over all files.
    """

    first_row: int
    path: str | None
    sha256: str | None
    group_rows: tuple[int, ...]


class Selection(Protocol):
    """The rows that a run reads, ascending."""

    def row_at(self, position: int) -> int:
        """Returns the number of the row at a position."""
        ...

    def between(self, start: int, stop: int) -> Ints:
        """Returns the rows numbered from `start` up to, not including, `stop`."""
        ...


@dataclass(frozen=True, slots=True)
class RowRange:
    """All rows from `first_row` on."""

    first_row: int = 0

    def row_at(self, position: int) -> int:
        """Returns the number of the row at a position."""
        return self.first_row + position

    def between(self, start: int, stop: int) -> Ints:
        """Returns the rows numbered from `start` up to, not including, `stop`."""
        return np.arange(max(start, self.first_row), stop, dtype=np.int64)


class RowList:
    """Rows that a file lists; holds one row group of it, 1 MiB.

    Raises:
        InputError: the file is missing or is not the one that was planned with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_parquet(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            sizes = [group.num_rows for group in groups]
            self._positions = np.concatenate(([0], np.cumsum(sizes)))  # (n_groups + 1,)
            self._firsts = np.array([_first(group, path) for group in groups], np.int64)
        self._held: tuple[int, Ints] | None = None

    def __len__(self) -> int:
        return int(self._positions[-1])

    def row_at(self, position: int) -> int:
        """Returns the number of the row at a position."""
        group = int(np.searchsorted(self._positions, position, side="right")) - 1
        return int(self._group(group)[position - self._positions[group]])

    def between(self, start: int, stop: int) -> Ints:
        """Returns the rows numbered from `start` up to, not including, `stop`."""
        first = max(int(np.searchsorted(self._firsts, start, side="right")) - 1, 0)
        last = int(np.searchsorted(self._firsts, stop))
        parts = [self._group(index) for index in range(first, last)]
        rows = np.concatenate([np.empty(0, np.int64), *parts])
        inside: Ints = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        return inside

    def _group(self, index: int) -> Ints:
        held = self._held  # one look: other threads may read other groups
        if held is None or held[0] != index:
            with open_parquet(self._path) as file, reading(self._path):
                column = file.read_row_group(index, columns=["row"])["row"]
            held = self._held = (index, column.to_numpy())
        return held[1]


def open_selection(selected: SelectedRows | None, workspace: Path, rows: int) -> Selection:
    """Returns the rows that a plan names.

    Args:
        selected: what the plan says; None for the first rows of the split.
        workspace: the plan's workspace.
        rows: how many rows the plan says are read.

    Raises:
        InputError: the list of rows is missing, or has another length.
    """
    if selected is None:
        return RowRange()
    if selected.path is None:
        return RowRange(selected.first_row)
    path = workspace / selected.path
    found = RowList(path)
    if len(found) != rows:
        raise InputError(
            f"Damaged list of rows: {shown(path)} has {len(found):,} rows, planned with {rows:,}. "
            "Remove it and run setup again."
        )
    return found


def positions(selection: Selection, start: int, stop: int) -> Ints:
    """Returns the numbers of the rows at positions from `start` up to, not including, `stop`."""
    return selection.between(selection.row_at(start), selection.row_at(stop - 1) + 1)


def write_list(path: Path, blocks: Iterable[Ints]) -> None:
    """Writes row numbers in blocks, ascending; memory is a row group and a block."""
    with pq.ParquetWriter(
        path,
        LIST_SCHEMA,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"row": "DELTA_BINARY_PACKED"},
    ) as writer:
        held = np.empty(0, np.int64)
        for block in blocks:
            held = np.concatenate((held, block))
            n_whole = len(held) - len(held) % LIST_GROUP_ROWS
            if n_whole:
                _write_rows(writer, held[:n_whole])
                held = held[n_whole:]
        _write_rows(writer, held)


def _write_rows(writer: pq.ParquetWriter, rows: Ints) -> None:
    if len(rows):
        table = pa.table([pa.array(rows)], schema=LIST_SCHEMA)
        writer.write_table(table, row_group_size=LIST_GROUP_ROWS)


def _first(group: pq.RowGroupMetaData, path: Path) -> int:
    statistics = group.column(0).statistics
    if statistics is None or not statistics.has_min_max:
        raise InputError(
            f"Damaged list of rows: {shown(path)} has no statistics. Remove it and run setup again."
        )
    return int(statistics.min)
