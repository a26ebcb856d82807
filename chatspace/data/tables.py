"""Streaming readers of the formats that are staged: each gives a schema and batches.

A reader goes through its files once for the schema, so that what is wrong is found before anything
is written, and once more for the batches. No more than a batch is held.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatspace.data.opening import at_line, lines_of, opened
from chatspace.data.parquet import reading
from chatspace.data.shapes import Shape, TypeConflict, UnfitKey
from chatspace.errors import InputError
from chatspace.spec.document import shown

log = logging.getLogger(__name__)

_BATCH_ROWS = 8192
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A schema, and the batches that follow it; `batches` can be called once."""

    schema: pa.Schema
    batches: Callable[[], Iterator[pa.RecordBatch]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a text format: the line that it begins on, and about its size in bytes."""

    line: int
    size: int
    values: dict[str, Any]


RowsOf = Callable[[Path], Iterator[Row]]


def read_jsonl(paths: Sequence[Path]) -> Table:
    """Returns a table of JSON objects, one a line; blank lines are passed over.

    Raises:
        InputError: a line is no JSON object, or a key's type is another than on the lines before.
    """
    return read_objects(paths, jsonl_rows)


def read_objects(paths: Sequence[Path], rows_of: RowsOf) -> Table:
    """Returns a table of the objects that `rows_of` yields of each file.

    Raises:
        InputError: a file cannot be read, a key is no Unicode text, or its type is another than in
            the objects before.
    """
    shape = Shape()
    for path in paths:
        for row in rows_of(path):
            try:
                shape.add(row.values)
            except UnfitKey as error:
                raise InputError(
                    f"Unfit key: {at_line(path, row.line)}; {error}. Rename it."
                ) from error
            except TypeConflict as error:
                raise InputError(
                    f"Type conflict: {at_line(path, row.line)}; {error}. Give the key one type."
                ) from error
    type_ = (shape.type() if shape.kind else None) or pa.struct([])
    return Table(schema=pa.schema(list(type_)), batches=lambda: row_batches(paths, rows_of, type_))


def read_csv(paths: Sequence[Path]) -> Table:
    """Returns a table of comma-separated values with a header line; every column is text.

    CSV has no types: guessing them would turn `007` into 7.

    Raises:
        InputError: a row has another number of fields than the header, a quote stays open, the
            files' headers differ, or the text is no UTF-8.
    """
    header: list[str] | None = None
    for path in paths:
        found: list[str] = []
        for row in csv_rows(path):
            found = list(row.values)
            header = header or found
            if found != header:
                raise InputError(
                    f"Headers differ: {at_line(path, 1)} has {', '.join(found)}; "
                    f"{shown(paths[0])} has {', '.join(header)}. Make them equal."
                )
    fields = [pa.field(name, pa.string()) for name in header or []]
    return Table(
        schema=pa.schema(fields), batches=lambda: row_batches(paths, csv_rows, pa.struct(fields))
    )


def read_arrow(paths: Sequence[Path]) -> Table:
    """Returns a table of Arrow IPC files or streams.

    Raises:
        InputError: a file is no Arrow, damaged, or of another schema than the first.
    """
    schema: pa.Schema | None = None
    for path in paths:
        with _arrow(path) as (described, _):
            found = described.remove_metadata()
        if schema is not None and found != schema:
            names = sorted(set(map(str, found)) ^ set(map(str, schema)))
            raise InputError(
                f"Schemas differ: {shown(path)} and {shown(paths[0])}; they differ in "
                f"{', '.join(names[:5])}. Make them equal."
            )
        schema = found
    assert schema is not None
    return Table(schema=schema, batches=lambda: _arrow_batches(paths, schema))


def row_place(paths: Sequence[Path], rows_of: RowsOf | None, row: int) -> str:
    """Returns where a row of a table stands in its files, as errors name it; reads up to there.

    Args:
        paths: the files, in order.
        rows_of: yields the rows of a file; None for Arrow files.
        row: counted from 0 over all files.
    """
    for path in paths:
        if rows_of is None:
            with _arrow(path) as (_, batches):
                n_rows = sum(batch.num_rows for batch in batches)
            if row < n_rows:
                return f"row {row} of {shown(path)}"
            row -= n_rows
            continue
        for found in rows_of(path):
            if row == 0:
                return at_line(path, found.line)
            row -= 1
    raise AssertionError(row)


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Yields the objects of a file of JSON lines."""
    for line, raw in enumerate(lines_of(path), start=1):
        text = raw.strip()
        if not text:
            continue
        try:
            values = json.loads(text.decode())
        except UnicodeDecodeError as error:
            raise InputError(f"Not UTF-8: {at_line(path, line)}. Convert it to UTF-8.") from error
        except RecursionError as error:
            raise InputError(f"Invalid JSON: {at_line(path, line)}; nested too deeply.") from error
        except ValueError as error:
            raise InputError(
                f"Invalid JSON: {at_line(path, line)}; {error}. Repair or remove the line."
            ) from error
        if not isinstance(values, dict):
            raise InputError(
                f"Not an object: {at_line(path, line)} holds {shown(values, 40)}; expected "
                '{"key": value, ...}. Repair or remove the line.'
            )
        yield Row(line=line, size=len(raw), values=values)


def csv_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a CSV file below its header."""
    # One limit for the whole process; 128 KiB, its default, is less than a long text.
    csv.field_size_limit(sys.maxsize)
    with opened(path) as raw:
        # surrogateescape: a byte that is no UTF-8 is found in its row, with its line.
        text = TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        header: list[str] | None = None
        try:
            for fields in reader:
                if header is None:
                    header = _header(fields, path)
                elif fields:
                    yield _csv_row(header, fields, path, reader.line_num)
        except csv.Error as error:
            raise InputError(
                f"Invalid CSV: {at_line(path, reader.line_num)}; {error}. Repair the quotes."
            ) from error


def _csv_row(header: list[str], fields: list[str], path: Path, line: int) -> Row:
    if len(fields) != len(header):
        raise InputError(
            f"Broken row: {at_line(path, line)} has {len(fields)} fields, the header "
            f"{len(header)}. Quote fields that hold commas."
        )
    size = sum(map(len, fields))
    if not all(field.isascii() or _is_unicode(field) for field in fields):
        raise InputError(f"Not UTF-8: {at_line(path, line)}. Convert the file to UTF-8.")
    return Row(line=line, size=size, values=dict(zip(header, fields, strict=True)))


def _header(fields: list[str], path: Path) -> list[str]:
    twice = {name for name in fields if fields.count(name) > 1}
    if twice:
        raise InputError(
            f"Ambiguous column: {at_line(path, 1)} names {min(twice)!r} twice. Rename one."
        )
    if not all(map(_is_unicode, fields)):
        raise InputError(f"Not UTF-8: {at_line(path, 1)}. Convert the file to UTF-8.")
    return fields


def row_batches(
    paths: Sequence[Path], rows_of: RowsOf, type_: pa.DataType
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of files as batches of no more than 16 MiB and a row.

    Raises:
        InputError: a value does not fit its type.
    """
    for path in paths:
        rows: list[Row] = []
        size = 0
        for row in rows_of(path):
            rows.append(row)
            size += row.size
            if len(rows) >= _BATCH_ROWS or size >= _BATCH_BYTES:
                yield _batch(rows, type_, path)
                rows, size = [], 0
        if rows:
            yield _batch(rows, type_, path)


def _batch(rows: list[Row], type_: pa.DataType, path: Path) -> pa.RecordBatch:
    values = [row.values for row in rows]
    try:
        array = pa.array(values, type_)
    except UnicodeEncodeError:
        # JSON escapes can carry half of a surrogate pair, which has no UTF-8: decoders put U+FFFD.
        log.warning(
            "replaced=half_surrogates place=%s rows=%d", at_line(path, rows[0].line), len(rows)
        )
        array = pa.array([_without_surrogates(value) for value in values], type_)
    except (pa.ArrowException, OverflowError) as error:
        raise InputError(
            f"Type conflict: {at_line(path, rows[0].line)} to {rows[-1].line}; {error}. "
            "Give each key one type."
        ) from error
    return pa.RecordBatch.from_struct_array(array)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(inner) for inner in value]
    if isinstance(value, str) and not _is_unicode(value):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _arrow(path: Path) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    with reading(path):
        source = pa.memory_map(str(path))
    with source:
        found: tuple[pa.Schema, Iterator[pa.RecordBatch]]
        try:
            file = pa.ipc.open_file(source)
            found = file.schema, map(file.get_batch, range(file.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            found = _arrow_stream(source, path)
        yield found


def _arrow_stream(source: pa.NativeFile, path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    try:
        stream = pa.ipc.open_stream(source)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"Not an Arrow file: {shown(path)}; it does not begin as one. Copy it again, or set "
            "dataset.source to what it is."
        ) from error
    return stream.schema, iter(stream)


def _arrow_batches(paths: Sequence[Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with _arrow(path) as (_, batches):
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as error:
                    why = " ".join(str(error).split())
                    raise InputError(
                        f"Damaged Arrow file: {shown(path)}; {why[:120]}. Copy it again."
                    ) from error
                if batch is None:
                    break
                yield batch.replace_schema_metadata(None).cast(schema)
