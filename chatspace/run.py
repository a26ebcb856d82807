"""A run as a notebook has it: it is nothing but its plan, and the same in any process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatspace.checks.doctor import refuse_unfit
from chatspace.errors import IncompleteError, InputError
from chatspace.jobs.gather import complaint, read_manifest, split_coverage
from chatspace.jobs.scheduler import Scheduler, SlurmScheduler
from chatspace.layout import Layout
from chatspace.mend.cancel import (
    cancel,
    cancel_batches,
    left_batches,
    refuse_without_batches,
)
from chatspace.mend.resubmit import Resubmitted, resubmit
from chatspace.plan.model import Plan, SplitPlan
from chatspace.shards.store import unreadable_shard
from chatspace.watch.completeness import is_complete
from chatspace.watch.live_status import live_status
from chatspace.watch.logs import find_task, log_lines
from chatspace.watch.status import FAILED_STATES, RunStatus, run_status, task_statuses
from chatspace.watch.status_html import status_html
from chatspace.watch.waiting import glance, wait_until_complete

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.dataset as ds

    from chatspace.measure.report import Report


log = logging.getLogger(__name__)


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
        doctor: bool = True,
        scheduler: Scheduler | None = None,
    ) -> Resubmitted:
        """Submits the missing shards to SLURM, regrouped, and a gather job behind them.

        A run of this machine is resumed by submitting its spec again.

        Args:
            max_tasks: array tasks at most [about as large as the plan's].
            overrides: `key=value` texts for the sections `slurm` and `container`.
            share: also what queued and running tasks have; no shard is done twice.
            verify: read every shard first; damaged ones are done again.
            doctor: look first whether the machine, the container and the inputs are fit.
            scheduler: where it goes [SLURM].

        Raises:
            UserError: an override is wrong or would be another run.
            UnfitEnvironmentError: SLURM is missing or refuses, or a check of the doctor failed.
        """
        return resubmit(
            self.plan,
            scheduler or SlurmScheduler(),
            max_tasks=max_tasks,
            overrides=overrides,
            share=share,
            verify=verify,
            check=partial(refuse_unfit, tell=log.warning) if doctor else None,
        )

    def cancel(self, *, batches: bool = False, scheduler: Scheduler | None = None) -> list[str]:
        """Cancels what is queued or running of the run, and returns the ids of the jobs.

        What is done stays. Running tasks may take some seconds to end. Batches that are left with
        an endpoint go on there and are charged; a warning of the log names them.

        Args:
            batches: cancel these at the endpoint, too; what is submitted later fetches what they
                have done.
            scheduler: where the jobs are [SLURM].

        Raises:
            InputError: `batches` of a kind that leaves none with anybody.
            UnfitEnvironmentError: SLURM, or the endpoint, is missing or refuses.
        """
        if batches:
            refuse_without_batches(self.plan)
        cancelled = cancel(self.plan, scheduler or SlurmScheduler())
        if batches:
            for batch in cancel_batches(self.plan):
                log.info("%s", batch)
        elif left := left_batches(self.plan):
            log.warning(
                "%s: left with the endpoint, to go on there and be charged: %s. "
                "run.cancel(batches=True) cancels them there.",
                self.run_id,
                "; ".join(left),
            )
        return cancelled

    def report(self) -> Report:
        """Returns what the run took, beside its prediction, and what to ask for next time.

        Raises:
            IncompleteError: no task has ended yet.
        """
        from chatspace.measure.report import run_report

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
        parts = [
            line for status in chosen for line in log_lines(self.plan, status, element, lines=lines)
        ]
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
        """Returns the vectors of a split, shape (rows, dim), rows or their chunks in input order.

        Those stored as int8 or as bits are read back as float32; `dataset()` has what is stored.

        Raises:
            IncompleteError: the split was not gathered yet, or a shard is missing or damaged.
        """
        import numpy as np

        from chatspace.shards.table import float_vectors
        from chatspace.shards.vectors import Encoding

        manifest = self.manifest(split)
        encoding = Encoding(dtype=manifest["dtype"], dim=manifest["embedding_dim"])
        dtype = "float32" if encoding.is_quantised else encoding.dtype
        n_chunks = manifest.get("chunks")  # older manifests have none
        n_rows = manifest["rows_embedded"] if n_chunks is None else n_chunks
        vectors = np.empty((n_rows, encoding.dim), dtype)  # (n_rows, dim)
        start = 0
        for shard in manifest["shards"]:
            path = Path(self.plan.workspace) / shard["path"]
            try:
                table = _vectors_table(path, encoding.columns)
            except FileNotFoundError as error:
                raise self._missing_shard(path, split, error) from error
            vectors[start : start + len(table)] = float_vectors(table)
            start += len(table)
        assert start == len(vectors)
        return vectors

    def _missing_shard(self, path: Path, split: str | None, error: OSError) -> IncompleteError:
        """Returns what to raise of a shard that was there when the split was gathered."""
        chosen = self._split(split)
        coverage = split_coverage(self.plan, chosen, verify=False)
        if coverage.complete:  # another process is doing it again
            return unreadable_shard(path, error)
        how = complaint(self.plan, chosen, coverage)
        return IncompleteError(f"Missing shard: {path}; No such file. {how}")

    def _split(self, name: str | None) -> SplitPlan:
        names = [split.name for split in self.plan.splits]
        if name is None and len(names) == 1:
            return self.plan.splits[0]
        if name not in names:
            raise InputError(
                f"Which split: split={name!r}; the run has {', '.join(names)}. Name one."
            )
        return self.plan.split(name)


def _vectors_table(path: Path, columns: Sequence[str]) -> pa.Table:
    """Returns some columns of a shard.

    Raises:
        FileNotFoundError: there is none.
        IncompleteError: it cannot be read.
        OutputError: it may not be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(
            path, columns=list(columns), partitioning=None, page_checksum_verification=True
        )
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise unreadable_shard(path, error) from error
