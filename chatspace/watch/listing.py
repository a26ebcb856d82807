"""All runs of a workspace, with one question to SLURM for all of them."""

from __future__ import annotations

import logging
from pathlib import Path

from chatspace.errors import InputError
from chatspace.jobs.scheduler import Scheduler
from chatspace.layout import Layout
from chatspace.plan.store import load_plan
from chatspace.watch.status import RunStatus, Seen, ask, see, status_of

log = logging.getLogger(__name__)


def list_runs(workspace: Path, *, scheduler: Scheduler | None = None) -> list[RunStatus]:
    """Returns the status of every run of a workspace, the latest planned first.

    A run whose plan cannot be read is passed over; opening it by its name says why.

    Args:
        workspace: its root.
        scheduler: asked about the runs that are not complete [SLURM].
    """
    runs = [seen for folder in _folders(workspace) if (seen := _seen(folder)) is not None]
    open_runs = [seen for seen in runs if not seen.is_complete]
    slurm = ask(open_runs, scheduler) if open_runs else None
    found = [status_of(seen, None if seen.is_complete else slurm) for seen in runs]
    return sorted(found, key=lambda run: run.created_at, reverse=True)


def _folders(workspace: Path) -> list[Path]:
    return sorted(path.parent for path in Layout(workspace).runs().glob("*/plan.json"))


def _seen(folder: Path) -> Seen | None:
    try:
        return see(load_plan(folder / "plan.json"), briefly=True)
    except InputError as error:
        log.warning("run passed over folder=%s error=%s", folder, error)
        return None
