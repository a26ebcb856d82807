"""The command that looks whether machine, cluster and container are fit for a run."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatspace.commands.arguments import (
    ConfigOption,
    SetOption,
    SpecOrRunArgument,
    WorkspaceOption,
    one_of,
)
from chatspace.commands.output import print_rich, say, say_at_once
from chatspace.errors import ExitCode, SpecError
from chatspace.kinds import KINDS
from chatspace.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from chatspace.checks.findings import Finding
    from chatspace.plan.model import Plan
    from chatspace.spec.base import RunSpec

SPEC_SUFFIXES = (".yaml", ".yml")


def doctor(
    spec: SpecOrRunArgument = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    workspace: WorkspaceOption = None,
    node: Annotated[
        bool, typer.Option("--node", help="Send a short job to look at a compute node too.")
    ] = False,
    timeout_min: Annotated[
        float, typer.Option("--timeout-min", min=0, help="Minutes to wait for that job.")
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    inside: Annotated[Path | None, typer.Option("--inside", hidden=True)] = None,
) -> None:
    """Look whether this machine, and a run, are fit."""
    from chatspace.checks.doctor import is_fit, render_findings

    if inside is not None:
        _look_inside(inside)
        return
    named = one_of(spec, config) if spec or config else None
    if named is None and (node or set_):
        raise SpecError("Which run spec? --node and --set need one, such as setups/demo.yaml.")
    note = (lambda _: None) if as_json else say_at_once
    node_timeout_min = timeout_min if node else None
    found = _examine(named, set_ or [], workspace, note, node_timeout_min)
    if as_json:
        content = {"fit": is_fit(found), "checks": [finding.to_json() for finding in found]}
        say(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        print_rich(render_findings(found))
        states = [finding.state for finding in found]
        counts = ", ".join(f"{states.count(state)} {state}" for state in ("pass", "warn", "fail"))
        say(f"\n{counts}")
    failed = {finding.check for finding in found if finding.state == "fail"}
    if failed:  # of a plan that could not be made, setup says the same with the same code
        sys.exit(ExitCode.USER_INPUT if failed == {"plan"} else ExitCode.ENVIRONMENT)


def _look_inside(folder: Path) -> None:
    from chatspace.checks.inside import look_inside

    if not look_inside(folder, say_at_once):
        sys.exit(ExitCode.ENVIRONMENT)


def _examine(
    named: str | None,
    overrides: list[str],
    workspace: str | None,
    note: Callable[[str], None],
    node_timeout_min: float | None,
) -> list[Finding]:
    from chatspace.checks.doctor import examine_machine, examine_run, with_digest
    from chatspace.checks.findings import failed, passed
    from chatspace.errors import UserError
    from chatspace.jobs.scheduler import SlurmScheduler
    from chatspace.jobs.setup import render_all
    from chatspace.spec.cluster import resolve_cluster

    if named is None:
        return examine_machine()
    is_spec = Path(named).suffix in SPEC_SUFFIXES
    spec = _loaded(named, overrides, workspace) if is_spec else None
    spec, spending = _as_if_allowed(named, spec)
    try:
        plan = _planned(named, spec, workspace, note)
        scripts = render_all(plan)
    except SpecError:
        raise
    except UserError as error:
        if spec is None:
            raise
        has_slurm = resolve_cluster(spec).scheduler != "none"
        machine = examine_machine(with_workspace=False, with_scheduler=has_slurm)
        return [failed("plan", str(error), ""), *spending, *machine]
    if node_timeout_min is not None:
        if not plan.has_scheduler:
            raise SpecError(
                "No node to look at: --node; slurm.profile has no scheduler. Leave --node out, or "
                "name the profile of a cluster."
            )
        note("Looking here, then on a compute node")
    rows = sum(split.rows for split in plan.splits)
    found = examine_run(
        with_digest(plan, note),
        scripts,
        scheduler=SlurmScheduler(),
        node_timeout_min=node_timeout_min,
    )
    return [
        passed(
            "plan", f"{plan.run_id}: {counted(rows, 'row')}, {counted(len(scripts) - 1, 'array')}"
        ),
        *spending,
        *found,
    ]


def _loaded(named: str, overrides: list[str], workspace: str | None) -> RunSpec:
    from chatspace.spec.loading import load_spec

    more = [f"workspace={workspace}"] if workspace else []
    return load_spec(Path(named), [*overrides, *more])


def _as_if_allowed(named: str, spec: Any) -> tuple[Any, list[Finding]]:
    """Returns a spec that can be planned, and a warning where it does not say that it may spend.

    The plan is looked at and not written, and nothing is sent.
    """
    from chatspace.checks.findings import warned

    if spec is None or not KINDS[spec.kind].is_remote or spec.spending.execute:
        return spec, []
    step = (
        f"See the price with `chatspace embed-dataset {shlex.quote(named)}`, then set "
        "spending.execute: true (--set spending.execute=true)."
    )
    said = "spending.execute=false: run, submit and setup will refuse it"
    return spec.as_if_allowed(), [warned("spending", said, step)]


def _planned(
    named: str, spec: RunSpec | None, workspace: str | None, note: Callable[[str], None]
) -> Plan:
    from chatspace.api import open_run
    from chatspace.jobs.setup import plan_run

    if spec is None:
        return open_run(named, workspace=workspace).plan
    return plan_run(spec, spec_path=Path(named), note=note)
