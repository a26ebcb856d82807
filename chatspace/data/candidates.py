"""The rows that may be read: those that meet a condition, after the first few, up to so many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chatspace.data.inputs import InputFile
from chatspace.data.parquet import check_column, open_parquet, reading, shown_type
from chatspace.errors import InputError, SpecError
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown

Ints = npt.NDArray[np.int64]
Strata = npt.NDArray[np.integer]

BLOCK_ROWS = 1 << 20
MAX_STRATA = 1 << 16
_QUERY = "SELECT file_row_number FROM read_parquet($1, file_row_number = true) WHERE ({where}\n)"
_BATCH_ROWS = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Rows in a range of the split; of these, those whose bit is set.

    Attributes:
        start: number of the first row that may be read.
        stop: number after the last.
        bits: one bit a row of the split, most significant first; None where all are set.
    """

    start: int
    stop: int
    bits: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        if self.bits is None:
            return self.stop - self.start
        return sum(len(rows) for rows in self.blocks())

    def blocks(self) -> Iterator[Ints]:
        """Yields the numbers of the rows, ascending, in blocks."""
        for first in range(self.start - self.start % BLOCK_ROWS, self.stop, BLOCK_ROWS):
            low, high = max(first, self.start), min(first + BLOCK_ROWS, self.stop)
            rows = np.arange(low, high, dtype=np.int64)
            if self.bits is not None:
                packed = self.bits[first // 8 : -(-high // 8)]
                rows = rows[np.unpackbits(packed)[low - first : high - first].astype(bool)]
            yield rows


def find_candidates(files: Sequence[InputFile], dataset: DatasetSection) -> Candidates:
    """Returns the rows that `where`, `skip_rows` and `max_rows` leave.

    Memory is an eighth of a byte for each row of the split, and what DuckDB is allowed.

    Raises:
        SpecError: the condition is no condition, or names an unknown column.
        InputError: no row is left.
    """
    total = sum(file.rows for file in files)
    bits = None if dataset.where is None else _matching(files, dataset.where)
    found = _after(Candidates(start=0, stop=total, bits=bits), dataset.skip_rows or 0)
    if dataset.max_rows is not None:
        found = _up_to(found, dataset.max_rows)
    if not len(found):
        given = (("where", dataset.where), ("skip_rows", dataset.skip_rows))
        asked = " and ".join(f"dataset.{key}={shown(v)}" for key, v in given if v is not None)
        raise InputError(
            f"No rows left: {asked} leaves none of {total:,} rows. Change it, or leave it out."
        )
    return found


def strata(files: Sequence[InputFile], column: str) -> tuple[Strata, list[Any]]:
    """Returns the stratum of each row of the split, and the value that stands for each stratum.

    Only the column is read. Memory is one byte a row up to 256 strata, else two.

    Raises:
        InputError: the column is missing, nested, or has too many values.
    """
    codes: Strata = np.zeros(sum(file.rows for file in files), np.uint8)
    known: dict[Any, int] = {}
    row = 0
    for file in files:
        for values in _column_batches(file.path, column):
            encoded = values.dictionary_encode(null_encoding="encode")
            wanted = [known.setdefault(v, len(known)) for v in encoded.dictionary.to_pylist()]
            if len(known) > MAX_STRATA:
                raise InputError(
                    f"Too many strata: dataset.sample.stratify_by={column!r} has more than "
                    f"{MAX_STRATA:,} values in {shown(Path(file.path))}. Name another column."
                )
            if len(known) > 256 and codes.dtype == np.uint8:
                codes = codes.astype(np.uint16)
            found = np.array(wanted, codes.dtype)[encoded.indices.to_numpy(zero_copy_only=False)]
            codes[row : row + len(found)] = found
            row += len(found)
    return codes, list(known)


def _column_batches(path: str, column: str) -> Iterator[pa.Array]:
    key = "dataset.sample.stratify_by"
    with open_parquet(path) as parquet:
        type_ = check_column(parquet.schema_arrow, column, path, key)
        if pa.types.is_nested(type_):
            raise InputError(
                f"Not usable for strata: {key}={column!r}; it is {shown_type(type_)} in "
                f"{shown(Path(path))}, expected text, a number or true and false. "
                "Name another column."
            )
        batches = parquet.iter_batches(_BATCH_ROWS, columns=[column])
        while True:
            with reading(path):
                batch = next(batches, None)
            if batch is None:
                return
            values = batch.column(0)
            is_encoded = pa.types.is_dictionary(type_)
            yield values.dictionary_decode() if is_encoded else values


def _matching(files: Sequence[InputFile], where: str) -> npt.NDArray[np.uint8]:
    """Returns a bit for each row of the split, set where the condition holds."""
    bits = np.zeros(-(-sum(file.rows for file in files) // 8), np.uint8)
    connection = _connection([file.path for file in files])
    first = 0
    for file in files:
        for rows in _matching_rows(connection, file, where):
            at = rows + first
            np.bitwise_or.at(bits, at >> 3, (128 >> (at & 7)).astype(np.uint8))
        first += file.rows
    return bits


def _connection(paths: Sequence[str]) -> Any:
    """Returns a DuckDB that reads these files and no others, and writes none."""
    import duckdb

    connection = duckdb.connect(config={"memory_limit": "1GB", "autoinstall_known_extensions": "0"})
    listed = ", ".join("'{}'".format(path.replace("'", "''")) for path in paths)
    connection.execute(f"SET allowed_paths = [{listed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _matching_rows(connection: Any, file: InputFile, where: str) -> Iterator[Ints]:
    import duckdb

    query = _QUERY.format(where=where)
    try:
        # More than one statement, or a condition that closes our bracket, is no condition.
        if len(connection.extract_statements(query)) != 1 or not _is_balanced(where):
            raise SpecError(_bad_condition(where, "it is more than one condition", file))
        reader = connection.sql(query, params=[file.path]).to_arrow_reader(_BATCH_ROWS)
        for batch in reader:
            yield batch.column(0).to_numpy()
    except duckdb.Error as error:
        raise SpecError(_bad_condition(where, _first_lines(error), file)) from error


def _is_balanced(where: str) -> bool:
    import duckdb

    try:
        return len(duckdb.extract_statements(f"SELECT 1 WHERE {where}")) == 1
    except duckdb.Error:
        return False


def _bad_condition(where: str, why: str, file: InputFile) -> str:
    with open_parquet(file.path) as parquet:
        names = [str(name) for name in parquet.schema_arrow.names]
    listed = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    return (
        f"Invalid condition: dataset.where={shown(where)}; {why}; columns are {listed}. "
        "Write it as after WHERE in SQL."
    )


def _first_lines(error: Exception) -> str:
    """Returns what DuckDB says, without its picture of where in the query."""
    lines = [line.strip() for line in str(error).split("\n\n", maxsplit=1)[0].splitlines()]
    return " ".join(lines)[:200].rstrip(".!")


def _after(candidates: Candidates, n_rows: int) -> Candidates:
    """Returns the candidates without the first `n_rows`."""
    start = _nth(candidates, n_rows)
    return Candidates(start=start, stop=candidates.stop, bits=candidates.bits)


def _up_to(candidates: Candidates, n_rows: int) -> Candidates:
    """Returns the first `n_rows` of the candidates."""
    stop = _nth(candidates, n_rows)
    return Candidates(start=candidates.start, stop=stop, bits=candidates.bits)


def _nth(candidates: Candidates, n: int) -> int:
    """Returns the number of candidate `n`, counted from 0; the end where there are no more."""
    if candidates.bits is None:
        return min(candidates.start + n, candidates.stop)
    for rows in candidates.blocks():
        if n < len(rows):
            return int(rows[n])
        n -= len(rows)
    return candidates.stop
