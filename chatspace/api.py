"""The notebook API: `chatspace.submit(...)` gives a `Run`, `chatspace.open_run(...)` finds it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chatspace.errors import IncompleteError, InputError
from chatspace.jobs.gather import read_manifest
from chatspace.jobs.scheduler import Scheduler, SlurmScheduler
from chatspace.jobs.setup import GATHER_SCRIPT, set_up
from chatspace.jobs.status import RunStatus, run_status
from chatspace.jobs.submissions import (
    active_jobs,
    local_job_id,
    read_submissions,
    record_submission,
    refuse_active,
    submit_all,
)
from chatspace.jobs.submitit_executor import submit_with_submitit
from chatspace.layout import Layout, find_workspace
from chatspace.plan.model import Plan, SplitPlan
from chatspace.plan.store import load_plan
from chatspace.shards.gather import count_shards
from chatspace.spec.base import RunSpec
from chatspace.spec.loading import load_spec, spec_from_mapping

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow.dataset as ds

ExecutorName = Literal["local", "sbatch", "submitit"]
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
SETTLE_S = 2.0


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

    def wait(self, timeout_min: float = 60.0) -> Run:
        """Returns when every split is gathered.

        Looks at the disk and asks SLURM in pauses that grow to half a minute.

        Raises:
            TimeoutError: it is not complete after `timeout_min` minutes; it goes on running.
            IncompleteError: nothing that was submitted is queued or running any more.
        """
        deadline = time.monotonic() + timeout_min * 60
        pause_s, next_look = FIRST_PAUSE_S, time.monotonic() + FIRST_PAUSE_S
        while not self.is_complete():
            if time.monotonic() > deadline:
                state = self.status().state
                raise TimeoutError(f"{self.run_id} is {state} after {timeout_min:g} minutes")
            if time.monotonic() > next_look:
                self._check_still_active()
                next_look = time.monotonic() + min(2 * pause_s, LONGEST_PAUSE_S)
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
        return self

    def is_complete(self) -> bool:
        """Tells whether every split was gathered and all its shards are there."""
        root = Path(self.plan.workspace)
        return all(
            read_manifest(self.plan, split) is not None
            and count_shards(root / split.output_dir, split.n_shards) == split.n_shards
            for split in self.plan.splits
        )

    def _check_still_active(self) -> None:
        """Raises if the run was submitted and nothing of it is left to wait for."""
        if not read_submissions(self.plan) or active_jobs(self.plan, SlurmScheduler()):
            return
        time.sleep(SETTLE_S)  # the last task's files may take a moment to be seen
        if self.is_complete():
            return
        status = self.status()
        why = "; ".join(f"{label}: {error}" for label, error in list(status.failures.items())[:1])
        states = ", ".join(f"{n} {state}" for state, n in sorted(status.jobs.items()))
        raise IncompleteError(
            f"Nothing is running any more: {self.run_id} is {status.state}"
            f"{f' ({states})' if states else ''}{f'; {why}' if why else ''}. See the logs in "
            f"{self.plan.cluster['log_dir']} and {self.folder}, then submit it again."
        )

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
) -> Run:
    """Plans a run and starts it; returns at once. A complete run is returned as it is.

    Args:
        spec: a YAML file, the same as nested Python values, or a `RunSpec`.
        executor: `local` runs it in the background on this machine; `sbatch` submits the rendered
            scripts; `submitit` hands each slice to submitit.
        overrides: `key=value` texts, as `--set` takes them.
        cluster: for submitit, `slurm` or `local` [what submitit finds].
        again: submit even though jobs of the run are still active.

    Raises:
        UserError: spec, data, model or workspace is not usable; nothing was started.
        UnfitEnvironmentError: the batch system is missing or refuses, or jobs are active.
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
        check=partial(check_submittable, executor=executor, again=again),
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
    plan: Plan, scripts: Mapping[str, str], *, executor: ExecutorName, again: bool
) -> None:
    """Refuses, before anything is written, what could not be submitted.

    Args:
        plan: the run.
        scripts: its batch scripts by name.
        executor: who would run it.
        again: whether active jobs are no obstacle.

    Raises:
        UnfitEnvironmentError: jobs of the run are active, or SLURM refuses a script.
    """
    if Run(plan).is_complete():
        return
    if not again:
        refuse_active(plan, SlurmScheduler())
    if executor == "sbatch":
        first_array = next(text for name, text in scripts.items() if name != GATHER_SCRIPT)
        for text in (first_array, scripts[GATHER_SCRIPT]):
            SlurmScheduler().check(text)


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
