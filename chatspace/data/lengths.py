"""How the text lies inside row groups that several shards share, read when a run is planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

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


def with_text_steps(
    files: Sequence[InputFile],
    dataset: DatasetSection,
    rows_per_shard: int,
    *,
    selected: SelectedRows | None = None,
    read_bytes: int = READ_BYTES,
) -> list[InputFile]:
    """Returns the files, with the bytes of text in steps of a row group where shards share it.

    Row groups of more than two shards are read, the heaviest first, until `read_bytes` of text are,
    a row counted as 128 bytes at least and a group as 4 MiB more; of the others the footer's sum
    has to do. Memory is a batch of 16 MiB, or of 1,024 rows where a
    group's long rows stand together.

    Args:
        files: the files in reading order.
        dataset: says what is embedded.
        rows_per_shard: rows of a shard; a step is a quarter of it, or more in a very large split.
        selected: which rows of the split are read [all].
        read_bytes: text to read at most, decoded.

    Raises:
        InputError: a row group cannot be read.
    """
    sizes = [n_rows for file in files for n_rows in file.row_groups]
    wanted = sizes if selected is None else selected.group_rows
    step_rows = max(-(-rows_per_shard // _STEPS_A_SHARD), -(-sum(sizes) // _MOST_STEPS))
    shared = _SHARED_BY * max(rows_per_shard, step_rows)
    places = [(i, group) for i, file in enumerate(files) for group in range(len(file.row_groups))]
    chosen = [place for place, n_rows in zip(places, wanted, strict=True) if n_rows > shared]
    chosen.sort(key=lambda place: (-files[place[0]].text_bytes[place[1]], place))
    found: dict[int, dict[int, tuple[int, ...]]] = {}
    for i, group in chosen:
        file = files[i]
        if _cost(file.row_groups[group], file.text_bytes[group]) > read_bytes:
            continue  # a lighter one may fit
        steps, n_read = _steps(file, group, dataset, step_rows, read_bytes)
        read_bytes -= n_read
        if steps is not None:
            found.setdefault(i, {})[group] = steps
    return [_noted(file, found[i]) if i in found else file for i, file in enumerate(files)]


def _noted(file: InputFile, steps: dict[int, tuple[int, ...]]) -> InputFile:
    return replace(
        file, text_steps=tuple(steps.get(group, ()) for group in range(len(file.row_groups)))
    )


def _steps(
    file: InputFile, group: int, dataset: DatasetSection, step_rows: int, read_bytes: int
) -> tuple[tuple[int, ...] | None, int]:
    """Returns the bytes of text in each step of a row group, and what reading them has cost.

    There are no steps where the text is longer than `read_bytes`, as a dictionary can make it.
    """
    n_rows = file.row_groups[group]
    n_steps = -(-n_rows // step_rows)
    step_rows = -(-n_rows // n_steps)  # the last is no longer than the others
    rows, text = [0], [0]
    for batch in _batches(file, group, dataset, step_rows):
        n_bytes = sum(_text_bytes(column) for column in batch.columns)
        rows.append(rows[-1] + batch.num_rows)
        text.append(text[-1] + n_bytes)
        if _cost(rows[-1], text[-1]) > read_bytes:
            return None, _cost(rows[-1], text[-1])
    edges = np.append(np.arange(0, n_rows, step_rows), n_rows)  # (n_steps + 1,)
    steps = np.diff(np.interp(edges, rows, text).astype(np.int64))
    return tuple(steps.tolist()), _cost(rows[-1], text[-1])


def _cost(n_rows: int, n_bytes: int) -> int:
    return _GROUP_BYTES + max(n_bytes, _ROW_BYTES * n_rows)


def _batches(
    file: InputFile, group: int, dataset: DatasetSection, step_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yields what is embedded of a row group in batches, none of more rows than a step."""
    row_bytes = file.text_bytes[group] / max(file.row_groups[group], 1)
    fitting = max(1, min(_MAX_BATCH_ROWS, int(_BATCH_BYTES / max(row_bytes, 1))))
    n_batches = -(-step_rows // fitting)
    with open_parquet(file.path) as parquet:
        batches = parquet.iter_batches(
            -(-step_rows // n_batches),
            row_groups=[group],
            columns=_columns(parquet, dataset, file.path),
            use_threads=False,
        )
        while True:
            with reading(file.path):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def _columns(parquet: pq.ParquetFile, dataset: DatasetSection, path: str) -> list[str]:
    leaves = needed_leaves(dataset, parquet.schema_arrow, path)
    return [parquet.metadata.schema.column(leaf).path for leaf in leaves]


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
