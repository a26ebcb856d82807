"""Status of a run: what is on disk, what the event logs say, and what SLURM says of its jobs.

Asks SLURM at most two questions, whatever the number of tasks, and none where nothing was submitted
to it. Right without accounting, and as far as the disk tells without SLURM.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chatspace.jobs.causes import CAUSES
from chatspace.jobs.render import job_names
from chatspace.jobs.scheduler import ACTIVE_STATES, Scheduler, SlurmScheduler, Snapshot, look
from chatspace.jobs.submissions import Submission, is_active_here, read_submissions, slurm_ids
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.watch.completeness import Extent, are_complete, extent_of
from chatspace.watch.logs import newest_log
from chatspace.watch.tails import Tail, read_tails
from chatspace.watch.task_states import ACTIVE_TASKS, STATES, TaskStatus, judge_tasks, with_replaced
from chatspace.watch.tasks import SLURM_ATTEMPT, expected_tasks, find_arrays

# Of the running tasks, how many must have told their speed before it is that of the run.
LEAST_TIMED_SHARE = 0.5
FAILED_STATES = ("failed", "gone")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStatus:
    """How far one split is.

    Attributes:
        rows_done: input rows of the shards that are on disk.
        manifest: path of the published manifest, None before the gather.
    """

    split: str
    shards: int
    shards_done: int
    rows: int
    rows_done: int
    slices: int
    slices_done: int
    manifest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Tasks that failed, are gone or were cancelled for the same cause.

    Attributes:
        cause: key of `chatspace.jobs.causes.CAUSES`.
        count: tasks.
        task: label of one of them, `train 3`.
        error: one line of that one.
        log: its job log, None where there is none.
        next_step: what to do about it.
    """

    cause: str
    count: int
    task: str
    error: str
    log: str | None
    next_step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """How far a run is.

    Attributes:
        run_id: name and hash of the run.
        kind: its kind.
        model: name of its model.
        folder: `runs/{run_id}`.
        created_at: when it was first planned, ISO 8601, UTC.
        state: `complete`, `all shards written, not gathered`, `gathered once, but shards are gone`,
            `its folder holds shards of ...` (another run), `running`, `pending` (nothing runs,
            tasks are queued), `incomplete, with failed slices` or `incomplete`.
        is_active: whether anything of the run is running or queued, the gather job included.
        rows: input rows.
        rows_done: input rows of the shards that are on disk.
        splits: the same for each split.
        tasks: number of tasks by state; see `chatspace.watch.task_states.STATES`.
        jobs: number of elements of all submitted jobs by SLURM state, the gather job counted;
            empty where nothing was submitted to SLURM.
        failures: error of each task that failed or is gone, by its label.
        failure_groups: failed, gone and cancelled tasks by cause, in the order of the causes.
        stages: running tasks by what they are at, in the words of their kind.
        rows_per_s: of the running tasks together; None while it is not known.
        tokens_per_s: likewise.
        eta_s: seconds until the queued and running tasks are done at this speed; None if unknown.
        n_requeues: how often tasks were put back into the queue; None for complete runs in the
            overview of all, whose event logs are not read.
        gpus_in_use: GPUs of the running tasks.
        gather: `published`, `running`, `waiting` (for the arrays), `failed`, `cancelled` or
            `not yet`.
        slurm: `answered`, `silent` (asked in vain) or `not asked`.
    """

    run_id: str
    kind: str
    model: str
    folder: str
    created_at: str
    state: str
    is_active: bool
    rows: int
    rows_done: int
    splits: tuple[SplitStatus, ...]
    tasks: dict[str, int]
    jobs: dict[str, int]
    failures: dict[str, str]
    failure_groups: tuple[FailureGroup, ...]
    stages: dict[str, int]
    rows_per_s: float | None
    tokens_per_s: float | None
    eta_s: float | None
    n_requeues: int | None
    gpus_in_use: int
    gather: str
    slurm: str

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return asdict(self)

    def _repr_html_(self) -> str:
        """Returns what Jupyter shows."""
        from chatspace.watch.status_html import status_html

        return status_html(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the disk tells of a run, before SLURM is asked.

    Attributes:
        tails: ends of its event logs, None where they were not read.
    """

    plan: Plan
    extents: tuple[Extent, ...]
    submissions: tuple[Submission, ...]
    tails: Mapping[str, Tail] | None

    @property
    def is_complete(self) -> bool:
        """Whether every split is whole and gathered."""
        return are_complete(self.extents)

    @property
    def is_active_here(self) -> bool:
        """Whether a process of this machine does the run; its first task may not have begun."""
        return any(is_active_here(submission) for submission in self.submissions)

    def slurm_jobs(self) -> set[str]:
        """Returns the ids of the jobs on record, and of those that the event logs name."""
        attempts = (SLURM_ATTEMPT.match(tail.attempt or "") for tail in (self.tails or {}).values())
        return {match[1] for match in attempts if match} | set(slurm_ids(self.submissions))


def run_status(plan: Plan, *, scheduler: Scheduler | None = None) -> RunStatus:
    """Looks at a run.

    Args:
        plan: the run.
        scheduler: asked for the states of submitted jobs [SLURM].
    """
    seen = see(plan)
    return status_of(seen, ask([seen], scheduler))


def task_statuses(plan: Plan, *, scheduler: Scheduler | None = None) -> list[TaskStatus]:
    """Returns how each task of a run is: slices first, then tasks of repairs."""
    seen = see(plan)
    return judged(seen, ask([seen], scheduler))


def see(plan: Plan, *, briefly: bool = False) -> Seen:
    """Looks at the disk.

    Args:
        plan: the run.
        briefly: leave out the event logs if the run is complete.
    """
    extents = tuple(extent_of(plan, split) for split in plan.splits)
    submissions = tuple(read_submissions(plan))
    seen = Seen(plan=plan, extents=extents, submissions=submissions, tails=None)
    if briefly and seen.is_complete:
        return seen
    return replace(seen, tails=read_tails(Layout(Path(plan.workspace)).run(plan.run_id)))


def ask(runs: Sequence[Seen], scheduler: Scheduler | None) -> Snapshot | None:
    """Asks SLURM once for several runs; None where it has nothing to do with them."""
    ids: Collection[str] = sorted({job for seen in runs for job in seen.slurm_jobs()}, key=int)
    names = {name for seen in runs for name in job_names(seen.plan)}
    # Jobs that were submitted by hand and have not begun are known to the queue alone.
    scheduler = scheduler or SlurmScheduler()
    by_hand = isinstance(scheduler, SlurmScheduler) and any(not _is_local(seen) for seen in runs)
    return look(scheduler, ids, names) if ids or by_hand else None


def status_of(seen: Seen, slurm: Snapshot | None) -> RunStatus:
    """Returns how far a run is, from what was seen of it and what SLURM says."""
    plan = seen.plan
    found = judged(seen, slurm)
    counts = Counter(status.state for status in found)
    ids = seen.slurm_jobs()
    snapshot = slurm or Snapshot()
    ids |= {job for job, name in snapshot.names.items() if name in job_names(seen.plan)}
    jobs = Counter(
        state for element, state in snapshot.states.items() if element.partition("_")[0] in ids
    )
    splits = tuple(_split_status(plan, extent) for extent in seen.extents)
    running = [status for status in found if status.state == "running"]
    rates = [status for status in running if status.rows_per_s is not None]
    is_timed = bool(rates) and len(rates) >= LEAST_TIMED_SHARE * len(running)
    rows_per_s = sum(status.rows_per_s or 0.0 for status in rates) if is_timed else None
    failures = {s.task.label: s.error for s in found if s.state in FAILED_STATES}
    return RunStatus(
        run_id=plan.run_id,
        kind=plan.kind,
        model=str(plan.model["name"]),
        folder=str(Layout(Path(plan.workspace)).run(plan.run_id).folder),
        created_at=plan.created_at,
        state=_state(seen, counts, failures),
        is_active=bool(
            counts.keys() & ACTIVE_TASKS or jobs.keys() & ACTIVE_STATES or seen.is_active_here
        ),
        rows=sum(split.rows for split in splits),
        rows_done=sum(split.rows_done for split in splits),
        splits=splits,
        tasks={state: counts[state] for state in STATES if counts[state]},
        jobs=dict(jobs),
        failures=failures,
        failure_groups=_groups(plan, found),
        stages=dict(Counter(status.stage for status in running if status.stage)),
        rows_per_s=rows_per_s,
        tokens_per_s=sum(s.tokens_per_s or 0.0 for s in rates) if is_timed else None,
        eta_s=_rows_ahead(seen, found) / rows_per_s if rows_per_s else None,
        n_requeues=None if seen.tails is None else sum(status.n_requeues for status in found),
        gpus_in_use=sum(status.task.n_gpus for status in running),
        gather=_gather(seen, snapshot),
        slurm="not asked" if slurm is None else "answered" if slurm.answered else "silent",
    )


def _is_local(seen: Seen) -> bool:
    """Whether nothing suggests that SLURM knows of the run: it is done, or runs on this machine."""
    is_off_slurm = bool(seen.tails or seen.submissions) and not seen.slurm_jobs()
    return seen.is_complete or is_off_slurm


def judged(seen: Seen, slurm: Snapshot | None) -> list[TaskStatus]:
    """Returns how each task of a run is, from what was seen of it and what SLURM says."""
    snapshot = slurm or Snapshot()
    tasks = expected_tasks(seen.plan, seen.extents, seen.submissions)
    tails = seen.tails or {}
    arrays = find_arrays(seen.plan, tasks, tails, seen.submissions, snapshot.names)
    return with_replaced(judge_tasks(tasks, tails, arrays, snapshot), seen.extents)


def _split_status(plan: Plan, extent: Extent) -> SplitStatus:
    split = extent.split
    done = sum(
        extent.shards_between(s.shard_start, s.shard_stop) == s.shard_stop - s.shard_start
        for s in split.slices
    )
    return SplitStatus(
        split=split.name,
        shards=split.n_shards,
        shards_done=len(extent.present),
        rows=split.rows,
        rows_done=extent.rows_done,
        slices=len(split.slices),
        slices_done=done,
        manifest=str(Path(plan.workspace) / split.manifest) if extent.is_gathered else None,
    )


def _state(seen: Seen, counts: Mapping[str, int], failures: Mapping[str, str]) -> str:
    on_disk = _state_on_disk(seen)
    if on_disk is not None:
        return on_disk
    if counts.get("running"):
        return "running"
    if any(counts.get(state) for state in ACTIVE_TASKS) or seen.is_active_here:
        return "pending"
    return "incomplete, with failed slices" if failures else "incomplete"


def _state_on_disk(seen: Seen) -> str | None:
    """Returns what the shards and manifests alone decide, None where tasks have a say."""
    if seen.is_complete:
        return "complete"
    if all(extent.is_whole for extent in seen.extents):
        return "all shards written, not gathered"
    if all(extent.is_gathered for extent in seen.extents):
        return "gathered once, but shards are gone"
    owner = next((extent.owner for extent in seen.extents if extent.owner), None)
    return f"its folder holds shards of {owner}" if owner else None


def _groups(plan: Plan, found: Sequence[TaskStatus]) -> tuple[FailureGroup, ...]:
    by_cause: dict[str, list[TaskStatus]] = {}
    for status in found:
        if status.cause is not None:
            cause = status.cause if status.cause in CAUSES else "unknown"
            by_cause.setdefault(cause, []).append(status)
    groups = []
    for cause, next_step in CAUSES.items():
        if cause in by_cause:
            ran = [status for status in by_cause[cause] if status.attempt is not None]
            example = (ran or by_cause[cause])[0]
            log = newest_log(plan, example)
            group = FailureGroup(
                cause=cause,
                count=len(by_cause[cause]),
                task=example.task.label,
                error=example.error,
                log=str(log) if log else None,
                next_step=next_step,
            )
            groups.append(group)
    return tuple(groups)


def _rows_ahead(seen: Seen, found: Sequence[TaskStatus]) -> int:
    """Returns the rows that queued and running tasks have before them."""
    todo: dict[str, set[int]] = {extent.split.name: set() for extent in seen.extents}
    for status in found:
        if status.state in ACTIVE_TASKS:
            todo[status.task.split].update(status.task.shards)
    return sum(
        extent.rows_of(todo[extent.split.name].difference(extent.present))
        for extent in seen.extents
    )


def _gather(seen: Seen, slurm: Snapshot) -> str:
    if all(extent.is_gathered for extent in seen.extents):
        return "published"
    on_record = [s.job_id for s in seen.submissions if s.split is None]
    by_hand = [job for job, name in slurm.names.items() if name == job_names(seen.plan)[1]]
    states = [slurm.states[job] for job in [*by_hand, *on_record] if job in slurm.states]
    if not states:
        return "not yet"
    if states[-1] in ("PENDING", "RUNNING"):
        return "waiting" if states[-1] == "PENDING" else "running"
    return "cancelled" if states[-1] == "CANCELLED" else "failed"
