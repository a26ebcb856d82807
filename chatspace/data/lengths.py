"""How the text lies inside row groups that several shards share, read when a run is planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chatspace.data.inputs import InputFile
from chatspace.data.parquet import open_parquet, reading
from chatspace.data.selection import SelectedRows
from chatspace.data.texts import needed_leaves
from chatspace.spec.dataset import DatasetSection

# A few seconds of decoding; what is left unread errs by no more than its own row group.
READ_BYTES = 4 << 30
# What a row group and a row cost to read, in bytes of text that take as long.
_GROUP_BYTES = 4 << 20
_ROW_BYTES = 128
_STEPS_A_SHARD = 4
# The plan holds a number for each step.
_MOST_STEPS = 1 << 16
_SHARED_BY = 2
_BATCH_BYTES = 16 << 20
_MAX_BATCH_ROWS = 1024

# A file and a row group of it, by their numbers.
Place = tuple[int, int]


def with_text_steps(
    files: Sequence[InputFile],
    dataset: DatasetSection,
    rows_per_shard: int,
    *,
    selected: SelectedRows | None = None,
    read_bytes: int = READ_BYTES,
) -> list[InputFile]:
    """Returns the files, with the bytes of text in steps of a row group where shards share it.

    Row groups of more than two shards are read, the heaviest first, until `read_bytes` of text are;
    of the others the footer's sum has to do. A row counts as 128 bytes at least, and a group as
    4 MiB more. Memory is a batch of 16 MiB, or of 1,024 rows where the long ones stand together.

    Args:
        files: the files in reading order.
        dataset: says what is embedded.
        rows_per_shard: rows of a shard; a step is a quarter of it, or more in a very large split.
        selected: which rows of the split are read [all].
        read_bytes: text to read at most, decoded.

    Raises:
        InputError: a row group cannot be read.
    """
    n_rows = sum(file.rows for file in files)
    step_rows = max(-(-rows_per_shard // _STEPS_A_SHARD), -(-n_rows // _MOST_STEPS))
    shared = _shared_groups(files, selected, _SHARED_BY * max(rows_per_shard, step_rows))
    found = list(files)
    for i, groups in groupby(sorted(_affordable(files, shared, read_bytes)), key=itemgetter(0)):
        file = files[i]
        steps: list[tuple[int, ...]] = [()] * len(file.row_groups)
        with open_parquet(file.path) as parquet:
            for _, group in groups:
                texts = _Texts(parquet, file, group, dataset)
                steps[group], cost = texts.steps(step_rows, read_bytes)
                read_bytes -= cost
        if any(steps):
            found[i] = replace(file, text_steps=tuple(steps))
    return found


def _shared_groups(
    files: Sequence[InputFile], selected: SelectedRows | None, n_rows: int
) -> list[Place]:
    """Returns the row groups of which more than `n_rows` rows are read."""
    places = [(i, group) for i, file in enumerate(files) for group in range(len(file.row_groups))]
    if selected is not None:
        read_rows = selected.group_rows
    else:
        read_rows = tuple(files[i].row_groups[group] for i, group in places)
    return [place for place, n_read in zip(places, read_rows, strict=True) if n_read > n_rows]


def _affordable(
    files: Sequence[InputFile], places: Sequence[Place], read_bytes: int
) -> Iterator[Place]:
    """Yields the heaviest row groups that together cost no more than `read_bytes`."""
    for i, group in sorted(places, key=lambda p: (-files[p[0]].text_bytes[p[1]], p)):
        cost = _cost(files[i].row_groups[group], files[i].text_bytes[group])
        if cost <= read_bytes:
            read_bytes -= cost
            yield i, group


def _cost(n_rows: int, n_bytes: int) -> int:
    return _GROUP_BYTES + max(n_bytes, _ROW_BYTES * n_rows)


class _Texts(NamedTuple):
    """What is embedded of the rows of one row group."""

    parquet: pq.ParquetFile
    file: InputFile
    group: int
    dataset: DatasetSection

    def steps(self, step_rows: int, read_bytes: int) -> tuple[tuple[int, ...], int]:
        """Returns the bytes of text in each step, and what reading them has cost.

        There are no steps where that is more than `read_bytes`: a dictionary hides much text.
        """
        n_rows = self.file.row_groups[self.group]
        n_steps = -(-n_rows // step_rows)
        step_rows = -(-n_rows // n_steps)  # the last is no longer than the others
        rows, text = [0], [0]
        for batch in self._batches(step_rows):
            rows.append(rows[-1] + batch.num_rows)
            text.append(text[-1] + sum(map(_text_bytes, batch.columns)))
            if _cost(rows[-1], text[-1]) > read_bytes:
                return (), _cost(rows[-1], text[-1])
        edges = np.append(np.arange(0, n_rows, step_rows), n_rows)  # (n_steps + 1,)
        steps = np.diff(np.interp(edges, rows, text).astype(np.int64))
        return tuple(steps.tolist()), _cost(rows[-1], text[-1])

    def _batches(self, step_rows: int) -> Iterator[pa.RecordBatch]:
        """Yields batches, none of more rows than a step."""
        path = self.file.path
        row_bytes = self.file.text_bytes[self.group] / max(self.file.row_groups[self.group], 1)
        fitting = max(1, min(_MAX_BATCH_ROWS, int(_BATCH_BYTES / max(row_bytes, 1))))
        n_batches = -(-step_rows // fitting)
        leaves = needed_leaves(self.dataset, self.parquet.schema_arrow, path)
        batches = self.parquet.iter_batches(
            -(-step_rows // n_batches),
            row_groups=[self.group],
            columns=[self.parquet.metadata.schema.column(leaf).path for leaf in leaves],
            use_threads=False,
        )
        while True:
            with reading(path):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def _text_bytes(values: pa.Array) -> int:
    """Returns the bytes of all that a column's values hold."""
    type_ = values.type
    if pa.types.is_dictionary(type_):
        return _text_bytes(values.dictionary_decode())
    if pa.types.is_struct(type_):
        return sum(map(_text_bytes, values.flatten()))
    if pa.types.is_map(type_):
        entry = pa.struct([("key", type_.key_type), ("value", type_.item_type)])
        return _text_bytes(values.cast(pa.list_(entry)))
    if pa.types.is_nested(type_):
        return _text_bytes(values.flatten())
    if pa.types.is_string_view(type_) or pa.types.is_binary_view(type_):
        values = values.cast(pa.large_binary())
    if pa.types.is_fixed_size_binary(type_) or not _has_lengths(values.type):
        return int(values.nbytes)
    return int(pc.sum(pc.binary_length(values)).as_py() or 0)


def _has_lengths(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_binary(type_)
        or pa.types.is_large_binary(type_)
    )
