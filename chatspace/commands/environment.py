"""Commands about the virtual environment that tasks run in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from chatspace.commands.arguments import OutOption, SetOption, SpecArgument
from chatspace.commands.output import say

app = typer.Typer(help="Make the virtual environment of the tasks.", no_args_is_help=True)

ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="Cluster profile, in place of the spec's.")
]


@app.command()
def create(
    spec: SpecArgument = None,
    profile: ProfileOption = None,
    set_: SetOption = None,
    extras: Annotated[
        str | None, typer.Option("--extras", metavar="A,B", help="Optional parts of chatspace.")
    ] = None,
    python: Annotated[
        str | None,
        typer.Option("--python", help="Interpreter that it is made from [the image's python3]."),
    ] = None,
    recreate: Annotated[
        bool, typer.Option("--recreate", help="Replace the environment that is there.")
    ] = False,
    submit: Annotated[
        bool, typer.Option("--submit", help="Make it in a SLURM job; its node needs internet.")
    ] = False,
    out: OutOption = Path(),
) -> None:
    """Make, repair or update the environment that container.venv names."""
    from chatspace.jobs import environment
    from chatspace.jobs.scheduler import SlurmScheduler

    cluster = environment.environment_cluster(Path(spec) if spec else None, set_ or [], profile)
    wanted = [part.strip() for part in (extras or "").split(",") if part.strip()]
    package = environment.this_package(wanted)
    text = environment.render_create(
        cluster, package, python=python, recreate=recreate, log_dir=out.absolute()
    )
    script = environment.write_script(text, out)
    if not submit:
        say(f"running {script}")
        sys.stdout.flush()
        environment.create_here(script)
        return
    if cluster.offline:
        say(
            f"note: compute nodes are offline (profile {cluster.profile}): the job works only "
            "where pip is set to a mirror that they reach; else leave --submit away"
        )
    job = SlurmScheduler().submit(script)
    say(f"job {job}: makes {cluster.venv}; log {script.parent}/chatspace-env-{job}.out")


@app.command()
def script(
    profile: ProfileOption = None, spec: SpecArgument = None, set_: SetOption = None
) -> None:
    """Print install_package.slurm for a profile or a run spec."""
    from chatspace.jobs.environment import environment_cluster, render_install

    cluster = environment_cluster(Path(spec) if spec else None, set_ or [], profile)
    sys.stdout.write(render_install(cluster))
