"""The command line: each command imports what it needs when it runs, so `--help` is quick."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from chatspace import __version__
from chatspace.errors import ChatspaceError, ExitCode, SpecError

if TYPE_CHECKING:
    from chatspace.jobs.setup import SetUp
    from chatspace.plan.model import Plan

# typer carries its own copy of click, whose usage errors have no public name.
UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="chatspace",
    help="One YAML run spec becomes SLURM arrays that embed every row of a dataset exactly once.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

SpecArgument = Annotated[
    str | None, typer.Argument(metavar="[SPEC]", help="Run spec, a YAML file.")
]
ConfigOption = Annotated[str | None, typer.Option("--config", help="The same as SPEC.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a value, such as slurm.time=02:00:00."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder that the scripts are written to.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Run id, its folder, or its plan.json.")
]
SpecOrRunArgument = Annotated[
    str | None, typer.Argument(metavar="SPEC|RUN", help="Run spec, or a run that was set up.")
]
WorkspaceOption = Annotated[
    str | None,
    typer.Option("--workspace", help="Where a run id is looked up [$CHATSPACE_WORKSPACE]."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Slices at the same time [one a GPU; one on a CPU]."),
]


@app.command()
def setup(
    spec: SpecArgument = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    out: OutOption = Path(),
) -> None:
    """Plan a run and write its batch scripts."""
    from chatspace.jobs.overview import setup_lines

    _say("\n".join(setup_lines(_set_up(_one_of(spec, config), set_ or [], out))))


@app.command()
def submit(
    spec: SpecOrRunArgument = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    out: OutOption = Path(),
    workspace: WorkspaceOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="Although jobs of the run are active.")
    ] = False,
) -> None:
    """Set up and submit to SLURM, with a gather job."""
    from functools import partial

    from chatspace.api import Run, check_submittable
    from chatspace.jobs.scheduler import SlurmScheduler
    from chatspace.jobs.submissions import submit_all

    check = partial(check_submittable, executor="sbatch", again=again)
    done = _spec_or_run(_one_of(spec, config), set_ or [], out, workspace, check=check)
    if Run(done.plan).is_complete() and not again:
        _say(f"{done.plan.run_id}: complete and gathered already, nothing submitted")
        return
    for job in submit_all(done, SlurmScheduler(), again=again):
        what = (
            f"split {job.split}, {job.count} tasks" if job.split else "gather, when the arrays end"
        )
        _say(f"job {job.job_id}: {what}")
    folder = Path(done.plan.workspace) / "runs" / done.plan.run_id
    _say(f"\nNext:\n  chatspace status {shlex.quote(str(folder))}")


@app.command()
def run(
    spec: SpecOrRunArgument = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    workspace: WorkspaceOption = None,
    workers: WorkersOption = None,
) -> None:
    """Run everything on this machine, without SLURM."""
    done = _spec_or_run(_one_of(spec, config), set_ or [], None, workspace)
    _show_summary(done.plan, *_run_here(done, workers))


@app.command()
def task(
    plan: Annotated[Path, typer.Option("--plan", help="The run's plan.json.")],
    split: Annotated[str, typer.Option("--split", help="Split of the dataset.")],
    slice_: Annotated[int, typer.Option("--slice", help="Slice of the split.")],
    of: Annotated[int | None, typer.Option("--of", help="Slices the caller knows of.")] = None,
) -> None:
    """Do one slice: what an array task calls."""
    from chatspace.jobs.task import run_task

    _configure_logging()
    run_task(plan, split, slice_, of=of)


@app.command()
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
        _say(f"{plan.run_id} {item.split}: {total:,} rows accounted for; {item.manifest}")


@app.command()
def verify(run: RunArgument, workspace: WorkspaceOption = None) -> None:
    """Read all shards again and compare."""
    from chatspace.api import open_run
    from chatspace.jobs.gather import verify_run

    plan = open_run(run, workspace=workspace).plan
    for split, n_shards in verify_run(plan).items():
        _say(f"{plan.run_id} {split}: {n_shards:,} shards verified")


@app.command()
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
        _say(json.dumps(found.to_json(), indent=1))
    else:
        _print_rich(render_status(found))


@app.command("embed-hf", context_settings={
    "allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": [],
})  # fmt: skip
def embed_hf(context: typer.Context) -> None:
    """Embed here, with a run spec given as flags."""
    from chatspace.flag_command import parse_flags

    parsed = parse_flags("embed", "chatspace embed-hf", context.args)
    done = _write_set_up(parsed.spec)
    _show_summary(done.plan, *_run_here(done, parsed.workers))


@app.command()
def schema(
    kind: Annotated[str, typer.Option("--kind", help="Kind of run.")] = "embed",
) -> None:
    """Print the JSON schema of run specs, for editors."""
    from chatspace.spec.schema import json_schema

    _say(json.dumps(json_schema(kind), indent=2))


@app.command()
def demo(
    workers: WorkersOption = None,
    set_: SetOption = None,
) -> None:
    """Embed 5,000 passages of documentation, and draw."""
    from chatspace.demo.run import prepare_demo, write_demo_map
    from chatspace.resources import resource_dir

    started = time.monotonic()
    spec_path = resource_dir("setups") / "demo.yaml"
    done = _set_up(str(spec_path), set_ or [], None, prepare=prepare_demo)
    gathered, _ = _run_here(done, workers)
    pictures = write_demo_map(done.plan)
    _show_summary(done.plan, gathered, time.monotonic() - started, pictures)


@app.command()
def version() -> None:
    """Print the version."""
    _say(f"chatspace {__version__}")


def main() -> None:
    """Runs the command line; an error of chatspace's own is one line on stderr, and its code."""
    try:
        sys.exit(app(standalone_mode=False) or ExitCode.DONE)
    except ChatspaceError as error:
        _fail(str(error), error.exit_code)
    except UsageError as error:
        text, context = error.format_message(), error.ctx
        if context and "\n" not in text:
            text = f"{text.rstrip('.')}. See `{context.command_path} --help`."
        _fail(text, ExitCode.USER_INPUT)
    except (typer.Abort, KeyboardInterrupt):
        _fail("Interrupted. Run it again.", ExitCode.INTERRUPTED)


def _fail(text: str, code: ExitCode) -> NoReturn:
    sys.stderr.write(f"chatspace: {text}\n")
    sys.exit(code)


def setup_main() -> None:
    """Runs `chatspace setup` with this process's arguments, for `setup_embed.py`."""
    sys.argv.insert(1, "setup")
    main()


def _set_up(
    text: str, overrides: list[str], out: Path | None, *, prepare: Any = None, check: Any = None
) -> SetUp:
    from chatspace.spec.loading import load_spec

    path = Path(text)
    spec = load_spec(path, overrides)
    if prepare is not None:
        prepare(spec)
    return _write_set_up(spec, path, overrides, out, check)


def _write_set_up(
    spec: Any,
    path: Path | None = None,
    overrides: list[str] | None = None,
    out: Path | None = None,
    check: Any = None,
) -> SetUp:
    from chatspace.jobs.setup import set_up

    return set_up(
        spec,
        spec_path=path,
        spec_text=path.read_text(encoding="utf-8") if path else None,
        overrides=overrides or (),
        out=out and out.absolute(),
        note=_say,
        check=check,
    )


def _spec_or_run(
    text: str, overrides: list[str], out: Path | None, workspace: str | None, *, check: Any = None
) -> SetUp:
    """Sets a spec up, or takes a run that was set up before as it is."""
    from chatspace.api import open_run
    from chatspace.jobs.setup import set_up_again

    if Path(text).suffix in (".yaml", ".yml"):
        more = [f"workspace={workspace}"] if workspace else []
        return _set_up(text, [*overrides, *more], out, check=check)
    if overrides:
        raise SpecError("--set changes a run spec, not a run. Name the YAML file.")
    return set_up_again(open_run(text, workspace=workspace).plan, out and out.absolute())


def _one_of(spec: str | None, config: str | None) -> str:
    if (spec is None) == (config is None):
        raise SpecError(
            "Which run spec? Name one YAML file, as an argument or with --config, such as "
            "setups/demo.yaml."
        )
    return spec or config or ""


def _run_here(done: SetUp, workers: int | None) -> tuple[Any, float]:
    from chatspace.jobs.gather import gather_run
    from chatspace.jobs.local import rows_done, run_local, slice_labels
    from chatspace.jobs.overview import running_lines
    from chatspace.jobs.progress import LiveProgress

    started, plan = time.monotonic(), done.plan
    _say("\n".join(running_lines(done)))
    present, labels = rows_done(plan), slice_labels(plan)
    if all(present[i] == rows for i, (_, rows) in enumerate(labels)):
        _say(f"{plan.run_id}: every shard is there already, nothing to embed")
    else:
        with LiveProgress(labels, rows_done=present) as progress:
            run_local(plan, workers=workers, progress=progress)
    return gather_run(plan), time.monotonic() - started


def _show_summary(plan: Plan, gathered: Any, elapsed_s: float, pictures: Any = ()) -> None:
    from chatspace.jobs.overview import reading_steps, summary_of
    from chatspace.jobs.summary import render_summary

    steps = reading_steps(plan)
    summary = summary_of(plan, gathered, elapsed_s=elapsed_s, pictures=pictures, next_steps=steps)
    _say("")
    _print_rich(render_summary(summary))


def _configure_logging() -> None:
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )


def _print_rich(renderable: Any) -> None:
    from rich.console import Console

    Console().print(renderable)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
