"""Commands that look at runs."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatspace.commands.arguments import RunArgument, WorkspaceOption
from chatspace.commands.output import print_rich, say
from chatspace.errors import InputError

if TYPE_CHECKING:
    from chatspace.plan.model import Plan
    from chatspace.watch.status import RunStatus
    from chatspace.watch.task_states import TaskStatus

FAILED_LINES = 40
SETTLE_S = 2.0

OptionalRunArgument = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="Run id, its folder, or its plan.json [all runs]."),
]


def status(
    run: OptionalRunArgument = None,
    workspace: WorkspaceOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until nothing is active.")] = False,
    every: Annotated[
        float,
        typer.Option("--every", min=1, metavar="SECONDS", help="Between two looks of --watch."),
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show how far a run is, or all runs of the workspace."""
    look, render, as_value = _one(run, workspace) if run else _all(workspace)
    if as_json and watch:
        raise InputError(
            "One or the other: --watch --json; --json prints one document. Call it again instead."
        )
    if as_json:
        say(json.dumps(as_value(look()), indent=1))
    elif watch:
        _watch(look, render, every)
    else:
        print_rich(render(look()))


def logs(
    run: RunArgument,
    task: Annotated[
        str | None,
        typer.Argument(metavar="TASK", help="Slice, as 3 or train/3; or a SLURM id, 1234_7."),
    ] = None,
    workspace: WorkspaceOption = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only tasks that failed.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the task ends.")
    ] = False,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", min=1, help="Last of each log [all; failed: 40].")
    ] = None,
) -> None:
    """Show the job logs of tasks, or where they lie."""
    from chatspace.api import open_run
    from chatspace.watch.logs import find_task
    from chatspace.watch.status import FAILED_STATES, task_statuses

    plan = open_run(run, workspace=workspace).plan
    statuses = task_statuses(plan)
    element = None
    if task is not None:
        found, element = find_task(plan, statuses, task)
        statuses = [found]
    if failed:
        statuses = [found for found in statuses if found.state in FAILED_STATES]
        if not statuses:
            say("no failed tasks")
            return
    if follow:
        _follow(plan, statuses, element, lines or FAILED_LINES)
    elif failed or task is not None:
        for found in statuses:
            _show_log(plan, found, element, lines or (FAILED_LINES if failed else None))
    else:
        _list_logs(plan, statuses)


Look = Callable[[], "list[RunStatus]"]


def _one(run: str, workspace: str | None) -> tuple[Look, Callable[..., Any], Callable[..., Any]]:
    from chatspace.api import open_run
    from chatspace.watch.status_view import render_status

    found = open_run(run, workspace=workspace)
    return (
        lambda: [found.status()],
        lambda runs: render_status(runs[0]),
        lambda runs: runs[0].to_json(),
    )


def _all(workspace: str | None) -> tuple[Look, Callable[..., Any], Callable[..., Any]]:
    from rich.text import Text

    from chatspace.layout import find_workspace
    from chatspace.watch.listing import list_runs
    from chatspace.watch.status_view import render_overview

    root = find_workspace(workspace)
    if not root.is_dir():
        raise InputError(
            f"No workspace: {root} does not exist. Name another with --workspace or "
            f"$CHATSPACE_WORKSPACE."
        )
    empty = Text(f"no runs in {root}; `chatspace submit SPEC` makes one", overflow="fold")
    return (
        lambda: list_runs(root),
        lambda runs: render_overview(runs) if runs else empty,
        lambda runs: {"workspace": str(root), "runs": [run.to_json() for run in runs]},
    )


def _watch(look: Look, render: Callable[..., Any], every_s: float) -> None:
    """Shows what is seen again and again; ends when nothing is active, or with Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    try:
        if not console.is_terminal:
            for runs in _looks(look, every_s):
                console.print(render(runs))
                console.print()
            return
        with Live(console=console, auto_refresh=False) as live:
            for runs in _looks(look, every_s):
                live.update(render(runs), refresh=True)
    except KeyboardInterrupt:
        return


def _looks(look: Look, every_s: float) -> Any:
    """Yields what is seen until nothing is active, twice in a row: SLURM's word may lag."""
    n_idle = 0
    while n_idle < 2:
        runs = look()
        yield runs
        n_idle = 0 if any(_may_go_on(run) for run in runs) else n_idle + 1
        if all(run.state == "complete" for run in runs):
            return
        if n_idle < 2:
            time.sleep(every_s if n_idle == 0 else min(SETTLE_S, every_s))


def _may_go_on(run: RunStatus) -> bool:
    return run.state != "complete" and (run.is_active or run.slurm == "silent")


def _list_logs(plan: Plan, statuses: Sequence[TaskStatus]) -> None:
    from chatspace.watch.logs import last_lines, newest_log
    from chatspace.watch.status_view import shown_path

    width = max((len(found.task.label) for found in statuses), default=0)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for found in statuses:
        path = newest_log(plan, found)
        place = shown_path(path) if path else "no log"
        say(f"{found.task.label:<{width}}  {found.state:<11}  {place}")
        for line in last_lines(path, 1) if path else ():
            say(f"    {line.strip()}"[:columns])


def _show_log(plan: Plan, found: TaskStatus, element: str | None, lines: int | None) -> None:
    from chatspace.watch.logs import log_lines
    from chatspace.watch.status_view import shown_path

    for line in log_lines(plan, found, element, lines=lines, shown=shown_path):
        say(line)


def _follow(plan: Plan, statuses: Sequence[TaskStatus], element: str | None, lines: int) -> None:
    from chatspace.watch.logs import follow, newest_log
    from chatspace.watch.status import task_statuses
    from chatspace.watch.task_states import ACTIVE_TASKS

    if len(statuses) > 1:
        running = [f.task.label.replace(" ", "/") for f in statuses if f.state == "running"]
        raise InputError(
            f"Which task? --follow shows one; running: {', '.join(running[:8]) or 'none'}. "
            f"Name it after the run."
        )
    (found,) = statuses
    path = newest_log(plan, found)
    if path is None:
        raise InputError(
            f"No log yet: {found.task.label} is {found.state}. Try again when it runs."
        )
    size = path.stat().st_size
    _show_log(plan, found, element, lines)

    def is_active() -> bool:
        now = next(s for s in task_statuses(plan) if s.task.label == found.task.label)
        return now.state in ACTIVE_TASKS

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        follow(path, is_active, write, from_byte=size)
    except KeyboardInterrupt:
        return
