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
    open_parquet,
    reading,
    shown_type,
)
from chatspace.data.scratch import repeated_values
from chatspace.data.selection import RowRange, Selection
from chatspace.data.texts import check_turns, needed_leaves, row_texts
from chatspace.errors import InputError
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown
from chatspace.wording import counted

Ints = npt.NDArray[np.int64]

# Footers are small reads; on a network file system their latency is what costs.
_THREADS = 16
_ID_BATCH_ROWS = 65536
_TRIED_ROWS = 8
# A conversation that is damaged may stand among the first, so more of them are looked at.
_TRIED_TURNS = 64


def inventory(
    paths: Sequence[Path], dataset: DatasetSection, *, keep_columns: Sequence[str] = ()
) -> list[InputFile]:
    """Returns what each Parquet file holds, in the order of `paths`; only footers are read.

    Of a template or of conversations, the first rows are rendered too.

    Args:
        paths: absolute paths.
        dataset: says what is embedded, and the column of the ids, which must exist.
        keep_columns: further columns that must exist.

    Raises:
        InputError: a file is missing, truncated or no Parquet; a column is missing or of a wrong
            type; there are no rows at all.
    """
    look = partial(_look, dataset=dataset, keep_columns=keep_columns)
    with ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(look, paths))
    # Rows drawn or skipped to have the shape of the first ones; those of a condition may not.
    tries_turns = dataset.turns is not None and dataset.where is None
    if tries_turns or (dataset.template is not None and not dataset.picks_rows):
        _try_first_rows(files, dataset)
    if not any(file.rows for file in files):
        first = f" such as {shown(paths[0])}" if paths else ""
        raise InputError(
            f"Empty dataset: {counted(len(files), 'file')}{first}: no rows. Check path and split."
        )
    return files


def check_unique_ids(
    files: Sequence[InputFile],
    id_field: str,
    n_rows: int,
    *,
    selection: Selection | None = None,
    place: Callable[[int], str] | None = None,
    scratch: Path | None = None,
) -> None:
    """Proves that no id stands twice in the rows that are read, however many they are.

    A first pass compares 64-bit hashes; where two are equal, a second pass compares the ids. Memory
    is 65,536 ids and less than 0.5 GB. Beyond 16 million rows the hashes lie on disk meanwhile, 8
    bytes for each. The time is that of reading the column, and about 0.4 microseconds a row.

    Args:
        files: the split's files, in order.
        id_field: column of the ids.
        n_rows: how many rows are read.
        selection: which rows of the split they are [the first ones].
        place: gives where a row of the split comes from, as errors name it [row of a file].
        scratch: folder for the hashes [where the system keeps temporary files].

    Raises:
        InputError: an id is null or stands twice, or the column's type gives no ids.
        OutputError: there is no room for the hashes.
    """
    named = place or partial(_place, files)
    ids_of = partial(_id_batches, files, id_field, (selection or RowRange(), n_rows), named)
    most = min(n_rows, sum(file.rows for file in files))
    for suspects in repeated_values((_hashes(ids) for _, ids in ids_of()), most, scratch):
        _refuse_duplicates(ids_of(), id_field, suspects, named)


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


def id_strings(column: pa.Array, id_field: str, path: str, place: Callable[[int], str]) -> pa.Array:
    """Returns ids as strings; `place` names the row at an offset, for errors.

    Raises:
        InputError: an id is null, or the type gives no ids.
    """
    check_id_column(column.type, id_field, path)
    return _id_strings(column, id_field, place)


def _look(path: Path, *, dataset: DatasetSection, keep_columns: Sequence[str]) -> InputFile:
    with open_parquet(path) as file, reading(path):
        stat = path.stat()
        schema, footer = file.schema_arrow, file.metadata
        leaves = needed_leaves(dataset, schema, path)
        if dataset.id_field is not None:
            check_column(schema, dataset.id_field, path, "dataset.id_field")
        for name in keep_columns:
            check_column(schema, name, path, "output.keep_columns")
        if dataset.sample is not None and dataset.sample.stratify_by is not None:
            check_column(schema, dataset.sample.stratify_by, path, "dataset.sample.stratify_by")
        groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
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


def _try_first_rows(files: Sequence[InputFile], dataset: DatasetSection) -> None:
    """Renders a few rows, so that a template that fails on all of them fails here, not in tasks.

    Of a column of conversations, one has to be there among them.
    """
    for file in files:
        with open_parquet(file.path) as parquet, reading(file.path):
            leaves = needed_leaves(dataset, parquet.schema_arrow, file.path)
            columns = [parquet.metadata.schema.column(leaf).path for leaf in leaves]
            n_tried = _TRIED_ROWS if dataset.template is not None else _TRIED_TURNS
            n_rows = min(n_tried, dataset.max_rows or n_tried)
            batch = next(parquet.iter_batches(n_rows, columns=columns), None)
            if batch is not None:
                place = partial(_row_of_file, file.path)
                if dataset.turns is not None:
                    check_turns(dataset, batch, file.path)
                for _ in row_texts(dataset, batch, file.path, place):
                    pass
                return


def _row_of_file(path: str, row: int) -> str:
    return f"row {row} of {shown(Path(path))}"


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
    files: Sequence[InputFile],
    id_field: str,
    read: tuple[Selection, int],
    place: Callable[[int], str],
) -> Iterator[tuple[Ints, list[str]]]:
    """Yields ids as strings with their rows in the split."""
    selection, n_left = read
    row = 0
    for file in files:
        with open_parquet(file.path) as parquet:
            type_ = check_column(parquet.schema_arrow, id_field, file.path, "dataset.id_field")
            check_id_column(type_, id_field, file.path)
            batches = parquet.iter_batches(_ID_BATCH_ROWS, columns=[id_field])
            while n_left:
                with reading(file.path):
                    batch = next(batches, None)
                if batch is None:
                    break
                rows = selection.between(row, row + batch.num_rows)[:n_left]
                column = batch.column(id_field).take(pa.array(rows - row))
                if len(rows):
                    yield rows, _decoded(column, id_field, partial(_nth_place, place, rows))
                row += batch.num_rows
                n_left -= len(rows)


def _nth_place(place: Callable[[int], str], rows: Ints, offset: int) -> str:
    return place(int(rows[offset]))


def _decoded(column: pa.Array, id_field: str, place: Callable[[int], str]) -> list[str]:
    try:
        values: list[str] = _id_strings(column, id_field, place).to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(_not_utf8(id_field, place(0), len(column))) from error
    return values


def _not_utf8(id_field: str, first: str, n_rows: int) -> str:
    return (
        f"Invalid id: dataset.id_field={id_field!r} is not UTF-8 within the "
        f"{counted(n_rows, 'row')} from {first} on. Repair them, or name another column."
    )


def _hashes(ids: list[str]) -> npt.NDArray[np.int64]:
    # Python's own hash: 64 bits, keyed anew in each process, and the same within one.
    return np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))


def _refuse_duplicates(
    batches: Iterator[tuple[Ints, list[str]]],
    id_field: str,
    suspects: npt.NDArray[np.int64],
    place: Callable[[int], str],
) -> None:
    seen: dict[str, int] = {}
    for rows, ids in batches:
        for offset in np.flatnonzero(np.isin(_hashes(ids), suspects)):
            id_, row = ids[offset], int(rows[offset])
            if id_ in seen:
                raise InputError(
                    f"Duplicate id: dataset.id_field={id_field!r} is {shown(id_)} in "
                    f"{place(seen[id_])} and in {place(row)}. "
                    "Remove one, or leave id_field out to have ids made."
                )
            seen[id_] = row


def _place(files: Sequence[InputFile], row: int) -> str:
    for file in files:
        if row < file.rows:
            return f"row {row} of {shown(Path(file.path))}"
        row -= file.rows
    raise AssertionError(row)
