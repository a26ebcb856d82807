"""One array task: the missing shards of one slice, then, if everything is there, the gather."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatspace.errors import ChatspaceError, InputError, InterruptedRun
from chatspace.jobs.attempt import attempt_facts, attempt_name, usable_threads
from chatspace.jobs.events import EventLog
from chatspace.jobs.gather import gather_if_complete, split_store
from chatspace.jobs.signals import SignalStop
from chatspace.kinds import KINDS
from chatspace.layout import Layout
from chatspace.plan.model import Plan, Slice, SplitPlan
from chatspace.plan.store import load_plan
from chatspace.plan.work import Progress, SliceOutcome, SliceWork, StopRequest
from chatspace.shards.records import ShardRecord, ShardSpan
from chatspace.shards.store import utc_now
from chatspace.shards.task_manifest import TaskManifest

log = logging.getLogger(__name__)


def run_task(plan_path: Path, split_name: str, slice_index: int, *, of: int | None = None) -> None:
    """Does what is missing of one slice; returns when the slice is whole.

    Args:
        plan_path: the run's `plan.json`.
        split_name: which split.
        slice_index: which slice of it.
        of: number of slices that the caller was rendered for.

    Raises:
        InputError: no such split or slice, or the plan was divided anew after rendering.
        InterruptedRun: a signal stopped the task; running it again resumes it.
    """
    plan = load_plan(plan_path)
    split, slice_ = _find_slice(plan, plan_path, split_name, slice_index, of)
    task = _Task(plan, split, slice_)
    todo = task.missing()
    if todo:
        task.work(todo)
    else:
        task.events.write("finished", rows=0, note="nothing to do")
        log.info(
            "nothing to do run=%s split=%s slice=%d shards=%d are complete",
            plan.run_id, split.name, slice_.index, len(split.spans(slice_)),
        )  # fmt: skip
    gather_if_complete(plan, split)


class _Task:
    """One execution of one slice."""

    def __init__(self, plan: Plan, split: SplitPlan, slice_: Slice) -> None:
        run = Layout(Path(plan.workspace)).run(plan.run_id)
        self.plan, self.split, self.slice = plan, split, slice_
        self.store = split_store(plan, split, attempt_name())
        self.events = EventLog(run.event_log(split.name, slice_.index))
        self.manifest = TaskManifest.open(
            run.task_manifest(split.name, slice_.shard_start, slice_.shard_stop),
            plan.owner(split),
            slice_.shard_start,
            slice_.shard_stop,
        )

    def missing(self) -> list[ShardSpan]:
        """Returns the shards to do; those that are there but unrecorded join the manifest."""
        spans = self.split.spans(self.slice)
        self.store.remove_stale_temps(spans)
        todo, adopted = [], False
        for span in spans:
            recorded = self.manifest.shards.get(span.index)
            footer = self.store.read_footer(span)
            if footer is None:
                todo.append(span)
            elif recorded is None or recorded.bytes != self.store.path(span).stat().st_size:
                record = self.store.adopt(span)
                assert record is not None
                self.manifest.shards[span.index] = record
                adopted = True
        if adopted:
            self.manifest.write()
        return todo

    def work(self, todo: Sequence[ShardSpan]) -> None:
        """Runs the kind over the missing shards and records how it went."""
        spans = self.split.spans(self.slice)
        rows_done = sum(span.n_rows for span in spans) - sum(span.n_rows for span in todo)
        attempt: dict[str, Any] = {**attempt_facts(), "started_at": utc_now(), "state": "running"}
        self.manifest.attempts.append(attempt)
        self.manifest.write()
        self.events.write("started", rows_done=rows_done, **attempt_facts())
        log.info(
            "start run=%s split=%s slice=%d shards=%d of %d to do attempt=%s",
            self.plan.run_id, self.split.name, self.slice.index, len(todo), len(spans),
            attempt["attempt"],
        )  # fmt: skip
        try:
            outcome = self._run_kind(todo)
        except BaseException as error:
            state = "interrupted" if isinstance(error, InterruptedRun) else "failed"
            self._close(attempt, state, error=_one_line(error))
            raise
        state = "interrupted" if outcome.interrupted else "finished"
        self._close(attempt, state, **outcome_facts(outcome))
        if outcome.interrupted:
            left = [span for span in spans if not self.store.path(span).exists()]
            raise InterruptedRun(
                f"Interrupted: {self.plan.run_id} {self.split.name} slice {self.slice.index}; "
                f"{len(left)} of {len(spans)} shards left. Run it again to resume."
            )

    def _run_kind(self, todo: Sequence[ShardSpan]) -> SliceOutcome:
        stop = StopRequest()
        signals = SignalStop(stop, float(self.plan.cluster.get("grace_s", 120)))
        signals.install()
        started = time.monotonic()

        def report(progress: Progress) -> None:
            signals.rows_flow = signals.rows_flow or progress.stage == "embedding"
            elapsed_s = round(time.monotonic() - started, 3)
            self.events.write("progress", elapsed_s=elapsed_s, **asdict(progress))

        run_slice = KINDS[self.plan.kind].slice_work()
        outcome: SliceOutcome = run_slice(
            SliceWork(
                plan=self.plan,
                split=self.split,
                spans=tuple(todo),
                commit=self._commit,
                stop=stop,
                report=report,
                threads=usable_threads(),
            )
        )
        return outcome

    def _commit(
        self, span: ShardSpan, table: pa.Table, *, skipped: dict[str, int], truncated: int
    ) -> ShardRecord:
        record = self.store.commit(span, table, skipped=skipped, truncated=truncated)
        self.manifest.record(record)
        self.events.write("shard", shard_index=span.index, rows=span.n_rows, bytes=record.bytes)
        return record

    def _close(self, attempt: dict[str, Any], state: str, **facts: Any) -> None:
        attempt.update(state=state, finished_at=utc_now(), **facts)
        try:
            self.manifest.write()
        except ChatspaceError as error:
            log.warning("task manifest not written error=%s", error)
        self.events.write(state, **facts)


def outcome_facts(outcome: SliceOutcome) -> dict[str, Any]:
    """Returns what an execution measured, as the task manifest and the event log hold it."""
    stages = {
        name: {"busy_s": round(times.busy_s, 3), "idle_s": round(times.idle_s, 3)}
        for name, times in outcome.stages.items()
    }
    return {
        "n_tokens": outcome.n_tokens,
        "n_padded_tokens": outcome.n_padded_tokens,
        "stages": stages,
        "elapsed_s": round(outcome.elapsed_s, 3),
        "setup_s": round(outcome.setup_s, 3),
        "runtime": outcome.runtime,
        "notes": list(outcome.notes),
    }


def _find_slice(
    plan: Plan, path: Path, split_name: str, slice_index: int, of: int | None
) -> tuple[SplitPlan, Slice]:
    names = [split.name for split in plan.splits]
    if split_name not in names:
        raise InputError(f"Unknown split: --split {split_name}; {path} has {', '.join(names)}.")
    split = plan.split(split_name)
    count = len(split.slices)
    if of is not None and of != count:
        raise InputError(
            f"Script of another division: it was rendered for {of} slices, {path} now has {count}. "
            f"Submit the script that `chatspace setup` wrote last."
        )
    if not 0 <= slice_index < count:
        raise InputError(
            f"Unknown slice: --slice {slice_index}; {split_name} has 0 to {count - 1}."
        )
    return split, split.slices[slice_index]


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]
