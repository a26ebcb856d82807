from __future__ import annotations

from pathlib import Path

import pytest

from chatspace.plan.model import Plan
from chatspace.watch.completeness import extent_of, is_complete
from tests.plans import plan_of, split_plan
from tests.runs import publish, put_shards


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """3 shards of 100 rows, the last of 50."""
    return plan_of(tmp_path, (split_plan(rows=250, count=1),))


def test_extent_counts_the_short_last_shard_as_it_is(plan: Plan) -> None:
    (split,) = plan.splits
    put_shards(plan, split, [0, 2, 3])  # the last is none of the plan
    extent = extent_of(plan, split)
    assert extent.present == (0, 2)
    assert extent.rows_done == 150
    assert (extent.shards_between(0, 2), extent.shards_between(1, 3)) == (1, 1)
    assert not extent.is_whole


def test_is_complete_needs_every_shard_and_a_manifest_of_this_plan(plan: Plan) -> None:
    (split,) = plan.splits
    publish(plan, split)
    put_shards(plan, split, [0, 1])
    assert not is_complete(plan)
    put_shards(plan, split, [2])
    assert is_complete(plan)
    publish(plan, split, plan_sha256="f" * 64)
    assert not is_complete(plan)
