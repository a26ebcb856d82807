from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatspace.hf_embed.bucketing import (
    CPU_FILL_TO,
    TAIL_BATCHES,
    Buckets,
    Budget,
    equal_lengths,
    plan_batches,
    plan_packs,
)

buckets_of = st.builds(
    lambda low, ratio, extra, alone: Buckets(
        min_tokens=low, max_tokens=low * ratio, limit=low + extra, no_longer_with=alone
    ),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2000),
    st.one_of(st.none(), st.integers(1, 100)),
)
budgets = st.one_of(
    st.builds(lambda n: Budget(tokens=n), st.integers(1, 5000)),
    st.builds(lambda n: Budget(rows=n), st.integers(1, 50)),
)


@pytest.mark.parametrize(
    ("n_tokens", "width"),
    [(0, 16), (1, 16), (16, 16), (17, 32), (65, 128), (129, 256), (257, 300), (300, 300)],
)
def test_width_is_the_bucket_of_the_module_docstring(n_tokens: int, width: int) -> None:
    assert Buckets(min_tokens=16, max_tokens=128, limit=300).width(n_tokens) == width


def test_rows_are_in_no_bucket_with_longer_ones_where_that_is_asked_for() -> None:
    buckets = Buckets(min_tokens=16, max_tokens=128, limit=300, no_longer_with=100)
    assert list(buckets.widths()) == [16, 32, 64, 100, 128, 256, 300]


def test_widths_lists_every_bucket_once() -> None:
    buckets = Buckets(min_tokens=16, max_tokens=128, limit=300)
    assert list(buckets.widths()) == [16, 32, 64, 128, 256, 300]
    assert list(Buckets(min_tokens=16, max_tokens=8, limit=8).widths()) == [8]


def test_width_above_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="limit 300"):
        Buckets(min_tokens=16, max_tokens=128, limit=300).width(301)


@given(buckets_of, st.data())
def test_width_never_cuts_a_row_and_is_a_bucket(buckets: Buckets, data: st.DataObject) -> None:
    n_tokens = data.draw(st.integers(0, buckets.limit))
    width = buckets.width(n_tokens)
    assert n_tokens <= width <= buckets.limit
    assert width in list(buckets.widths())
    assert buckets.width(width) == width
    edge = buckets.no_longer_with
    assert edge is None or (n_tokens <= edge) == (width <= edge)


@given(buckets_of, budgets, st.sampled_from([None, 8]), st.data())
def test_plan_batches_holds_each_row_once_within_its_budget(
    buckets: Buckets, budget: Budget, trim_to: int | None, data: st.DataObject
) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(0, buckets.limit), max_size=60)), np.int64)
    batches = plan_batches(lengths, buckets=buckets, budget=budget, trim_to=trim_to)
    rows = [row for batch in batches for row in batch.rows]
    assert sorted(rows) == np.flatnonzero(lengths).tolist()
    for batch in batches:
        in_batch = lengths[batch.rows]
        assert len({buckets.width(int(n)) for n in in_batch}) == 1
        assert batch.width is not None
        assert in_batch.max() <= batch.width <= buckets.width(int(in_batch.max()))
        assert budget.rows is None or len(batch.rows) <= budget.rows
        assert (
            budget.tokens is None or len(batch.rows) == 1 or batch.n_padded_tokens <= budget.tokens
        )
        assert trim_to is not None or batch.width == buckets.width(int(in_batch.max()))


@given(budgets, st.lists(st.integers(0, 300), max_size=60), st.booleans())
def test_plan_packs_holds_each_row_once_within_its_budget(
    budget: Budget, n: list[int], halve_tail: bool
) -> None:
    lengths = np.array(n, np.int64)
    batches = plan_packs(lengths, budget, halve_tail=halve_tail)
    rows = [row for batch in batches for row in batch.rows]
    assert sorted(rows) == np.flatnonzero(lengths).tolist()
    assert (np.diff(lengths[rows]) <= 0).all()
    for batch in batches:
        assert batch.width is None and batch.n_padded_tokens == lengths[batch.rows].sum()
        assert budget.rows is None or len(batch.rows) <= budget.rows
        assert (
            budget.tokens is None or len(batch.rows) == 1 or batch.n_padded_tokens <= budget.tokens
        )
    # None could have taken the first row of the next: no batch is smaller than it need be.
    left = int(lengths.sum())
    for batch, following in pairwise(batches):
        tail = halve_tail and budget.tokens is not None and left <= TAIL_BATCHES * budget.tokens
        size = -(-(budget.tokens or 0) // (2 if tail else 1))
        assert size < batch.n_padded_tokens + lengths[following.rows[0]] or budget.rows
        left -= batch.n_padded_tokens


def test_plan_packs_ends_in_halves_so_that_workers_end_together() -> None:
    lengths, budget = np.full(150, 10, np.int64), Budget(tokens=100)
    sizes = [batch.n_padded_tokens for batch in plan_packs(lengths, budget, halve_tail=True)]
    assert sizes == [100] * 11 + [50] * 8
    assert [batch.n_padded_tokens for batch in plan_packs(lengths, budget)] == [100] * 15


@given(budgets, st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_plan_packs_fills_batches_up_within_the_budget(budget: Budget, n: list[int]) -> None:
    lengths = np.array(n, np.int64)
    filled, plain = plan_packs(lengths, budget, fill_to=32), plan_packs(lengths, budget)
    assert [batch.rows.tolist() for batch in filled] == [batch.rows.tolist() for batch in plain]
    for batch, bare in zip(filled, plain, strict=True):
        is_full = batch.n_padded_tokens in (budget.tokens, bare.n_padded_tokens)
        assert batch.n_padded_tokens % 32 == 0 or is_full
        assert 0 <= batch.n_padded_tokens - bare.n_padded_tokens < 32


def test_plan_packs_of_a_shard_has_batches_of_few_sizes_on_a_cpu() -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(80), 0.9, 8192).astype(np.int64) + 1
    lengths = np.minimum(lengths, 512)
    sizes = {
        fill: {b.n_padded_tokens for b in plan_packs(lengths, Budget(tokens=2048), fill_to=fill)}
        for fill in (1, CPU_FILL_TO)
    }
    assert len(sizes[1]) > 100 and len(sizes[CPU_FILL_TO]) <= 20


@given(st.lists(st.integers(1, 5), max_size=30))
def test_equal_lengths_counts_runs(n: list[int]) -> None:
    groups = equal_lengths(np.array(n, np.int64))
    assert [length for n_rows, length in groups for _ in range(n_rows)] == n
    assert all(a[1] != b[1] for a, b in pairwise(groups))


@given(buckets_of, budgets, st.data())
def test_plan_batches_is_a_function_of_lengths_alone(
    buckets: Buckets, budget: Budget, data: st.DataObject
) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(0, buckets.limit), max_size=60)), np.int64)
    first, second = (
        plan_batches(given_lengths, buckets=buckets, budget=budget, trim_to=8)
        for given_lengths in (lengths, lengths.copy())
    )
    assert [(b.width, b.rows.tolist()) for b in first] == [
        (b.width, b.rows.tolist()) for b in second
    ]
