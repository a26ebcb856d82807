"""Commands that look at runs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from chatspace.commands.arguments import RunArgument, WorkspaceOption
from chatspace.commands.output import print_rich, say


def status(
    run: RunArgument,
    workspace: WorkspaceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show how far a run is."""
    from chatspace.api import open_run
    from chatspace.jobs.status import render_status

    found = open_run(run, workspace=workspace).status()
    if as_json:
        say(json.dumps(found.to_json(), indent=1))
    else:
        print_rich(render_status(found))
