"""Plain text as a table: a row for each line, paragraph or file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from chatspace.data.opening import at_line, lines_of
from chatspace.data.tables import Row, Table, row_batches
from chatspace.errors import InputError
from chatspace.spec.dataset import TextUnit

_SCHEMA = pa.schema([("text", pa.string()), ("file", pa.string()), ("line", pa.int64())])


def read_text(paths: Sequence[Path], unit: TextUnit, home: Path) -> Table:
    r"""Returns a table with the columns text, file and line.

    A line is a row even where it is blank, so that row and line numbers agree; a paragraph ends at
    a blank line. Line ends are left out, and inside a paragraph or a file they are `\n`. A row of
    unit `file` is in memory as a whole.

    Args:
        paths: UTF-8 files, in order.
        unit: what a row is.
        home: the folder that the names in column `file` are relative to.

    Raises:
        InputError: a file is damaged or no UTF-8; found while the batches are read.
    """
    rows_of = text_rows(unit, home)
    return Table(
        schema=_SCHEMA, batches=lambda: row_batches(paths, rows_of, pa.struct(list(_SCHEMA)))
    )


def text_rows(unit: TextUnit, home: Path) -> Callable[[Path], Iterator[Row]]:
    """Returns what yields the rows of a file; arguments as in `read_text`."""
    return partial(_rows, unit=unit, home=home)


def _rows(path: Path, *, unit: TextUnit, home: Path) -> Iterator[Row]:
    name = path.relative_to(home).as_posix()

    def row(lines: list[str], first: int) -> Row:
        text = "\n".join(lines)
        values = {"text": text, "file": name, "line": first}
        return Row(line=first, size=len(text), values=values)

    held: list[str] = []
    first = 1
    for number, line in enumerate(_lines(path), start=1):
        ends = unit == "paragraph" and not line.strip()
        if not ends:
            first = first if held else number
            held.append(line)
        if held and (ends or unit == "line"):
            yield row(held, first)
            held = []
    if held:
        yield row(held, first)


def _lines(path: Path) -> Iterator[str]:
    for number, raw in enumerate(lines_of(path), start=1):
        try:
            yield raw.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InputError(f"Not UTF-8: {at_line(path, number)}. Convert it to UTF-8.") from error
