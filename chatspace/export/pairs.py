"""Pairs of rows that are nearly the same: what a search for duplicates finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chatspace.errors import InputError
from chatspace.export.source import FloatArray, Positions, VectorSource

MOST_PAIRS = 10_000_000
ROUNDING = 1e-6  # of a product of float32 vectors of length one
_MIX = np.uint64(0x9E3779B97F4A7C15)  # Source: the multiplier of SplitMix64


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs of rows, ascending.

    Attributes:
        first: position of a row, (n_pairs,).
        second: position of a later row, (n_pairs,).
        scores: cosine of their vectors, (n_pairs,).
    """

    first: Positions
    second: Positions
    scores: FloatArray

    def __len__(self) -> int:
        return len(self.first)


class PairList:
    """Collects pairs, up to a limit.

    Args:
        threshold: least cosine, for the message of the limit.
        limit: most pairs; each takes 20 bytes.
    """

    def __init__(self, threshold: float, limit: int) -> None:
        self._threshold, self._limit, self._n = threshold, limit, 0
        self._parts: list[Pairs] = []

    def add(self, first: Positions, second: Positions, scores: FloatArray) -> None:
        """Adds pairs in any order, each with the earlier row on either side.

        Raises:
            InputError: they are more than the limit.
        """
        self._n += len(first)
        if self._n > self._limit:
            raise InputError(
                f"Too many pairs: --threshold {self._threshold:g} gives more than {self._limit:,}. "
                "Raise --threshold, or --max-pairs if the memory allows 60 bytes for each."
            )
        low, high = np.minimum(first, second), np.maximum(first, second)
        self._parts.append(Pairs(first=low, second=high, scores=scores.astype(np.float32)))

    def pairs(self, n_rows: int) -> Pairs:
        """Returns each pair once, ascending; of a pair that was added twice, the first score."""
        empty = Pairs(
            first=np.empty(0, np.int64), second=np.empty(0, np.int64), scores=np.empty(0, "f4")
        )
        parts = [empty, *self._parts]
        first, second, scores = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("first", "second", "scores")
        )
        _, chosen = np.unique(first * n_rows + second, return_index=True)
        return Pairs(first=first[chosen], second=second[chosen], scores=scores[chosen])


@dataclass(frozen=True, slots=True, kw_only=True)
class Distinct:
    """Which rows have a vector of their own.

    Attributes:
        first: position of the first row with the same vector, (n_rows,).
        n_zero: rows whose vector is zeros, which have no direction; they are in no pair.
        is_compared: rows that are compared with others: first of their kind, and not zeros.
    """

    first: Positions
    n_zero: int
    is_compared: npt.NDArray[np.bool_]

    def add_copies(self, pairs: PairList) -> None:
        """Adds a pair for each row that repeats an earlier vector: with the first such row."""
        copies = np.flatnonzero(self.first != np.arange(len(self.first)))
        pairs.add(self.first[copies], copies, np.ones(len(copies), np.float32))


def distinct_rows(source: VectorSource) -> Distinct:
    """Finds rows with equal vectors in one pass, so that copies need not be compared.

    Takes 33 bytes a row. Vectors are told apart by 64 bits: among 10 million rows two different
    ones pass for equal with a probability of 3 in a million.
    """
    hashes = np.empty(source.rows, np.uint64)
    is_zero = np.zeros(source.rows, np.bool_)
    n_words = (source.encoding.dim + 1) // 2
    weights = np.random.default_rng(0).integers(0, 2**63, n_words, np.uint64)
    weights = 2 * weights + 1  # odd
    for start, vectors in source.unit_vectors():
        stop = start + len(vectors)
        is_zero[start:stop] = ~vectors.any(axis=1)
        hashes[start:stop] = _hashes(vectors, weights)
    _, begin, which = np.unique(hashes, return_index=True, return_inverse=True)
    first = begin[which]
    first[is_zero] = np.flatnonzero(is_zero)
    is_first = first == np.arange(source.rows)
    return Distinct(first=first, n_zero=int(is_zero.sum()), is_compared=is_first & ~is_zero)


def _hashes(vectors: FloatArray, weights: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Returns 64 bits of each vector, the same for equal ones, (n_rows,)."""
    n_rows, dim = vectors.shape
    words = np.zeros((n_rows, 2 * len(weights)), np.float32)
    np.add(vectors, 0.0, out=words[:, :dim])  # zero and minus zero are equal
    mixed = words.view(np.uint64) * _MIX  # (n_rows, n_words); products wrap around
    mixed ^= mixed >> np.uint64(29)
    mixed *= weights
    total: npt.NDArray[np.uint64] = mixed.sum(axis=1, dtype=np.uint64)
    return total


def group_labels(pairs: Pairs) -> tuple[Positions, Positions]:
    """Returns the rows of all pairs, ascending, and for each the first row of its group.

    A group is what pairs join, so that its outer rows may be less alike than the threshold.
    """
    rows, ends = np.unique(np.concatenate((pairs.first, pairs.second)), return_inverse=True)
    a, b = ends[: len(pairs)], ends[len(pairs) :]
    label = np.arange(len(rows))
    while True:
        lowest = np.minimum(label[a], label[b])
        after = label.copy()
        np.minimum.at(after, a, lowest)
        np.minimum.at(after, b, lowest)
        after = after[after]  # halves the way to the first row
        if np.array_equal(after, label):
            return rows, rows[label]
        label = after
