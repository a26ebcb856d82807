"""Commands that measure: what a run will take, and what it took."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatspace.commands.arguments import (
    ConfigOption,
    RunArgument,
    SetOption,
    SpecOrRunArgument,
    WorkspaceOption,
    one_of,
)
from chatspace.commands.output import print_rich, say
from chatspace.errors import ExitCode, SpecError, UnfitEnvironmentError

if TYPE_CHECKING:
    from chatspace.measure.forecast import Probe
    from chatspace.plan.model import Plan


def probe(
    spec: SpecOrRunArgument = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    workspace: WorkspaceOption = None,
    minutes: Annotated[float, typer.Option("--minutes", min=0.02, help="How long to embed.")] = 1.0,
    submit: Annotated[
        bool, typer.Option("--submit", help="As a job of SLURM, with the run's directives.")
    ] = False,
    wait_min: Annotated[
        float, typer.Option("--wait-min", help="How long to wait for that job.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    plan: Annotated[Path | None, typer.Option("--plan", hidden=True)] = None,
) -> None:
    """Embed a sample, and predict what the run takes."""
    if plan is not None:
        _probe_of_plan(plan, minutes)
        return
    text = one_of(spec, config)
    planned = _planned(text, set_ or [], workspace)
    if submit:
        found = _probe_as_job(planned, minutes, wait_min)
    else:
        from chatspace.measure.probe_job import probe_locally

        found = probe_locally(planned, seconds=60 * minutes)
    from chatspace.measure.probe_view import probe_json, render_probe_result

    if as_json:
        say(json.dumps(probe_json(found, planned), indent=1))
        return
    say("")
    again = "".join(f" --set {shlex.quote(override)}" for override in set_ or [])
    command = f"chatspace setup {shlex.quote(text)}{again} --use-probe"
    print_rich(render_probe_result(found, planned, setup_command=command))


def report(
    run: RunArgument,
    workspace: WorkspaceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare prediction and outcome, and say what to ask for."""
    from chatspace.api import open_run
    from chatspace.measure.report import run_report, write_report
    from chatspace.measure.report_view import render_report

    plan = open_run(run, workspace=workspace).plan
    found = run_report(plan)
    write_report(found, plan)
    if as_json:
        say(json.dumps(found.to_json(), indent=1))
    else:
        print_rich(render_report(found))


def _planned(text: str, overrides: list[str], workspace: str | None) -> Plan:
    """Returns the plan of a spec, without writing anything of the run, or that of a run.

    Raises:
        SpecError: it is of a kind that cannot be probed.
    """
    from chatspace.api import open_run
    from chatspace.jobs.setup import plan_run
    from chatspace.measure.probe import refuse_remote
    from chatspace.spec.loading import load_spec

    if Path(text).suffix not in (".yaml", ".yml"):
        if overrides:
            raise SpecError("--set changes a run spec, not a run. Name the YAML file.")
        plan = open_run(text, workspace=workspace).plan
        refuse_remote(plan.kind)
        return plan
    more = [f"workspace={workspace}"] if workspace else []
    spec = load_spec(Path(text), [*overrides, *more])
    refuse_remote(spec.kind)
    return plan_run(spec, spec_path=Path(text), note=_note)


def _probe_of_plan(path: Path, minutes: float) -> None:
    """Probes in this process: what a job of a probe calls."""
    from chatspace.measure.probe import probe_here, write_probe
    from chatspace.measure.probe_view import result_path
    from chatspace.plan.store import load_plan

    plan = load_plan(path)
    write_probe(probe_here(plan, seconds=60 * minutes, say=_note), result_path(plan))


def _probe_as_job(plan: Plan, minutes: float, wait_min: float) -> Probe:
    from chatspace.jobs.scheduler import SlurmScheduler
    from chatspace.measure.probe_job import submit_probe, wait_for_probe

    scheduler = SlurmScheduler()
    job = submit_probe(plan, scheduler, seconds=60 * minutes)
    _note(f"job {job.job_id}: {'submitted' if job.is_new else 'is in the queue already'}")
    try:
        return wait_for_probe(plan, job, scheduler, wait_min=wait_min, say=_note)
    except TimeoutError as error:
        raise UnfitEnvironmentError(
            f"Probe not done: {error}. Run this again to go on waiting, or `scancel {job.job_id}`."
        ) from None
    except KeyboardInterrupt:
        _note(f"job {job.job_id} goes on; run this again to wait for it")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _note(text: str) -> None:
    """Says how it goes, beside what is printed for machines."""
    typer.echo(text, err=True)
