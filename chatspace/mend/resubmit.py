"""Resubmit: what is missing of a run and nobody is at, as new arrays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chatspace.atomic import atomic_write_text
from chatspace.errors import InputError, SpecError
from chatspace.jobs.gather import split_coverage, split_store
from chatspace.jobs.render import render_gather
from chatspace.jobs.repair import Repair, divide, render_repair, write_repair
from chatspace.jobs.scheduler import Scheduler
from chatspace.jobs.setup import GATHER_SCRIPT, absolute_cluster, image_sha256
from chatspace.jobs.submissions import Submission, submit_arrays, unanswered
from chatspace.layout import Layout
from chatspace.mend.bad_nodes import failed_nodes
from chatspace.plan.model import Plan
from chatspace.spec.cluster import resolve_cluster
from chatspace.spec.loading import load_spec
from chatspace.watch.status import ask, judged, see
from chatspace.watch.task_states import ACTIVE_TASKS

log = logging.getLogger(__name__)

# Sections whose values change how a run is done, and nothing of what it gives.
CHANGEABLE = ("slurm.", "container.")


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
    check: Callable[[Plan, Mapping[str, str]], None] | None = None,
) -> Resubmitted:
    """Submits the shards that are missing, regrouped, and a gather job behind them.

    Args:
        plan: the run.
        scheduler: where it goes.
        max_tasks: array tasks at most [about as large as the plan's].
        overrides: `key=value` texts for the sections `slurm` and `container`.
        share: also submit what queued and running tasks have; all share it, no shard is done twice.
        verify: read every shard again first; damaged ones are set aside and done again.
        check: looks at the run, as it is submitted now, and at its scripts, before any is written.

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
                workspace=plan.workspace,
                cluster=cluster,
            )
            for split, tasks in divide(plan, todo, max_tasks).items()
        ]
        submissions = _submit(plan, repairs, scheduler, check)
    return Resubmitted(
        n_missing=n_missing,
        n_active=n_missing - n_todo,
        excluded=tuple(excluded) if todo else (),
        submissions=tuple(submissions),
    )


def _submit(
    plan: Plan,
    repairs: Sequence[Repair],
    scheduler: Scheduler,
    check: Callable[[Plan, Mapping[str, str]], None] | None,
) -> list[Submission]:
    """Submits arrays that share their settings, one for each split, and a gather job behind them.

    Nothing is written before the batch system and `check` have accepted all of it.
    """
    changed = replace(plan, cluster=repairs[0].cluster)
    scripts = {repair.split: render_repair(plan, repair)[1] for repair in repairs}
    scripts[GATHER_SCRIPT] = gather_text = render_gather(changed)
    for text in scripts.values():
        scheduler.check(text)
    if check is not None:
        check(changed, scripts)
    arrays = [write_repair(plan, repair) for repair in repairs]
    gather = arrays[0][1].with_name(GATHER_SCRIPT)
    atomic_write_text(gather, gather_text)
    return submit_arrays(plan, arrays, gather, scheduler)


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
    """Returns the shards of the tasks that are queued or running, by split, whoever submitted them.

    Raises:
        UnfitEnvironmentError: SLURM does not answer, so that nobody knows.
    """
    seen = see(plan)
    slurm = ask([seen], scheduler)
    if slurm is not None and not slurm.answered:
        raise unanswered()
    shards: dict[str, set[int]] = {split.name: set() for split in plan.splits}
    for status in judged(seen, slurm):
        if status.state in ACTIVE_TASKS:
            shards[status.task.split].update(status.task.shards)
    return shards


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
    before, after = (
        asdict(absolute_cluster(resolve_cluster(load_spec(spec_path, given))))
        for given in ([], overrides)
    )
    # What setup found on the machine, and where the workspace is now, stands in the plan alone.
    changed = {key: value for key, value in after.items() if value != before[key]}
    if "env" in changed:
        changed["env"] = {**plan.cluster["env"], **changed["env"]}
    cluster = {**plan.cluster, **changed}
    if "image" in changed:
        cluster["image_sha256"] = image_sha256(replace(plan, cluster=cluster), log.info)
    return cluster
