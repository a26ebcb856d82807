"""How much of a run is on disk, and whether that is all: asked in this one place."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from chatspace.jobs.gather import read_manifest
from chatspace.plan.model import Plan, SplitPlan
from chatspace.shards.store import first_foreign_shard, footer_owner, shard_indexes


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What is on disk of one split.

    Attributes:
        split: the split's plan.
        present: indexes of the plan's shards whose files are there, ascending.
        owner: whose shards stand in the folder instead, in words; None unless it is another run's.
        is_gathered: whether a manifest of this plan was published.
    """

    split: SplitPlan
    present: tuple[int, ...]
    is_gathered: bool
    owner: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every shard is there."""
        return len(self.present) == self.split.n_shards

    def shards_between(self, start: int, stop: int) -> int:
        """Returns how many shards with `start <= index < stop` are there."""
        return bisect_left(self.present, stop) - bisect_left(self.present, start)

    @property
    def rows_done(self) -> int:
        """Input rows of the shards that are there."""
        return self.rows_of(self.present)

    def rows_of(self, shards: Collection[int]) -> int:
        """Returns the input rows of some shards of the split, each named once."""
        last = self.split.n_shards - 1
        lacking = self.split.rows_per_shard - self.split.span(last).n_rows
        return len(shards) * self.split.rows_per_shard - (lacking if last in shards else 0)


def extent_of(plan: Plan, split: SplitPlan) -> Extent:
    """Looks at a split's folder and at its manifest; opens two shards at most."""
    folder = Path(plan.workspace) / split.output_dir
    indexes = shard_indexes(folder)
    foreign = first_foreign_shard(folder, plan.plan_sha256, indexes)
    return Extent(
        split=split,
        present=() if foreign else tuple(indexes[: bisect_left(indexes, split.n_shards)]),
        is_gathered=read_manifest(plan, split) is not None,
        owner=footer_owner(foreign[1]) if foreign else None,
    )


def is_complete(plan: Plan) -> bool:
    """Tells whether every split was gathered and all its shards are there."""
    return are_complete(extent_of(plan, split) for split in plan.splits)


def are_complete(extents: Iterable[Extent]) -> bool:
    """Tells whether every split that was looked at was gathered and is whole."""
    return all(extent.is_gathered and extent.is_whole for extent in extents)
