"""The draw: exact, the same everywhere, nested in n, and each stratum in its proportion."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chatspace.data.sampling import Block, draw, row_hashes, shares

MASK = (1 << 64) - 1


def splitmix64(seed: int, n: int) -> list[int]:
    """The generator as its authors print it, one number after the other."""
    found = []
    state = seed
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(z ^ (z >> 31))
    return found


def drawn(n_rows: int, wanted: int, seed: int = 0, block: int = 100) -> list[int]:
    def blocks() -> Iterator[Block]:
        for start in range(0, n_rows, block):
            rows = np.arange(start, min(start + block, n_rows), dtype=np.int64)
            yield rows, None

    found = draw(blocks, np.array([n_rows]), np.array([wanted]), seed)
    return [row for part in found for row in part.tolist()]


def test_row_hashes_are_the_outputs_of_splitmix64() -> None:
    assert row_hashes(np.arange(50), 1234567).tolist() == splitmix64(1234567, 50)


def test_row_hashes_of_the_published_seed_are_the_published_numbers() -> None:
    # https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    assert row_hashes(np.arange(3), 1234567).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(st.integers(1, 3000), st.data())
def test_draw_gives_exactly_n_ascending_rows_with_the_smallest_hashes(
    n_rows: int, data: st.DataObject
) -> None:
    wanted = data.draw(st.integers(1, n_rows))
    seed = data.draw(st.integers(0, MASK))
    by_hash = sorted(range(n_rows), key=splitmix64(seed, n_rows).__getitem__)
    assert drawn(n_rows, wanted, seed) == sorted(by_hash[:wanted])


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 50))
def test_draw_does_not_depend_on_blocks(n_rows: int, wanted: int, block: int) -> None:
    wanted = min(wanted, n_rows)
    assert drawn(n_rows, wanted, block=block) == drawn(n_rows, wanted, block=n_rows)


def test_draw_of_more_keeps_what_fewer_had() -> None:
    assert set(drawn(1000, 10)) < set(drawn(1000, 11)) < set(drawn(1000, 900))


def test_draw_of_another_seed_gives_other_rows() -> None:
    assert drawn(1000, 100, seed=1) != drawn(1000, 100, seed=2)


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=30).filter(any), st.data())
def test_shares_are_exact_and_within_one_of_their_proportion(
    counts: list[int], data: st.DataObject
) -> None:
    total = sum(counts)
    wanted = data.draw(st.integers(0, total))
    found = shares(np.array(counts), wanted).tolist()
    assert sum(found) == wanted
    for count, n_drawn in zip(counts, found, strict=True):
        assert 0 <= n_drawn <= count
        assert abs(n_drawn * total - count * wanted) < total


@given(st.lists(st.integers(0, 3), min_size=1, max_size=500), st.data())
def test_draw_of_strata_takes_its_share_of_each(strata: list[int], data: st.DataObject) -> None:
    codes = np.array(strata, np.uint8)
    counts = np.bincount(codes, minlength=4)
    share = shares(counts, data.draw(st.integers(1, len(strata))))

    def blocks() -> Iterator[Block]:
        rows = np.arange(len(codes))
        for part in np.array_split(rows, 3):
            yield part, codes[part]

    rows = np.concatenate(list(draw(blocks, counts, share, 7)))
    assert np.bincount(codes[rows], minlength=4).tolist() == share.tolist()
