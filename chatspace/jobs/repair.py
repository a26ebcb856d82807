"""Repair: the shards that are missing, regrouped into arrays of their own.

    runs/{run_id}/repairs/001/repair.json     which shards each array task does
    runs/{run_id}/repairs/001/embed.slurm     its script

A repair changes neither the plan nor what is done: its tasks look at the same shard files and share
the work through the same claims as all others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from chatspace.atomic import atomic_write_text, output_error
from chatspace.errors import InputError, SpecError
from chatspace.jobs.render import DEFAULT_MAX_ARRAY_SIZE, ArrayJob, render_array, repair_name
from chatspace.jobs.task import Part, run_part
from chatspace.kinds import KINDS
from chatspace.layout import Layout
from chatspace.plan.model import Plan, SplitPlan
from chatspace.plan.slicing import make_slices, split_weights
from chatspace.plan.store import load_plan, moved
from chatspace.shards.store import utc_now


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One array of missing shards of one split.

    Attributes:
        number: 1 for the first of the run; 0 as long as it is not written.
        tasks: indexes of the shards of each array task.
        exclude: nodes that it does not run on.
        workspace: where the run was when the repair was written.
        cluster: SLURM and container settings, where they differ from the plan's.
    """

    schema_version: int = 1
    number: int = 0
    plan_sha256: str
    split: str
    created_at: str = field(default_factory=utc_now)
    tasks: tuple[tuple[int, ...], ...]
    exclude: tuple[str, ...] = ()
    workspace: str
    cluster: dict[str, Any]


_ADAPTER: TypeAdapter[Repair] = TypeAdapter(Repair)


def divide(
    plan: Plan, missing: Mapping[str, Sequence[int]], max_tasks: int | None
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Groups missing shards into array tasks with about the same bytes of text each.

    Args:
        plan: the run.
        missing: indexes of the shards of each split, ascending; no split without one.
        max_tasks: array tasks at most, all splits together [as large as the plan's slices].

    Returns:
        The shards of each task, by split.

    Raises:
        SpecError: fewer tasks than splits, or more than one array can hold.
    """
    weights = {
        name: split_weights(plan.split(name))[list(shards)] for name, shards in missing.items()
    }
    limit = plan.cluster.get("max_array_size") or DEFAULT_MAX_ARRAY_SIZE
    if max_tasks is not None and max_tasks < len(missing):
        raise SpecError(
            f"Too few tasks: --max-tasks {max_tasks}; shards of {len(missing)} splits are missing, "
            f"and a task does shards of one. Allow at least {len(missing)}."
        )
    wanted = {name: _default_count(plan.split(name), w) for name, w in weights.items()}
    if max_tasks is not None:
        total = sum(int(w.sum()) for w in weights.values())
        spare = max_tasks - len(missing)
        wanted = {n: 1 + int(spare * int(w.sum()) / max(1, total)) for n, w in weights.items()}
    return {
        name: tuple(
            tuple(missing[name][part.shard_start : part.shard_stop])
            for part in make_slices(w, min(wanted[name], len(w), limit))
        )
        for name, w in weights.items()
    }


def render_repair(plan: Plan, repair: Repair) -> tuple[ArrayJob, str]:
    """Returns the array of a repair, and its script."""
    split = plan.split(repair.split)
    job = ArrayJob(
        split=repair.split,
        rows=sum(split.span(shard).n_rows for shards in repair.tasks for shard in shards),
        count=len(repair.tasks),
        script=f"{KINDS[plan.kind].script}.slurm",
        repair=repair.number,
        exclude=repair.exclude,
    )
    return job, render_array(replace(plan, cluster=repair.cluster), job)


def write_repair(plan: Plan, repair: Repair) -> tuple[ArrayJob, Path]:
    """Writes a repair and its script under the next number, and returns what is to be submitted.

    Raises:
        OutputError: the run's folder cannot be written.
    """
    number, folder = _new_folder(plan)
    repair = replace(repair, number=number)
    job, script = render_repair(plan, repair)
    atomic_write_text(folder / "repair.json", json.dumps(asdict(repair), indent=1) + "\n")
    atomic_write_text(folder / job.script, script)
    return job, folder / job.script


def read_repair(plan: Plan, number: int) -> Repair:
    """Reads a repair of a run.

    Raises:
        InputError: there is none with this number, or it belongs to another plan.
    """
    path = _folder(plan, number) / "repair.json"
    try:
        repair = _ADAPTER.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"Repair cannot be read: {path}; {reason}. Run `chatspace resubmit {plan.run_id}`."
        ) from None
    if repair.plan_sha256 != plan.plan_sha256:
        raise InputError(f"Repair of another plan: {path}. Run `chatspace resubmit` again.")
    cluster = moved(repair.cluster, repair.workspace, plan.workspace)
    return replace(repair, cluster=cluster, workspace=plan.workspace)


def run_repair_task(plan_path: Path, number: int, index: int, *, lanes: int = 1) -> None:
    """Does one array task of a repair.

    Raises:
        InputError: no such repair or task.
        InterruptedRun: a signal stopped the task; running it again resumes it.
    """
    plan = load_plan(plan_path)
    repair = read_repair(plan, number)
    if not 0 <= index < len(repair.tasks):
        raise InputError(
            f"Unknown task: --index {index}; repair {number} has 0 to {len(repair.tasks) - 1}."
        )
    split = plan.split(repair.split)
    name = f"repair{repair_name(number)}-{index:05d}"
    part = Part(
        split=split,
        spans=tuple(split.span(shard) for shard in repair.tasks[index]),
        title=f"repair {number} task {index}",
        event_log=name,
        manifest=name,
    )
    run_part(replace(plan, cluster=repair.cluster), part, lanes)


def _new_folder(plan: Plan) -> tuple[int, Path]:
    """Returns the next number and its folder, which this call has made: two repairs never share."""
    repairs = Layout(Path(plan.workspace)).run(plan.run_id).repairs
    try:
        repairs.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.name) for p in repairs.iterdir() if p.name.isdigit()), default=0)
        while True:
            try:
                _folder(plan, number).mkdir()
            except FileExistsError:
                number += 1
            else:
                return number, _folder(plan, number)
    except OSError as error:
        raise output_error(error, repairs) from error


def _folder(plan: Plan, number: int) -> Path:
    return Layout(Path(plan.workspace)).run(plan.run_id).repairs / repair_name(number)


def _default_count(split: SplitPlan, weights: np.ndarray) -> int:
    """Returns how many tasks give each about as much as a slice of the plan has."""
    per_slice = max(1, split.text_bytes) / len(split.slices)
    return max(1, round(int(weights.sum()) / per_slice))
