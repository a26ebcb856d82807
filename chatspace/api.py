"""The notebook API: `chatspace.submit(...)` gives a `Run`, `chatspace.open_run(...)` finds it.

`chatspace.runs()` lists all of a workspace. A `Run` is nothing but its plan: it is the same in any
process, and may be opened while another one, or SLURM, works on it.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from chatspace.errors import IncompleteError, InputError
from chatspace.jobs.completeness import is_complete
from chatspace.jobs.doctor import refuse_unfit
from chatspace.jobs.gather import read_manifest
from chatspace.jobs.listing import list_runs
from chatspace.jobs.live_status import live_status
from chatspace.jobs.logs import find_task, last_lines, newest_logs
from chatspace.jobs.resubmit import Resubmitted, cancel, resubmit
from chatspace.jobs.scheduler import Scheduler, SlurmScheduler
from chatspace.jobs.setup import GATHER_SCRIPT, set_up
from chatspace.jobs.status import FAILED_STATES, RunStatus, run_status, task_statuses
from chatspace.jobs.status_html import MAX_RUNS, runs_html, status_html
from chatspace.jobs.submissions import local_job_id, record_submission, refuse_active, submit_all
from chatspace.jobs.submitit_executor import submit_with_submitit
from chatspace.jobs.waiting import GLANCE_S, glance, wait_until_complete
from chatspace.layout import Layout, find_workspace
from chatspace.plan.model import Plan, SplitPlan
from chatspace.plan.store import load_plan
from chatspace.spec.base import RunSpec
from chatspace.spec.loading import load_spec, spec_from_mapping

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow.dataset as ds

    from chatspace.jobs.report import Report

log = logging.getLogger(__name__)

ExecutorName = Literal["local", "sbatch", "submitit"]


@dataclass(frozen=True, slots=True)
class Run:
    """A planned run, whoever executes it and whether or not it is finished.

    Attributes:
        plan: everything that was resolved.
        jobs: submitit's own job objects, where submitit runs it.
    """

    plan: Plan
    jobs: Sequence[Any] = ()

    def __repr__(self) -> str:
        return f"Run({self.run_id!r}, folder={str(self.folder)!r})"

    @property
    def run_id(self) -> str:
        """Name and hash of the run."""
        return self.plan.run_id

    @property
    def folder(self) -> Path:
        """`runs/{run_id}/` of the workspace."""
        return Layout(Path(self.plan.workspace)).run(self.plan.run_id).folder

    def status(self, *, scheduler: Scheduler | None = None) -> RunStatus:
        """Returns how far the run is; looks at the disk and asks SLURM at most twice."""
        return run_status(self.plan, scheduler=scheduler)

    def _repr_html_(self) -> str:
        """Returns how far the run is, for Jupyter; SLURM is not waited for long."""
        return status_html(glance(self.plan))

    def wait(
        self,
        timeout_min: float = 60.0,
        *,
        progress: bool = False,
        scheduler: Scheduler | None = None,
    ) -> Run:
        """Returns when every split is gathered.

        Looks at the disk and asks SLURM in pauses that grow to half a minute, to ten seconds with
        `progress`. Interrupting it interrupts nothing else.

        Args:
            timeout_min: minutes to wait at most.
            progress: show how far it is: one display in Jupyter, else one line.
            scheduler: asked for the states of jobs [SLURM].

        Raises:
            TimeoutError: it is not complete after `timeout_min` minutes; it goes on running.
            IncompleteError: nothing that was submitted is queued or running any more.
        """
        ask = partial(wait_until_complete, self.plan, timeout_min=timeout_min, scheduler=scheduler)
        if progress:
            with live_status() as live:
                ask(show=live.show)
        else:
            ask()
        return self

    def is_complete(self) -> bool:
        """Tells whether every split was gathered and all its shards are there."""
        return is_complete(self.plan)

    def resubmit(
        self,
        max_tasks: int | None = None,
        overrides: Sequence[str] = (),
        *,
        share: bool = False,
        verify: bool = False,
        scheduler: Scheduler | None = None,
    ) -> Resubmitted:
        """Submits the missing shards to SLURM, regrouped, and a gather job behind them.

        A run of this machine is resumed by submitting its spec again.

        Args:
            max_tasks: array tasks at most [about as large as the plan's].
            overrides: `key=value` texts for the sections `slurm` and `container`.
            share: also what queued and running tasks have; no shard is done twice.
            verify: read every shard first; damaged ones are done again.
            scheduler: where it goes [SLURM].

        Raises:
            UserError: an override is wrong or would be another run.
            UnfitEnvironmentError: SLURM is missing or refuses.
        """
        return resubmit(
            self.plan,
            scheduler or SlurmScheduler(),
            max_tasks=max_tasks,
            overrides=overrides,
            share=share,
            verify=verify,
        )

    def cancel(self, *, scheduler: Scheduler | None = None) -> list[str]:
        """Cancels what is queued or running of the run, and returns the ids of the jobs.

        What is done stays. Running tasks may take some seconds to end.

        Raises:
            UnfitEnvironmentError: SLURM is missing or refuses.
        """
        return cancel(self.plan, scheduler or SlurmScheduler())

    def report(self) -> Report:
        """Returns what the run took, beside its prediction, and what to ask for next time.

        Raises:
            IncompleteError: no task has ended yet.
        """
        from chatspace.jobs.report import run_report

        return run_report(self.plan)

    def logs(self, task: str | int | None = None, *, lines: int = 40) -> str:
        """Returns the last lines of job logs, each below a line that names its file.

        Args:
            task: slice, as `3` or `train/3`, or a SLURM id, `1234_7` [the tasks that failed].
            lines: how many of each log.

        Raises:
            InputError: there is no such task; the message says which there are.
        """
        statuses, element = task_statuses(self.plan), None
        if task is None:
            chosen = [status for status in statuses if status.state in FAILED_STATES]
        else:
            found, element = find_task(self.plan, statuses, str(task))
            chosen = [found]
        parts = []
        for status in chosen:
            head = f"{status.task.label}: {status.state}"
            paths = newest_logs(self.plan, status, element)
            parts += [
                "\n".join([f"==> {head}: {path} <==", *last_lines(path, lines)]) for path in paths
            ] or [f"==> {head}: no log <=="]
        return "\n".join(parts) or "no failed tasks"

    def manifest(self, split: str | None = None) -> dict[str, Any]:
        """Returns the dataset manifest of a split [the only one].

        Raises:
            IncompleteError: the split was not gathered yet.
        """
        chosen = self._split(split)
        manifest = read_manifest(self.plan, chosen)
        if manifest is None:
            raise IncompleteError(
                f"Not gathered: {self.run_id} split {chosen.name}. Wait for it, or run "
                f"`chatspace gather {self.folder}`."
            )
        return manifest

    def dataset(self, split: str | None = None) -> ds.Dataset:
        """Returns the embedded rows of a split as a pyarrow dataset, shards in input order.

        Raises:
            IncompleteError: the split was not gathered yet.
        """
        import pyarrow.dataset as ds

        root = Path(self.plan.workspace)
        paths = [str(root / shard["path"]) for shard in self.manifest(split)["shards"]]
        return ds.dataset(paths, format="parquet")

    def vectors(self, split: str | None = None) -> npt.NDArray[np.float32 | np.float16]:
        """Returns the vectors of a split, shape (rows, dim), rows in input order.

        Raises:
            IncompleteError: the split was not gathered yet.
        """
        import numpy as np
        import pyarrow.parquet as pq

        from chatspace.shards.table import embedding_matrix

        manifest = self.manifest(split)
        shape = (manifest["rows_embedded"], manifest["embedding_dim"])
        vectors = np.empty(shape, dtype=manifest["dtype"])  # (rows, dim)
        start = 0
        for shard in manifest["shards"]:
            path = Path(self.plan.workspace) / shard["path"]
            column = pq.read_table(path, columns=["embedding"], partitioning=None)["embedding"]
            vectors[start : start + len(column)] = embedding_matrix(column)
            start += len(column)
        assert start == len(vectors)
        return vectors

    def _split(self, name: str | None) -> SplitPlan:
        names = [split.name for split in self.plan.splits]
        if name is None and len(names) == 1:
            return self.plan.splits[0]
        if name not in names:
            raise InputError(
                f"Which split: split={name!r}; the run has {', '.join(names)}. Name one."
            )
        return self.plan.split(name)


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
        UnfitEnvironmentError: jobs of the run are active, SLURM refuses a script, or a check of the
            doctor failed.
    """
    if Run(plan).is_complete():
        return
    if not again:
        refuse_active(plan, SlurmScheduler())
    if executor == "sbatch":
        first_array = next(text for name, text in scripts.items() if name != GATHER_SCRIPT)
        for text in (first_array, scripts[GATHER_SCRIPT]):
            SlurmScheduler().check(text)
    if doctor and executor != "local":
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
            f"Name one of them, its folder, or another --workspace."
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

        from chatspace.jobs.status_view import render_overview

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
