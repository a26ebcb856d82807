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

BLOCK_ROWS = 1 << 18  # numbers of two blocks fit into a processor's cache
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

    Strata are numbered as they first appear. Only the column is read. Memory is a batch and the
    values of the strata.

    Raises:
        InputError: the column is missing, nested, or has too many values.
        OutputError: there is no room for the strata.
    """
    known: dict[Any, int] = {}
    for file in files:
        coded = _Coded(known)
        for values in _column_batches(file.path, column):
            try:
                numbers = coded.numbers(values)
            except (pa.ArrowException, ValueError, OverflowError) as error:
                why = " ".join(str(error).split())[:120]
                raise InputError(
                    f"Not usable for strata: dataset.sample.stratify_by={column!r}; {why}, in "
                    f"{shown(Path(file.path))}. Name another column."
                ) from error
            if len(known) > MAX_STRATA:
                raise InputError(
                    f"Too many strata: dataset.sample.stratify_by={column!r} has more than "
                    f"{MAX_STRATA:,} values in {shown(Path(file.path))}. Name another column."
                )
            codes.append(numbers.astype(STRATUM))
    return list(known)


_NAN = object()  # what is no number equals nothing, itself included; here it is one stratum


class _Coded:
    """Numbers the values of a column, batch by batch.

    Batches of a row group share the dictionary that Parquet stores: each of its entries is looked
    up once.

    Args:
        known: number of each value so far; grows.
    """

    def __init__(self, known: dict[Any, int]) -> None:
        self._known = known
        self._entries: pa.Array | None = None
        self._numbers: Ints = np.empty(0, np.int64)  # of each entry and of null; -1 until it occurs

    def numbers(self, values: pa.Array) -> Ints:
        """Returns the number of each value, (n_rows,)."""
        is_encoded = pa.types.is_dictionary(values.type)
        encoded = values if is_encoded else values.dictionary_encode()
        entries = encoded.dictionary
        if self._entries is None or not entries.equals(self._entries):
            self._entries = entries
            self._numbers = np.full(len(entries) + 1, -1, np.int64)
        indices = encoded.indices.fill_null(len(entries)).to_numpy()  # (n_rows,)
        is_new = self._numbers[indices] < 0
        new, first = np.unique(indices[is_new], return_index=True)
        for entry in new[np.argsort(first)].tolist():
            value = entries[entry].as_py() if entry < len(entries) else None
            value = _NAN if value != value else value  # noqa: PLR0124
            self._numbers[entry] = self._known.setdefault(value, len(self._known))
        numbers: Ints = self._numbers[indices]
        return numbers


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
    with open_parquet(path, encoded=[column]) as parquet:
        batches = parquet.iter_batches(_BATCH_ROWS, columns=[column])
        while True:
            with reading(path):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch.column(0)


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
