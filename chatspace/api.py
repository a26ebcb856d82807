"""The notebook API: `chatspace.submit(...)` gives a `Run`, `chatspace.open_run(...)` finds it.

`chatspace.runs()` lists all of a workspace. A `Run` is nothing but its plan: it is the same in any
process, and may be opened while another one, or SLURM, works on it.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

from chatspace.checks.doctor import refuse_unfit
from chatspace.errors import InputError
from chatspace.jobs.scheduler import Scheduler, SlurmScheduler
from chatspace.jobs.setup import GATHER_SCRIPT, set_up
from chatspace.jobs.submissions import local_job_id, record_submission, refuse_active, submit_all
from chatspace.jobs.submitit_executor import submit_with_submitit
from chatspace.kinds import KINDS
from chatspace.layout import Layout, find_workspace
from chatspace.plan.model import Plan
from chatspace.plan.store import load_plan
from chatspace.run import Run
from chatspace.spec.base import RunSpec
from chatspace.spec.loading import load_spec, spec_from_mapping
from chatspace.watch.listing import list_runs
from chatspace.watch.status import RunStatus
from chatspace.watch.status_html import MAX_RUNS, runs_html
from chatspace.watch.waiting import GLANCE_S

log = logging.getLogger(__name__)

ExecutorName = Literal["local", "sbatch", "submitit"]


def submit(
    spec: str | Path | Mapping[str, Any] | RunSpec,
    *,
    executor: ExecutorName = "local",
    overrides: Sequence[str] = (),
    cluster: str | None = None,
    again: bool = False,
    doctor: bool = True,
) -> Run:
    """Plans a run and starts it; returns when it is submitted. A complete run is returned as it is.

    Args:
        spec: a YAML file, the same as nested Python values, or a `RunSpec`.
        executor: `local` runs it in the background on this machine; `sbatch` submits the rendered
            scripts; `submitit` hands each slice to submitit.
        overrides: `key=value` texts, as `--set` takes them.
        cluster: for submitit, `slurm` or `local` [what submitit finds].
        again: submit even though jobs of the run are still active.
        doctor: look first whether the machine, the container and the inputs are fit.

    Raises:
        UserError: spec, data, model or workspace is not usable; nothing was started.
        UnfitEnvironmentError: the batch system is missing or refuses, jobs are active, or a check
            of the doctor failed.
    """
    if executor not in ("local", "sbatch", "submitit"):
        raise InputError(f"Unknown executor: {executor!r}; known: local, sbatch, submitit.")
    path = Path(spec) if isinstance(spec, (str, Path)) else None
    run_spec = _loaded(spec, overrides)
    done = set_up(
        run_spec,
        spec_path=path,
        spec_text=path.read_text(encoding="utf-8") if path else None,
        overrides=overrides,
        check=partial(
            check_submittable,
            executor=executor,
            again=again,
            doctor=doctor and cluster != "local",
        ),
    )
    run = Run(done.plan)
    if run.is_complete():
        return run
    if executor == "sbatch":
        submit_all(done, SlurmScheduler(), again=again)
    elif executor == "submitit":
        jobs, _ = submit_with_submitit(done.plan, cluster=cluster)
        return Run(done.plan, jobs)
    else:
        _start_in_background(done.plan)
    return run


def check_submittable(
    plan: Plan,
    scripts: Mapping[str, str],
    *,
    executor: ExecutorName,
    again: bool,
    doctor: bool = True,
    tell: Callable[[str], None] = log.warning,
) -> None:
    """Refuses, before anything is written, what could not be submitted.

    Args:
        plan: the run.
        scripts: its batch scripts by name.
        executor: who would run it.
        again: whether active jobs are no obstacle.
        doctor: whether the doctor looks, too, where SLURM is to run it.
        tell: told each warning of the doctor.

    Raises:
        UnfitEnvironmentError: jobs of the run are active, SLURM refuses a script, a check of the
            doctor failed, or a task on this machine would lack what its kind needs.
    """
    if Run(plan).is_complete():
        return
    if not again:
        refuse_active(plan, SlurmScheduler())
    if executor == "sbatch":
        first_array = next(text for name, text in scripts.items() if name != GATHER_SCRIPT)
        for text in (first_array, scripts[GATHER_SCRIPT]):
            SlurmScheduler().check(text)
    if executor == "local":
        if (check_ready := KINDS[plan.kind].readiness()) is not None:
            check_ready(plan.model, plan.spec)
    elif doctor:
        refuse_unfit(plan, scripts, tell)


def open_run(run: str | Path, *, workspace: str | None = None) -> Run:
    """Returns a run by its id, its folder or its `plan.json`.

    Args:
        run: run id, or a path.
        workspace: where a run id is looked up [$CHATSPACE_WORKSPACE, else /workspace].

    Raises:
        InputError: there is no such run; the message lists those there are.
    """
    path = Path(run)
    if path.is_file():
        return Run(load_plan(path))
    if (path / "plan.json").is_file():
        return Run(load_plan(path / "plan.json"))
    layout = Layout(find_workspace(workspace))
    plan = layout.run(str(run)).plan
    if "/" in str(run) or not plan.is_file():
        known = sorted(p.parent.name for p in layout.runs().glob("*/plan.json"))
        raise InputError(
            f"Unknown run: {run}; {layout.runs()} has {', '.join(known[-8:]) or 'no runs'}. "
            "Name one of them, its folder, or another workspace."
        )
    return Run(load_plan(plan))


class Runs(Sequence[Run]):
    """The runs of a workspace, the latest planned first.

    Attributes:
        workspace: its root.
        statuses: how far each run was when they were listed.
    """

    def __init__(self, workspace: Path, statuses: Sequence[RunStatus]) -> None:
        self.workspace = workspace
        self.statuses = tuple(statuses)

    def __len__(self) -> int:
        return len(self.statuses)

    @overload
    def __getitem__(self, index: int) -> Run: ...

    @overload
    def __getitem__(self, index: slice) -> Runs: ...

    def __getitem__(self, index: int | slice) -> Run | Runs:
        """Returns a run by its place, opened anew."""
        if isinstance(index, slice):
            return Runs(self.workspace, self.statuses[index])
        return open_run(self.statuses[index].folder)

    def __repr__(self) -> str:
        """Returns a table of the latest runs."""
        from rich.console import Console

        from chatspace.watch.status_view import render_overview

        if not self.statuses:
            return f"no runs in {self.workspace}"
        console = Console(width=100, color_system=None, force_jupyter=False)
        with console.capture() as captured:
            console.print(render_overview(self.statuses[:MAX_RUNS]))
        more = len(self) - MAX_RUNS
        return captured.get().rstrip() + (f"\nand {more:,} older runs" if more > 0 else "")

    def _repr_html_(self) -> str:
        """Returns a table of the latest runs, for Jupyter."""
        return runs_html(self.statuses, self.workspace)


def runs(workspace: str | None = None, *, scheduler: Scheduler | None = None) -> Runs:
    """Returns the runs of a workspace; SLURM is asked once for all, and not waited for long.

    Args:
        workspace: its root [$CHATSPACE_WORKSPACE, else /workspace].
        scheduler: asked about the runs that are not complete [SLURM].

    Raises:
        InputError: there is no such folder.
    """
    root = find_workspace(workspace)
    if not root.is_dir():
        raise InputError(
            f"No workspace: {root} does not exist. Name another, or set $CHATSPACE_WORKSPACE."
        )
    return Runs(root, list_runs(root, scheduler=scheduler or SlurmScheduler(timeout_s=GLANCE_S)))


def _loaded(spec: str | Path | Mapping[str, Any] | RunSpec, overrides: Sequence[str]) -> RunSpec:
    if isinstance(spec, RunSpec):
        return spec
    if isinstance(spec, Mapping):
        return spec_from_mapping(spec, "submit()")
    return load_spec(Path(spec), overrides)


def _start_in_background(plan: Plan) -> None:
    run = Layout(Path(plan.workspace)).run(plan.run_id)
    with run.local_log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "chatspace", "run", str(run.folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    for split in plan.splits:
        record_submission(
            plan,
            job_id=local_job_id(process.pid),
            executor="local",
            split=split.name,
            offset=0,
            count=len(split.slices),
        )
