"""The command that brings model and dataset to where compute nodes can read them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatspace.commands.arguments import ConfigOption, SetOption, SpecArgument, one_of
from chatspace.commands.output import say, say_at_once
from chatspace.wording import counted

if TYPE_CHECKING:
    from chatspace.data.fetch import Fetched
    from chatspace.jobs.stage import Staged, StagedSplit


def stage(
    spec: SpecArgument = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    wait_min: Annotated[
        float, typer.Option("--wait-min", min=0, help="Minutes to wait for another `stage`.")
    ] = 60.0,
) -> None:
    """Bring model and dataset to disk, for offline nodes."""
    from chatspace.jobs.stage import stage_run
    from chatspace.spec.loading import load_spec

    path = Path(one_of(spec, config))
    staged = stage_run(
        load_spec(path, set_ or []), spec_path=path, note=say_at_once, wait_min=wait_min
    )
    say("\n".join(_lines(staged, path, set_ or [])))


def _lines(staged: Staged, path: Path, overrides: list[str]) -> list[str]:
    plan = staged.plan
    lines = []
    if not staged.models:
        url = plan.model.get("base_url")
        where = f"asked of {url}" if url else "a local folder, used where it lies"
        lines += [f"model    {plan.model['name']}", f"         {where}"]
    for model in staged.models:
        lines += _model_lines(model)
    for item in staged.splits:
        lines += _split_lines(item)
    needs = "its tasks need no network" if plan.model["path"] else "its tasks may ask the hub"
    if plan.model.get("base_url"):
        needs = "its tasks ask the endpoint"
    again = "".join(f" --set {shlex.quote(text)}" for text in overrides)
    verb = "submit" if plan.has_scheduler else "run"
    command = f"chatspace {verb} {shlex.quote(str(path))}{again}"
    return [*lines, f"run      {plan.run_id}: {needs}", "", "Next:", f"  {command}"]


def _model_lines(model: Fetched) -> list[str]:
    from chatspace.jobs.summary import format_bytes

    there = model.files - len(model.fetched)
    fetched = f"{len(model.fetched)} fetched now ({format_bytes(model.fetched_bytes)})"
    parts = [fetched] if model.fetched else []
    parts += [f"{there} there already"] if there else []
    lines = [
        f"model    {model.name} at {model.commit[:12]}",
        f"         {counted(model.files, 'file')}, {format_bytes(model.bytes)}: {', '.join(parts)}",
        "         every checksum agrees with the hub's",
        f"         in {model.folder}",
    ]
    lines += [f"         was damaged, fetched again: {name}" for name in model.damaged]
    return lines


def _split_lines(item: StagedSplit) -> list[str]:
    from chatspace.jobs.summary import format_bytes

    split, source = item.split, "Parquet, used where it lies"
    if split.identity and "mtime_ns" not in split.identity[0]:
        source = "staged as Parquet now" if item.is_new else "staged as Parquet before"
    at = f" at {split.revision[:12]}" if split.revision else ""
    return [
        f"dataset  {split.dataset}, split {split.name}{at}",
        f"         {counted(split.rows, 'row')}, {format_bytes(item.bytes)}: {source}",
        f"         in {item.folder}",
    ]
