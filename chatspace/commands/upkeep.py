"""Commands that mend or end what was submitted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from chatspace.commands.arguments import RunArgument, WorkspaceOption
from chatspace.commands.output import say
from chatspace.wording import counted

if TYPE_CHECKING:
    from chatspace.mend.resubmit import Resubmitted


def resubmit(
    run: RunArgument,
    workspace: WorkspaceOption = None,
    max_tasks: Annotated[
        int | None, typer.Option(min=1, help="Array tasks at most [as large as the plan's slices].")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Another cluster profile.")] = None,
    time: Annotated[str | None, typer.Option(help="Another walltime.")] = None,
    gpu_type: Annotated[str | None, typer.Option(help="Another type of GPU.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value of slurm or container."),
    ] = None,
    share: Annotated[
        bool,
        typer.Option("--share", help="Take also what active tasks have; they share it."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every shard first, and redo damaged ones.")
    ] = False,
    no_doctor: Annotated[
        bool, typer.Option("--no-doctor", help="Do not look first whether all is fit.")
    ] = False,
) -> None:
    """Submit what is missing of a run, and nothing else."""
    from chatspace.api import open_run
    from chatspace.checks.doctor import refuse_unfit
    from chatspace.jobs.scheduler import SlurmScheduler
    from chatspace.mend.resubmit import resubmit as resubmit_run

    plan = open_run(run, workspace=workspace).plan
    given = {"slurm.profile": profile, "slurm.time": time, "slurm.gpu_type": gpu_type}
    overrides = [f"{key}={value}" for key, value in given.items() if value is not None]
    done = resubmit_run(
        plan,
        SlurmScheduler(),
        max_tasks=max_tasks,
        overrides=[*overrides, *(set_ or [])],
        share=share,
        verify=verify,
        check=None if no_doctor else partial(refuse_unfit, tell=say),
    )
    if not done.n_missing:
        say(f"{plan.run_id}: every shard is there. Next: chatspace gather {shlex.quote(run)}")
        return
    say("\n".join(_resubmitted_lines(done)))


def _resubmitted_lines(done: Resubmitted) -> Iterator[str]:
    """Yields what was found missing and what was submitted of it."""
    if done.n_active:
        missing = counted(done.n_missing, "missing shard")
        ending = "." if done.submissions else "; nothing submitted. --share adds tasks to them."
        verb = "is" if done.n_active == 1 else "are"
        yield f"{done.n_active} of {missing} {verb} with tasks that are queued or running{ending}"
    if done.excluded:
        yield (
            f"avoiding nodes on which tasks failed twice: {', '.join(done.excluded)} "
            "(not so with --set slurm.exclude_failed_nodes=false)"
        )
    for job in done.submissions:
        what = f"split {job.split}, {counted(job.count, 'task')}"
        repair = f", repair {job.repair}" if job.repair else ""
        yield f"job {job.job_id}: {what if job.split else 'gather, when they end'}{repair}"


def cancel(
    run: RunArgument,
    workspace: WorkspaceOption = None,
    batches: Annotated[
        bool,
        typer.Option("--batches", help="Cancel its batches at the endpoint too (embed_openai)."),
    ] = False,
) -> None:
    """Cancel all jobs of a run; what is done stays."""
    from chatspace.api import open_run
    from chatspace.jobs.scheduler import SlurmScheduler
    from chatspace.mend.cancel import cancel as cancel_run
    from chatspace.mend.cancel import cancel_batches, left_batches, refuse_without_batches

    plan = open_run(run, workspace=workspace).plan
    if batches:
        refuse_without_batches(plan)
    cancelled, left = cancel_run(plan, SlurmScheduler()), left_batches(plan)
    jobs = f"cancelled {', '.join(cancelled)}" if cancelled else "nothing is queued or running"
    say(f"{plan.run_id}: {jobs}")
    where = f" --workspace {shlex.quote(workspace)}" if workspace else ""
    named = f"{shlex.quote(run)}{where}"
    again = f"  chatspace {'resubmit' if cancelled or plan.has_scheduler else 'run'} {named}"
    if batches:
        say(f"{_batches(len(left))} at the endpoint{':' if left else ''}")
        for line in cancel_batches(plan):
            say(f"  {line}")
        if cancelled:
            say("tasks that are just ending may have made another: run this again in a minute")
    elif left:
        say(f"{_batches(len(left))} left with the endpoint, to go on there and be charged:")
        say("\n".join(f"  {line}" for line in left))
    if batches and left:
        say(f"\nNext, for what they did (it is charged), and the rest:\n{again}")
    elif left:
        say(f"\nNext, to fetch what they make:\n{again}")
        say(f"or, to cancel them there:\n  chatspace cancel {named} --batches")
    elif cancelled:
        say(f"\nNext, when you want the rest:\n{again}")


def _batches(n: int) -> str:
    return "1 batch" if n == 1 else f"{n:,} batches"
