"""Damage: shard files that are there and not whole; whatever runs next does them again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from chatspace.jobs.gather import split_store
from chatspace.jobs.render import ranges_text
from chatspace.mend.resubmit import missing_shards
from chatspace.plan.model import Plan, SplitPlan
from chatspace.shards.gather import READ_THREADS
from chatspace.shards.store import shard_indexes
from chatspace.wording import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFiles:
    """The shards of a run by what their files are; those without a file are in neither.

    Attributes:
        whole: indexes of the shards that no task does again, by split.
        damaged: indexes of those that the next task does again, by split.
    """

    whole: Mapping[str, Collection[int]]
    damaged: Mapping[str, Collection[int]]

    def lines(self, run_id: str) -> list[str]:
        """Returns what is damaged, a line for each split with damage."""
        return [
            f"{run_id}: {counted(len(shards), 'damaged shard')} of split {split}, done again: "
            f"{ranges_text(sorted(shards))}"
            for split, shards in self.damaged.items()
            if shards
        ]


def look_at_shards(plan: Plan, *, verify: bool = False) -> ShardFiles:
    """Opens the shards that are there, as a task does before it works.

    Args:
        plan: the run.
        verify: read every shard, whose footer may be right and whose pages are not; those that are
            not what was written are set aside.

    Raises:
        OutputError: a shard belongs to another plan, or may not be read.
    """
    there = {split.name: _present(plan, split) for split in plan.splits}
    if verify:
        lost = missing_shards(plan, verify=True)
        whole = {name: shards - set(lost.get(name, ())) for name, shards in there.items()}
    else:
        whole = {split.name: _whole(plan, split, there[split.name]) for split in plan.splits}
    return ShardFiles(
        whole=whole, damaged={name: there[name] - shards for name, shards in whole.items()}
    )


def _present(plan: Plan, split: SplitPlan) -> set[int]:
    indexes = shard_indexes(Path(plan.workspace) / split.output_dir)
    return {index for index in indexes if index < split.n_shards}


def _whole(plan: Plan, split: SplitPlan, there: Collection[int]) -> set[int]:
    store = split_store(plan, split)
    spans = [split.span(index) for index in there]
    with ThreadPoolExecutor(READ_THREADS) as pool:  # a network file system's latency is what costs
        is_whole = pool.map(store.is_done, spans)
        return {span.index for span, whole in zip(spans, is_whole, strict=True) if whole}
