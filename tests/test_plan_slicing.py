from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.data.inputs import InputFile
from chatspace.jobs.setup import set_up
from chatspace.plan.slicing import (
    fewest_slices,
    make_slices,
    shard_text_bytes,
    slice_count,
    split_weights,
)
from chatspace.spec.base import SlicesSection
from tests.conftest import SpecMaker, write_parquet


def lightest_maximum(weights: list[int], count: int) -> int:
    """The optimum by dynamic programming over all contiguous divisions."""
    sums = np.concatenate(([0], np.cumsum(weights)))
    best = [int(s) for s in sums]
    for _ in range(count - 1):
        best = [0] + [
            min(max(best[i], int(sums[j] - sums[i])) for i in range(j)) for j in range(1, len(sums))
        ]
    return best[-1]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_make_slices_any_weights_covers_all_shards_and_is_optimal(data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 1000), min_size=1, max_size=25))
    count = data.draw(st.integers(1, len(weights)))
    slices = make_slices(np.array(weights), count)
    assert len(slices) == count
    assert [s.index for s in slices] == list(range(count))
    assert slices[0].shard_start == 0
    assert slices[-1].shard_stop == len(weights)
    assert all(a.shard_stop == b.shard_start for a, b in pairwise(slices))
    assert all(s.shard_stop > s.shard_start for s in slices)
    assert max(s.text_bytes for s in slices) == lightest_maximum(weights, count)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=25), st.integers(0, 5000))
def test_fewest_slices_any_weights_is_the_first_count_that_fits(
    weights: list[int], more: int
) -> None:
    counted = [max(1, weight) for weight in weights]
    cap = max(counted) + more
    counts = range(1, len(weights) + 1)
    expected = next(n for n in counts if lightest_maximum(counted, n) <= cap)
    assert fewest_slices(np.array(weights), cap) == expected


def test_make_slices_equal_weights_gives_equal_slices() -> None:
    slices = make_slices(np.full(12, 100), 4)
    assert [(s.shard_start, s.shard_stop) for s in slices] == [(0, 3), (3, 6), (6, 9), (9, 12)]


def test_make_slices_shards_without_text_still_covers_all() -> None:
    slices = make_slices(np.zeros(5, dtype=np.int64), 2)
    assert slices[-1].shard_stop == 5


def test_make_slices_one_heavy_shard_stands_alone() -> None:
    slices = make_slices(np.array([1, 1, 1000, 1, 1, 1]), 3)
    heavy = next(s for s in slices if s.shard_start <= 2 < s.shard_stop)
    assert heavy.text_bytes <= 1003


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (SlicesSection(count=8), 8),
        (SlicesSection(count=80), 10),
        (SlicesSection(max_tasks=3), 3),
        (SlicesSection(max_tasks=30), 10),
        (SlicesSection(rows_per_slice=300), 4),
        (SlicesSection(), 1),
    ],
)
def test_slice_count_never_exceeds_the_shards(section: SlicesSection, expected: int) -> None:
    assert slice_count(section, rows=1000, n_shards=10) == expected


def test_shard_text_bytes_shared_row_group_is_divided_by_rows() -> None:
    file = InputFile(
        path="a", bytes=1, mtime_ns=1, rows=400, row_groups=(300, 100), text_bytes=(3000, 9000)
    )
    weights = shard_text_bytes([file], rows=400, rows_per_shard=150)
    assert weights.tolist() == [1500, 1500, 9000]


def test_shard_text_bytes_rows_beyond_the_limit_are_not_counted() -> None:
    file = InputFile(path="a", bytes=1, mtime_ns=1, rows=400, row_groups=(400,), text_bytes=(4000,))
    assert shard_text_bytes([file], rows=250, rows_per_shard=100).tolist() == [1000, 1000, 500]


def test_set_up_one_row_group_is_read_for_slices_by_bytes_alone(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    data = tmp_path / "one" / "train.parquet"
    write_parquet(data, {"text": ["x"] * 800 + ["y" * 3000] * 200}, row_group_size=1000)
    sections: dict[str, Any] = {"dataset": {"path": str(data)}, "output": {"rows_per_shard": 10}}
    by_bytes = set_up(make_spec(**sections, slices={"count": 10})).plan
    by_rows = set_up(make_spec(**sections, slices={"count": 10, "balance": "rows"})).plan
    assert by_bytes.plan_sha256 == by_rows.plan_sha256
    (split,) = by_bytes.splits
    assert split.text_bytes == 800 + 200 * 3000
    assert max(s.text_bytes for s in split.slices) < 1.2 * split.text_bytes / 10
    assert split.slices[0].shard_stop > 80
    assert split_weights(split).sum() == split.text_bytes
    (split,) = by_rows.splits
    assert split.files[0].text_steps == ()
    assert [s.shard_stop for s in split.slices] == list(range(10, 101, 10))
