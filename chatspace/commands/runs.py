"""Commands that plan, start, do and prove a run."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatspace import __version__
from chatspace.commands.arguments import (
    ConfigOption,
    OutOption,
    RunArgument,
    SetOption,
    SpecArgument,
    SpecOrRunArgument,
    UseProbeOption,
    WorkersOption,
    WorkspaceOption,
    one_of,
    set_up_file,
    set_up_probed,
    set_up_spec,
    spec_or_run,
)
from chatspace.commands.output import configure_logging, print_rich, say, say_at_once
from chatspace.errors import SpecError
from chatspace.kinds import KINDS
from chatspace.wording import counted

if TYPE_CHECKING:
    from chatspace.jobs.gather import Gathered
    from chatspace.jobs.setup import SetUp
    from chatspace.plan.model import Plan


def setup(
    spec: SpecArgument = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    out: OutOption = Path(),
    use_probe: UseProbeOption = False,
) -> None:
    """Plan a run and write its batch scripts."""
    from chatspace.jobs.overview import setup_lines

    set_up = set_up_probed if use_probe else set_up_file
    say("\n".join(setup_lines(set_up(one_of(spec, config), set_ or [], out))))


def submit(
    spec: SpecOrRunArgument = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    out: OutOption = Path(),
    workspace: WorkspaceOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="Submit also while jobs of the run are active.")
    ] = False,
    no_doctor: Annotated[
        bool, typer.Option("--no-doctor", help="Do not look first whether all is fit.")
    ] = False,
) -> None:
    """Set up and submit to SLURM, with a gather job."""
    from functools import partial

    from chatspace.api import check_submittable
    from chatspace.jobs.scheduler import SlurmScheduler
    from chatspace.jobs.submissions import submit_all
    from chatspace.watch.completeness import is_complete

    check = partial(
        check_submittable, executor="sbatch", again=again, doctor=not no_doctor, tell=say
    )
    done = spec_or_run(one_of(spec, config), set_ or [], out, workspace, check=check)
    if is_complete(done.plan) and not again:
        say(f"{done.plan.run_id}: complete and gathered already, nothing submitted")
        return
    for job in submit_all(done, SlurmScheduler(), again=again):
        what = (
            f"split {job.split}, {counted(job.count, 'task')}"
            if job.split
            else "gather, when the arrays end"
        )
        say(f"job {job.job_id}: {what}")
    folder = Path(done.plan.workspace) / "runs" / done.plan.run_id
    say(f"\nNext:\n  chatspace status {shlex.quote(str(folder))}")


def run(
    spec: SpecOrRunArgument = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    workspace: WorkspaceOption = None,
    workers: WorkersOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every shard first, and redo damaged ones.")
    ] = False,
) -> None:
    """Run everything on this machine, without SLURM."""
    from functools import partial

    from chatspace.api import check_submittable

    check = partial(check_submittable, executor="local", again=True)
    done = spec_or_run(one_of(spec, config), set_ or [], None, workspace, check=check)
    show_summary(done.plan, *run_here(done, workers, verify=verify))


def task(
    plan: Annotated[Path, typer.Option("--plan", help="The run's plan.json.")],
    split: Annotated[str | None, typer.Option("--split", help="Split of the dataset.")] = None,
    slice_: Annotated[int | None, typer.Option("--slice", help="Slice of the split.")] = None,
    of: Annotated[int | None, typer.Option("--of", help="Slices that the script is for.")] = None,
    repair: Annotated[
        int | None, typer.Option("--repair", help="Number of a repair, instead of a slice.")
    ] = None,
    index: Annotated[int | None, typer.Option("--index", help="Task of the repair.")] = None,
    lanes: Annotated[int, typer.Option("--lanes", min=1, help="Processes of the task.")] = 1,
) -> None:
    """Do one slice: what an array task calls."""
    from chatspace.jobs.repair import run_repair_task
    from chatspace.jobs.task import run_task

    configure_logging()
    if repair is not None and index is not None:
        run_repair_task(plan, repair, index, lanes=lanes)
    elif split is not None and slice_ is not None:
        run_task(plan, split, slice_, of=of, lanes=lanes)
    else:
        raise SpecError("Which task? Give --split and --slice, or --repair and --index.")


def gather(
    run: RunArgument,
    workspace: WorkspaceOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard again.")] = False,
) -> None:
    """Prove that every row was done once, and publish."""
    from chatspace.api import open_run
    from chatspace.jobs.gather import gather_run

    plan = open_run(run, workspace=workspace).plan
    for item in gather_run(plan, verify=verify):
        total = item.content["rows_total"]
        say(f"{plan.run_id} {item.split}: {counted(total, 'row')} accounted for; {item.manifest}")


def verify(run: RunArgument, workspace: WorkspaceOption = None) -> None:
    """Read all shards again and compare."""
    from chatspace.api import open_run
    from chatspace.jobs.gather import verify_run

    plan = open_run(run, workspace=workspace).plan
    for split, n_shards in verify_run(plan).items():
        say(f"{plan.run_id} {split}: {counted(n_shards, 'shard')} verified")


def embed_hf(context: typer.Context) -> None:
    """Embed here, with a run spec given as flags."""
    from chatspace.flag_command import named_spec, parse_flags

    if spec := named_spec("embed", context.args):
        if not Path(spec).exists():
            raise SpecError(
                f"No such file: {spec}; looked from {Path.cwd()}. Name a run spec that is there to "
                "`chatspace run SPEC.yaml`, or give its keys as flags to `chatspace embed-hf`."
            )
        raise SpecError(
            f"A run spec, not flags: {spec}. Use `chatspace run {shlex.quote(spec)}`, with "
            "--set KEY=VALUE for what differs."
        )
    parsed = parse_flags("embed", "chatspace embed-hf", context.args)
    done = set_up_spec(parsed.spec)
    show_summary(done.plan, *run_here(done, parsed.workers))


def schema(
    kind: Annotated[str, typer.Option("--kind", help=f"One of {', '.join(KINDS)}.")] = "embed",
) -> None:
    """Print the JSON schema of run specs, for editors."""
    from chatspace.spec.schema import json_schema

    say(json.dumps(json_schema(kind), indent=2))


def demo(
    workers: WorkersOption = None,
    set_: SetOption = None,
) -> None:
    """Embed 5,000 passages of documentation, and draw."""
    from chatspace.demo.run import demo_overrides, prepare_demo, write_demo_map
    from chatspace.resources import resource_dir

    started = time.monotonic()
    spec_path = resource_dir("setups") / "demo.yaml"
    overrides = demo_overrides(spec_path, set_ or [])
    done = set_up_file(str(spec_path), overrides, None, prepare=prepare_demo)
    gathered, _ = run_here(done, workers)
    pictures = write_demo_map(done.plan)
    show_summary(done.plan, gathered, time.monotonic() - started, pictures)


def version() -> None:
    """Print the version."""
    say(f"chatspace {__version__}")


def run_here(
    done: SetUp, workers: int | None, *, verify: bool = False
) -> tuple[list[Gathered], float]:
    """Runs a run that was set up on this machine; returns what gather says, and seconds.

    Args:
        done: the run.
        workers: slices at the same time [one a GPU; one on a CPU].
        verify: read every shard, before and after; damaged ones are done again.
    """
    from chatspace.jobs.gather import gather_run
    from chatspace.jobs.local import rows_done, run_local, slice_labels
    from chatspace.jobs.overview import running_lines
    from chatspace.jobs.progress import LiveProgress
    from chatspace.mend.damaged import look_at_shards

    started, plan = time.monotonic(), done.plan
    say("\n".join(running_lines(done)))
    if verify:
        say_at_once(f"{plan.run_id}: reading every shard")
    shards = look_at_shards(plan, verify=verify)
    for line in shards.lines(plan.run_id):
        say_at_once(line)
    present, labels = rows_done(plan, shards.whole), slice_labels(plan)
    if all(present[i] == rows for i, (_, rows) in enumerate(labels)):
        say(f"{plan.run_id}: every shard is there already, nothing to embed")
    else:
        with LiveProgress(labels, rows_done=present) as progress:
            run_local(plan, workers=workers, progress=progress)
    return gather_run(plan, verify=verify), time.monotonic() - started


def show_summary(plan: Plan, gathered: Any, elapsed_s: float, pictures: Any = ()) -> None:
    """Shows what a finished run did, and how to go on."""
    from chatspace.jobs.overview import reading_steps, summary_of
    from chatspace.jobs.summary import render_summary

    steps = reading_steps(plan)
    summary = summary_of(plan, gathered, elapsed_s=elapsed_s, pictures=pictures, next_steps=steps)
    say("")
    print_rich(render_summary(summary))
