"""Gather: proves that the shards of a split cover every row exactly once.

The records come from the task manifests; a shard that no manifest tells of is read and hashed, so
that a task that was killed at any moment leaves nothing to repair by hand. Gather changes no shard
and can run any number of times, also while tasks are still running.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatspace.errors import OutputError
from chatspace.shards.records import ShardRecord, ShardSpan, shard_file_name
from chatspace.shards.store import ShardStore, shard_indexes
from chatspace.shards.task_manifest import TaskManifest, read_task_manifest
from chatspace.shards.verify import ShardCheck, check_shard, repeated_ids

READ_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What gather found in one split.

    Attributes:
        records: whole shards, ascending.
        missing: shards that are absent or damaged, ascending.
        problems: one line for each thing that is wrong and is not just missing.
        damaged: shards whose files are not those that were written; only `verify` finds them.
        attempts: every execution that the task manifests tell of.
    """

    records: tuple[ShardRecord, ...]
    missing: tuple[ShardSpan, ...]
    problems: tuple[str, ...]
    damaged: tuple[ShardSpan, ...] = ()
    attempts: tuple[dict[str, Any], ...] = field(default=())

    @property
    def complete(self) -> bool:
        """Whether every input row is in exactly one whole shard or counted in it as skipped."""
        return not self.missing and not self.problems


def prove_coverage(
    store: ShardStore, spans: Sequence[ShardSpan], tasks: Path, *, verify: bool = False
) -> Coverage:
    """Checks the shards of a split against the spans of its plan.

    Args:
        store: the split's shards.
        spans: every shard of the plan, ascending.
        tasks: folder of the run's task manifests.
        verify: read every shard again: checksum, rows, ids, norms.

    Raises:
        OutputError: a shard belongs to another plan.
    """
    manifests = _manifests(tasks, store)
    recorded = _latest_records(manifests)
    listed = shard_indexes(store.folder)
    on_disk = set(listed)

    def look(span: ShardSpan) -> tuple[ShardSpan, ShardRecord | None, ShardCheck | None]:
        record = recorded.get(span.index)
        # The listing of a network file system may be older than a manifest that another node wrote.
        if span.index not in on_disk and record is None:
            return span, None, None
        if not _matches(record, span, _size(store.path(span))):
            record = store.adopt(span)
        return span, record, check_shard(store, span, record) if verify and record else None

    with ThreadPoolExecutor(READ_THREADS) as pool:
        seen = list(pool.map(look, spans))
    records = tuple(record for _, record, _ in seen if record is not None)
    checks = [check for _, _, check in seen if check is not None]
    problems = [line for check in checks for line in check.problems] + repeated_ids(checks)
    problems += _disagreements(records) + _strays(listed, spans, store.folder)
    return Coverage(
        records=records,
        missing=tuple(span for span, record, _ in seen if record is None),
        problems=tuple(problems),
        damaged=tuple(span for span, _, check in seen if check is not None and check.is_damaged),
        attempts=tuple(
            {"shard_start": m.shard_start, "shard_stop": m.shard_stop, **attempt}
            for m in manifests
            for attempt in m.attempts
        ),
    )


def count_shards(folder: Path, n_shards: int) -> int:
    """Returns how many shard files with an index below `n_shards` a folder holds; opens none."""
    return bisect_left(shard_indexes(folder), n_shards)


def _manifests(tasks: Path, store: ShardStore) -> list[TaskManifest]:
    """Returns the split's readable manifests; refuses those of another plan."""
    paths = sorted(tasks.glob("*.json")) if tasks.is_dir() else []
    read: Callable[[Path], TaskManifest | None] = read_task_manifest
    with ThreadPoolExecutor(READ_THREADS) as pool:
        found = [manifest for manifest in pool.map(read, paths) if manifest is not None]
    for manifest in found:
        if manifest.owner.plan_sha256 != store.owner.plan_sha256:
            raise OutputError(
                f"Task manifest of another plan: {manifest.path} belongs to run "
                f"{manifest.owner.run_id}, this run is {store.owner.run_id}. Move it away."
            )
    return [manifest for manifest in found if manifest.owner.split == store.owner.split]


def _latest_records(manifests: Sequence[TaskManifest]) -> dict[int, ShardRecord]:
    """Returns one record a shard; where two tasks wrote the same shard, the later one."""
    latest: dict[int, ShardRecord] = {}
    for manifest in manifests:
        for index, record in manifest.shards.items():
            if index not in latest or latest[index].created_at <= record.created_at:
                latest[index] = record
    return latest


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _matches(record: ShardRecord | None, span: ShardSpan, size: int | None) -> bool:
    """Tells whether a recorded shard is on disk with the size and the rows that were recorded."""
    return (
        record is not None
        and record.bytes == size
        and (record.row_start, record.row_stop) == (span.row_start, span.row_stop)
        and record.rows + sum(record.rows_skipped.values()) == span.n_rows
    )


def _disagreements(records: Sequence[ShardRecord]) -> list[str]:
    """Returns a line if the shards do not all hold vectors of one length."""
    dims = sorted({record.embedding_dim for record in records})
    if len(dims) <= 1:
        return []
    odd = next(record for record in records if record.embedding_dim != dims[0])
    return [
        f"Vectors differ in length: {odd.path} embedding_dim={odd.embedding_dim}; others {dims[0]}."
    ]


def _strays(listed: Sequence[int], spans: Sequence[ShardSpan], folder: Path) -> list[str]:
    """Returns a line for each shard file that the plan does not know."""
    known = {span.index for span in spans}
    return [
        f"Shard outside the plan: {folder / shard_file_name(index)}; the plan ends with "
        f"{spans[-1].file_name}. Move it away."
        for index in listed
        if index not in known
    ]
