"""Resubmit: what is missing of a run and nobody is at, as new arrays; and cancel."""

from __future__ import annotations

import logging
import os
import platform
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatspace.errors import InputError, SpecError
from chatspace.jobs.causes import cause_of_exit
from chatspace.jobs.events import read_events
from chatspace.jobs.gather import split_coverage, split_store
from chatspace.jobs.repair import Repair, divide, read_repair, render_repair, write_repair
from chatspace.jobs.scheduler import ACTIVE_STATES, Scheduler
from chatspace.jobs.setup import GATHER_SCRIPT, absolute_cluster
from chatspace.jobs.submissions import (
    Submission,
    active_jobs,
    is_active_here,
    read_submissions,
    slurm_ids,
    submit_arrays,
)
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.spec.cluster import resolve_cluster
from chatspace.spec.loading import load_spec

log = logging.getLogger(__name__)

# A spec section whose values change how a run is done, and nothing of what it gives.
CHANGEABLE = ("slurm.", "container.")
# Failures that another node may not have; a bug would exclude one node after another.
NODE_CAUSES = frozenset(["node", "environment", "killed", "crash", "host_memory"])
FAILURES_OF_A_BAD_NODE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Resubmitted:
    """What a resubmission did.

    Attributes:
        n_missing: shards that are not there.
        n_active: those of them that queued or running tasks have; they were left to them.
        excluded: nodes that the new tasks avoid.
        submissions: the new jobs, the gather job last; none where nothing was left to submit.
    """

    n_missing: int
    n_active: int
    excluded: tuple[str, ...]
    submissions: tuple[Submission, ...]


def resubmit(
    plan: Plan,
    scheduler: Scheduler,
    *,
    max_tasks: int | None = None,
    overrides: Sequence[str] = (),
    share: bool = False,
    verify: bool = False,
) -> Resubmitted:
    """Submits the shards that are missing, regrouped, and a gather job behind them.

    Args:
        plan: the run.
        scheduler: where it goes.
        max_tasks: array tasks at most [about as large as the plan's].
        overrides: `key=value` texts for the sections `slurm` and `container`.
        share: also submit what queued and running tasks have; all share it, no shard is done twice.
        verify: read every shard again first; damaged ones are set aside and done again.

    Raises:
        UserError: an override is wrong or would be another run.
        UnfitEnvironmentError: the batch system is missing or refuses.
    """
    cluster = changed_cluster(plan, overrides)
    missing = missing_shards(plan, verify=verify)
    taken = {} if share else active_shards(plan, scheduler)
    todo = {
        split: left
        for split, shards in missing.items()
        if (left := [shard for shard in shards if shard not in taken.get(split, ())])
    }
    n_missing, n_todo = (sum(map(len, part.values())) for part in (missing, todo))
    excluded = failed_nodes(plan) if cluster.get("exclude_failed_nodes", True) else []
    submissions: list[Submission] = []
    if todo:
        repairs = [
            Repair(
                plan_sha256=plan.plan_sha256,
                split=split,
                tasks=tasks,
                exclude=tuple(excluded),
                cluster=cluster,
            )
            for split, tasks in divide(plan, todo, max_tasks).items()
        ]
        for repair in repairs:  # all of them before any is written
            scheduler.check(render_repair(plan, repair)[1])
        arrays = [write_repair(plan, repair) for repair in repairs]
        gather = Layout(Path(plan.workspace)).run(plan.run_id).folder / GATHER_SCRIPT
        submissions = submit_arrays(plan, arrays, gather, scheduler)
    return Resubmitted(
        n_missing=n_missing,
        n_active=n_missing - n_todo,
        excluded=tuple(excluded) if todo else (),
        submissions=tuple(submissions),
    )


def cancel(plan: Plan, scheduler: Scheduler) -> list[str]:
    """Cancels every job of a run that is queued or running, here and in SLURM.

    What is done stays; submitting again resumes.

    Returns:
        The ids of what was cancelled.

    Raises:
        UnfitEnvironmentError: the batch system is missing or refuses.
    """
    active = active_jobs(plan, scheduler)
    scheduler.cancel([job for job in active if job.isdigit()])
    for job in active:
        host, _, pid = job.rpartition(":")
        if host == platform.node():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), signal.SIGTERM)
    return active


def missing_shards(plan: Plan, *, verify: bool = False) -> dict[str, list[int]]:
    """Returns the indexes of the shards that are absent or damaged, by split, ascending.

    Args:
        plan: the run.
        verify: read every shard; those that are not what was written are set aside.
    """
    missing = {}
    for split in plan.splits:
        coverage = split_coverage(plan, split, verify=verify)
        for span in coverage.damaged:
            log.warning("set aside path=%s", split_store(plan, split).set_aside(span))
        spans = {span.index for span in (*coverage.missing, *coverage.damaged)}
        if spans:
            missing[split.name] = sorted(spans)
    return missing


def active_shards(plan: Plan, scheduler: Scheduler) -> dict[str, set[int]]:
    """Returns the shards of the tasks that are queued or running, by split."""
    submissions = read_submissions(plan)
    ids = slurm_ids(submissions)
    states = scheduler.states(ids) if ids else {}
    shards: dict[str, set[int]] = {split.name: set() for split in plan.splits}
    for submission in submissions:
        if submission.split not in shards:
            continue
        here = is_active_here(submission)
        for index in range(submission.count):
            if here or states.get(f"{submission.job_id}_{index}") in ACTIVE_STATES:
                shards[submission.split].update(_shards_of(plan, submission, index))
    return shards


def failed_nodes(plan: Plan) -> list[str]:
    """Returns the nodes on which tasks failed twice for a reason that may be the node's."""
    counts = Counter(
        node
        for path in Layout(Path(plan.workspace)).run(plan.run_id).events.glob("*.jsonl")
        for node in _failures(path)
    )
    return sorted(node for node, n in counts.items() if n >= FAILURES_OF_A_BAD_NODE)


def changed_cluster(plan: Plan, overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the SLURM and container settings of a run with some of them changed.

    Raises:
        SpecError: a key outside `slurm` and `container`, or a value that is wrong.
    """
    if not overrides:
        return plan.cluster
    for text in overrides:
        if not text.startswith(CHANGEABLE):
            raise SpecError(
                f"Cannot be changed in a run: --set {text}; only keys of slurm and container can, "
                f"all others decide what the run gives. Set up another run instead."
            )
    spec_path = Layout(Path(plan.workspace)).run(plan.run_id).spec
    if not spec_path.is_file():
        raise InputError(f"No run spec: {spec_path} does not exist. Run `chatspace setup` again.")
    changed = asdict(absolute_cluster(resolve_cluster(load_spec(spec_path, overrides))))
    if not any(text.startswith("slurm.log_dir") for text in overrides):
        changed["log_dir"] = plan.cluster["log_dir"]
    changed["max_array_size"] = changed["max_array_size"] or plan.cluster.get("max_array_size")
    return {**plan.cluster, **changed}


def _shards_of(plan: Plan, submission: Submission, index: int) -> Sequence[int]:
    split = plan.split(str(submission.split))
    if submission.repair is not None:
        return read_repair(plan, submission.repair).tasks[index]
    if submission.offset + index >= len(split.slices):  # the plan was divided anew since
        return ()
    slice_ = split.slices[submission.offset + index]
    return range(slice_.shard_start, slice_.shard_stop)


def _failures(path: Path) -> Iterator[str]:
    """Yields the node of each failed attempt in an event log that may have failed for the node."""
    node, counted = "", ""
    for event in read_events(path)[0]:
        match event:
            case {"event": "started"}:
                node = event.get("slurm", {}).get("node") or event.get("host", "")
                counted = ""
            case {"event": "failed", "cause": cause}:
                counted = node
                if cause in NODE_CAUSES:
                    yield node
            case {"event": "ended", "host": str(host), "exit_code": int(code)} if not counted:
                if cause_of_exit(code, event.get("oom_kills", 0)) in NODE_CAUSES:
                    yield host
