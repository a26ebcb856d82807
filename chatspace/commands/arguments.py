"""Arguments and options that several commands have, and what they name: a spec or a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatspace.commands.output import say
from chatspace.errors import SpecError

if TYPE_CHECKING:
    from chatspace.jobs.setup import SetUp

SpecArgument = Annotated[str | None, typer.Argument(metavar="SPEC", help="Run spec, a YAML file.")]
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
UseProbeOption = Annotated[
    bool, typer.Option("--use-probe", help="Take what `chatspace probe` suggested for the spec.")
]


def set_up_file(
    text: str, overrides: list[str], out: Path | None, *, prepare: Any = None, check: Any = None
) -> SetUp:
    """Returns the run of a spec file, planned and written; arguments as in `jobs.setup.set_up`."""
    from chatspace.spec.loading import load_spec

    path = Path(text)
    spec = load_spec(path, overrides)
    if prepare is not None:
        prepare(spec)
    return set_up_spec(spec, path, overrides, out, check)


def set_up_probed(text: str, overrides: list[str], out: Path | None, *, check: Any = None) -> SetUp:
    """Returns the run of a spec file with what its probe suggests; says what was taken."""
    from chatspace.measure.probe_use import keep_probe, use_probe
    from chatspace.spec.loading import load_spec

    used = use_probe(load_spec(Path(text), overrides))
    say("\n".join(used.lines))
    done = set_up_file(text, [*overrides, *used.overrides], out, check=check)
    keep_probe(used.probe, done.plan)
    return done


def set_up_spec(
    spec: Any,
    path: Path | None = None,
    overrides: list[str] | None = None,
    out: Path | None = None,
    check: Any = None,
) -> SetUp:
    """Returns the run of a spec, planned and written; what takes long is said."""
    from chatspace.jobs.setup import set_up

    return set_up(
        spec,
        spec_path=path,
        spec_text=path.read_text(encoding="utf-8") if path else None,
        overrides=overrides or (),
        out=out and out.absolute(),
        note=say,
        check=check,
    )


def spec_or_run(
    text: str, overrides: list[str], out: Path | None, workspace: str | None, *, check: Any = None
) -> SetUp:
    """Sets a spec up, or takes a run that was set up before as it is."""
    from chatspace.api import open_run
    from chatspace.jobs.setup import render_all, set_up_again

    if Path(text).suffix in (".yaml", ".yml"):
        more = [f"workspace={workspace}"] if workspace else []
        return set_up_file(text, [*overrides, *more], out, check=check)
    if Path(text).suffix != ".json" and Path(text).is_file():
        raise SpecError(
            f"No run spec and no run: {text}; a run spec ends in .yaml. Name one, or a run by its "
            "id or its folder."
        )
    if overrides:
        raise SpecError("--set changes a run spec, not a run. Name the YAML file.")
    plan = open_run(text, workspace=workspace).plan
    if check is not None:
        check(plan, render_all(plan))
    return set_up_again(plan, out and out.absolute())


def one_of(spec: str | None, config: str | None) -> str:
    """Returns the spec that was named, as an argument or with `--config`."""
    if (spec is None) == (config is None):
        raise SpecError(
            "Which run spec? Name one YAML file, as an argument or with --config, such as "
            "setups/demo.yaml."
        )
    return spec or config or ""
