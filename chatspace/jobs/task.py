"""One array task: the missing shards of one slice, then, if everything is there, the gather."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatspace.errors import ChatspaceError, InputError, InterruptedRun
from chatspace.jobs.attempt import (
    Lane,
    attempt_facts,
    attempt_name,
    find_lane,
    job_log,
    usable_threads,
)
from chatspace.jobs.causes import cause_of
from chatspace.jobs.claims import Claims
from chatspace.jobs.events import EventLog
from chatspace.jobs.gather import gather_if_complete, split_store
from chatspace.jobs.signals import SignalStop
from chatspace.jobs.usage import UsageSampler
from chatspace.kinds import KINDS
from chatspace.layout import Layout, slice_manifest_name
from chatspace.plan.model import Plan, Slice, SplitPlan
from chatspace.plan.store import load_plan
from chatspace.plan.work import Progress, SliceOutcome, SliceWork, StopRequest
from chatspace.shards.records import ShardRecord, ShardSpan
from chatspace.shards.store import utc_now
from chatspace.shards.task_manifest import RUNNING, TaskManifest
from chatspace.wording import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one array task is to do.

    Attributes:
        spans: its shards, in the order in which it would like to do them.
        title: what the log calls it, `slice 3` or `repair 1 task 3`.
        event_log: name of its event log, after the split.
        manifest: name of its task manifest, after the split.
    """

    split: SplitPlan
    spans: tuple[ShardSpan, ...]
    title: str
    event_log: str
    manifest: str

    def of_lane(self, lane: Lane) -> Part:
        """Returns the same part, begun at another shard by each process of the task."""
        first = lane.index * len(self.spans) // lane.count
        return replace(
            self,
            spans=self.spans[first:] + self.spans[:first],
            event_log=self.event_log + lane.suffix,
            manifest=self.manifest + lane.suffix,
        )


def run_task(
    plan_path: Path, split_name: str, slice_index: int, *, of: int | None = None, lanes: int = 1
) -> None:
    """Does what is missing of one slice, but for shards that another task has in hand.

    Args:
        plan_path: the run's `plan.json`.
        split_name: which split.
        slice_index: which slice of it.
        of: number of slices that the caller was rendered for.
        lanes: processes of this array task; srun says which one this is.

    Raises:
        InputError: no such split or slice, or the plan was divided anew after rendering.
        InterruptedRun: a signal stopped the task; running it again resumes it.
    """
    plan = load_plan(plan_path)
    split, slice_ = _find_slice(plan, plan_path, split_name, slice_index, of)
    part = Part(
        split=split,
        spans=tuple(split.spans(slice_)),
        title=f"slice {slice_index}",
        event_log=f"{slice_index:05d}",
        manifest=slice_manifest_name(slice_.shard_start, slice_.shard_stop),
    )
    run_part(plan, part, lanes)


def run_part(plan: Plan, part: Part, lanes: int = 1) -> None:
    """Does what is missing of a part of a split, then gathers if nothing is missing at all.

    Raises:
        InterruptedRun: a signal stopped the task; running it again resumes it.
    """
    lane = find_lane(lanes)
    gpu = None
    if lanes > 1 and plan.cluster["gpus_per_task"] > 1:
        gpu = lane.own_gpu(is_bound=plan.cluster["gpu_directive"] == "gpus-per-task")
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before torch is imported
    task = _Task(plan, part.of_lane(lane), lane)
    todo = task.missing()
    if todo:
        task.work(todo)
    else:
        task.events.write("finished", rows=0, note="nothing to do", **attempt_facts(lane))
        log.info(
            "nothing to do run=%s split=%s %s shards=%d are complete",
            plan.run_id, part.split.name, part.title, len(part.spans),
        )  # fmt: skip
    gather_if_complete(plan, part.split)


class _Task:
    """One execution of one part."""

    def __init__(self, plan: Plan, part: Part, lane: Lane) -> None:
        run = Layout(Path(plan.workspace)).run(plan.run_id)
        self.plan, self.part, self.lane, self.split = plan, part, lane, part.split
        self.store = split_store(plan, part.split, attempt_name(lane))
        self.claims = Claims(run.claims(part.split.name), attempt_name(lane))
        path = run.event_log(part.split.name, part.event_log)
        self.events = EventLog(path, attempt_name(lane))
        self.stop = StopRequest()
        self.signals = SignalStop(
            self.stop, float(plan.cluster.get("grace_s", 120)), before_leaving=self._close_early
        )
        self.attempt = attempt_facts(lane)
        self.manifest = TaskManifest.open(
            run.task_manifest(part.split.name, part.manifest),
            plan.owner(part.split),
            min(span.index for span in part.spans),
            max(span.index for span in part.spans) + 1,
        )

    def missing(self) -> list[ShardSpan]:
        """Returns the shards to do; those that are there but unrecorded join the manifest.

        Not those of the other processes of this task: their manifests tell of them.
        """
        self.store.remove_stale_temps(self.part.spans)
        todo, adopted = [], False
        for span in self.part.spans:
            recorded = self.manifest.shards.get(span.index)
            footer = self.store.read_footer(span)
            if footer is None:
                todo.append(span)
            elif self.lane.count > 1:
                continue
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
        spans = self.part.spans
        rows_done = sum(span.n_rows for span in spans) - sum(span.n_rows for span in todo)
        facts = dict(self.attempt)
        self.attempt.update(started_at=utc_now(), state=RUNNING)
        self.manifest.attempts.append(self.attempt)
        self.signals.install()
        self.manifest.write()
        self.events.write("started", rows_done=rows_done, log=job_log(), **facts)
        log.info(
            "start run=%s split=%s %s shards=%d of %d to do attempt=%s",
            self.plan.run_id, self.split.name, self.part.title, len(todo), len(spans),
            facts["attempt"],
        )  # fmt: skip
        usage = UsageSampler()
        try:
            with usage:
                outcome = self._run_kind(todo)
        except BaseException as error:
            interrupted = isinstance(error, InterruptedRun)
            cause = {} if interrupted else {"cause": cause_of(error)}
            state = "interrupted" if interrupted else "failed"
            self._close(state, error=_one_line(error), **cause, usage=usage.stop())
            raise
        left = self._left_to_do()
        is_interrupted = bool(left) and (outcome.interrupted or self.stop.requested)
        state = "interrupted" if is_interrupted else "finished"
        self._close(state, **outcome_facts(outcome), usage=usage.stop())
        if is_interrupted:
            raise InterruptedRun(
                f"Interrupted: {self.plan.run_id} {self.split.name} {self.part.title}; "
                f"{len(left)} of {len(spans)} shards left. Run it again to resume."
            )

    def _left_to_do(self) -> list[ShardSpan]:
        """Returns the shards that are absent and that no living execution has in hand."""
        others = {span.index for span in self.claims.left}
        for span in self.claims.left:
            log.info("left to another task shard=%d", span.index)
        return [
            span
            for span in self.part.spans
            if span.index not in others and not self.store.path(span).exists()
        ]

    def _run_kind(self, todo: Sequence[ShardSpan]) -> SliceOutcome:
        started = time.monotonic()

        def report(progress: Progress) -> None:
            self.signals.rows_flow = self.signals.rows_flow or progress.stage == "embedding"
            elapsed_s = round(time.monotonic() - started, 3)
            self.events.write("progress", elapsed_s=elapsed_s, **asdict(progress))

        run_slice = KINDS[self.plan.kind].slice_work()
        try:
            outcome: SliceOutcome = run_slice(
                SliceWork(
                    plan=self.plan,
                    split=self.split,
                    spans=tuple(todo),
                    commit=self._commit,
                    stop=self.stop,
                    report=report,
                    threads=usable_threads(),
                    take=lambda: self.claims.share(todo, self.store.is_done, self.stop),
                )
            )
        finally:
            self.claims.close()
        return outcome

    def _commit(
        self, span: ShardSpan, table: pa.Table, *, skipped: dict[str, int], truncated: int
    ) -> ShardRecord:
        self.signals.rows_flow = True  # the first report may be later than the first shard
        record = self.store.commit(span, table, skipped=skipped, truncated=truncated)
        self.claims.release(span)
        self.manifest.record(record)
        self.events.write("shard", shard_index=span.index, rows=span.n_rows, bytes=record.bytes)
        return record

    def _close_early(self, reason: str) -> None:
        """Takes down that a signal ends this process; it may come anywhere in `work` and after."""
        if self.attempt["state"] == RUNNING:
            self._close("interrupted", error=reason)
        self.claims.give_back()

    def _close(self, state: str, **facts: Any) -> None:
        self.attempt.update(state=state, finished_at=utc_now(), **facts)
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
            f"Script of another division: it was rendered for {counted(of, 'slice')}, "
            f"{path} now has {count:,}. "
            f"Submit the script that `chatspace setup` wrote last."
        )
    if not 0 <= slice_index < count:
        raise InputError(
            f"Unknown slice: --slice {slice_index}; {split_name} has 0 to {count - 1}."
        )
    return split, split.slices[slice_index]


def _one_line(error: BaseException) -> str:
    # What is raised on purpose reads as a sentence; of anything else the type says the most.
    what = "" if isinstance(error, ChatspaceError) else f"{type(error).__name__}: "
    return f"{what}{error}".splitlines()[0][:500]
