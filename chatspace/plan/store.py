"""Reading and writing `plan.json`.

A plan that lies at `runs/{run_id}/plan.json` belongs to the workspace around it, wherever that was
when the run was planned: a workspace may be moved, or be mounted elsewhere on another machine.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from chatspace.atomic import atomic_write_text
from chatspace.errors import InputError, SpecError
from chatspace.layout import Layout, find_workspace
from chatspace.plan.model import Plan
from chatspace.spec.document import read_document, shown

_ADAPTER: TypeAdapter[Plan] = TypeAdapter(Plan)
_NAME = "plan.json"
_HOW_TO_NAME = (
    "Name a run by its id, its folder or its plan.json; `chatspace status` lists the runs."
)


def save_plan(plan: Plan, path: Path) -> None:
    """Writes the plan by rename.

    Raises:
        OutputError: the folder cannot be written.
    """
    atomic_write_text(path, json.dumps(asdict(plan), ensure_ascii=False, indent=1) + "\n")


def load_plan(path: Path) -> Plan:
    """Reads a plan; its paths are those of the workspace that it lies in now.

    Raises:
        InputError: there is no plan at `path`, or it cannot be read.
    """
    if path.suffix != ".json" and path.is_file():
        raise _no_plan(path)
    try:
        plan = _ADAPTER.validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"No plan: {path} does not exist. Run `chatspace setup SPEC` first."
        ) from None
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(
            f"Plan cannot be read: {path}; {error.strerror}. Name a plan.json that you may read."
        ) from None
    except ValidationError as error:
        if path.name != _NAME:
            raise _no_plan(path) from None
        first = error.errors()[0]
        raise InputError(
            f"Plan cannot be read: {path} {'.'.join(map(str, first['loc']))}: {first['msg']}. "
            f"Run `chatspace setup SPEC` again."
        ) from None
    return _at_home(plan, Path(os.path.abspath(path)))  # noqa: PTH100  # links stay as they are


def _no_plan(path: Path) -> InputError:
    """Returns what to say of a file of another sort where a run was to be named."""
    if path.suffix not in (".yaml", ".yml"):
        return InputError(f"No plan: {shown(path)} is another sort of file. {_HOW_TO_NAME}")
    known = _runs_of(path)
    if not known:
        return InputError(f"A run spec, not a run: {shown(path)}. {_HOW_TO_NAME}")
    which = f"its run is {known[0]}" if len(known) == 1 else f"its runs: {', '.join(known[-4:])}"
    return InputError(f"A run spec, not a run: {shown(path)}; {which}. Name the run instead.")


def _runs_of(spec: Path) -> list[str]:
    """Returns the folders of the runs that have the name of a run spec, in the order of planning.

    They are looked for where the spec or the environment says; a cluster profile is not asked.
    """
    try:
        document = read_document(spec)
        name, workspace = (document.values.get(key) for key in ("name", "workspace"))
        if not isinstance(name, str):
            return []
        runs = Layout(find_workspace(workspace if isinstance(workspace, str) else None)).runs()
        of_name = re.compile(rf"{re.escape(name)}-[0-9a-f]{{8}}")
        plans = [p for p in runs.glob(f"*/{_NAME}") if of_name.fullmatch(p.parent.name)]
        return [str(p.parent) for p in sorted(plans, key=lambda plan: plan.stat().st_mtime_ns)]
    except (SpecError, OSError):
        return []


def _at_home(plan: Plan, path: Path) -> Plan:
    """Returns the plan with the workspace that it lies in; a copy elsewhere keeps its own."""
    around = Path(*path.parts[:-3])
    if path != Layout(around).run(plan.run_id).plan or _is_same(around, Path(plan.workspace)):
        return plan
    old, new = plan.workspace, str(around)
    splits = tuple(
        replace(
            split,
            files=tuple(replace(f, path=moved(f.path, old, new)) for f in split.files),
        )
        for split in plan.splits
    )
    # Not the spec and not the model's name: they stand in the rows, which a move must not change.
    model = {**plan.model, "path": moved(plan.model.get("path"), old, new)}
    return replace(
        plan, workspace=new, splits=splits, model=model, cluster=moved(plan.cluster, old, new)
    )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


def moved(value: Any, old: str, new: str) -> Any:
    """Returns paths in or below the folder `old` as they are below `new`, and all else as it is."""
    if isinstance(value, str):
        rest = value.removeprefix(old)
        inside = rest != value and rest[:1] in ("", "/", ":")  # the colon of a bind mount
        return new + rest if inside else value
    if isinstance(value, dict):
        return {key: moved(inner, old, new) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [moved(inner, old, new) for inner in value]
    return value
