"""Which rows share a forward pass: a function of their lengths alone.

Packed, rows of about the same length are joined end to end, and no row is padded. In buckets, rows
are padded to one of a few lengths:

    bucket_min_tokens = 16, bucket_max_tokens = 128, limit = 300

    row of   1..16   17..32   33..64   65..128   129..256   257..300 tokens
    bucket      16       32       64       128        256        300

Buckets double up to `bucket_max_tokens`; longer rows fall into multiples of it, and the last bucket
is the model's limit. A bucket never cuts a row: only the model's limit does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Group = tuple[int, int]

TAIL_BATCHES = 4
# oneDNN makes code for each number of tokens, which takes milliseconds, and keeps it, in megabytes.
CPU_FILL_TO = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """The padded lengths of a run, in tokens.

    Attributes:
        min_tokens: the smallest bucket.
        max_tokens: where doubling ends.
        limit: the longest row that can occur.
        no_longer_with: rows up to this length are in no bucket with longer ones; None if any are.
    """

    min_tokens: int
    max_tokens: int
    limit: int
    no_longer_with: int | None = None

    def width(self, n_tokens: int) -> int:
        """Returns the bucket of a row of `n_tokens` tokens.

        Raises:
            ValueError: the row is longer than the limit, so it should have been truncated.
        """
        if n_tokens > self.limit:
            raise ValueError(f"Row too long: n_tokens={n_tokens}; limit {self.limit}.")
        width = min(self._width(n_tokens), self.limit)
        is_below = self.no_longer_with is not None and n_tokens <= self.no_longer_with
        return min(width, self.no_longer_with or width) if is_below else width

    def _width(self, n_tokens: int) -> int:
        if n_tokens > self.max_tokens:
            return -(-n_tokens // self.max_tokens) * self.max_tokens
        width = self.min_tokens
        while width < n_tokens:
            width *= 2
        return min(width, self.max_tokens)

    def widths(self) -> Iterator[int]:
        """Yields all buckets, ascending."""
        n_tokens = 1
        while n_tokens <= self.limit:
            width = self.width(n_tokens)
            yield width
            n_tokens = width + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much one forward pass takes: padded tokens, or a fixed number of rows."""

    tokens: int | None = None
    rows: int | None = None

    def n_rows(self, width: int) -> int:
        """Returns how many rows of `width` tokens go into one batch, at least one."""
        if self.rows is not None:
            return self.rows
        assert self.tokens is not None
        return max(1, self.tokens // width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The rows of one forward pass.

    Attributes:
        rows: positions in the shard, longest row first, (n_rows,).
        width: tokens that each row is padded to; None if they are packed.
        n_padded_tokens: tokens that the forward pass computes.
    """

    rows: IntArray
    width: int | None
    n_padded_tokens: int

    def halves(self, lengths: IntArray) -> tuple[Batch, Batch]:
        """Returns two batches of half the rows each; `lengths` are those of the shard's rows."""
        middle = len(self.rows) // 2
        first, second = self.rows[:middle], self.rows[middle:]
        if self.width is None:
            return packed(first, lengths), packed(second, lengths)
        return padded(first, self.width), padded(second, self.width)


def padded(rows: IntArray, width: int) -> Batch:
    """Returns a batch whose rows are padded to `width` tokens."""
    return Batch(rows=rows, width=width, n_padded_tokens=len(rows) * width)


def packed(
    rows: IntArray, lengths: IntArray, *, fill_to: int = 1, most: int | None = None
) -> Batch:
    """Returns a batch whose rows are joined.

    Args:
        rows: positions in the shard.
        lengths: those of the shard's rows.
        fill_to: tokens of the batch are a multiple of this, with some that are no row's.
        most: tokens that it is not filled beyond.
    """
    n_tokens = int(lengths[rows].sum())
    filled = -(-n_tokens // fill_to) * fill_to
    filled = max(n_tokens, filled if most is None else min(filled, most))
    return Batch(rows=rows, width=None, n_padded_tokens=filled)


def equal_lengths(lengths: IntArray) -> list[Group]:
    """Returns (number of rows, length) of each run of rows with the same length."""
    return [(len(list(run)), length) for length, run in groupby(lengths.tolist())]


def plan_packs(
    lengths: IntArray, budget: Budget, *, halve_tail: bool = False, fill_to: int = 1
) -> list[Batch]:
    """Puts each row that has tokens into exactly one batch of joined rows.

    Args:
        lengths: real tokens of each row, (n_rows,).
        budget: the size of a batch; a row above it is a batch of its own.
        halve_tail: cut the last `TAIL_BATCHES` in halves, so that workers with a processor each
            end together.
        fill_to: see `packed`; within the budget.

    Returns:
        Batches from the longest rows to the shortest, as `plan_batches` gives them.
    """
    order = _longest_first(lengths)
    ends = np.cumsum(lengths[order])  # (n_rows,)
    batches: list[Batch] = []
    start, n_tail = 0, TAIL_BATCHES if halve_tail else 0
    while start < len(order):
        stop = start + (budget.rows or _n_joined(ends, start, budget.tokens or 1, n_tail))
        batches.append(packed(order[start:stop], lengths, fill_to=fill_to, most=budget.tokens))
        start = stop
    return batches


def _n_joined(ends: IntArray, start: int, n_tokens: int, n_tail: int) -> int:
    """Returns how many rows go into one batch, at least one.

    Args:
        ends: where each row ends if all are joined, (n_rows,).
        start: the first row of the batch.
        n_tokens: what a batch holds.
        n_tail: of how many batches at the end there are two of half the size.
    """
    before = int(ends[start - 1]) if start else 0
    if ends[-1] - before <= n_tail * n_tokens:
        n_tokens = -(-n_tokens // 2)
    return max(1, int(np.searchsorted(ends, before + n_tokens, side="right")) - start)


def plan_batches(
    lengths: IntArray, *, buckets: Buckets, budget: Budget, trim_to: int | None = None
) -> list[Batch]:
    """Puts each row that has tokens into exactly one batch; no batch holds rows of two buckets.

    Args:
        lengths: real tokens of each row, (n_rows,).
        buckets: the padded lengths.
        budget: the size of a batch.
        trim_to: pad a batch only as far as its own longest row, rounded up to a multiple of this
            and never beyond its bucket; None pads to the bucket.

    Returns:
        Batches from the longest rows to the shortest, so that a lack of memory shows at the start.
    """
    order = _longest_first(lengths)
    known, which = np.unique(lengths, return_inverse=True)
    bucket_of = np.array([buckets.width(int(n)) for n in known], dtype=np.int64)[which]  # (n_rows,)
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        longest, bucket = int(lengths[order[start]]), int(bucket_of[order[start]])
        width = bucket if trim_to is None else min(bucket, -(-longest // trim_to) * trim_to)
        rows = order[start : start + budget.n_rows(width)]
        rows = rows[bucket_of[rows] == bucket]  # a prefix, since the rows are sorted
        batches.append(padded(rows, width))
        start += len(rows)
    return batches


def _longest_first(lengths: IntArray) -> IntArray:
    """Returns the rows that have tokens, by length; those of equal length keep their order."""
    # A stable sort, so that the order is the same whatever numpy does inside.
    order = np.argsort(-lengths, kind="stable")
    return order[: np.count_nonzero(lengths)]
