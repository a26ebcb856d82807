"""The seam between an array task and a kind: what the task hands over, and what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from chatspace.data.rows import SplitReader
from chatspace.data.selection import open_selection
from chatspace.plan.model import Plan, SplitPlan
from chatspace.shards.records import ShardRecord, ShardSpan
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.output import OutputSection


class StopRequest:
    """Set by a signal handler, read by the stages; later requests only shorten the time."""

    def __init__(self) -> None:
        self._deadline_s: float | None = None

    def request(self, grace_s: float) -> None:
        """Asks the work to stop within `grace_s` seconds; later requests only shorten the time."""
        deadline_s = time.monotonic() + grace_s
        if self._deadline_s is None or deadline_s < self._deadline_s:
            self._deadline_s = deadline_s

    @property
    def requested(self) -> bool:
        """Whether the work should stop."""
        return self._deadline_s is not None

    @property
    def remaining_s(self) -> float:
        """Seconds left to finish the shard in hand; infinite while nothing was requested."""
        return float("inf") if self._deadline_s is None else self._deadline_s - time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Counters of one execution of a slice, since its start.

    Attributes:
        rows: input rows dealt with, skipped ones counted.
        n_tokens: real tokens through the model.
        n_padded_tokens: tokens computed, padding counted; 0 where that is not known.
        stage: what the slice is doing: `loading model`, `warming up`, `embedding`, `done`.
    """

    rows: int
    n_tokens: int
    n_padded_tokens: int
    stage: str


@dataclass(slots=True, kw_only=True)
class StageTimes:
    """Seconds that one stage worked, and that it waited for its neighbours."""

    busy_s: float = 0.0
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceOutcome:
    """What one execution of a slice measured.

    Attributes:
        n_padded_tokens: as in `Progress`.
        stages: times of `loader` and `writer`, and between them what the kind calls it: `encoder`,
            or `requests` of an endpoint.
        runtime: device, dtype, package versions and settings that were really used.
        interrupted: whether shards that were given, or still to come, were left undone because a
            stop was requested.
        notes: things that the user should know, one line each (a halved token budget, a fallback).
    """

    n_tokens: int
    n_padded_tokens: int
    stages: dict[str, StageTimes]
    runtime: dict[str, Any]
    interrupted: bool
    notes: tuple[str, ...] = ()
    elapsed_s: float = 0.0
    setup_s: float = field(default=0.0)


class Commit(Protocol):
    """Writes one shard atomically, records it in the task manifest, returns its record."""

    def __call__(
        self, span: ShardSpan, table: pa.Table, *, skipped: dict[str, int], truncated: int
    ) -> ShardRecord:
        """Returns the record of the shard that is now on disk."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceWork:
    """One execution of one slice, as handed to a kind's `run_slice`.

    Attributes:
        spans: the shards still to do.
        commit: called once for each shard, from any one thread at a time.
        stop: read between batches; see `StopRequest`.
        report: called at least once a second while rows flow, from any thread.
        threads: CPU threads that this task may use.
        take: gives the shards of `spans` that are this execution's, each claimed when it is asked
            for [all of them]; others may be at work on the same shards.
    """

    plan: Plan
    split: SplitPlan
    spans: tuple[ShardSpan, ...]
    commit: Commit
    stop: StopRequest
    report: Callable[[Progress], None]
    threads: int
    take: Callable[[], Iterator[ShardSpan]] | None = None

    def reader(self) -> SplitReader:
        """Returns the reader of the rows that the shards are ranges of."""
        return split_reader(self.plan, self.split)

    def shards(self) -> Iterator[ShardSpan]:
        """Yields the shards to do, as late as possible: a shard is this execution's once given."""
        return iter(self.spans) if self.take is None else self.take()


def split_reader(plan: Plan, split: SplitPlan) -> SplitReader:
    """Returns the reader of the rows that a plan reads of a split.

    Raises:
        InputError: the list of the rows that are read is missing or damaged.
    """
    output = OutputSection.model_validate(plan.spec["output"])
    return SplitReader(
        DatasetSection.model_validate(plan.spec["dataset"]),
        label=split.dataset,
        split=split.name,
        files=split.files,
        selection=open_selection(split.selected, Path(plan.workspace), split.rows),
        keep_columns=output.keep_columns,
    )
