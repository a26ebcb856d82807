from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.errors import InputError, OutputError
from chatspace.export.duplicate_report import (
    excerpt,
    group_lines,
    grouped,
    shown_groups,
    summary,
    summary_lines,
    write_pairs,
)
from chatspace.export.duplicates import Wanted, find_duplicates
from chatspace.export.pairs import Pairs, distinct_rows, group_labels
from chatspace.export.source import VectorSource, open_source, unit_rows
from tests.vector_runs import random_vectors, vector_run

Pair = tuple[int, int]


def clustered(rows: int, dim: int = 16, seed: int = 0, spread: float = 0.1) -> np.ndarray:
    """Vectors near one of a few directions, some of them copies of others, one of them zeros."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, rows // 6), dim))
    vectors = centres[rng.integers(0, len(centres), rows)]
    vectors = (vectors + spread * rng.normal(size=(rows, dim))).astype(np.float32)
    vectors[rng.integers(0, rows, rows // 5)] = vectors[0]
    vectors[-1] = 0
    return vectors


def brute_force(vectors: np.ndarray, threshold: float) -> set[Pair]:
    """Pairs by definition: of rows that are the first with their vector, and copies with theirs."""
    unit = unit_rows(vectors)
    first: dict[bytes, int] = {}
    pairs: set[Pair] = set()
    for row, vector in enumerate(unit):
        if not vector.any():
            continue
        earlier = first.setdefault(vector.tobytes(), row)
        if earlier != row:
            pairs.add((earlier, row))
    rows = sorted(first.values())
    scores = unit @ unit.T
    return pairs | {(a, b) for a in rows for b in rows if a < b and scores[a, b] >= threshold}


def as_set(pairs: Pairs) -> set[Pair]:
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100), rows=st.integers(2, 120))
def test_find_duplicates_finds_what_brute_force_finds(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int
) -> None:
    vectors = clustered(rows, seed=seed)
    source = open_source(vector_run(tmp_path_factory.mktemp("run"), vectors))
    found = find_duplicates(source, Wanted(threshold=0.97))
    assert as_set(found.pairs) == brute_force(vectors, 0.97)
    assert found.n_zero == 1 and found.sampled is None
    first, second = found.pairs.first, found.pairs.second
    assert (first < second).all()
    assert np.array_equal(np.lexsort((second, first)), np.arange(len(first)))
    scores = (unit_rows(vectors)[first] * unit_rows(vectors)[second]).sum(axis=1)
    assert np.allclose(found.pairs.scores, scores, atol=1e-6)


class Blocks(VectorSource):
    """A source of small blocks."""

    @property
    def block_rows(self) -> int:
        return 300


def test_find_duplicates_in_panels_finds_the_same(tmp_path: Path) -> None:
    vectors = clustered(1500, dim=8)
    whole = open_source(vector_run(tmp_path, vectors, rows_per_shard=128))
    at_once = find_duplicates(whole, Wanted(threshold=0.97))
    source = Blocks(plan=whole.plan, shards=whole.shards, schema=whole.schema)
    in_panels = find_duplicates(source, Wanted(threshold=0.97, memory_bytes=200 * 4 * 8))
    assert as_set(in_panels.pairs) == as_set(at_once.pairs) == brute_force(vectors, 0.97)
    assert len(at_once.pairs) > 1000


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_find_duplicates_of_other_dtypes(tmp_path: Path, dtype: str) -> None:
    vectors = clustered(100, dim=64, spread=0.02)
    source = open_source(vector_run(tmp_path, vectors, dtype=dtype))
    read = np.concatenate([part for _, part in source.vectors()])
    found = find_duplicates(source, Wanted(threshold=0.9))
    assert as_set(found.pairs) == brute_force(read, 0.9)
    assert len(found.pairs) > 50


def test_find_duplicates_approximately_says_what_it_misses(tmp_path: Path) -> None:
    vectors = clustered(2000, dim=32, spread=0.05)
    source = open_source(vector_run(tmp_path, vectors, rows_per_shard=500))
    exact = find_duplicates(source, Wanted(threshold=0.95))
    wanted = Wanted(threshold=0.95, approximate=True)
    found = find_duplicates(source, wanted, scratch=tmp_path)
    assert as_set(found.pairs) <= as_set(exact.pairs)
    assert found.sampled is not None and found.sampled_found is not None
    assert 0.9 * found.sampled < found.sampled_found <= found.sampled
    stated = found.sampled_found / found.sampled
    assert abs(len(found.pairs) / len(exact.pairs) - stated) < 0.05
    again = find_duplicates(source, wanted)
    assert as_set(again.pairs) == as_set(found.pairs)


def test_find_duplicates_without_room_for_its_file_says_so(
    tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    source = open_source(vector_run(tmp_path / "ws", random_vectors(1000, 64)))
    wanted = Wanted(threshold=0.9, approximate=True)
    with pytest.raises(OutputError, match="No space left"):
        find_duplicates(source, wanted, scratch=small_disk(64))
    with pytest.raises(OutputError, match="No such file or directory"):
        find_duplicates(source, wanted, scratch=tmp_path / "absent")


def test_find_duplicates_of_copies_makes_a_pair_for_each_not_for_all(tmp_path: Path) -> None:
    vectors = np.tile(random_vectors(1), (1000, 1))
    source = open_source(vector_run(tmp_path, vectors, rows_per_shard=500))
    for approximate in (False, True):
        found = find_duplicates(source, Wanted(threshold=1, approximate=approximate))
        assert as_set(found.pairs) == {(0, row) for row in range(1, 1000)}
    groups = grouped(found)
    assert (groups.count, groups.n_surplus) == (1, 999)


def test_find_duplicates_of_zeros_alone_finds_none(tmp_path: Path) -> None:
    source = open_source(vector_run(tmp_path, np.zeros((20, 4), np.float32)))
    for approximate in (False, True):
        found = find_duplicates(source, Wanted(threshold=0.5, approximate=approximate))
        assert len(found.pairs) == 0 and found.n_zero == 20
        assert grouped(found).count == 0


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan")])
def test_wanted_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="Out of range: --threshold"):
        Wanted(threshold=threshold).check()


def test_find_duplicates_with_too_many_pairs_says_what_to_do(tmp_path: Path) -> None:
    source = open_source(vector_run(tmp_path, clustered(100)))
    with pytest.raises(InputError, match=r"Too many pairs: --threshold 0.5 .*Raise --threshold"):
        find_duplicates(source, Wanted(threshold=0.5, max_pairs=10))
    with pytest.raises(InputError, match="Out of range: --max-pairs 0"):
        find_duplicates(source, Wanted(threshold=0.5, max_pairs=0))


def test_find_duplicates_of_vectors_of_one_number_is_refused(tmp_path: Path) -> None:
    source = open_source(vector_run(tmp_path, random_vectors(20, 1)))
    with pytest.raises(InputError, match="No directions"):
        find_duplicates(source, Wanted(threshold=0.9))


def test_distinct_rows_minus_zero_is_zero(tmp_path: Path) -> None:
    vectors = np.array([[1, 0, 2], [1, -0.0, 2], [2, 0, 1], [0, 0, 0]], np.float32)
    distinct = distinct_rows(open_source(vector_run(tmp_path, vectors)))
    assert distinct.first.tolist() == [0, 0, 2, 3]
    assert distinct.is_compared.tolist() == [True, False, True, False]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda p: p[0] < p[1]),
        max_size=60,
        unique=True,
    )
)
def test_group_labels_are_connected_components(pairs: list[Pair]) -> None:
    sides = np.array(pairs, np.int64).reshape(-1, 2)
    found = Pairs(first=sides[:, 0], second=sides[:, 1], scores=np.ones(len(pairs), np.float32))
    expected = {row: row for pair in pairs for row in pair}
    for _ in expected:
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    rows, labels = group_labels(found)
    assert dict(zip(rows.tolist(), labels.tolist(), strict=True)) == expected


def test_report_names_splits_groups_and_pairs(tmp_path: Path) -> None:
    base = random_vectors(30, 16)
    leak = np.concatenate([base[3:5], random_vectors(10, 16, seed=9)])
    plan = vector_run(tmp_path / "ws", {"train": base, "test": leak})
    source, wanted = open_source(plan), Wanted(threshold=0.99)
    found = find_duplicates(source, wanted)
    groups = grouped(found)
    facts = summary(source, wanted, found, groups)
    assert (facts["pairs"], facts["groups"], facts["surplus_rows"]) == (2, 2, 2)
    assert summary_lines(facts)[0].startswith(f"{plan.run_id}: 2 pairs among 42 rows")
    shown = shown_groups(source, groups, 1, 5)
    assert [group.to_json() for group in shown] == [
        {
            "group": 1,
            "rows": 2,
            "splits": {"train": 1, "test": 1},
            "ids": ["docs/train/3", "docs/test/0"],
            "text": "text 3 of train",
        }
    ]
    assert group_lines(shown)[1] == "      2  docs/train/3  (train 1, test 1)"
    write_pairs(source, found, groups, tmp_path / "pairs.parquet", threshold=0.99)
    table = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert [(r["first_id"], r["second_id"], r["second_split"], r["group"]) for r in table] == [
        ("docs/train/3", "docs/test/0", "test", 1),
        ("docs/train/4", "docs/test/1", "test", 2),
    ]
    assert all(row["score"] == 1 for row in table)


def test_write_pairs_of_none_is_an_empty_table(tmp_path: Path) -> None:
    source = open_source(vector_run(tmp_path / "ws", random_vectors(20, 16)))
    found = find_duplicates(source, Wanted(threshold=1))
    write_pairs(source, found, grouped(found), tmp_path / "pairs.parquet", threshold=1)
    table = pq.read_table(tmp_path / "pairs.parquet")
    assert table.num_rows == 0 and "first_id" in table.column_names


def test_excerpt_is_one_line_without_control_characters() -> None:
    assert excerpt("a\n\n b\x1b[31mc\u200b", 20) == "a b·[31mc·"
    assert excerpt("word " * 100, 20) == "word word word word…"
