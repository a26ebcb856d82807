"""Status of a run and of all runs as HTML for notebooks.

No script and no style sheet: notebooks drop them from what they do not trust. Text takes the
colours of the theme, so that it can be read on light and on dark.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from chatspace.jobs.progress import format_duration
from chatspace.watch.status import FailureGroup, RunStatus, SplitStatus
from chatspace.wording import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

MAX_SPLITS = 12
MAX_RUNS = 30
LONGEST_ERROR = 300
# Of a middling lightness: seen on white and on black; nothing is told by colour alone.
_GREEN, _BLUE, _RED, _GREY = "#2e9e5b", "#3d84e6", "#d9483b", "#8a8a8a"
_TRACK = "rgba(128,128,128,.3)"
_CELL = "text-align:left;vertical-align:top;white-space:nowrap;padding:1px 1em 1px 0"
_FAINT = "opacity:.75"


def status_html(status: RunStatus) -> str:
    """Returns the status of a run: its splits, its tasks by state, its speed and its failures."""
    colour = _colour(status)
    parts = [
        f"<div>{_dot(colour)} <b>{escape(status.run_id)}</b>: {escape(status.state)}</div>",
        _table([_split_cells(split, colour) for split in status.splits[:MAX_SPLITS]]),
    ]
    if len(status.splits) > MAX_SPLITS:
        parts.append(_faint(f"and {len(status.splits) - MAX_SPLITS} more splits"))
    if status.tasks:
        counts = [f"<b>{count:,}</b>" for count in status.tasks.values()]
        parts.append(_table([["tasks", *counts]], ["", *map(escape, status.tasks)]))
    if facts := " · ".join(_facts(status)):
        parts.append(f"<div>{facts}</div>")
    if status.slurm == "silent" and status.state != "complete":
        parts.append(_faint("SLURM does not answer; this is what the disk says"))
    if status.failure_groups:
        head = ["cause", "tasks", "error", "next step"]
        parts.append(_table(map(_failure_cells, status.failure_groups), head))
    parts.append(_faint(escape(status.folder)))
    return f'<div style="line-height:1.5">{"".join(parts)}</div>'


def runs_html(runs: Sequence[RunStatus], workspace: Path) -> str:
    """Returns a table of runs in their order, one line each."""
    if not runs:
        return f"<div>no runs in {escape(str(workspace))}</div>"
    head = ["", "run", "state", "", "rows", "tasks", "planned", "model"]
    table = _table(
        ([str(place), *_run_cells(run)] for place, run in enumerate(runs[:MAX_RUNS])), head
    )
    more = len(runs) - MAX_RUNS
    older = _faint(f"and {counted(more, 'older run')}") if more > 0 else ""
    return f"<div>{table}{older}</div>"


def status_line(status: RunStatus) -> str:
    """Returns the status of a run in one line of plain text."""
    rows = f"{status.rows_done:,} of {counted(status.rows, 'row')}"
    parts = [f"{status.run_id}: {status.state}", rows, *_rate(status)]
    if status.failures:
        parts.append(f"{counted(len(status.failures), 'task')} failed")
    if status.slurm == "silent" and status.state != "complete":
        parts.append("SLURM does not answer")
    return " · ".join(parts)


def rich_html(renderable: RenderableType, *, width: int = 100) -> str:
    """Returns something of rich as HTML, in columns as on a terminal of `width` characters."""
    from rich.console import Console

    console = Console(width=width, record=True, file=StringIO(), force_jupyter=False)
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def _split_cells(split: SplitStatus, colour: str) -> list[str]:
    return [
        escape(split.split),
        _bar(split.rows_done, split.rows, colour),
        f"{split.rows_done:,} of {counted(split.rows, 'row')}",
        f"{split.shards_done:,} of {counted(split.shards, 'shard')}",
        "gathered" if split.manifest else f'<span style="{_FAINT}">not gathered</span>',
    ]


def _run_cells(run: RunStatus) -> list[str]:
    tasks = ", ".join(f"{count:,} {state}" for state, count in run.tasks.items())
    return [
        f"<b>{escape(run.run_id)}</b>",
        f"{_dot(_colour(run))} {escape(run.state)}",
        _bar(run.rows_done, run.rows, _colour(run), width_em=6),
        f"{run.rows_done:,} of {run.rows:,}",
        _wrapped(escape(tasks)),
        escape(run.created_at[:16].replace("T", " ")),
        escape(Path(run.model).name),
    ]


def _failure_cells(group: FailureGroup) -> list[str]:
    error = group.error
    if len(error) > LONGEST_ERROR:
        error = f"{error[:LONGEST_ERROR]}…"
    log = f'<br><code style="font-size:90%">{escape(group.log)}</code>' if group.log else ""
    such_as = "" if group.count == 1 else f"{group.count:,}, such as "
    colour = _GREY if group.cause == "cancelled" else _RED
    return [
        f"{_dot(colour)} <b>{escape(group.cause)}</b>",
        escape(f"{such_as}{group.task}"),
        _wrapped(f"{escape(error)}{log}"),
        _wrapped(escape(group.next_step)),
    ]


def _facts(status: RunStatus) -> Iterator[str]:
    yield from map(escape, _rate(status))
    if status.gpus_in_use:
        yield f"{counted(status.gpus_in_use, 'GPU')} in use"
    if status.n_requeues:
        yield f"requeued {status.n_requeues:,}×"
    if status.gather in ("running", "waiting", "failed", "cancelled"):
        yield f"gather job {status.gather}"
    if status.state != "complete":
        yield f"seen at {time.strftime('%H:%M:%S')}"


def _rate(status: RunStatus) -> Iterator[str]:
    if status.rows_per_s is not None:
        yield f"{status.rows_per_s:,.1f} rows/s"
    if status.eta_s is not None:
        yield f"ETA {format_duration(status.eta_s)}"


def _colour(status: RunStatus) -> str:
    if status.state == "complete":
        return _GREEN
    if status.failures:
        return _RED
    return _BLUE if status.is_active else _GREY


def _bar(done: int, total: int, colour: str, *, width_em: int = 14) -> str:
    """Returns a bar that is full only of all rows."""
    share = 1000 * done // max(1, total) / 10
    inner = f'<div style="background:{colour};width:{share}%;height:100%;border-radius:3px"></div>'
    return (
        f'<div role="progressbar" aria-valuenow="{share}" title="{share}%" style="display:'
        f"inline-block;background:{_TRACK};width:{width_em}em;height:.8em;border-radius:3px"
        f'">{inner}</div>'
    )


def _table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Returns a table of cells that are HTML already, below plain headings."""
    headings = "".join(f'<th style="{_CELL};font-weight:normal;{_FAINT}">{h}</th>' for h in head)
    lines = [f"<tr>{headings}</tr>"] if head else []
    for row in rows:
        cells = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    style = "border-collapse:collapse;color:inherit;margin:.4em 0"
    return f'<table style="{style}">{"".join(lines)}</table>'


def _wrapped(content: str) -> str:
    """Returns what may take several lines in a cell."""
    return f'<span style="white-space:normal;overflow-wrap:anywhere">{content}</span>'


def _dot(colour: str) -> str:
    return f'<span style="color:{colour}">●</span>'


def _faint(content: str) -> str:
    return f'<div style="{_FAINT};font-size:90%">{content}</div>'
