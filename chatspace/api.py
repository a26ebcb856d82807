"""The notebook API: `chatspace.submit(...)` gives a `Run`, `chatspace.open_run(...)` finds it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chatspace.errors import IncompleteError, InputError
from chatspace.jobs.gather import read_manifest
from chatspace.jobs.scheduler import Scheduler, SlurmScheduler
from chatspace.jobs.setup import set_up
from chatspace.jobs.status import RunStatus, run_status
from chatspace.jobs.submissions import submit_all
from chatspace.jobs.submitit_executor import submit_with_submitit
from chatspace.layout import Layout, find_workspace
from chatspace.plan.model import Plan, SplitPlan
from chatspace.plan.store import load_plan
from chatspace.spec.base import RunSpec
from chatspace.spec.loading import load_spec, spec_from_mapping

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow.dataset as ds

ExecutorName = Literal["local", "sbatch", "submitit"]
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """A planned run, whoever executes it and whether or not it is finished.

    Attributes:
        plan: everything that was resolved.
        jobs: submitit's own job objects, where submitit runs it.
    """

    plan: Plan
    jobs: Sequence[Any] = field(default=(), repr=False)

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

        Raises:
            TimeoutError: it is not complete after `timeout_min` minutes; it goes on running.
            IncompleteError: a slice failed, and nothing more is to be expected of it.
        """
        deadline = time.monotonic() + timeout_min * 60
        while not self.is_complete():
            status = self.status()
            if status.failures:
                label, error = next(iter(status.failures.items()))
                raise IncompleteError(f"Slice failed: {self.run_id} {label}: {error}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.run_id} is {status.state} after {timeout_min:g} minutes")
            time.sleep(POLL_S)
        return self

    def is_complete(self) -> bool:
        """Tells whether every split was gathered."""
        return all(read_manifest(self.plan, split) is not None for split in self.plan.splits)

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
                f"`chatspace gather {self.run_id}`."
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
    """Plans a run and starts it; returns at once.

    Args:
        spec: a YAML file, the same as nested Python values, or a `RunSpec`.
        executor: `local` runs it in the background on this machine; `sbatch` submits the rendered
            scripts; `submitit` hands each slice to submitit.
        overrides: `key=value` texts, as `--set` takes them.
        cluster: for submitit, `slurm` or `local` [what submitit finds].
        again: submit even though jobs of the run are still active.

    Raises:
        UserError: spec, data, model or workspace is not usable; nothing was started.
        UnfitEnvironmentError: the batch system is missing or refuses.
    """
    if executor not in ("local", "sbatch", "submitit"):
        raise InputError(f"Unknown executor: {executor!r}; known: local, sbatch, submitit.")
    path = Path(spec) if isinstance(spec, (str, Path)) else None
    run_spec = _loaded(spec, overrides)
    text = path.read_text(encoding="utf-8") if path else None
    done = set_up(run_spec, spec_path=path, spec_text=text)
    if executor == "sbatch":
        submit_all(done, SlurmScheduler(), again=again)
        return Run(done.plan)
    if executor == "submitit":
        jobs, _ = submit_with_submitit(done.plan, cluster=cluster)
        return Run(done.plan, jobs)
    _start_in_background(done.plan)
    return Run(done.plan)


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
        subprocess.Popen(
            [sys.executable, "-m", "chatspace", "run", str(run.folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
