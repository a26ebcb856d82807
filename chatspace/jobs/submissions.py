"""What was submitted of a run: one JSON line a job in `submissions.jsonl`, appended only."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chatspace.atomic import output_error
from chatspace.errors import OutputError, UnfitEnvironmentError
from chatspace.jobs.processes import is_alive
from chatspace.jobs.render import ArrayJob, job_names
from chatspace.jobs.scheduler import ACTIVE_STATES, Scheduler, look
from chatspace.jobs.setup import GATHER_SCRIPT, SetUp
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.shards.store import utc_now


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One job.

    Attributes:
        job_id: id that the batch system gave.
        executor: `sbatch`, `submitit` or `local`.
        split: split of an array, None for the gather job.
        offset: slice of array index 0.
        count: array tasks.
        repair: number of the repair whose tasks they are, None for slices of the plan.
    """

    job_id: str
    executor: str
    submitted_at: str
    split: str | None
    offset: int
    count: int
    script: str
    repair: int | None = None


def submit_all(done: SetUp, scheduler: Scheduler, *, again: bool = False) -> list[Submission]:
    """Submits every array of a run in order, then the gather job that waits for them all.

    Args:
        done: the run, with its scripts written.
        scheduler: where it goes.
        again: submit even though jobs of the run are still queued or running.

    Raises:
        UnfitEnvironmentError: the batch system refuses, or jobs of the run are still active.
        OutputError: the record of the submissions cannot be written.
    """
    if not again:
        refuse_active(done.plan, scheduler)
    arrays = list(zip(done.jobs, done.scripts, strict=True))
    return submit_arrays(done.plan, arrays, done.gather, scheduler)


def submit_arrays(
    plan: Plan, arrays: Sequence[tuple[ArrayJob, Path]], gather: Path, scheduler: Scheduler
) -> list[Submission]:
    """Submits array scripts in order, then the gather job that waits for them all.

    Raises:
        UnfitEnvironmentError: the batch system refuses; the message names what is queued already.
        OutputError: the record of the submissions cannot be written.
    """
    _append(plan, b"")  # a job that is not on record would be submitted twice
    submitted: list[Submission] = []
    try:
        for job, script in arrays:
            submitted.append(_record(plan, _of(job, scheduler.submit(script))))
        after = [submission.job_id for submission in submitted]
        gather_id = scheduler.submit(gather, after=after)
    except UnfitEnvironmentError as error:
        raise _with_submitted(error, submitted) from error
    gather_job = ArrayJob(split="", rows=0, count=1, script=GATHER_SCRIPT)
    submitted.append(_record(plan, _of(gather_job, gather_id)))
    return submitted


def record_submission(
    plan: Plan, *, job_id: str, executor: str, split: str, offset: int, count: int
) -> Submission:
    """Appends one job that another executor started."""
    return _record(
        plan,
        Submission(
            job_id=job_id,
            executor=executor,
            submitted_at=utc_now(),
            split=split,
            offset=offset,
            count=count,
            script="",
        ),
    )


def read_submissions(plan: Plan) -> list[Submission]:
    """Returns the jobs of a run, oldest first; a torn line is passed over."""
    try:
        lines = _path(plan).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [found for line in lines if (found := _parse(line)) is not None]


def slurm_ids(submissions: Sequence[Submission]) -> list[str]:
    """Returns the ids of the jobs that SLURM knows."""
    return [s.job_id for s in submissions if s.executor != "local" and s.job_id.isdigit()]


def refuse_active(plan: Plan, scheduler: Scheduler) -> None:
    """Refuses a run that something still works on.

    Raises:
        UnfitEnvironmentError: jobs of the run are queued or running, or processes of this machine.
    """
    active = active_jobs(plan, scheduler)
    if active:
        stop = "scancel" if active[0].isdigit() else "kill"
        numbers = " ".join(job.removeprefix(f"{platform.node()}:") for job in active)
        raise UnfitEnvironmentError(
            f"Run has active jobs: {plan.run_id} {', '.join(active)}. Wait for them, cancel them "
            f"with `{stop} {numbers}`, or submit beside them with --again."
        )


def active_jobs(plan: Plan, scheduler: Scheduler) -> list[str]:
    """Returns the jobs of a run that are queued or running, of SLURM and of this machine.

    Those on record, and those in the user's queue that carry the name of the run.

    Raises:
        UnfitEnvironmentError: SLURM has jobs on record and does not answer.
    """
    submissions = read_submissions(plan)
    ids = slurm_ids(submissions)
    snapshot = look(scheduler, ids, job_names(plan))
    if ids and not snapshot.answered:
        raise unanswered()
    queued = {k.split("_")[0] for k, state in snapshot.states.items() if state in ACTIVE_STATES}
    return sorted(queued) + list(dict.fromkeys(s.job_id for s in submissions if is_active_here(s)))


def unanswered() -> UnfitEnvironmentError:
    """Returns the error of a SLURM that was asked for the jobs of a run in vain."""
    return UnfitEnvironmentError(
        "SLURM does not answer: squeue failed, so nobody knows what is queued or running. Try "
        "again later."
    )


def local_job_id(pid: int) -> str:
    """Returns the job id of a process of this machine."""
    return f"{platform.node()}:{pid}"


def is_active_here(submission: Submission) -> bool:
    """Tells whether a submission is a process of this machine that is still there."""
    host, _, pid = submission.job_id.rpartition(":")
    is_ours = submission.executor == "local" and host == platform.node() and pid.isdigit()
    return is_ours and is_alive(int(pid))


def _with_submitted(
    error: UnfitEnvironmentError, submitted: Sequence[Submission]
) -> UnfitEnvironmentError:
    """Returns the error with what is in the queue already."""
    if not submitted:
        return error
    ids = " ".join(submission.job_id for submission in submitted)
    return UnfitEnvironmentError(
        f"{error} {len(submitted)} arrays of the run were submitted before: cancel them with "
        f"`scancel {ids}`, or submit the other scripts with sbatch."
    )


def _of(job: ArrayJob, job_id: str) -> Submission:
    return Submission(
        job_id=job_id,
        executor="sbatch",
        submitted_at=utc_now(),
        split=job.split or None,
        offset=job.offset,
        count=job.count,
        script=job.script,
        repair=job.repair,
    )


def _record(plan: Plan, submission: Submission) -> Submission:
    try:
        _append(plan, json.dumps(asdict(submission)).encode() + b"\n")
    except OutputError as error:
        raise OutputError(f"Job {submission.job_id} was submitted. {error}") from error
    return submission


def _append(plan: Plan, line: bytes) -> None:
    """Appends to the record in one write, after the end of a line that was cut short.

    Raises:
        OutputError: the file cannot be written.
    """
    path = _path(plan)
    try:
        with path.open("ab+", buffering=0) as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            if line:
                file.write(line)
    except OSError as error:
        raise output_error(error, path) from error


def _parse(line: bytes) -> Submission | None:
    try:
        return Submission(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _path(plan: Plan) -> Path:
    return Layout(Path(plan.workspace)).run(plan.run_id).submissions
