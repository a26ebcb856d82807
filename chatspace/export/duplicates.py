"""Rows of a run that are nearly the same, by the cosine of their vectors.

Exact: every row is compared with every other, as products of blocks. As many rows as fit into
`memory_bytes` are held while all later ones stream past, so that a run is read once for each such
panel; n rows take n² dim operations, which is minutes for 100,000 rows of 384 on two cores, and
hours for a million.

Approximate, for larger runs: rows are compared with those that share one of their nearest pivots, a
pivot being one of 2 sqrt(n) rows drawn at random; that takes n^1.5 dim operations and dim * 4
bytes a row of temporary disk. What it misses is measured: a sample of rows is compared with all.

Rows with equal vectors are found first and compared once, however many they are; each makes one
pair, with the first of them.

Source: Boytsov and Naidan, "Engineering Efficient and Effective Non-metric Space Library", SISAP
    2013, on comparing what shares nearest pivots.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chatspace.atomic import output_error
from chatspace.errors import InputError
from chatspace.export.pairs import (
    MOST_PAIRS,
    ROUNDING,
    Distinct,
    PairList,
    Pairs,
    distinct_rows,
)
from chatspace.export.search import refuse_one_number
from chatspace.export.source import FloatArray, Positions, VectorSource, unit_rows
from chatspace.shards.table import float_vectors

MEMORY_BYTES = 2**30
TILE_ROWS = 4096
PIVOTS_A_ROW = 3
MOST_PIVOTS = 8192
SAMPLE_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search for duplicates found.

    Attributes:
        n_zero: rows without a direction, which were left out.
        sampled: pairs of the sampled rows that there are; None if every row was compared.
        sampled_found: how many of them were found.
    """

    pairs: Pairs
    n_zero: int
    sampled: int | None = None
    sampled_found: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is searched for.

    Attributes:
        threshold: least cosine of a pair.
        approximate: compare rows that share a pivot only.
        max_pairs: more are an error.
        memory_bytes: of vectors that are held at a time.
    """

    threshold: float
    approximate: bool = False
    max_pairs: int = MOST_PAIRS
    memory_bytes: int = MEMORY_BYTES

    def check(self) -> None:
        """Refuses what cannot be meant.

        Raises:
            InputError: the threshold is not above 0 and at most 1, or no pair is allowed.
        """
        if not 0 < self.threshold <= 1:
            raise InputError(
                f"Out of range: --threshold {self.threshold:g}; above 0, at most 1. Try 0.95."
            )
        if self.max_pairs < 1:
            raise InputError(f"Out of range: --max-pairs {self.max_pairs}; 1 or more.")


def find_duplicates(source: VectorSource, wanted: Wanted, *, scratch: Path | None = None) -> Found:
    """Returns all pairs of rows whose cosine is at least the threshold; the same in each call.

    Args:
        source: the rows.
        wanted: threshold and bounds.
        scratch: folder for the temporary file of an approximate search [$TMPDIR].

    Raises:
        InputError: the threshold is out of range, or there are too many pairs.
        OutputError: there is no room for the temporary file.
    """
    wanted.check()
    refuse_one_number(source)
    pairs = PairList(wanted.threshold, wanted.max_pairs)
    distinct = distinct_rows(source)
    distinct.add_copies(pairs)
    if wanted.approximate:
        return _approximate(source, wanted, distinct, pairs, scratch=scratch)
    _compare_all(source, wanted, distinct, pairs)
    return Found(pairs=pairs.pairs(source.rows), n_zero=distinct.n_zero)


# Exact


def _compare_all(source: VectorSource, wanted: Wanted, distinct: Distinct, pairs: PairList) -> None:
    most = max(1, wanted.memory_bytes // (4 * source.encoding.dim))
    start = 0
    while start < source.rows:
        panel, places, stop = _panel(source, distinct, start, most)
        _compare_within(panel, places, wanted.threshold, pairs)
        for later_places, later in _compared(source, distinct, stop):
            for tile in _tiles(len(panel)):
                _compare(
                    (panel[tile], places[tile]), (later, later_places), wanted.threshold, pairs.add
                )
        start = stop


def _panel(
    source: VectorSource, distinct: Distinct, start: int, most: int
) -> tuple[FloatArray, Positions, int]:
    """Returns vectors and positions of rows to compare, from `start` on, and where to go on."""
    n_rows = int(min(most, distinct.is_compared[start:].sum()))
    panel = np.empty((n_rows, source.encoding.dim), np.float32)
    places, n_held, stop = np.empty(n_rows, np.int64), 0, source.rows
    for block_places, block in _compared(source, distinct, start):
        n_taken = min(len(block), n_rows - n_held)
        panel[n_held : n_held + n_taken] = block[:n_taken]
        places[n_held : n_held + n_taken] = block_places[:n_taken]
        n_held += n_taken
        if n_taken < len(block):
            stop = int(block_places[n_taken])
            break
    return panel, places, stop


def _compared(
    source: VectorSource, distinct: Distinct, start: int
) -> Iterator[tuple[Positions, FloatArray]]:
    """Yields positions and unit vectors of the rows that are compared, from `start` on."""
    if not distinct.is_compared[start:].any():
        return
    for first, vectors in source.unit_vectors(start):
        chosen = np.flatnonzero(distinct.is_compared[first : first + len(vectors)])
        if len(chosen):
            yield first + chosen, vectors if len(chosen) == len(vectors) else vectors[chosen]


def _compare_within(
    vectors: FloatArray, places: Positions, threshold: float, pairs: PairList
) -> None:
    for tile in _tiles(len(vectors)):
        for other in _tiles(len(vectors), tile.start):

            def add(a: Positions, b: Positions, scores: FloatArray) -> None:
                later = a < b
                pairs.add(a[later], b[later], scores[later])

            _compare((vectors[tile], places[tile]), (vectors[other], places[other]), threshold, add)


def _tiles(n_rows: int, start: int = 0) -> Iterator[slice]:
    for first in range(start, n_rows, TILE_ROWS):
        yield slice(first, min(first + TILE_ROWS, n_rows))


def _compare(
    ours: tuple[FloatArray, Positions],
    theirs: tuple[FloatArray, Positions],
    threshold: float,
    add: Callable[[Positions, Positions, FloatArray], None],
) -> None:
    """Hands on the pairs of two sets of rows, each vectors and positions, that are alike."""
    for tile in _tiles(len(theirs[0])):
        scores = ours[0] @ theirs[0][tile].T  # (n_ours, n_tile)
        flat = np.flatnonzero(scores >= threshold - ROUNDING)
        if len(flat):
            a, b = np.divmod(flat, scores.shape[1])
            add(ours[1][a], theirs[1][tile][b], np.minimum(scores.reshape(-1)[flat], 1))


# Approximate


def _approximate(
    source: VectorSource,
    wanted: Wanted,
    distinct: Distinct,
    pairs: PairList,
    *,
    scratch: Path | None,
) -> Found:
    rows = np.flatnonzero(distinct.is_compared)
    shape = (len(rows), source.encoding.dim)
    if not len(rows):
        return Found(
            pairs=pairs.pairs(source.rows), n_zero=distinct.n_zero, sampled=0, sampled_found=0
        )
    with _temporary_array(scratch or Path(tempfile.gettempdir()), shape) as kept:
        sample = np.unique(np.linspace(0, len(rows) - 1, SAMPLE_ROWS).astype(np.int64))
        cells, true = _cells(
            source, distinct, kept, sample=rows[sample], threshold=wanted.threshold
        )
        order = np.argsort(cells.reshape(-1), kind="stable")  # by cell, then by row
        sizes = np.bincount(cells.reshape(-1))
        ends = np.cumsum(sizes)
        for stop, size in zip(ends.tolist(), sizes.tolist(), strict=True):
            members = order[stop - size : stop] // cells.shape[1]
            _compare_within(kept[members], rows[members], wanted.threshold, pairs)
    found = pairs.pairs(source.rows)
    known = np.isin(true, found.first * source.rows + found.second)
    return Found(
        pairs=found, n_zero=distinct.n_zero, sampled=len(true), sampled_found=int(known.sum())
    )


@contextmanager
def _temporary_array(
    folder: Path, shape: tuple[int, int]
) -> Iterator[np.memmap[tuple[int, int], np.dtype[np.float32]]]:
    """Gives a float32 array in a file without a name, which goes with the process.

    Raises:
        OutputError: the folder cannot be written, or the disk has no room for it.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            n_bytes = 4 * shape[0] * shape[1]
            file.truncate(n_bytes)
            # Reserved at once: a disk that is full when a page is written ends the process.
            if hasattr(os, "posix_fallocate"):  # not on a Mac
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            yield np.memmap(file, np.float32, "r+", shape=shape)
    except OSError as error:
        raise output_error(error, folder, "$TMPDIR") from error


def _cells(
    source: VectorSource,
    distinct: Distinct,
    kept: npt.NDArray[np.float32],
    *,
    sample: Positions,
    threshold: float,
) -> tuple[npt.NDArray[np.int32], Positions]:
    """Keeps the compared rows in a file and finds the nearest pivots of each.

    Args:
        source: the rows.
        distinct: which of them are compared.
        kept: takes the unit vectors, (n_compared, dim).
        sample: positions of rows that are compared with all others.
        threshold: least cosine of a pair.

    Returns:
        Pivots of each row, (n_compared, PIVOTS_A_ROW); the pairs of the sampled rows, each as
        `first * n_rows + second`, ascending.
    """
    rows = np.flatnonzero(distinct.is_compared)
    n_pivots = int(max(1, min(len(rows), MOST_PIVOTS, round(2 * len(rows) ** 0.5))))
    drawn = np.sort(np.random.default_rng(0).choice(rows, n_pivots, replace=False))
    pivots, sampled = (_unit_at(source, places) for places in (drawn, sample))
    n_each = min(PIVOTS_A_ROW, n_pivots)
    cells = np.empty((len(rows), n_each), np.int32)
    true, n_done = PairList(threshold, MOST_PAIRS), 0
    for places, vectors in _compared(source, distinct, 0):
        for tile in _tiles(len(vectors)):
            stop = n_done + len(vectors[tile])
            cells[n_done:stop] = _nearest(vectors[tile] @ pivots.T, n_each)
            kept[n_done:stop] = vectors[tile]
            n_done = stop
        _compare((vectors, places), (sampled, sample), threshold, _but_itself(true))
    found = true.pairs(source.rows)
    return cells, found.first * source.rows + found.second


def _nearest(scores: FloatArray, n_each: int) -> npt.NDArray[np.int32]:
    """Returns the columns of the highest scores of each row, (n_rows, n_each); spoils the scores.

    A few passes for the highest are faster than a partition, and take no memory.
    """
    found = np.empty((len(scores), n_each), np.int32)
    every = np.arange(len(scores))
    for place in range(n_each):
        found[:, place] = scores.argmax(axis=1)
        scores[every, found[:, place]] = -np.inf
    return found


def _but_itself(pairs: PairList) -> Callable[[Positions, Positions, FloatArray], None]:
    def add(a: Positions, b: Positions, scores: FloatArray) -> None:
        other = a != b
        pairs.add(a[other], b[other], scores[other])

    return add


def _unit_at(source: VectorSource, places: Positions) -> FloatArray:
    return unit_rows(float_vectors(source.rows_at(places, source.encoding.columns)))
