"""Which rows are drawn: exactly so many, the same on every machine.

A row's place in the draw is an output of SplitMix64, a bijection of 64-bit numbers, so no two rows
of a split are level, and what is drawn is the rows below one threshold. Two passes over the row
numbers find it and give the rows; neither holds more than a block of them and the few that lie near
the threshold.

Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_SPACE = 1 << 64
_BLOCK_ROWS = 1 << 18
# The threshold lies further from where it is expected once in 10^15 draws; then all is looked at.
_SIGMAS = 8

Strata = npt.NDArray[np.integer]
Block = tuple[Ints, Strata | None]
"""Row numbers, ascending, and the stratum of each; None where there is one stratum."""


def row_hashes(rows: Ints, seed: int) -> Hashes:
    """Returns output number `row` of the SplitMix64 generator with this seed, for each row.

    Args:
        rows: row numbers in the split, (n_rows,).
        seed: state of the generator, below 2**64.
    """
    state = rows.astype(np.uint64)
    state += np.uint64(1)
    state *= np.uint64(_GOLDEN)
    state += np.uint64(seed)
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    state ^= state >> np.uint64(_SHIFTS[2])
    return state


def shares(counts: Ints, wanted: int) -> Ints:
    """Returns how many of each stratum are drawn: in proportion, by largest remainder.

    Args:
        counts: rows of each stratum, (n_strata,).
        wanted: rows in all, at most their sum.
    """
    total = int(counts.sum())
    exact = [int(count) * wanted for count in counts]
    drawn = [value // total for value in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: (-(exact[i] % total), i))
    for i in by_rest[: wanted - sum(drawn)]:
        drawn[i] += 1
    return np.array(drawn, dtype=np.int64)


def draw(blocks: Callable[[], Iterable[Block]], counts: Ints, drawn: Ints, seed: int) -> _Draw:
    """Returns the rows that are drawn, to be iterated: ascending, in blocks.

    Args:
        blocks: gives the rows to draw from, anew at each call.
        counts: rows of each stratum, (n_strata,).
        drawn: rows to draw of each stratum, (n_strata,).
        seed: of the draw.
    """
    last = _thresholds(blocks, counts, drawn, seed)
    return _Draw(blocks=blocks, last=last, is_drawn=drawn > 0, seed=seed)


def draw_rows(n_rows: int, n: int, seed: int) -> Ints:
    """Returns `n` of the rows numbered from 0 to `n_rows`, ascending; all where there are fewer."""
    rows = np.arange(n_rows, dtype=np.int64)
    if n >= n_rows:
        return rows
    blocks = [(part, None) for part in np.array_split(rows, -(-n_rows // _BLOCK_ROWS))]
    drawn = draw(lambda: blocks, np.array([n_rows]), np.array([n]), seed)
    return np.concatenate(list(drawn))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draw:
    """Rows whose hash is at most the last one that is drawn in their stratum."""

    blocks: Callable[[], Iterable[Block]]
    last: Hashes
    is_drawn: npt.NDArray[np.bool_]
    seed: int

    def __iter__(self) -> Iterator[Ints]:
        for rows, strata in self.blocks():
            is_in = row_hashes(rows, self.seed) <= _each(self.last, strata)
            if strata is not None:
                is_in &= self.is_drawn[strata]
            yield rows[is_in]


def _thresholds(
    blocks: Callable[[], Iterable[Block]], counts: Ints, drawn: Ints, seed: int
) -> Hashes:
    """Returns the largest hash that is drawn in each stratum."""
    lows, highs = _windows(counts, drawn)
    found = _thresholds_within(blocks, drawn, seed, (lows, highs))
    if found is None:
        everything = np.full(len(counts), _SPACE - 1, np.uint64)
        found = _thresholds_within(blocks, drawn, seed, (np.zeros_like(everything), everything))
    assert found is not None
    return found


def _windows(counts: Ints, drawn: Ints) -> tuple[Hashes, Hashes]:
    """Returns where each threshold must lie, but for a draw that nobody will see."""
    lows, highs = [], []
    for n_rows, n_drawn in zip(counts.tolist(), drawn.tolist(), strict=True):
        share = n_drawn * _SPACE // max(n_rows, 1)
        width = _SIGMAS * (isqrt(n_drawn * max(n_rows - n_drawn, 0) // max(n_rows, 1)) + 2)
        margin = width * _SPACE // max(n_rows, 1)
        lows.append(max(share - margin, 0))
        highs.append(min(share + margin, _SPACE - 1))
    return np.array(lows, np.uint64), np.array(highs, np.uint64)


def _thresholds_within(
    blocks: Callable[[], Iterable[Block]], drawn: Ints, seed: int, window: tuple[Hashes, Hashes]
) -> Hashes | None:
    """Returns the thresholds if each lies in its window, else None."""
    lows, highs = window
    below = np.zeros(len(drawn), np.int64)
    near: list[tuple[Hashes, Strata]] = []
    for rows, strata in blocks():
        hashes = row_hashes(rows, seed)
        is_below = hashes < _each(lows, strata)
        below += _counts(strata, is_below, len(drawn))
        is_near = ~is_below & (hashes <= _each(highs, strata))
        hashes = hashes[is_near]
        near.append((hashes, np.zeros(len(hashes), int) if strata is None else strata[is_near]))
    hashes = np.concatenate([np.empty(0, np.uint64), *(part for part, _ in near)])
    strata = np.concatenate([np.empty(0, np.int64), *(part for _, part in near)])
    order = np.lexsort((hashes, strata))
    hashes, strata = hashes[order], strata[order]
    starts = np.searchsorted(strata, np.arange(len(drawn) + 1))
    last = np.zeros(len(drawn), np.uint64)
    for stratum, n_drawn in enumerate(drawn.tolist()):
        if n_drawn == 0:
            continue
        rank = n_drawn - int(below[stratum]) - 1
        at = int(starts[stratum]) + rank
        if rank < 0 or at >= starts[stratum + 1]:
            return None
        last[stratum] = hashes[at]
    return last


def _each(values: Hashes, strata: Strata | None) -> Hashes:
    """Returns the value of each row's stratum; one for all where there is one stratum."""
    return values if strata is None else values[strata]


def _counts(strata: Strata | None, chosen: npt.NDArray[np.bool_], n_strata: int) -> Ints:
    if strata is None:
        return np.array([np.count_nonzero(chosen)], np.int64)
    return np.bincount(strata[chosen], minlength=n_strata)
