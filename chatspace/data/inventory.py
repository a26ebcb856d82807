"""What the input files hold, read from their footers, and whether their ids are unique."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chatspace.data.inputs import InputFile
from chatspace.data.parquet import (
    check_column,
    check_text_column,
    leaf_columns,
    open_parquet,
    reading,
    shown_type,
)
from chatspace.errors import InputError
from chatspace.spec.document import shown

# Footers are small reads; on a network file system their latency is what costs.
_THREADS = 16
_ID_BATCH_ROWS = 65536


def inventory(
    paths: Sequence[Path],
    text_field: str,
    *,
    conversation: bool = False,
    id_field: str | None = None,
    keep_columns: Sequence[str] = (),
) -> list[InputFile]:
    """Returns what each Parquet file holds, in the order of `paths`; only footers are read.

    Args:
        paths: absolute paths.
        text_field: column that is embedded.
        conversation: whether that column holds turns.
        id_field: column of the ids, which must exist.
        keep_columns: further columns that must exist.

    Raises:
        InputError: a file is missing, truncated or no Parquet; a column is missing or of a wrong
            type; there are no rows at all.
    """
    look = partial(
        _look, text_field=text_field, conversation=conversation, id_field=id_field,
        keep_columns=keep_columns,
    )  # fmt: skip
    with ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(look, paths))
    if not any(file.rows for file in files):
        first = f" such as {shown(paths[0])}" if paths else ""
        raise InputError(
            f"Empty dataset: {len(files)} files{first} hold no rows. Check path and split."
        )
    return files


def check_unique_ids(
    files: Sequence[InputFile],
    id_field: str,
    max_rows: int,
    *,
    place: Callable[[int], str] | None = None,
) -> None:
    """Proves that no id stands twice in the first `max_rows` rows; memory is 8 bytes a row.

    A first pass compares 64-bit hashes; where two are equal, a second pass compares the ids.

    Args:
        files: the split's files, in order.
        id_field: column of the ids.
        max_rows: rows of the split that are looked at.
        place: gives where a row of the split comes from, as errors name it [row of a file].

    Raises:
        InputError: an id is null or stands twice, or the column's type gives no ids.
    """
    ids_of = partial(_id_batches, files, id_field, max_rows, place or partial(_place, files))
    hashes = np.empty(min(max_rows, sum(file.rows for file in files)), dtype=np.int64)
    for row, ids in ids_of():
        hashes[row : row + len(ids)] = _hashes(ids)
    hashes.sort()
    suspects = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if len(suspects):
        _refuse_duplicates(ids_of(), id_field, suspects, place or partial(_place, files))


def check_id_column(type_: pa.DataType, id_field: str, path: Path | str) -> None:
    """Refuses a column whose type gives no ids.

    Raises:
        InputError: the column is nested or holds fractions.
    """
    if pa.types.is_nested(type_) or pa.types.is_floating(type_):
        raise InputError(
            f"Not usable as ids: dataset.id_field={id_field!r}; it is {shown_type(type_)} in "
            f"{shown(Path(path))}, expected text or integers. Name another column."
        )


def id_strings(column: pa.Array, id_field: str, path: str, first_row: int) -> pa.Array:
    """Returns ids as strings; `column` begins at `first_row` of the file `path`.

    Raises:
        InputError: an id is null, or the type gives no ids.
    """
    check_id_column(column.type, id_field, path)
    return _id_strings(
        column, id_field, lambda offset: f"row {first_row + offset} of {shown(Path(path))}"
    )


def _look(
    path: Path, *, text_field: str, conversation: bool, id_field: str | None,
    keep_columns: Sequence[str],
) -> InputFile:  # fmt: skip
    with open_parquet(path) as file, reading(path):
        stat = path.stat()
        schema, footer = file.schema_arrow, file.metadata
        type_ = check_column(schema, text_field, path, "dataset.text_field")
        check_text_column(type_, text_field, path, conversation)
        if id_field is not None:
            check_column(schema, id_field, path, "dataset.id_field")
        for name in keep_columns:
            check_column(schema, name, path, "output.keep_columns")
        groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
        leaves = leaf_columns(schema, text_field)
        return InputFile(
            path=str(path),
            bytes=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            rows=footer.num_rows,
            row_groups=tuple(group.num_rows for group in groups),
            text_bytes=tuple(
                sum(group.column(leaf).total_uncompressed_size for leaf in leaves)
                for group in groups
            ),
        )


def _id_strings(column: pa.Array, id_field: str, place: Callable[[int], str]) -> pa.Array:
    if column.null_count:
        where = place(column.is_valid().index(False).as_py())
        raise InputError(
            f"Missing id: dataset.id_field={id_field!r} is null in {where}. "
            "Fill it, or leave id_field out to have ids made."
        )
    try:
        return column.cast(pa.string())
    except pa.ArrowException as error:
        raise InputError(_not_utf8(id_field, place(0), len(column))) from error


def _id_batches(
    files: Sequence[InputFile], id_field: str, max_rows: int, place: Callable[[int], str]
) -> Iterator[tuple[int, list[str]]]:
    """Yields ids as strings with the absolute row of the first."""
    row = 0
    for file in files:
        with open_parquet(file.path) as parquet:
            type_ = check_column(parquet.schema_arrow, id_field, file.path, "dataset.id_field")
            check_id_column(type_, id_field, file.path)
            batches = parquet.iter_batches(_ID_BATCH_ROWS, columns=[id_field])
            while row < max_rows:
                with reading(file.path):
                    batch = next(batches, None)
                if batch is None:
                    break
                column = batch.column(id_field).slice(0, max_rows - row)
                yield row, _decoded(column, id_field, partial(_shifted, place, row))
                row += len(column)


def _shifted(place: Callable[[int], str], first_row: int, offset: int) -> str:
    return place(first_row + offset)


def _decoded(column: pa.Array, id_field: str, place: Callable[[int], str]) -> list[str]:
    try:
        values: list[str] = _id_strings(column, id_field, place).to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(_not_utf8(id_field, place(0), len(column))) from error
    return values


def _not_utf8(id_field: str, first: str, n_rows: int) -> str:
    return (
        f"Invalid id: dataset.id_field={id_field!r} is not UTF-8 within the {n_rows} rows from "
        f"{first} on. Repair them, or name another column."
    )


def _hashes(ids: list[str]) -> npt.NDArray[np.int64]:
    # Python's own hash: 64 bits, keyed anew in each process, and the same within one.
    return np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))


def _refuse_duplicates(
    batches: Iterator[tuple[int, list[str]]],
    id_field: str,
    suspects: npt.NDArray[np.int64],
    place: Callable[[int], str],
) -> None:
    seen: dict[str, int] = {}
    for row, ids in batches:
        for offset in np.flatnonzero(np.isin(_hashes(ids), suspects)):
            id_ = ids[offset]
            if id_ in seen:
                raise InputError(
                    f"Duplicate id: dataset.id_field={id_field!r} is {shown(id_)} in "
                    f"{place(seen[id_])} and in {place(row + int(offset))}. "
                    "Remove one, or leave id_field out to have ids made."
                )
            seen[id_] = row + int(offset)


def _place(files: Sequence[InputFile], row: int) -> str:
    for file in files:
        if row < file.rows:
            return f"row {row} of {shown(Path(file.path))}"
        row -= file.rows
    raise AssertionError(row)
