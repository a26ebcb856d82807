"""The rows that may be read: those that meet a condition, after the first few, up to so many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chatspace.data.condition import matching_rows
from chatspace.data.inputs import InputFile
from chatspace.data.parquet import check_column, open_parquet, reading, shown_type
from chatspace.data.scratch import Scratch
from chatspace.errors import InputError
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown
from chatspace.wording import counted

Ints = npt.NDArray[np.int64]

BLOCK_ROWS = 1 << 20
MAX_STRATA = 1 << 16
STRATUM = np.uint16
# A column may be wide, and strata are short: a batch of this many rows holds what a few names take.
_BATCH_ROWS = 1 << 13


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
        SpecError: the condition is no condition, names an unknown column, or varies.
        InputError: no row is left, or a file cannot be read.
    """
    total = sum(file.rows for file in files)
    bits = None if dataset.where is None else matching_rows(files, dataset.where)
    found = _after(Candidates(start=0, stop=total, bits=bits), dataset.skip_rows or 0)
    if dataset.max_rows is not None:
        found = _up_to(found, dataset.max_rows)
    if not len(found):
        given = (("where", dataset.where), ("skip_rows", dataset.skip_rows))
        asked = " and ".join(f"dataset.{key}={shown(v)}" for key, v in given if v is not None)
        raise InputError(
            f"No rows left: {asked} leaves none of the {counted(total, 'row')} of "
            f"{shown(Path(files[0].path))}{' and others' if len(files) > 1 else ''}. "
            "Change it, or leave it out."
        )
    return found


def strata(files: Sequence[InputFile], column: str, codes: Scratch) -> list[Any]:
    """Writes the stratum of each row of the split, two bytes each; returns what each stands for.

    Only the column is read. Memory is a batch and the values of the strata.

    Raises:
        InputError: the column is missing, nested, or has too many values.
        OutputError: there is no room for the strata.
    """
    known: dict[Any, int] = {}
    for file in files:
        for values in _column_batches(file.path, column):
            encoded, found_values = _encoded(values, column, file.path)
            wanted = [known.setdefault(value, len(known)) for value in found_values]
            if len(known) > MAX_STRATA:
                raise InputError(
                    f"Too many strata: dataset.sample.stratify_by={column!r} has more than "
                    f"{MAX_STRATA:,} values in {shown(Path(file.path))}. Name another column."
                )
            codes.append(np.array(wanted, STRATUM)[encoded])
    return list(known)


def _encoded(values: pa.Array, column: str, path: str) -> tuple[Ints, list[Any]]:
    """Returns the place of each row's value in a list of values, and the list."""
    try:
        encoded = values.dictionary_encode(null_encoding="encode")
        found = encoded.dictionary.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        why = " ".join(str(error).split())[:120]
        raise InputError(
            f"Not usable for strata: dataset.sample.stratify_by={column!r}; {why}, in "
            f"{shown(Path(path))}. Name another column."
        ) from error
    # What is no number equals nothing, itself included; here it is one stratum.
    return encoded.indices.to_numpy(), [_NAN if value != value else value for value in found]  # noqa: PLR0124


_NAN = object()


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
