"""Status of a run and of all runs, as people read it: at 80 columns, with and without colour."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from chatspace.watch.status import FailureGroup, RunStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

LONGEST_ID = 40
LARGE_ROWS = 10_000_000
# Words of the overview for the states that are sentences.
_SHORT_STATES = {
    "all shards written, not gathered": "not gathered",
    "gathered once, but shards are gone": "shards gone",
    "incomplete, with failed slices": "failed",
}
_GATHER = {
    "running": "running",
    "waiting": "waits for the tasks",
    "failed": "its job failed; `chatspace gather RUN` says why",
    "cancelled": "its job was cancelled",
}
_COLOURS = {"complete": "green", "running": "cyan", "pending": "cyan", "failed": "red"}


def _short(state: str) -> str:
    return "displaced" if state.startswith("its folder") else _SHORT_STATES.get(state, state)


def render_status(status: RunStatus) -> RenderableType:
    """Returns the status of a run for a rich console."""
    from rich.console import Group
    from rich.text import Text

    short = _short(status.state)
    headline = Text.assemble(
        (status.run_id, "bold"), ": ", (status.state, _COLOURS.get(short, "")), overflow="fold"
    )
    parts: list[RenderableType] = [headline, Text(), _splits(status), Text(), _facts(status)]
    for group in status.failure_groups:
        parts += [Text(), *_failure(group)]
    manifests = [split.manifest for split in status.splits if split.manifest]
    if manifests:
        parts.append(Text())
        parts += [Text(f"manifest  {shown_path(path)}", overflow="fold") for path in manifests]
    return Group(*parts)


def render_overview(runs: Sequence[RunStatus], *, now_s: float | None = None) -> RenderableType:
    """Returns one line for each run for a rich console."""
    from rich.table import Table
    from rich.text import Text

    now_s = time.time() if now_s is None else now_s
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    width = min(max(len(run.run_id) for run in runs), LONGEST_ID)
    table.add_column("run", overflow="fold", min_width=width)
    table.add_column("state", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("tasks R/P/F", justify="right", no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("kind/model", no_wrap=True, overflow="ellipsis")
    for run in runs:
        short = _short(run.state)
        table.add_row(
            Text(run.run_id),
            Text(short, _COLOURS.get(short, "")),
            f"{_rounded(run.rows_done)}/{_rounded(run.rows)}",
            _at_work(run),
            _age(run.created_at, now_s),
            Text(f"{run.kind}/{Path(run.model).name}"),
        )
    return table


def shown_path(path: str | Path) -> str:
    """Returns a path as it is shortest: relative to the current folder where it lies below it."""
    here = Path.cwd()
    return os.path.relpath(path, here) if Path(path).is_relative_to(here) else str(path)


def _splits(status: RunStatus) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("split", overflow="fold")
    for heading in ("shards", "rows", "done", "slices", "gathered"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = _rounded if status.rows >= LARGE_ROWS else "{:,}".format
    for split in status.splits:
        table.add_row(
            split.split,
            f"{split.shards_done:,}/{split.shards:,}",
            f"{shown(split.rows_done)}/{shown(split.rows)}",
            _share(split.rows_done, split.rows),
            f"{split.slices_done:,}/{split.slices:,}",
            "yes" if split.manifest else "no",
        )
    return table


def _facts(status: RunStatus) -> RenderableType:
    """Returns the lines that have something to say."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    tasks = ", ".join(f"{n:,} {state}" for state, n in status.tasks.items())
    n_requeues = status.n_requeues or 0
    again = f"; requeued {n_requeues:,} times" if n_requeues > 1 else ""
    again = "; requeued once" if n_requeues == 1 else again
    table.add_row("tasks", tasks + again)
    if status.stages.keys() - {"embedding"}:
        table.add_row("stage", ", ".join(f"{n:,} {name}" for name, n in status.stages.items()))
    if status.rows_per_s is not None and status.tokens_per_s is not None:
        rows = (
            f"{status.rows_per_s:,.0f}" if status.rows_per_s >= 10 else f"{status.rows_per_s:.1f}"
        )
        rate = f"{rows} rows/s, {status.tokens_per_s:,.0f} tokens/s"
        table.add_row("rate", rate)
    if status.eta_s is not None:
        table.add_row("ETA", _time_left(status.eta_s))
    if status.gpus_in_use:
        table.add_row("GPUs", f"{status.gpus_in_use:,} in use")
    is_whole = status.rows_done == status.rows
    if status.jobs and status.gather == "failed" and not is_whole:
        table.add_row("gather", "its job failed, because shards are missing")
    elif status.jobs and status.gather in _GATHER:
        table.add_row("gather", _GATHER[status.gather])
    if status.slurm == "silent" and status.is_active:
        table.add_row("SLURM", "does not answer; this is what the event logs say")
    return table


def _failure(group: FailureGroup) -> Iterable[RenderableType]:
    from rich.text import Text

    colour = "yellow" if group.cause == "cancelled" else "red"
    tasks = f"{group.count:,} tasks, such as {group.task}" if group.count > 1 else group.task
    yield Text(f"{group.cause}: {tasks}", colour, overflow="fold")
    yield _hanging("  error  ", group.error)
    if group.log is not None:
        yield _hanging("  log    ", shown_path(group.log))
    yield _hanging("  next   ", group.next_step)


def _hanging(start: str, text: str) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=0)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text(start, "dim"), Text(text))
    return table


def _share(done: int, total: int) -> str:
    """Returns a percentage that says 100 only of all, and 0 only of nothing."""
    if done in (0, total):
        return f"{100 * done // max(1, total)}%"
    return f"{min(max(100 * done / total, 0.1), 99.9):.1f}%"


def _rounded(rows: int) -> str:
    """Returns a number in six places; rounded down, so that all is never said of almost all."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if rows >= max(size, 100_000):
            return f"{rows * 10 // size / 10:.1f}{unit}"
    return f"{rows:,}"


def _at_work(run: RunStatus) -> str:
    """Returns the tasks that are running, that wait for it, and that failed."""
    n_waiting = run.tasks.get("pending", 0) + run.tasks.get("requeued", 0)
    counts = (run.tasks.get("running", 0), n_waiting, len(run.failures))
    return "/".join(f"{n:,}" for n in counts) if any(counts) else "-"


def _time_left(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _age(created_at: str, now_s: float) -> str:
    try:
        seconds = max(0, int(now_s - datetime.fromisoformat(created_at).timestamp()))
    except ValueError:
        return "-"
    for unit, length_s in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds // length_s}{unit}"
    return f"{seconds}s"
