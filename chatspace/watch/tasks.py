"""The tasks that a run is to have, and the jobs whose elements they are.

The plan and its repairs say which there are: SLURM forgets a pending element that was cancelled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from chatspace.errors import InputError
from chatspace.jobs.directives import lanes_of
from chatspace.jobs.render import array_jobs, repair_name
from chatspace.jobs.repair import read_repair
from chatspace.jobs.submissions import Submission
from chatspace.layout import path_component
from chatspace.plan.model import Plan
from chatspace.watch.completeness import Extent
from chatspace.watch.tails import Tail

SLURM_ATTEMPT = re.compile(r"(\d+)_(\d+)\.r(\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task that the run is to have.

    Attributes:
        index: slice of the split, or place in the repair.
        shards: indexes of its shards.
        n_done: how many of them are there.
        repair: number of the repair, None for a slice of the plan.
        n_gpus: GPUs that it has while it runs.
        log_dir: folder of its SLURM logs.
    """

    split: str
    index: int
    shards: Sequence[int]
    n_done: int
    repair: int | None = None
    n_gpus: int = 0
    log_dir: str = ""

    @property
    def is_done(self) -> bool:
        """Whether all its shards are there, whoever wrote them."""
        return self.n_done == len(self.shards)

    @property
    def label(self) -> str:
        """What people call it: `train 3`, `train repair 1 task 3`."""
        part = f"repair {self.repair} task " if self.repair is not None else ""
        return f"{self.split} {part}{self.index}"

    @property
    def log_name(self) -> str:
        """Name of its event log, without the suffix."""
        part = f"repair{repair_name(self.repair)}-" if self.repair is not None else ""
        return f"{path_component(self.split)}-{part}{self.index:05d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """A job whose elements are tasks: element `i` is task `i + offset`.

    Attributes:
        count: elements, None where it was submitted by hand.
    """

    job_id: str
    split: str
    offset: int
    count: int | None = None
    repair: int | None = None
    is_local: bool = False


def expected_tasks(
    plan: Plan, extents: Sequence[Extent], submissions: Sequence[Submission]
) -> list[Task]:
    """Returns the slices of the plan, then the tasks of the repairs that were submitted."""
    tasks = []
    settings = _settings(plan.cluster)
    for extent in extents:
        for slice_ in extent.split.slices:
            shards = range(slice_.shard_start, slice_.shard_stop)
            n_done = extent.shards_between(slice_.shard_start, slice_.shard_stop)
            task = Task(
                split=extent.split.name,
                index=slice_.index,
                shards=shards,
                n_done=n_done,
                **settings,
            )
            tasks.append(task)
    for number in sorted({s.repair for s in submissions if s.repair is not None}):
        with suppress(InputError):  # its record is damaged; the slices tell what is missing
            tasks += _repair_tasks(plan, extents, number)
    return tasks


def _repair_tasks(plan: Plan, extents: Sequence[Extent], number: int) -> list[Task]:
    repair = read_repair(plan, number)
    present = {index for e in extents if e.split.name == repair.split for index in e.present}
    return [
        Task(
            split=repair.split,
            index=index,
            shards=shards,
            n_done=len(present.intersection(shards)),
            repair=number,
            **_settings(repair.cluster),
        )
        for index, shards in enumerate(repair.tasks)
    ]


def _settings(cluster: Mapping[str, Any]) -> dict[str, Any]:
    n_gpus = lanes_of(cluster) if cluster.get("gpus_per_task") else 0
    return {"n_gpus": n_gpus, "log_dir": cluster["log_dir"]}


def find_arrays(
    plan: Plan,
    tasks: Sequence[Task],
    tails: Mapping[str, Tail],
    submissions: Sequence[Submission],
    job_names: Mapping[str, str],
) -> list[Array]:
    """Returns the arrays of a run, oldest first: those on record and those submitted by hand.

    Args:
        plan: the run.
        tasks: its tasks.
        tails: their event logs, which name the job that they ran in.
        submissions: the record.
        job_names: names of the jobs in the queue by id; the scripts carry the id of the run.
    """
    arrays = [
        Array(
            job_id=s.job_id,
            split=s.split,
            offset=s.offset,
            count=s.count,
            repair=s.repair,
            is_local=s.executor == "local",
        )
        for s in submissions
        if s.split is not None
    ]
    known = {array.job_id for array in arrays}
    by_hand: dict[tuple[str, str, int | None], Array] = {}
    for task in tasks:
        tail = tails.get(task.log_name)
        match = SLURM_ATTEMPT.match(tail.attempt or "") if tail else None
        if match and match[1] not in known:
            offset = task.index - int(match[2])
            array = Array(job_id=match[1], split=task.split, offset=offset, repair=task.repair)
            by_hand[match[1], task.split, task.repair] = array
    known |= {job_id for job_id, _, _ in by_hand}
    found = [*arrays, *by_hand.values()]
    if len(array_jobs(plan)) == 1:  # else their names do not tell them apart
        found += [
            Array(job_id=job_id, split=plan.splits[0].name, offset=0)
            for job_id, name in job_names.items()
            if name == plan.run_id and job_id not in known
        ]
    return sorted(found, key=lambda a: int(a.job_id) if a.job_id.isdigit() else 0)
